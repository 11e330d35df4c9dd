#![allow(clippy::unwrap_used)]

use std::sync::OnceLock;

use sentencepiece::SentencePieceProcessor;

use super::*;
use crate::ngram::{Bucket, NGramModel, PerplexityModel};

/// Paragraphs of speeches.
pub(crate) fn paragraphs() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/plain/speeches");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let texts = paths.iter().step_by(4).map(|path| std::fs::read_to_string(path).unwrap());
    let sentences = texts.collect::<String>().replace(". ", ".\u{0}");
    let sentences: Vec<&str> = sentences.split('\0').collect();
    sentences.chunks(4).map(|sentences| sentences.join(" ")).collect()
}

fn options(folder: &Path) -> TrainOptions {
    TrainOptions {
        vocab_size: 800,
        memory_bytes: 1 << 20,
        ngrams: super::super::EstimateOptions { order: 3, discount_fallback: true },
        ..TrainOptions::new("en", folder)
    }
}

fn train_in(folder: &Path) -> TrainReport {
    let paragraphs = paragraphs();
    let documents = |sink: TextSink<'_>| {
        for paragraph in &paragraphs {
            if !sink(paragraph)? {
                break;
            }
        }
        Ok(())
    };
    train(&options(folder), &documents, None, [0; 2], ProgressMode::Hidden).unwrap()
}

/// A folder with a model for `en`, trained on [`paragraphs`].
pub(crate) fn model_folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let report = train_in(folder.path());
            assert!(report.documents > 500, "{report:?}");
            assert_eq!(report.sample_documents, (report.documents + report.sample_documents) / 100);
            folder
        })
        .path()
}

#[test]
fn the_same_documents_train_the_same_bytes() {
    let again = tempfile::tempdir().unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    pool.install(|| train_in(again.path()));
    for name in ["en.sp.model", "en.ngrams", "en.json", "cutoffs.csv"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(read(again.path()) == read(model_folder()), "{name}");
    }
    // Nothing is left of the work.
    assert_eq!(std::fs::read_dir(again.path()).unwrap().count(), 4);
}

#[test]
fn text_like_the_trained_one_has_a_low_perplexity() {
    let model = PerplexityModel::open(model_folder(), "en").unwrap();
    let perplexity = |text: &str| model.perplexity(text).unwrap();
    let speech = perplexity("The Congress of the United States has made provision for the Union.");
    let code = perplexity("fn main() { let x = vec![0x7f; 12]; println!(\"{x:?}\"); }");
    assert!(speech < 100.0 && code > 3.0 * speech, "{speech} {code}");
    assert_eq!(perplexity("THE CONGRESS"), perplexity("  the\u{301} congress\n"));
    assert_eq!(speech, (speech * 10.0).round() / 10.0);
    // An empty text is the end of a sentence and nothing else.
    assert_eq!(model.score(" \n").unwrap().tokens, 1);
    let cutoffs = model.cutoffs().unwrap();
    assert_eq!(cutoffs.bucket(code), Bucket::Tail);
    assert!(cutoffs.validate("cutoffs").is_ok() && cutoffs.head < cutoffs.middle);
}

#[test]
fn encoding_by_words_gives_sentencepieces_pieces() {
    let path = model_folder().join("en.sp.model");
    let processor = SentencePieceProcessor::open(&path).unwrap();
    let pieces = Pieces::open(&path).unwrap();
    let mut texts = paragraphs();
    texts.push("日本 語  and\u{a0}ﬁne ½ <s> 👩‍👩‍👧  ".into());
    let mut other = 0;
    for text in &texts {
        let whole = processor.encode(&ccnet::normalize(text)).unwrap();
        let whole: Vec<String> = whole.into_iter().map(|piece| piece.piece).collect();
        let words = pieces.words(text).unwrap();
        // `000,000|,|00|0` and `00|0|,|000,000` score the same.
        assert_eq!((words.len(), words.concat()), (whole.len(), whole.concat()));
        other += usize::from(words != whole);
    }
    assert!(100 * other < texts.len(), "{other} of {}", texts.len());
}

#[test]
fn the_csv_has_a_row_for_each_percentile() {
    let csv = std::fs::read_to_string(model_folder().join("cutoffs.csv")).unwrap();
    let rows: Vec<&str> = csv.lines().collect();
    assert_eq!((rows.len(), rows[0]), (101, "percentile,en"));
    let model = PerplexityModel::open(model_folder(), "en").unwrap();
    let Cutoffs { head, middle } = model.cutoffs().unwrap();
    assert_eq!(rows[31], format!("30,{head:.1}"));
    assert_eq!(rows[61], format!("60,{middle:.1}"));
}

