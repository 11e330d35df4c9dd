//! Hashes of what a result depends on: the keys by which finished work is known again.

use std::fs::Metadata;
use std::time::UNIX_EPOCH;

use serde::Serialize;

/// What a result depends on, part by part.
///
/// A part whose length may vary goes in with its length before it, so that two parts cannot run
/// into each other. Options go in as JSON and times by [`modified_nanos`], never as Debug output,
/// whose form may change with a dependency.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    bytes: Vec<u8>,
}

impl Fingerprint {
    /// Begins with what the result is and the version of its form: a new version makes every
    /// result of an earlier one unknown.
    pub fn of(subject: &str) -> Self {
        let mut fingerprint = Self::default();
        fingerprint.part(subject);
        fingerprint
    }

    /// Adds a part of any length.
    pub fn part(&mut self, part: impl AsRef<[u8]>) -> &mut Self {
        let part = part.as_ref();
        self.bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(part);
        self
    }

    /// Adds the bytes of a number, which always has as many.
    pub fn number<const BYTES: usize>(&mut self, little_endian: [u8; BYTES]) -> &mut Self {
        self.bytes.extend_from_slice(&little_endian);
        self
    }

    /// Adds options. Structs of strings and numbers always have a JSON form.
    pub fn json(&mut self, options: &impl Serialize) -> &mut Self {
        self.part(serde_json::to_vec(options).unwrap_or_default())
    }

    /// Adds another fingerprint as one part.
    pub fn nested(&mut self, inner: &Self) -> &mut Self {
        self.part(&inner.bytes)
    }

    /// The blake3 hash of all parts, in hexadecimal.
    pub fn hex(&self) -> String {
        blake3::hash(&self.bytes).to_hex().to_string()
    }
}

/// When a file was last changed, in nanoseconds since 1970; 0 where the file system does not say.
pub(crate) fn modified_nanos(metadata: &Metadata) -> u128 {
    let modified = metadata.modified().ok();
    let age = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    age.map_or(0, |age| age.as_nanos())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The bytes that are hashed may never change: finished work would be done again.
    #[test]
    fn the_hashed_bytes_are_these() {
        let mut inner = Fingerprint::default();
        inner.part("ab").number(7u32.to_le_bytes());
        assert_eq!(inner.bytes, b"\x02\0\0\0\0\0\0\0ab\x07\0\0\0");
        let mut outer = Fingerprint::of("it 1");
        outer.nested(&inner).json(&[1, 2]);
        let bytes =
            b"\x04\0\0\0\0\0\0\0it 1\x0e\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0ab\x07\0\0\0\x05\0\0\0\0\0\0\0[1,2]";
        assert_eq!(outer.bytes, bytes);
        assert_eq!(outer.hex(), blake3::hash(bytes).to_hex().as_str());
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let of = |parts: &[&str]| {
            let mut fingerprint = Fingerprint::default();
            for part in parts {
                fingerprint.part(part);
            }
            fingerprint.hex()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ab", ""]));
    }

    #[test]
    fn times_are_whole_nanoseconds() {
        let file = tempfile::tempfile().unwrap();
        file.set_modified(UNIX_EPOCH + Duration::new(3, 5)).unwrap();
        assert_eq!(modified_nanos(&file.metadata().unwrap()), 3_000_000_005);
        file.set_modified(UNIX_EPOCH - Duration::from_secs(1)).unwrap();
        assert_eq!(modified_nanos(&file.metadata().unwrap()), 0);
    }
}
