//! WARC records (ISO 28500) and those of ARC, its forerunner: headers by name, blocks by their
//! `Content-Length`. Where that is wrong, the record ends where the next one begins.

mod recovery;

use std::path::Path;

use super::arc;
use super::members::{Damage, Fill, Members, RECORD_MAGIC};
use crate::document::Reason;
use crate::error::Result;
use crate::source::Rejection;

/// Most bytes of a record's headers.
const HEADER_BYTES: usize = 1 << 16;

/// A member of the compressed file is cut short or damaged.
const DAMAGED: Reason = Reason::broken("damaged_member");
/// What should be a record is none.
const BAD_RECORD: Reason = Reason::broken("bad_record");
/// The file ends inside a record.
const TRUNCATED: Reason = Reason::broken("truncated");

/// Names and values of headers, in the file's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first header called `name`, in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Adds a header.
    pub fn push(&mut self, name: &str, value: impl Into<String>) {
        self.0.push((name.to_owned(), value.into()));
    }

    /// Adds a line without its end. Lines that begin with white space continue the one before.
    /// False when the line is no header.
    pub fn add(&mut self, line: &[u8]) -> bool {
        // Addresses may hold bytes that are no UTF-8.
        let line = String::from_utf8_lossy(line);
        if line.starts_with([' ', '\t']) {
            let Some((_, value)) = self.0.last_mut() else {
                return false;
            };
            if !value.is_empty() {
                value.push(' ');
            }
            value.push_str(line.trim());
            return true;
        }
        let Some((name, value)) = line.split_once(':') else {
            return false;
        };
        self.0.push((name.trim().to_owned(), value.trim().to_owned()));
        true
    }
}

/// A record.
#[derive(Debug)]
pub(super) struct WarcRecord {
    /// Its headers.
    pub headers: Headers,
    /// What they describe.
    pub block: Vec<u8>,
    /// Offset in the (compressed) file of the member the record begins in.
    pub offset: u64,
    /// Where the record begins, unique in the file and the same whatever is damaged before it: the
    /// offset of its member, and its own in the decompressed member if it is not the first there; in
    /// a file that is not compressed its offset.
    pub place: String,
    /// The `Content-Length` was not the length of the block.
    pub bad_length: bool,
}

/// What [`Records::next`] found.
#[derive(Debug)]
pub(super) enum Found {
    /// A whole record.
    Record(WarcRecord),
    /// Something that is none.
    Bad(Rejection),
    /// The end of the file.
    End,
}

/// The records of a file.
pub(super) struct Records {
    members: Members,
    most_bytes: usize,
    /// The file is of the older format.
    arc: bool,
    /// Line feeds that were passed over before the next record.
    feeds: usize,
    /// Where the record that is being read begins.
    place: (u64, u64),
    line: Vec<u8>,
    /// `line` holds the first line of a record, read in search of one.
    line_is_start: bool,
    /// Damage that is to be reported after the record before it.
    damage: Option<Damage>,
    /// The file's first bytes have been seen.
    begun: bool,
}

/// How reading of a part of a record ended.
enum Part<T> {
    Whole(T),
    Damaged(Damage),
    /// The file ends.
    Ended,
}

/// A block, or what is known of it.
enum Block {
    Whole(Vec<u8>),
    /// Longer than allowed, passed over.
    TooLong,
    /// Another record begins before its end, or the file ends.
    Cut(Vec<u8>),
}

impl Records {
    /// Opens `path`. Blocks longer than `most_bytes` are passed over.
    ///
    /// # Errors
    /// [`crate::DataError::Io`].
    pub fn open(path: &Path, most_bytes: usize) -> Result<Self> {
        Ok(Self {
            members: Members::open(path)?,
            most_bytes,
            arc: false,
            feeds: 0,
            place: (0, 0),
            line: Vec::new(),
            line_is_start: false,
            damage: None,
            begun: false,
        })
    }

    /// Bytes of the file read since the last call.
    pub fn newly_consumed(&mut self) -> u64 {
        self.members.newly_consumed()
    }

