//! A model on several tensor ranks, which are threads, against the same model on one.

use altiplano_comm::{Options, RankGrid, Traffic, World};
use altiplano_model::backend::AdamWStep;
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::parallel::{
    Group, TensorGroup, TensorRank, Tokens, gather_tokens_backward, gather_tokens_forward,
    sum_gain_gradients, sum_kv_gradients, sum_tokens_backward, sum_tokens_forward,
};
use altiplano_model::param_ops::{AdamWState, adamw_step};
use altiplano_model::param_tree::Leaf;
use altiplano_model::params::{Grads, Weights};
use altiplano_model::{ActivationCheckpointing, LlamaConfig, Precision};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{POLICIES, random, random_ids, relative_error, tiny_config, values};

const F64: DType = DType::F64;

/// Runs `rank` on as many threads, which end together.
fn on_ranks<T: Send>(ranks: usize, rank: impl Fn(&World) -> T + Sync) -> Vec<T> {
    let rank = |world: World| {
        let result = rank(&world);
        world.finish().unwrap();
        result
    };
    World::run_threads(ranks, &Options::default(), rank).unwrap()
}

/// How a model is computed.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub ranks: usize,
    pub sequence: bool,
    pub overlap: bool,
    pub policy: ActivationCheckpointing,
}

impl Layout {
    pub fn new(ranks: usize, sequence: bool) -> Self {
        Self { ranks, sequence, overlap: true, policy: ActivationCheckpointing::None }
    }
}

/// One micro-batch through a model.
#[derive(Debug, PartialEq)]
pub struct Step {
    /// Of every token.
    pub losses: Vec<f64>,
    /// Whole, in the order of the checkpoint.
    pub grads: Vec<TensorData>,
    /// Of all gradients, each counted once.
    pub norm: f64,
}

/// A rank's model and the groups it is in.
struct Rank {
    place: TensorRank,
    model: Llama,
    kv: Group,
}

impl Rank {
    fn new(world: &World, config: &LlamaConfig, weights: Weights, layout: Layout) -> Self {
        let place = TensorRank::new(world.rank(), layout.ranks, config).unwrap();
        let grid = RankGrid::new(layout.ranks, None, layout.ranks).unwrap();
        let tensor = world.split("tensor", grid.tensor_group(world.rank())).unwrap();
        let kv = world.split("kv", grid.kv_group(world.rank(), config.kv_heads())).unwrap();
        let mut model = Llama::new(config.clone(), weights, layout.policy).unwrap();
        model.tensor = TensorGroup::new(tensor, layout.sequence, layout.overlap);
        let kv = if kv.ranks() == 1 { Group::Single } else { Group::Host(kv) };
        Self { place, model, kv }
    }

    /// Losses of a micro-batch; `grads` are complete after it.
    fn step(&self, batch: &TokenBatch, scale: f64, grads: &mut Grads) -> Vec<f64> {
        let losses = self.model.loss_and_gradients(batch, scale, grads).unwrap();
        sum_gain_gradients(grads, &self.model.tensor).unwrap();
        sum_kv_gradients(grads, &self.kv).unwrap();
        values(&losses)
    }
}

