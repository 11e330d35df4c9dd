//! Requests to an OpenAI-compatible endpoint, or to an engine of this process: what generates data and judges
//! answers asks here.

use std::sync::Arc;
use std::time::Duration;

use altiplano_data::storage::tls;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::app::App;
use crate::error::{Result, ServeError, with_causes};
use crate::request_body::RequestBody;
use crate::{chat_completions, completions};

/// Largest answer in bytes.
const LARGEST_ANSWER: usize = 64 << 20;
/// How often a request is sent again that an endpoint could not answer now.
const RETRIES: u32 = 5;
/// Longest wait before a request is sent again, in seconds.
const LONGEST_WAIT: u64 = 30;
/// Characters of an answer that a message repeats.
const QUOTED_CHARS: usize = 300;

/// Which of the two kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `/chat/completions`: messages.
    Chat,
    /// `/completions`: prompts.
    Completions,
}

impl Interface {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
        }
    }
}

/// What answers requests.
#[derive(Debug)]
pub enum Endpoint {
    /// A server.
    Remote(Box<RemoteEndpoint>),
    /// An engine of this process.
    Local(Arc<App>),
}

/// A server with an OpenAI-compatible interface.
#[derive(Debug)]
pub struct RemoteEndpoint {
    /// Without a slash at the end.
    base: String,
    headers: HeaderMap,
    /// How long an answer may take.
    answer_time: Duration,
    client: Client<tls::Connector, Body>,
}

/// Why there is no answer.
struct Failure {
    reason: String,
    /// Whether the same request may be answered later; after so many seconds, if the server says.
    again: Option<Option<u64>>,
    /// The status of the answer that is a refusal.
    status: Option<StatusCode>,
}

impl Failure {
    fn final_one(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), again: None, status: None }
    }

    fn passing(reason: impl Into<String>, after: Option<u64>) -> Self {
        Self { reason: reason.into(), again: Some(after), status: None }
    }
}

impl RemoteEndpoint {
    /// The endpoint at `base`, such as `http://127.0.0.1:8000/v1`, to which `key` is sent.
    ///
    /// # Errors
    /// [`ServeError::Usage`] when `base` is not an address that can be asked, or `key` cannot be sent.
    pub fn new(base: &str, key: Option<&str>, answer_time: Duration) -> Result<Self> {
        let usage = |message: String| Err(ServeError::Usage { message });
        let uri: Uri = match base.parse() {
            Ok(uri) => uri,
            Err(error) => return usage(format!("endpoint {base:?}: {error}")),
        };
        match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(_)) if uri.query().is_none() => {}
            _ => {
                return usage(format!(
                    "endpoint {base:?}: expected an address such as http://127.0.0.1:8000/v1 or https://HOST/v1"
                ));
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = key {
            let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {key}")) else {
                return usage(format!(
                    "endpoint {base:?}: its key has characters that no header may have"
                ));
            };
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let connector = match tls::connector() {
            Ok(connector) => connector,
            Err(reason) => return usage(format!("endpoint {base:?}: {reason}")),
        };
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            headers,
            answer_time,
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    async fn ask(&self, interface: Interface, body: &Value) -> Result<Value> {
        let url = format!("{}{}", self.base, interface.path());
        let mut tries = 0;
        loop {
            let answer = tokio::time::timeout(self.answer_time, self.ask_once(&url, body)).await;
            let failure = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failure)) => failure,
                Err(_) => {
                    let seconds = self.answer_time.as_secs();
                    Failure::final_one(format!(
                        "no answer within {seconds} s; set a larger `timeout`"
                    ))
                }
            };
            let Some(after) = failure.again.filter(|_| tries < RETRIES) else {
                let status = failure.status.map(|status| status.as_u16());
                return Err(ServeError::Endpoint { url, reason: failure.reason, status });
            };
            let wait = after.unwrap_or(1 << tries).min(LONGEST_WAIT);
            tracing::warn!("{url}: {}; asking again in {wait} s", failure.reason);
            tokio::time::sleep(Duration::from_secs(wait)).await;
            tries += 1;
        }
    }

    async fn ask_once(&self, url: &str, body: &Value) -> std::result::Result<Value, Failure> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .body(Body::from(body.to_string()))
            .map_err(|error| Failure::final_one(error.to_string()))?;
        *request.headers_mut() = self.headers.clone();
        let response = self.client.request(request).await.map_err(|error| {
            let reason = format!("{}; is the server running?", with_causes(&error));
            Failure::passing(reason, None)
        })?;
        let status = response.status();
        let after = response.headers().get(header::RETRY_AFTER);
        let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = Limited::new(response.into_body(), LARGEST_ANSWER);
        let bytes = body
            .collect()
            .await
            .map_err(|error| Failure::passing(format!("the answer breaks off: {error}"), None))?;
        let bytes = bytes.to_bytes();
        let json: Option<Value> = serde_json::from_slice(&bytes).ok();
        if !status.is_success() {
            let said = json.as_ref().and_then(|json| json.pointer("/error/message")?.as_str());
            let text = String::from_utf8_lossy(&bytes);
            let said = said.unwrap_or(&text).chars().take(QUOTED_CHARS).collect::<String>();
            let reason = format!("{status}: {said}");
            let failure = match status {
                StatusCode::TOO_MANY_REQUESTS
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::INTERNAL_SERVER_ERROR
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT => Failure::passing(reason, after),
                _ => Failure::final_one(reason),
            };
            return Err(Failure { status: Some(status), ..failure });
        }
        json.ok_or_else(|| Failure::final_one("the answer is not JSON"))
    }
}

