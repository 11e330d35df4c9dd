//! The objects that a pattern matches.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::TryStreamExt;
use globset::GlobMatcher;
use object_store::path::Path as ObjectPath;

use super::location::Location;
use super::object::Object;
use super::store::{Store, wait};
use crate::error::{DataError, Result};

/// A pattern as its parts: where the objects are, whether one matches.
pub(crate) struct Pattern {
    /// The part of the key that is no pattern, `/` before it.
    pub base: PathBuf,
    /// Matches keys with `/` before them; none where one object is meant.
    pub matcher: Option<GlobMatcher>,
}

/// The objects that the address `pattern` matches, each with its name below the part that is no pattern.
/// `split` takes patterns apart.
///
/// # Errors
/// [`DataError::Config`] where `pattern` is no address that can be read, [`DataError::Storage`].
pub(crate) fn list(
    key: &str,
    pattern: &Path,
    split: impl FnOnce(&Path) -> Result<Pattern>,
) -> Result<Vec<(String, Arc<Object>)>> {
    let wrong = |expected: String| DataError::config(key, pattern.display(), expected);
    let location = Location::parse(pattern).map_err(wrong)?;
    if !location.scheme.is_bucket() {
        if location.key.contains(['*', '{', '[']) {
            return Err(wrong(
                "the address of one file, since a web server lists none; name each, or give a \
                 `list`"
                    .into(),
            ));
        }
        let object = Object::open(pattern).map_err(|error| error.at_key(key))?;
        return Ok(vec![(last_name(&location.key), object)]);
    }
    let Pattern { base, matcher } = split(&Path::new("/").join(&location.key))?;
    let prefix = base.to_string_lossy().trim_start_matches('/').to_owned();
    let Some(matcher) = matcher else {
        let address = location.of_key(&prefix);
        let object = Object::open(&address).map_err(|error| error.at_key(key))?;
        return Ok(vec![(last_name(&prefix), object)]);
    };
    let all = objects_below(&location, &prefix).map_err(|error| error.at_key(key))?;
    let matching = all.into_iter().filter(|(name, _)| matcher.is_match(Path::new("/").join(name)));
    let below = |name: String| match name.strip_prefix(&prefix) {
        Some(rest) => rest.trim_start_matches('/').to_owned(),
        None => name,
    };
    Ok(matching.map(|(name, object)| (below(name), object)).collect())
}

fn last_name(key: &str) -> String {
    key.rsplit('/').next().unwrap_or(key).to_owned()
}

/// The objects below `prefix`, sorted by key.
pub(super) fn objects_below(
    location: &Location,
    prefix: &str,
) -> Result<Vec<(String, Arc<Object>)>> {
    let address = location.of_key(prefix);
    let fail = |reason: String| DataError::storage(&address, reason);
    let store = Store::of(location).map_err(fail)?;
    let folder = ObjectPath::parse(prefix).map_err(|error| fail(error.to_string()))?;
    let lister = Arc::clone(&store);
    let listed = wait(&address, async move {
        let folder = Some(&folder).filter(|folder| !folder.as_ref().is_empty());
        let all = lister.client.list(folder);
        all.try_collect::<Vec<_>>().await
    })?;
    let listed = listed.map_err(|error| fail(store.explain(&error)))?;
    let mut objects: Vec<_> = listed
        .into_iter()
        .map(|meta| {
            let (path, name) = (meta.location.clone(), meta.location.to_string());
            (name.clone(), Object::remember(location.of_key(&name), Arc::clone(&store), meta, path))
        })
        .collect();
    objects.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(objects)
}
