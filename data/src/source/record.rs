//! What a reader makes of a piece of a file: a document, or a rejection with its reason.

use crate::document::{Document, Reason};
use crate::text::charset::{FIXED_MOJIBAKE, fix_mojibake};

/// What a reader found.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A document.
    Document(Document),
    /// A record that cannot become a document.
    Rejected(Rejection),
}

/// A record that was not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// Where the record begins: a byte offset into the decompressed file, a row number of a
    /// Parquet file, or for a web archive the offset of its member in the compressed file.
    pub offset: u64,
    /// Length of the record in bytes.
    pub bytes: u64,
    /// Detail for the log.
    pub detail: String,
}

/// Which fields of a JSON object or columns of a Parquet row make a document.
pub(super) struct Fields<'a> {
    pub text: &'a str,
    /// Without it a record gets an id from the file name and its number.
    pub id: &'a str,
    pub url: &'a str,
    pub created: &'a str,
    /// Longer records are rejected.
    pub max_record_bytes: usize,
}

impl Fields<'_> {
    /// Whether `name` is one of them.
    pub fn contain(&self, name: &str) -> bool {
        [self.text, self.id, self.url, self.created].contains(&name)
    }
}

/// `bytes` as text, or the rejection that says where they stop being UTF-8.
pub(super) fn utf8(bytes: Vec<u8>, offset: u64) -> Result<String, Rejection> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to() as u64;
        Rejection {
            reason: Reason::BAD_UTF8,
            offset: offset + at,
            bytes: error.as_bytes().len() as u64,
            detail: format!("not UTF-8 at byte {} of the record", at),
        }
    })
}

/// The rejection of a record of `bytes` bytes, more than the `bound` that `max_record_bytes` sets.
pub(super) fn too_long(offset: u64, bytes: u64, bound: usize) -> Record {
    Record::Rejected(Rejection {
        reason: Reason::TOO_LONG,
        offset,
        bytes,
        detail: format!("{bytes} bytes, max_record_bytes is {bound}"),
    })
}

/// The record with the text of its document as it was before it was encoded twice, if `fix` says so.
pub(super) fn with_fixed_text(record: Record, fix: bool) -> Record {
    match record {
        Record::Document(mut document) if fix => {
            if let Some(fixed) = fix_mojibake(&document.text) {
                document.text = fixed;
                document.set_metadata(FIXED_MOJIBAKE, true);
            }
            Record::Document(document)
        }
        record => record,
    }
}

/// The document, or a rejection if there is nothing in it.
pub(super) fn document_or_empty(document: Document, offset: u64) -> Record {
    if document.text.trim().is_empty() {
        return Record::Rejected(Rejection {
            reason: Reason::EMPTY,
            offset,
            bytes: document.text.len() as u64,
            detail: document.id,
        });
    }
    Record::Document(document)
}