/// One micro-batch on ranks, and what each has exchanged in the pass.
pub fn step_on_ranks(
    config: &LlamaConfig,
    weights: &Weights,
    batch: &TokenBatch,
    scale: f64,
    layout: Layout,
) -> (Step, Traffic) {
    let grads_dtype = if weights.norm.dtype() == F64 { F64 } else { DType::F32 };
    let results = on_ranks(layout.ranks, |world| {
        let place = TensorRank::new(world.rank(), layout.ranks, config).unwrap();
        let rank = Rank::new(world, config, place.split(weights, config), layout);
        let local = rank.place.local_config(config);
        let mut grads = Grads::zeros(&local, grads_dtype, &Device::flex());
        let losses = rank.model.loss_and_gradients(batch, scale, &mut grads).unwrap();
        let traffic = match rank.model.tensor.group() {
            Group::Host(group) => group.traffic(),
            Group::Single => Traffic::default(),
        };
        // The same losses without a backward pass, on every rank.
        let again = rank.model.losses(batch).unwrap();
        let close = relative_error(&values(&again), &values(&losses));
        assert!(close < 1e-6, "the losses without gradients differ by {close:e}");
        sum_gain_gradients(&mut grads, &rank.model.tensor).unwrap();
        sum_kv_gradients(&mut grads, &rank.kv).unwrap();
        let squares = |leaf: Leaf<&Tensor<1>, &Tensor<2>>| {
            leaf.to_data().iter::<f64>().map(|x| x * x).sum::<f64>()
        };
        let counted = grads.iter().filter(|(param, _)| place.is_first_holder(*param, config));
        let squares: f64 = counted.map(|(_, leaf)| squares(leaf)).sum();
        (values(&losses), grads, squares, traffic)
    });
    for (losses, ..) in &results {
        assert_eq!(losses, &results[0].0, "ranks have different losses");
    }
    let (losses, traffic) = (results[0].0.clone(), results[0].3);
    let norm = results.iter().map(|(_, _, squares, _)| squares).sum::<f64>().sqrt();
    let parts: Vec<Grads> = results.into_iter().map(|(_, grads, ..)| grads).collect();
    copies_are_equal(config, &parts);
    let joined = TensorRank::join(&parts, config);
    let grads = joined.iter().map(|(_, grad)| grad.to_data()).collect();
    (Step { losses, grads, norm }, traffic)
}

/// What several ranks hold has the same bits on all of them.
fn copies_are_equal(config: &LlamaConfig, parts: &[Grads]) {
    let all = TensorRank::all(parts.len(), config).unwrap();
    for rank in 1..parts.len() {
        for ((param, here), (_, before)) in parts[rank].iter().zip(parts[rank - 1].iter()) {
            if !all[rank].is_first_holder(param, config) {
                assert_eq!(here.to_data(), before.to_data(), "{param} on rank {rank}");
            }
        }
    }
}

/// Holds `found` to `expected`: losses, every gradient and the norm, relative to the largest
/// element of each.
fn assert_steps_close(what: &str, found: &Step, expected: &Step, tolerance: f64) {
    let close = |what: &str, x: &[f64], y: &[f64]| {
        assert_eq!(x.len(), y.len(), "{what}");
        let largest = y.iter().fold(0f64, |most, y| most.max(y.abs()));
        let error = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0f64, f64::max);
        assert!(error <= tolerance * largest, "{what}: off by {error:e} of {largest:e}");
    };
    close(&format!("{what}: losses"), &found.losses, &expected.losses);
    for (n, (x, y)) in found.grads.iter().zip(&expected.grads).enumerate() {
        let (x, y): (Vec<f64>, Vec<f64>) = (x.iter().collect(), y.iter().collect());
        close(&format!("{what}: gradient {n}"), &x, &y);
    }
    close(&format!("{what}: norm"), &[found.norm], &[expected.norm]);
}

/// 8 heads, and words that do not divide evenly.
fn config(kv_heads: usize, vocab_size: usize) -> LlamaConfig {
    LlamaConfig {
        dim: 32,
        n_heads: 8,
        n_kv_heads: Some(kv_heads),
        vocab_size,
        tie_word_embeddings: kv_heads == 8,
        ..tiny_config()
    }
}

/// Weights whose norm gains are nowhere one.
fn weights(config: &LlamaConfig, dtype: DType) -> Weights {
    let mut weights = Weights::init(config, 5, dtype, &Device::flex());
    for (param, weight) in weights.iter_mut() {
        if let Leaf::Vector(gain) = weight {
            let noise = random(gain.dims(), 100 + param.index() as u64, dtype, &Device::flex());
            gain.inplace(|gain| gain + noise * 0.3);
        }
    }
    weights
}

