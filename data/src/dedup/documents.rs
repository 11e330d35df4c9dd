//! Removes documents that are the same by a key: a digest, the address, the text.
//!
//! Of documents with one key the one with the smallest hash of its id stays, whatever the order
//! they come in.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::duplicates::{Duplicates, Occurrence};
use super::find::{Keeper, find_duplicates};
use super::signatures::SignatureWriter;
use super::{
    Filter, GlobalDecision, GlobalStep, GlobalStepOptions, Resources, Signatures, TaskFiles,
};
use crate::checksum::FileDigest;
use crate::document::Document;
use crate::error::Result;
use crate::sharegpt;
use crate::step::{StepCounts, Verdict};

/// By what documents are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentKey {
    /// `digest` of the metadata: the digest of the block in a web archive.
    Digest,
    /// The address as C4 normalises it: see [`normalize_url`].
    Url,
    /// The text.
    Text,
    /// `content_md5` of the metadata: the MD5 of a source file before anything was done to it.
    ContentMd5,
    /// The id that the document came with, which another of its source may have too.
    Id,
    /// The first two messages of a conversation, as ShareGPT has it.
    Opening,
}

/// Removes documents that are the same by a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DedupDocumentsOptions {
    /// `digest`, `url`, `text`, `content_md5`, `id` or `opening` (string): by what documents are compared. Those
    /// that do not have it stay.
    pub key: DocumentKey,
}

impl GlobalStepOptions for DedupDocumentsOptions {
    fn version(&self) -> u32 {
        2
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self) -> Box<dyn GlobalStep> {
        Box::new(self.clone())
    }
}

impl GlobalDecision for DedupDocumentsOptions {
    fn signatures(&self, file: &Path) -> Result<Box<dyn Signatures>> {
        Ok(Box::new(DocumentSignatures {
            signatures: SignatureWriter::create(file)?,
            key: self.key,
        }))
    }

    fn decide(&self, tasks: &[TaskFiles], resources: &Resources<'_>) -> Result<Vec<FileDigest>> {
        find_duplicates::<2, 4>(tasks, Keeper::SmallestOwner, resources)
    }
}

impl GlobalStep for DedupDocumentsOptions {
    fn filter(&self, decisions: &Path) -> Result<Box<dyn Filter>> {
        let decisions = Duplicates::open(decisions)?;
        Ok(Box::new(DocumentFilter { decisions, key: self.key }))
    }
}

/// The address by which C4 tells pages apart: `http://`, `https://` and a `www.` after them are
/// taken out wherever they stand, then everything from `?utm_`, `?ref` or `?feed` on, then
/// slashes at the end. (tensorflow/datasets, `text/c4_utils.py`.)
pub fn normalize_url(url: &str) -> String {
    let mut normalized = String::with_capacity(url.len());
    let mut rest = url;
    while let Some(at) = rest.find("http") {
        let (before, after) = rest.split_at(at);
        normalized.push_str(before);
        let address = after.strip_prefix("https://").or_else(|| after.strip_prefix("http://"));
        rest = match address {
            Some(address) => address.strip_prefix("www.").unwrap_or(address),
            None => {
                normalized.push_str("http");
                &after["http".len()..]
            }
        };
    }
    normalized.push_str(rest);
    let tracking = normalized.match_indices('?').find(|(at, _)| {
        let query = &normalized[at + 1..];
        ["utm_", "ref", "feed"].iter().any(|name| query.starts_with(name))
    });
    if let Some((at, _)) = tracking {
        normalized.truncate(at);
    }
    normalized.truncate(normalized.trim_end_matches('/').len());
    normalized
}

impl DocumentKey {
    fn name(self) -> &'static str {
        match self {
            Self::Digest => "digest",
            Self::Url => "url",
            Self::Text => "text",
            Self::ContentMd5 => "content_md5",
            Self::Id => "id",
            Self::Opening => "opening",
        }
    }

    /// What is compared; nothing if the document does not have it.
    fn value(self, document: &Document) -> Option<Cow<'_, str>> {
        match self {
            Self::Url => document.url.as_deref().map(|url| normalize_url(url).into()),
            Self::Text => Some(document.text.as_str().into()),
            Self::Id => Some(document.given_id()),
            Self::Opening => {
                let mut turns = sharegpt::turns(&document.text).ok()?;
                turns.truncate(2);
                Some(sharegpt::text(&turns).into())
            }
            Self::Digest | Self::ContentMd5 => match document.metadata().remove(self.name()) {
                Some(serde_json::Value::String(value)) if !value.is_empty() => Some(value.into()),
                _ => None,
            },
        }
    }
}

struct DocumentSignatures {
    signatures: SignatureWriter<2>,
    key: DocumentKey,
}

impl Signatures for DocumentSignatures {
    fn add(&mut self, document: &Document, input: u32) -> Result<()> {
        // A document is one unit, or none if it cannot be compared.
        let key = self.key.value(document).map(|value| {
            let hash = xxh3_128(value.as_bytes());
            [(hash >> 64) as u64, hash as u64]
        });
        self.signatures.add_document(input, owner(document), key.as_slice())
    }

    fn finish(self: Box<Self>) -> Result<FileDigest> {
        self.signatures.finish()
    }
}

/// Who a unit belongs to: the same number for the same id.
pub(super) fn owner(document: &Document) -> u64 {
    xxh3_64(document.id.as_bytes())
}

struct DocumentFilter {
    decisions: Duplicates,
    key: DocumentKey,
}

impl Filter for DocumentFilter {
    fn apply(&mut self, document: &mut Document, _counts: &mut StepCounts) -> Result<Verdict> {
        let value = self.key.value(document);
        let decisions =
            self.decisions.next_document(owner(document), usize::from(value.is_some()))?;
        if decisions.first().is_none_or(|&decision| decision == Occurrence::Kept) {
            return Ok(Verdict::Keep);
        }
        let detail = match (self.key, value) {
            (DocumentKey::Text | DocumentKey::Opening, _) | (_, None) => {
                format!("same {}", self.key.name())
            }
            (_, Some(value)) => format!("same {}: {value}", self.key.name()),
        };
        Ok(Verdict::unwanted("duplicate", detail))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.decisions.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalised_as_c4_does() {
        for (url, normalized) in [
            ("http://www.example.org/a/", "example.org/a"),
            ("https://example.org/a?utm_source=x", "example.org/a"),
            ("https://example.org/?ref=b//", "example.org"),
            ("http://example.org/b/?feed=rss2", "example.org/b"),
            ("http://example.org/b?page=2&utm_source=x", "example.org/b?page=2&utm_source=x"),
            ("http://www.a.org/?q=1?reference", "a.org/?q=1"),
            ("https://web.org/save/http://www.b.org//", "web.org/save/b.org"),
            ("http://www.http.org", "http.org"),
            ("http://wwwa.org", "wwwa.org"),
            ("httphttp://x", "httpx"),
            ("HTTP://x", "HTTP://x"),
            ("", ""),
        ] {
            assert_eq!(normalize_url(url), normalized, "{url}");
        }
    }
}
