//! Cube: CubeCL kernels for CUDA, and through WebGPU for tests; the vendor's library and CUDA C++
//! where they are faster.
//!
//! A panic here is a broken invariant of [`crate::ops`] or a device that failed, never something a
//! configuration can cause.

mod attention;
#[cfg(feature = "cuda")]
pub mod cuda;
mod head;
mod kernels;
mod norm;
mod optimizer;
mod product;
mod tensor;
#[cfg(all(test, feature = "cuda"))]
#[allow(clippy::unwrap_used)]
mod transpiled;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use altiplano_kernels::AdamWStep;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{Cube, CubeDevice};
use cubecl::CubeDim;

use self::kernels::reduction::THREADS;
use self::kernels::{elementwise, embedding, rope};
use self::product::{Operand, add_product, product, sum_and_product};
use self::tensor::{
    accumulator, contiguous, cubes, dims, element, elements, is_owned, new, new_like,
    rows_and_width, units, vector,
};
use super::TransformerOps;

/// Whether the kernels run on `device` for activations of `dtype`: f32 everywhere, bf16 on NVIDIA
/// GPUs.
pub(super) fn has_kernels(device: &CubeDevice, dtype: DType) -> bool {
    match dtype {
        DType::F32 => true,
        DType::BF16 => matches!(device, CubeDevice::Cuda(_)),
        _ => false,
    }
}

fn threads() -> CubeDim {
    CubeDim::new_1d(THREADS as u32)
}

fn rotate(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, direction: f32) -> CubeTensor {
    let (x, cos, sin) = (contiguous(x), contiguous(cos), contiguous(sin));
    let [_, time, heads, head_dim] = dims(&x)[..] else { panic!("RoPE takes (B, T, H, D)") };
    let size = vector(head_dim / 2, x.dtype);
    let half = head_dim / 2 / size;
    let client = x.client.clone();
    let dtype = element(x.dtype);
    #[cfg(feature = "cuda")]
    {
        let y = if x.can_mut() { x.clone() } else { new_like(&x) };
        if cuda::elementwise::rotate(&x, [&cos, &sin], &y, direction) {
            return y;
        }
    }
    let (cos, sin) = (cos.into_buffer_arg(), sin.into_buffer_arg());
    if x.can_mut() {
        // SAFETY: the kernel stops at the end of `x`; the table has `time` rows.
        unsafe {
            rope::rotate_in_place::launch_unchecked(
                &client,
                units(elements(&x) / size / 2),
                threads(),
                size,
                x.clone().into_buffer_arg(),
                cos,
                sin,
                time,
                heads,
                direction,
                half,
                dtype,
            );
        }
        return x;
    }
    let y = new_like(&x);
    // SAFETY: as above, and `y` has the elements of `x`.
    unsafe {
        rope::rotate::launch_unchecked(
            &client,
            units(elements(&x) / size / 2),
            threads(),
            size,
            x.into_buffer_arg(),
            cos,
            sin,
            y.clone().into_buffer_arg(),
            time,
            heads,
            direction,
            half,
            dtype,
        );
    }
    y
}

fn fill_zero(x: &CubeTensor) {
    let size = vector(elements(x), x.dtype);
    // SAFETY: the kernel stops at the end of `x`.
    unsafe {
        elementwise::fill_zero::launch_unchecked(
            &x.client.clone(),
            units(elements(x) / size),
            threads(),
            size,
            x.clone().into_buffer_arg(),
            element(x.dtype),
        );
    }
}

impl TransformerOps for Cube {
    fn embedding_forward(weight: CubeTensor, ids: CubeTensor) -> CubeTensor {
        let (weight, ids) = (contiguous(weight), contiguous(ids));
        let (_, channels) = rows_and_width(&weight);
        let size = vector(channels, weight.dtype);
        let mut shape = dims(&ids);
        shape.push(channels);
        let y = new(&weight, &shape, weight.dtype);
        // SAFETY: ids are below V, as `TokenBatch` checked; the kernel stops at the end of `y`.
        unsafe {
            embedding::forward::launch_unchecked(
                &y.client.clone(),
                units(elements(&y) / size),
                threads(),
                size,
                weight.clone().into_buffer_arg(),
                ids.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                channels / size,
                element(y.dtype),
            );
        }
        y
    }

