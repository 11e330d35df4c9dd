#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::mixture::MixtureSource;
use crate::shard::ShardWriter;

const VOCABULARY: usize = 5000;

/// Writes a source whose shards have documents of these lengths. Token k of the source is
/// `first + k`, so every place is known by its id.
fn write_source(folder: &Path, name: &str, first: u32, split: Split, shards: &[&[u32]]) -> PathBuf {
    let path = folder.join(name);
    let mut next = first;
    let mut summaries = Vec::new();
    for (number, lengths) in shards.iter().enumerate() {
        let file = path.join(format!("{}-{number:05}.arrow", split.name()));
        let mut writer = ShardWriter::new(&file, "tok", VOCABULARY).with_batch_tokens(16);
        for &length in *lengths {
            let ids: Vec<u32> = (next..next + length).collect();
            writer.push(&ids, 4 * u64::from(length)).unwrap();
            next += length;
        }
        summaries.push(writer.finish(split).unwrap());
    }
    let manifest = ShardManifest::new(name, "tok", VOCABULARY, String::new(), summaries);
    manifest.write(&path).unwrap();
    path
}

/// Two sources: 103 tokens in three shards, and 41 tokens in one.
fn mixture(folder: &Path) -> MixtureConfig {
    let train = Split::Train;
    let lengths: [&[u32]; 3] = [&[7, 20, 13], &[40], &[3, 1, 19]];
    let a = write_source(folder, "a", 0, train, &lengths);
    let b = write_source(folder, "b", 1000, train, &[&[10, 31]]);
    MixtureConfig::of(vec![
        MixtureSource { path: a, weight: 3.0 },
        MixtureSource { path: b, weight: 1.0 },
    ])
}

fn options(readers: usize) -> LoaderOptions {
    LoaderOptions {
        seq_len: 8,
        batch_size: 3,
        seed: 1,
        readers,
        tokenizer_fingerprint: "tok".into(),
        vocab_size: VOCABULARY,
        progress: ProgressMode::Hidden,
    }
}

fn draw(loader: &mut Loader, batches: usize) -> Vec<Batch> {
    (0..batches).map(|_| loader.next_batch().unwrap()).collect()
}

#[test]
fn the_stream_is_the_same_for_any_number_of_readers() {
    let folder = tempfile::tempdir().unwrap();
    let config = mixture(folder.path());
    let expected = draw(&mut Loader::open(&config, options(0)).unwrap(), 60);
    for readers in [1, 2, 8] {
        let mut loader = Loader::open(&config, options(readers)).unwrap();
        assert!(draw(&mut loader, 60) == expected, "{readers} readers");
        assert_eq!(loader.state().sequences, 180);
    }
}

#[test]
fn resuming_is_exact_at_every_place_and_across_epochs() {
    let folder = tempfile::tempdir().unwrap();
    let config = mixture(folder.path());
    let mut whole = Loader::open(&config, options(2)).unwrap();
    let mut states = vec![whole.state()];
    let mut batches = Vec::new();
    for _ in 0..40 {
        batches.push(whole.next_batch().unwrap());
        states.push(whole.state());
    }
    // 120 sequences, 12 + 5 in an epoch: many epochs of both sources.
    for (place, state) in states.iter().enumerate().take(30) {
        let text = serde_json::to_string(state).unwrap();
        let state: LoaderState = serde_json::from_str(&text).unwrap();
        let mut resumed = Loader::open(&config, options(place % 4)).unwrap();
        if place % 3 == 0 {
            draw(&mut resumed, 2); // a running loader can be moved too
        }
        resumed.restore(&state).unwrap();
        assert_eq!(draw(&mut resumed, 10), batches[place..place + 10], "from {place}");
    }
}

#[test]
fn skipping_is_drawing_without_reading() {
    let folder = tempfile::tempdir().unwrap();
    let config = mixture(folder.path());
    let mut whole = Loader::open(&config, options(0)).unwrap();
    for place in 0..30 {
        let mut skipped = Loader::open(&config, options(place % 3)).unwrap();
        draw(&mut skipped, place % 2); // a running loader can be moved on too
        skipped.skip_batches((place - place % 2) as u64);
        assert_eq!(skipped.state(), whole.state(), "{place}");
        assert_eq!(skipped.next_batch().unwrap(), whole.next_batch().unwrap(), "{place}");
    }
}

