//! Wikipedia: dumps, and the wikitext of single pages.
//!
//! Input that begins as XML or as bzip2 is a dump, all else is a page.

#![no_main]

use altiplano_data::document::Document;
use altiplano_data::source::WikipediaSource;
use altiplano_data::step::{Verdict, WikitextOptions};
use altiplano_fuzz::{TestFile, apply_twice, choose, document, removed_bytes};
use libfuzzer_sys::fuzz_target;

const LANGUAGES: [Option<&str>; 7] =
    [None, Some("en"), Some("de"), Some("sr"), Some("uk"), Some("fr"), Some("xx")];

fuzz_target!(|data: &[u8]| {
    let name = match data {
        [b'B', b'Z', b'h', ..] => "enwiki-20120101-pages-articles-multistream.xml.bz2",
        [b'<', b'm' | b'?' | b'p', ..] | [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            "enwiki-20120101-pages-articles.xml"
        }
        _ => return page(&String::from_utf8_lossy(data), data),
    };
    let file = TestFile::new(name, data);
    let reading = file.read_twice(&WikipediaSource::dumps(Vec::new()), false);
    if !name.ends_with(".bz2") {
        // UTF-16 becomes at most one and a half times as long.
        assert!(reading.text_bytes() <= 3 * data.len() + 16);
    }
    for document in reading.documents() {
        clean(document, data);
    }
});

fn page(text: &str, data: &[u8]) {
    let language = choose(&LANGUAGES, data).map(str::to_owned);
    clean(&Document { language, ..document(text) }, data);
}

fn clean(document: &Document, data: &[u8]) {
    let options = WikitextOptions {
        title: data.len() % 2 == 0,
        math: data.len() % 3 != 0,
        drop_tail_sections: data.len() % 5 != 0,
        drop_disambiguation: data.len() % 11 == 0,
        min_words: 0,
        expand_templates: data.len() % 7 != 0,
        ..WikitextOptions::default()
    };
    let (verdict, cleaned, counts) = apply_twice(&options, document);
    if verdict != Verdict::Keep {
        return;
    }
    let (before, after) = (&document.text, &cleaned.text);
    let title = document.metadata.as_ref().map_or(0, String::len);
    // Functions of the parser make text: `padleft` up to 500 characters for a call of 14 bytes.
    let longest = if options.expand_templates { 150 * before.len() } else { 2 * before.len() };
    assert!(after.len() <= longest + title + 64, "{} to {}", before.len(), after.len());
    let removed = removed_bytes(&counts);
    let most = if options.expand_templates { longest } else { before.len() + before.len() / 2 };
    assert!(removed <= most + 64, "{removed} of {}", before.len());
    if title == 0 {
        // What only serves inside does not get out.
        assert!(!after.contains(['\u{fdd0}', '\u{fdd1}']), "a mark is left");
        assert!(!after.contains("\n\n\n") && after.trim() == after, "white space is left");
    }
}
