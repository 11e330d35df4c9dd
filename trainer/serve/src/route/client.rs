//! Requests of the router to its workers, and of a worker to its router.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::error::with_causes;

/// How long a worker may take to accept a connection.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long a short question may take at most.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Largest answer to a short question in bytes.
const LARGEST_ANSWER: usize = 16 << 20;

/// A client that keeps connections open.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<HttpConnector, Body>,
    /// The key of its own questions.
    key: Option<header::HeaderValue>,
    /// How long they may take.
    answer_time: Duration,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoAnswer {
    /// The other side answers, but not this: the status.
    Status(StatusCode),
    /// Nothing came, or not all of it, or something else: why.
    Broken(String),
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Broken(reason) => f.write_str(reason),
        }
    }
}

impl HttpClient {
    /// A client that sends `key` with its own questions, which have to be answered within `answer_time`.
    pub fn new(key: Option<&str>, answer_time: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIME));
        connector.set_nodelay(true);
        let key = key.and_then(|key| header::HeaderValue::from_str(&format!("Bearer {key}")).ok());
        Self { client: Client::builder(TokioExecutor::new()).build(connector), key, answer_time }
    }
}

/// The URL of a path at an address, which may have `http://` or not.
fn url(address: &str, path: &str) -> String {
    let address = address.trim_end_matches('/');
    match address.contains("://") {
        true => format!("{address}{path}"),
        false => format!("http://{address}{path}"),
    }
}

impl HttpClient {
    /// Sends a request as it is; the answer as it comes.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(
        &self,
        method: Method,
        address: &str,
        path: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(url(address, path))
            .body(body)
            .map_err(|error| error.to_string())?;
        *request.headers_mut() = headers.clone();
        self.client
            .request(request)
            .await
            .map(|response| response.map(Body::new))
            .map_err(|error| with_causes(&error))
    }

    /// Asks for JSON.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn post_json(
        &self,
        address: &str,
        path: &str,
        body: &Value,
    ) -> Result<Value, NoAnswer> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        let bytes =
            self.collect(Method::POST, address, path, headers, Body::from(body.to_string()));
        let bytes = bytes.await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|error| NoAnswer::Broken(error.to_string()))
    }

    /// Asks for a text.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn get_text(&self, address: &str, path: &str) -> Result<String, NoAnswer> {
        let bytes = self.collect(Method::GET, address, path, HeaderMap::new(), Body::empty());
        String::from_utf8(bytes.await?).map_err(|error| NoAnswer::Broken(error.to_string()))
    }

    async fn collect(
        &self,
        method: Method,
        address: &str,
        path: &str,
        mut headers: HeaderMap,
        body: Body,
    ) -> Result<Vec<u8>, NoAnswer> {
        if let Some(key) = &self.key {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
        let answer = async {
            let response =
                self.send(method, address, path, &headers, body).await.map_err(NoAnswer::Broken)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST_ANSWER);
            let bytes = body.collect().await;
            let bytes = bytes.map_err(|error| NoAnswer::Broken(error.to_string()))?.to_bytes();
            match status.is_success() {
                true => Ok(bytes.to_vec()),
                false => Err(NoAnswer::Status(status)),
            }
        };
        let answer = tokio::time::timeout(self.answer_time, answer).await;
        answer.unwrap_or_else(|_| {
            let seconds = self.answer_time.as_secs_f64();
            Err(NoAnswer::Broken(format!("no answer within {seconds} s")))
        })
    }
}
