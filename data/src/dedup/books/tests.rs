#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::dedup::budget::MIN_MEMORY;
use crate::dedup::tests::run;

fn book(id: &str, words: impl IntoIterator<Item = String>) -> (Document, u32) {
    let text = words.into_iter().collect::<Vec<_>>().join(" ");
    (Document { id: id.into(), text, ..Document::default() }, 0)
}

/// `count` words that no other name has.
fn words(name: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |number| format!("{name}{number}"))
}

/// The ids of the books that stay.
fn kept(options: &DedupBooksOptions, books: &[(Document, u32)], memory: u64) -> BTreeSet<String> {
    let (first, second) = books.split_at(books.len() / 3);
    let fates = run(&*options.build(), &[first, &[], second], memory);
    fates.into_iter().flatten().map(|document| document.id).collect()
}

fn stays(books: &[(Document, u32)], id: &str) -> bool {
    kept(&DedupBooksOptions::default(), books, MIN_MEMORY).contains(id)
}

#[test]
fn the_boundary_is_exact() {
    // 1012 words are 1000 shingles; the longer book has the first 901, 900 or 899 of them.
    for (shared, expected) in [(901, false), (900, true), (899, true)] {
        let short = book("short", words("a", 1012));
        let long = book("long", words("a", shared + 12).chain(words("b", 3000)));
        assert_eq!(stays(&[short, long], "short"), expected, "{shared}");
    }
    for (shared, expected) in [(90_100, false), (89_900, true)] {
        let short = book("short", words("a", 100_012));
        let long = book("long", words("b", 20_000).chain(words("a", shared + 12)));
        assert_eq!(stays(&[short, long], "short"), expected, "{shared}");
    }
}

#[test]
fn a_book_in_an_omnibus_is_found_however_small() {
    let names = ["a", "b", "c", "d", "e"];
    let omnibus = names.iter().flat_map(|name| words("cover", 20).chain(words(name, 30_000)));
    let mut books = vec![book("omnibus", omnibus)];
    for (name, count) in names.iter().zip([30_000, 5000, 300, 40, 13]) {
        books.push(book(name, words(name, count)));
    }
    books.push(book("other", words("x", 4000)));
    // Fewer words than a shingle: compared as a whole, with texts as short only.
    books.push(book("tiny", words("y", 5)));
    books.push(book("tiny too", words("y", 5)));
    books.push(book("empty", []));
    books.push(book("empty too", []));
    let expected = ["empty", "empty too", "omnibus", "other", "tiny"];
    assert!(kept(&DedupBooksOptions::default(), &books, MIN_MEMORY).iter().eq(expected));
    let fates = run(&*DedupBooksOptions::default().build(), &[&books], MIN_MEMORY);
    assert_eq!(fates[1], Err("contained_in_other_book".into()));
}

#[test]
fn a_book_is_compared_with_those_that_stay() {
    // Each is 95% in the next, but the first only 86% in the last.
    let first = book("first", words("a", 1012));
    let second = book("second", words("x", 0).chain((50..1012 + 60).map(|at| format!("a{at}"))));
    let third = book("third", (140..1012 + 200).map(|at| format!("a{at}")));
    let books = [first, second, third];
    assert!(kept(&DedupBooksOptions::default(), &books, MIN_MEMORY).iter().eq(["first", "third"]));
    // Of equal books the smallest id stays.
    let books =
        [book("b", words("a", 200)), book("a", words("a", 200)), book("c", words("a", 200))];
    assert!(kept(&DedupBooksOptions::default(), &books, MIN_MEMORY).iter().eq(["a"]));
}

#[test]
fn many_batches_decide_as_one() {
    // Pieces of long books, a few of them changed beyond recognition.
    let mut books = Vec::new();
    for long in 0..12 {
        books.push(book(&format!("long{long}"), words(&format!("l{long}x"), 6000)));
        for piece in 0..70usize {
            let changed = if piece.is_multiple_of(7) { 13 } else { 400 };
            let text = (piece * 80..piece * 80 + 400).map(|at| match at % changed {
                0 => format!("z{piece}"),
                _ => format!("l{long}x{at}"),
            });
            books.push(book(&format!("piece{long}/{piece:02}"), text));
        }
    }
    let small = kept(&DedupBooksOptions::default(), &books, MIN_MEMORY);
    assert_eq!(small, kept(&DedupBooksOptions::default(), &books, 1 << 30));
    assert_eq!(small.len(), 12 * 11);
}

#[test]
fn options_out_of_range_are_refused() {
    for (threshold, shingle_words) in [(0.4, 13), (1.0, 13), (f64::NAN, 13), (0.9, 0)] {
        let options = DedupBooksOptions { threshold, shingle_words };
        assert!(options.validate("steps.2").unwrap_err().to_string().contains("steps.2."));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]
    #[test]
    fn agrees_with_comparing_all_pairs(
        books in prop::collection::vec(
            prop::collection::vec((0usize..60, 1usize..30), 1..6), 1..14),
        threshold in prop::sample::select(vec![0.5, 0.7, 0.9]),
    ) {
        let options = DedupBooksOptions { threshold, shingle_words: 3 };
        let books: Vec<_> = books
            .iter()
            .enumerate()
            .map(|(number, parts)| {
                let words = parts.iter().flat_map(|&(start, count)| start..start + count);
                book(&format!("book{number}"), words.map(|word| format!("w{word}")))
            })
            .collect();
        let mut sets: Vec<(String, BTreeSet<String>)> = books
            .iter()
            .map(|(document, _)| {
                let words: Vec<_> = document.text.split(' ').collect();
                let shingles = words.windows(words.len().min(3)).map(|run| run.join(" "));
                (document.id.clone(), shingles.collect())
            })
            .collect();
        sets.sort_by_key(|(id, set)| (std::cmp::Reverse(set.len()), id.clone()));
        let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (id, set) in sets {
            let contained = expected.values().any(|other| {
                set.intersection(other).count() as f64 > threshold * set.len() as f64
            });
            if !contained {
                expected.insert(id, set);
            }
        }
        let expected: BTreeSet<_> = expected.into_keys().collect();
        prop_assert_eq!(kept(&options, &books, MIN_MEMORY), expected);
    }
}
