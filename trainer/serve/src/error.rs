//! What can go wrong: for a client, in OpenAI's shape, and for the server itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use altiplano_data::DataError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Result of a request.
pub type ApiResult<T> = std::result::Result<T, ApiError>;

/// An answer that is an error: `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// Status of the answer.
    pub status: StatusCode,
    /// What was found, what was expected, what to do.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Seconds after which trying again makes sense.
    pub retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, retry_after: None }
    }

    /// 400: the request does not say what it should.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: a field does not say what it should.
    pub fn field(name: &str, message: impl std::fmt::Display) -> Self {
        let message = format!("{name}: {message}");
        Self { param: Some(name.to_owned()), ..Self::invalid(message) }
    }

    /// 401: the key is missing or another.
    pub fn unauthorized() -> Self {
        let message = "a key is needed: send `Authorization: Bearer KEY` with the one the server was \
                       started with";
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// 404: no such model or path.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 429: the queue is full.
    pub fn overloaded(message: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// 500: the server is at fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// Any other status.
    pub fn other(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, message)
    }

    /// The value of `type`.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "invalid_request_error",
            StatusCode::NOT_FOUND => "NotFoundError",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailableError",
            status if status.is_server_error() => "InternalServerError",
            _ => "BadRequestError",
        }
    }

    /// The object, as a body or an event of a stream.
    pub fn to_json(&self) -> Value {
        let code = match self.status {
            StatusCode::UNAUTHORIZED => json!("invalid_api_key"),
            status => json!(status.as_u16()),
        };
        let (message, param) = (&self.message, &self.param);
        json!({"error": {"message": message, "type": self.kind(), "param": param, "code": code}})
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl From<DataError> for ApiError {
    /// A template that refuses a conversation, or text that cannot be encoded.
    fn from(error: DataError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.to_json())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Result of the server.
pub type Result<T> = std::result::Result<T, ServeError>;

/// Errors that end the server or a batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another --host or --port")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The system refuses threads or signal handlers.
    #[error(
        "{what}: {source}; raise the limit on processes and threads (`ulimit -u`, or `pids.max` of the \
         control group)"
    )]
    System {
        /// What was to be started.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The inference engine broke down.
    #[error("the inference engine ended: {reason}; every open request was answered with an error")]
    EngineEnded {
        /// What it said.
        reason: String,
    },
    /// A file of a batch cannot be read or written.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Lines of a batch have errors for answers.
    #[error(
        "{}: {failed} of {answered} lines failed, the first of them line {first}: {reason}; {} says of each why, and the \
         same command answers them again",
        input.display(),
        output.display()
    )]
    LinesFailed {
        /// The requests.
        input: PathBuf,
        /// The answers.
        output: PathBuf,
        /// How many.
        failed: usize,
        /// Of how many that were answered now.
        answered: usize,
        /// The number of the first, from 1.
        first: usize,
        /// Why that one failed.
        reason: String,
    },
    /// Arguments that do not fit together.
    #[error("{message}")]
    Usage {
        /// What was given and what to write instead.
        message: String,
    },
    /// An endpoint does not answer a request.
    #[error("{url}: {reason}")]
    Endpoint {
        /// The address, or the name of the model.
        url: String,
        /// What it said.
        reason: String,
        /// The HTTP status it said it with, if it said anything.
        status: Option<u16>,
    },
    /// The grammar compiler cannot use the vocabulary.
    #[error("the vocabulary cannot be used for grammars: {reason}")]
    Vocabulary {
        /// What is wrong with it.
        reason: String,
    },
}

impl ServeError {
    /// A file that cannot be read or written.
    pub fn file(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::File { path: path.into(), reason: reason.to_string() }
    }
}

/// An error with its causes.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
