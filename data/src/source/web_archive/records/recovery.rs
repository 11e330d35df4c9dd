//! Where the next record begins when the length of one lies or a record is none.

use super::super::arc;
use super::super::members::{Damage, Fill, RECORD_MAGIC};
use super::{Block, Found, Part, Records, bad, damaged, is_version, trim_line_ends};
use crate::document::Reason;
use crate::error::Result;

/// Bytes behind a block that show whether its `Content-Length` was a few bytes too long.
const OVERLAP: usize = 256;
/// Longest line that begins a record: an address of an ARC file and a few words.
const LONGEST_START: usize = 1 << 12;

impl Records {
    /// The block of a record whose `Content-Length` is wrong, of which `block` is what it said: up to
    /// the next record, which may begin inside it or behind it. Longer ones than allowed are given
    /// back as long as is needed to see that.
    pub(super) fn true_block(
        &mut self,
        mut block: Vec<u8>,
    ) -> Result<std::result::Result<Vec<u8>, Damage>> {
        let known = block.len();
        let more = self.members.available();
        let more = &more[..more.len().min(OVERLAP)];
        block.extend_from_slice(more);
        let count = more.len();
        if let Some(start) = self.record_inside(&block).filter(|&start| start < known) {
            self.members.consume(count);
            self.members.push_back(&block[start..]);
            block.truncate(start);
            trim_line_ends(&mut block);
            return Ok(Ok(block));
        }
        block.truncate(known);
        let member = self.members.member();
        self.recover(&mut block)?;
        if let Some(damage) = self.damage.take_if(|damage| damage.member == member) {
            return Ok(Err(damage));
        }
        trim_line_ends(&mut block);
        Ok(Ok(block))
    }

    /// Where in `bytes` a line begins a record.
    fn record_inside(&self, bytes: &[u8]) -> Option<usize> {
        let mut from = 0;
        while let Some(feed) = memchr::memchr(b'\n', &bytes[from..]) {
            from += feed + 1;
            let rest = &bytes[from..];
            if self.arc {
                let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
                if arc::headers(line).is_some() {
                    return Some(from);
                }
                continue;
            }
            if !is_version(rest) {
                continue;
            }
            let end = memchr::memchr(b'\n', rest).filter(|&end| end <= 12);
            if end.is_some_and(|end| begins_header(&rest[end + 1..])) {
                return Some(from);
            }
        }
        None
    }

    /// Reports what is no record and goes on to the next one. When that shows that the member is
    /// damaged, this is the reason.
    pub(super) fn give_up(
        &mut self,
        reason: Reason,
        offset: u64,
        read: u64,
        detail: &str,
    ) -> Result<Found> {
        let member = self.members.member();
        let more = self.recover(&mut Vec::new())?;
        let bytes = read.saturating_add(more);
        if let Some(damage) = self.damage.take_if(|damage| damage.member == member) {
            return Ok(Found::Bad(damaged(&damage, bytes)));
        }
        Ok(bad(reason, offset, bytes, format!("{detail}; {more} more bytes passed over")))
    }

    /// The file ends inside a block: another record begins in it, its member was whole and only the
    /// length is wrong, or the file was cut.
    pub(super) fn cut_by_end(&mut self, mut block: Vec<u8>) -> Part<Block> {
        match self.record_inside(&block) {
            Some(start) => {
                self.members.push_back(&block[start..]);
                block.truncate(start);
            }
            None if self.members.is_compressed() => {}
            None => return Part::Ended,
        }
        trim_line_ends(&mut block);
        Part::Whole(Block::Cut(block))
    }

    /// Goes on to what looks like the beginning of a record: the next member if it begins with
    /// one, or a version line followed by a WARC header. Returns the bytes passed over, which go into
    /// `passed` up to the bound on records and a line more.
    fn recover(&mut self, passed: &mut Vec<u8>) -> Result<u64> {
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
            if self.members.at_member_start() && self.begins_record(self.members.available()) {
                return Ok(bytes);
            }
            let place = self.members.place();
            let room = self.most_bytes.saturating_add(1).saturating_sub(passed.len());
            let length = match self.read_raw_line(room.max(LONGEST_START))? {
                Part::Whole(length) => length,
                Part::Damaged(damage) => {
                    self.damage = Some(damage);
                    return Ok(bytes);
                }
                Part::Ended => return Ok(bytes),
            };
            if self.line_begins_record()? {
                self.line_is_start = true;
                self.place = place;
                return Ok(bytes);
            }
            if self.damage.is_some() {
                return Ok(bytes);
            }
            bytes += length;
            passed.extend_from_slice(&self.line[..self.line.len().min(room)]);
        }
    }

    /// Whether the line that was read begins a record; it loses its end when it does.
    fn line_begins_record(&mut self) -> Result<bool> {
        let mut length = self.line.len();
        while length > 0 && matches!(self.line[length - 1], b'\r' | b'\n') {
            length -= 1;
        }
        let line = &self.line[..length];
        let begins = if self.arc {
            arc::headers(line).is_some()
        } else {
            is_version(line) && length <= 12 && self.header_follows()?
        };
        if begins {
            self.line.truncate(length);
        }
        Ok(begins)
    }

    /// Whether `bytes`, the beginning of a member, begin a record.
    pub(super) fn begins_record(&self, bytes: &[u8]) -> bool {
        if self.arc { arc::may_begin(bytes) } else { bytes.starts_with(RECORD_MAGIC) }
    }

    /// Whether the available bytes can begin a record.
    pub(super) fn record_follows(&self) -> bool {
        let available = self.members.available();
        if self.arc {
            return arc::may_begin(available);
        }
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
        Ok(begins_header(self.members.available()))
    }
}

/// Whether `bytes` begin as the headers of records do, as far as they reach.
fn begins_header(bytes: &[u8]) -> bool {
    let begins = |name: &[u8]| {
        let length = name.len().min(bytes.len());
        bytes[..length].eq_ignore_ascii_case(&name[..length])
    };
    begins(b"WARC-") || begins(b"Content-")
}
