//! A folder of this machine that stands for a part of a bucket.
//!
//! What is made for a bucket is made in a local folder. A file that is finished there is sent to the bucket
//! at once, under its name below the folder, and what is deleted there is deleted in the bucket first. So
//! the order of things is the same in both: what says that files are whole comes after them and goes before
//! them, and a crash leaves in the bucket what it could leave in a folder.
//!
//! The file `.stored.jsonl` in the folder lists what of it lies in the bucket: names, ETags, and the sizes and
//! times of the local files. With it a new start tells what is to be sent still and what others have written
//! meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutPayload, PutResult, WriteMultipart};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::file::InputFile;
use super::list::objects_below;
use super::location::{Location, is_remote};
use super::object::{Object, etags_match};
use super::store::{Store, wait};
use crate::error::{DataError, Result};

/// What is known of the bucket, beside the files.
const STORED: &str = ".stored.jsonl";
/// Held while a process compares the folder with the bucket.
const LOCK: &str = ".stored.lock";
/// Larger files are sent in parts of this size.
const PART: usize = 16 << 20;
/// Parts that are sent at the same time.
const PARTS_AT_ONCE: usize = 4;

/// Which files of the bucket a command needs here, by their names below the folder.
pub type MirroredPart<'a> = &'a (dyn Fn(&str) -> bool + Sync);

/// A folder and the part of a bucket that it stands for. Until it is dropped, what
/// [`crate::atomic_file`] finishes or deletes in the folder is finished or deleted in the bucket.
#[derive(Debug)]
pub struct Mirror {
    inner: Arc<Inner>,
}

/// The first line of `.stored.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    /// The list is about this part of a bucket.
    address: PathBuf,
}

/// Another line of `.stored.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    name: String,
    /// None: it was deleted.
    etag: Option<String>,
    bytes: u64,
    modified_nanos: u128,
}

impl Stored {
    /// Whether the local file is still the one that was stored or fetched.
    fn is(&self, file: &Found) -> bool {
        self.bytes == file.bytes && self.modified_nanos == file.modified_nanos
    }
}

/// A file of the folder.
#[derive(Clone, Copy)]
struct Found {
    bytes: u64,
    modified_nanos: u128,
}

impl Found {
    fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(DataError::io(path))?;
        let modified = metadata.modified().ok();
        let age = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        Ok(Self { bytes: metadata.len(), modified_nanos: age.map_or(0, |age| age.as_nanos()) })
    }
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    location: Location,
    /// The part of the key before the names of files, without a slash at its end.
    prefix: String,
    store: Arc<Store>,
    stored: Mutex<BTreeMap<String, Stored>>,
    /// The files of the bucket, and their lengths.
    listed: Mutex<BTreeMap<String, u64>>,
}

/// The mirrors of this process.
static MIRRORS: RwLock<Vec<Arc<Inner>>> = RwLock::new(Vec::new());

fn of_path(path: &Path) -> Option<(Arc<Inner>, String)> {
    let mirrors = MIRRORS.read().unwrap_or_else(PoisonError::into_inner);
    mirrors.iter().find_map(|mirror| {
        let below = path.strip_prefix(&mirror.folder).ok()?;
        let hidden = below.components().any(|part| is_hidden(part.as_os_str()));
        (!hidden).then(|| (Arc::clone(mirror), below.to_string_lossy().into_owned()))
    })
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

/// Sends the file `path`, which is finished, to the bucket that its folder stands for, if to any.
///
/// # Errors
/// [`DataError::Storage`].
pub(crate) fn committed(path: &Path) -> Result<()> {
    of_path(path).map_or(Ok(()), |(mirror, name)| mirror.send(&name))
}

/// Deletes what the file `path`, which is about to be deleted, is in the bucket.
///
/// # Errors
/// [`DataError::Storage`].
pub(crate) fn removed(path: &Path) -> Result<()> {
    of_path(path).map_or(Ok(()), |(mirror, name)| mirror.delete(&name))
}

/// Length of what the file `path`, which is not on this machine, is in the bucket that its folder stands for.
pub(crate) fn stored_length(path: &Path) -> Option<u64> {
    let (mirror, name) = of_path(path)?;
    mirror.listed.lock().unwrap_or_else(PoisonError::into_inner).get(&name).copied()
}

/// The files in `folder`, not those in folders of it, that are in the bucket that it is a part of.
pub(crate) fn stored_in(folder: &Path) -> Vec<PathBuf> {
    let Some((mirror, name)) = of_path(folder) else { return Vec::new() };
    let listed = mirror.listed.lock().unwrap_or_else(PoisonError::into_inner);
    let in_it = |file: &&String| {
        let rest = file.strip_prefix(&name).and_then(|rest| rest.strip_prefix('/'));
        rest.is_some_and(|rest| !rest.contains('/'))
    };
    listed.keys().filter(in_it).map(|file| mirror.folder.join(file)).collect()
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let mut mirrors = MIRRORS.write().unwrap_or_else(PoisonError::into_inner);
        mirrors.retain(|mirror| !Arc::ptr_eq(mirror, &self.inner));
    }
}

