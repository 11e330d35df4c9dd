//! The apostrophes of bold and italic text, and the spaces around what was taken out.

use super::markup::{APOSTROPHE, GAP};

/// Appends `line` to `out` without quotes, gaps and double spaces, trimmed.
pub(super) fn push_inline(line: &str, out: &mut String) {
    if is_plain(line.as_bytes()) {
        out.push_str(line);
        return;
    }
    let start = out.len();
    let literal = literal_run(line);
    let mut pending = Pending::default();
    let mut rest = line;
    let mut runs = 0;
    while let Some(c) = rest.chars().next() {
        match c {
            '\'' => {
                let length = rest.bytes().take_while(|&byte| byte == b'\'').count();
                rest = &rest[length..];
                let kept = match length {
                    1 => 1,
                    2 | 5 => 0,
                    3 => usize::from(literal == Some(runs)),
                    4 => 1,
                    more => more - 5,
                };
                runs += usize::from(length > 1);
                (0..kept).for_each(|_| pending.push('\'', start, out));
                continue;
            }
            GAP => pending.gap = true,
            // Shown at a line end alone.
            '\u{ad}' => {}
            APOSTROPHE => pending.push('\'', start, out),
            c if c.is_whitespace() => pending.space = true,
            c => pending.push(c, start, out),
        }
        rest = &rest[c.len_utf8()..];
    }
}

/// Whether nothing in `line` needs a second look. Gaps and their like begin with 0xEF, wide
/// spaces with 0xC2, 0xE2 or 0xE3.
fn is_plain(line: &[u8]) -> bool {
    let mut last = b' ';
    for &byte in line {
        let second_look = match byte {
            b'\'' | b' ' => last == byte,
            0x09..=0x0d | 0xef => true,
            0xa0 | 0xad => last == 0xc2,
            0x80..=0x8a | 0xaf => last == 0x80,
            _ => false,
        };
        if second_look {
            return false;
        }
        last = byte;
    }
    last != b' ' || line.is_empty()
}

/// The run of apostrophes, counted from 0, of which one is text. When a line has an odd number
/// of bold and an odd number of italic marks, one `'''` stands for an apostrophe and `''`, as in
/// `l'''Odyssée''`: MediaWiki takes the first after a word of one letter, else the first after a
/// longer word, else the first after a space.
fn literal_run(line: &str) -> Option<usize> {
    let bytes = line.as_bytes();
    let (mut at, mut runs, mut bold, mut italic) = (0, 0, 0, 0);
    let (mut letter, mut word, mut space) = (None, None, None);
    while let Some(found) = memchr::memchr(b'\'', &bytes[at..]) {
        let start = at + found;
        let length = bytes[start..].iter().take_while(|&&byte| byte == b'\'').count();
        at = start + length;
        if length < 2 {
            continue;
        }
        bold += usize::from(length != 2);
        italic += usize::from(length == 2 || length >= 5);
        if length == 3 {
            let mut before = line[..start].chars().rev();
            let choice = match (before.next(), before.next()) {
                (None | Some(' '), _) => &mut space,
                (Some(_), None | Some(' ')) => &mut letter,
                _ => &mut word,
            };
            choice.get_or_insert(runs);
        }
        runs += 1;
    }
    (bold % 2 == 1 && italic % 2 == 1).then(|| letter.or(word).or(space)).flatten()
}

/// White space and gaps before the next character.
#[derive(Default)]
struct Pending {
    space: bool,
    gap: bool,
}

impl Pending {
    /// Appends `c` to the line that begins at `start` of `out`. Around a gap, no empty brackets,
    /// no space before a full stop, no comma after a bracket or another comma are left.
    fn push(&mut self, c: char, start: usize, out: &mut String) {
        if self.gap {
            let line = &out[start..];
            match c {
                ',' | ';' if line.ends_with(['(', ';']) => return,
                ',' if line.ends_with(',') => return,
                ';' if line.ends_with(',') => {
                    out.pop();
                    self.space = false;
                }
                ')' if line.ends_with('(') => {
                    out.pop();
                    self.space = out.len() > start && out.ends_with(' ');
                    out.truncate(start + out[start..].trim_end().len());
                    return;
                }
                ')' => {
                    out.truncate(start + line.trim_end_matches([',', ';', ' ']).len());
                    self.space = false;
                }
                ',' | '.' => self.space = false,
                _ if line.ends_with('(') => self.space = false,
                _ => {}
            }
        }
        if self.space && out.len() > start {
            out.push(' ');
        }
        out.push(c);
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(line: &str) -> String {
        let mut out = String::from("before ");
        push_inline(line, &mut out);
        out.split_off("before ".len())
    }

    #[test]
    fn quotes_go_and_apostrophes_stay() {
        for (line, text) in [
            ("''x'' '''y''' '''''z'''''", "x y z"),
            ("it's ''the dog''s''", "it's the dogs"),
            ("''''x''''", "'x'"),
            ("''''''x''''''", "'x'"),
            ("l'''Odyssée'' d'Homère", "l'Odyssée d'Homère"),
            ("'''a''' L'''amour''", "a L'amour"),
            ("dans '''gras'''", "dans gras"),
            ("unclosed '''bold", "unclosed bold"),
        ] {
            assert_eq!(inline(line), text, "{line}");
        }
        assert_eq!(inline(&format!("f{APOSTROPHE}{APOSTROPHE}(x)")), "f''(x)");
    }

    #[test]
    fn gaps_leave_no_trace() {
        for (line, text) in [
            ("Athens (_; _) is", "Athens is"),
            ("Athens (_; 500 BC) is", "Athens (500 BC) is"),
            ("Athens (town, _) is", "Athens (town) is"),
            ("Athens _, the", "Athens, the"),
            ("the end _.", "the end."),
            ("the end._ Next", "the end. Next"),
            ("a _ b", "a b"),
            ("a_b", "ab"),
            ("(_)", ""),
            ("_ x _", "x"),
            ("main() and f( )", "main() and f( )"),
        ] {
            assert_eq!(inline(&line.replace('_', &GAP.to_string())), text, "{line}");
        }
    }

    #[test]
    fn spaces_collapse() {
        assert_eq!(inline("a  b\t\u{a0}c \u{2003}d"), "a b c d");
        assert_eq!(inline("a b. é — “c”"), "a b. é — “c”");
        assert_eq!(inline(" a "), "a");
        assert_eq!(inline("\u{3000}中\u{3000}"), "中");
        assert_eq!(inline("｡"), "｡");
    }
}
