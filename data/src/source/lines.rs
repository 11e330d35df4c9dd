//! Lines of an input, with a bound on how much of one is kept in memory.

use super::input::InputReader;
use crate::error::Result;

/// What [`Lines::next`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// A line; its bytes, with the line feed if there was one, are in the buffer.
    Whole,
    /// A line longer than the bound, skipped to its end; never if lines come in parts.
    TooLong,
    /// The end of the input.
    End,
}

/// The lines of an input.
pub(super) struct Lines<'a> {
    input: &'a mut InputReader,
    bound: usize,
    /// Whether longer lines come in parts.
    in_parts: bool,
    offset: u64,
    length: u64,
}

impl<'a> Lines<'a> {
    /// Lines of at most `bound` bytes.
    pub fn new(input: &'a mut InputReader, bound: usize) -> Self {
        Self { input, bound, in_parts: false, offset: 0, length: 0 }
    }

    /// Lines of which longer ones come in parts of `bound` bytes.
    pub fn in_parts(input: &'a mut InputReader, bound: usize) -> Self {
        Self { in_parts: true, ..Self::new(input, bound) }
    }

    /// Offset of the last line in the decompressed input.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length of the last line in bytes, also of one that was too long.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of the compressed file consumed since the last call.
    pub fn newly_consumed(&mut self) -> u64 {
        self.input.newly_consumed()
    }

    /// Reads the next line into `buffer`.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Line> {
        buffer.clear();
        self.offset += self.length;
        self.length = 0;
        loop {
            let available = self.input.fill()?;
            if available.is_empty() {
                break;
            }
            let feed = available.iter().position(|&byte| byte == b'\n');
            let mut taken = feed.map_or(available.len(), |at| at + 1);
            let mut room = (self.bound + 1).saturating_sub(buffer.len());
            let mut at_end = feed.is_some();
            if self.in_parts {
                room -= 1;
                at_end |= taken >= room;
                taken = taken.min(room);
            }
            buffer.extend_from_slice(&available[..taken.min(room)]);
            self.length += taken as u64;
            self.input.consume(taken);
            if at_end {
                break;
            }
        }
        Ok(if self.length == 0 {
            Line::End
        } else if self.length > self.bound as u64 {
            buffer.clear();
            Line::TooLong
        } else {
            Line::Whole
        })
    }
}