impl Mirror {
    /// Makes `folder` stand for what is below `address`, an `s3://`, `gs://` or `az://` address: files of
    /// the folder that the bucket lacks are sent, and those that `needed` names are fetched.
    ///
    /// # Errors
    /// [`DataError::Config`] naming `key` when `address` is none of a bucket, [`DataError::Storage`] and
    /// [`DataError::Io`].
    pub fn attach(
        key: &str,
        folder: &Path,
        address: &Path,
        needed: MirroredPart<'_>,
    ) -> Result<Self> {
        let inner = Inner::open(key, folder, address)?;
        inner.compare(needed, true)?;
        let inner = Arc::new(inner);
        MIRRORS.write().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&inner));
        Ok(Self { inner })
    }

    /// Brings `folder` up to what is below `address`, of which nothing is changed.
    ///
    /// # Errors
    /// As [`Mirror::attach`].
    pub fn fetch(key: &str, folder: &Path, address: &Path) -> Result<()> {
        let inner = Inner::open(key, folder, address)?;
        // Processes of one machine share the folder; one of them fetches.
        let path = folder.join(LOCK);
        let lock = File::create(&path).map_err(DataError::io(&path))?;
        lock.lock().map_err(DataError::io(&path))?;
        inner.compare(&|_| true, false)
    }
}

