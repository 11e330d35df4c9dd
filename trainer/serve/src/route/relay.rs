//! A request on its way to a worker and its answer on the way back.
//!
//! A request is tried on another worker as long as nothing of an answer has come. From the first byte
//! on it stays where it is: what a client has read must not be said again.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;

use super::Router;
use super::workers::Assigned;
use crate::error::{ApiError, ApiResult};
use crate::request_body::RequestBody;

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
    /// `/v1/completions`, with the query.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// The routers that a request came through, by their names among routers.
const ROUTERS: HeaderName = HeaderName::from_static("x-altiplano-routers");
/// Most routers that a request may come through.
const MOST_ROUTERS: usize = 16;

/// Sends a request to a worker that serves its model, and the answer back.
///
/// # Errors
/// 400 when the request has to name a model and does not, 404 when no worker serves the model, 503 when
/// none is left that answers, 508 when the request has been here before.
pub async fn relay(router: &Arc<Router>, request: Incoming) -> ApiResult<Response> {
    let Asks { model, prefix } = asks(&request).await?;
    let model = model.as_deref();
    let known = router.workers.models();
    if let Some(model) = model
        && !known.is_empty()
        && !router.workers.serves(model)
    {
        let param = Some("model".to_owned());
        let message = format!("the model {model:?} does not exist; there are {}", known.join(", "));
        return Err(ApiError { param, ..ApiError::not_found(message) });
    }
    let choice = router.workers.choice_of_models();
    if model.is_none() && !choice.is_empty() {
        let message = format!("is missing; there are {}", choice.join(", "));
        return Err(ApiError::field("model", message));
    }
    let mut headers = HeaderMap::new();
    for name in FORWARDED.into_iter().chain([HeaderName::from_static("x-request-id")]) {
        if let Some(value) = request.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    headers.insert(ROUTERS, with_router(&request.headers, &router.id)?);
    let mut tried = Vec::new();
    // The last answer that says to try elsewhere: it is the answer when there is no elsewhere.
    let mut turned_away = None;
    while let Some(mut assigned) = router.workers.assign(model, &prefix, &tried) {
        if !tried.is_empty() {
            router.metrics.retries.add(1);
        }
        let address = assigned.address.clone();
        let body = Body::from(request.body.clone());
        let (method, path) = (request.method.clone(), &request.path);
        let answer = async {
            let sent = router.client.send(method, &address, path, &headers, body).await;
            sent.map(begun)?.await
        };
        let answer = tokio::select! {
            answer = answer => answer,
            () = assigned.lost() => Err(LOST.to_owned()),
        };
        let reason = match answer {
            Ok(answer) if is_elsewhere(answer.head.status()) => {
                let status = answer.head.status();
                if status != StatusCode::TOO_MANY_REQUESTS {
                    assigned.fail();
                }
                turned_away = Some(answer);
                status.to_string()
            }
            Ok(answer) => {
                router.metrics.requests.with(&[&address]).add(1);
                return Ok(hand_over(answer, assigned));
            }
            Err(reason) => {
                assigned.fail();
                reason
            }
        };
        tracing::warn!(worker = address, reason, "a request is not answered");
        tried.push(address);
    }
    if let Some(answer) = turned_away {
        return Ok(turned_back(answer));
    }
    Err(ApiError::unavailable(match tried.is_empty() {
        true => "no worker is there",
        false => "no worker is left that answers",
    }))
}

/// What is said of a worker that does not answer questions any more.
const LOST: &str = "the worker does not answer any more";

/// What decides where a request goes.
struct Asks {
    model: Option<String>,
    /// The beginning of its prompt.
    prefix: Vec<u8>,
}

/// Reads what decides where a request goes; nothing else of its JSON is kept.
async fn asks(request: &Incoming) -> ApiResult<Asks> {
    let of_query = request.path.split_once('?').and_then(|(_, query)| named_in_query(query));
    if request.body.is_empty() {
        return Ok(Asks { model: of_query, prefix: Vec::new() });
    }
    let body = RequestBody::received(request.body.clone()).await;
    let asks = body.with_json(|json| {
        let model = json.get("model").and_then(Value::as_str).filter(|model| !model.is_empty());
        Ok(Asks { model: model.map(str::to_owned), prefix: prefix(&json) })
    });
    let asks = asks.await?;
    Ok(Asks { model: asks.model.or(of_query), ..asks })
}

/// The value of `model` in the query of a path.
fn named_in_query(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("model="))?;
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The routers of a request with this one.
///
/// # Errors
/// 508 when it was there before, or there are too many.
fn with_router(headers: &HeaderMap, id: &str) -> ApiResult<HeaderValue> {
    let before = headers.get(ROUTERS).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let ids: Vec<&str> = before.split(',').filter(|id| !id.is_empty()).collect();
    let wrong = |message: &str| ApiError::other(StatusCode::LOOP_DETECTED, message);
    if ids.contains(&id) {
        return Err(wrong(
            "this router is a worker of its own workers; take it out of their lists",
        ));
    }
    if ids.len() >= MOST_ROUTERS {
        return Err(wrong("the request came through too many routers"));
    }
    let all = [&ids[..], &[id]].concat().join(",");
    HeaderValue::from_str(&all).map_err(|_| wrong("the names of routers are not legible"))
}

/// Whether an answer says that another worker might take the request.
fn is_elsewhere(status: StatusCode) -> bool {
    [StatusCode::TOO_MANY_REQUESTS, StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE]
        .contains(&status)
}

/// The beginning of a prompt or a conversation, by which requests that share it meet at one worker.
fn prefix(body: &Value) -> Vec<u8> {
    let said = body.get("messages").or_else(|| body.get("prompt"));
    let mut bytes = [0; PREFIX_BYTES];
    let mut room = &mut bytes[..];
    if let Some(said) = said {
        // The writer is full at the end of the beginning.
        let _ = serde_json::to_writer(&mut room, said);
    }
    let written = PREFIX_BYTES - room.len();
    bytes[..written].to_vec()
}

/// Most bytes of an answer that is no stream that are held until all of it is there: up to then it can
/// be asked of another worker. A longer one is handed over as it comes.
const HELD_BYTES: usize = 16 << 20;

/// An answer of which something has come.
struct Answer {
    head: Response,
    is_stream: bool,
    first: Vec<Bytes>,
    /// None once all has come.
    rest: Option<axum::body::BodyDataStream>,
}

/// Waits for the first part of a stream, or for all of another answer.
async fn begun(response: Response) -> Result<Answer, String> {
    let (parts, body) = response.into_parts();
    let head = Response::from_parts(parts, Body::empty());
    let kind = head.headers().get(header::CONTENT_TYPE);
    let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    let mut answer = Answer { head, is_stream, first: Vec::new(), rest: None };
    let mut rest = body.into_data_stream();
    let mut held = 0;
    while let Some(part) = rest.next().await {
        let part = part.map_err(|error| error.to_string())?;
        held += part.len();
        answer.first.push(part);
        if is_stream || held > HELD_BYTES {
            answer.rest = Some(rest);
            break;
        }
    }
    Ok(answer)
}

/// The answer for the client; the worker counts as busy until it has been read.
fn hand_over(answer: Answer, assigned: Assigned) -> Response {
    let mut response = returned(answer.head);
    *response.body_mut() = match answer.rest {
        None => Body::from(answer.first.concat()),
        Some(rest) => {
            let first = stream::iter(answer.first.into_iter().map(Ok));
            Body::from_stream(first.chain(parts(rest, assigned, answer.is_stream)))
        }
    };
    response
}

/// The answer of a worker that said to try elsewhere, where there is no elsewhere.
fn turned_back(answer: Answer) -> Response {
    let mut response = returned(answer.head);
    *response.body_mut() = Body::from(answer.first.concat());
    response
}

/// What comes of an answer after its first part. Where the worker breaks off or is lost, an event says so
/// in a stream, and another answer breaks off too.
fn parts(
    rest: axum::body::BodyDataStream,
    assigned: Assigned,
    is_stream: bool,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    stream::unfold(Some((rest, assigned)), move |state| async move {
        let (mut rest, mut assigned) = state?;
        let part = tokio::select! {
            part = rest.next() => part?.map_err(|error| format!("the worker broke off: {error}")),
            () = assigned.lost() => Err(LOST.to_owned()),
        };
        let reason = match part {
            Ok(bytes) => return Some((Ok(bytes), Some((rest, assigned)))),
            Err(reason) => reason,
        };
        assigned.fail();
        let last = match is_stream {
            true => {
                let error = ApiError::internal(reason).to_json();
                Ok(Bytes::from(format!("data: {error}\n\ndata: [DONE]\n\n")))
            }
            false => Err(std::io::Error::other(reason)),
        };
        Some((last, None))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_a_query_is_decoded() {
        assert_eq!(named_in_query("a=1&model=a%2Fb+c").as_deref(), Some("a/b c"));
        assert_eq!(named_in_query("model=%4"), None);
        assert_eq!(named_in_query("a=1"), None);
    }

    #[test]
    fn a_request_passes_a_router_once() {
        let mut headers = HeaderMap::new();
        for id in ["a", "b"] {
            let routers = with_router(&headers, id);
            assert!(routers.is_ok());
            routers.into_iter().for_each(|routers| drop(headers.insert(ROUTERS, routers)));
        }
        let again = with_router(&headers, "a").map_err(|error| error.status);
        assert_eq!(again, Err(StatusCode::LOOP_DETECTED));
    }
}
