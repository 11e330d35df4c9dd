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
//! Shapes: `B` batch, `T` time, `C` channels, `H` heads, `K` kv heads, `D` head dim,
//! `F` hidden, `V` vocabulary, `M` rows (`B * T`).
//!
//! # Panics
//!
//! Lengths that disagree with the shape, or an id outside the vocabulary, are errors of the
//! caller and panic in every function of this crate.

mod simd;

mod element;
mod exp;
mod scratch;
mod transpose;

mod micro_kernel;

mod packing;

mod phases;

mod gemm;

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod fill;
pub mod linear;
pub mod reduce;
pub mod residual;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;

pub use adamw::{AdamWFactors, AdamWStep, adamw_step};
pub use attention::{AttentionShape, causal_attention_backward, causal_attention_forward};
pub use cross_entropy::{head_cross_entropy_backward, head_cross_entropy_forward};
pub use element::Element;
pub use embedding::{embedding_backward, embedding_forward};
pub use fill::fill_zero;
pub use linear::{
    LinearShape, head_logits, linear_backward_input, linear_backward_input_add,
    linear_backward_weight, linear_forward, linear_forward_add,
};
pub use reduce::sum_of_squares;
pub use residual::{residual_add, residual_forward};
pub use rms_norm::{
    residual_rms_norm_backward, residual_rms_norm_forward, rms_norm_backward, rms_norm_forward,
};
pub use rope::{RopeShape, rope_backward, rope_forward};
pub use simd::{CpuLevel, cpu_level};
pub use swiglu::{swiglu_backward, swiglu_forward};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod reference;
