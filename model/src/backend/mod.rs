//! The fast implementation of every op, one per backend, behind [`TransformerOps`].
//!
//! [`crate::ops`] calls these where [`has_kernels`] says so; otherwise it computes with plain
//! tensor operations. What an op may write to it takes by value and hands back:
//!
//! - *Accumulators*, that is gradients of parameters, master weights, moments, and caches of keys and
//!   values, change in place. The op panics when their storage is shared, because a copy would be a
//!   hidden cost as large as the model.
//! - *Reused* activations, that is the residual stream, sums of gradients and the input of RoPE, are
//!   not read again: a backend may write the result into their storage when nobody else holds it, and
//!   into new storage otherwise.

// burn means to drop LibTorch and says so at every mention.
#![cfg_attr(feature = "tch", allow(deprecated))]

#[cfg(feature = "cube")]
pub mod cube;
mod flex;
mod op_table;
#[cfg(feature = "tch")]
mod tch;

use burn::backend::flex::FlexTensor;
use burn::backend::{
    Backend, DispatchDevice, Flex, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Device, Tensor};

use altiplano_kernels::{BlockMatrix, PagedRows, StoredWeight};

pub use altiplano_kernels::AdamWStep;
pub(crate) use altiplano_kernels::{HeadChunk, HeadStatistics, TARGET_ELSEWHERE};
pub(crate) use flex::ExchangeBuffer;

/// Tokens whose logits exist at once in the fused head: 352 rows of a 32000-word vocabulary are
/// 45 MB of f32. With fewer, packing the head and adding to its gradient, once for every chunk, are
/// a larger part of the work. 352 is a multiple of the 32 columns of a micro-kernel, and of 3 chunks
/// for 1024 tokens the last is nearly whole.
pub const HEAD_CHUNK: usize = 352;

/// Whether the ops of [`TransformerOps`] run on `device` for activations of `dtype`.
///
/// f64 (gradient checks) and autodiff devices (the oracle of the tests) take the reference.
pub fn has_kernels(device: &Device, dtype: DType) -> bool {
    match device.as_dispatch() {
        DispatchDevice::Flex(_) => matches!(dtype, DType::F32 | DType::BF16),
        #[cfg(feature = "tch")]
        DispatchDevice::LibTorch(_) => matches!(dtype, DType::F32 | DType::BF16),
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(device) => cube::has_kernels(device, dtype),
        #[allow(unreachable_patterns)]
        _ => false,
    }
}

/// Calls `work`, in which the thread uses its device through the ops of [`TransformerOps`] alone,
/// besides views of tensors, and no other thread works on the same tensors. A GPU then runs them one
/// after the other without waiting for anything between.
pub(crate) fn uninterrupted<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(feature = "cube")]
    return cube::uninterrupted(work);
    #[cfg(not(feature = "cube"))]
    work()
}

/// The storage of `x` where it holds exactly its f32 elements, in order, on the CPU.
pub(crate) fn f32_storage<const D: usize>(x: &Tensor<D>) -> Option<FlexTensor> {
    let storage = x.clone().try_into_primitive::<Flex>().ok()?;
    let whole = storage.layout().num_elements() * size_of::<f32>() == storage.bytes().len();
    (storage.dtype() == DType::F32 && whole && storage.is_contiguous()).then_some(storage)
}

