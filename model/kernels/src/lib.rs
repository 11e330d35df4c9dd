//! CPU kernels of the LLaMA op pairs on plain slices.
//!
//! Every op is a forward and a backward function in one file, outputs first, then inputs,
//! then shapes. Slices are row-major and contiguous. Activations and matrix weights are an
//! [`Element`] (`f32` or `bf16`); norm weights, parameter gradients, moments, losses and
//! saved statistics are `f32`. Gradients of activations are assigned, gradients of
//! parameters are added to what is there.
//!
//! Results are the same bits for any number of rayon threads: work is cut into pieces of
//! fixed size, and every sum has one order.
//!
//! A module uses only the modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | `element` | f32 and bf16 behind one trait |
//! | `simd` | the CPU's vector instructions, functions compiled once for each level |
//! | `exp` | eˣ and 2ˣ in a form that compiles to vector instructions |
//! | `scratch` | memory that a thread reuses from call to call |
//! | `transpose` | 16 x 16 words transposed in registers |
//! | `micro_kernel` | 12 x 32 sums in registers: the innermost product, for each instruction set |
//! | `packing` | operands in the order in which a micro-kernel reads them |
//! | `phases` | tasks in phases on all threads |
//! | `gemm` | the matrix product: slabs, blocks, tiles, panels; drawn at its top |
//! | [`residual`], [`rms_norm`], [`rope`], [`swiglu`], [`embedding`] | the ops that are bound by memory |
//! | [`linear`] | the linear layer |
//! | [`stored_linear`](mod@stored_linear) | the linear layer of inference: weights in the format they are stored in |
//! | [`block_linear`](mod@block_linear) | the same with weights in blocks of small integers |
//! | [`attention`], [`cross_entropy`] | the other ops made of matrix products |
//! | [`logits`] | the passes over a vocabulary that choose a token |
//! | [`adamw`], [`fill`], [`reduce`] | the optimizer's: update, zeroing, sum of squares |
//!
//! The derivations of the backward passes are in `docs/backward`, a page for each op; a module here
//! states the final lines in the same symbols.
//!
//! Shapes: `B` batch, `T` time, `C` channels, `H` query heads, `K` key and value heads, `D` head
//! width, `F` feed-forward width, `V` vocabulary, `M` rows (`B * T`).
//!
//! # Panics
//!
//! Lengths that disagree with the shape, or an id outside the vocabulary, are errors of the
//! caller and panic in every function of this crate.

mod element;

mod simd;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_support;

mod exp;

mod scratch;

mod transpose;

mod micro_kernel;

mod packing;

mod phases;

mod gemm;

pub mod residual;

pub mod rms_norm;

pub mod rope;

pub mod swiglu;

pub mod embedding;

pub mod linear;

pub mod stored_linear;

pub mod block_linear;

pub mod attention;

pub mod cross_entropy;

pub mod logits;

pub mod adamw;

pub mod fill;

pub mod reduce;

pub use adamw::{AdamWFactors, AdamWStep, adamw_step};
pub use attention::{
    AttentionShape, PAGE, PagedRows, PagedShape, causal_attention_backward,
    causal_attention_forward, paged_attention_forward, paged_keys_values_write,
};
pub use block_linear::{BlockFormat, BlockMatrix, block_linear};
pub use cross_entropy::{
    HeadChunk, HeadStatistics, TARGET_ELSEWHERE, head_cross_entropy_backward,
    head_cross_entropy_forward,
};
pub use element::Element;
pub use embedding::{embedding_backward, embedding_forward};
pub use fill::fill_zero;
pub use linear::{
    LinearShape, head_logits, linear_backward_input, linear_backward_input_add,
    linear_backward_weight, linear_forward, linear_forward_add,
};
pub use logits::{largest_finite, log_sum_exp, softmax_weights};
pub use reduce::{piece_sums_of_squares, sum_of_squares};
pub use residual::{residual_add, residual_forward};
pub use rms_norm::{
    residual_rms_norm_backward, residual_rms_norm_forward, rms_norm_backward, rms_norm_forward,
};
pub use rope::{RopeShape, rope_backward, rope_forward};
pub use simd::{CpuLevel, PIECE, cpu_level};
pub use stored_linear::{RowOrder, StoredWeight, WeightFormat, stored_linear};
pub use swiglu::{swiglu_backward, swiglu_forward};
