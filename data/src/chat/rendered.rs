//! What a template gave: clean text, where special tokens are in it, and where the assistant speaks.
//!
//! Marks in the raw text tell them apart: characters that Unicode will never assign and that appear
//! neither in the template nor in the conversation.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::Result;
use crate::tokenizer::{PieceType, Tokenizer};

/// The special tokens of a tokenizer: names that a template may write, and their ids.
#[derive(Debug, Clone, Default)]
pub struct SpecialTokens {
    /// The begin token, as templates name it; none in some tokenizers.
    pub bos: Option<String>,
    /// The end token.
    pub eos: Option<String>,
    /// Every special token.
    pub ids: Vec<(String, u32)>,
}

impl SpecialTokens {
    /// The marks of `tokenizer`: those of its pieces that stand for no text.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let name = |id: Option<u32>| Some(tokenizer.piece(id?)?.text.clone());
        let pieces = (0..tokenizer.vocab_size() as u32).filter_map(|id| {
            let piece = tokenizer.piece(id)?;
            let special = piece.kind == PieceType::Control && !piece.text.is_empty();
            special.then(|| (piece.text.clone(), id))
        });
        Self {
            bos: name(tokenizer.bos_id()),
            eos: name(tokenizer.eos_id()),
            ids: pieces.collect(),
        }
    }

    /// The id of a special token.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.ids.iter().find(|(known, _)| known == name).map(|(_, id)| *id)
    }
}

/// A stretch of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of the text that are encoded as a text of their own.
    Text(Range<usize>),
    /// A special token that the template wrote.
    Special {
        /// Bytes of the text that show it.
        bytes: Range<usize>,
        /// Its id.
        id: u32,
    },
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedChat {
    /// All of it, special tokens written out.
    pub text: String,
    /// Its stretches in order.
    pub segments: Vec<Segment>,
    /// Bytes of `text` that the assistant says, end tokens included: what fine-tuning trains. Empty
    /// where it was not asked for.
    pub assistant: Vec<Range<usize>>,
}

impl RenderedChat {
    /// The ids. Every stretch between special tokens is encoded as a text of its own, so what a
    /// message says never becomes a special token.
    ///
    /// # Errors
    /// [`DataError::Codec`](crate::error::DataError::Codec) when the tokenizer cannot encode a stretch.
    pub fn encode(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for segment in &self.segments {
            match segment {
                Segment::Text(bytes) => ids.extend(tokenizer.encode(&self.text[bytes.clone()])?),
                Segment::Special { id, .. } => ids.push(*id),
            }
        }
        Ok(ids)
    }
}

/// Characters that Unicode will never assign: one of them is found in no honest text.
const NONCHARACTERS: Range<u32> = 0xFDD0..0xFDF0;

/// The marks of one rendering.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    /// Stands inside special tokens that a message names.
    pub guard: char,
    /// Stands before what the assistant says.
    pub open: char,
    /// Stands behind it.
    pub close: char,
    /// Stands behind the message that is to be continued.
    pub end: char,
}

impl Marks {
    /// Marks that appear in none of `texts`; none when those use them all.
    pub fn unused<'a>(texts: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        let mut free = NONCHARACTERS
            .filter_map(char::from_u32)
            .filter(|mark| !texts.clone().any(|text| text.contains(*mark)));
        Some(Self { guard: free.next()?, open: free.next()?, close: free.next()?, end: free.next()? })
    }

    /// `text` with a guard inside every special token that it names.
    pub fn guarded(&self, text: &str, specials: &SpecialTokens) -> String {
        let mut guarded = text.to_owned();
        for (name, _) in &specials.ids {
            let mut chars = name.chars();
            if let (Some(first), true) = (chars.next(), guarded.contains(name.as_str())) {
                let broken = format!("{first}{}{}", self.guard, chars.as_str());
                guarded = guarded.replace(name.as_str(), &broken);
            }
        }
        guarded
    }
}

/// Takes the marks out of `raw` and cuts it at special tokens. With `continued` the text ends at the
/// mark `end`, which then has to be there: None where it is not.
pub(super) fn read(
    raw: &str,
    marks: Marks,
    specials: &SpecialTokens,
    continued: bool,
) -> Option<RenderedChat> {
    let raw = match continued {
        true => &raw[..raw.rfind(marks.end)?],
        false => raw,
    };
    let names = specials.ids.iter().map(|(name, _)| name.clone());
    let marked = [marks.guard, marks.open, marks.close, marks.end].map(String::from);
    let patterns: Vec<String> = names.chain(marked).collect();
    let finder =
        AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns).ok()?;
    let mut text = String::with_capacity(raw.len());
    let mut segments = Vec::new();
    let mut assistant = Vec::new();
    let mut opened = None;
    let (mut done, mut begun) = (0, 0);
    for found in finder.find_iter(raw) {
        text.push_str(&raw[done..found.start()]);
        done = found.end();
        let written = &raw[found.start()..found.end()];
        if let Some((_, id)) = specials.ids.get(found.pattern().as_usize()) {
            if text.len() > begun {
                segments.push(Segment::Text(begun..text.len()));
            }
            let start = text.len();
            text.push_str(written);
            segments.push(Segment::Special { bytes: start..text.len(), id: *id });
            begun = text.len();
        } else if written.starts_with(marks.open) {
            opened = Some(text.len());
        } else if written.starts_with(marks.close) {
            assistant.extend(opened.take().map(|start| start..text.len()));
        }
    }
    text.push_str(&raw[done..]);
    if text.len() > begun {
        segments.push(Segment::Text(begun..text.len()));
    }
    Some(RenderedChat { text, segments, assistant })
}
