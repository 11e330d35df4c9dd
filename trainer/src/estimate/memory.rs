//! The most memory a training step holds, by part.
//!
//! Per parameter a step holds 4 bytes of f32 weight, 4 of gradient, 8 of moments and, under bf16, 2
//! of the copy that matrix products read. Over them come the activations each layer saves
//! ([`saved_bytes_per_layer`]) and, on top of these, what only one moment needs. With N = B · T
//! tokens of a micro-batch and e bytes per activation, the moments are:
//!
//! ```text
//! end of the last layer's forward pass    everything of one layer, its branch and its output
//! head                                    e N 3C: stream, normed, its gradient
//! a layer's backward pass                 everything of one layer but swiglu, and e N (3F + C):
//!                                         dy, dswiglu, dgate, dup
//! ```
//!
//! "Everything of one layer" is what policy `none` saves; only what the policy in force does not
//! save anyway is counted. The largest moment is the working set. The optimizer's step needs
//! nothing more.
//!
//! The kernels keep their scratch memory between calls: the f32 logits of one chunk of the head,
//! the packed operands of a matrix product, and per thread the packed tensors of one attention
//! head.

use altiplano_model::activation_checkpoint::saved_bytes_per_layer;
use altiplano_model::backend::HEAD_CHUNK;
use altiplano_model::config::{ActivationCheckpointing, Precision};
use serde::Serialize;

use crate::config::TrainConfig;

/// Most bytes of a packed operand of a matrix product: larger ones are taken in slabs, one of which
/// is packed while the one before is multiplied.
const PACKED_SLAB: u64 = 4 << 20;

/// What a process holds besides tensors and scratch, in bytes: code, stacks, the runtime. Measured
/// as the rest of `altiplano bench train configs/train/debug.yaml`, on Linux with two threads.
const PROCESS: u64 = 17_000_000;

/// One part in so many of all tensors and scratch is held by the allocators and used by nobody.
/// Measured as the rest of `altiplano bench train` over the other parts: 0.7% to 3% of it at
/// 58M parameters and at the quickstart's size, under `none` and `full`, in bf16 and f32.
const ALLOCATOR_LOSS: u64 = 100;

/// Bytes of one device, by part. The parts add up to `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryParts {
    /// f32 weights that AdamW updates.
    pub weights: u64,
    /// bf16 copy of the matrices; 0 under f32.
    pub compute_copy: u64,
    /// f32 gradients.
    pub gradients: u64,
    /// Both f32 moments.
    pub moments: u64,
    /// Weights and gradient of one layer (or of the embedding, if larger) gathered from all
    /// devices; 0 on one device.
    pub gathered: u64,
    /// What all layers save for their backward pass.
    pub activations: u64,
    /// What is needed on top of it at the moment that needs most.
    pub working_set: u64,
    /// Logits of one chunk of tokens.
    pub head_chunk: u64,
    /// Packed operands of matrix products and attention.
    pub kernel_scratch: u64,
    /// Code, stacks and the allocator's losses.
    pub process: u64,
    /// Their sum.
    pub total: u64,
}

