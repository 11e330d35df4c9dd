//! Objects: what they are, and ranges of their bytes.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use object_store::path::Path as ObjectPath;
use object_store::{Error, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStoreExt};

use super::client::causes;
use super::location::Location;
use super::store::{Store, retries, wait};
use crate::error::{DataError, Result};

/// Objects that are asked for at the same time.
const AT_ONCE: usize = 32;
/// Longest wait before more of an object is asked for again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// An object as it was when this process first asked for it.
#[derive(Debug)]
pub(crate) struct Object {
    /// Its address.
    pub address: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// What its server says its content is.
    pub etag: Option<String>,
    /// When it was last changed, in nanoseconds since 1970; 0 where its server does not say.
    pub modified_nanos: u128,
    store: Arc<Store>,
    path: ObjectPath,
    /// Its server does not give ranges.
    whole_only: AtomicBool,
}

/// Why there are no more bytes.
pub(super) enum Stop {
    /// The server gives whole objects only.
    NoRanges,
    /// Nothing helps.
    Failed(DataError),
}

type Known = HashMap<PathBuf, Arc<Object>>;

/// Objects that were asked for. An address stands for the same bytes as long as the process lives.
fn known() -> MutexGuard<'static, Known> {
    static KNOWN: OnceLock<Mutex<Known>> = OnceLock::new();
    KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Object {
    /// The object at `address`.
    ///
    /// # Errors
    /// [`DataError::Storage`].
    pub fn open(address: &Path) -> Result<Arc<Self>> {
        if let Some(object) = known().get(address) {
            return Ok(Arc::clone(object));
        }
        let asked = address.to_owned();
        wait(address, async move { Self::ask(&asked).await })?
    }

    async fn ask(address: &Path) -> Result<Arc<Self>> {
        if let Some(object) = known().get(address) {
            return Ok(Arc::clone(object));
        }
        let fail = |reason: String| DataError::storage(address, reason);
        let location = Location::parse(address)
            .map_err(|expected| DataError::storage(address, format!("expected {expected}")))?;
        let path = location.object().map_err(|expected| fail(format!("expected {expected}")))?;
        let store = Store::of(&location).map_err(fail)?;
        let meta = match store.client.head(&path).await {
            Ok(meta) => meta,
            // Some web servers answer GET alone.
            Err(error) if !location.scheme.is_bucket() => match store.client.get(&path).await {
                Ok(result) => result.meta,
                Err(_) => return Err(fail(store.explain(&error))),
            },
            Err(error) => return Err(fail(store.explain(&error))),
        };
        Ok(Self::remember(address.to_owned(), store, meta, path))
    }

    /// The object of a listing, or of an answer.
    pub(super) fn remember(
        address: PathBuf,
        store: Arc<Store>,
        meta: ObjectMeta,
        path: ObjectPath,
    ) -> Arc<Self> {
        let modified = meta.last_modified.timestamp_nanos_opt().unwrap_or(0);
        let object = Arc::new(Self {
            address: address.clone(),
            bytes: meta.size,
            etag: meta.e_tag,
            modified_nanos: u128::try_from(modified).unwrap_or(0),
            store,
            path,
            whole_only: AtomicBool::new(false),
        });
        Arc::clone(known().entry(address).or_insert(object))
    }

    /// Whether its server is known to give whole objects only.
    pub(super) fn is_whole_only(&self) -> bool {
        self.whole_only.load(Ordering::Relaxed)
    }

    pub(super) fn fail(&self, reason: impl Into<String>) -> DataError {
        DataError::storage(&self.address, reason)
    }

    fn changed(&self, found: String) -> DataError {
        self.fail(format!(
            "it changed while it was read: it had {}, now {found}; run again when it stays",
            told(self.bytes, self.etag.as_deref())
        ))
    }

    /// The bytes of `range`, in pieces. What a connection that was cut has brought is kept, and the rest is
    /// asked for.
    pub(super) async fn read(&self, range: Range<u64>) -> std::result::Result<Vec<Bytes>, Stop> {
        let mut pieces = Vec::new();
        self.each_piece(range, true, |piece| {
            pieces.push(piece);
            std::future::ready(true)
        })
        .await?;
        Ok(pieces)
    }

    /// Hands the bytes of `range`, which ends where the object ends unless it is asked for by range, to `each`
    /// until that is false.
    pub(super) async fn each_piece<F: Future<Output = bool>>(
        &self,
        mut range: Range<u64>,
        by_range: bool,
        mut each: impl FnMut(Bytes) -> F,
    ) -> std::result::Result<(), Stop> {
        let most = retries().map_err(|reason| Stop::Failed(self.fail(reason)))?;
        let (mut tries, mut pause) = (0, Duration::from_millis(100));
        while !range.is_empty() {
            let before = range.start;
            let wanted = by_range.then(|| range.clone());
            let mut skipped = if by_range { 0 } else { range.start };
            let result = self.get(wanted).await?;
            let mut body = result.into_stream();
            let reason = loop {
                match body.next().await {
                    None => break format!("it ended at byte {} of {}", range.start, self.bytes),
                    Some(Err(error)) => break causes(&error),
                    Some(Ok(mut piece)) => {
                        let skip = skipped.min(piece.len() as u64);
                        skipped -= skip;
                        let piece = piece.split_off(skip as usize);
                        let left = range.end - range.start;
                        if piece.len() as u64 > left {
                            let reason = "the server sends more bytes than it was asked for";
                            return Err(Stop::Failed(self.fail(reason)));
                        }
                        range.start += piece.len() as u64;
                        if !piece.is_empty() && !each(piece).await {
                            return Ok(());
                        }
                        // Reading on shows a body that is longer than it says.
                        if range.is_empty() && by_range {
                            return Ok(());
                        }
                    }
                }
            };
            if range.is_empty() {
                return Ok(());
            }
            // Whatever brought bytes counts as a beginning.
            if range.start > before && by_range {
                (tries, pause) = (0, Duration::from_millis(100));
            }
            if tries == most {
                let reason = format!(
                    "the connection broke off, {tries} times without any more bytes ({reason}); run \
                     again, what is finished stays"
                );
                return Err(Stop::Failed(self.fail(reason)));
            }
            tries += 1;
            tracing::warn!("{}: {reason}; the rest is asked for", self.address.display());
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_WAIT);
        }
        Ok(())
    }

    async fn get(&self, range: Option<Range<u64>>) -> std::result::Result<GetResult, Stop> {
        let by_range = range.is_some();
        // A weak ETag never matches; listings give some without their quotes.
        let strong = self.etag.as_ref().filter(|etag| !etag.starts_with("W/"));
        let if_match = strong.map(|etag| format!("\"{}\"", etag.trim_matches('"')));
        let options =
            GetOptions { range: range.map(GetRange::Bounded), if_match, ..GetOptions::default() };
        let result = match self.store.client.get_opts(&self.path, options).await {
            Ok(result) => result,
            Err(Error::NotSupported { .. }) if by_range => {
                self.whole_only.store(true, Ordering::Relaxed);
                return Err(Stop::NoRanges);
            }
            Err(Error::Precondition { .. }) => {
                return Err(Stop::Failed(self.changed("another ETag".into())));
            }
            Err(error) => {
                let told = causes(&error);
                return Err(Stop::Failed(if told.contains("416 ") {
                    self.changed("fewer bytes".into())
                } else if told.contains("412 ") {
                    self.changed("another ETag".into())
                } else {
                    self.fail(self.store.explain(&error))
                }));
            }
        };
        let (meta, etag) = (&result.meta, &result.meta.e_tag);
        let same = self.etag.is_none()
            || etag.is_none()
            || etags_match(self.etag.as_deref(), etag.as_deref());
        if meta.size != self.bytes || !same {
            return Err(Stop::Failed(self.changed(told(meta.size, etag.as_deref()))));
        }
        Ok(result)
    }
}

/// Whether two ETags are the same; no ETag is like none.
pub(super) fn etags_match(one: Option<&str>, other: Option<&str>) -> bool {
    let bare = |etag: &str| etag.trim_matches('"').to_owned();
    one.is_some() && one.map(bare) == other.map(bare)
}

fn told(bytes: u64, etag: Option<&str>) -> String {
    match etag {
        Some(etag) => format!("{bytes} bytes and the ETag {etag}"),
        None => format!("{bytes} bytes"),
    }
}

/// The objects at `addresses`, in order, asked for side by side; what went wrong with each otherwise.
///
/// # Errors
/// [`DataError::Storage`] when nothing can be asked at all.
pub(crate) fn describe_all(addresses: Vec<PathBuf>) -> Result<Vec<Result<Arc<Object>>>> {
    let Some(first) = addresses.first().cloned() else { return Ok(Vec::new()) };
    wait(&first, async move {
        let asked = addresses.into_iter().map(|address| async move { Object::ask(&address).await });
        stream::iter(asked).buffered(AT_ONCE).collect().await
    })
}