impl Endpoint {
    async fn ask(&self, interface: Interface, body: Value) -> Result<Value> {
        let app = match self {
            Self::Remote(remote) => return remote.ask(interface, &body).await,
            Self::Local(app) => app,
        };
        let id = app.new_id();
        let answer = match interface {
            Interface::Chat => {
                chat_completions::answer_whole(app, RequestBody::of_json(body), &id).await
            }
            Interface::Completions => {
                completions::answer_whole(app, RequestBody::of_json(body), &id).await
            }
        };
        if let Some(reason) = app.engine.ended() {
            return Err(ServeError::EngineEnded { reason });
        }
        answer.map_err(|error| ServeError::Endpoint {
            url: app.model.name().to_owned(),
            reason: error.message,
            status: Some(error.status.as_u16()),
        })
    }
}

/// Asks all `requests`, `concurrency` at a time, and hands every answer to `on_answer` with the number of its
/// request, as soon as it is there. After a failure nothing more is asked; what was asked is waited for.
///
/// # Errors
/// The first of [`ServeError::Endpoint`] (which request was refused and why), and those of `on_answer`.
pub async fn ask_all<E: From<ServeError>>(
    endpoint: &Endpoint,
    interface: Interface,
    requests: impl IntoIterator<Item = Value>,
    concurrency: usize,
    mut on_answer: impl FnMut(usize, Value) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut requests = requests.into_iter().enumerate();
    let mut open = FuturesUnordered::new();
    let mut failed = None;
    loop {
        while failed.is_none() && open.len() < concurrency.max(1) {
            let Some((number, body)) = requests.next() else { break };
            open.push(async move { (number, endpoint.ask(interface, body).await) });
        }
        let Some((number, answer)) = open.next().await else { break };
        match answer {
            Ok(answer) => on_answer(number, answer)?,
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_be_asked_are_named() {
        let error = |base: &str| match RemoteEndpoint::new(base, None, Duration::from_secs(1)) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(error("http://127.0.0.1:8000/v1/"), "");
        assert_eq!(error("https://host/v1"), "");
        for wrong in ["127.0.0.1:8000", "ftp://host", "/v1", "http://h/v1?x=1", ""] {
            assert!(
                error(wrong).contains("127.0.0.1:8000/v1") || error(wrong).contains("endpoint")
            );
            assert!(!error(wrong).is_empty(), "{wrong}");
        }
    }
}