/// Attention of new tokens `q` (1, M, H, D), `k` and `v` (1, M, K, D) of several sequences on the CPU:
/// writes keys and values to the pages in `cache`, of which each sequence names its own, and attends to
/// them there: (o (1, M, H, D), lse (1, H, M)). The bytes of `cache` are of the type of `q`.
pub(crate) fn paged_attention(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    cache: (&mut [u8], &mut [u8]),
    sequences: &[PagedRows<'_>],
) -> (Tensor<4>, Tensor<3>) {
    let (o, lse) = flex::paged_attention(on_cpu(q), on_cpu(k), on_cpu(v), cache, sequences);
    (Tensor::from_primitive::<Flex>(o), Tensor::from_primitive::<Flex>(lse))
}

/// `x` (…, in) · `weight` (`outputs`, in)ᵀ in `dtype`, f32 or bf16, on the CPU, with a weight that lies
/// in memory as it is stored: (…, outputs). None where `x` is elsewhere.
pub(crate) fn stored_linear(
    x: &Tensor<3>,
    weight: StoredWeight<'_>,
    outputs: usize,
    dtype: DType,
) -> Option<Tensor<3>> {
    let x = x.clone().try_into_primitive::<Flex>().ok()?;
    Some(Tensor::from_primitive::<Flex>(flex::stored_linear(x, weight, outputs, dtype)))
}

/// The same with a weight in blocks of small integers.
pub(crate) fn block_linear(x: &Tensor<3>, weight: &BlockMatrix, dtype: DType) -> Option<Tensor<3>> {
    let x = x.clone().try_into_primitive::<Flex>().ok()?;
    Some(Tensor::from_primitive::<Flex>(flex::block_linear(x, weight, dtype)))
}

/// The logits of `x` (1, M, C), f32 or bf16 on the CPU, for the words `weight` (V, C) of this rank,
/// and what they say of each token. `targets` (M) are places among these words,
/// [`TARGET_ELSEWHERE`], or negative where ignored. Without `gradient`, [`head_gradient`] may not
/// follow.
pub(crate) fn head_statistics(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    targets: Vec<i32>,
    gradient: bool,
) -> (HeadChunk, Vec<HeadStatistics>) {
    flex::head_statistics(on_cpu(x), on_cpu(weight), targets, gradient)
}

/// dx (1, M, C) of `scale` · Σ losses, the part that the words of this rank give; `dweight` (V, C)
/// accumulates. `totals` (M) are the largest logit m of all ranks and Σ exp(z − m) over all words.
pub(crate) fn head_gradient(
    chunk: HeadChunk,
    x: &Tensor<3>,
    weight: &Tensor<2>,
    totals: &[[f32; 2]],
    scale: f32,
    dweight: &mut Tensor<2>,
) -> Tensor<3> {
    let (x, weight, sum) = (on_cpu(x), on_cpu(weight), on_cpu(&dweight.extract()));
    let (dx, sum) = flex::head_gradient(chunk, x, weight, totals, scale, sum);
    *dweight = Tensor::from_primitive::<Flex>(sum);
    Tensor::from_primitive::<Flex>(dx)
}

/// The storage of a tensor that is on the CPU, as its caller knows.
fn on_cpu<const D: usize>(x: &Tensor<D>) -> FlexTensor {
    x.clone().try_into_primitive::<Flex>().expect("the tensor is on the CPU")
}

/// Whether every element is finite; none where `x` is not on the CPU.
pub(crate) fn is_finite(x: &Tensor<3>) -> Option<bool> {
    x.clone().try_into_primitive::<Flex>().ok().map(flex::is_finite)
}

/// The ops of a LLaMA training step and of inference.
///
/// Activations and matrix weights are f32 or bf16; norm weights, parameter gradients, moments, losses, `rstd` and
/// `lse` are f32; ids, targets and document starts are i32. A negative target is ignored.
#[backend_extension(
    Flex,
    Cube: cfg(feature = "cube"),
    LibTorch: cfg(feature = "tch")
)]
pub trait TransformerOps: Backend {
    /// Rows of `weight` (V, C) picked by `ids` (B, T): (B, T, C).
    fn embedding_forward(weight: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self>;
    /// `dweight` (V, C) += `dy` (B, T, C) scattered by `ids` (B, T); `dweight` is an accumulator.
    fn embedding_backward(
        dweight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        ids: IntTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `x` (…, in) · `weight` (out, in)ᵀ: (…, out).
    fn linear_forward(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// `dy` (…, out) · `weight` (out, in): (…, in).
    fn linear_backward_input(dy: FloatTensor<Self>, weight: FloatTensor<Self>)
    -> FloatTensor<Self>;
    /// `residual` (…, out) + `x` (…, in) · `weight` (out, in)ᵀ: (…, out); reuses `residual`.
    fn linear_residual_forward(
        residual: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// `dx` (…, in) + `dy` (…, out) · `weight` (out, in): (…, in); reuses `dx`.
    fn linear_backward_input_add(
        dx: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// `dweight` (out, in) += `dy` (…, out)ᵀ · `x` (…, in); `dweight` is an accumulator.
    fn linear_backward_weight(
        dweight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `x` (…, C), `weight` (C): (y (…, C), rstd (…)).
    fn rms_norm_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// (dx (…, C), `dweight` (C) += …); `dweight` is an accumulator.
    fn rms_norm_backward(
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        dweight: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `x`, `branch` (…, C), `weight` (C): (h = x + branch, y (…, C), rstd (…)).
    fn residual_rms_norm_forward(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// (`dstream` + dx (…, C), `dweight` (C) += …); reuses `dstream`, and `dweight` is an accumulator.
    fn residual_rms_norm_backward(
        dstream: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        rstd: FloatTensor<Self>,
        dweight: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `x` + `branch`; reuses `x`.
    fn residual_forward(x: FloatTensor<Self>, branch: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x` (B, T, H, D) rotated by `cos` and `sin` (T, D/2); may reuse `x`.
    fn rope_forward(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    /// `dy` (B, T, H, D) rotated back; may reuse `dy`.
    fn rope_backward(
        dy: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// silu(`gate`) · `up`, all (…, F).
    fn swiglu_forward(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    /// (dgate, dup), all (…, F).
    fn swiglu_backward(
        dy: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// `q` (B, Tq, H, D), `k` and `v` (B, Tk, K, D), `first_visible` (B, Tq):
    /// (o (B, Tq, H, D), lse (B, H, Tq)). Query i sees the keys up to i + Tk − Tq. An empty
    /// `first_visible` bounds nothing (extension traits take no optional tensors).
    fn causal_attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        first_visible: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    /// (dq, dk, dv) for Tq = Tk.
    fn causal_attention_backward(
        dout: FloatTensor<Self>,
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        o: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        first_visible: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// `x` (B, T, C), `weight` (V, C), `targets` (B, T): losses (B, T) in nats.
    fn head_cross_entropy_forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
    ) -> FloatTensor<Self>;
    /// (losses (B, T), dx (B, T, C), `dweight` (V, C) += …) of `scale` · Σ losses; `dweight` is an
    /// accumulator.
    fn head_cross_entropy_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        targets: IntTensor<Self>,
        scale: f32,
        dweight: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// One AdamW step: (param, m, v), all accumulators.
    fn adamw_step(
        param: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        hyper: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    /// One AdamW step that also writes the bf16 copy: (param, m, v, copy), all accumulators.
    fn adamw_step_with_copy(
        param: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        copy: FloatTensor<Self>,
        hyper: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Σ x² as numbers to be added in f64: one f64, (1), or f32 and its rounding error, (2).
    fn sum_of_squares(x: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Sets every element of an accumulator to zero.
    fn fill_zero(x: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x` (…, C) · `weight` (V, C)ᵀ in f32 whatever the inputs: (…, V).
    fn head_logits(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    /// Writes `rows` (t, K, D) into `cache` (T, K, D) from row `position` on; `cache` is an accumulator.
    fn kv_cache_write(
        cache: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        position: usize,
    ) -> FloatTensor<Self>;
}
