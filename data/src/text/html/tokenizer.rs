//! HTML tokens: text, start tags, end tags and raw text. Attributes and comments are passed over.

use memchr::{memchr, memchr2, memmem};

use super::tag::{Content, Tag};

/// A piece of HTML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// Text with character references.
    Text(&'a str),
    /// A start tag, whether it ends in `/>`, and its attributes as they are written.
    Start(Tag, bool, &'a str),
    /// An end tag.
    End(Tag),
    /// An element whose contents are not markup (`script`, `title`, …), with those contents.
    Raw(Tag, &'a str),
}

/// The tokens of a text.
pub(super) struct Tokenizer<'a> {
    html: &'a str,
    at: usize,
}

impl<'a> Tokenizer<'a> {
    pub fn new(html: &'a str) -> Self {
        Self { html, at: 0 }
    }

    fn bytes(&self) -> &'a [u8] {
        self.html.as_bytes()
    }

    /// `html[from..to]`. All cuts are made at ASCII characters, so they are on boundaries.
    fn slice(&self, from: usize, to: usize) -> &'a str {
        self.html.get(from..to).unwrap_or_default()
    }

    /// Position of the next `byte` at or after `from`.
    fn next_at(&self, byte: u8, from: usize) -> Option<usize> {
        memchr(byte, self.bytes().get(from..)?).map(|at| from + at)
    }

    /// Position after the next `>`, or the end.
    fn after_angle(&self, from: usize) -> usize {
        self.next_at(b'>', from).map_or(self.html.len(), |at| at + 1)
    }

    /// Passes over a comment whose `<!--` ends at `from`.
    fn after_comment(&self, from: usize) -> usize {
        let bytes = self.bytes();
        // `<!-->` and `<!--->` are whole comments.
        for short in [&b">"[..], b"->"] {
            if bytes[from..].starts_with(short) {
                return from + short.len();
            }
        }
        let mut at = from;
        while let Some(dashes) = memmem::find(&bytes[at..], b"--") {
            at += dashes;
            match bytes.get(at + 2) {
                Some(b'>') => return at + 3,
                Some(b'!') if bytes.get(at + 3) == Some(&b'>') => return at + 4,
                _ => at += 1,
            }
        }
        bytes.len()
    }

    /// Passes over the attributes of a tag. Returns the position after its `>` and whether a `/`
    /// stood before it, or `None` when the text ends inside the tag.
    fn after_attributes(&self, from: usize) -> Option<(usize, bool)> {
        let bytes = self.bytes();
        let mut at = from;
        loop {
            // Before an attribute's name.
            let mut slash = false;
            loop {
                match bytes.get(at)? {
                    b'>' => return Some((at + 1, slash)),
                    byte => {
                        if *byte != b'/' && !byte.is_ascii_whitespace() {
                            break;
                        }
                        slash = *byte == b'/';
                    }
                }
                at += 1;
            }
            // The name, which may begin with `=`.
            at += 1;
            while !matches!(bytes.get(at)?, b'=' | b'>' | b'/') && !bytes[at].is_ascii_whitespace()
            {
                at += 1;
            }
            while bytes.get(at)?.is_ascii_whitespace() {
                at += 1;
            }
            if bytes[at] != b'=' {
                continue;
            }
            // The value.
            at += 1;
            while bytes.get(at)?.is_ascii_whitespace() {
                at += 1;
            }
            match bytes[at] {
                quote @ (b'"' | b'\'') => at = self.next_at(quote, at + 1)? + 1,
                b'>' => {}
                _ => {
                    while *bytes.get(at)? != b'>' && !bytes[at].is_ascii_whitespace() {
                        at += 1;
                    }
                }
            }
        }
    }

    /// End of the element name that begins at `from`.
    fn name_end(&self, from: usize) -> usize {
        let bytes = &self.bytes()[from..];
        let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>');
        from + bytes.iter().position(ends).unwrap_or(bytes.len())
    }

    /// Whether the end tag of an element called `name` begins at `at`, where a `<` is.
    fn is_end_tag(&self, at: usize, name: &[u8]) -> bool {
        let rest = &self.bytes()[at..];
        rest.len() > name.len() + 2
            && rest[1] == b'/'
            && rest[2..2 + name.len()].eq_ignore_ascii_case(name)
            && matches!(rest[2 + name.len()], b'\t' | b'\n' | 0x0c | b'\r' | b' ' | b'/' | b'>')
    }

    /// End of raw text that begins at `from`: the position of the end tag, or the end.
    fn raw_end(&self, from: usize, name: &[u8]) -> usize {
        let mut at = from;
        while let Some(angle) = self.next_at(b'<', at) {
            if self.is_end_tag(angle, name) {
                return angle;
            }
            at = angle + 1;
        }
        self.html.len()
    }

    /// End of a script that begins at `from`. Inside `<!-- … -->` a `<script>` hides the next
    /// `</script>`.
    fn script_end(&self, from: usize) -> usize {
        let bytes = self.bytes();
        let (mut escaped, mut double) = (false, false);
        let mut at = from;
        while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'<', b'-', rest)) {
            at += found;
            let rest = &bytes[at..];
            if rest.starts_with(b"-->") {
                (escaped, double) = (false, false);
                at += 3;
            } else if rest.starts_with(b"<!--") && !escaped {
                escaped = true;
                // The dashes also count for a `-->`: `<!-->` is empty.
                at += 2;
            } else if self.is_end_tag(at, b"script") {
                if !double {
                    return at;
                }
                double = false;
                at += 8;
            } else if escaped
                && !double
                && rest.len() > 7
                && rest[1..7].eq_ignore_ascii_case(b"script")
                && (rest[7].is_ascii_whitespace() || matches!(rest[7], b'/' | b'>'))
            {
                double = true;
                at += 7;
            } else {
                at += 1;
            }
        }
        self.html.len()
    }

    /// The token of a start tag whose name begins at `from`.
    fn start_tag(&mut self, from: usize) -> Option<Token<'a>> {
        let end = self.name_end(from);
        let name = &self.bytes()[from..end];
        let tag = Tag::from_name(name);
        let Some((after, self_closing)) = self.after_attributes(end) else {
            // The text ends inside the tag.
            self.at = self.html.len();
            return None;
        };
        self.at = after;
        let content_end = match tag.content() {
            Content::Markup => {
                return Some(Token::Start(tag, self_closing, self.slice(end, after)));
            }
            Content::Raw => self.raw_end(after, name),
            Content::Script => self.script_end(after),
            Content::Plaintext => self.html.len(),
        };
        let content = self.slice(after, content_end);
        self.at = match self.bytes().get(content_end) {
            Some(_) => self
                .after_attributes(content_end + 2 + name.len())
                .map_or(self.html.len(), |(after, _)| after),
            None => content_end,
        };
        Some(Token::Raw(tag, content))
    }
}

