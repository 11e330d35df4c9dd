//! Where the tokens and the document starts lie in an Arrow IPC file.
//!
//! The file's footer and message headers are flatbuffers, which the arrow crate verifies. What
//! they claim about the bytes outside of them is checked here against the file's length, so a
//! truncated or altered file ends in an error.
//!
//! ```text
//! "ARROW1\0\0"  schema  batch  batch … footer  footer length (i32)  "ARROW1"
//! batch: 0xFFFFFFFF, header length (i32), header, body; body: document offsets (i32), token ids
//! ```

use std::ops::Range;
use std::path::Path;

use arrow_ipc::{Block, Footer, Message, root_as_footer, root_as_message};
use arrow_ipc::{RecordBatch, Type};

use super::{FORMAT, ShardHeader, U16_VOCABULARY, VERSION};
use crate::error::{DataError, Result};

/// First bytes of the file, with padding.
const MAGIC: &[u8] = b"ARROW1";
/// Length of the trailer: footer length and magic.
const TRAILER: usize = 10;
/// Bytes before a batch's header: the continuation mark and the header's length.
const PREFIX: usize = 8;

/// One record batch of a shard.
#[derive(Clone, Debug)]
pub(super) struct BatchLayout {
    /// Tokens of the shard before this batch.
    pub first_token: u64,
    /// Tokens in the batch.
    pub tokens: usize,
    /// Documents in the batch.
    pub documents: usize,
    /// Bytes of the document offsets: `documents + 1` values of i32.
    pub offsets: Range<usize>,
    /// Bytes of the token ids.
    pub ids: Range<usize>,
}

/// A checked map of a shard.
pub(super) struct Layout {
    pub header: ShardHeader,
    pub width: usize,
    pub batches: Vec<BatchLayout>,
}

/// Something in the file is not as it should be.
pub(super) struct Fault {
    what: &'static str,
    found: String,
    expected: String,
}

type Checked<T> = std::result::Result<T, Fault>;

pub(super) fn fault<T>(
    what: &'static str,
    found: impl ToString,
    expected: impl ToString,
) -> Checked<T> {
    Err(Fault { what, found: found.to_string(), expected: expected.to_string() })
}

impl Fault {
    pub fn at(self, path: &Path) -> DataError {
        DataError::Shard {
            path: path.to_owned(),
            what: self.what,
            found: self.found,
            expected: self.expected,
        }
    }
}

/// Checks the whole file but for the values of the token ids.
pub(super) fn read(path: &Path, file: &[u8]) -> Result<Layout> {
    read_checked(file).map_err(|fault| fault.at(path))
}

fn read_checked(file: &[u8]) -> Checked<Layout> {
    if !file.starts_with(MAGIC) {
        return fault("first bytes", "something else", "an Arrow IPC file (ARROW1)");
    }
    let Some((rest, trailer)) = file.split_last_chunk::<TRAILER>() else {
        return fault("file length", file.len(), format!("at least {TRAILER} bytes"));
    };
    if &trailer[4..] != MAGIC {
        return fault("last bytes", "something else", "ARROW1: the file is cut short");
    }
    let claimed = i32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]);
    let start = usize::try_from(claimed).ok().and_then(|length| rest.len().checked_sub(length));
    let Some(start) = start else {
        return fault("footer length", claimed, format!("0 to {}", rest.len()));
    };
    let footer = match root_as_footer(&rest[start..]) {
        Ok(footer) => footer,
        Err(error) => return fault("footer", error, "a readable footer"),
    };
    let header = header_of(&footer)?;
    let width = width_of(&footer, &header)?;
    if footer.dictionaries().is_some_and(|blocks| !blocks.is_empty()) {
        return fault("dictionaries", "some", "none");
    }
    let mut batches = Vec::new();
    let (mut tokens, mut documents) = (0u64, 0u64);
    for block in footer.recordBatches().into_iter().flatten() {
        let batch = batch_of(&rest[..start], block, width, tokens)?;
        tokens += batch.tokens as u64;
        documents += batch.documents as u64;
        batches.push(batch);
    }
    if tokens != header.tokens {
        return fault("tokens", tokens, format!("{}, as its metadata says", header.tokens));
    }
    if documents != header.documents {
        let expected = format!("{}, as its metadata says", header.documents);
        return fault("documents", documents, expected);
    }
    Ok(Layout { header, width, batches })
}

fn header_of(footer: &Footer<'_>) -> Checked<ShardHeader> {
    let entries = footer.schema().and_then(|schema| schema.custom_metadata());
    let text = |name: &'static str| -> Checked<&str> {
        let found = entries
            .into_iter()
            .flatten()
            .find(|entry| entry.key().and_then(|key| key.strip_prefix("altiplano.")) == Some(name));
        match found.and_then(|entry| entry.value()) {
            Some(value) => Ok(value),
            None => fault("metadata", format!("no altiplano.{name}"), "a token shard"),
        }
    };
    let count = |name: &'static str| -> Checked<u64> {
        let value = text(name)?;
        match value.parse() {
            Ok(count) => Ok(count),
            Err(_) => fault("metadata", format!("altiplano.{name} = {value:?}"), "a number"),
        }
    };
    if text("format")? != FORMAT {
        return fault("altiplano.format", text("format")?, FORMAT);
    }
    if text("version")? != VERSION {
        return fault("altiplano.version", text("version")?, VERSION);
    }
    Ok(ShardHeader {
        tokenizer: text("tokenizer")?.to_owned(),
        vocab_size: usize::try_from(count("vocab_size")?).unwrap_or(usize::MAX),
        tokens: count("tokens")?,
        documents: count("documents")?,
        text_bytes: count("text_bytes")?,
        blake3: text("blake3")?.to_owned(),
    })
}

