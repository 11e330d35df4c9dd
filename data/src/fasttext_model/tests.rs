//! Tests of reading and scoring.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::progress::Progress;

fn trained(options: &TrainingOptions) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines");
    let text = "__label__en the house and the garden\n__label__de das haus und der garten\n\
                __label__fr la maison et le jardin\n";
    std::fs::write(&lines, text.repeat(30)).unwrap();
    let path = folder.path().join("model.bin");
    let progress = Progress::hidden();
    train(&lines, &path, options, &progress).unwrap();
    assert!(progress.share().is_some_and(|share| share <= 1.0));
    (folder, path)
}

fn small() -> TrainingOptions {
    TrainingOptions {
        dimensions: 8,
        epochs: 50,
        learning_rate: 0.5,
        min_chars: 2,
        max_chars: 3,
        word_ngrams: 2,
        buckets: 300,
        ..TrainingOptions::default()
    }
}

#[test]
fn every_loss_learns_and_is_read_back() {
    for loss in [Loss::Softmax, Loss::HierarchicalSoftmax, Loss::NegativeSampling, Loss::OneVsAll] {
        let (_folder, path) = trained(&TrainingOptions { loss, ..small() });
        let model = FastTextModel::load(&path).unwrap();
        assert_eq!(model.labels().len(), 3);
        for (text, label) in [("the garden", "en"), ("das haus", "de"), ("la\nmaison", "fr")] {
            let all = model.predict(text, 10);
            assert_eq!(all[0].label, label, "{loss:?}");
            assert_eq!(model.predict(text, 1), all[..1]);
            assert!(all.is_sorted_by(|a, b| a.probability >= b.probability));
            if matches!(loss, Loss::Softmax | Loss::HierarchicalSoftmax) {
                let sum: f32 = all.iter().map(|prediction| prediction.probability).sum();
                assert!((sum - 1.0).abs() < 1e-3, "{loss:?} {sum}");
            }
        }
        assert!(model.predict("the", 0).is_empty());
    }
}

#[test]
fn training_twice_gives_the_same_bytes() {
    let read = |seed| std::fs::read(trained(&TrainingOptions { seed, ..small() }).1).unwrap();
    let first = read(1);
    assert_eq!(first, read(1));
    assert_ne!(first, read(2));
}

#[test]
fn bad_training_options_are_named() {
    let options = TrainingOptions { min_chars: 4, max_chars: 3, ..TrainingOptions::default() };
    let error = options.validate("training").unwrap_err().to_string();
    assert!(error.starts_with("training.min_chars: found 4"), "{error}");
    let options = TrainingOptions { learning_rate: f64::NAN, ..TrainingOptions::default() };
    assert!(options.validate("training").is_err());
}

#[test]
fn a_model_cut_short_anywhere_is_an_error() {
    let (folder, path) = trained(&TrainingOptions { buckets: 20, ..small() });
    let whole = std::fs::read(&path).unwrap();
    let cut = folder.path().join("cut.bin");
    for length in (0..whole.len()).step_by(7) {
        std::fs::write(&cut, &whole[..length]).unwrap();
        let error = FastTextModel::load(&cut).unwrap_err().to_string();
        assert!(error.contains("cut.bin") && error.contains("fastText"), "{error}");
    }
    std::fs::write(&cut, [&whole[..], b"x"].concat()).unwrap();
    assert!(FastTextModel::load(&cut).unwrap_err().to_string().contains("1 bytes follow"));
    std::fs::write(&cut, b"PK\x03\x04 no model at all").unwrap();
    assert!(FastTextModel::load(&cut).unwrap_err().to_string().contains("begins with"));
}

#[test]
fn a_claimed_size_allocates_nothing() {
    let (folder, path) = trained(&small());
    let whole = std::fs::read(&path).unwrap();
    let bad = folder.path().join("bad.bin");
    // Dictionary size, words, labels, tokens, pruned buckets; arguments before.
    for at in [8, 28, 40, 44, 48, 64, 68, 72, 84] {
        for value in [i32::MAX, i32::MIN, -1, 1 << 24] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            std::fs::write(&bad, &bytes).unwrap();
            if let Ok(model) = FastTextModel::load(&bad) {
                model.predict("the house", 3);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damage_never_panics(changes in prop::collection::vec((0usize..4000, any::<u8>()), 1..8), loss in 0..4) {
        thread_local! {
            static MODELS: Vec<Vec<u8>> = [Loss::Softmax, Loss::HierarchicalSoftmax, Loss::NegativeSampling, Loss::OneVsAll]
                .map(|loss| std::fs::read(trained(&TrainingOptions { loss, buckets: 20, ..small() }).1).unwrap())
                .to_vec();
        }
        let mut bytes = MODELS.with(|models| models[loss as usize].clone());
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.bin");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(model) = FastTextModel::load(&path) {
            for prediction in model.predict("the garden das haus </s> x", 5) {
                prop_assert!(prediction.probability.is_finite());
            }
        }
    }
}

/// Models and scores of fastText's own Python package (`scripts/golden/make_fasttext.py`).
#[test]
fn scores_are_those_of_fasttext() {
    #[derive(serde::Deserialize)]
    struct Expected {
        texts: Vec<String>,
        models: std::collections::BTreeMap<String, Vec<Vec<(String, f64)>>>,
    }
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/fasttext");
    let json = std::fs::read(golden.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_slice(&json).unwrap();
    assert_eq!(expected.models.len(), 4);
    for (name, scores) in expected.models {
        let model = FastTextModel::load(&golden.join(&name)).unwrap();
        for (text, scores) in expected.texts.iter().zip(scores) {
            let found = model.predict(text, 2);
            assert_eq!(found.len(), scores.len(), "{name} {text:?}");
            // Labels of equal probability, or of next to none, may come in either order.
            let tied = scores.len() == 2 && scores[0].1 - scores[1].1 < 1e-6;
            for (found, (label, probability)) in found.iter().zip(scores) {
                let difference = (f64::from(found.probability) - probability).abs();
                assert!(difference < 1e-5, "{name} {text:?}: {found:?}, expected {probability}");
                assert!(
                    tied || probability < 1e-4 || found.label == label,
                    "{name} {text:?}: {found:?}"
                );
            }
        }
    }
}
