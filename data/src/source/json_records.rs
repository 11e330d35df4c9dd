//! JSON values one after the other: the elements of a list, or values that follow one another as in JSON
//! lines. A file of any size is read with the memory of its largest value.

use std::path::{Path, PathBuf};

use super::input::InputReader;
use crate::error::{DataError, Result};

/// Largest record in bytes.
const LARGEST_RECORD: usize = 16 << 20;

/// The mark with which some programs begin a UTF-8 file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Cuts a file into the texts of its records. What is inside a record is not looked at, but for where
/// it ends.
pub(crate) struct JsonRecords {
    reader: InputReader,
    path: PathBuf,
    /// Bytes read so far.
    offset: u64,
    /// Whether the records are the elements of a list, once the first byte was seen.
    is_list: Option<bool>,
    /// Whether the list has ended.
    ended: bool,
    records: u64,
}

impl JsonRecords {
    pub fn open(path: &Path) -> Result<Self> {
        let reader = InputReader::open(path)?;
        let path = path.to_owned();
        Ok(Self { reader, path, offset: 0, is_list: None, ended: false, records: 0 })
    }

    /// Bytes of the file, as it lies on the disk, that were read since the last call.
    pub fn newly_consumed(&mut self) -> u64 {
        self.reader.newly_consumed()
    }

    /// Puts the text of the next record into `record` and gives its offset; none at the end.
    pub fn next(&mut self, record: &mut Vec<u8>) -> Result<Option<u64>> {
        record.clear();
        if self.is_list.is_none() {
            self.skip_byte_order_mark()?;
            self.is_list = Some(self.skip_space()? == Some(b'['));
            if self.is_list == Some(true) {
                self.take()?;
            }
        }
        let is_list = self.is_list == Some(true);
        let mut next = self.skip_space()?;
        if is_list && !self.ended {
            if self.records > 0 && next == Some(b',') {
                self.take()?;
                next = self.skip_space()?;
                if next == Some(b']') {
                    return Err(self.broken("a comma before the end of the list"));
                }
            } else if self.records > 0 && next.is_some_and(|byte| byte != b']') {
                return Err(self.broken("expected a comma or the end of the list"));
            }
            if next == Some(b']') {
                self.take()?;
                self.ended = true;
                next = self.skip_space()?;
            } else if next.is_none() {
                return Err(self.broken("the file ends inside the list: it was cut short"));
            }
        }
        match next {
            None => Ok(None),
            Some(_) if is_list && self.ended => Err(self.broken("something follows the list")),
            Some(b'{') => {
                let start = self.offset;
                self.object(record)?;
                self.records += 1;
                Ok(Some(start))
            }
            Some(_) => Err(self.broken("expected a record, which is an object in braces")),
        }
    }

    /// Reads an object up to the brace that closes it.
    fn object(&mut self, record: &mut Vec<u8>) -> Result<()> {
        let (mut depth, mut in_string, mut escaped) = (0u64, false, false);
        loop {
            let chunk = self.reader.fill()?;
            if chunk.is_empty() {
                return Err(self.broken("the file ends inside a record: it was cut short"));
            }
            let mut used = 0;
            for &byte in chunk {
                used += 1;
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if in_string => escaped = true,
                    b'"' => in_string = !in_string,
                    b'{' | b'[' if !in_string => depth += 1,
                    b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
            record.extend_from_slice(&chunk[..used]);
            self.reader.consume(used);
            self.offset += used as u64;
            if record.len() > LARGEST_RECORD {
                return Err(self.broken(&format!("a record of more than {LARGEST_RECORD} bytes")));
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    fn skip_byte_order_mark(&mut self) -> Result<()> {
        if self.reader.fill()?.starts_with(BYTE_ORDER_MARK) {
            self.advance(BYTE_ORDER_MARK.len());
        }
        Ok(())
    }

    /// The next byte that is no white space, which stays; none at the end.
    fn skip_space(&mut self) -> Result<Option<u8>> {
        loop {
            let chunk = self.reader.fill()?;
            let space = chunk.iter().position(|byte| !byte.is_ascii_whitespace());
            let (used, found) = match space {
                Some(at) => (at, Some(chunk[at])),
                None => (chunk.len(), None),
            };
            self.advance(used);
            if found.is_some() || used == 0 {
                return Ok(found);
            }
        }
    }

    /// Goes past one byte.
    fn take(&mut self) -> Result<()> {
        if !self.reader.fill()?.is_empty() {
            self.advance(1);
        }
        Ok(())
    }

    fn advance(&mut self, count: usize) {
        self.reader.consume(count);
        self.offset += count as u64;
    }

    fn broken(&self, what: &str) -> DataError {
        DataError::bad_file(
            &self.path,
            format!(
                "not a JSON list of records, nor one record a line: {what}, at byte {} behind {} \
                 records",
                self.offset, self.records
            ),
        )
    }
}
