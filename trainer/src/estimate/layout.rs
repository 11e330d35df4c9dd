//! How a run is spread over ranks: what a layout asks of the shapes, and the memory of a rank.
//!
//! `tensor` ranks split every matrix by heads, rows and columns; `data` copies of that work on
//! micro-batches of their own. With e bytes of an activation, w of a compute weight, t tensor ranks, d
//! copies and P_l the parameters of one tensor rank, a rank keeps
//!
//! ```text
//! shard        weights, gradients, masters and moments          exchanged in a step
//! none         (6 or 4 in f32) P_l + 4 P_l + 8 P_l               all-reduce of 4 P_l
//! optimizer    w P_l + 4 P_l + 12 P_l / d                        reduce-scatter 4 P_l, all-gather w P_l
//! gradients    w P_l + 16 P_l / d, 2 buckets                     a reduce-scatter each micro-batch
//! parameters   (w + 16) P_l / d, 2 buckets, 2 gathered           and 2 all-gathers of w P_l
//! ```
//!
//! and for the backward pass, per token and layer, what the policy saves. With `sequence` the tensor
//! ranks split that by tokens too:
//!
//! ```text
//! policy       with sequence                          without
//! none         [e(4C + 2HD + KV + 3F) + 4H + 8] / t   e 4C + 8 + [e(2HD + KV + 3F) + 4H] / t
//! selective    [e(2C + 2HD + KV + 2F) + 4H] / t       e 2C + [e(2HD + KV + 2F) + 4H] / t
//! full         e C / t                                e C
//! ```

use altiplano_model::LlamaConfig;
use altiplano_model::backend::HEAD_CHUNK;
use altiplano_model::config::{ActivationCheckpointing, Precision};
use serde::Serialize;

use crate::config::{ParallelConfig, Shard, TrainConfig};
use crate::error::{Result, TrainerError};

/// How a run is spread over ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Layout {
    /// Ranks that split every matrix.
    pub tensor: u64,
    /// Copies of the model.
    pub data: u64,
    /// Whether the tensor ranks split tokens between the matrices.
    pub sequence: bool,
    /// What the copies split.
    pub shard: Shard,
    /// Whether ranks exchange while they compute.
    pub overlap: bool,
    /// Sequences of one pass.
    pub micro_batch: u64,
    /// What a layer saves.
    pub policy: ActivationCheckpointing,
}

impl Layout {
    /// All ranks.
    pub fn ranks(&self) -> u64 {
        self.tensor * self.data
    }

    /// Whether a run of `config` can be trained so: the rules are those of training. A step keeps its number
    /// of sequences, whatever the size of a micro-batch.
    ///
    /// # Errors
    /// The first rule that does not hold, with what would fit.
    pub fn check(&self, config: &TrainConfig) -> Result<()> {
        let sequences = sequences_per_step(config);
        if self.micro_batch == 0 || !sequences.is_multiple_of(self.micro_batch) {
            return Err(TrainerError::Usage {
                message: format!(
                    "micro-batches of {} sequences: a step has {sequences} sequences (batch.micro_batch x \
                     batch.grad_accum_steps), expected a divisor of it",
                    self.micro_batch
                ),
            });
        }
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let mut run = config.clone();
        run.batch.micro_batch = number(self.micro_batch);
        run.batch.grad_accum_steps = number(sequences / self.micro_batch);
        run.parallel = ParallelConfig {
            tensor: number(self.tensor),
            sequence: self.sequence,
            data: Some(number(self.data)),
            shard: self.shard,
            overlap: self.overlap,
            ..run.parallel
        };
        run.check_parallel().map_err(|problem| TrainerError::Usage { message: problem.to_string() })
    }

    /// Tokens of a micro-batch.
    pub fn tokens(&self, config: &TrainConfig) -> u64 {
        self.micro_batch * config.batch.seq_len as u64
    }

    /// Micro-batches of one copy in a step.
    pub fn micro_batches(&self, config: &TrainConfig) -> u64 {
        sequences_per_step(config) / (self.data * self.micro_batch)
    }
}

