#![allow(clippy::unwrap_used)]

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// Sentences of few words, so that many n-grams repeat.
fn sentences(seed: u64, count: usize) -> Vec<String> {
    let mut state = seed | 1;
    let mut draw = |bound: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut sentences = Vec::new();
    for _ in 0..count {
        // The smaller number of two: some words are frequent, others rare.
        let words = (0..draw(12)).map(|_| format!("w{}", draw(40).min(draw(40)).min(draw(30))));
        sentences.push(words.collect::<Vec<_>>().join(" "));
    }
    sentences
}

fn estimate(lines: &[String], order: usize, memory: u64) -> (NGrams, EstimateReport) {
    let options = EstimateOptions { order, discount_fallback: true };
    let mut estimator = Estimator::new(options, &std::env::temp_dir(), memory).unwrap();
    for line in lines {
        estimator.add_line(line).unwrap();
    }
    estimator.finish().unwrap()
}

fn open(ngrams: &mut NGrams, folder: &Path) -> NGramModel {
    let path = folder.join("m.ngrams");
    ngrams.write_binary(&path).unwrap();
    NGramModel::open(&path).unwrap()
}

fn arpa_of(ngrams: &mut NGrams) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.arpa");
    ngrams.write_arpa(&path).unwrap();
    std::fs::read_to_string(&path).unwrap()
}

/// Worked out by hand. The text is `a b`, `a c`; with padding the bigrams are `<s> a` (2),
/// `a b`, `a c`, `b </s>`, `c </s>` (1 each). Words stand behind so many different ones: a 1
/// (`<s>`), b 1, c 1, `</s>` 2. Neither order gives discounts, so they are 0.5, 1 and 1.5.
/// Unigrams: the sum is 5 and 0.5·3 + 1 = 2.5 is held back; a fifth of 2.5/5 goes to each of
/// `<unk> </s> a b c`, so p(a) = p(b) = p(c) = 0.5/5 + 0.1 = 0.2, p(`</s>`) = 1/5 + 0.1 = 0.3.
/// Behind `a` the sum is 2 and 0.5 + 0.5 is held back: p(b | a) = 0.5/2 + 0.5·0.2 = 0.35. Behind
/// `<s>` the sum is 2 and 1 is held back: p(a | `<s>`) = 1/2 + 0.5·0.2 = 0.6. Behind `b` it is 1
/// and 0.5: p(`</s>` | b) = 0.5 + 0.5·0.3 = 0.65.
#[test]
fn a_model_worked_out_by_hand() {
    let lines = ["a b".to_owned(), "a c".to_owned()];
    let (mut ngrams, report) = estimate(&lines, 2, 1 << 20);
    assert_eq!((report.sentences, report.tokens), (2, 4));
    assert_eq!(report.ngrams, [6, 5]);
    assert_eq!(report.discounts, [[0.5, 1.0, 1.5]; 2]);
    let folder = tempfile::tempdir().unwrap();
    let model = open(&mut ngrams, folder.path());
    let id = |word: &str| model.vocabulary().id(word);
    let scorer = model.scorer();
    let close = |log10: f32, p: f64| {
        let found = 10f64.powf(f64::from(log10));
        assert!((found - p).abs() < 1e-6, "{found} {p}");
    };
    let (log10, behind_a) = scorer.score(&scorer.begin(), id("a"));
    close(log10, 0.6);
    let (log10, behind_b) = scorer.score(&behind_a, id("b"));
    close(log10, 0.35);
    close(scorer.score(&behind_b, END).0, 0.65);
    // Not seen behind `a`: 0.5·0.3, 0.5·0.2, and 0.5·0.1 for what was never seen.
    close(scorer.score(&behind_a, END).0, 0.15);
    close(scorer.score(&behind_a, id("a")).0, 0.1);
    close(scorer.score(&behind_a, id("never")).0, 0.05);
    close(scorer.score(&scorer.empty(), END).0, 0.3);
    let score = model.score_line("a b");
    assert_eq!(score.tokens, 3);
    assert!((score.perplexity() - (0.6f64 * 0.35 * 0.65).powf(-1.0 / 3.0)).abs() < 1e-5);
}