/// Where the files below `address` lie on this machine, brought up to date: a folder of the cache
/// (`XDG_CACHE_HOME`, by default `~/.cache`). A path of this machine is given back as it is.
///
/// # Errors
/// As [`Mirror::attach`].
pub fn cached_folder(key: &str, address: &Path) -> Result<PathBuf> {
    if !is_remote(address) {
        return Ok(address.to_owned());
    }
    let of_home = || std::env::home_dir().map(|home| home.join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let cache = cache.map(PathBuf::from).or_else(of_home).unwrap_or_else(std::env::temp_dir);
    let name = blake3::hash(address.as_os_str().as_encoded_bytes()).to_hex();
    let folder = cache.join("altiplano/storage").join(&name.as_str()[..32]);
    Mirror::fetch(key, &folder, address)?;
    Ok(folder)
}

impl Inner {
    fn open(key: &str, folder: &Path, address: &Path) -> Result<Self> {
        let wrong = |expected: String| DataError::config(key, address.display(), expected);
        let location = Location::parse(address).map_err(wrong)?;
        if !location.scheme.is_bucket() {
            return Err(wrong("s3://BUCKET/PREFIX, gs:// or az://: web servers only give".into()));
        }
        let prefix = location.key.trim_matches('/').to_owned();
        ObjectPath::parse(&prefix).map_err(|error| wrong(format!("a prefix of keys: {error}")))?;
        let fail = |reason: String| DataError::storage(address, reason).at_key(key);
        let store = Store::of(&location).map_err(fail)?;
        fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        let stored = Mutex::new(read_stored(&folder.join(STORED), address)?);
        let (folder, listed) = (folder.to_owned(), Mutex::default());
        Ok(Self { folder, location, prefix, store, stored, listed })
    }

    fn key(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }

    fn address(&self, name: &str) -> PathBuf {
        self.location.of_key(&self.key(name))
    }

    fn object(&self, name: &str) -> Result<ObjectPath> {
        ObjectPath::parse(self.key(name))
            .map_err(|error| DataError::storage(self.address(name), error.to_string()))
    }

    /// Brings the folder and the bucket to the same state. Where both have changed the bucket counts: what
    /// says that files are whole holds them against their hashes.
    fn compare(&self, needed: MirroredPart<'_>, send: bool) -> Result<()> {
        let listed = objects_below(&self.location, &self.prefix)?;
        let mut objects: BTreeMap<String, Arc<Object>> = BTreeMap::new();
        for (key, object) in listed {
            let name = key.strip_prefix(&self.prefix).unwrap_or(&key).trim_start_matches('/');
            if is_safe(name) {
                objects.insert(name.to_owned(), object);
            }
        }
        let lengths = objects.iter().map(|(name, object)| (name.clone(), object.bytes)).collect();
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = lengths;
        if objects.is_empty() {
            // A new place, or one that was emptied: everything is sent.
            self.stored.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let mut unsent = Vec::new();
        let mut here = BTreeSet::new();
        for (name, file) in files_below(&self.folder)? {
            let stored = self.stored(&name);
            let as_stored = stored.as_ref().is_some_and(|stored| stored.is(&file));
            let object = objects.get(&name);
            let is_the_stored = |object: &Arc<Object>, stored: &Stored| {
                etags_match(object.etag.as_deref(), stored.etag.as_deref())
            };
            match (object, &stored) {
                (Some(object), Some(stored)) if is_the_stored(object, stored) => {
                    if !as_stored {
                        unsent.push(name.clone());
                    }
                }
                // It was sent, and the process ended before it was noted; or it was fetched so.
                (Some(object), None) if object.bytes == file.bytes => {
                    self.note(&name, object.etag.clone(), file)?;
                }
                (None, _) if !as_stored => unsent.push(name.clone()),
                // Others wrote it or deleted it.
                _ => {
                    let path = self.folder.join(&name);
                    fs::remove_file(&path).map_err(DataError::io(&path))?;
                    continue;
                }
            }
            here.insert(name);
        }
        if send {
            unsent.sort_by_key(|name| (rank(name), name.clone()));
            for name in &unsent {
                self.send(name)?;
            }
        }
        let missing: Vec<_> =
            objects.iter().filter(|(name, _)| !here.contains(*name) && needed(name)).collect();
        // Like files, what says that they are whole comes last.
        for part in [0, 1, 2] {
            let of_part: Vec<_> = missing.iter().filter(|(name, _)| rank(name) == part).collect();
            of_part.par_iter().try_for_each(|(name, object)| self.fetch(name, object))?;
        }
        self.compact()
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn fetch(&self, name: &str, object: &Arc<Object>) -> Result<()> {
        let path = self.folder.join(name);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(DataError::io(folder))?;
        let mut file = tempfile::Builder::new()
            .prefix(".tmp.")
            .tempfile_in(folder)
            .map_err(DataError::io(&path))?;
        let mut object_file = InputFile::of(Arc::clone(object));
        let copied = std::io::copy(&mut object_file, &mut file);
        copied.map_err(DataError::io(&object.address))?;
        file.as_file().sync_all().map_err(DataError::io(&path))?;
        file.persist(&path).map_err(|error| DataError::io(&path)(error.error))?;
        self.note(name, object.etag.clone(), Found::of(&path)?)
    }

    fn send(&self, name: &str) -> Result<()> {
        let path = self.folder.join(name);
        let found = Found::of(&path)?;
        let mut file = File::open(&path).map_err(DataError::io(&path))?;
        let (store, object) = (Arc::clone(&self.store), self.object(name)?);
        let address = self.address(name);
        let result = wait(&address, async move {
            let mut part = read_part(&mut file)?;
            if part.len() < PART {
                let sent = store.client.put(&object, PutPayload::from(part)).await;
                return sent.map_err(|error| Unsent::Refused(store.explain(&error)));
            }
            let refused = |error| Unsent::Refused(store.explain(&error));
            let upload = store.client.put_multipart(&object).await.map_err(refused)?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART);
            while !part.is_empty() {
                upload.wait_for_capacity(PARTS_AT_ONCE).await.map_err(refused)?;
                upload.put(part.into());
                part = read_part(&mut file)?;
            }
            upload.finish().await.map_err(refused)
        })?;
        let PutResult { e_tag, .. } = result.map_err(|unsent| match unsent {
            Unsent::Refused(reason) => {
                DataError::storage(&address, format!("cannot be written: {reason}"))
            }
            Unsent::Unread(error) => DataError::io(&path)(error),
        })?;
        self.note(name, e_tag, found)
    }

    fn delete(&self, name: &str) -> Result<()> {
        if !self.listed.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name) {
            return Ok(());
        }
        let (store, object) = (Arc::clone(&self.store), self.object(name)?);
        let address = self.address(name);
        let deleted = wait(&address, async move {
            match store.client.delete(&object).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(store.explain(&error)),
            }
        })?;
        deleted.map_err(|reason| {
            DataError::storage(&address, format!("cannot be deleted: {reason}"))
        })?;
        self.note(name, None, Found { bytes: 0, modified_nanos: 0 })
    }

    /// Notes that the local file is what the bucket has.
    fn note(&self, name: &str, etag: Option<String>, file: Found) -> Result<()> {
        let Found { bytes, modified_nanos } = file;
        let stored = Stored { name: name.to_owned(), etag, bytes, modified_nanos };
        let path = self.folder.join(STORED);
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        match stored.etag {
            Some(_) => listed.insert(name.to_owned(), bytes),
            None => listed.remove(name),
        };
        drop(listed);
        let mut all = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = serde_json::to_vec(&stored).unwrap_or_default();
        line.push(b'\n');
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(DataError::io(&path))?;
        log.write_all(&line).map_err(DataError::io(&path))?;
        match stored.etag {
            Some(_) => all.insert(name.to_owned(), stored),
            None => all.remove(name),
        };
        Ok(())
    }

    /// Writes the list anew, one line a file.
    fn compact(&self) -> Result<()> {
        let all = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.folder.join(STORED);
        let mut file = tempfile::Builder::new()
            .prefix(".tmp.")
            .tempfile_in(&self.folder)
            .map_err(DataError::io(&path))?;
        let head = Head { address: self.location.of_key(&self.location.key) };
        let head = serde_json::to_string(&head).unwrap_or_default();
        writeln!(file, "{head}").map_err(DataError::io(&path))?;
        for stored in all.values() {
            let line = serde_json::to_string(stored).unwrap_or_default();
            writeln!(file, "{line}").map_err(DataError::io(&path))?;
        }
        file.persist(&path).map_err(|error| DataError::io(&path)(error.error))?;
        Ok(())
    }
}

