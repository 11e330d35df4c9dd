//! Which encoding bytes are in when nothing says it.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::Encoding;

use super::labels::{CP437, CP850, Charset};

/// Bytes the detector looks at; more does not change its guess.
const DETECTOR_BYTES: usize = 1 << 20;
/// Pieces that vote when one bad byte may have misled the detector.
const PIECES: usize = 16;
/// Bad bytes that the encoding of most pieces may have, though another has fewer.
const BAD_VOTED: usize = 16;
/// Bytes at the beginning that show whether a text is UTF-16.
const UTF16_BYTES: usize = 1 << 14;

/// The encoding of `bytes`, which are not UTF-8.
pub(super) fn detect(bytes: &[u8]) -> Charset {
    let bytes = &bytes[..bytes.len().min(DETECTOR_BYTES)];
    let guess = guess(bytes);
    let bad = |encoding: &'static Encoding| {
        let (text, lossy) = encoding.decode_without_bom_handling(bytes);
        if lossy { text.matches(char::REPLACEMENT_CHARACTER).count() } else { 0 }
    };
    if !guess.is_single_byte()
        && let Some(old) = old_encoding(bytes, guess)
    {
        return old;
    }
    let guess_bad = if guess.is_single_byte() { 0 } else { bad(guess) };
    if guess.is_single_byte() || guess_bad > 0 {
        let voted = vote(bytes).filter(|&voted| {
            guess.is_single_byte() || voted != guess && bad(voted) <= guess_bad.max(BAD_VOTED)
        });
        if let Some(voted) = voted {
            return Charset::Web(voted);
        }
    }
    if !guess.is_single_byte() {
        return Charset::Web(guess);
    }
    old_encoding(bytes, guess).unwrap_or_else(|| Charset::Web(western(bytes, guess)))
}

/// The encoding that the detector does not know and in which `bytes` read far better than in `guess`:
/// the Macintosh's own, or a code page of DOS.
fn old_encoding(bytes: &[u8], guess: &'static Encoding) -> Option<Charset> {
    let text = guess.decode_without_bom_handling(bytes).0;
    let odd = oddities(&text);
    // Text of characters of several bytes stands among its own kind; a Latin text taken for it is odd
    // all over.
    let high = text.chars().filter(|c| !c.is_ascii()).count();
    if odd == 0 || !guess.is_single_byte() && 2 * odd < high {
        return None;
    }
    let macintosh = Charset::Web(encoding_rs::MACINTOSH);
    let old = [macintosh, Charset::Dos(&CP850), Charset::Dos(&CP437)];
    let least = old.map(|charset| (oddities(&charset.decode(bytes).0), charset)).into_iter();
    let (left, charset) = least.min_by_key(|(odd, _)| *odd)?;
    (left * 4 < odd).then_some(charset)
}

/// Encodings of languages in Latin letters beside windows-1252, which share most of its letters and
/// have letters where it has signs.
fn is_other_latin(encoding: &'static Encoding) -> bool {
    [
        encoding_rs::ISO_8859_2,
        encoding_rs::ISO_8859_3,
        encoding_rs::ISO_8859_4,
        encoding_rs::ISO_8859_10,
        encoding_rs::ISO_8859_13,
        encoding_rs::ISO_8859_14,
        encoding_rs::ISO_8859_16,
        encoding_rs::WINDOWS_1250,
        encoding_rs::WINDOWS_1254,
        encoding_rs::WINDOWS_1257,
        encoding_rs::WINDOWS_1258,
    ]
    .contains(&encoding)
}

