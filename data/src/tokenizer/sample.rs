//! The text a tokenizer is trained on: lines, drawn evenly from all documents.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::bpe_trainer::WordCounts;
use crate::document::{Document, DocumentFile};
use crate::error::Result;
use crate::progress::Progress;

/// Longest sentence in bytes. SentencePiece's trainer skips longer ones, and a word of more than 65535
/// characters would stop the process, so longer lines are cut.
pub(crate) const SENTENCE_BYTES: usize = 4096;

/// Character that SentencePiece keeps for itself: it skips sentences that have it.
pub(crate) const RESERVED: char = '\u{2585}';

/// The words of the sentences that were drawn.
#[derive(Default)]
pub(super) struct Sample {
    pub words: WordCounts,
    pub bytes: usize,
    pub sentences: u64,
    pub documents: u64,
}

/// Draws at most `cap` bytes. A line is taken or not by the hash of its document's id and its
/// number, so every document gives about the same share and the result depends on nothing else.
pub(super) fn draw(
    files: &[DocumentFile],
    cap: usize,
    seed: u64,
    progress: &Progress,
) -> Result<Sample> {
    let total = files.iter().map(|file| file.text_bytes).fold(0, u64::saturating_add);
    let share = cap as f64 / total.max(1) as f64;
    let below = if share >= 1.0 { u64::MAX } else { (share * u64::MAX as f64) as u64 };
    let mut sample = Sample::default();
    for file in files {
        for document in file.reader()? {
            let document = document?;
            progress.add(document.text.len() as u64);
            if !sample.add(&document, below, cap, seed) {
                return Ok(sample);
            }
        }
        progress.item_done();
    }
    Ok(sample)
}

impl Sample {
    /// Adds the lines of `document` that are drawn; false when the cap is reached.
    fn add(&mut self, document: &Document, below: u64, cap: usize, seed: u64) -> bool {
        self.documents += 1;
        let key = xxh3_64_with_seed(document.id.as_bytes(), seed);
        for (number, line) in document.text.split('\n').enumerate() {
            let drawn = xxh3_64_with_seed(&(number as u64).to_le_bytes(), key) <= below;
            if !drawn {
                continue;
            }
            for sentence in sentences(line) {
                if sentence.contains(RESERVED) {
                    continue;
                }
                if self.bytes + sentence.len() > cap {
                    return false;
                }
                self.words.add(sentence);
                self.bytes += sentence.len();
                self.sentences += 1;
            }
        }
        true
    }
}

/// `line` in parts of at most [`SENTENCE_BYTES`], cut before a space where there is one.
pub(crate) fn sentences(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if rest.len() <= SENTENCE_BYTES {
            return Some(std::mem::take(&mut rest));
        }
        let bound = rest.floor_char_boundary(SENTENCE_BYTES);
        let cut = match rest[..bound].rfind(' ') {
            Some(at) if at > 0 => at,
            _ => bound,
        };
        let (sentence, after) = rest.split_at(cut);
        rest = after;
        Some(sentence)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_before_spaces_without_losing_text() {
        let line = format!("{} {}", "word ".repeat(2000), "é".repeat(9000));
        let parts: Vec<&str> = sentences(&line).collect();
        assert_eq!(parts.concat(), line);
        assert!(parts.iter().all(|part| part.len() <= SENTENCE_BYTES));
        assert!(parts[1].starts_with(" word"));
        assert_eq!(sentences("").count(), 0);
    }

    #[test]
    fn a_share_of_the_lines_of_every_document_is_drawn() {
        let mut sample = Sample::default();
        for index in 0..20 {
            let document = Document {
                id: format!("d{index}"),
                text: "0123456789\n".repeat(1000),
                ..Document::default()
            };
            let before = sample.bytes;
            assert!(sample.add(&document, u64::MAX / 4, usize::MAX, 1));
            let drawn = sample.bytes - before;
            assert!((2000..3000).contains(&drawn), "{drawn}");
        }
    }
}
