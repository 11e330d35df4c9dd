//! The words of the sample and how often each of them stands there.

use memchr::memmem::Finder;
use rustc_hash::FxHashMap;

use super::super::SPACE;
use super::super::model_proto::PieceType;

/// Stands where a mark or a byte piece is spelled out in the text. No piece has it.
const BOUNDARY: u8 = 0x1f;
/// Marks that a text may spell out, beside the byte pieces.
const MARKS: [&str; 3] = super::MARKS;

/// Counts the words of sentences: spaces with what stands behind them up to the next space. `▁`
/// counts as a space, and a space is put before every sentence, as when a text is encoded. Words have
/// plain spaces.
pub(crate) struct WordCounts {
    counts: FxHashMap<Box<[u8]>, u64>,
    sentence: Vec<u8>,
    first: Vec<u8>,
    space: Finder<'static>,
}

impl Default for WordCounts {
    fn default() -> Self {
        Self {
            counts: FxHashMap::default(),
            sentence: Vec::new(),
            first: Vec::new(),
            space: Finder::new(SPACE),
        }
    }
}

impl WordCounts {
    /// Counts the words of a sentence.
    pub fn add(&mut self, sentence: &str) {
        let bytes = sentence.as_bytes();
        if self.is_plain(bytes) {
            self.count_words(bytes);
            return;
        }
        let mut changed = std::mem::take(&mut self.sentence);
        changed.clear();
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            let rest = &bytes[at..];
            if rest.starts_with(SPACE.as_bytes()) {
                changed.push(b' ');
                at += SPACE.len();
            } else if let Some(length) = mark_length(rest) {
                changed.push(BOUNDARY);
                at += length;
            } else {
                changed.push(*byte);
                at += 1;
            }
        }
        self.count_words(&changed);
        self.sentence = changed;
    }

    /// Whether the sentence has neither `▁` nor what a mark looks like.
    fn is_plain(&self, sentence: &[u8]) -> bool {
        self.space.find(sentence).is_none()
            && memchr::memchr_iter(b'<', sentence).all(|at| mark_length(&sentence[at..]).is_none())
    }

    fn count_words(&mut self, sentence: &[u8]) {
        let mut start = next_word(sentence, 0, true);
        self.first.clear();
        self.first.push(b' ');
        self.first.extend_from_slice(&sentence[..start]);
        let first = std::mem::take(&mut self.first);
        self.count(&first);
        self.first = first;
        while start < sentence.len() {
            let end = next_word(sentence, start, false);
            self.count(&sentence[start..end]);
            start = end;
        }
    }

    fn count(&mut self, word: &[u8]) {
        match self.counts.get_mut(word) {
            Some(count) => *count += 1,
            None => {
                self.counts.insert(word.into(), 1);
            }
        }
    }

    /// Words with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        // Sentences are text and are cut before spaces, so every word is text.
        let text = |word| str::from_utf8(word).unwrap_or_default();
        self.counts.iter().map(move |(word, count)| (text(word), *count))
    }
}

/// Where the word at `start` ends: before the next space that stands behind something else.
fn next_word(sentence: &[u8], start: usize, mut after_space: bool) -> usize {
    for (at, byte) in sentence.iter().enumerate().skip(start) {
        let is_space = *byte == b' ';
        if is_space && !after_space && at > start {
            return at;
        }
        after_space = is_space;
    }
    sentence.len()
}

/// Length of the mark or byte piece that `text` begins with.
fn mark_length(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'<') {
        return None;
    }
    if let Some(mark) = MARKS.iter().find(|mark| text.starts_with(mark.as_bytes())) {
        return Some(mark.len());
    }
    let piece = str::from_utf8(text.get(..BYTE_PIECE)?).ok()?;
    let spelled = PieceType::byte(piece)
        .filter(|_| !piece.bytes().any(|c| c.is_ascii_lowercase() && c != b'x'));
    spelled.map(|_| BYTE_PIECE)
}

/// Length of a byte piece, such as `<0x0A>`.
const BYTE_PIECE: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(sentences: &[&str]) -> Vec<(String, u64)> {
        let mut counts = WordCounts::default();
        for sentence in sentences {
            counts.add(sentence);
        }
        let mut words: Vec<_> =
            counts.iter().map(|(word, count)| (word.to_owned(), count)).collect();
        words.sort();
        words
    }

    #[test]
    fn spaces_belong_to_the_word_behind_them() {
        let counted = words(&["the sea", "the  sea ", "\u{2581}the"]);
        let expected = [(" ", 1), ("  sea", 1), ("  the", 1), (" sea", 1), (" the", 2)];
        assert_eq!(counted, expected.map(|(word, count)| (word.to_owned(), count)));
        assert_eq!(words(&["  "]), [("   ".to_owned(), 1)]);
    }

    #[test]
    fn what_looks_like_a_mark_is_a_boundary() {
        let counted = words(&["a<s>b <0x0A>< <0x0a> <pad>"]);
        let expected = [" <0x0a>", " <pad>", " \u{1f}<", " a\u{1f}b"];
        let mut expected = expected.map(|word| (word.to_owned(), 1));
        expected.sort();
        assert_eq!(counted, expected);
    }
}