/// What the detector takes for another Latin encoding, or for windows-1252, as it reads better.
///
/// A text with a sign or two, a pound or a copyright, gives the detector no words to go by: it is in
/// windows-1252 if its signs stand alone there and were letters beside no letter in the guess. And the
/// Hungarian ő and ű are the õ and û of windows-1252, whose other letters it shares.
fn western(bytes: &[u8], guess: &'static Encoding) -> &'static Encoding {
    let windows_1252 = encoding_rs::WINDOWS_1252;
    let text = windows_1252.decode_without_bom_handling(bytes).0;
    if guess == windows_1252 && is_hungarian(&text) {
        return encoding_rs::WINDOWS_1250;
    }
    let other = is_other_latin(guess).then(|| guess.decode_without_bom_handling(bytes).0);
    match other {
        Some(other) if oddities(&text) == 0 && lonely_letters(&other) > lonely_letters(&text) => {
            windows_1252
        }
        _ => guess,
    }
}

/// How many characters `counts` holds for, given those before and behind them.
fn count(text: &str, counts: impl Fn(char, char, char) -> bool) -> usize {
    let mut before = ' ';
    let mut characters = text.chars().peekable();
    let mut count = 0;
    while let Some(c) = characters.next() {
        let after = characters.peek().copied().unwrap_or(' ');
        count += usize::from(counts(before, c, after));
        before = c;
    }
    count
}

/// Letters outside ASCII with no letter beside them.
fn lonely_letters(text: &str) -> usize {
    count(text, |before, c, after| {
        let lonely = !before.is_alphabetic() && !after.is_alphabetic();
        lonely && !c.is_ascii() && c.is_alphabetic() && !is_sign(c)
    })
}

/// Whether the letters of `text`, decoded as windows-1252, are those of Hungarian: õ or û, and otherwise
/// vowels with an acute or a diaeresis. Portuguese has õ before e alone; Estonian has no acute.
fn is_hungarian(text: &str) -> bool {
    let (mut doubled, mut acute) = (false, false);
    let mut characters = text.chars().flat_map(char::to_lowercase).peekable();
    while let Some(c) = characters.next() {
        match c {
            'õ' => doubled |= characters.peek() != Some(&'e'),
            'û' => doubled = true,
            'á' | 'í' | 'ó' | 'ú' => acute = true,
            'é' | 'ö' | 'ü' => {}
            c if !c.is_ascii() && c.is_alphabetic() && !is_sign(c) => return false,
            _ => {}
        }
    }
    doubled && acute
}

/// Characters that count as letters and are written as signs.
fn is_sign(c: char) -> bool {
    matches!(c, 'ª' | 'º' | 'µ')
}

fn guess(bytes: &[u8]) -> &'static Encoding {
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    // The end may cut a character, which is no reason against an encoding.
    detector.feed(bytes, bytes.last().is_some_and(u8::is_ascii));
    detector.guess(None, Utf8Detection::Allow)
}

/// One byte that means nothing rules an encoding out for good, though the rest of a long text is in
/// it. So its pieces are asked one by one: the encoding of several bytes a character that most of
/// them are in.
fn vote(bytes: &[u8]) -> Option<&'static Encoding> {
    let most = bytes.len().div_ceil(PIECES).max(64);
    let mut votes: Vec<(&'static Encoding, usize)> = Vec::new();
    let (mut from, mut all) = (0, 0);
    while from < bytes.len() {
        let end = (from + most).min(bytes.len());
        // Characters of several bytes do not reach over a line end.
        let end = memchr::memchr(b'\n', &bytes[end..]).map_or(bytes.len(), |at| end + at + 1);
        let piece = &bytes[from..end];
        from = end;
        let high = piece.iter().filter(|byte| !byte.is_ascii()).count();
        if high == 0 {
            continue;
        }
        all += high;
        let guess = guess(piece);
        match votes.iter_mut().find(|(encoding, _)| *encoding == guess) {
            Some((_, count)) => *count += high,
            None => votes.push((guess, high)),
        }
    }
    let (encoding, count) = votes.into_iter().max_by_key(|(_, count)| *count)?;
    (!encoding.is_single_byte() && encoding != encoding_rs::UTF_8 && count * 2 > all)
        .then_some(encoding)
}

/// Whether `text` reads as text that somebody wrote.
pub(super) fn is_plausible(text: &str) -> bool {
    let high = text.chars().filter(|c| !c.is_ascii()).count();
    oddities(text) * 4 <= high
}

/// Characters that do not stand where they stand: a control, a capital or a sign inside a word of
/// small letters, a letter of another alphabet beside a Latin one.
fn oddities(text: &str) -> usize {
    count(text, |before, c, after| !c.is_ascii() && is_odd(before, c, after))
}