    /// Reads the next record.
    ///
    /// # Errors
    /// [`crate::DataError::Io`].
    pub fn next(&mut self) -> Result<Found> {
        if let Some(damage) = self.damage.take() {
            return Ok(Found::Bad(damaged(&damage, 0)));
        }
        if !self.line_is_start {
            match self.skip_line_ends()? {
                Part::Whole(()) => {}
                Part::Damaged(damage) => return Ok(Found::Bad(damaged(&damage, 0))),
                Part::Ended => return Ok(Found::End),
            }
        }
        if !self.line_is_start {
            self.place = self.members.place();
        }
        let offset = self.members.member();
        let headers = match self.headers()? {
            Part::Whole(Some(headers)) => headers,
            Part::Whole(None) => {
                return self.give_up(BAD_RECORD, offset, 0, "no record with headers begins here");
            }
            Part::Damaged(damage) => return Ok(Found::Bad(damaged(&damage, 0))),
            Part::Ended => return Ok(bad(TRUNCATED, offset, 0, "in the headers of a record")),
        };
        let Some(length) = headers.get("Content-Length").and_then(|value| value.parse().ok())
        else {
            return self.give_up(BAD_RECORD, offset, 0, "no Content-Length");
        };
        let mut bad_length = false;
        let block = match self.block(length)? {
            Part::Whole(Block::Whole(block)) => Some(block),
            Part::Whole(Block::TooLong) => None,
            Part::Whole(Block::Cut(block)) => {
                return Ok(self.found(headers, block, offset, true));
            }
            Part::Damaged(damage) => return Ok(Found::Bad(damaged(&damage, length))),
            Part::Ended => {
                let detail = format!("the file ends inside a block of {length} bytes");
                return Ok(bad(TRUNCATED, offset, length, detail));
            }
        };
        // The record is whole only if its member is, and if something sensible follows.
        let last_member = self.members.member();
        let mut block = block;
        match self.skip_line_ends()? {
            Part::Damaged(damage) if damage.member == last_member => {
                return Ok(Found::Bad(damaged(&damage, length)));
            }
            Part::Damaged(damage) => self.damage = Some(damage),
            // What a new member holds says nothing about this record.
            Part::Whole(()) if self.members.member() == last_member && !self.record_follows() => {
                let Some(known) = block else {
                    let detail = format!("Content-Length {length}, but the block goes on");
                    return self.give_up(Reason::TOO_LONG, offset, length, &detail);
                };
                match self.true_block(known)? {
                    Ok(whole) => block = Some(whole),
                    Err(damage) => return Ok(Found::Bad(damaged(&damage, length))),
                }
                bad_length = true;
            }
            // The block took line ends with it that are not its own, the last one perhaps in part.
            Part::Whole(()) if !self.arc => {
                if let Some(block) = &mut block
                    && (block.ends_with(b"\r") || self.feeds < 2 && block.ends_with(b"\r\n"))
                {
                    bad_length = true;
                    if block.last() == Some(&b'\r') {
                        block.pop();
                    }
                    for _ in self.feeds..2 {
                        trim_line_end(block);
                    }
                }
            }
            Part::Whole(()) | Part::Ended => {}
        }
        Ok(match block {
            Some(block) => self.found(headers, block, offset, bad_length),
            None => {
                let detail = format!("{length} bytes, max_record_bytes is {}", self.most_bytes);
                bad(Reason::TOO_LONG, offset, length, detail)
            }
        })
    }

    fn found(&self, headers: Headers, block: Vec<u8>, offset: u64, bad_length: bool) -> Found {
        if block.len() > self.most_bytes {
            let (bytes, bound) = (block.len() as u64, self.most_bytes);
            let detail = format!("more than max_record_bytes, which is {bound}");
            return bad(Reason::TOO_LONG, offset, bytes, detail);
        }
        let place = match (self.members.is_compressed(), self.place) {
            (false, (_, inside)) => format!("{inside:012}"),
            (true, (member, 0)) => format!("{member:012}"),
            (true, (member, inside)) => format!("{member:012}+{inside}"),
        };
        Found::Record(WarcRecord { headers, block, offset, place, bad_length })
    }

    /// Passes over the empty lines between records (and a byte order mark at the beginning).
    fn skip_line_ends(&mut self) -> Result<Part<()>> {
        self.feeds = 0;
        loop {
            match self.members.fill()? {
                Fill::Data => {}
                Fill::Damaged(damage) => return Ok(Part::Damaged(damage)),
                Fill::End => return Ok(Part::Ended),
            }
            let available = self.members.available();
            let begins = !std::mem::replace(&mut self.begun, true);
            if begins {
                self.arc = available.starts_with(arc::MAGIC);
            }
            let count = if begins && available.starts_with("\u{feff}".as_bytes()) {
                3
            } else {
                available.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
            };
            self.feeds += available[..count].iter().filter(|byte| **byte == b'\n').count();
            if count == 0 {
                return Ok(Part::Whole(()));
            }
            self.members.consume(count);
        }
    }