impl MemoryParts {
    /// Name and size of every part but the total.
    pub fn named(&self) -> [(&'static str, u64); 10] {
        [
            ("weights (f32)", self.weights),
            ("bf16 copy", self.compute_copy),
            ("gradients (f32)", self.gradients),
            ("moments (f32)", self.moments),
            ("gathered layer", self.gathered),
            ("saved activations", self.activations),
            ("working set", self.working_set),
            ("head chunk", self.head_chunk),
            ("kernel scratch", self.kernel_scratch),
            ("process", self.process),
        ]
    }

    /// The parts of a step of `config` under `policy`, with weights, gradients and moments spread
    /// evenly over `devices` and each device working on micro-batches of its own.
    pub fn new(
        config: &TrainConfig,
        policy: ActivationCheckpointing,
        devices: u64,
        threads: usize,
    ) -> Self {
        let model = &config.model;
        let shape = Shape::new(config);
        let parameters = model.parameter_count() as u64;
        let (c, layers) = (shape.channels, model.n_layers as u64);
        let embedding = model.vocab_size as u64 * c;
        let matrices = if model.tie_word_embeddings { 1 } else { 2 };
        let layer = (parameters - matrices * embedding - c) / layers;
        let copy_bytes = match config.precision {
            Precision::F32 => 0,
            Precision::Bf16 => 2,
        };
        let shard = |bytes: u64| bytes.div_ceil(devices.max(1));
        let gathered = (shape.element + 4) * layer.max(embedding);
        let mut parts = Self {
            weights: shard(4 * parameters),
            compute_copy: shard(copy_bytes * model.matrix_parameter_count() as u64),
            gradients: shard(4 * parameters),
            moments: shard(8 * parameters),
            gathered: if devices > 1 { gathered } else { 0 },
            activations: layers.saturating_mul(shape.saved(config, policy)),
            working_set: shape.working_set(config, policy),
            head_chunk: 4 * (HEAD_CHUNK as u64).min(shape.tokens) * model.vocab_size as u64,
            kernel_scratch: shape.kernel_scratch(embedding, threads as u64),
            process: 0,
            total: 0,
        };
        parts.process = PROCESS + parts.sum() / ALLOCATOR_LOSS;
        parts.total = parts.sum();
        parts
    }

    fn sum(&self) -> u64 {
        self.named().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

/// The sizes that decide about activations.
#[derive(Debug, Clone, Copy)]
struct Shape {
    element: u64,
    tokens: u64,
    time: u64,
    channels: u64,
    hidden: u64,
    head_dim: u64,
}

impl Shape {
    fn new(config: &TrainConfig) -> Self {
        let model = &config.model;
        Self {
            element: config.precision.bytes() as u64,
            tokens: (config.batch.micro_batch * config.batch.seq_len) as u64,
            time: config.batch.seq_len as u64,
            channels: model.dim as u64,
            hidden: model.ffn_dim() as u64,
            head_dim: model.head_dim() as u64,
        }
    }

    fn saved(&self, config: &TrainConfig, policy: ActivationCheckpointing) -> u64 {
        let (batch, time) = (config.batch.micro_batch, config.batch.seq_len);
        saved_bytes_per_layer(&config.model, policy, config.precision, batch, time) as u64
    }

    fn working_set(&self, config: &TrainConfig, policy: ActivationCheckpointing) -> u64 {
        let Self { element, tokens, channels, hidden, .. } = *self;
        let stream = element * tokens * channels;
        let restored =
            self.saved(config, ActivationCheckpointing::None) - self.saved(config, policy);
        let forward = restored + 2 * stream;
        let head = 3 * stream;
        let backward = restored + element * tokens * (2 * hidden + channels);
        forward.max(head).max(backward)
    }

    /// `largest_matrix` in elements.
    fn kernel_scratch(&self, largest_matrix: u64, threads: u64) -> u64 {
        let Self { element, tokens, time, hidden, head_dim, .. } = *self;
        let packed = |elements: u64| match element.saturating_mul(elements) {
            bytes if bytes > PACKED_SLAB => 2 * PACKED_SLAB,
            bytes => bytes,
        };
        // Seven packed operands and three f32 sums of a head.
        let attention_head = time * head_dim * (7 * element + 3 * 4);
        packed(tokens * hidden) + packed(largest_matrix) + threads * attention_head
    }
}

/// [`MemoryParts`] under every policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryByPolicy {
    /// Everything is saved.
    pub none: MemoryParts,
    /// The outputs of linear layers and attention are saved.
    pub selective: MemoryParts,
    /// The inputs of layers are saved.
    pub full: MemoryParts,
}

impl MemoryByPolicy {
    /// For `config` on `devices` devices, each with `threads` threads that compute.
    pub fn new(config: &TrainConfig, devices: u64, threads: usize) -> Self {
        let parts = |policy| MemoryParts::new(config, policy, devices, threads);
        Self {
            none: parts(ActivationCheckpointing::None),
            selective: parts(ActivationCheckpointing::Selective),
            full: parts(ActivationCheckpointing::Full),
        }
    }

    /// Those of one policy.
    pub fn of(&self, policy: ActivationCheckpointing) -> &MemoryParts {
        match policy {
            ActivationCheckpointing::None => &self.none,
            ActivationCheckpointing::Selective => &self.selective,
            ActivationCheckpointing::Full => &self.full,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::load;

    fn bench(overrides: &[&str]) -> TrainConfig {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/train/bench.yaml");
        // The whole batch in one pass, unless a test says otherwise.
        let one_pass = ["batch.micro_batch=8", "batch.grad_accum_steps=1"];
        let overrides = [&one_pass[..], overrides].concat();
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        load(&file, &overrides).unwrap()
    }

    const P: u64 = 58_073_600;

    #[test]
    fn parts_of_the_58m_model() {
        let MemoryByPolicy { none, selective, full } = MemoryByPolicy::new(&bench(&[]), 1, 2);
        // Norm gains, 17 of 512, have no copy in bf16.
        assert_eq!(none.compute_copy, 2 * (P - 17 * 512));
        assert_eq!([none.weights, none.gradients, none.moments], [4 * P, 4 * P, 8 * P]);
        // 4096 tokens of 6 · 512 + 1024 + 3 · 1376 bf16, lse of 8 heads and 2 rstd, 8 layers.
        assert_eq!(none.activations, 8 * 4096 * (2 * (4096 + 3 * 1376) + 4 * 10));
        assert_eq!(full.activations, 8 * 4096 * 2 * 512);
        assert_eq!(none.head_chunk, 4 * 352 * 32000);
        assert!(full.total < selective.total && selective.total < none.total);
        for parts in [none, selective, full] {
            assert_eq!(parts.total, parts.named().iter().map(|(_, bytes)| bytes).sum::<u64>());
            assert_eq!(parts.process, PROCESS + (parts.total - parts.process) / 100);
        }
    }

    #[test]
    fn what_is_restored_is_counted_once() {
        let MemoryByPolicy { none, full, .. } = MemoryByPolicy::new(&bench(&[]), 1, 2);
        // Under `full` one layer is whole while it is worked on, under `none` it is among the saved.
        let whole = (none.activations - full.activations) / 8;
        assert_eq!(full.working_set - none.working_set, whole);
    }

    #[test]
    fn scratch_is_slabs_and_one_head_per_thread() {
        let [two, four] = [2, 4].map(|threads| MemoryByPolicy::new(&bench(&[]), 1, threads).none);
        let head = 512 * 64 * (7 * 2 + 3 * 4);
        assert_eq!(two.kernel_scratch, 2 * 2 * PACKED_SLAB + 2 * head);
        assert_eq!(four.kernel_scratch - two.kernel_scratch, 2 * head);
    }

    #[test]
    fn f32_has_no_copy_and_twice_the_activations() {
        let [bf16, f32] = [bench(&[]), bench(&["precision=f32"])]
            .map(|config| MemoryByPolicy::new(&config, 1, 2));
        assert_eq!(f32.none.compute_copy, 0);
        assert_eq!(f32.full.activations, 2 * bf16.full.activations);
        assert_eq!(f32.none.working_set, 2 * bf16.none.working_set);
    }

    #[test]
    fn devices_share_the_state_but_not_the_activations() {
        let [one, eight] = [1, 8].map(|devices| MemoryByPolicy::new(&bench(&[]), devices, 2).none);
        assert_eq!(eight.weights, one.weights / 8);
        assert_eq!(eight.moments, one.moments / 8);
        assert_eq!(eight.activations, one.activations);
        // The embedding is the largest piece: bf16 weights and f32 gradient.
        assert_eq!((one.gathered, eight.gathered), (0, 6 * 32000 * 512));
    }

    #[test]
    fn memory_grows_with_the_micro_batch_and_a_chunk_is_no_larger_than_it() {
        let at = |batch: usize| {
            let config = bench(&[&format!("batch.micro_batch={batch}"), "batch.seq_len=64"]);
            MemoryByPolicy::new(&config, 1, 2).none
        };
        assert_eq!(4 * at(2).activations, at(8).activations);
        assert_eq!(at(1).head_chunk, 4 * 64 * 32000);
        assert_eq!(at(8).head_chunk, 4 * 352 * 32000);
        assert_eq!(at(16).head_chunk, 4 * 352 * 32000);
    }
}