/// Sequences of an optimizer step, over all copies.
pub fn sequences_per_step(config: &TrainConfig) -> u64 {
    config.batch.micro_batch as u64 * config.batch.grad_accum_steps as u64
}

/// Parameters that one tensor rank holds, the one that holds most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankParameters {
    /// In the matrices of a layer.
    pub layer: u64,
    /// In its rows of the embedding, and again in those of a head that is not tied to it.
    pub embedding: u64,
    /// Tables of that size: the embedding, and the head unless it is tied.
    tables: u64,
    /// In norm gains, which every rank holds whole.
    pub gains: u64,
    layers: u64,
}

impl RankParameters {
    /// Of `model` on `tensor` ranks.
    pub fn new(model: &LlamaConfig, tensor: u64) -> Self {
        let (c, f, d) = (model.dim as u64, model.ffn_dim() as u64, model.head_dim() as u64);
        let heads = model.n_heads as u64 / tensor;
        let kv_heads = (model.kv_heads() as u64 / tensor).max(1);
        let layers = model.n_layers as u64;
        Self {
            // q and o; k and v; gate, up and down.
            layer: 2 * heads * d * c + 2 * kv_heads * d * c + 3 * (f / tensor) * c,
            embedding: (model.vocab_size as u64).div_ceil(tensor) * c,
            tables: if model.tie_word_embeddings { 1 } else { 2 },
            gains: (2 * layers + 1) * c,
            layers,
        }
    }

    /// In all matrices: P_l.
    pub fn matrices(&self) -> u64 {
        self.layers * self.layer + self.tables * self.embedding
    }

    /// In the largest bucket of gradients, of which each has `bucket_bytes` in f32 at least.
    fn bucket(&self, bucket_bytes: u64) -> u64 {
        let joined = (bucket_bytes / 4).min(self.layers * self.layer);
        // Layers are joined until there are enough.
        self.layer.max(self.embedding).max(joined.div_ceil(self.layer.max(1)) * self.layer)
    }
}

/// Bytes that one rank saves per token and layer for the backward pass.
fn saved_per_token(
    model: &LlamaConfig,
    precision: Precision,
    layout: &Layout,
    policy: ActivationCheckpointing,
) -> u64 {
    let (e, t) = (precision.bytes() as u64, layout.tensor);
    let (c, f, h) = (model.dim as u64, model.ffn_dim() as u64, model.n_heads as u64);
    let hd = model.attention_dim() as u64;
    let kv_heads = (model.kv_heads() as u64 / t).max(1) * t;
    let kv = 2 * kv_heads * model.head_dim() as u64;
    // Shared by tokens or by nobody; shared by heads and columns.
    let (tokens, columns) = match policy {
        ActivationCheckpointing::None => (e * 4 * c + 8, e * (2 * hd + kv + 3 * f) + 4 * h),
        ActivationCheckpointing::Selective => (e * 2 * c, e * (2 * hd + kv + 2 * f) + 4 * h),
        ActivationCheckpointing::Full => (e * c, 0),
    };
    match layout.sequence {
        true => (tokens + columns) / t,
        false => tokens + columns / t,
    }
}

/// Bytes of one rank, by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RankMemory {
    /// Weights that products read.
    pub weights: u64,
    /// f32 gradients.
    pub gradients: u64,
    /// f32 master weights and moments, norm gains included.
    pub optimizer: u64,
    /// What all layers save for their backward pass.
    pub activations: u64,
    /// What is needed on top of it at the moment that needs most, gathered and partial activations
    /// included.
    pub working_set: u64,
    /// Gradients and weights on their way between copies.
    pub buckets: u64,
    /// Logits of one chunk of tokens.
    pub head_chunk: u64,
    /// Their sum.
    pub total: u64,
}

