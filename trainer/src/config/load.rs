//! Reading one configuration file.

use std::path::Path;

use altiplano_data::source::pattern_below;
use serde::de::DeserializeOwned;

use super::document::{Document, split};
use super::explain::explain;
use super::locate::Part;
use crate::error::Result;

/// A structure that a YAML file describes.
///
/// Derive `Deserialize` with `deny_unknown_fields` on it and on everything in it: that is what
/// makes an unknown key an error.
pub trait ConfigFile: DeserializeOwned {
    /// Keys whose value is a mapping or the path of a YAML file that holds the mapping.
    const INCLUDES: &'static [&'static str] = &[];

    /// Keys whose value is a path; `*` stands for any key or index. A relative path is relative to
    /// the file it is written in, and to the current directory when it is given by an override.
    const PATHS: &'static [&'static str] = &[];

    /// Those of `PATHS` that may be an address in object storage or of a web server.
    const ADDRESSES: &'static [&'static str] = &[];

    /// Values of such keys that are names and no paths.
    const NAMES: &'static [&'static str] = &[];

    /// Keys whose value is a path pattern, otherwise as `PATHS`. The folder it is below is taken by its
    /// name, whatever characters of patterns that has.
    const PATTERNS: &'static [&'static str] = &[];

    /// Pairs of keys of which a file holds one; an override of one replaces the other.
    const EXCLUSIVE: &'static [(&'static str, &'static str)] = &[];

    /// What no single key can tell: values out of range and keys that contradict each other.
    ///
    /// # Errors
    /// The first problem, with the key it is about.
    fn check(&self) -> std::result::Result<(), Problem> {
        Ok(())
    }
}

/// Something wrong at one key of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub(super) key: Vec<String>,
    pub(super) part: Part,
    pub(super) message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Problem {
    /// A problem with the value of `key` (`batch.seq_len`): what was found and what is expected.
    pub fn new(key: &str, message: impl AsRef<str>) -> Self {
        Self::of(key, format!("{key}: {}", message.as_ref()))
    }

    /// A problem with the value of `key`, whose message names it.
    pub(super) fn of(key: &str, message: String) -> Self {
        Self { key: split(key), part: Part::Key, message }
    }
}

/// Reads the configuration `file`, puts the values of `overrides` (`key=value` with dotted keys and
/// YAML values) in their places and checks the whole.
///
/// # Errors
/// [`TrainerError::Config`](crate::error::TrainerError::Config) says where (file, line and column,
/// or which override) and what: an unknown key with the nearest known one, a duplicate or missing
/// key, a value of another type, a contradiction.
pub fn load<T: ConfigFile>(file: &Path, overrides: &[String]) -> Result<T> {
    let mut document = Document::read(file)?;
    for written in overrides {
        document.apply(written, T::INCLUDES)?;
    }
    document.drop_excluded(T::EXCLUSIVE);
    for key in T::INCLUDES {
        document.include(&split(key))?;
    }
    document.refuse_addresses(T::PATHS, T::ADDRESSES)?;
    document.resolve_paths(T::PATHS, T::NAMES, |folder, path| folder.join(path))?;
    document.resolve_paths(T::PATTERNS, &[], |folder, pattern| {
        pattern_below(folder, pattern.as_ref())
    })?;
    let config: T = serde_path_to_error::deserialize(document.value.clone())
        .map_err(|error| document.fail(explain(&error)))?;
    config.check().map_err(|problem| document.fail(problem))?;
    Ok(config)
}
