//! The pages of a dump, cut out of its bytes.
//!
//! Inside a dump a `<` of the text is always `&lt;`, so `<page>` and `</page>` are where pages
//! begin and end. Cutting there first keeps damage to the page it is in, and memory to one page.

use memchr::memmem;

const OPEN: &[u8] = b"<page>";
const CLOSE: &[u8] = b"</page>";
const END: &[u8] = b"</mediawiki>";
/// Longest header: a few kilobytes of names of namespaces in all dumps there are.
const LONGEST_HEADER: usize = 1 << 20;

/// A piece of a dump.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// All before the first page.
    Header(&'a [u8]),
    /// From `<page>` to `</page>`.
    Page {
        /// Offset in the decompressed file.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// A page longer than the bound.
    TooLong {
        /// Offset in the decompressed file.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// There is no page in what should be the header.
    NoPages,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Header,
    Between,
    Page,
    /// In a page that is too long, of which so many bytes are gone.
    Skipping(u64),
}

/// Cuts bytes into pages.
pub(super) struct PageCutter {
    /// What is not cut yet. In a page it begins with `<page>`.
    buffer: Vec<u8>,
    /// Offset of the buffer in the decompressed file.
    offset: u64,
    /// Bytes of the buffer known not to hold what is looked for.
    searched: usize,
    state: State,
    bound: usize,
    ended: bool,
}

impl PageCutter {
    /// Pages of at most `bound` bytes.
    pub fn new(bound: usize) -> Self {
        Self {
            buffer: Vec::new(),
            offset: 0,
            searched: 0,
            state: State::Header,
            bound,
            ended: false,
        }
    }

    /// Whether the dump came to its end, `</mediawiki>`.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Offset in the decompressed file up to which all is cut.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Forgets the open page: what follows does not continue it. Returns its bytes so far. A
    /// header is kept: what there is of it may say enough.
    pub fn skip_damage(&mut self) -> u64 {
        if self.state == State::Header {
            return 0;
        }
        let lost = self.buffer.len() as u64;
        self.offset += lost;
        self.buffer.clear();
        self.searched = 0;
        self.state = State::Between;
        lost
    }

    /// Takes the next bytes and hands the pieces that are whole now to `sink`.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn push<E>(
        &mut self,
        bytes: &[u8],
        sink: &mut dyn FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let looked_for =
                if let State::Header | State::Between = self.state { OPEN } else { CLOSE };
            let from = at.max(self.searched);
            let found = memmem::find(&self.buffer[from..], looked_for).map(|found| from + found);
            let offset = self.offset + at as u64;
            match (self.state, found) {
                (State::Header | State::Between, Some(start)) => {
                    if self.state == State::Header {
                        sink(Piece::Header(&self.buffer[at..start]))?;
                    }
                    self.state = State::Page;
                    at = start;
                }
                (State::Page, Some(end)) => {
                    let page = &self.buffer[at..end + CLOSE.len()];
                    if page.len() > self.bound {
                        sink(Piece::TooLong { offset, bytes: page.len() as u64 })?;
                    } else {
                        sink(Piece::Page { offset, bytes: page })?;
                    }
                    self.state = State::Between;
                    at = end + CLOSE.len();
                }
                (State::Skipping(gone), Some(end)) => {
                    let bytes = gone + (end + CLOSE.len() - at) as u64;
                    sink(Piece::TooLong { offset: offset - gone, bytes })?;
                    self.state = State::Between;
                    at = end + CLOSE.len();
                }
                (_, None) => {
                    self.keep_from(at, looked_for.len());
                    break;
                }
            }
        }
        if self.state == State::Header && self.buffer.len() > LONGEST_HEADER {
            sink(Piece::NoPages)?;
        }
        Ok(())
    }

    /// Ends the dump. A dump may have no page at all.
    ///
    /// # Errors
    /// What `sink` returns.
    pub fn finish<E>(&mut self, sink: &mut dyn FnMut(Piece<'_>) -> Result<(), E>) -> Result<(), E> {
        if self.state == State::Header {
            self.ended = memmem::find(&self.buffer, END).is_some();
            sink(Piece::Header(&self.buffer))?;
        }
        Ok(())
    }

    /// Keeps what may be needed of the buffer: a page, or what may be the beginning of what is
    /// looked for.
    fn keep_from(&mut self, at: usize, length: usize) {
        let unsearched = self.buffer.len().saturating_sub(length - 1).max(at);
        let start = match self.state {
            State::Header => 0,
            State::Between => {
                // Enough to see the end of the dump across two calls.
                self.ended |= memmem::find(&self.buffer[at..], END).is_some();
                self.buffer.len().saturating_sub(END.len() - 1).max(at)
            }
            State::Page if self.buffer.len() - at <= self.bound => at,
            State::Page => {
                self.state = State::Skipping((unsearched - at) as u64);
                unsearched
            }
            State::Skipping(gone) => {
                self.state = State::Skipping(gone + (unsearched - at) as u64);
                unsearched
            }
        };
        self.buffer.drain(..start);
        self.offset += start as u64;
        self.searched = unsearched.saturating_sub(start);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]], bound: usize) -> (Vec<String>, bool) {
        let mut cutter = PageCutter::new(bound);
        let mut pieces = Vec::new();
        let mut sink = |piece: Piece<'_>| -> Result<(), ()> {
            pieces.push(match piece {
                Piece::Header(bytes) => format!("header {}", String::from_utf8_lossy(bytes)),
                Piece::Page { offset, bytes } => {
                    format!("{offset} {}", String::from_utf8_lossy(bytes))
                }
                Piece::TooLong { offset, bytes } => format!("{offset} too long {bytes}"),
                Piece::NoPages => "no pages".into(),
            });
            Ok(())
        };
        for chunk in chunks {
            cutter.push(chunk, &mut sink).unwrap();
        }
        cutter.finish(&mut sink).unwrap();
        let ended = cutter.ended();
        (pieces, ended)
    }

    #[test]
    fn any_chunks_give_the_same_pages() {
        let dump = b"<mediawiki><siteinfo/>\n<page>one</page>\n  <page>longer one</page> \
                     <page></page>x</mediawiki>\n";
        let expected = [
            "header <mediawiki><siteinfo/>\n",
            "23 <page>one</page>",
            "42 too long 23",
            "66 <page></page>",
        ];
        for size in 1..=dump.len() {
            let chunks: Vec<&[u8]> = dump.chunks(size).collect();
            let (pieces, ended) = cut(&chunks, 20);
            assert_eq!(pieces, expected, "chunks of {size}");
            assert!(ended, "chunks of {size}");
        }
    }

    #[test]
    fn a_dump_may_be_empty_or_cut() {
        assert_eq!(
            cut(&[b"<mediawiki></mediawiki>"], 9),
            (vec!["header <mediawiki></mediawiki>".into()], true)
        );
        let (pieces, ended) = cut(&[b"<m><page>a</page><page>b"], 99);
        assert_eq!(pieces, ["header <m>", "3 <page>a</page>"]);
        assert!(!ended);
        let text = vec![b'x'; LONGEST_HEADER + 1];
        assert_eq!(cut(&[&text], 9).0[0], "no pages");
    }

    #[test]
    fn memory_is_bounded() {
        let mut cutter = PageCutter::new(1000);
        let mut sink = |_: Piece<'_>| -> Result<(), ()> { Ok(()) };
        cutter.push(b"<m><page>", &mut sink).unwrap();
        for _ in 0..1000 {
            cutter.push(&[b'x'; 500], &mut sink).unwrap();
            assert!(cutter.buffer.len() <= 1500);
        }
        cutter.push(b"</page>", &mut sink).unwrap();
        for _ in 0..1000 {
            cutter.push(&[b'x'; 500], &mut sink).unwrap();
            assert!(cutter.buffer.len() <= 1500);
        }
    }
}