#[test]
fn a_model_of_other_tools_is_imported_and_gets_cut_offs() {
    let from = tempfile::tempdir().unwrap();
    let arpa = from.path().join("x.arpa");
    NGrams::read_arpa(&arpa, from.path(), 0).unwrap_err();
    let mut estimator =
        Estimator::new(super::super::EstimateOptions::default(), from.path(), 0).unwrap();
    let pieces = Pieces::open(&model_folder().join("en.sp.model")).unwrap();
    for text in paragraphs().iter().take(100) {
        let words = pieces.words(text).unwrap();
        estimator.add_sentence(words.iter().map(String::as_str)).unwrap();
    }
    estimator.finish().unwrap().0.write_arpa(&arpa).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let spm = model_folder().join("en.sp.model");
    import(&arpa, &spm, folder.path(), "xx", 1 << 20).unwrap();
    assert_eq!(PerplexityModel::languages(folder.path()).unwrap(), ["xx"]);
    assert_eq!(PerplexityModel::open(folder.path(), "xx").unwrap().cutoffs(), None);
    let options = TrainOptions { sample_documents: 50, ..TrainOptions::new("xx", folder.path()) };
    let paragraphs = paragraphs();
    let sample = |sink: TextSink<'_>| paragraphs.iter().try_for_each(|text| sink(text).map(|_| ()));
    let cutoffs = compute_cutoffs(&options, &sample, ProgressMode::Hidden).unwrap();
    assert!(cutoffs.is_some());
    let model = PerplexityModel::open(folder.path(), "xx").unwrap();
    assert_eq!((model.cutoffs(), model.ngrams().order()), (cutoffs, 5));
    assert_eq!(PerplexityModel::files(folder.path()).unwrap().len(), 3);
}

#[test]
fn parts_of_different_models_are_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["en.sp.model", "en.ngrams", "en.json"];
    let restore = || {
        for name in names {
            std::fs::copy(model_folder().join(name), folder.path().join(name)).unwrap();
        }
    };
    let fails = |name: &str| {
        let error = PerplexityModel::open(folder.path(), "en").unwrap_err().to_string();
        assert!(error.contains(folder.path().join(name).to_str().unwrap()), "{error}");
        assert_eq!(PerplexityModel::languages(folder.path()).unwrap(), ["en"]);
    };
    for name in names {
        restore();
        let path = folder.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        fails(name);
        std::fs::remove_file(&path).unwrap();
        fails(name);
    }
    // A whole file of another model.
    restore();
    let scratch = tempfile::tempdir().unwrap();
    let estimate = super::super::EstimateOptions { order: 2, discount_fallback: true };
    let mut other = Estimator::new(estimate, scratch.path(), 1 << 20).unwrap();
    other.add_sentence(["a", "b"]).unwrap();
    let path = folder.path().join("en.ngrams");
    other.finish().unwrap().0.write_binary(&path).unwrap();
    NGramModel::open(&path).unwrap();
    fails("en.ngrams");
}

#[test]
fn what_does_not_fit_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let none = |_: TextSink<'_>| Ok(());
    let error =
        train(&options(folder.path()), &none, None, [0; 2], ProgressMode::Hidden).unwrap_err();
    assert!(matches!(error, DataError::LanguageModel { .. }), "{error}");
    for bad in [
        TrainOptions { language: "../x".into(), ..options(folder.path()) },
        TrainOptions { vocab_size: 10, ..options(folder.path()) },
        TrainOptions { character_coverage: f64::NAN, ..options(folder.path()) },
        TrainOptions { documents: 0, ..options(folder.path()) },
    ] {
        let error = train(&bad, &none, None, [0; 2], ProgressMode::Hidden).unwrap_err();
        assert!(matches!(error, DataError::Config { .. }), "{error}");
    }
    let error = PerplexityModel::open(folder.path(), "en").unwrap_err();
    assert!(error.to_string().contains("en.json: missing"), "{error}");
    std::fs::write(folder.path().join("en.ngrams"), b"\\data\\\n").unwrap();
    let error = NGramModel::open(&folder.path().join("en.ngrams")).unwrap_err();
    assert!(error.to_string().contains("ARPA"), "{error}");
}
