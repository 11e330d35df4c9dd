//! ArXiv: submissions as archives, joining the files of a project, and the step `latex`.
//!
//! Input that begins as gzip or that is a tar archive is read as such. All else is TeX; lines
//! that begin with `%%file ` divide it into files.

#![no_main]

use std::collections::BTreeMap;

use altiplano_data::document::Document;
use altiplano_data::source::{ArxivFormat, ArxivSource, splice_tex};
use altiplano_data::step::{LatexOptions, Verdict};
use altiplano_fuzz::{TestFile, apply_twice, choose, document};
use libfuzzer_sys::fuzz_target;

/// Bytes that a paper of any length may grow by, and its step's documented bound.
const ALLOWANCE: usize = (64 << 10) + 64;
const MOST_TEXT: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let name = match data {
        [0x1f, 0x8b, ..] => "0704.0001.gz",
        _ if data.get(257..262) == Some(b"ustar") => "arXiv_src_0704_001.tar",
        _ => return project(&String::from_utf8_lossy(data), data),
    };
    let source = ArxivSource {
        paths: Vec::new(),
        format: ArxivFormat::Archives,
        max_record_bytes: MOST_TEXT,
        max_expanded_bytes: 4 << 20,
    };
    let file = TestFile::new(name, data);
    for paper in file.read_twice(&source, false).documents() {
        assert!(paper.text.len() <= 3 * MOST_TEXT, "{}", paper.text.len());
        clean(paper, data);
    }
});

fn project(text: &str, data: &[u8]) {
    let mut files = BTreeMap::new();
    let mut path = "main.tex";
    for (number, part) in text.split("%%file ").enumerate() {
        let mut part = part;
        if number > 0 {
            (path, part) = part.split_once('\n').unwrap_or((part, ""));
        }
        files.insert(path.to_owned(), part.to_owned());
    }
    let spliced = splice_tex(&files);
    assert_eq!(spliced, splice_tex(&files), "the result depends on chance");
    let Some(spliced) = spliced else { return };
    let bytes: usize = files.values().map(|text| text.len() + 1).sum();
    assert!(spliced.text.len() <= bytes, "{} of {bytes}", spliced.text.len());
    assert!((1..=files.len()).contains(&spliced.n_used_files));
    assert!(spliced.n_tex_files <= files.len() && files.contains_key(&spliced.root));
    clean(&document(&spliced.text), data);
}

fn clean(paper: &Document, data: &[u8]) {
    let options = LatexOptions {
        min_chars: 0,
        fallback: data.len() % 2 == 0,
        max_depth: choose(&[20, 1, 100], data),
        max_growth: choose(&[4, 1, 4, 10], data),
    };
    let (verdict, cleaned, _) = apply_twice(&options, paper);
    if verdict == Verdict::Keep {
        let bound = (options.max_growth + 1) * paper.text.len() + ALLOWANCE;
        let length = cleaned.text.len();
        assert!(length <= bound, "{} to {length}", paper.text.len());
    }
}
