//! The op pairs. Each file holds one op: the formulas of both passes, the entry points the layer calls,
//! and `reference`, the same in plain tensor operations. The formulas are derived in `docs/backward`,
//! a page for each op, with what is saved and what it costs.
//!
//! An entry point takes the fast kernel of the backend where there is one and the reference
//! otherwise, so the same layer runs in f32, bf16 and, for gradient checks, in f64.
//!
//! Inputs are borrowed. What an op may overwrite is taken by value; what it adds to is `&mut`.

mod adamw;
mod causal_attention;
mod embedding;
mod head_cross_entropy;
mod inference;
mod linear;
mod lora;
mod residual;
mod rms_norm;
mod rope;
mod sum_of_squares;
mod swiglu;

pub use adamw::adamw_step;
pub use causal_attention::{causal_attention_backward, causal_attention_forward};
pub use embedding::{embedding_backward, embedding_forward};
pub use head_cross_entropy::{
    IGNORED_TARGET, head_cross_entropy_backward, head_cross_entropy_backward_input,
    head_cross_entropy_forward,
};
pub use inference::{head_logits, kv_cache_write};
pub use linear::{
    LinearWeight, linear_backward, linear_backward_add, linear_backward_input,
    linear_backward_input_add, linear_backward_weight, linear_forward, linear_residual_forward,
};
pub use lora::{LoraPair, lora_backward, lora_forward};
pub use residual::residual_forward;
pub use rms_norm::{
    residual_rms_norm_backward, residual_rms_norm_forward, rms_norm_backward, rms_norm_forward,
};
pub use rope::{RopeTable, rope_backward, rope_forward};
pub use sum_of_squares::{fill_zero, sum_of_squares, totals};
pub use swiglu::{swiglu_backward, swiglu_forward};

/// The references, for tests and for reading.
pub mod reference {
    pub use super::adamw::reference as adamw;
    pub use super::causal_attention::reference as causal_attention;
    pub use super::embedding::reference as embedding;
    pub use super::head_cross_entropy::reference as head_cross_entropy;
    pub use super::linear::reference as linear;
    pub use super::lora::reference as lora;
    pub use super::rms_norm::reference as rms_norm;
    pub use super::rope::reference as rope;
    pub use super::swiglu::reference as swiglu;
}

use burn::tensor::{DType, Tensor};

use crate::backend::has_kernels;

/// Whether `x` goes through the kernels of its backend.
fn fast<const D: usize>(x: &Tensor<D>) -> bool {
    has_kernels(&x.device(), x.dtype())
}

/// `x` in the type references compute in: bf16 becomes f32, f32 and f64 stay.
fn wide<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.clone().cast(DType::F32),
        _ => x.clone(),
    }
}

/// Adds `update` to an accumulator of the same shape.
fn accumulate<const D: usize>(accumulator: &mut Tensor<D>, update: Tensor<D>) {
    let dtype = accumulator.dtype();
    accumulator.inplace(|sum| sum + update.cast(dtype));
}
