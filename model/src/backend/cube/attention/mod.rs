//! Causal attention without the (T, T) scores (Dao et al. 2022): online softmax, log-sum-exp saved.

mod cubecl;
mod cuda;
#[cfg(all(test, feature = "cuda"))]
#[allow(clippy::unwrap_used)]
mod tests;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::engine::{Call, Engine};
use super::tensor::{contiguous, dims, elements, new, new_like};

/// B, T of the queries, T of the keys, H, K and D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Shape {
    fn of(q: &CubeTensor, k: &CubeTensor) -> Self {
        let [batch, queries, heads, head_dim] = dims(q)[..] else { panic!("q is (B, T, H, D)") };
        let [_, keys, kv_heads, _] = dims(k)[..] else { panic!("k is (B, T, K, D)") };
        assert!(
            head_dim <= cubecl::WIDEST_HEAD,
            "attention heads are {head_dim} wide; the GPU kernels take at most {}",
            cubecl::WIDEST_HEAD
        );
        Self { batch, queries, keys, heads, kv_heads, head_dim }
    }

    /// The factor of the scores, 1 / √D.
    fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// What both passes read.
struct Inputs {
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    /// The first key of each query (B, T) where they are `bounded`; else a buffer of one element.
    first_visible: CubeTensor,
    bounded: bool,
    shape: Shape,
}

impl Inputs {
    fn new(q: CubeTensor, k: CubeTensor, v: CubeTensor, first_visible: CubeTensor) -> Self {
        let [q, k, v] = [q, k, v].map(contiguous);
        let shape = Shape::of(&q, &k);
        let bounded = elements(&first_visible) > 0;
        let first_visible =
            if bounded { contiguous(first_visible) } else { new(&q, &[1], DType::I32) };
        Self { q, k, v, first_visible, bounded, shape }
    }

    /// A number for each row of `q`: (B, H, T), f32.
    fn row_numbers(&self) -> CubeTensor {
        new(&self.q, &[self.shape.batch, self.shape.heads, self.shape.queries], DType::F32)
    }
}

impl Call for Inputs {
    fn tensor(&self) -> &CubeTensor {
        &self.q
    }

    /// In bf16, of a head width they are compiled for.
    fn suits_cuda(&self) -> bool {
        self.q.dtype == DType::BF16 && cuda::HEAD_DIMS.contains(&self.shape.head_dim)
    }
}

/// Computes `o` and `lse`.
struct Forward {
    inputs: Inputs,
    o: CubeTensor,
    lse: CubeTensor,
}

/// Computes `delta`, then `dq`, `dk` and `dv`.
struct Backward {
    inputs: Inputs,
    dout: CubeTensor,
    o: CubeTensor,
    lse: CubeTensor,
    /// dout · o of every row.
    delta: CubeTensor,
    dq: CubeTensor,
    dk: CubeTensor,
    dv: CubeTensor,
}

/// (o, lse) of `q`, `k`, `v`.
pub(super) fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    first_visible: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let inputs = Inputs::new(q, k, v, first_visible);
    let (o, lse) = (new_like(&inputs.q), inputs.row_numbers());
    let call = Forward { inputs, o: o.clone(), lse: lse.clone() };
    match Engine::for_op(&call.inputs) {
        Engine::Cuda(gpu) => cuda::forward(&gpu, &call),
        Engine::CubeCl => cubecl::forward(call),
    }
    (o, lse)
}

/// (dq, dk, dv) for as many queries as keys.
pub(super) fn backward(
    dout: CubeTensor,
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    o: CubeTensor,
    lse: CubeTensor,
    first_visible: CubeTensor,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [dout, o, lse] = [dout, o, lse].map(contiguous);
    let inputs = Inputs::new(q, k, v, first_visible);
    let Shape { queries, keys, .. } = inputs.shape;
    assert_eq!(queries, keys, "the backward pass has as many queries as keys");
    let [dq, dk, dv] = [&inputs.q, &inputs.k, &inputs.v].map(new_like);
    let delta = inputs.row_numbers();
    let gradients = (dq.clone(), dk.clone(), dv.clone());
    let call = Backward { inputs, dout, o, lse, delta, dq, dk, dv };
    match Engine::for_op(&call.inputs) {
        Engine::Cuda(gpu) => cuda::backward(&gpu, &call),
        Engine::CubeCl => cubecl::backward(call),
    }
    gradients
}
