//! What lies inside a book but is not its text: illustrations, page numbers, hard line ends.

use memchr::{memchr, memchr2_iter};

use crate::step::StepCounts;

/// Longest note of an illustration, in bytes.
const LONGEST_NOTE: usize = 4000;
/// Shortest line that was wrapped because it was full, in characters.
const FULL_LINE: usize = 45;

/// What notes of pictures and of pages without text are called, in lower case, in the languages of
/// the catalogue.
const NOTES: [&str; 61] = [
    "abbildung",
    "abbildungen",
    "afbeelding",
    "afbeeldingen",
    "billede",
    "bilde",
    "bild",
    "bilder",
    "blank page",
    "blank",
    "cover",
    "decoration",
    "drawing",
    "fac-simile",
    "facsimile",
    "figure",
    "figura",
    "frontispiece",
    "frontispice",
    "frontispiz",
    "gravure",
    "handwritten",
    "headpiece",
    "illustratie",
    "illustraties",
    "illustration",
    "illustrations",
    "illustrasjon",
    "illustrazione",
    "illustrazioni",
    "ilustracja",
    "ilustración",
    "ilustracion",
    "ilustraciones",
    "ilustração",
    "ilustrações",
    "il·lustració",
    "image",
    "images",
    "imagem",
    "imagen",
    "immagine",
    "kép",
    "kuva",
    "kuvitus",
    "leere seite",
    "lege pagina",
    "map",
    "obrázek",
    "page blanche",
    "página em branco",
    "página en blanco",
    "pagina bianca",
    "photo",
    "photograph",
    "picture",
    "portrait",
    "tailpiece",
    "tom side",
    "tyhjä sivu",
    "иллюстрация",
];

/// Takes out `[Illustration]`, `[Illustration: …]`, `[Image: …]`, `[Blank Page]` and their like in
/// other languages, with the line if it holds nothing else.
pub(super) fn drop_illustrations(text: String, counts: &mut StepCounts) -> String {
    if memchr(b'[', text.as_bytes()).is_none() {
        return text;
    }
    let mut made = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = memchr(b'[', &text.as_bytes()[at..]) {
        let start = at + found;
        made.push_str(&text[at..start]);
        let note = names_picture(&text[start + 1..]);
        let Some(end) = note.then(|| closing_bracket(text.as_bytes(), start)).flatten() else {
            made.push('[');
            at = start + 1;
            continue;
        };
        counts.remove("illustrations", end - start);
        at = end;
        let alone = made.is_empty() || made.ends_with('\n');
        if alone && text[at..].starts_with('\n') {
            at += 1;
        }
    }
    made.push_str(&text[at..]);
    made
}

/// Whether a note that goes on with `text` is one of a picture: its name, and behind it an end, a
/// colon or a number.
fn names_picture(text: &str) -> bool {
    let text = text.trim_start_matches(['_', ' ']);
    let end = text.char_indices().take(24).find(|&(_, c)| "]:.;,_(0123456789\n".contains(c));
    let Some((end, _)) = end else { return text.starts_with("Illustration") };
    let name = text[..end].trim_end().to_lowercase();
    NOTES.contains(&name.as_str()) || text.starts_with("Illustration")
}

/// The first byte after the bracket that closes the one at `start`.
fn closing_bracket(bytes: &[u8], start: usize) -> Option<usize> {
    let end = bytes.len().min(start + LONGEST_NOTE);
    let mut depth = 0usize;
    for found in memchr2_iter(b'[', b']', &bytes[start..end]) {
        if bytes[start + found] == b'[' {
            depth += 1;
        } else {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(start + found + 1);
            }
        }
    }
    None
}

/// Takes out page numbers: `[Pg 12]`, `{12}` and the like anywhere, and a line that is a number
/// between blank lines.
pub(super) fn drop_page_numbers(text: String, counts: &mut StepCounts) -> String {
    let mut made = String::with_capacity(text.len());
    let mut lines = text.split('\n').peekable();
    let mut blank_before = true;
    let mut first = true;
    while let Some(line) = lines.next() {
        let blank_after = lines.peek().is_none_or(|next| next.trim().is_empty());
        if blank_before && blank_after && is_number_line(line) {
            counts.remove("page_numbers", line.len() + 1);
            continue;
        }
        if !first {
            made.push('\n');
        }
        first = false;
        blank_before = line.trim().is_empty();
        drop_inline_numbers(line, &mut made, counts);
    }
    made
}

/// `12`, `- 12 -`, `[12]`.
fn is_number_line(line: &str) -> bool {
    let number = line.trim_matches(|c: char| c.is_whitespace() || "-–—[](){}".contains(c));
    (1..=4).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
}

