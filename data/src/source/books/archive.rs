//! Zip files of Project Gutenberg: one book each, sometimes with pictures beside it.

use std::fs::File;
use std::io::{BufReader, Read};

use zip::ZipArchive;
use zip::result::ZipError;

use super::names::{BookName, best_of_each_book};
use super::{BooksSource, too_long};
use crate::document::Reason;
use crate::error::{DataError, Result};
use crate::source::{ReadContext, Record, RecordSink, Rejection};
use crate::storage::local_file;

/// Members looked at; a zip file of a book has a handful.
const MAX_MEMBERS: usize = 10_000;

/// Reads the text files in the archive. Nothing is written anywhere, so their paths do no harm;
/// at most `max_book_bytes` of one are decompressed, whatever length it claims.
pub(super) fn read(
    options: &BooksSource,
    context: &ReadContext<'_>,
    sink: RecordSink<'_>,
) -> Result<()> {
    let path = &context.input.path;
    let file = local_file(path)?;
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| match error {
        ZipError::Io(error) if error.raw_os_error().is_some() => DataError::io(path)(error),
        // The list of members is at the end: without it the file is cut short.
        other => DataError::Archive {
            path: path.clone(),
            offset: context.input.bytes,
            reason: other.to_string(),
        },
    })?;
    let mut texts: Vec<(usize, String)> = Vec::new();
    for index in 0..archive.len().min(MAX_MEMBERS) {
        let name = archive.name_for_index(index).and_then(|name| name.ok());
        if let Some(name) = name.filter(|name| name.to_ascii_lowercase().ends_with(".txt")) {
            texts.push((index, name.into_owned()));
        }
    }
    let texts = best_of_each_book(texts, |(_, name)| name);
    let alone = texts.len() == 1;
    if texts.is_empty() {
        sink(Record::Rejected(Rejection {
            reason: Reason::unwanted("no_text"),
            offset: 0,
            bytes: context.input.bytes,
            detail: "the zip file holds no .txt".into(),
        }))?;
    }
    for (index, member) in texts {
        let mut name = BookName::parse(&member);
        if alone && name.number.is_none() {
            // Old books have names like `moby10b.txt`, in zip files with the number.
            name.number = BookName::parse(&context.input.name).number;
        }
        let record = read_member(options, context.source, &mut archive, index, &name);
        sink(record)?;
    }
    (context.bytes_read)(context.input.bytes);
    Ok(())
}

fn read_member(
    options: &BooksSource,
    source: &str,
    archive: &mut ZipArchive<BufReader<File>>,
    index: usize,
    name: &BookName,
) -> Record {
    let reject = |offset, bytes, error: String| {
        let detail = format!("member {}: {error}", name.stem);
        Record::Rejected(Rejection {
            reason: Reason::broken("damaged_archive"),
            offset,
            bytes,
            detail,
        })
    };
    let member = match archive.by_index(index) {
        Ok(member) => member,
        Err(error) => return reject(0, 0, error.to_string()),
    };
    let (offset, claimed) = (member.data_start().unwrap_or(0), member.size());
    let mut bytes = Vec::new();
    let bound = options.max_book_bytes as u64;
    if let Err(error) = member.take(bound + 1).read_to_end(&mut bytes) {
        return reject(offset, bytes.len() as u64, error.to_string());
    }
    if bytes.len() as u64 > bound {
        return too_long(offset, claimed.max(bound + 1), options.max_book_bytes);
    }
    options.book(source, name, &bytes, offset)
}
