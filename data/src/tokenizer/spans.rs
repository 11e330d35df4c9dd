//! Where in a text each token stands.

use std::ops::Range;

use super::hugging_face::HuggingFace;
use super::sentencepiece::SentencePiece;
use super::{Codec, PieceType, SPACE, Tokenizer, codec};
use crate::error::Result;

/// A token and the bytes of the text it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    /// Its id.
    pub id: u32,
    /// Bytes of the text. Spans follow one another without a gap. That of a dummy prefix alone is empty; of
    /// the byte tokens of one character each has at most the rest of it.
    pub bytes: Range<usize>,
}

impl Tokenizer {
    /// The ids of [`Tokenizer::encode`], each with the bytes of `text` it stands for.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_spans(&self, text: &str) -> Result<Vec<TokenSpan>> {
        match &self.codec {
            Codec::HuggingFace(codec) => codec.encode_with_spans(text),
            Codec::SentencePiece(codec) if codec.encoder.is_none() => codec.encode_with_spans(text),
            Codec::SentencePiece(_) => self.spans_of_words(text),
        }
    }

    /// The spans of a text that is encoded word by word, from the lengths of the pieces.
    fn spans_of_words(&self, text: &str) -> Result<Vec<TokenSpan>> {
        let ids = self.encode(text)?;
        let mut place = Place::new(text, self.adds_dummy_prefix());
        let mut spans = Vec::with_capacity(ids.len());
        for id in ids {
            let begin = place.at;
            let written = match self.piece(id) {
                Some(piece) => match piece.kind {
                    PieceType::Byte(_) => 1,
                    _ => piece.text.len(),
                },
                None => 0,
            };
            if !place.advance(written) {
                return Err(codec("encode", "the tokens are longer than their text"));
            }
            spans.push(TokenSpan { id, bytes: begin..place.at });
        }
        match place.at == text.len() {
            true => Ok(spans),
            false => Err(codec("encode", "the tokens are shorter than their text")),
        }
    }
}

impl SentencePiece {
    /// As [`Tokenizer::encode_with_spans`], by the `sentencepiece` crate.
    fn encode_with_spans(&self, text: &str) -> Result<Vec<TokenSpan>> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let pieces = self
            .processor
            .encode(text)
            .map_err(|_| codec("encode", "SentencePiece cannot cut this text"))?;
        let span = |(begin, end): (u32, u32)| begin as usize..end as usize;
        let token =
            |piece: sentencepiece::PieceWithId| TokenSpan { id: piece.id, bytes: span(piece.span) };
        Ok(pieces.into_iter().map(token).collect())
    }
}

impl HuggingFace {
    /// As [`Tokenizer::encode_with_spans`]. The crate leaves spaces out of spans and gives all of a
    /// character to each of its tokens: here a token begins where the one before it ends, and a
    /// character is that of its last token.
    fn encode_with_spans(&self, text: &str) -> Result<Vec<TokenSpan>> {
        let tokens = self.encode_with_offsets(text)?;
        let mut begin = 0;
        let mut spans = Vec::with_capacity(tokens.len());
        for (n, (id, (_, end))) in tokens.iter().enumerate() {
            let end = match tokens.get(n + 1) {
                Some((_, (next, _))) => (*end).min(*next).clamp(begin, text.len()),
                None => text.len(),
            };
            spans.push(TokenSpan { id: *id, bytes: begin..end });
            begin = end;
        }
        Ok(spans)
    }
}

/// A place in a text while its tokens are gone through. Tokens are written in normalized text, which has
/// `▁` where the text has a space, and one before it when there is a dummy prefix.
struct Place<'a> {
    text: &'a [u8],
    /// Bytes of the text before the place.
    at: usize,
    /// Bytes of the dummy prefix that are still to come.
    prefix: usize,
    /// Bytes of `▁` that tokens had of the space at the place.
    of_space: usize,
}