impl RankMemory {
    /// Of `config` in this layout.
    pub fn new(config: &TrainConfig, layout: &Layout) -> Self {
        let (model, precision) = (&config.model, config.precision);
        let parameters = RankParameters::new(model, layout.tensor);
        let (p, d, n) = (parameters.matrices(), layout.data, layout.tokens(config));
        let e = precision.bytes() as u64;
        let w = e;
        let share = |bytes: u64| bytes.div_ceil(d);
        let (c, f) = (model.dim as u64, model.ffn_dim() as u64);
        let bucket = parameters.bucket(config.parallel.bucket_bytes as u64);
        // A copy that is alone exchanges nothing.
        let exchanged = if d > 1 { 2 * 4 * bucket } else { 0 };
        let (weights, gradients, optimizer, buckets) = match layout.shard {
            Shard::None => {
                // In f32 the products read the masters.
                let masters = if precision == Precision::F32 { 0 } else { 4 * p };
                (w * p, 4 * p, masters + 8 * p, exchanged)
            }
            Shard::Optimizer => (w * p, 4 * p, share(12 * p), exchanged),
            Shard::Gradients => (w * p, share(4 * p), share(12 * p), 2 * 4 * bucket),
            Shard::Parameters => {
                (share(w * p), share(4 * p), share(12 * p), (2 * 4 + 2 * w) * bucket)
            }
        };
        let saved = |policy| n * saved_per_token(model, precision, layout, policy);
        let kept = saved(layout.policy);
        // One layer whole, its swiglu and the gradients of gate and up, and the rows of the stream:
        // two gathered and two partial ones where there are several tensor ranks, else three.
        let restored = saved(ActivationCheckpointing::None) - kept;
        let streams = if layout.tensor > 1 { 4 } else { 3 };
        let working_set = restored + e * n * (2 * f / layout.tensor + streams * c);
        let mut memory = Self {
            weights,
            gradients: gradients + 4 * parameters.gains,
            optimizer: optimizer + 12 * parameters.gains,
            activations: model.n_layers as u64 * kept,
            working_set,
            buckets,
            // A chunk has as many more tokens as there are ranks to split its columns.
            head_chunk: 4 * (HEAD_CHUNK as u64).min(n) * model.vocab_size as u64,
            total: 0,
        };
        memory.total = memory.named().iter().map(|(_, bytes)| bytes).sum();
        memory
    }

