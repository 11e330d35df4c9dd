//! The bytes of an object, fetched ahead of their reader.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::object::{Object, Stop};
use super::store::spawn;
use crate::error::Result;

/// Bytes that are asked for together.
const PART: u64 = 4 << 20;
/// Parts that are fetched at the same time. With one that is being read at most 5 × 4 MiB of a file are held.
const AT_ONCE: usize = 4;
/// Pieces of a whole object that wait for the reader; each is what a connection gave at once.
const WAITING: usize = 64;

/// A task that fetches an object from one place on.
#[derive(Debug)]
pub(super) struct Fetch {
    parts: mpsc::Receiver<std::result::Result<Vec<Bytes>, crate::error::DataError>>,
    task: JoinHandle<()>,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fetch {
    /// Fetches ranges from `start` on.
    ///
    /// # Errors
    /// [`crate::DataError::Storage`] when no task can be started.
    pub fn ranges(object: &Arc<Object>, start: u64) -> Result<Self> {
        let (sender, parts) = mpsc::channel(1);
        let fetched = Arc::clone(object);
        let task = spawn(&object.address, async move {
            let starts = stream::iter((start..fetched.bytes).step_by(PART as usize));
            let read = |start: u64| fetched.read(start..(start + PART).min(fetched.bytes));
            let mut parts = starts.map(read).buffered(AT_ONCE);
            while let Some(part) = parts.next().await {
                let part = part.map_err(|stop| match stop {
                    Stop::Failed(error) => error,
                    Stop::NoRanges => {
                        fetched.fail("the server gives no ranges any more; run again")
                    }
                });
                if sender.send(part).await.is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { parts, task })
    }

    /// Fetches the whole object, for servers that give no ranges.
    ///
    /// # Errors
    /// As [`Fetch::ranges`].
    pub fn whole(object: &Arc<Object>) -> Result<Self> {
        let (sender, parts) = mpsc::channel(WAITING);
        let fetched = Arc::clone(object);
        let task = spawn(&object.address, async move {
            let hand_on = |piece| {
                let sender = sender.clone();
                async move { sender.send(Ok(vec![piece])).await.is_ok() }
            };
            let done = fetched.each_piece(0..fetched.bytes, false, hand_on).await;
            if let Err(Stop::Failed(error)) = done {
                let _ = sender.send(Err(error)).await;
            }
        })?;
        Ok(Self { parts, task })
    }

    /// The next part; None at the end.
    pub fn next(&mut self) -> Option<Result<Vec<Bytes>>> {
        self.parts.blocking_recv()
    }
}
