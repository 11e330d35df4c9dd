//! Copies that split the weights too: the bits of whole ones, and what they exchange.

use altiplano_data::Batch;
use altiplano_model::params::Weights;
use altiplano_trainer::config::{TrainConfig, load};
use altiplano_trainer::launch::launch;
use altiplano_trainer::train_loop::open_loader;
use altiplano_trainer::train_step::Trainer;
use burn::tensor::{DType, Device};

use super::{LAYOUT, assert_same, train};
use crate::harness::SmallRun;

const PARAMETERS: &str = "parallel.shard=parameters";
const GRADIENTS: &str = "parallel.shard=gradients";
/// Validations in which the copies' batches do not come out even, and samples.
const LOOKS: [&str; 4] = [
    "validate.max_sequences=6",
    "sample.every=6",
    "sample.prompts=[\"The\"]",
    "sample.max_tokens=4",
];

fn samples(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| line.contains("The") && line.contains("step")).collect()
}

/// Weights that are gathered when a pass comes to them give the bits of whole ones: for any number of copies, any
/// buckets, every policy, while computing or between, alone, and with samples and validations.
#[test]
fn gathered_weights_change_no_bit() {
    let run = SmallRun::new();
    let said = train(&run, "name=one", &[&[GRADIENTS][..], &LOOKS].concat()).ok().stderr;
    let expected = samples(&said).into_iter().map(String::from).collect::<Vec<_>>();
    assert_eq!(expected.len(), 2, "{said}");
    for (name, settings) in [
        ("two", &["--ranks", "2", "threads=2"][..]),
        ("four", &["--ranks", "4", "parallel.overlap=false", "parallel.bucket_bytes=1"]),
        ("large", &["--ranks", "2", "parallel.bucket_bytes=1073741824", "threads=1"]),
        ("alone", &["parallel.bucket_bytes=1"]),
        ("selective", &["--ranks", "2", "activation_checkpointing=selective"]),
        ("full", &["--ranks", "4", "activation_checkpointing=full", "parallel.bucket_bytes=1"]),
    ] {
        let settings = [&[PARAMETERS][..], &LOOKS, settings].concat();
        let said = train(&run, &format!("name={name}"), &settings).ok().stderr;
        assert_eq!(samples(&said), expected, "{name}");
        assert_same(&run, "one", name, 12);
    }
    // An embedding that is the head too is gathered for both.
    let tied = "model.tie_word_embeddings=true";
    train(&run, "name=tied", &[GRADIENTS, tied]).ok();
    train(&run, "name=tied_two", &[PARAMETERS, tied, "--ranks", "2"]).ok();
    assert_same(&run, "tied", "tied_two", 12);
}

/// Copies of a model that is split over tensor ranks, where several hold the same heads of keys and values.
#[test]
fn gathered_weights_of_split_matrices() {
    let run = SmallRun::new();
    for (tensor, ranks) in [("parallel.tensor=2", "4"), ("parallel.tensor=4", "8")] {
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{name}{ranks}"));
        let settings = [tensor, "precision=f32", "--ranks", ranks];
        train(&run, &format!("name={whole}"), &[&settings[..], &[GRADIENTS], &LOOKS].concat()).ok();
        train(&run, &format!("name={parts}"), &[&settings[..], &[PARAMETERS], &LOOKS].concat())
            .ok();
        assert_same(&run, &whole, &parts, 12);
    }
}

/// A run goes on with other copies and with weights whole again, bit for bit.
#[test]
fn gathered_weights_go_on_with_other_ranks() {
    let run = SmallRun::new();
    train(&run, "name=one", &[GRADIENTS]).ok();
    let start = [PARAMETERS, "--ranks", "2", "steps=3", "optimizer.decay_steps=12"];
    train(&run, "name=moves", &start).ok();
    for settings in [
        &["--ranks", "4", "steps=6"][..],
        &["--ranks", "2", "steps=9", GRADIENTS],
        &[PARAMETERS, "steps=12", "optimizer.decay_steps=null"],
    ] {
        let said = run.resume("moves", settings).ok().stderr;
        assert!(said.contains("same numbers bit for bit"), "{said}");
    }
    assert!(run.tensors("one", 12) == run.tensors("moves", 12));
}