#[test]
fn an_origin_tells_epoch_and_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let config = MixtureConfig::of(mixture(folder.path()).sources[..1].to_vec());
    let mut loader = Loader::open(&config, options(0)).unwrap();
    // 12 sequences of 8 tokens: 4 batches an epoch. Token k of the source is k.
    for (number, batch) in draw(&mut loader, 10).into_iter().enumerate() {
        for (row, origin) in batch.origins.iter().enumerate() {
            assert_eq!(origin.epoch, number as u64 / 4);
            assert_eq!(origin.sequence * 8, batch.inputs[row * 8] as u64);
        }
    }
}

#[test]
fn an_epoch_visits_every_sequence_once() {
    let folder = tempfile::tempdir().unwrap();
    let config = MixtureConfig::of(mixture(folder.path()).sources[..1].to_vec());
    let mut loader = Loader::open(&config, options(2)).unwrap();
    let epochs: Vec<Vec<i32>> = (0..3)
        .map(|_| {
            let batches = draw(&mut loader, 4); // 12 sequences
            batches.iter().flat_map(|batch| batch.inputs.chunks(8).map(|row| row[0])).collect()
        })
        .collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort();
        assert_eq!(sorted, (0..12).map(|sequence| sequence * 8).collect::<Vec<_>>());
    }
    assert_ne!(epochs[0], epochs[1]);
}

#[test]
fn rows_are_windows_with_shifted_targets_and_document_starts() {
    let folder = tempfile::tempdir().unwrap();
    let config = mixture(folder.path());
    let mut starts = vec![0];
    for length in [7, 20, 13, 40, 3, 1, 19] {
        starts.push(starts.last().unwrap() + length);
    }
    let mut seen = 0;
    for mask in [false, true] {
        let config = MixtureConfig { mask_document_boundary: mask, ..config.clone() };
        let mut loader = Loader::open(&config, options(0)).unwrap();
        for batch in draw(&mut loader, 16) {
            for row in 0..3 {
                let inputs = &batch.inputs[row * 8..][..8];
                let origin = &batch.origins[row];
                if origin.source_index != 0 {
                    assert!(inputs[0] >= 1000 && &*origin.source == "b");
                    continue;
                }
                seen += 1;
                let first = inputs[0];
                // Token k of the shard named is the first token of the row.
                let shard_start = [0, 40, 80][origin.shard[origin.shard.len() - 7..]
                    .chars()
                    .next()
                    .unwrap()
                    .to_digit(10)
                    .unwrap() as usize];
                assert_eq!(shard_start + origin.token as i32, first);
                for at in 0..8i32 {
                    let token = first + at;
                    assert_eq!(inputs[at as usize], token);
                    let begins = starts.contains(&(token + 1));
                    let target = if mask && begins { IGNORED_TARGET } else { token + 1 };
                    assert_eq!(batch.targets[row * 8 + at as usize], target);
                    let start = *starts.iter().rfind(|start| **start <= token).unwrap();
                    let visible = (start - first).max(0);
                    assert_eq!(batch.first_visible[row * 8 + at as usize], visible);
                }
            }
        }
    }
    assert!(seen > 50);
}

#[test]
fn shares_and_epochs_are_reported_and_met() {
    let folder = tempfile::tempdir().unwrap();
    let mut loader = Loader::open(&mixture(folder.path()), options(2)).unwrap();
    let report = loader.report();
    assert_eq!((report[0].tokens, report[0].documents, report[0].bytes), (103, 7, 412));
    assert_eq!((report[0].share, report[1].share), (0.75, 0.25));
    assert!((report[1].epochs(410) - 2.5).abs() < 1e-9);
    let mut counts = BTreeMap::new();
    for batch in draw(&mut loader, 400) {
        for origin in batch.origins {
            *counts.entry(origin.source_index).or_insert(0) += 1;
        }
    }
    assert_eq!(counts, BTreeMap::from([(0, 900), (1, 300)]));
}

