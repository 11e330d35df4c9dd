//! The threads that serve connections; what computes has others.

use std::future::Future;

use crate::error::{ApiError, ApiResult, Result, ServeError};

/// Threads of connections: they wait most of the time.
const THREADS: usize = 2;

/// Started threads.
#[derive(Debug)]
pub struct Runtime(tokio::runtime::Runtime);

impl Runtime {
    /// Starts them.
    ///
    /// # Errors
    /// [`ServeError::System`] when the system refuses them.
    pub fn start() -> Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(THREADS).enable_all().build();
        let failed =
            |source| ServeError::System { what: "cannot start threads for connections", source };
        runtime.map(Self).map_err(failed)
    }

    /// Works until `work` is done, and waits for nothing else.
    pub fn run<T>(self, work: impl Future<Output = T>) -> T {
        let done = self.0.block_on(work);
        self.0.shutdown_background();
        done
    }
}

/// Does `work` on a thread that may be kept for as long as it takes.
///
/// # Errors
/// Those of `work`; 500 when it panicked.
pub async fn off_the_reactor<T: Send + 'static>(
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("the request could not be read")))
}
