//! Bodies of requests: within bounds, and read as JSON where it may take its time.
//!
//! JSON in memory takes many times its length. So few large bodies are worked on at a time, on threads
//! of their own, and what they took is given back to the system afterwards.

use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::{ApiError, ApiResult};
use crate::runtime::off_the_reactor;

/// How long a client may take to send a body.
const BODY_TIME: Duration = Duration::from_secs(60);
/// A body of more bytes is large.
const LARGE: usize = 256 << 10;
/// Large bodies that are worked on at a time.
const LARGE_AT_A_TIME: usize = 2;

static PLACES: Semaphore = Semaphore::const_new(LARGE_AT_A_TIME);

/// A body that was received, or JSON that is there already.
#[derive(Debug)]
pub struct RequestBody {
    content: Content,
    /// Held by a large one for as long as it is worked on.
    place: Option<SemaphorePermit<'static>>,
}

#[derive(Debug)]
enum Content {
    Received(Bytes),
    Json(Value),
}

impl RequestBody {
    /// Receives a body of at most `most` bytes; a large one waits for its turn.
    ///
    /// # Errors
    /// As [`receive`].
    pub async fn read(body: Body, most: usize) -> ApiResult<Self> {
        Ok(Self::received(receive(body, most).await?).await)
    }

    /// A body that was received before.
    pub async fn received(bytes: Bytes) -> Self {
        let place = match bytes.len() > LARGE {
            true => PLACES.acquire().await.ok(),
            false => None,
        };
        Self { content: Content::Received(bytes), place }
    }

    /// JSON that nobody has sent.
    pub fn of_json(json: Value) -> Self {
        Self { content: Content::Json(json), place: None }
    }

    /// The JSON, which leaves the body empty. To be called off the threads of connections.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn take_json(&mut self) -> ApiResult<Value> {
        match std::mem::replace(&mut self.content, Content::Json(Value::Null)) {
            Content::Json(json) => Ok(json),
            Content::Received(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}"))),
        }
    }

    /// What `work` makes of the JSON, off the threads of connections.
    ///
    /// # Errors
    /// As [`RequestBody::take_json`], and those of `work`.
    pub async fn with_json<T: Send + 'static>(
        mut self,
        work: impl FnOnce(Value) -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        off_the_reactor(move || work(self.take_json()?)).await
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.place.is_some() {
            self.content = Content::Json(Value::Null);
            give_memory_back();
        }
    }
}

/// Gives memory that is free back to the system: the allocator keeps it otherwise.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the function may be called at any time from any thread; it touches free memory only.
        unsafe { libc::malloc_trim(0) };
    }
}

/// The bytes of a body, within the bounds.
///
/// # Errors
/// 408 when it takes too long, 413 when it is too large.
pub async fn receive(body: Body, most: usize) -> ApiResult<Bytes> {
    match tokio::time::timeout(BODY_TIME, to_bytes(body, most)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let message =
                format!("the body cannot be read, or has more than {most} bytes: {error}");
            Err(ApiError::other(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Err(_) => {
            let message = format!("the body took longer than {} s", BODY_TIME.as_secs());
            Err(ApiError::other(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The third large body waits until another is done; small ones do not.
    #[test]
    fn large_bodies_are_worked_on_a_few_at_a_time() {
        use futures_util::FutureExt;
        let large = || Bytes::from(format!("[{}1]", "1,".repeat(LARGE / 2)));
        let body = |bytes: Bytes| RequestBody::received(bytes).now_or_never();
        let held: Vec<RequestBody> = (0..LARGE_AT_A_TIME).map(|_| body(large()).unwrap()).collect();
        assert!(body(large()).is_none());
        assert_eq!(body(Bytes::from_static(b"3")).unwrap().take_json().unwrap(), 3);
        drop(held);
        let mut body = body(large()).unwrap();
        assert_eq!(body.take_json().unwrap().as_array().unwrap().len(), LARGE / 2 + 1);
        assert_eq!(body.take_json().unwrap(), Value::Null);
    }

    #[tokio::test]
    async fn what_is_no_json_is_a_400() {
        let body = RequestBody::received(Bytes::from_static(b"{")).await;
        let error = body.with_json(Ok).await.unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
    }
}