fn drop_inline_numbers(line: &str, made: &mut String, counts: &mut StepCounts) {
    let mut at = 0;
    while let Some(found) = line[at..].find(['[', '{']) {
        let start = at + found;
        made.push_str(&line[at..start]);
        at = match page_mark(&line[start..]) {
            Some(length) => {
                counts.remove("page_numbers", length);
                start + length
            }
            None => {
                made.push_str(&line[start..=start]);
                start + 1
            }
        };
    }
    made.push_str(&line[at..]);
}

/// Length of the page mark that `text` begins with. A number in square brackets alone is a note.
fn page_mark(text: &str) -> Option<usize> {
    let braces = text.starts_with('{');
    let end = text.bytes().take(16).position(|b| b == if braces { b'}' } else { b']' })?;
    let inside = text[1..end].trim();
    let mut number = inside;
    for word in ["Page ", "page ", "Pg. ", "Pg ", "pg ", "p. ", "P. "] {
        number = number.strip_prefix(word).unwrap_or(number);
    }
    let marked = braces || number.len() < inside.len();
    let digits = (1..=4).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    (marked && digits).then_some(end + 1)
}

/// Joins the lines of paragraphs that were wrapped because the line was full. Verse, tables and
/// other indented or short lines stay as they are.
pub(super) fn unwrap_paragraphs(text: &str) -> String {
    let mut made = String::with_capacity(text.len() + 1);
    let mut paragraph: Vec<&str> = Vec::new();
    let mut lines = text.split('\n');
    loop {
        let line = lines.next();
        if let Some(line) = line
            && !line.trim().is_empty()
        {
            paragraph.push(line.trim_end());
            continue;
        }
        push_paragraph(&paragraph, &mut made);
        paragraph.clear();
        if line.is_none() {
            // Every line got an end; the last one had none.
            made.pop();
            return made;
        }
        made.push('\n');
    }
}

fn push_paragraph(lines: &[&str], made: &mut String) {
    let Some((last, full)) = lines.split_last() else { return };
    let prose = full.iter().all(|line| line.chars().count() >= FULL_LINE)
        && lines.iter().skip(1).all(|line| !line.starts_with([' ', '\t']));
    for line in full {
        made.push_str(line);
        let hyphen = line.ends_with('-') && !line.ends_with("--");
        if !prose {
            made.push('\n');
        } else if !hyphen {
            made.push(' ');
        }
    }
    made.push_str(last);
    made.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn illustrations_go() {
        let mut counts = StepCounts::default();
        let text =
            "a\n[Illustration: a [b]\nc]\n\nd [Illustration] e [Illustration: open".to_owned();
        let made = drop_illustrations(text, &mut counts);
        assert_eq!(made, "a\n\nd  e [Illustration: open");
        assert_eq!(counts.removed()["illustrations"].parts, 2);
        for (text, expected) in [
            ("[Image: a ship]\n\n[Blank Page]\n\n[Ilustración: x]\n\na", "\n\n\na"),
            ("[Figure 12.]\na\n[_Illustration_]\nb", "a\nb"),
            ("[ILLUSTRATION: X]\n[Иллюстрация]\nс", "с"),
            (
                "[map in hand] [Pictured] [1] [Footnote: an image]",
                "[map in hand] [Pictured] [1] [Footnote: an image]",
            ),
        ] {
            assert_eq!(drop_illustrations(text.to_owned(), &mut StepCounts::default()), expected);
        }
        let hostile = "[Illustration".repeat(20_000);
        assert_eq!(drop_illustrations(hostile.clone(), &mut counts), hostile);
    }

    #[test]
    fn page_numbers_go() {
        let mut counts = StepCounts::default();
        let text = "a {12}b [Pg 3] c [4] {x}\n\n- 12 -\n\nd\n13\ne\n\n14".to_owned();
        assert_eq!(drop_page_numbers(text, &mut counts), "a b  c [4] {x}\n\n\nd\n13\ne\n");
        assert_eq!(counts.removed()["page_numbers"].parts, 4);
    }

    #[test]
    fn prose_is_unwrapped_and_verse_is_not() {
        let full = "This line is long enough to have been wrapped by some hand";
        let text = format!("{full}\n{full} to-\nday.\n\nShort\nverse\n\n{full}\n  indented\n");
        let made = format!("{full} {full} to-day.\n\nShort\nverse\n\n{full}\n  indented\n");
        assert_eq!(unwrap_paragraphs(&text), made);
        assert_eq!(unwrap_paragraphs("a"), "a");
        assert_eq!(unwrap_paragraphs(""), "");
    }
}