impl<'a> Iterator for Tokenizer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let bytes = self.bytes();
        while self.at < bytes.len() {
            let from = self.at;
            if bytes[from] != b'<' {
                let end = self.next_at(b'<', from).unwrap_or(bytes.len());
                self.at = end;
                return Some(Token::Text(self.slice(from, end)));
            }
            match bytes.get(from + 1) {
                Some(byte) if byte.is_ascii_alphabetic() => {
                    if let Some(token) = self.start_tag(from + 1) {
                        return Some(token);
                    }
                }
                Some(b'/') => match bytes.get(from + 2) {
                    Some(byte) if byte.is_ascii_alphabetic() => {
                        let end = self.name_end(from + 2);
                        let tag = Tag::from_name(&bytes[from + 2..end]);
                        self.at = match self.after_attributes(end) {
                            Some((after, _)) => after,
                            None => {
                                self.at = bytes.len();
                                return None;
                            }
                        };
                        return Some(Token::End(tag));
                    }
                    None => {
                        self.at = bytes.len();
                        return Some(Token::Text(self.slice(from, bytes.len())));
                    }
                    _ => self.at = self.after_angle(from + 2),
                },
                Some(b'!') if bytes[from..].starts_with(b"<!--") => {
                    self.at = self.after_comment(from + 4);
                }
                Some(b'!' | b'?') => self.at = self.after_angle(from + 2),
                _ => {
                    // A `<` that begins no tag is text.
                    let end = self.next_at(b'<', from + 1).unwrap_or(bytes.len());
                    self.at = end;
                    return Some(Token::Text(self.slice(from, end)));
                }
            }
        }
        None
    }
}
