//! The headers of source files and of Project Gutenberg books.

#![no_main]

use altiplano_data::source::{BooksLayout, BooksSource};
use altiplano_data::step::{GithubHeaderOptions, GutenbergOptions, HeaderCompat, Verdict};
use altiplano_fuzz::{TestFile, apply_twice, choose, document, removed_bytes};
use libfuzzer_sys::fuzz_target;

const PATHS: [Option<&str>; 16] = [
    None,
    Some("a.c"),
    Some("a.rs"),
    Some("a.py"),
    Some("a.html"),
    Some("a.hs"),
    Some("a.ml"),
    Some("a.lua"),
    Some("a.sql"),
    Some("a.bat"),
    Some("a.f"),
    Some("a.ps1"),
    Some("a.tex"),
    Some("Dockerfile"),
    Some("a.php"),
    Some("a.unknown"),
];

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if !text.trim().is_empty() {
        source_file(&text, data);
        book(&text);
    }
    // Books come in old encodings.
    let file = TestFile::new("1342-8.txt", data);
    let reading = file.read_twice(&BooksSource::new(Vec::new(), BooksLayout::Gutenberg), false);
    assert!(reading.error.is_none() && reading.records.len() == 1, "{reading:?}");
    assert!(reading.text_bytes() <= 3 * data.len(), "{}", reading.text_bytes());
});

fn source_file(text: &str, data: &[u8]) {
    let mut file = document(text);
    if let Some(path) = choose(&PATHS, data) {
        file.set_metadata("path", path);
    }
    for compat in [HeaderCompat::None, HeaderCompat::Redpajama] {
        let (verdict, stripped, counts) = apply_twice(&GithubHeaderOptions { compat }, &file);
        if verdict != Verdict::Keep {
            assert_eq!(verdict, Verdict::unwanted("empty", "nothing but a header"));
            continue;
        }
        assert_eq!(stripped.text.len() + removed_bytes(&counts), text.len());
        // One piece is taken out, and nothing else is changed.
        let (a, b) = (text.as_bytes(), stripped.text.as_bytes());
        let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
        assert!(start + end >= b.len(), "more than one piece is gone");
    }
}

fn book(text: &str) {
    for all in [false, true] {
        let options = GutenbergOptions {
            drop_illustrations: !all,
            drop_page_numbers: all,
            unwrap_paragraphs: all,
        };
        let (verdict, stripped, counts) = apply_twice(&options, &document(text));
        if verdict != Verdict::Keep {
            continue;
        }
        // Normalization makes no character more than three times as long.
        assert!(stripped.text.len() <= 3 * text.len() + 16);
        assert!(!stripped.text.contains('\r'), "a line end that is not Unix's");
        // With the line end that the last line may lack.
        let removed = removed_bytes(&counts);
        assert!(removed <= 3 * text.len() + 1, "{removed} of {}", text.len());
    }
}