    /// Name and size of every part but the total.
    pub fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("weights", self.weights),
            ("gradients (f32)", self.gradients),
            ("master weights, moments", self.optimizer),
            ("saved activations", self.activations),
            ("working set", self.working_set),
            ("buckets", self.buckets),
            ("head chunk", self.head_chunk),
        ]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use std::path::Path;

    use altiplano_model::activation_checkpoint::saved_bytes_per_layer;

    use super::*;
    use crate::config::load;

    pub fn config(name: &str) -> TrainConfig {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/train");
        load(&dir.join(name), &[]).unwrap()
    }

    /// The paper's: tensor 8 inside a host, the optimizer's state over the copies.
    pub fn eight_by(data: u64, micro_batch: u64) -> Layout {
        Layout {
            tensor: 8,
            data,
            sequence: true,
            shard: Shard::Optimizer,
            overlap: true,
            micro_batch,
            policy: ActivationCheckpointing::Selective,
        }
    }

    const POLICIES: [ActivationCheckpointing; 3] = [
        ActivationCheckpointing::None,
        ActivationCheckpointing::Selective,
        ActivationCheckpointing::Full,
    ];

    #[test]
    fn bytes_that_a_layer_of_65b_saves() {
        let config = config("llama_65b.yaml");
        let bytes = |tensor, sequence| {
            let layout = Layout { tensor, sequence, ..eight_by(1, 1) };
            POLICIES.map(|policy| saved_per_token(&config.model, Precision::Bf16, &layout, policy))
        };
        assert_eq!(bytes(1, true), [263_432, 186_624, 16_384]);
        assert_eq!(bytes(8, true), [32_929, 23_328, 2048]);
        assert_eq!(bytes(8, false), [90_280, 52_000, 16_384]);
    }

    #[test]
    fn on_one_rank_a_layer_saves_what_the_model_says() {
        for name in ["quickstart.yaml", "llama_65b.yaml", "bench.yaml"] {
            let config = config(name);
            let layout = Layout { tensor: 1, ..eight_by(1, 1) };
            for policy in POLICIES {
                let found = saved_per_token(&config.model, config.precision, &layout, policy);
                let model = saved_bytes_per_layer(&config.model, policy, config.precision, 1, 1);
                assert_eq!(found, model as u64);
            }
        }
    }

    #[test]
    fn tensor_ranks_hold_all_parameters_together() {
        let model = config("llama_65b.yaml").model;
        let whole = RankParameters::new(&model, 1);
        assert_eq!(whole.matrices() + whole.gains, model.parameter_count() as u64);
        for tensor in [2, 4, 8, 64] {
            assert_eq!(RankParameters::new(&model, tensor).matrices() * tensor, whole.matrices());
        }
        // A tied head is no table of its own, and heads may be wider than their share of the model.
        let odd = LlamaConfig { tie_word_embeddings: true, head_dim: Some(256), ..model.clone() };
        let whole = RankParameters::new(&odd, 1);
        assert_eq!(whole.matrices() + whole.gains, odd.parameter_count() as u64);
        let layout = Layout { tensor: 1, ..eight_by(1, 1) };
        for policy in POLICIES {
            let found = saved_per_token(&odd, Precision::Bf16, &layout, policy);
            let expected = saved_bytes_per_layer(&odd, policy, Precision::Bf16, 1, 1);
            assert_eq!(found, expected as u64, "{policy:?}");
        }
        // More ranks than heads of keys and values: several hold the same.
        let model = LlamaConfig { n_kv_heads: Some(2), ..model };
        let [two, eight] = [2, 8].map(|tensor| RankParameters::new(&model, tensor));
        assert_eq!(two.layer * 2, RankParameters::new(&model, 1).layer);
        assert!(eight.layer * 8 > two.layer * 2);
    }

    #[test]
    fn memory_of_the_papers_layout() {
        let config = config("llama_65b.yaml");
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let near = |found: u64, expected: f64| {
            assert!(
                (gigabytes(found) - expected).abs() < 0.11,
                "{} for {expected}",
                gigabytes(found)
            );
        };
        let parts = RankMemory::new(&config, &eight_by(256, 4));
        near(parts.weights, 16.3);
        near(parts.gradients, 32.6);
        near(parts.optimizer, 0.4);
        near(parts.activations, 15.3);
        near(parts.working_set, 0.6);
        near(parts.buckets, 0.8);
        for (micro_batch, total) in [(1, 54.0), (2, 58.0), (4, 66.0)] {
            let found = gigabytes(RankMemory::new(&config, &eight_by(256, micro_batch)).total);
            assert!((found - total).abs() < 0.5, "{found} for {total}");
        }
        // Half the tensor ranks: too much, unless the copies split the gradients.
        for (shard, total) in [(Shard::Optimizer, 108.0), (Shard::Gradients, 43.0)] {
            let four = Layout { tensor: 4, shard, ..eight_by(512, 1) };
            let found = gigabytes(RankMemory::new(&config, &four).total);
            assert!((found - total).abs() < 1.0, "{found} for {total}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_with_what_does() {
        let config = config("llama_65b.yaml");
        let message = |layout: Layout| layout.check(&config).unwrap_err().to_string();
        assert!(eight_by(256, 4).check(&config).is_ok());
        let heads = message(Layout { tensor: 3, ..eight_by(1, 1) });
        assert!(
            heads.contains("n_heads (64)") && heads.contains("1, 2, 4, 8, 16, 32, 64"),
            "{heads}"
        );
        let copies = message(eight_by(3, 1));
        assert!(
            copies.contains("3 copies") && copies.contains("found 2048 micro-batches"),
            "{copies}"
        );
        let mut odd = config.clone();
        odd.model.hidden_dim = Some(22_017);
        let hidden = eight_by(1, 1).check(&odd).unwrap_err().to_string();
        assert!(hidden.contains("hidden_dim (22017)"), "{hidden}");
        odd.model = LlamaConfig { vocab_size: 7, ..config.model.clone() };
        let words = eight_by(1, 1).check(&odd).unwrap_err().to_string();
        assert!(words.contains("vocab_size (7)"), "{words}");
    }
}