    fn embedding_backward(dweight: CubeTensor, dy: CubeTensor, ids: CubeTensor) -> CubeTensor {
        let dweight = accumulator(dweight, "embedding_backward");
        let (dy, ids) = (contiguous(dy), contiguous(ids));
        let (_, channels) = rows_and_width(&dy);
        let count = elements(&ids);
        let size = vector(channels, dy.dtype);
        let next = new(&ids, &[count], DType::U32);
        // Zeros of f32 are zeros of u32.
        let follows = new(&ids, &[count], DType::F32);
        fill_zero(&follows);
        let client = dy.client.clone();
        #[cfg(feature = "cuda")]
        let chained = cuda::elementwise::chain(&ids, &next, &follows);
        #[cfg(not(feature = "cuda"))]
        let chained = false;
        if !chained {
            // SAFETY: all have one entry per position.
            unsafe {
                embedding::chain::launch_unchecked(
                    &client,
                    units(count),
                    threads(),
                    ids.clone().into_buffer_arg(),
                    next.clone().into_buffer_arg(),
                    follows.clone().into_buffer_arg(),
                );
            }
        }
        // SAFETY: all have one entry per position, ids are below V, and chains only name
        // positions.
        unsafe {
            embedding::backward::launch_unchecked(
                &client,
                cubes(count),
                threads(),
                size,
                dy.clone().into_buffer_arg(),
                ids.into_buffer_arg(),
                next.into_buffer_arg(),
                follows.into_buffer_arg(),
                dweight.clone().into_buffer_arg(),
                channels / size,
                element(dy.dtype),
            );
        }
        dweight
    }

    fn linear_forward(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let mut shape = dims(&x);
        *shape.last_mut().expect("x has a last dimension") = rows_and_width(&weight).0;
        product(&Operand::rows(&x), &Operand::columns(&weight), &shape, x.dtype)
    }

    fn linear_residual_forward(
        residual: CubeTensor,
        x: CubeTensor,
        weight: CubeTensor,
    ) -> CubeTensor {
        let (residual, x, weight) = (contiguous(residual), contiguous(x), contiguous(weight));
        sum_and_product(residual, &Operand::rows(&x), &Operand::columns(&weight))
    }

    fn linear_backward_input(dy: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let (dy, weight) = (contiguous(dy), contiguous(weight));
        let mut shape = dims(&dy);
        *shape.last_mut().expect("dy has a last dimension") = rows_and_width(&weight).1;
        product(&Operand::rows(&dy), &Operand::rows(&weight), &shape, dy.dtype)
    }

    fn linear_backward_input_add(dx: CubeTensor, dy: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let (dy, weight) = (contiguous(dy), contiguous(weight));
        // Both ways round otherwise, so it must not be chance which is taken.
        if !is_owned(&dx) {
            let term = Self::linear_backward_input(dy, weight);
            return Self::residual_forward(term, dx);
        }
        add_product(contiguous(dx), &Operand::rows(&dy), &Operand::rows(&weight))
    }

    fn linear_backward_weight(dweight: CubeTensor, dy: CubeTensor, x: CubeTensor) -> CubeTensor {
        let dweight = accumulator(dweight, "linear_backward_weight");
        let (dy, x) = (contiguous(dy), contiguous(x));
        add_product(dweight, &Operand::columns(&dy), &Operand::rows(&x))
    }

    fn rms_norm_forward(x: CubeTensor, weight: CubeTensor, eps: f64) -> (CubeTensor, CubeTensor) {
        norm::forward(x, weight, eps)
    }

    fn rms_norm_backward(
        dy: CubeTensor,
        x: CubeTensor,
        weight: CubeTensor,
        rstd: CubeTensor,
        dweight: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        norm::backward(dy, x, weight, rstd, dweight)
    }

    fn residual_rms_norm_forward(
        x: CubeTensor,
        branch: CubeTensor,
        weight: CubeTensor,
        eps: f64,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        norm::residual_forward(x, branch, weight, eps)
    }

    fn residual_rms_norm_backward(
        dstream: CubeTensor,
        dy: CubeTensor,
        x: CubeTensor,
        weight: CubeTensor,
        rstd: CubeTensor,
        dweight: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        norm::residual_backward(dstream, dy, x, weight, rstd, dweight)
    }

    fn residual_forward(x: CubeTensor, branch: CubeTensor) -> CubeTensor {
        let (x, branch) = (contiguous(x), contiguous(branch));
        let size = vector(elements(&x), x.dtype);
        #[cfg(feature = "cuda")]
        {
            let y = if x.can_mut() { x.clone() } else { new_like(&x) };
            if cuda::elementwise::residual_sum(&x, &branch, &y) {
                return y;
            }
        }
        let (client, grid) = (x.client.clone(), units(elements(&x) / size));
        let dtype = element(x.dtype);
        if x.can_mut() {
            // SAFETY: both have the same elements; the kernel stops at the end of `x`.
            unsafe {
                elementwise::residual_add::launch_unchecked(
                    &client,
                    grid,
                    threads(),
                    size,
                    x.clone().into_buffer_arg(),
                    branch.into_buffer_arg(),
                    dtype,
                );
            }
            return x;
        }
        let y = new_like(&x);
        // SAFETY: all three have the same elements; the kernel stops at the end of `y`.
        unsafe {
            elementwise::residual_sum::launch_unchecked(
                &client,
                grid,
                threads(),
                size,
                x.into_buffer_arg(),
                branch.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                dtype,
            );
        }
        y
    }

    fn rope_forward(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
        rotate(x, cos, sin, 1.0)
    }