#[test]
fn shards_that_do_not_fit_are_refused_before_the_first_batch() {
    let folder = tempfile::tempdir().unwrap();
    let config = mixture(folder.path());
    let open = |config: &MixtureConfig, options| Loader::open(config, options).unwrap_err();

    let mut other = options(1);
    other.tokenizer_fingerprint = "another".into();
    let error = open(&config, other);
    assert!(matches!(error, DataError::TokenizerMismatch { .. }), "{error}");

    let mut small = options(1);
    small.vocab_size = VOCABULARY - 1;
    assert!(open(&config, small).to_string().contains("4999"));

    let mut long = options(1);
    long.seq_len = 41;
    let error = open(&config, long).to_string();
    assert!(error.contains("41 tokens") && error.contains("42 tokens"), "{error}");
    let mut wide = options(1);
    wide.batch_size = 18;
    let error = open(&config, wide).to_string();
    assert!(error.contains("144 tokens") && error.contains("145 tokens"), "{error}");

    let twice = MixtureConfig::of(vec![config.sources[0].clone(); 2]);
    assert!(matches!(open(&twice, options(1)), DataError::Config { .. }));
    let mut weightless = config.clone();
    weightless.sources[1].weight = 0.0;
    assert!(matches!(open(&weightless, options(1)), DataError::Config { .. }));
    let missing =
        MixtureConfig::of(vec![MixtureSource { path: folder.path().join("nothing"), weight: 1.0 }]);
    assert!(matches!(open(&missing, options(1)), DataError::NotMade { .. }));

    // One byte of one shard.
    let shard = config.sources[0].path.join("train-00001.arrow");
    let mut bytes = std::fs::read(&shard).unwrap();
    let place = bytes.windows(4).position(|b| b == [41, 0, 42, 0]).unwrap();
    bytes[place] = 40;
    std::fs::write(&shard, &bytes).unwrap();
    let error = open(&config, options(1)).to_string();
    assert!(error.contains("train-00001.arrow") && error.contains("altered"), "{error}");
    std::fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    let unchecked = MixtureConfig { verify_checksums: false, ..config.clone() };
    assert!(open(&unchecked, options(1)).to_string().contains("truncated"));
    std::fs::remove_file(&shard).unwrap();
    assert!(open(&config, options(1)).to_string().contains("missing"));
}

#[test]
fn states_of_other_runs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = mixture(folder.path());
    let mut loader = Loader::open(&config, options(0)).unwrap();
    draw(&mut loader, 3);
    let state = loader.state();
    let mut other_seed = options(0);
    other_seed.seed = 2;
    let mut other_length = options(0);
    other_length.seq_len = 7;
    let mut other_weight = config.clone();
    other_weight.sources[0].weight = 2.0;
    for (config, options) in
        [(&config, other_seed), (&config, other_length), (&other_weight, options(0))]
    {
        let mut other = Loader::open(config, options).unwrap();
        let before = other.state();
        let error = other.restore(&state).unwrap_err();
        assert!(matches!(error, DataError::StateMismatch { .. }), "{error}");
        assert_eq!(other.state(), before);
    }
    let mut broken = state.clone();
    broken.sequences += 1;
    assert!(loader.restore(&broken).is_err());
    broken.per_source.push(1);
    assert!(loader.restore(&broken).is_err());
    // The batch size and the number of readers may change.
    let mut wider = options(3);
    wider.batch_size = 9;
    let mut wider = Loader::open(&config, wider).unwrap();
    wider.restore(&state).unwrap();
    let expected: Vec<i32> = draw(&mut loader, 3).into_iter().flat_map(|b| b.inputs).collect();
    assert_eq!(wider.next_batch().unwrap().inputs, expected);
}

#[test]
fn random_tokens_need_no_corpus_and_repeat_exactly() {
    let config = MixtureConfig::random();
    let expected = draw(&mut Loader::open(&config, options(0)).unwrap(), 20);
    assert!(draw(&mut Loader::open(&config, options(3)).unwrap(), 20) == expected);
    let ids: Vec<i32> = expected.iter().flat_map(|batch| batch.inputs.clone()).collect();
    assert!(ids.iter().all(|id| (0..VOCABULARY as i32).contains(id)));
    let mean = ids.iter().map(|id| f64::from(*id)).sum::<f64>() / ids.len() as f64;
    assert!((2000.0..3000.0).contains(&mean), "{mean}");
    assert_ne!(expected[0].inputs, expected[1].inputs);
    assert_eq!(expected[0].inputs[1..8], expected[0].targets[..7]);
}