/// What KenLM 0.3.0 gives: `lmplz -o 3 --discount_fallback` on sentences of Moby-Dick, and its
/// Python package the scores.
#[test]
fn the_model_is_that_of_kenlm() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/ngram");
    let text = std::fs::read_to_string(golden.join("text.txt")).unwrap();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let (mut ngrams, _) = estimate(&lines, 3, 1 << 20);
    let theirs = std::fs::read_to_string(golden.join("lmplz.arpa")).unwrap();
    let ours = arpa_of(&mut ngrams);
    let mut compared = 0;
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        let (ours, theirs): (Vec<_>, Vec<_>) =
            (ours.split('\t').collect(), theirs.split('\t').collect());
        assert_eq!((ours.len(), ours.get(1)), (theirs.len(), theirs.get(1)));
        for at in [0, 2].into_iter().filter(|at| ours.len() > 1 && *at < ours.len()) {
            let number = |fields: &[&str]| fields[at].parse::<f64>().unwrap();
            assert!((number(&ours) - number(&theirs)).abs() < 1e-6, "{ours:?} {theirs:?}");
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 485 + 2 * 975 + 1020);
    assert_eq!(ours.lines().count(), theirs.lines().count());

    let folder = tempfile::tempdir().unwrap();
    let model = open(&mut ngrams, folder.path());
    for (line, log10, perplexity) in [
        ("it was a queer sort of place", -5.208235740661621, 4.47743683278474),
        (
            "the whale and the unknown zebra went to the sea",
            -24.370676040649414,
            164.25401859525243,
        ),
        ("", -1.534214735031128, 34.214857458212684),
        ("out of the the the inn", -12.701944351196289, 65.24744030841387),
    ] {
        let score = model.score_line(line);
        assert!((score.log10 - log10).abs() < 1e-5, "{line}: {score:?}");
        assert!((score.perplexity() / perplexity - 1.0).abs() < 1e-5, "{line}: {score:?}");
    }
}

#[test]
fn probabilities_add_up_to_one_behind_every_history() {
    let lines = sentences(3, 400);
    for order in [2, 3, 5] {
        let (mut ngrams, _) = estimate(&lines, order, 1 << 20);
        let folder = tempfile::tempdir().unwrap();
        let model = open(&mut ngrams, folder.path());
        let scorer = model.scorer();
        let words = model.vocabulary().len() as u32;
        let mut histories = 0;
        for line in lines.iter().take(60).chain(&["never w1 never w2 w3".to_owned()]) {
            let mut state = scorer.begin();
            for word in line.split_whitespace() {
                state = scorer.score(&state, model.vocabulary().id(word)).1;
                let all = (0..words).filter(|word| *word != BEGIN);
                let sum: f64 =
                    all.map(|word| 10f64.powf(f64::from(scorer.score(&state, word).0))).sum();
                assert!((sum - 1.0).abs() < 1e-5, "{sum} behind {line:?}");
                histories += 1;
            }
        }
        assert!(histories > 200);
    }
}

#[test]
fn an_arpa_file_gives_the_same_model_back() {
    let folder = tempfile::tempdir().unwrap();
    let lines = sentences(11, 300);
    let (mut ngrams, _) = estimate(&lines, 4, 1 << 20);
    let model = open(&mut ngrams, folder.path());
    let path = folder.path().join("m.arpa");
    ngrams.write_arpa(&path).unwrap();
    let mut again = NGrams::read_arpa(&path, folder.path(), 1 << 20).unwrap();
    assert_eq!(again.counts(), ngrams.counts());
    assert!(again.suffixes_complete);
    let other = folder.path().join("other.ngrams");
    again.write_binary(&other).unwrap();
    assert!(std::fs::read(&other).unwrap() == std::fs::read(model.path()).unwrap());
    let score = model.score_line("w1 w2 w3 never w0 w0");
    assert_eq!(NGramModel::open(&other).unwrap().score_line("w1 w2 w3 never w0 w0"), score);
    // Compressed, too.
    let packed = folder.path().join("m.arpa.gz");
    let file = std::fs::File::create(&packed).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &std::fs::read(&path).unwrap()).unwrap();
    encoder.finish().unwrap();
    let again = NGrams::read_arpa(&packed, folder.path(), 1 << 20).unwrap();
    assert_eq!(again.counts(), ngrams.counts());
}