    /// Reads the version line and the headers; `None` when they are none.
    fn headers(&mut self) -> Result<Part<Option<Headers>>> {
        let mut room = HEADER_BYTES;
        if !std::mem::take(&mut self.line_is_start) {
            match self.read_line(room)? {
                Part::Whole(_) => {}
                Part::Damaged(damage) => return Ok(Part::Damaged(damage)),
                Part::Ended => return Ok(Part::Ended),
            }
        }
        if self.arc {
            return Ok(Part::Whole(arc::headers(&self.line)));
        }
        if !self.line.starts_with(RECORD_MAGIC) {
            return Ok(Part::Whole(None));
        }
        let mut headers = Headers::default();
        loop {
            let length = match self.read_line(room)? {
                Part::Whole(length) => length,
                Part::Damaged(damage) => return Ok(Part::Damaged(damage)),
                Part::Ended => return Ok(Part::Ended),
            };
            if length > room as u64 {
                return Ok(Part::Whole(None));
            }
            room -= length as usize;
            if self.line.is_empty() {
                return Ok(Part::Whole(Some(headers)));
            }
            if !headers.add(&self.line) {
                return Ok(Part::Whole(None));
            }
        }
    }

    /// Reads a line into `line`, without its end and at most `room` bytes of it. Returns its
    /// length.
    fn read_line(&mut self, room: usize) -> Result<Part<u64>> {
        let part = self.read_raw_line(room)?;
        trim_line_end(&mut self.line);
        Ok(part)
    }

    /// As [`Records::read_line`], with the end of the line.
    fn read_raw_line(&mut self, room: usize) -> Result<Part<u64>> {
        self.line.clear();
        let mut length = 0;
        loop {
            match self.members.fill()? {
                Fill::Data => {}
                Fill::Damaged(damage) => return Ok(Part::Damaged(damage)),
                Fill::End if length == 0 => return Ok(Part::Ended),
                Fill::End => break,
            }
            let available = self.members.available();
            let feed = memchr::memchr(b'\n', available);
            let count = feed.map_or(available.len(), |at| at + 1);
            let kept = count.min(room.saturating_sub(self.line.len()));
            self.line.extend_from_slice(&available[..kept]);
            length += count as u64;
            self.members.consume(count);
            if feed.is_some() {
                break;
            }
        }
        Ok(Part::Whole(length))
    }

    /// Reads `length` bytes.
    fn block(&mut self, length: u64) -> Result<Part<Block>> {
        // The length is a claim: memory grows with what is really there.
        let mut block = Vec::with_capacity(length.min(1 << 16) as usize);
        let mut too_long = false;
        let mut left = length;
        while left > 0 {
            match self.members.fill()? {
                Fill::Data => {}
                Fill::Damaged(damage) => return Ok(Part::Damaged(damage)),
                Fill::End if too_long => return Ok(Part::Ended),
                Fill::End => return Ok(self.cut_by_end(block)),
            }
            let available = self.members.available();
            if self.members.at_member_start() && self.begins_record(available) {
                if too_long {
                    return Ok(Part::Whole(Block::TooLong));
                }
                trim_line_ends(&mut block);
                return Ok(Part::Whole(Block::Cut(block)));
            }
            let count = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            // One byte more shows that it is too long, but a claim alone may be wrong.
            too_long |= block.len() + count > self.most_bytes;
            if too_long {
                block = Vec::new();
            } else {
                block.extend_from_slice(&available[..count]);
            }
            left -= count as u64;
            self.members.consume(count);
        }
        Ok(Part::Whole(if too_long { Block::TooLong } else { Block::Whole(block) }))
    }
}

/// Takes off a line end, or the part of one.
fn trim_line_end(bytes: &mut Vec<u8>) {
    for end in [b'\n', b'\r'] {
        if bytes.last() == Some(&end) {
            bytes.pop();
        }
    }
}

/// Whether a line is the first one of a WARC record.
fn is_version(line: &[u8]) -> bool {
    line.starts_with(b"WARC/1.") || line.starts_with(b"WARC/0.")
}

/// Takes off the two line ends between a block and the next record.
fn trim_line_ends(block: &mut Vec<u8>) {
    for _ in 0..2 {
        if block.last() == Some(&b'\n') {
            block.pop();
            if block.last() == Some(&b'\r') {
                block.pop();
            }
        }
    }
}

fn damaged(damage: &Damage, bytes: u64) -> Rejection {
    Rejection {
        reason: DAMAGED,
        offset: damage.member,
        bytes,
        detail: format!(
            "the member at compressed byte {} is damaged or cut short at byte {}: {}",
            damage.member, damage.offset, damage.reason
        ),
    }
}

fn bad(reason: Reason, offset: u64, bytes: u64, detail: impl Into<String>) -> Found {
    Found::Bad(Rejection { reason, offset, bytes, detail: detail.into() })
}
