//! Text that was encoded twice: UTF-8 that somebody took for windows-1252 and encoded again.

/// How often a text can have been encoded anew.
const ROUNDS: usize = 3;

/// `text` with its second encoding undone, `cafÃ©` as `café`; None when it has none. What is right
/// already, beside what is not, stays.
pub fn fix_mojibake(text: &str) -> Option<String> {
    let mut fixed = fix_once(text)?;
    for _ in 1..ROUNDS {
        match fix_once(&fixed) {
            Some(again) => fixed = again,
            None => break,
        }
    }
    Some(fixed)
}

/// Undoes one encoding. Every run of characters that windows-1252 has bytes for is looked at: the
/// parts of it that are UTF-8 of several bytes become what they are.
fn fix_once(text: &str) -> Option<String> {
    // The first byte of nearly all such sequences is one of these.
    let leads = |c: char| ('\u{c2}'..='\u{f4}').contains(&c);
    if !text.contains(leads) {
        return None;
    }
    let mut fixed = String::with_capacity(text.len());
    let mut changed = false;
    let mut rest = text;
    while let Some(at) = rest.find(leads) {
        fixed.push_str(&rest[..at]);
        rest = &rest[at..];
        match sequence(rest) {
            Some((c, length)) => {
                fixed.push(c);
                changed = true;
                rest = &rest[length..];
            }
            None => {
                let c = rest.chars().next()?;
                fixed.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    fixed.push_str(rest);
    changed.then_some(fixed)
}

/// The character that the beginning of `text` is the bytes of, and how much of `text` it takes.
fn sequence(text: &str) -> Option<(char, usize)> {
    let mut bytes = [0; 4];
    let mut wanted = 1;
    let mut length = 0;
    for (index, c) in text.chars().enumerate() {
        let byte = byte_of(c)?;
        if index == 0 {
            wanted = match byte {
                0xc2..=0xdf => 2,
                0xe0..=0xef => 3,
                0xf0..=0xf4 => 4,
                _ => return None,
            };
        } else if byte & 0xc0 != 0x80 {
            return None;
        }
        bytes[index] = byte;
        length += c.len_utf8();
        if index + 1 == wanted {
            let c = std::str::from_utf8(&bytes[..wanted]).ok()?.chars().next()?;
            return Some((c, length));
        }
    }
    None
}

/// The byte of windows-1252 for `c`. Its five bytes without a character stand for controls.
fn byte_of(c: char) -> Option<u8> {
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match c {
        '\u{80}'..='\u{ff}' => Some(c as u8),
        _ => HIGH.iter().position(|&high| high == c).map(|at| 0x80 + at as u8),
    }
}
