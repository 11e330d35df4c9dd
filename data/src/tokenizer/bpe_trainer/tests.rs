#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use super::*;
use crate::tokenizer::Tokenizer;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn words(text: &str) -> WordCounts {
    let mut words = WordCounts::default();
    text.split('\n').filter(|line| !line.is_empty()).for_each(|line| words.add(line));
    words
}

fn trained(text: &str, vocab_size: usize, character_coverage: f64) -> Result<Vec<Piece>> {
    let bytes = train(&words(text), vocab_size, character_coverage, &Progress::hidden())?;
    Ok(Tokenizer::from_bytes(Path::new("test.model"), &bytes)?.pieces)
}

/// What `scripts/golden/make_bpe_trainer.py` made with SentencePiece 0.2.3.
#[test]
fn pieces_are_those_of_the_reference_implementation() {
    let golden = root().join("tests/golden/bpe_trainer");
    let mixed = std::fs::read_to_string(golden.join("mixed.txt")).unwrap();
    let folder = root().join("tests/fixtures/plain/speeches");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    // A speech is one line, longer than SentencePiece's trainer takes.
    let speeches: String = paths
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap().replace(". ", ".\n"))
        .collect();
    for (file, text, vocab_size, coverage) in [
        ("speeches.pieces", &speeches, 2000, 0.9999),
        ("mixed.pieces", &mixed, 800, 1.0),
        ("mixed_covered.pieces", &mixed, 600, 0.98),
    ] {
        let pieces = trained(text, vocab_size, coverage).unwrap();
        let expected = std::fs::read_to_string(golden.join(file)).unwrap();
        let expected: Vec<&str> = expected.trim_end_matches('\n').split('\n').collect();
        let first = marks_and_bytes().len();
        let found: Vec<&str> = pieces[first..].iter().map(|piece| piece.text.as_str()).collect();
        let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        assert_eq!(differs.map(|at| (at, found[at], expected[at])), None, "{file}");
        assert_eq!(found.len(), expected.len(), "{file}");
        for (number, piece) in pieces[first..].iter().enumerate() {
            assert_eq!(piece.score, -(number as f32), "{file}: {}", piece.text);
        }
    }
}

#[test]
fn the_order_of_the_text_changes_nothing() {
    let mixed = root().join("tests/golden/bpe_trainer/mixed.txt");
    let mixed = std::fs::read_to_string(mixed).unwrap();
    let mut lines: Vec<&str> = mixed.lines().collect();
    let forwards = trained(&lines.join("\n"), 700, 0.999).unwrap();
    lines.reverse();
    assert_eq!(trained(&lines.join("\n"), 700, 0.999).unwrap(), forwards);
}

#[test]
fn what_cannot_be_trained_is_said_with_the_key_to_change() {
    let message = |text: &str, vocab_size| match trained(text, vocab_size, 1.0) {
        Err(DataError::TokenizerTraining { message }) => message,
        other => panic!("{other:?}"),
    };
    assert_eq!(message("", 300), "there is no text to train on");
    let small = message("abab", 260);
    assert!(small.contains("`vocab_size` of 260 is too small"), "{small}");
    assert!(small.contains("need 262"), "{small}");
    let large = message("abab", 300);
    // `▁`, `a` and `b`; `▁a`, `ab`, `ba` and what they make.
    assert!(large.contains("`vocab_size` of 300 is too large"), "{large}");
}