#[test]
fn a_loader_can_be_dropped_at_any_time() {
    let folder = tempfile::tempdir().unwrap();
    let config = mixture(folder.path());
    for batches in 0..5 {
        let mut loader = Loader::open(&config, options(4)).unwrap();
        draw(&mut loader, batches);
    }
}

#[test]
fn validation_predicts_every_token_but_the_first_once() {
    let folder = tempfile::tempdir().unwrap();
    let a = write_source(folder.path(), "a", 0, Split::Validation, &[&[7, 20], &[13, 40]]);
    let config = MixtureConfig::of(vec![MixtureSource { path: a, weight: 1.0 }]);
    let set = ValidationSet::open(&config, &options(0)).unwrap();
    let source = &set.sources()[0];
    assert_eq!((source.tokens, source.sequences, source.targets), (80, 10, 79));
    let batches: Vec<Batch> = set.batches(0, None).map(|batch| batch.unwrap()).collect();
    assert_eq!(batches.len(), 4);
    let targets: Vec<i32> =
        batches.iter().flat_map(|b| b.targets.clone()).filter(|t| *t >= 0).collect();
    assert_eq!(targets, (1..80).collect::<Vec<_>>());
    assert_eq!(batches.iter().map(Batch::valid_targets).sum::<usize>(), 79);
    assert!(batches.iter().all(|batch| batch.targets.len() == 24));
    // One bit per target, 79 targets over 320 bytes.
    let bits = source.bits_per_byte(79.0 * std::f64::consts::LN_2, 79);
    assert!((bits - 79.0 / 320.0).abs() < 1e-12);
    // Two batches of three windows, spread over all ten; five windows leave a row of padding.
    let firsts = |most: usize| -> Vec<(i32, usize)> {
        let batches = set.batches(0, Some(most)).map(|batch| batch.unwrap());
        let rows = |batch: Batch| {
            let row = |row: usize| {
                let targets = &batch.targets[row * 8..][..8];
                (batch.inputs[row * 8], targets.iter().filter(|target| **target >= 0).count())
            };
            (0..3).map(row).collect::<Vec<_>>()
        };
        batches.flat_map(rows).collect()
    };
    assert_eq!(firsts(6), [(0, 8), (8, 8), (24, 8), (40, 8), (48, 8), (64, 8)]);
    assert_eq!(firsts(5), [(0, 8), (16, 8), (32, 8), (48, 8), (64, 8), (0, 0)]);
    assert_eq!(firsts(1), [(0, 8), (0, 0), (0, 0)]);
    assert_eq!(set.batches(7, None).count(), 0);

    // A corpus of training shards alone has no validation set.
    let b = write_source(folder.path(), "b", 0, Split::Train, &[&[30]]);
    let config = MixtureConfig::of(vec![MixtureSource { path: b, weight: 1.0 }]);
    let error = ValidationSet::open(&config, &options(0)).unwrap_err();
    assert!(matches!(error, DataError::CorpusTooSmall { .. }), "{error}");
}

#[test]
fn mixtures_are_the_word_random_or_a_map() {
    let word: MixtureConfig = serde_yaml::from_str("random").unwrap();
    assert!(word.random);
    let map: MixtureConfig =
        serde_yaml::from_str("sources:\n  - {path: tokens/a, weight: 2}\n").unwrap();
    assert!(map.verify_checksums && !map.mask_document_boundary);
    assert_eq!(map.sources[0].weight, 2.0);
    let again: MixtureConfig = serde_yaml::from_str(&serde_yaml::to_string(&map).unwrap()).unwrap();
    assert_eq!(again, map);
    let error = serde_yaml::from_str::<MixtureConfig>("sources: []\nwieght: 1\n").unwrap_err();
    assert!(error.to_string().contains("wieght"), "{error}");
    assert!(serde_yaml::from_str::<MixtureConfig>("randon").is_err());
}