impl<'a> Place<'a> {
    fn new(text: &'a str, dummy_prefix: bool) -> Self {
        let prefix = if dummy_prefix && !text.is_empty() { SPACE.len() } else { 0 };
        Self { text: text.as_bytes(), at: 0, prefix, of_space: 0 }
    }

    /// Moves on by `written` bytes of normalized text; false where there are fewer.
    fn advance(&mut self, mut written: usize) -> bool {
        while written > 0 {
            if self.prefix > 0 {
                let taken = written.min(self.prefix);
                self.prefix -= taken;
                written -= taken;
                continue;
            }
            match self.text.get(self.at) {
                None => return false,
                Some(b' ') => {
                    let taken = written.min(SPACE.len() - self.of_space);
                    self.of_space += taken;
                    written -= taken;
                    if self.of_space == SPACE.len() {
                        self.of_space = 0;
                        self.at += 1;
                    }
                }
                Some(_) => {
                    self.at += 1;
                    written -= 1;
                }
            }
        }
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The spans are those of SentencePiece itself; of the byte tokens of one character it gives all the
    /// bytes to the last.
    #[test]
    fn spans_are_those_of_sentencepiece() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tokenizer");
        let tokenizer = Tokenizer::open(&folder.join("tokenizer.model")).unwrap();
        assert!(tokenizer.encodes_by_words());
        for text in [
            "",
            "a",
            " a",
            "  a  b ",
            "The quick brown fox.",
            "naïve café",
            "日本 語 テスト",
            "🙂 x",
            "a\nb\n\n c",
            "<s>a</s>",
            "1234 5.6",
            "▁a ▁ b",
            "\t \u{3000}é",
            " ",
            "ASSISTANT: yes",
        ] {
            let ours = tokenizer.encode_with_spans(text).unwrap();
            let Codec::SentencePiece(codec) = &tokenizer.codec else { unreachable!() };
            let theirs = codec.encode_with_spans(text).unwrap();
            assert_eq!(ours.len(), theirs.len(), "{text:?}");
            let mut end = 0;
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours.id, theirs.id, "{text:?}");
                assert_eq!(ours.bytes.start, end, "{text:?}");
                end = ours.bytes.end;
                let is_byte = matches!(tokenizer.piece(ours.id).unwrap().kind, PieceType::Byte(_));
                if !is_byte {
                    assert_eq!(ours.bytes, theirs.bytes, "{text:?}");
                }
            }
            assert_eq!(end, text.len(), "{text:?}");
        }
    }

    /// Those of a `tokenizer.json` are too: a token begins where a character does, at the byte that the
    /// pieces before it come to.
    #[test]
    fn spans_of_a_tokenizer_json_begin_where_the_pieces_do() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
        for folder in ["tokenizer", "byte_level_bpe"] {
            let tokenizer = Tokenizer::open(&golden.join(folder).join("tokenizer.json")).unwrap();
            for text in
                ["", "a", " a", "  a  b ", "naïve café, 日本 語", "🙂 x\n\n c", "1234 5.6 <s>a</s>"]
            {
                let spans = tokenizer.encode_with_spans(text).unwrap();
                let ids: Vec<u32> = spans.iter().map(|span| span.id).collect();
                assert_eq!(ids, tokenizer.encode(text).unwrap(), "{folder} {text:?}");
                let (mut end, mut written) = (0, 0);
                for span in &spans {
                    assert_eq!(span.bytes.start, end, "{folder} {text:?} {spans:?}");
                    end = span.bytes.end;
                    written += tokenizer.piece_bytes(span.id).unwrap().len();
                    let of_text = written - usize::from(tokenizer.adds_dummy_prefix());
                    if text.is_char_boundary(of_text) {
                        assert_eq!(end, of_text, "{folder} {text:?} {spans:?}");
                    }
                }
                assert_eq!(end, text.len(), "{folder} {text:?}");
            }
        }
    }
}