fn is_odd(before: char, c: char, after: char) -> bool {
    if c.is_control() {
        return true;
    }
    if ('\u{300}'..='\u{36f}').contains(&c) {
        return !before.is_alphabetic();
    }
    let latin = |c: char| c.is_ascii_alphabetic() || ('À'..='ɏ').contains(&c) && c.is_alphabetic();
    if c.is_alphabetic() && !is_sign(c) {
        let beside_latin = before.is_ascii_alphabetic() || after.is_ascii_alphabetic();
        let capital_inside = c.is_uppercase() && before.is_ascii_lowercase();
        return capital_inside || !latin(c) && beside_latin || c == 'ˆ';
    }
    // Apostrophes, hyphens and middle dots are inside words.
    let inside = latin(before) && latin(after);
    inside && !"’‘·\u{ad}–—…-".contains(c)
        || "ˆ˜‡†ƒ¤¦¨¬¯´¸ˇ˘˙˚˛˝◊∂∆∏∑√∞∫≈≠≤≥\u{f8ff}".contains(c) && latin(before)
}

/// Whether a text that begins with `start` is UTF-16, with its mark or without.
pub(crate) fn is_utf16(start: &[u8]) -> bool {
    utf16(start).is_some()
}

/// Which UTF-16 a text that begins with `start` is, with its mark or without.
pub(crate) fn utf16(start: &[u8]) -> Option<&'static Encoding> {
    match start {
        [0xff, 0xfe, ..] => Some(encoding_rs::UTF_16LE),
        [0xfe, 0xff, ..] => Some(encoding_rs::UTF_16BE),
        _ => utf16_without_mark(start),
    }
}

/// UTF-16 without its mark. In it the ASCII of a text, line ends at least, has a zero beside it,
/// always on the same side; other text has none.
pub(super) fn utf16_without_mark(bytes: &[u8]) -> Option<&'static Encoding> {
    let start = &bytes[..bytes.len().min(UTF16_BYTES) & !1];
    if start.len() < 8 || memchr::memchr(0, start).is_none() {
        return None;
    }
    let zeros = |side: usize| start.iter().skip(side).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    // Other text with zeros that got into it.
    let units = start.len() / 2;
    let printable = start.iter().filter(|byte| (b' '..0x7f).contains(byte)).count();
    let ascii = printable * 20 > (start.len() - even - odd) * 17;
    if ascii && (even + odd) * 4 < units || units >= 64 && (even + odd) * 400 < units.max(800) {
        return None;
    }
    // What stands between words, in either order of bytes.
    let common = |little: bool| {
        let (units, _) = start.as_chunks::<2>();
        let unit = |bytes: &[u8; 2]| match little {
            true => u16::from_le_bytes(*bytes),
            false => u16::from_be_bytes(*bytes),
        };
        units
            .iter()
            .map(unit)
            .filter(|unit| {
                matches!(unit, 9 | 10 | 13 | 0x20..=0x3f | 0x3001 | 0x3002 | 0xff0c | 0x61..=0x7a)
            })
            .count()
    };
    let encoding = match (common(true), common(false)) {
        (little, big) if little > 4 * big => encoding_rs::UTF_16LE,
        (little, big) if big > 4 * little => encoding_rs::UTF_16BE,
        _ => return None,
    };
    let text = encoding.decode_without_bom_handling_and_without_replacement(start);
    let text = match text {
        Some(text) => text,
        // The window may have cut a pair.
        None => encoding
            .decode_without_bom_handling_and_without_replacement(&start[..start.len() - 2])?,
    };
    let (mut letters, mut blanks, mut all) = (0, 0, 0);
    for c in text.chars() {
        all += 1;
        let private =
            ('\u{e000}'..='\u{f8ff}').contains(&c) || ('\u{fdd0}'..='\u{fdef}').contains(&c);
        if private || c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{c}') {
            return None;
        }
        letters += usize::from(c.is_alphanumeric());
        let wide = ('\u{3000}'..='\u{303f}').contains(&c) || ('\u{ff00}'..='\u{ff65}').contains(&c);
        blanks += usize::from(c.is_whitespace() || c.is_ascii_punctuation() || wide);
    }
    (letters > 0 && (letters + blanks) * 5 > all * 4).then_some(encoding)
}