/// Two documents in each row, and targets that are ignored.
fn batch([rows, time]: [usize; 2], vocab_size: usize) -> TokenBatch {
    let (device, words) = (Device::flex(), vocab_size as i32);
    let targets = random_ids([rows, time], words, 2, &device).to_data();
    let ignored = |(n, target)| if n % 5 == 3 { -100 } else { target };
    let targets: Vec<i32> = targets.iter::<i32>().enumerate().map(ignored).collect();
    let first = (0..rows * time).map(|n| if n % time < time / 2 { 0 } else { time / 2 });
    let matrix = |values: Vec<i32>| -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, [rows, time]), (&device, DType::I32))
    };
    TokenBatch {
        inputs: random_ids([rows, time], words, 1, &device),
        targets: matrix(targets),
        first_visible: Some(matrix(first.map(|first| first as i32).collect())),
    }
}

/// A pair is linear, so its backward pass is held to finite differences of a scalar, on 1 to 4
/// ranks, with tokens split evenly, unevenly, and not at all.
#[test]
fn exchanged_tokens_have_the_gradient_of_finite_differences() {
    type Forward = fn(&Tensor<3>, &Tokens) -> Tensor<3>;
    type Backward = fn(&Tensor<3>, &Tokens) -> Tensor<3>;
    let pairs: [(&str, Forward, Backward); 2] = [
        (
            "gather",
            |x, tokens| gather_tokens_forward(x, tokens).wait().unwrap(),
            |dy, tokens| gather_tokens_backward(dy.clone(), tokens).wait().unwrap(),
        ),
        (
            "sum",
            |x, tokens| sum_tokens_forward(x.clone(), tokens).wait().unwrap(),
            |dy, tokens| sum_tokens_backward(dy, tokens).wait().unwrap(),
        ),
    ];
    let (device, channels, shape) = (Device::flex(), 5, [2, 7]);
    for ranks in 1..=4 {
        for (sequence, (name, forward, backward)) in
            [true, false].into_iter().flat_map(|sequence| pairs.map(|pair| (sequence, pair)))
        {
            let of_ranks = on_ranks(ranks, |world| {
                let group = TensorGroup::new(world.everybody().clone(), sequence, true);
                let tokens = Tokens::new(&group, shape);
                let share = match group.splits_tokens() {
                    true => [1, group.group().own_rows(14).len(), channels],
                    false => [2, 7, channels],
                };
                let whole = [2, 7, channels];
                let gathers = name == "gather";
                let (input, output) = if gathers { (share, whole) } else { (whole, share) };
                // Every rank has values of its own, but for what is the same on all ranks without
                // shares.
                let seed = |own: bool, n: u64| if own { n + world.rank() as u64 } else { n };
                let x = random(input, seed(sequence || !gathers, 10), F64, &device);
                let direction = random(input, seed(sequence || !gathers, 20), F64, &device);
                let dy = random(output, seed(sequence || gathers, 30), F64, &device);
                let dot = |x: &Tensor<3>, y: &Tensor<3>| -> f64 {
                    values(x).iter().zip(values(y)).map(|(x, y)| x * y).sum()
                };
                let scalar = |step: f64| {
                    let x = x.clone() + direction.clone() * step;
                    dot(&forward(&x, &tokens), &dy)
                };
                let numeric = (scalar(0.5) - scalar(-0.5)) / 1.0;
                (numeric, dot(&backward(&dy, &tokens), &direction))
            });
            // Without shares a scalar of a sum is on every rank, and so is a gradient of what all have.
            let counted = |on_all: bool| if on_all && !sequence { 1 } else { ranks };
            let numeric: f64 = of_ranks[..counted(name == "sum")].iter().map(|(n, _)| n).sum();
            let ours: f64 = of_ranks[..counted(name == "gather")].iter().map(|(_, o)| o).sum();
            let error = (ours - numeric).abs();
            assert!(
                error < 1e-10 * (1.0 + numeric.abs()),
                "{name} on {ranks}, sequence {sequence}: {ours} {numeric}"
            );
        }
    }
}

