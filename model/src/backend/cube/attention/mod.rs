//! Causal attention: which kernel, and its grid.

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::{CubeCount, CubeDim};

use super::kernels::attention::Tile;
use super::kernels::{attention as forward_kernel, attention_backward as backward_kernels};
use super::tensor::{before_other_work, contiguous, dims, element, elements, new, new_like, units};
use super::threads;

/// B, T of the queries, T of the keys, H, K and D.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    fn of(q: &CubeTensor, k: &CubeTensor) -> Self {
        let [batch, queries, heads, head_dim] = dims(q)[..] else { panic!("q is (B, T, H, D)") };
        let [_, keys, kv_heads, _] = dims(k)[..] else { panic!("k is (B, T, K, D)") };
        assert!(
            head_dim <= Tile::WIDEST_HEAD,
            "attention heads are {head_dim} wide; the GPU kernels take at most {}",
            Tile::WIDEST_HEAD
        );
        Self { batch, queries, keys, heads, kv_heads, head_dim }
    }

    /// The factor of the scores, 1 / √D.
    pub fn scale(&self) -> f32 {
        (1.0 / (self.head_dim as f64).sqrt()) as f32
    }
}

/// The grid with a cube for every `side` rows of `time`, head and sequence.
fn grid(time: usize, side: usize, heads: usize, batch: usize) -> CubeCount {
    before_other_work();
    CubeCount::Static(time.div_ceil(side) as u32, heads as u32, batch as u32)
}

/// `first_visible` as a kernel argument: a buffer of one element stands for none.
fn bound(first_visible: CubeTensor, like: &CubeTensor) -> (bool, CubeTensor) {
    match elements(&first_visible) {
        0 => (false, new(like, &[1], DType::I32)),
        _ => (true, contiguous(first_visible)),
    }
}

/// (o, lse) of `q`, `k`, `v`.
pub(super) fn forward(
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    first_visible: CubeTensor,
) -> (CubeTensor, CubeTensor) {
    let (q, k, v) = (contiguous(q), contiguous(k), contiguous(v));
    let shape = Shape::of(&q, &k);
    let o = new_like(&q);
    let lse = new(&q, &[shape.batch, shape.heads, shape.queries], DType::F32);
    let (bounded, first_visible) = bound(first_visible, &q);
    #[cfg(feature = "cuda")]
    if super::cuda::attention::forward([&q, &k, &v, &first_visible, &o, &lse], shape, bounded) {
        return (o, lse);
    }
    let tile = Tile::new(shape.head_dim);
    // SAFETY: a cube reads rows inside `q`, `k` and `v`, and writes the rows of its tile that
    // exist.
    unsafe {
        forward_kernel::forward::launch_unchecked(
            &q.client.clone(),
            grid(shape.queries, tile.side, shape.heads, shape.batch),
            CubeDim::new_1d(tile.threads as u32),
            q.clone().into_buffer_arg(),
            k.into_buffer_arg(),
            v.into_buffer_arg(),
            first_visible.into_buffer_arg(),
            o.clone().into_buffer_arg(),
            lse.clone().into_buffer_arg(),
            shape.queries,
            shape.keys,
            shape.heads,
            shape.kv_heads,
            shape.scale(),
            bounded,
            tile,
            element(q.dtype),
        );
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
    let (dout, q, k, v) = (contiguous(dout), contiguous(q), contiguous(k), contiguous(v));
    let (o, lse) = (contiguous(o), contiguous(lse));
    let shape = Shape::of(&q, &k);
    assert_eq!(shape.queries, shape.keys, "the backward pass has as many queries as keys");
    let (dq, dk, dv) = (new_like(&q), new_like(&k), new_like(&v));
    let delta = new(&q, &[shape.batch, shape.heads, shape.queries], DType::F32);
    let (bounded, first_visible) = bound(first_visible, &q);
    #[cfg(feature = "cuda")]
    if super::cuda::attention::backward(
        [&dout, &q, &k, &v, &o, &lse, &first_visible, &delta, &dq, &dk, &dv],
        shape,
        bounded,
    ) {
        return (dq, dk, dv);
    }
    let tile = Tile::new(shape.head_dim);
    let cube = CubeDim::new_1d(tile.threads as u32);
    let (client, dtype) = (q.client.clone(), element(q.dtype));
    // SAFETY: `delta` and `lse` have one entry a row of `q`; a cube reads rows inside its inputs
    // and writes the rows of its tile that exist.
    unsafe {
        backward_kernels::row_products::launch_unchecked(
            &client,
            units(elements(&delta)),
            threads(),
            dout.clone().into_buffer_arg(),
            o.into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            shape.queries,
            shape.heads,
            shape.head_dim,
            dtype,
        );
        backward_kernels::query_gradient::launch_unchecked(
            &client,
            grid(shape.queries, tile.side, shape.heads, shape.batch),
            cube,
            dout.clone().into_buffer_arg(),
            q.clone().into_buffer_arg(),
            k.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            lse.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            first_visible.clone().into_buffer_arg(),
            dq.clone().into_buffer_arg(),
            shape.queries,
            shape.heads,
            shape.kv_heads,
            shape.scale(),
            bounded,
            tile,
            dtype,
        );
        backward_kernels::key_value_gradient::launch_unchecked(
            &client,
            grid(shape.queries, tile.side, shape.kv_heads, shape.batch),
            cube,
            dout.into_buffer_arg(),
            q.into_buffer_arg(),
            k.into_buffer_arg(),
            v.into_buffer_arg(),
            lse.into_buffer_arg(),
            delta.into_buffer_arg(),
            first_visible.into_buffer_arg(),
            dk.clone().into_buffer_arg(),
            dv.clone().into_buffer_arg(),
            shape.queries,
            shape.heads,
            shape.kv_heads,
            shape.scale(),
            bounded,
            tile,
            dtype,
        );
    }
    (dq, dk, dv)
}
