//! The scripts of characters, from SentencePiece's own table.

/// A script as pieces see it: Hiragana and Katakana are Han, since Japanese words have all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Takes the script of what stands before it: accents, for example.
    Inherited,
    /// The script with this number.
    Of(i32),
}

impl Script {
    /// The script of `c`; a character that the table does not have is common to all scripts.
    pub fn of(c: char) -> Self {
        const LONG_VOWEL: char = '\u{30fc}';
        let script = number(c);
        if script == number('\u{300}') {
            Self::Inherited
        } else if script == number('あ') || script == number('ア') || c == LONG_VOWEL {
            Self::Of(number('一'))
        } else {
            Self::Of(script)
        }
    }
}

/// The number of the script of `c`.
fn number(c: char) -> i32 {
    // SAFETY: looks a number up in a table that is made once, by the first call.
    unsafe { altiplano_spm_script(c.into()) }
}

unsafe extern "C" {
    fn altiplano_spm_script(c: u32) -> i32;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_told_apart() {
        assert_eq!(Script::of('a'), Script::of('é'));
        assert_ne!(Script::of('a'), Script::of('я'));
        assert_ne!(Script::of('a'), Script::of('.'));
        assert_eq!(Script::of('\u{301}'), Script::Inherited);
        for japanese in ['ひ', 'カ', 'ー', '日'] {
            assert_eq!(Script::of(japanese), Script::of('中'), "{japanese}");
        }
    }
}
