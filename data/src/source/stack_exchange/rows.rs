//! The rows of `Posts.xml`: `<row …/>` elements, one at a time, with a bound on their length.

use memchr::{memchr2, memmem};

use crate::document::Reason;
use crate::error::{DataError, Result};
use crate::source::{InputReader, Rejection};

/// What is between two tags, or a tag, that XML does not allow here.
const BAD_XML: Reason = Reason::broken("bad_xml");

/// Longest comment or processing instruction.
const ASIDE_BYTES: u64 = 1 << 20;

/// Decompressed bytes, whatever they come from.
pub(super) trait ByteSource {
    /// The next bytes; empty at the end.
    ///
    /// # Errors
    /// [`DataError::Io`] or [`DataError::Archive`].
    fn fill(&mut self) -> Result<&[u8]>;

    /// Marks `count` of them as used.
    fn consume(&mut self, count: usize);

    /// Bytes of the compressed file read since the last call.
    fn newly_consumed(&mut self) -> u64;
}

impl ByteSource for InputReader {
    fn fill(&mut self) -> Result<&[u8]> {
        InputReader::fill(self)
    }

    fn consume(&mut self, count: usize) {
        InputReader::consume(self, count);
    }

    fn newly_consumed(&mut self) -> u64 {
        InputReader::newly_consumed(self)
    }
}

/// What [`Rows::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A row; what stands between `<` and `>` is in the buffer.
    Row,
    /// Something else.
    Bad(Rejection),
    /// The end of a whole file.
    End,
}

/// The rows of a file.
pub(super) struct Rows<'a> {
    bytes: &'a mut dyn ByteSource,
    path: &'a std::path::Path,
    most_bytes: usize,
    most_expanded: u64,
    bytes_read: &'a dyn Fn(u64),
    /// Offset in the decompressed file.
    offset: u64,
    /// Bytes of the compressed file read so far.
    compressed: u64,
    /// Offset of the last row.
    row_offset: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Before,
    Inside,
    After,
}

/// How a tag ended.
enum Tag {
    Whole,
    TooLong(u64),
    /// A `<` inside it.
    Broken(u64),
}

impl<'a> Rows<'a> {
    /// Rows of at most `most_bytes`, of a file that decompresses to at most `most_expanded`.
    pub fn new(
        bytes: &'a mut dyn ByteSource,
        path: &'a std::path::Path,
        most_bytes: usize,
        most_expanded: u64,
        bytes_read: &'a dyn Fn(u64),
    ) -> Self {
        Self {
            bytes,
            path,
            most_bytes,
            most_expanded,
            bytes_read,
            offset: 0,
            compressed: 0,
            row_offset: 0,
            state: State::Before,
        }
    }

    /// Offset of the last row in the decompressed file.
    pub fn row_offset(&self) -> u64 {
        self.row_offset
    }

    /// Reads the next row into `row`.
    ///
    /// # Errors
    /// [`DataError::Archive`] when the file ends before `</posts>`, [`DataError::BadFile`] when it
    /// is no `Posts.xml`, declares a document type, or expands beyond the bound.
    pub fn next(&mut self, row: &mut Vec<u8>) -> Result<Found> {
        loop {
            let between = self.offset;
            let garbage = self.skip_text()?;
            if garbage > 0 {
                return Ok(bad(BAD_XML, between, garbage, "text between the rows"));
            }
            if self.fill()?.is_empty() {
                return self.end();
            }
            self.row_offset = self.offset;
            self.consume(1);
            match self.fill()?.first() {
                Some(b'?') => {
                    self.skip_past(b"?>")?;
                    continue;
                }
                Some(b'!') => {
                    self.comment()?;
                    continue;
                }
                _ => {}
            }
            match self.tag(row)? {
                Tag::Whole => {}
                Tag::TooLong(length) => {
                    let detail = format!("{length} bytes, max_record_bytes is {}", self.most_bytes);
                    return Ok(bad(Reason::TOO_LONG, self.row_offset, length, detail));
                }
                Tag::Broken(length) => {
                    let detail = "a tag without its end, or with an unescaped `<`";
                    return Ok(bad(BAD_XML, self.row_offset, length, detail));
                }
            }
            if let Some(found) = self.element(row)? {
                return Ok(found);
            }
        }
    }

    /// What the tag in `row` is; `None` to go on.
    fn element(&mut self, row: &[u8]) -> Result<Option<Found>> {
        let name = row.split(|byte| byte.is_ascii_whitespace()).next().unwrap_or_default();
        let closed = name.ends_with(b"/") || row.ends_with(b"/");
        let name = name.strip_suffix(b"/").unwrap_or(name);
        match (self.state, name) {
            (State::Before, b"posts") => {
                self.state = if closed { State::After } else { State::Inside };
            }
            (State::Before, _) => {
                let name = String::from_utf8_lossy(&name[..name.len().min(40)]).into_owned();
                return Err(DataError::bad_file(
                    self.path,
                    format!("the root element is <{name}>, expected <posts>: give Posts.xml"),
                ));
            }
            (State::Inside, b"row") => return Ok(Some(Found::Row)),
            // `<row …></row>` is a row too.
            (State::Inside, _) if row.starts_with(b"/row") => {}
            (State::Inside, _) if row.starts_with(b"/posts") => self.state = State::After,
            (State::Inside | State::After, _) => {
                let length = row.len() as u64 + 2;
                return Ok(Some(bad(BAD_XML, self.row_offset, length, "not a <row>")));
            }
        }
        Ok(None)
    }