    fn rope_backward(dy: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
        rotate(dy, cos, sin, -1.0)
    }

    fn swiglu_forward(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
        let (gate, up) = (contiguous(gate), contiguous(up));
        let size = vector(elements(&gate), gate.dtype);
        let y = new_like(&gate);
        #[cfg(feature = "cuda")]
        if cuda::elementwise::swiglu_forward(&gate, &up, &y) {
            return y;
        }
        // SAFETY: all three have the same elements; the kernel stops at the end of `y`.
        unsafe {
            elementwise::swiglu_forward::launch_unchecked(
                &y.client.clone(),
                units(elements(&y) / size),
                threads(),
                size,
                gate.into_buffer_arg(),
                up.into_buffer_arg(),
                y.clone().into_buffer_arg(),
                element(y.dtype),
            );
        }
        y
    }

    fn swiglu_backward(
        dy: CubeTensor,
        gate: CubeTensor,
        up: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let (dy, gate, up) = (contiguous(dy), contiguous(gate), contiguous(up));
        let size = vector(elements(&gate), gate.dtype);
        let (dgate, dup) = (new_like(&gate), new_like(&up));
        #[cfg(feature = "cuda")]
        if cuda::elementwise::swiglu_backward([&dy, &gate, &up], [&dgate, &dup]) {
            return (dgate, dup);
        }
        // SAFETY: all five have the same elements; the kernel stops at the end of `dy`.
        unsafe {
            elementwise::swiglu_backward::launch_unchecked(
                &dy.client.clone(),
                units(elements(&dy) / size),
                threads(),
                size,
                dy.into_buffer_arg(),
                gate.into_buffer_arg(),
                up.into_buffer_arg(),
                dgate.clone().into_buffer_arg(),
                dup.clone().into_buffer_arg(),
                element(dgate.dtype),
            );
        }
        (dgate, dup)
    }

    fn causal_attention_forward(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        first_visible: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        attention::forward(q, k, v, first_visible)
    }

    fn causal_attention_backward(
        dout: CubeTensor,
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        o: CubeTensor,
        lse: CubeTensor,
        first_visible: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        attention::backward(dout, q, k, v, o, lse, first_visible)
    }

    fn head_cross_entropy_forward(
        x: CubeTensor,
        weight: CubeTensor,
        targets: CubeTensor,
    ) -> CubeTensor {
        head::forward(x, weight, targets)
    }

    fn head_cross_entropy_backward(
        x: CubeTensor,
        weight: CubeTensor,
        targets: CubeTensor,
        scale: f32,
        dweight: CubeTensor,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        head::backward(x, weight, targets, scale, dweight)
    }

    fn adamw_step(
        param: CubeTensor,
        m: CubeTensor,
        v: CubeTensor,
        grad: CubeTensor,
        hyper: AdamWStep,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        optimizer::adamw_step(param, m, v, grad, hyper)
    }

    fn adamw_step_with_copy(
        param: CubeTensor,
        m: CubeTensor,
        v: CubeTensor,
        grad: CubeTensor,
        copy: CubeTensor,
        hyper: AdamWStep,
    ) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        optimizer::adamw_step_with_copy(param, m, v, grad, copy, hyper)
    }

    fn sum_of_squares(x: CubeTensor) -> CubeTensor {
        optimizer::sum_of_squares(x)
    }

    fn fill_zero(x: CubeTensor) -> CubeTensor {
        let x = accumulator(x, "fill_zero");
        fill_zero(&x);
        x
    }

    fn head_logits(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let mut shape = dims(&x);
        *shape.last_mut().expect("x has a last dimension") = rows_and_width(&weight).0;
        product(&Operand::rows(&x), &Operand::columns(&weight), &shape, DType::F32)
    }

    fn kv_cache_write(cache: CubeTensor, rows: CubeTensor, position: usize) -> CubeTensor {
        let (cache, rows) = (accumulator(cache, "kv_cache_write"), contiguous(rows));
        let width: usize = dims(&cache)[1..].iter().product();
        assert!(
            position * width + elements(&rows) <= elements(&cache),
            "kv_cache_write: {} rows at {position} go past the cache",
            dims(&rows)[0]
        );
        write_at(&rows, &cache, position * width);
        cache
    }
}

/// Copies `rows` into `target` from element `start` on.
fn write_at(rows: &CubeTensor, target: &CubeTensor, start: usize) {
    let (_, width) = rows_and_width(rows);
    let size = vector(width, rows.dtype).min(vector(start, rows.dtype));
    // SAFETY: callers pass a range inside `target`; the kernel stops at the end of `rows`.
    unsafe {
        elementwise::write_at::launch_unchecked(
            &rows.client.clone(),
            units(elements(rows) / size),
            threads(),
            size,
            rows.clone().into_buffer_arg(),
            target.clone().into_buffer_arg(),
            start / size,
            element(rows.dtype),
        );
    }
}
