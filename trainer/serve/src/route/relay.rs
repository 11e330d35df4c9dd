//! A request on its way to a worker and its answer on the way back.
//!
//! A request is tried on another worker as long as nothing of an answer has come. From the first byte
//! on it stays where it is: what a client has read must not be said again.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;

use super::Router;
use super::workers::Assigned;
use crate::error::{ApiError, ApiResult};

/// Bytes of a prompt that decide which worker knows it.
const PREFIX_BYTES: usize = 256;

/// Headers that go to a worker.
const FORWARDED: [HeaderName; 3] = [header::CONTENT_TYPE, header::AUTHORIZATION, header::ACCEPT];
/// Headers of an answer that go back.
const RETURNED: [&str; 5] =
    ["content-type", "cache-control", "x-accel-buffering", "retry-after", "x-request-id"];

/// A request as it came.
#[derive(Debug)]
pub struct Incoming {
    /// `POST`.
    pub method: Method,
    /// `/v1/completions`.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// Sends a request to a worker that serves its model, and the answer back.
///
/// # Errors
/// 404 when no worker serves the model, 503 when none is left that answers.
pub async fn relay(router: &Arc<Router>, request: Incoming) -> ApiResult<Response> {
    let body: Value = match request.body.is_empty() {
        true => Value::Null,
        false => serde_json::from_slice(&request.body)
            .map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}")))?,
    };
    let model = body.get("model").and_then(Value::as_str);
    let known = router.workers.models();
    if let Some(model) = model
        && !known.is_empty()
        && !router.workers.serves(model)
    {
        let param = Some("model".to_owned());
        let message = format!("the model {model:?} does not exist; there are {}", known.join(", "));
        return Err(ApiError { param, ..ApiError::not_found(message) });
    }
    let prefix = prefix(&body);
    let mut headers = HeaderMap::new();
    for name in FORWARDED.into_iter().chain([HeaderName::from_static("x-request-id")]) {
        if let Some(value) = request.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let mut tried = Vec::new();
    // The last answer that says to try elsewhere: it is the answer when there is no elsewhere.
    let mut turned_away = None;
    while let Some(assigned) = router.workers.assign(model, &prefix, &tried) {
        let address = assigned.address.clone();
        let body = Body::from(request.body.clone());
        let sent = router
            .client
            .send(request.method.clone(), &address, &request.path, &headers, body)
            .await;
        let reason = match sent {
            Ok(response) if is_elsewhere(response.status()) => {
                let reason = response.status().to_string();
                if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                    router.workers.fail(&address);
                }
                turned_away = Some(response);
                reason
            }
            Ok(response) => match first_bytes(response).await {
                Ok(answer) => {
                    router.metrics.requests.with(&[&address]).add(1);
                    return Ok(hand_over(answer, assigned));
                }
                Err(reason) => {
                    router.workers.fail(&address);
                    reason
                }
            },
            Err(reason) => {
                router.workers.fail(&address);
                reason
            }
        };
        router.metrics.retries.add(1);
        tracing::warn!(worker = address, reason, "a request is tried on another worker");
        tried.push(address);
    }
    if let Some(response) = turned_away {
        return Ok(returned(response.map(Body::new)));
    }
    Err(ApiError::unavailable(match tried.is_empty() {
        true => "no worker is there",
        false => "no worker is left that answers",
    }))
}

/// Whether an answer says that another worker might take the request.
fn is_elsewhere(status: StatusCode) -> bool {
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE]
        .contains(&status)
}

/// The beginning of a prompt or a conversation, by which requests that share it meet at one worker.
fn prefix(body: &Value) -> Vec<u8> {
    let said = body.get("messages").or_else(|| body.get("prompt"));
    let mut bytes = said.map(|said| said.to_string().into_bytes()).unwrap_or_default();
    bytes.truncate(PREFIX_BYTES);
    bytes
}

/// An answer of which something has come.
struct Answer {
    head: Response,
    first: Option<Bytes>,
    rest: axum::body::BodyDataStream,
}

async fn first_bytes(response: Response) -> Result<Answer, String> {
    let (parts, body) = response.into_parts();
    let mut rest = body.into_data_stream();
    let first = rest.next().await.transpose().map_err(|error| error.to_string())?;
    Ok(Answer { head: Response::from_parts(parts, Body::empty()), first, rest })
}

/// The answer for the client; the worker counts as busy until it has been read.
fn hand_over(answer: Answer, assigned: Assigned) -> Response {
    let is_stream = answer
        .head
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let mut response = returned(answer.head);
    let body = match is_stream {
        true => Body::from_stream(with_error_event(answer.first, answer.rest, assigned)),
        false => {
            let first = stream::iter(answer.first.map(Ok));
            // The worker is busy as long as the body is.
            let rest = answer.rest.map(move |part| {
                let _busy = &assigned;
                part
            });
            Body::from_stream(first.chain(rest))
        }
    };
    *response.body_mut() = body;
    response
}

/// The events of a worker; where it breaks off, an event says so.
fn with_error_event(
    first: Option<Bytes>,
    rest: axum::body::BodyDataStream,
    assigned: Assigned,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let rest = rest.map(move |part| match part {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            assigned.fail();
            let error = ApiError::internal(format!("the worker broke off: {error}")).to_json();
            Ok(Bytes::from(format!("data: {error}\n\ndata: [DONE]\n\n")))
        }
    });
    stream::iter(first.map(Ok)).chain(rest)
}

/// A response with the headers that go back.
fn returned(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let mut response = (parts.status, body).into_response();
    response.headers_mut().remove(header::CONTENT_TYPE);
    for name in RETURNED {
        if let Some(value) = parts.headers.get(name) {
            response.headers_mut().insert(HeaderName::from_static(name), value.clone());
        }
    }
    response
}
