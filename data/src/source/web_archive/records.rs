//! WARC records (ISO 28500): headers by name, blocks by their `Content-Length`.

use std::path::Path;

use super::members::{Damage, Fill, LOOK_AHEAD, Members, RECORD_MAGIC};
use crate::document::Reason;
use crate::error::Result;
use crate::source::Rejection;

/// Most bytes of a record's headers.
const HEADER_BYTES: usize = 1 << 16;

/// A member of the compressed file is cut short or damaged.
const DAMAGED: Reason = Reason::broken("damaged_member");
/// What should be a record is none.
const BAD_RECORD: Reason = Reason::broken("bad_record");
/// The `Content-Length` of a record is not the length of its block.
const BAD_LENGTH: Reason = Reason::broken("bad_content_length");
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
    /// Number of the record in the file, from 0.
    pub number: u64,
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
    number: u64,
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
    /// Another record begins before its end.
    Cut(u64),
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
            number: 0,
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
        let offset = self.members.member();
        let number = self.number;
        self.number += 1;
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
        let block = match self.block(length)? {
            Part::Whole(block) => block,
            Part::Damaged(damage) => return Ok(Found::Bad(damaged(&damage, length))),
            Part::Ended => {
                let detail = format!("the file ends inside a block of {length} bytes");
                return Ok(bad(TRUNCATED, offset, length, detail));
            }
        };
        if let Block::Cut(got) = block {
            let detail = format!("Content-Length {length}, the next record begins after {got}");
            return Ok(bad(BAD_LENGTH, offset, got, detail));
        }
        // The record is whole only if its member is, and if something sensible follows.
        let last_member = self.members.member();
        match self.skip_line_ends()? {
            Part::Damaged(damage) if damage.member == last_member => {
                return Ok(Found::Bad(damaged(&damage, length)));
            }
            Part::Damaged(damage) => self.damage = Some(damage),
            // What a new member holds says nothing about this record.
            Part::Whole(()) if self.members.member() == last_member && !self.record_follows() => {
                let detail = format!("Content-Length {length}, but the block goes on");
                return self.give_up(BAD_LENGTH, offset, length, &detail);
            }
            Part::Whole(()) | Part::Ended => {}
        }
        Ok(match block {
            Block::Whole(block) => Found::Record(WarcRecord { headers, block, offset, number }),
            Block::TooLong | Block::Cut(_) => {
                let detail = format!("{length} bytes, max_record_bytes is {}", self.most_bytes);
                bad(Reason::TOO_LONG, offset, length, detail)
            }
        })
    }

    /// Reports what is no record and goes on to the next one. When that shows that the member is
    /// damaged, this is the reason.
    fn give_up(&mut self, reason: Reason, offset: u64, read: u64, detail: &str) -> Result<Found> {
        let member = self.members.member();
        let more = self.recover()?;
        let bytes = read.saturating_add(more);
        if self.damage.as_ref().is_some_and(|damage| damage.member == member)
            && let Some(damage) = self.damage.take()
        {
            return Ok(Found::Bad(damaged(&damage, bytes)));
        }
        Ok(bad(reason, offset, bytes, format!("{detail}; {more} more bytes passed over")))
    }

    /// Passes over the empty lines between records (and a byte order mark at the beginning).
    fn skip_line_ends(&mut self) -> Result<Part<()>> {
        loop {
            match self.members.fill()? {
                Fill::Data => {}
                Fill::Damaged(damage) => return Ok(Part::Damaged(damage)),
                Fill::End => return Ok(Part::Ended),
            }
            let available = self.members.available();
            let count = if !std::mem::replace(&mut self.begun, true)
                && available.starts_with("\u{feff}".as_bytes())
            {
                3
            } else {
                available.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count()
            };
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
        for end in [b'\n', b'\r'] {
            if self.line.last() == Some(&end) {
                self.line.pop();
            }
        }
        Ok(Part::Whole(length))
    }

    /// Reads `length` bytes.
    fn block(&mut self, length: u64) -> Result<Part<Block>> {
        let keep = length <= self.most_bytes as u64;
        // The length is a claim: memory grows with what is really there.
        let mut block = Vec::with_capacity(if keep { length.min(1 << 16) as usize } else { 0 });
        let mut left = length;
        while left > 0 {
            match self.members.fill()? {
                Fill::Data => {}
                Fill::Damaged(damage) => return Ok(Part::Damaged(damage)),
                Fill::End => return Ok(Part::Ended),
            }
            let available = self.members.available();
            if self.members.at_member_start() && available.starts_with(RECORD_MAGIC) {
                return Ok(Part::Whole(Block::Cut(length - left)));
            }
            let count = available.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if keep {
                block.extend_from_slice(&available[..count]);
            }
            left -= count as u64;
            self.members.consume(count);
        }
        Ok(Part::Whole(if keep { Block::Whole(block) } else { Block::TooLong }))
    }

    /// Goes on to what looks like the beginning of a record: the next member if it begins with
    /// one, or a version line followed by a WARC header. Returns the bytes passed over.
    fn recover(&mut self) -> Result<u64> {
        let mut bytes = 0;
        loop {
            match self.members.fill()? {
                Fill::Data => {}
                Fill::Damaged(damage) => {
                    self.damage = Some(damage);
                    return Ok(bytes);
                }
                Fill::End => return Ok(bytes),
            }
            if self.members.at_member_start() && self.members.available().starts_with(RECORD_MAGIC)
            {
                return Ok(bytes);
            }
            let length = match self.read_line(LOOK_AHEAD)? {
                Part::Whole(length) => length,
                Part::Damaged(damage) => {
                    self.damage = Some(damage);
                    return Ok(bytes);
                }
                Part::Ended => return Ok(bytes),
            };
            let version = self.line.starts_with(b"WARC/1.") || self.line.starts_with(b"WARC/0.");
            if version && self.line.len() <= 12 && self.header_follows()? {
                self.line_is_start = true;
                return Ok(bytes);
            }
            if self.damage.is_some() {
                return Ok(bytes);
            }
            bytes += length;
        }
    }

    /// Whether the available bytes can begin a record.
    fn record_follows(&self) -> bool {
        let available = self.members.available();
        RECORD_MAGIC.starts_with(&available[..available.len().min(RECORD_MAGIC.len())])
    }

    /// Whether the next line begins as the headers of records do. What the end of a buffer hides
    /// is believed.
    fn header_follows(&mut self) -> Result<bool> {
        if self.members.available().is_empty() {
            match self.members.fill()? {
                Fill::Data => {}
                Fill::Damaged(damage) => {
                    self.damage = Some(damage);
                    return Ok(false);
                }
                Fill::End => return Ok(false),
            }
        }
        let available = self.members.available();
        let begins = |name: &[u8]| {
            let length = name.len().min(available.len());
            available[..length].eq_ignore_ascii_case(&name[..length])
        };
        Ok(begins(b"WARC-") || begins(b"Content-"))
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