/// 2 and 4 ranks against one: heads alone, grouped, and fewer than ranks; words that do not divide
/// evenly; one row, and two; all policies; waiting at once.
#[test]
fn ranks_have_the_gradients_of_one() {
    for (kv_heads, vocab_size, shape) in
        [(8, 37, [1, 12]), (2, 41, [2, 10]), (1, 37, [2, 6]), (4, 41, [3, 5])]
    {
        let config = config(kv_heads, vocab_size);
        let (weights, batch) = (weights(&config, F64), batch(shape, vocab_size));
        let step = |layout| step_on_ranks(&config, &weights, &batch, 0.07, layout).0;
        let expected = step(Layout::new(1, true));
        for ranks in [2, 4] {
            for sequence in [true, false] {
                for policy in POLICIES {
                    let layout = Layout { policy, ..Layout::new(ranks, sequence) };
                    let what = format!("{kv_heads} heads of {shape:?}, {layout:?}");
                    assert_steps_close(&what, &step(layout), &expected, 1e-12);
                }
            }
        }
        let at_once = Layout { overlap: false, ..Layout::new(4, true) };
        assert_eq!(step(at_once), step(Layout::new(4, true)));
    }
}

/// Logits of words that several ranks hold, in their order.
#[test]
fn logits_of_ranks_are_those_of_one() {
    let config = config(2, 41);
    let (weights, batch) = (weights(&config, F64), batch([2, 6], 41));
    let logits = |ranks| {
        on_ranks(ranks, |world| {
            let layout = Layout::new(ranks, true);
            let place = TensorRank::new(world.rank(), ranks, &config).unwrap();
            let rank = Rank::new(world, &config, place.split(&weights, &config), layout);
            values(&rank.model.logits(&batch).unwrap())
        })
    };
    let expected = logits(1).remove(0);
    for found in logits(4) {
        assert!(relative_error(&found, &expected) < 1e-13);
    }
}

/// The kernels: more tokens than a chunk of the head, and for every policy. With and without
/// sequence parallelism the bits are the same but for norm gains, whose gradients are added in
/// another order.
fn kernels_on_ranks(precision: Precision, tolerance: f64) {
    let config = LlamaConfig { max_seq_len: 210, ..config(2, 211) };
    let weights = weights(&config, DType::F32).compute_copy(precision);
    let batch = batch([2, 205], 211);
    let step = |layout| step_on_ranks(&config, &weights, &batch, 1.0 / 410.0, layout).0;
    let one = step(Layout::new(1, true));
    let mut by_sequence = Vec::new();
    for sequence in [true, false] {
        let [none, selective, full] =
            POLICIES.map(|policy| step(Layout { policy, ..Layout::new(2, sequence) }));
        assert!(relative_error(&none.losses, &one.losses) < tolerance);
        for (n, (x, y)) in none.grads.iter().zip(&one.grads).enumerate() {
            let (x, y): (Vec<f64>, Vec<f64>) = (x.iter().collect(), y.iter().collect());
            let error = relative_error(&x, &y);
            assert!(error < tolerance, "gradient {n}: {error:e}");
        }
        assert!((none.norm - one.norm).abs() < tolerance * one.norm);
        assert_eq!(none, selective);
        assert_eq!(none, full);
        by_sequence.push(none);
    }
    let [with, without] = &by_sequence[..] else { unreachable!("two forms") };
    assert_eq!(with.losses, without.losses);
    for (x, y) in with.grads.iter().zip(&without.grads) {
        if x.shape().len() == 2 {
            assert_eq!(x, y);
        }
    }
}

#[test]
fn f32_kernels_on_ranks() {
    kernels_on_ranks(Precision::F32, 1e-5);
}

