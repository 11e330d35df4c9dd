//! JSON files that carry their own checksum.
//!
//! The last key of the object is `checksum`: the blake3 hash of the file without that line and
//! without the comma before it. Every JSON reader can read such a file; [`read_json`] refuses one
//! of which a bit was changed.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic_file::write_atomically;
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};

/// How the object ends without its checksum.
const END: &str = "\n}\n";
/// What stands between the object's content and the checksum.
const KEY: &str = ",\n  \"checksum\": \"";
/// What stands behind the checksum.
const CLOSE: &str = "\"\n}\n";
/// Digits of a checksum.
const DIGITS: usize = 2 * blake3::OUT_LEN;

/// What [`write_json`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonDigest {
    /// The checksum in the file: the hash of the content.
    pub checksum: String,
    /// Length and hash of the whole file.
    pub file: FileDigest,
}

/// Writes `value`, a struct or map with at least one key, as indented JSON with its checksum,
/// atomically.
///
/// # Errors
/// [`DataError::Io`]; the old file is then still there.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<JsonDigest> {
    let mut content = serde_json::to_string_pretty(value)
        .map_err(|error| DataError::bad_file(path, format!("cannot be written: {error}")))?;
    content.push('\n');
    let checksum = blake3::hash(content.as_bytes()).to_hex().to_string();
    let Some(body) = content.strip_suffix(END) else {
        return Err(DataError::bad_file(path, "only a JSON object with keys has a checksum"));
    };
    let file = write_atomically(path, format!("{body}{KEY}{checksum}{CLOSE}").as_bytes())?;
    Ok(JsonDigest { checksum, file })
}

/// Reads what [`write_json`] wrote. `remedy` tells the user how the file is made anew.
///
/// # Errors
/// [`DataError::Io`], also when the file is missing; [`DataError::Altered`] when it is not as it
/// was written; [`DataError::BadFile`] when it holds something else.
pub fn read_json<T: DeserializeOwned>(path: &Path, remedy: &'static str) -> Result<T> {
    let bytes = std::fs::read(path).map_err(DataError::io(path))?;
    let content = checked_content(&bytes)
        .map_err(|difference| DataError::altered(path, difference, remedy))?;
    serde_json::from_slice(&content).map_err(|error| {
        DataError::bad_file(path, format!("holds something else: {error}; {remedy}"))
    })
}

/// The object without its checksum, if that is right.
fn checked_content(bytes: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let parts = bytes
        .len()
        .checked_sub(KEY.len() + DIGITS + CLOSE.len())
        .map(|body| bytes.split_at(body))
        .and_then(|(body, seal)| {
            let digits = seal.strip_prefix(KEY.as_bytes())?.strip_suffix(CLOSE.as_bytes())?;
            Some((body, digits))
        });
    let Some((body, expected)) = parts else {
        return Err(
            "its last line is no checksum: truncated, altered or of an earlier altiplano".into()
        );
    };
    let content = [body, END.as_bytes()].concat();
    let found = blake3::hash(&content).to_hex();
    if found.as_bytes() != expected {
        let expected = String::from_utf8_lossy(expected);
        return Err(format!("altered: the checksum of its content is {found}, it says {expected}"));
    }
    Ok(content)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Counts {
        name: String,
        counts: Vec<u64>,
        checksum: Option<u64>,
    }

    fn counts() -> Counts {
        Counts { name: "é \"quoted\"".into(), counts: vec![1, 2, u64::MAX], checksum: Some(3) }
    }

    #[test]
    fn a_file_comes_back_and_any_reader_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counts.json");
        let written = write_json(&path, &counts()).unwrap();
        assert_eq!(read_json::<Counts>(&path, "").unwrap(), counts());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written.file, FileDigest::of(text.as_bytes()));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["name"], &value["counts"][1]), (&"é \"quoted\"".into(), &2.into()));
        // The checksum is that of the file without the line and the comma before it.
        let without = text.replace(&format!(",\n  \"checksum\": \"{}\"", written.checksum), "");
        assert_eq!(blake3::hash(without.as_bytes()).to_hex().as_str(), written.checksum);
        assert!(write_json(&path, &serde_json::json!({})).is_err());
        assert!(write_json(&path, &[1]).is_err());
    }

    #[test]
    fn every_bit_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("counts.json");
        write_json(&path, &counts()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                std::fs::write(&path, bytes).unwrap();
                let error = read_json::<Counts>(&path, "make it again").unwrap_err().to_string();
                let named = error.contains("counts.json") && error.ends_with("; make it again");
                assert!(named, "bit {bit} of byte {at}: {error}");
            }
        }
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(read_json::<Counts>(&path, "").is_err(), "cut at {length}");
        }
        std::fs::write(&path, "{\n  \"name\": \"old\"\n}\n").unwrap();
        let error = read_json::<Counts>(&path, "").unwrap_err().to_string();
        assert!(error.contains("earlier altiplano"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(read_json::<Counts>(&path, ""), Err(DataError::Io { .. })));
    }
}
