//! Which characters stand side by side in some piece, and so where words end.

/// The character for a space inside pieces; the same as a space here.
const SPACE: char = '\u{2581}';

/// Bits for pairs of which one is not ASCII.
const HASHED_BITS: usize = 1 << 18;

/// Pairs of characters that stand side by side in some piece. Exact for ASCII. Other pairs share
/// bits, so that a few more seem to: words are longer then, which changes no id.
pub(super) struct Joins {
    /// Bit `b` of entry `a`.
    ascii: Box<[u128; 128]>,
    hashed: Box<[u64]>,
}

impl Default for Joins {
    /// No pairs.
    fn default() -> Self {
        Self { ascii: Box::new([0; 128]), hashed: vec![0; HASHED_BITS / 64].into() }
    }
}

/// The character's number, where `▁` is a space.
pub(super) fn folded(character: char) -> u32 {
    u32::from(if character == SPACE { ' ' } else { character })
}

impl Joins {
    /// Adds the pairs of a piece. A piece with a space is never found: spaces are `▁` by then.
    pub fn add(&mut self, piece: &str) {
        if piece.contains(' ') {
            return;
        }
        let mut previous = None;
        for character in piece.chars() {
            let b = folded(character);
            if let Some(a) = previous.replace(b) {
                if (a | b) < 128 {
                    self.ascii[a as usize] |= 1 << b;
                } else {
                    let bit = hash(a, b);
                    self.hashed[bit / 64] |= 1 << (bit % 64);
                }
            }
        }
    }

    /// Whether a piece may have `a` and `b` side by side.
    pub fn have(&self, a: char, b: char) -> bool {
        self.have_folded(folded(a), folded(b))
    }

    #[inline]
    fn have_folded(&self, a: u32, b: u32) -> bool {
        if (a | b) < 128 {
            self.ascii[a as usize] >> b & 1 != 0
        } else {
            let bit = hash(a, b);
            self.hashed[bit / 64] >> (bit % 64) & 1 != 0
        }
    }

    /// Where the word that begins at byte `start` of `text` ends: the first place behind it that
    /// no piece can cross. `start` is before the end of `text`, at the beginning of a character.
    #[inline]
    pub fn end_of_word(&self, text: &str, start: usize) -> usize {
        let bytes = text.as_bytes();
        let mut at = start;
        let mut previous = None;
        while let Some(&byte) = bytes.get(at) {
            let (code, length) = if byte < 128 {
                (u32::from(byte), 1)
            } else {
                // `at` is always at the beginning of a character.
                let character = text.get(at..).and_then(|rest| rest.chars().next());
                character.map_or((0, 1), |character| (folded(character), character.len_utf8()))
            };
            if previous.is_some_and(|previous| !self.have_folded(previous, code)) {
                return at;
            }
            previous = Some(code);
            at += length;
        }
        at
    }
}

fn hash(a: u32, b: u32) -> usize {
    // A character has 21 bits. The multiplier is 2^64 divided by the golden ratio.
    let mixed = (u64::from(a) << 21 | u64::from(b)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 46) as usize % HASHED_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_end_where_no_piece_goes_on() {
        let mut joins = Joins::default();
        for piece in ["▁the", "▁▁", "nä", "日本", "a b"] {
            joins.add(piece);
        }
        let words = |text: &str| {
            let mut words = Vec::new();
            let mut at = 0;
            while at < text.len() {
                let end = joins.end_of_word(text, at);
                words.push(text[at..end].to_owned());
                at = end;
            }
            words
        };
        assert_eq!(words("the  the\u{2581}the"), ["the", "  the", "\u{2581}the"]);
        assert_eq!(words("12\n\n"), ["1", "2", "\n", "\n"]);
        assert_eq!(words("nän日本語"), ["nä", "n", "日本", "語"]);
        // A piece with a space in it joins nothing.
        assert!(!joins.have('a', ' ') && !joins.have(' ', 'b'));
        assert!(joins.have(' ', '\u{2581}') && joins.have('t', 'h') && !joins.have('h', 't'));
    }
}
