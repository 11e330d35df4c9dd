//! How much of a text is UTF-8.

/// Good and bad sequences for each other that make a text UTF-8 where nothing says what it is, or
/// something else is said.
const GOOD_FOR_A_BAD: usize = 2;
/// Bad sequences for each good one up to which a declaration of UTF-8 is believed.
const BAD_FOR_A_GOOD: usize = 4;

/// What a text looks like as UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Survey {
    /// Characters of several bytes.
    pub good: usize,
    /// Sequences that are none, but for a character that the beginning or the end of the text cuts.
    pub bad: usize,
    /// Bytes that are not ASCII.
    pub high_bytes: usize,
    /// The beginning or the end cuts a character.
    pub cut: bool,
}

impl Survey {
    pub fn of(bytes: &[u8]) -> Self {
        let continues = |byte: &&u8| **byte & 0xc0 == 0x80;
        let left = bytes.iter().take(3).take_while(continues).count();
        let mut survey = Self { high_bytes: left, cut: left > 0, ..Self::default() };
        let mut rest = bytes.len() - left;
        for chunk in bytes[left..].utf8_chunks() {
            let (valid, invalid) = (chunk.valid(), chunk.invalid());
            survey.good += valid.bytes().filter(|&byte| byte >= 0xc0).count();
            survey.high_bytes += valid.bytes().filter(|&byte| byte >= 0x80).count() + invalid.len();
            rest -= valid.len() + invalid.len();
            match invalid {
                [] => {}
                cut if rest == 0 && is_beginning(cut) => survey.cut = true,
                _ => survey.bad += 1,
            }
        }
        survey
    }

    /// Whether the text is UTF-8. Others hardly ever have such sequences: one in ten pairs of GBK
    /// is one, fewer of other encodings.
    pub fn is_utf8(&self, declared: bool) -> bool {
        if declared {
            let nothing_else = self.good == 0 && self.bad == 0 && self.cut;
            return nothing_else || self.good > 0 && self.bad <= BAD_FOR_A_GOOD * self.good;
        }
        self.good > 0 && self.good >= GOOD_FOR_A_BAD * self.bad
    }
}

/// Whether `bytes` are the beginning of a character.
fn is_beginning(bytes: &[u8]) -> bool {
    let length = match bytes[0] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return false,
    };
    bytes.len() < length && bytes[1..].iter().all(|byte| byte & 0xc0 == 0x80)
}