#[test]
fn memory_and_threads_change_nothing() {
    let lines = sentences(5, 20_000);
    let whole = arpa_of(&mut estimate(&lines, 5, 1 << 30).0);
    // 4096 records at a time, so that all sorting is on the disk.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let spilled = pool.install(|| arpa_of(&mut estimate(&lines, 5, 0).0));
    assert!(whole == spilled);
}

#[test]
fn marks_and_white_space_are_no_words() {
    let plain = ["a b c".to_owned(), String::new()];
    let marked = ["<s> a\tb <unk>\u{b}c </s>\n".to_owned(), " <s> ".to_owned()];
    let arpa = arpa_of(&mut estimate(&plain, 3, 1 << 20).0);
    assert_eq!(arpa, arpa_of(&mut estimate(&marked, 3, 1 << 20).0));
    assert!(arpa.contains("\n0\t<s>\t-"), "{arpa}");
    let folder = tempfile::tempdir().unwrap();
    let empty = Estimator::new(EstimateOptions::default(), folder.path(), 1 << 20).unwrap();
    assert!(matches!(empty.finish(), Err(DataError::LanguageModel { .. })));
}

#[test]
fn counts_without_discounts_are_an_error_if_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let options = EstimateOptions { order: 2, discount_fallback: false };
    let mut estimator = Estimator::new(options, folder.path(), 1 << 20).unwrap();
    estimator.add_line("a b").unwrap();
    let error = estimator.finish().unwrap_err().to_string();
    assert!(error.contains("discount_fallback"), "{error}");
    for order in [0, 1, 7] {
        let options = EstimateOptions { order, discount_fallback: true };
        assert!(matches!(
            Estimator::new(options, folder.path(), 0).err().unwrap(),
            DataError::Config { .. }
        ));
    }
}

/// A model of other tools, in which `b c` is missing though `a b c` is there.
const PRUNED: &str = "ignored\n\\data\\\nngram 1=6\nngram 2=2\nngram 3=1\n\n\\1-grams:\n-1 <unk>\n\
    -99 <s> -0.5\n-1 </s>\n-0.9\ta\t-0.25\n-0.8\tb\t-0.125\n-0.7\tc\n\n\\2-grams:\n-0.3\t<s> a\t-0.1\n\
    -0.4\ta b\t-0.2\n\n\\3-grams:\n-0.05\ta b c\n\n\\end\\\n";

fn read_text(text: &str) -> Result<NGrams> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.arpa");
    std::fs::write(&path, text).unwrap();
    NGrams::read_arpa(&path, &std::env::temp_dir(), 0)
}

#[test]
fn a_pruned_model_finds_ngrams_whose_ends_are_missing() {
    let mut ngrams = read_text(PRUNED).unwrap();
    assert!(!ngrams.suffixes_complete);
    let folder = tempfile::tempdir().unwrap();
    let model = open(&mut ngrams, folder.path());
    let close = |line: &str, log10: f64| {
        let found = model.score_line(line).log10;
        assert!((found - log10).abs() < 1e-6, "{line}: {found} {log10}");
    };
    // <s> a: -0.3; a b behind <s>: -0.1 - 0.4; a b c: -0.05; </s> behind b c, c: -1.
    close("a b c", -0.3 - 0.5 - 0.05 - 1.0);
    // b behind <s>: -0.5 - 0.8; c behind b: -0.125 - 0.7.
    close("b c", -1.3 - 0.825 - 1.0);
    close("x", -0.5 - 1.0 - 1.0);
}

