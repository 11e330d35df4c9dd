//! Trains BPE tokenizers: gives the pieces of SentencePiece 0.2.3 with LLaMA's options (digits one by
//! one, byte fallback, no normalization) in a fraction of the time.
//!
//! 1. Words are counted while the sample is drawn, so the sample itself is not kept (`words`).
//! 2. The most frequent characters get a piece of their own (`alphabet`).
//! 3. Words are cut where no piece can lie across, which makes equal ones of many (`segments`).
//! 4. The most frequent pair is merged, again and again (`merges`).
//!
//! Of equally frequent pairs the one with fewer characters is merged first, of those the first in the
//! order of code points. Where two pairs make the same piece just as often, the first seen is merged;
//! SentencePiece takes either.

mod alphabet;
mod merges;
mod queue;
mod script;
mod segments;
mod words;

use self::alphabet::Alphabet;
use self::merges::Merges;
use self::segments::{Kind, Segments};
pub(super) use self::words::WordCounts;
use super::model_proto::{BpeModel, Piece, PieceType};
use crate::error::{DataError, Result};
use crate::progress::Progress;

/// The first pieces: what no piece covers, the mark before a document and the one behind it.
const MARKS: [&str; 3] = ["<unk>", "<s>", "</s>"];
/// Pieces after which the progress hears of them.
const PIECES_COUNTED: usize = 64;

/// The bytes of a model of `vocab_size` pieces for texts with these words. Characters that make up
/// the share `character_coverage` of the text have a piece of their own.
///
/// # Errors
/// [`DataError::TokenizerTraining`] when there is no text, or the vocabulary is too small for its
/// characters or too large for what it gives.
pub(super) fn train(
    words: &WordCounts,
    vocab_size: usize,
    character_coverage: f64,
    progress: &Progress,
) -> Result<Vec<u8>> {
    let fail = |message: String| DataError::TokenizerTraining { message };
    progress.phase("cutting words");
    let Some(alphabet) = Alphabet::of(words, character_coverage) else {
        return Err(fail("there is no text to train on".into()));
    };
    let mut pieces = marks_and_bytes();
    let given = pieces.len() + alphabet.characters.len();
    let Some(merged) = vocab_size.checked_sub(given) else {
        return Err(fail(format!(
            "a `vocab_size` of {vocab_size} is too small for the text, whose characters, with the 256 \
             bytes and the 3 marks, need {given}; raise `vocab_size`, or lower `character_coverage`"
        )));
    };
    let kinds: Vec<Kind> = alphabet.characters.iter().map(|c| Kind::of(*c)).collect();
    let segments = Segments::of(words, &alphabet, &kinds);
    let Some(mut merges) = Merges::new(&segments, &alphabet, &kinds) else {
        return Err(fail("the words of the sample are too long; lower `input_bytes`".into()));
    };
    drop(segments);
    progress.begin(merged as u64);
    progress.phase("merging");
    let mut score = 0.0;
    let mut add = |text: String| {
        pieces.push(Piece { text, score: -score, kind: PieceType::Normal });
        score += 1.0;
    };
    for number in 0..merged {
        let Some(piece) = merges.next() else {
            let most = given + number;
            return Err(fail(format!(
                "a `vocab_size` of {vocab_size} is too large for the text, which gives {most} pieces; \
                 lower `vocab_size` to that, or give more text"
            )));
        };
        add(piece.iter().collect());
        if number % PIECES_COUNTED == 0 {
            progress.set_done(number as u64);
        }
    }
    progress.set_done(merged as u64);
    alphabet.characters.iter().for_each(|c| add(c.to_string()));
    let model = BpeModel {
        pieces: &pieces,
        bos: Some(1),
        eos: Some(2),
        padding: None,
        add_dummy_prefix: true,
    };
    Ok(model.to_bytes())
}

/// The pieces that every vocabulary begins with.
fn marks_and_bytes() -> Vec<Piece> {
    let marks = MARKS.into_iter().enumerate().map(|(id, mark)| Piece {
        text: mark.to_owned(),
        score: 0.0,
        kind: if id == 0 { PieceType::Unknown } else { PieceType::Control },
    });
    let bytes = (0..=u8::MAX).map(|byte| Piece {
        text: format!("<0x{byte:02X}>"),
        score: 0.0,
        kind: PieceType::Byte(byte),
    });
    marks.chain(bytes).collect()
}

#[cfg(test)]
mod tests;