enum Unsent {
    Refused(String),
    Unread(std::io::Error),
}

impl From<std::io::Error> for Unsent {
    fn from(error: std::io::Error) -> Self {
        Self::Unread(error)
    }
}

fn read_part(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut part = Vec::new();
    file.take(PART as u64).read_to_end(&mut part)?;
    Ok(part)
}

/// Files come in this order: manifests last, before them what says that single files are whole.
fn rank(name: &str) -> u8 {
    match Path::new(name).file_name().and_then(|name| name.to_str()) {
        Some("manifest.json") => 2,
        Some(name) if name.ends_with(".json") => 1,
        _ => 0,
    }
}

/// Whether a name of the bucket can be one below the folder.
fn is_safe(name: &str) -> bool {
    !name.is_empty()
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        && !name.contains(['\\', '\0'])
}

/// What `path` says about `address`; nothing when it is about another one.
fn read_stored(path: &Path, address: &Path) -> Result<BTreeMap<String, Stored>> {
    let mut all = BTreeMap::new();
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(all),
        Err(error) => return Err(DataError::io(path)(error)),
    };
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let head = lines.next().and_then(|line| serde_json::from_slice::<Head>(line).ok());
    if head.is_none_or(|head| head.address != address) {
        return Ok(all);
    }
    // The last line may be torn: what it is about is compared again.
    for stored in lines.filter_map(|line| serde_json::from_slice::<Stored>(line).ok()) {
        match stored.etag {
            Some(_) => all.insert(stored.name.clone(), stored),
            None => all.remove(&stored.name),
        };
    }
    Ok(all)
}

/// The files below `folder` that are not hidden, by name.
fn files_below(folder: &Path) -> Result<Vec<(String, Found)>> {
    let visible = |entry: &walkdir::DirEntry| entry.depth() == 0 || !is_hidden(entry.file_name());
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder).into_iter().filter_entry(visible) {
        let entry = entry.map_err(|error| DataError::io(folder)(error.into()))?;
        if entry.file_type().is_file() {
            let name = entry.path().strip_prefix(folder).unwrap_or(entry.path());
            files.push((name.to_string_lossy().into_owned(), Found::of(entry.path())?));
        }
    }
    Ok(files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