/// Bytes of a token id, from the type of the column.
fn width_of(footer: &Footer<'_>, header: &ShardHeader) -> Checked<usize> {
    let fields = footer.schema().and_then(|schema| schema.fields());
    let expected = if header.vocab_size <= U16_VOCABULARY { 2 } else { 4 };
    let width = fields
        .filter(|fields| fields.len() == 1)
        .map(|fields| fields.get(0))
        .filter(|field| field.name() == Some("tokens") && field.type_type() == Type::List)
        .and_then(|field| field.children())
        .filter(|children| children.len() == 1)
        .and_then(|children| children.get(0).type_as_int())
        .filter(|int| !int.is_signed())
        .map(|int| int.bitWidth() / 8);
    if width != Some(expected) {
        return fault(
            "columns",
            width.map_or("others".into(), |width| format!("ids of {width} bytes")),
            format!("one column `tokens`, lists of {expected}-byte unsigned integers"),
        );
    }
    Ok(expected as usize)
}

fn batch_of(file: &[u8], block: &Block, width: usize, first_token: u64) -> Checked<BatchLayout> {
    let begin = usize::try_from(block.offset()).ok();
    let header_length = usize::try_from(block.metaDataLength()).ok();
    let body_length = usize::try_from(block.bodyLength()).ok();
    let ends = begin.zip(header_length).zip(body_length);
    let ends = ends.and_then(|((begin, header), body)| {
        let body_begin = begin.checked_add(header)?;
        let end = body_begin.checked_add(body)?;
        (header > PREFIX && end <= file.len()).then_some((begin, body_begin, end))
    });
    let Some((begin, body_begin, end)) = ends else {
        return fault(
            "record batch",
            format!(
                "{} + {} + {} bytes",
                block.offset(),
                block.metaDataLength(),
                block.bodyLength()
            ),
            format!("to lie inside the file's {} bytes", file.len()),
        );
    };
    let message = match root_as_message(&file[begin + PREFIX..body_begin]) {
        Ok(message) => message,
        Err(error) => return fault("record batch header", error, "a readable header"),
    };
    let batch = record_batch(&message)?;
    let lengths: Vec<i64> = batch.nodes().into_iter().flatten().map(|n| n.length()).collect();
    let nulls = batch.nodes().into_iter().flatten().any(|node| node.null_count() != 0);
    let counts: Vec<usize> =
        lengths.iter().filter_map(|&length| usize::try_from(length).ok()).collect();
    let &[documents, tokens] = counts.as_slice() else {
        return fault("arrays", lengths.len(), "one of documents and one of tokens");
    };
    if nulls {
        return fault("nulls", "some", "none");
    }
    let buffers: Vec<_> = batch.buffers().into_iter().flatten().collect();
    let &[_, offsets, _, ids] = buffers.as_slice() else {
        return fault("buffers", buffers.len(), 4);
    };
    // `length` and `offset` come from the file; `needed` is what the counts ask for.
    let range = |what, buffer: &arrow_ipc::Buffer, needed: Option<usize>, align: usize| {
        let begin =
            usize::try_from(buffer.offset()).ok().and_then(|offset| body_begin.checked_add(offset));
        let length = usize::try_from(buffer.length()).ok();
        let found = begin.zip(length).zip(needed).and_then(|((begin, length), needed)| {
            let inside = begin.checked_add(length)? <= end;
            let fits = inside && needed <= length && begin.is_multiple_of(align);
            fits.then_some(begin..begin + needed)
        });
        match found {
            Some(range) => Ok(range),
            None => fault(
                what,
                format!("{} bytes at {}", buffer.length(), buffer.offset()),
                format!(
                    "{} bytes inside the record batch, aligned to {align}",
                    needed.map_or("fewer".to_owned(), |needed| needed.to_string())
                ),
            ),
        }
    };
    let offset_bytes = documents.checked_add(1).and_then(|count| count.checked_mul(4));
    let layout = BatchLayout {
        first_token,
        tokens,
        documents,
        offsets: range("document offsets", offsets, offset_bytes, 4)?,
        ids: range("token ids", ids, tokens.checked_mul(width), width)?,
    };
    check_offsets(&file[layout.offsets.clone()], tokens)?;
    Ok(layout)
}

fn record_batch<'a>(message: &Message<'a>) -> Checked<RecordBatch<'a>> {
    match message.header_as_record_batch() {
        Some(batch) if batch.compression().is_none() => Ok(batch),
        Some(_) => fault("compression", "some", "none"),
        None => fault("message", "of another kind", "a record batch"),
    }
}

/// Documents begin at 0, end at `tokens` and are not empty.
fn check_offsets(bytes: &[u8], tokens: usize) -> Checked<()> {
    let mut offsets = bytes
        .chunks_exact(4)
        .map(|chunk| i32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    let mut last = match offsets.next() {
        Some(0) => 0,
        Some(other) => return fault("first document offset", other, 0),
        None => return fault("first document offset", "none", 0),
    };
    for offset in offsets {
        if offset <= last {
            return fault("document offset", offset, format!("more than {last}"));
        }
        last = offset;
    }
    if usize::try_from(last) != Ok(tokens) {
        return fault("last document offset", last, tokens);
    }
    Ok(())
}