/// Partial sums are rounded to 8 bits before they are added.
#[test]
fn bf16_kernels_on_ranks() {
    kernels_on_ranks(Precision::Bf16, 4e-2);
}

/// 100 steps in bf16 on 1 and 2 ranks: the first loss within 2e-3, the last within 1%.
#[test]
fn bf16_training_on_ranks_stays_near_one() {
    let config = LlamaConfig { init_std: 0.02, ..config(2, 101) };
    let whole = weights(&config, DType::F32);
    let batch = batch([4, 16], 101);
    let train = |layout: Layout| -> Vec<f64> {
        let mut of_ranks = on_ranks(layout.ranks, |world| {
            let place = TensorRank::new(world.rank(), layout.ranks, &config).unwrap();
            let master_weights = place.split(&whole, &config);
            let compute = master_weights.compute_copy(Precision::Bf16);
            let mut rank = Rank::new(world, &config, compute, layout);
            let local = place.local_config(&config);
            let zeros = || Grads::zeros(&local, DType::F32, &Device::flex());
            let mut state = AdamWState { master_weights, m: zeros(), v: zeros() };
            (1..=100)
                .map(|step| {
                    let mut grads = zeros();
                    let losses = rank.step(&batch, 1.0 / 52.0, &mut grads);
                    let hyper = AdamWStep {
                        lr: 5e-3,
                        beta1: 0.9,
                        beta2: 0.95,
                        eps: 1e-8,
                        weight_decay: 0.1,
                        step,
                        grad_scale: 1.0,
                    };
                    adamw_step(&mut state, &mut rank.model.weights, &grads, &hyper);
                    losses.iter().sum::<f64>() / 52.0
                })
                .collect::<Vec<f64>>()
        });
        of_ranks.swap_remove(0)
    };
    let one = train(Layout::new(1, true));
    let two = train(Layout::new(2, true));
    assert!((one[0] - two[0]).abs() < 2e-3 * one[0], "{} {}", one[0], two[0]);
    assert!(one[99] < 0.5 * one[0], "{} does not learn", one[99]);
    assert!((one[99] - two[99]).abs() < 1e-2 * one[99], "{} {}", one[99], two[99]);
}

/// Exchanges of a step and their bytes: 4 forward and 6 backward in a layer, `full` 3 more;
/// embedding and head.
#[test]
fn exchanges_are_as_many_and_as_large_as_said() {
    let config = config(8, 41);
    let (weights, batch) = (weights(&config, F64), batch([2, 10], 41));
    let (tokens, layers) = (20, config.n_layers as u64);
    for ranks in [2, 4] {
        // The share of a rank goes to every other one.
        let activations = (ranks as u64 - 1) * (tokens * config.dim * 8 / ranks) as u64;
        let statistics = (ranks as u64 - 1) * (tokens * 3 * 8) as u64;
        for (sequence, policy, of_layer, outside, parts) in [
            (true, ActivationCheckpointing::None, 10, 4, 1),
            (true, ActivationCheckpointing::Selective, 10, 4, 1),
            (true, ActivationCheckpointing::Full, 13, 4, 1),
            // Sums over ranks, of two parts each; those of the head and after the embedding among them.
            (false, ActivationCheckpointing::None, 4, 2, 2),
            (false, ActivationCheckpointing::Full, 5, 2, 2),
        ] {
            let layout = Layout { policy, ..Layout::new(ranks, sequence) };
            let traffic = step_on_ranks(&config, &weights, &batch, 0.07, layout).1;
            let exchanges = layers * of_layer + outside;
            assert_eq!(traffic.operations, exchanges + 1, "{layout:?}");
            let bytes = exchanges * activations * parts + statistics;
            // Beside it, ranks compare what they call.
            let compared = traffic.bytes - bytes;
            let most = 64 * (exchanges + 1) * (ranks as u64 - 1);
            assert!(compared <= most, "{layout:?}: {} bytes, {bytes} said", traffic.bytes);
        }
    }
}
