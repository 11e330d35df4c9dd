//! Decoding one id at a time, for streaming to a terminal: no broken UTF-8 is ever emitted.

use super::hugging_face::{Spelling, Window, bytes_of};
use super::{Codec, PieceType, SPACE, Tokenizer};

/// Longest UTF-8 sequence in bytes.
const LONGEST: usize = 4;

/// Decodes ids as they come. The strings returned by [`StreamDecoder::push`] and
/// [`StreamDecoder::finish`], joined, equal [`Tokenizer::decode`] of all the ids.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes of byte pieces that are not yet a whole character.
    pending: Vec<u8>,
    /// No text yet, so that a leading space is the dummy prefix.
    at_start: bool,
    /// The last ids, where only the crate knows how pieces are joined.
    window: Window,
}

impl<'a> StreamDecoder<'a> {
    /// A decoder at the beginning of a text: the dummy prefix is dropped.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, pending: Vec::new(), at_start: true, window: Window::default() }
    }

    /// A decoder behind the ids of a prompt: a leading space is text.
    pub fn after_prompt(tokenizer: &'a Tokenizer) -> Self {
        Self { at_start: false, ..Self::new(tokenizer) }
    }

    /// The text that `id` completes; empty for marks and for a part of a character. An id
    /// outside the vocabulary has no text.
    pub fn push(&mut self, id: u32) -> String {
        let Some(piece) = self.tokenizer.piece(id) else {
            return String::new();
        };
        let mut out = String::new();
        if let Codec::HuggingFace(codec) = &self.tokenizer.codec {
            match codec.spelling {
                Spelling::Other => return self.window.push(codec, id),
                Spelling::ByteLevel => {
                    if piece.kind != PieceType::Control {
                        self.pending.extend(bytes_of(&piece.text));
                        self.drain_lossy(&mut out, false);
                    }
                    return out;
                }
                Spelling::Spaces { .. } => {}
            }
        }
        if let PieceType::Byte(byte) = piece.kind {
            self.pending.push(byte);
            self.drain(&mut out, false);
        } else {
            self.drain(&mut out, true);
            let text = match piece.kind {
                PieceType::Control => "",
                PieceType::Unknown => self.tokenizer.unknown_surface.as_str(),
                _ => piece.text.as_str(),
            };
            let started = self.at_start && self.tokenizer.add_dummy_prefix && out.is_empty();
            let text = if started && piece.kind != PieceType::Unknown {
                text.strip_prefix(SPACE).unwrap_or(text)
            } else {
                text
            };
            out.push_str(&text.replace(SPACE, " "));
        }
        let silent = matches!(piece.kind, PieceType::Byte(_) | PieceType::Control);
        if !silent || !out.is_empty() {
            self.at_start = false;
        }
        out
    }

    /// The end: what is left of an unfinished character becomes U+FFFD.
    pub fn finish(mut self) -> String {
        let mut out = String::new();
        if let Codec::HuggingFace(codec) = &self.tokenizer.codec {
            match codec.spelling {
                Spelling::Other => return self.window.finish(codec),
                Spelling::ByteLevel => {
                    self.drain_lossy(&mut out, true);
                    return out;
                }
                Spelling::Spaces { .. } => {}
            }
        }
        self.drain(&mut out, true);
        out
    }

    /// Moves whole characters out of the pending bytes, as [`String::from_utf8_lossy`] would write
    /// them; with `all`, an unfinished one too.
    fn drain_lossy(&mut self, out: &mut String, all: bool) {
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let at_end = done + invalid.len() == self.pending.len();
            let unfinished = |error: std::str::Utf8Error| error.error_len().is_none();
            if at_end && !all && std::str::from_utf8(invalid).is_err_and(unfinished) {
                break;
            }
            if !invalid.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
                done += invalid.len();
            }
        }
        self.pending.drain(..done);
    }

    /// Moves whole characters out of the pending bytes. A byte that cannot begin or continue one
    /// becomes U+FFFD; with `all`, so does an unfinished character, byte by byte.
    fn drain(&mut self, out: &mut String, all: bool) {
        let mut done = 0;
        while done < self.pending.len() {
            let rest = &self.pending[done..];
            let head = &rest[..rest.len().min(LONGEST)];
            let (valid, unfinished) = match std::str::from_utf8(head) {
                Ok(text) => (text, false),
                Err(error) => {
                    let valid = &head[..error.valid_up_to()];
                    // Sound by what the error says; an empty text otherwise.
                    let text = std::str::from_utf8(valid).unwrap_or_default();
                    (text, error.error_len().is_none())
                }
            };
            if let Some(first) = valid.chars().next() {
                out.push(first);
                done += first.len_utf8();
            } else if unfinished && rest.len() < LONGEST && !all {
                break;
            } else {
                out.push(char::REPLACEMENT_CHARACTER);
                done += 1;
            }
        }
        self.pending.drain(..done);
    }
}