#[test]
fn bad_arpa_files_are_errors_that_name_the_line() {
    for (from, to, says) in [
        ("\\data\\", "", "\\data\\"),
        ("ngram 2=2", "ngram 3=2", "line 4"),
        ("ngram 2=2", "ngram 2=99999999999999", "99999999999999 were announced"),
        ("ngram 1=6", "ngram 1=5", "expected \"\\\\2-grams:\""),
        ("-0.4\ta b\t-0.2", "-0.4\ta b c\t-0.2", "line 17"),
        ("-0.4\ta b", "0.4\ta b", "at most 0"),
        ("-0.4\ta b", "NaN\ta b", "at most 0"),
        ("-0.4\ta b", "-0.4\ta z", "\"z\" is not among"),
        ("-0.4\ta b", "-0.4\tb b", "line 20: \"a b\" begins an n-gram"),
        ("-0.4\ta b", "-0.4\t<s> a", "line 17: the n-gram \"<s> a\" is there twice"),
        ("-0.8\tb", "-0.8\ta", "line 12: the word \"a\" is there twice"),
        ("-0.8\tb", "-0.8\t</s>", "line 12: the word \"</s>\" is there twice"),
        ("<s> -0.5", "s -0.5", "no <s>"),
        ("\\end\\", "", "cut short"),
        ("\\end\\", "-0.1\ta b a\n\\end\\", "cut short"),
    ] {
        let text = PRUNED.replacen(from, to, 1);
        assert_ne!(text, PRUNED);
        let error = read_text(&text).unwrap_err().to_string();
        assert!(error.contains(says), "{from:?} to {to:?}: {error}");
    }
    assert!(read_text("").is_err());
    assert!(read_text(&"x".repeat(3 << 20)).is_err());
}

#[test]
fn damaged_models_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let (mut ngrams, _) = estimate(&sentences(2, 50), 3, 1 << 20);
    let model = open(&mut ngrams, folder.path());
    let whole = std::fs::read(model.path()).unwrap();
    drop(model);
    let path = folder.path().join("damaged.ngrams");
    let opens = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        NGramModel::open(&path)
    };
    assert!(opens(&whole).is_ok());
    for length in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        let error = opens(&whole[..length]).unwrap_err().to_string();
        assert!(error.contains("damaged.ngrams"), "{error}");
    }
    for at in (0..whole.len()).step_by(61) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        assert!(opens(&bytes).is_err(), "byte {at}");
    }
    // Sizes that do not fit, under a checksum that does.
    let footer = whole.len() - 32 - size_of::<binary::Footer>();
    for at in (footer + 16..whole.len() - 32).step_by(4) {
        for value in [u32::MAX, 7, 1 << 31] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let end = bytes.len() - 32;
            let checksum = blake3::hash(&bytes[..end]);
            bytes[end..].copy_from_slice(checksum.as_bytes());
            // Only the seed and the numbers of n-grams have no wrong value.
            if let Ok(model) = opens(&bytes) {
                assert!(model.score_line("w1 w2 w3").log10 < 0.0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sentences_give_a_model_that_adds_up(
        lines in prop::collection::vec("[abc ]{0,12}", 1..12),
        order in 2usize..=6
    ) {
        prop_assume!(lines.iter().any(|line| line.contains(['a', 'b', 'c'])));
        let (mut ngrams, _) = estimate(&lines, order, 0);
        let folder = tempfile::tempdir().unwrap();
        let model = open(&mut ngrams, folder.path());
        let scorer = model.scorer();
        let words = model.vocabulary().len() as u32;
        let mut state = scorer.begin();
        for word in [3, 4, 0, 5, 3, 3] {
            let sum: f64 = (0..words)
                .filter(|word| *word != BEGIN)
                .map(|word| 10f64.powf(f64::from(scorer.score(&state, word).0)))
                .sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "{sum}");
            state = scorer.score(&state, word).1;
        }
    }

    #[test]
    fn any_bytes_are_a_model_or_an_error(text in "\\PC{0,20}(\\\\data\\\\|ngram 1=2|\\\\1-grams:|\n|-1 a|-2\t<s>|\\\\end\\\\){0,12}") {
        let _ = read_text(&text);
    }
}
