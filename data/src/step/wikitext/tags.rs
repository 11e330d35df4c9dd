//! HTML and extension tags in wikitext.

use memchr::{memchr2, memmem};

use super::parts::Part;
use crate::text::script_marks::Script;

/// What a tag does to its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TagKind {
    /// The tag goes, its content stays.
    Transparent,
    /// As [`TagKind::Transparent`], and the tag ends a line.
    Break,
    /// An element that goes with its content and may hold others of its kind.
    Nested,
    /// An extension whose content is not wikitext: everything to the next closing tag goes.
    Raw(Part),
    /// A superscript or subscript: as [`TagKind::Transparent`], with a mark where its digits would
    /// run into others.
    Script(Script),
    /// A formula in LaTeX.
    Formula,
    /// Code: kept inside a sentence, taken out where it is a block.
    Code,
    /// Content that is text as it stands.
    Nowiki,
}

use TagKind::{Break, Code, Formula, Nested, Nowiki, Raw, Transparent};

/// The tags MediaWiki knows, sorted by name. Others are text: `#include <stdio.h>`.
const TAGS: &[(&str, TagKind)] = &[
    ("abbr", Transparent),
    ("b", Transparent),
    ("bdi", Transparent),
    ("bdo", Transparent),
    ("big", Transparent),
    ("blockquote", Break),
    ("br", Break),
    ("caption", Nested),
    ("categorytree", Raw(Part::Elements)),
    ("ce", Formula),
    ("center", Break),
    ("chem", Formula),
    ("cite", Transparent),
    ("code", Transparent),
    ("data", Transparent),
    ("dd", Break),
    ("del", Transparent),
    ("dfn", Transparent),
    ("div", Break),
    ("dl", Break),
    ("dt", Break),
    ("em", Transparent),
    ("font", Transparent),
    ("form", Nested),
    ("gallery", Raw(Part::Elements)),
    ("graph", Raw(Part::Elements)),
    ("h1", Break),
    ("h2", Break),
    ("h3", Break),
    ("h4", Break),
    ("h5", Break),
    ("h6", Break),
    ("hiero", Raw(Part::Elements)),
    ("hr", Break),
    ("i", Transparent),
    ("imagemap", Raw(Part::Elements)),
    ("img", Transparent),
    ("includeonly", Raw(Part::Elements)),
    ("indicator", Raw(Part::Elements)),
    ("inputbox", Raw(Part::Elements)),
    ("ins", Transparent),
    ("kbd", Transparent),
    ("li", Break),
    ("mapframe", Raw(Part::Elements)),
    ("maplink", Raw(Part::Elements)),
    ("mark", Transparent),
    ("math", Formula),
    ("noinclude", Raw(Part::Elements)),
    ("nowiki", Nowiki),
    ("ol", Break),
    ("onlyinclude", Transparent),
    ("p", Break),
    ("poem", Transparent),
    ("pre", Raw(Part::Elements)),
    ("q", Transparent),
    ("rb", Transparent),
    ("ref", Raw(Part::References)),
    ("references", Raw(Part::References)),
    ("rp", Transparent),
    ("rt", Transparent),
    ("ruby", Transparent),
    ("s", Transparent),
    ("samp", Transparent),
    ("score", Raw(Part::Elements)),
    ("section", Transparent),
    ("small", Nested),
    ("source", Code),
    ("span", Transparent),
    ("strike", Transparent),
    ("strong", Transparent),
    ("sub", TagKind::Script(Script::Sub)),
    ("sup", TagKind::Script(Script::Super)),
    ("syntaxhighlight", Code),
    ("table", Nested),
    ("td", Nested),
    ("templatedata", Raw(Part::Elements)),
    ("templatestyles", Raw(Part::Elements)),
    ("th", Nested),
    ("time", Transparent),
    ("timeline", Raw(Part::Elements)),
    ("tr", Nested),
    ("tt", Transparent),
    ("u", Transparent),
    ("ul", Break),
    ("var", Transparent),
    ("wbr", Transparent),
];

/// Longest name in [`TAGS`], in bytes.
const LONGEST_TAG: usize = 15;

/// A tag in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// Its place in the table of tags.
    pub index: usize,
    /// What it does.
    pub kind: TagKind,
    /// `</name>`.
    pub closing: bool,
    /// `<name/>`.
    pub empty: bool,
    /// First byte after it.
    pub end: usize,
}

/// Number of known tags.
pub(super) const TAG_COUNT: usize = TAGS.len();

/// The tag at `at`, where `bytes` has a `<`; None when it is none that MediaWiki knows.
///
/// A tag ends at the first `>`; one with a `<` before that is none, so that text full of `<` is
/// looked at once.
pub(super) fn tag_at(bytes: &[u8], at: usize) -> Option<Tag> {
    let closing = bytes.get(at + 1) == Some(&b'/');
    let start = at + 1 + usize::from(closing);
    let mut name = [0; LONGEST_TAG];
    let mut length = 0;
    while let Some(byte) = bytes.get(start + length).filter(|byte| byte.is_ascii_alphanumeric()) {
        *name.get_mut(length)? = byte.to_ascii_lowercase();
        length += 1;
    }
    let index = TAGS.binary_search_by(|(tag, _)| tag.as_bytes().cmp(&name[..length])).ok()?;
    let after = start + length;
    let end = after + memchr2(b'>', b'<', &bytes[after..])?;
    if bytes[end] == b'<' || !(bytes[after].is_ascii_whitespace() || b"/>".contains(&bytes[after]))
    {
        return None;
    }
    let empty = bytes[end - 1] == b'/';
    Some(Tag { index, kind: TAGS[index].1, closing, empty, end: end + 1 })
}

/// Where the next closing tag of `index` is, from `from` on: its first byte and the first one
/// after it.
pub(super) fn find_closing(bytes: &[u8], from: usize, index: usize) -> Option<(usize, usize)> {
    let name = TAGS[index].0.as_bytes();
    memmem::find_iter(&bytes[from..], b"</").find_map(|found| {
        let start = from + found;
        let after = start + 2 + name.len();
        if !bytes.get(start + 2..after)?.eq_ignore_ascii_case(name) {
            return None;
        }
        let spaces = bytes[after..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        (bytes.get(after + spaces) == Some(&b'>')).then_some((start, after + spaces + 1))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(TAGS.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(TAGS.iter().map(|tag| tag.0.len()).max(), Some(LONGEST_TAG));
    }

    #[test]
    fn tags_are_told_from_text() {
        let tag = tag_at(b"<REF name=\"x\" />", 0).unwrap();
        assert_eq!(
            (tag.kind, tag.closing, tag.empty, tag.end),
            (Raw(Part::References), false, true, 16)
        );
        assert!(tag_at(b"</small >", 0).unwrap().closing);
        for text in ["<stdio.h>", "<b <i>", "<", "</", "<b", "< b>", "<brr>", "<b-c>"] {
            assert_eq!(tag_at(text.as_bytes(), 0), None, "{text}");
        }
    }

    #[test]
    fn closing_tags_are_found_in_any_case() {
        let tag = tag_at(b"<ref>", 0).unwrap();
        assert_eq!(find_closing(b"a</b></references></Ref >z", 0, tag.index), Some((18, 25)));
        assert_eq!(find_closing(b"a</ref", 0, tag.index), None);
    }
}