    fn end(&self) -> Result<Found> {
        match self.state {
            State::After => Ok(Found::End),
            State::Inside => Err(self.cut()),
            State::Before => {
                Err(DataError::bad_file(self.path, "no <posts> element; give Posts.xml"))
            }
        }
    }

    fn cut(&self) -> DataError {
        DataError::Archive {
            path: self.path.to_owned(),
            offset: self.compressed,
            reason: "it ends before </posts>".into(),
        }
    }

    /// Passes over what is before the next `<`. Returns how much of it is not white space.
    fn skip_text(&mut self) -> Result<u64> {
        let mut garbage = 0;
        loop {
            let first = self.offset == 0;
            let mut available = self.fill()?;
            let mut marked = 0;
            if first && available.starts_with("\u{feff}".as_bytes()) {
                available = &available[3..];
                marked = 3;
            }
            let end = memchr::memchr(b'<', available);
            let text = &available[..end.unwrap_or(available.len())];
            garbage += text.iter().filter(|byte| !byte.is_ascii_whitespace()).count() as u64;
            let count = marked + text.len();
            self.consume(count);
            if end.is_some() || count == 0 {
                return Ok(garbage);
            }
        }
    }

    /// Reads a tag up to its `>` into `row`, without it. Its `<` is consumed.
    fn tag(&mut self, row: &mut Vec<u8>) -> Result<Tag> {
        row.clear();
        let most = self.most_bytes;
        let mut length = 1;
        let mut quote = None;
        loop {
            let available = self.fill()?;
            if available.is_empty() {
                return Err(self.cut());
            }
            let stop = match quote {
                Some(quote) => memchr2(quote, b'<', available),
                None => {
                    available.iter().position(|byte| matches!(byte, b'"' | b'\'' | b'<' | b'>'))
                }
            };
            let count = stop.unwrap_or(available.len());
            let byte = stop.map(|at| available[at]);
            // The stop itself belongs to the tag, unless it is a bracket.
            let taken = count + usize::from(matches!(byte, Some(b'"' | b'\'')));
            let room = (most + 1).saturating_sub(row.len());
            row.extend_from_slice(&available[..taken.min(room)]);
            length += taken as u64;
            self.consume(taken);
            match byte {
                Some(b'<') => return Ok(Tag::Broken(length)),
                Some(b'>') => {
                    self.consume(1);
                    return Ok(match length > most as u64 {
                        true => Tag::TooLong(length + 1),
                        false => Tag::Whole,
                    });
                }
                Some(found) => quote = if quote.is_some() { None } else { Some(found) },
                None => {}
            }
        }
    }

    /// Passes over a comment; refuses every other declaration. The `<` is consumed.
    fn comment(&mut self) -> Result<()> {
        let mut start = Vec::new();
        while start.len() < 3 {
            let Some(byte) = self.fill()?.first().copied() else {
                return Err(self.cut());
            };
            start.push(byte);
            self.consume(1);
        }
        if start == b"!--" {
            return self.skip_past(b"-->");
        }
        Err(DataError::bad_file(
            self.path,
            format!(
                "a document type declaration or a CDATA section at byte {}: refused, because \
                 entities can expand without bound and a Posts.xml has neither",
                self.row_offset
            ),
        ))
    }

    /// Passes over everything up to and with `end`, which has at most 3 bytes.
    fn skip_past(&mut self, end: &[u8]) -> Result<()> {
        let mut tail = Vec::new();
        let mut length = 0;
        loop {
            let available = self.fill()?;
            if available.is_empty() {
                return Err(self.cut());
            }
            // `tail` holds the end of what came before, so that a split `end` is found.
            let before = tail.len();
            let count = available.len().min(4096);
            tail.extend_from_slice(&available[..count]);
            if let Some(at) = memmem::find(&tail, end) {
                self.consume(at + end.len() - before);
                return Ok(());
            }
            self.consume(count);
            length += count as u64;
            if length > ASIDE_BYTES {
                return Err(DataError::bad_file(
                    self.path,
                    format!(
                        "a comment of more than {ASIDE_BYTES} bytes at byte {}",
                        self.row_offset
                    ),
                ));
            }
            let keep = tail.len().min(end.len() - 1);
            tail.drain(..tail.len() - keep);
        }
    }

    fn fill(&mut self) -> Result<&[u8]> {
        if self.offset > self.most_expanded {
            return Err(DataError::bad_file(
                self.path,
                format!(
                    "more than {} bytes decompressed; raise `max_expanded_bytes` if the archive \
                     is really that large",
                    self.most_expanded
                ),
            ));
        }
        self.bytes.fill()
    }

    fn consume(&mut self, count: usize) {
        self.bytes.consume(count);
        self.offset += count as u64;
        let read = self.bytes.newly_consumed();
        if read > 0 {
            self.compressed += read;
            (self.bytes_read)(read);
        }
    }
}

fn bad(reason: Reason, offset: u64, bytes: u64, detail: impl Into<String>) -> Found {
    Found::Bad(Rejection { reason, offset, bytes, detail: detail.into() })
}