/// What a rank has exchanged between copies in one step: operations and bytes.
fn exchanged(run: &SmallRun, settings: &[&str], copies: usize) -> (u64, u64) {
    let config: TrainConfig = load(&run.config(), &overrides(settings)).unwrap();
    let mut loader = open_loader(&config).unwrap().0;
    let batches: Vec<Batch> =
        (0..config.batch.grad_accum_steps).map(|_| loader.next_batch().unwrap()).collect();
    let step = launch(&config, Some(copies), |ranks| {
        let weights = Weights::init(&config.model, 1, DType::F32, &Device::flex());
        let mut trainer = Trainer::start_on(&config, weights, ranks)?;
        let share = ranks.share();
        let own: Vec<Batch> = batches.iter().skip(share.index).step_by(share.of).cloned().collect();
        let before = ranks.data_group().traffic();
        trainer.step(1, &own, 1e-3)?;
        let after = ranks.data_group().traffic();
        Ok((after.operations - before.operations, after.bytes - before.bytes))
    });
    step.unwrap().result
}

/// Exchanges of a step by what copies split: a reduce-scatter of the gradients, and gathers of the weights, of each
/// bucket, and norm gains once a micro-batch.
#[test]
fn exchanges_of_copies_are_as_many_and_as_large_as_said() {
    let run = SmallRun::new();
    let config: TrainConfig = load(&run.config(), &LAYOUT.map(String::from)).unwrap();
    let model = &config.model;
    let layers = model.n_layers as u64;
    // Buckets of one layer, of the head and of the embedding, each padded.
    for copies in [2usize, 4] {
        let (d, g) = (copies as u64, 4 / copies as u64);
        let piece = 16_384 * d;
        let table = ((model.vocab_size * model.dim) as u64).next_multiple_of(piece);
        let matrices = [
            model.attention_dim() * model.dim,
            model.kv_heads() * model.head_dim() * model.dim,
            model.kv_heads() * model.head_dim() * model.dim,
            model.attention_dim() * model.dim,
            model.ffn_dim() * model.dim,
            model.ffn_dim() * model.dim,
            model.ffn_dim() * model.dim,
        ];
        let layer: u64 = matrices.iter().map(|n| (*n as u64).next_multiple_of(16_384)).sum();
        let layer = layer.next_multiple_of(piece);
        let all = 2 * table + layers * layer;
        let gains = (2 * layers + 1) * model.dim as u64 * 4;
        let sent = |elements: u64, bytes: u64| (d - 1) * elements * bytes / d;
        for (shard, operations, bytes) in [
            ("optimizer", 2 * (layers + 2) + 1, sent(all, 4) + sent(all, 2) + (d - 1) * gains),
            (
                "gradients",
                g * (layers + 3) + layers + 2,
                g * (sent(all, 4) + (d - 1) * gains) + sent(all, 2),
            ),
            (
                "parameters",
                // The embedding and the head are gathered once a micro-batch, layers forward and backward.
                g * (layers + 3 + 2 * layers + 2),
                g * (sent(all, 4) + (d - 1) * gains + sent(all + layers * layer, 2)),
            ),
        ] {
            let shard = format!("parallel.shard={shard}");
            let (found, sent) = exchanged(&run, &[&shard, "parallel.bucket_bytes=1"], copies);
            assert_eq!(found, operations, "{shard} on {copies}");
            // Beside it, ranks compare what they call.
            let compared = sent.checked_sub(bytes);
            let most = 64 * operations * (d - 1);
            assert!(
                compared.is_some_and(|compared| compared <= most),
                "{shard}: {sent}, {bytes} said"
            );
        }
    }
}

fn overrides(settings: &[&str]) -> Vec<String> {
    LAYOUT.iter().chain(settings).map(|setting| (*setting).to_owned()).collect()
}
