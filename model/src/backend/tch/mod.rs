//! LibTorch: hands tensors to libtorch's own kernels, on its CPU and CUDA devices.
//!
//! What torch has no fused kernel for is a chain of its elementwise ops in f32, rounded once at the
//! end. On one device and number of threads the same inputs give the same bits; another number of
//! threads may round sums differently, unlike on Flex.
//!
//! libtorch reports a failure as an exception, which becomes a panic: a broken invariant of
//! [`crate::ops`], or a device out of memory.

mod attention;
mod fused;
mod head;
mod product;
mod sum_of_squares;

use burn::backend::LibTorch;
use burn::backend::libtorch::TchTensor;
use tch::{Device, Kind, Tensor};

use super::{AdamWStep, TransformerOps};
use product::{add_transposed_product, f32_product_of_few_rows};

/// Changes the elements of a tensor that nobody else holds.
fn in_place(mut x: TchTensor, op: &str, change: impl FnOnce(&mut Tensor)) -> TchTensor {
    assert!(x.can_mut(), "{op}: the storage it works on in place is shared");
    change(&mut x.tensor);
    x
}

/// The tensor itself when it may be written in place, a copy otherwise.
fn owned(x: TchTensor) -> TchTensor {
    if x.can_mut() && x.tensor.is_contiguous() {
        x
    } else {
        TchTensor::new(x.tensor.contiguous().copy())
    }
}

/// The size of `x` with another last dimension.
fn with_width(x: &Tensor, width: i64) -> Vec<i64> {
    let mut size = x.size();
    *size.last_mut().expect("a tensor has a last dimension") = width;
    size
}

/// All dimensions but the last as one.
fn rows(x: &Tensor) -> Tensor {
    let width = x.size().last().copied().expect("a tensor has a last dimension");
    x.reshape([-1, width])
}

fn wide(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Float)
}

/// Mean over the last dimension, which stays with size 1.
fn mean_of_rows(x: &Tensor) -> Tensor {
    x.mean_dim([-1i64].as_slice(), true, Kind::Float)
}

/// `x` (B, T, H, D) with the pair (x_i, x_{i+D/2}) turned by the angle of `cos` and `sin` (T, D/2),
/// in its own storage when nobody else holds it.
fn rotate(x: TchTensor, cos: &Tensor, sin: &Tensor) -> TchTensor {
    let half = cos.size()[1];
    let table = |table: &Tensor| table.unsqueeze(1); // (T, 1, D/2)
    let (cos, sin) = (table(cos), table(sin));
    let (low, high) = (wide(&x.tensor.narrow(3, 0, half)), wide(&x.tensor.narrow(3, half, half)));
    let mut y_low = &low * &cos;
    let _ = y_low.g_sub_(&(&high * &sin));
    let mut y_high = high * cos;
    let _ = y_high.addcmul_(&low, &sin);
    drop(low);
    let write = |y: &Tensor| {
        y.narrow(3, 0, half).copy_(&y_low);
        y.narrow(3, half, half).copy_(&y_high);
    };
    if x.can_mut() {
        write(&x.tensor);
        return x;
    }
    let y = Tensor::empty(x.tensor.size().as_slice(), (x.tensor.kind(), x.tensor.device()));
    write(&y);
    TchTensor::new(y)
}

impl TransformerOps for LibTorch {
    fn embedding_forward(weight: TchTensor, ids: TchTensor) -> TchTensor {
        let mut size = ids.tensor.size();
        size.push(weight.tensor.size()[1]);
        let picked = weight.tensor.index_select(0, &ids.tensor.reshape([-1]));
        TchTensor::new(picked.view(size.as_slice()))
    }

    fn embedding_backward(dweight: TchTensor, dy: TchTensor, ids: TchTensor) -> TchTensor {
        in_place(dweight, "embedding_backward", |dweight| {
            let (dy, ids) = (rows(&wide(&dy.tensor)), ids.tensor.reshape([-1]));
            let _ = match dweight.device() {
                // One row after the other.
                Device::Cpu => dweight.index_add_(0, &ids, &dy),
                // index_add_ would add in any order; this sorts the ids first.
                _ => dweight.index_put_(&[Some(ids.to_kind(Kind::Int64))], &dy, true),
            };
        })
    }

    fn linear_forward(x: TchTensor, weight: TchTensor) -> TchTensor {
        TchTensor::new(x.tensor.linear(&weight.tensor, None::<&Tensor>))
    }

    fn linear_residual_forward(residual: TchTensor, x: TchTensor, weight: TchTensor) -> TchTensor {
        let size = residual.tensor.size();
        let y = rows(&residual.tensor).addmm(&rows(&x.tensor), &weight.tensor.tr());
        TchTensor::new(y.view(size.as_slice()))
    }

    fn linear_backward_input(dy: TchTensor, weight: TchTensor) -> TchTensor {
        let size = with_width(&dy.tensor, weight.tensor.size()[1]);
        TchTensor::new(rows(&dy.tensor).mm(&weight.tensor).view(size.as_slice()))
    }

    fn linear_backward_input_add(dx: TchTensor, dy: TchTensor, weight: TchTensor) -> TchTensor {
        let dx = owned(dx);
        let _ = rows(&dx.tensor).addmm_(&rows(&dy.tensor), &weight.tensor);
        dx
    }

    fn linear_backward_weight(dweight: TchTensor, dy: TchTensor, x: TchTensor) -> TchTensor {
        in_place(dweight, "linear_backward_weight", |dweight| {
            add_transposed_product(dweight, &rows(&dy.tensor), &rows(&x.tensor));
        })
    }

    fn rms_norm_forward(x: TchTensor, weight: TchTensor, eps: f64) -> (TchTensor, TchTensor) {
        let wide_x = wide(&x.tensor);
        let rstd = (mean_of_rows(&wide_x.square()) + eps).rsqrt(); // (…, 1)
        let mut y = wide_x * &rstd;
        let y = y.g_mul_(&weight.tensor).to_kind(x.tensor.kind());
        (TchTensor::new(y), TchTensor::new(rstd.squeeze_dim(-1)))
    }

    fn rms_norm_backward(
        dy: TchTensor,
        x: TchTensor,
        weight: TchTensor,
        rstd: TchTensor,
        dweight: TchTensor,
    ) -> (TchTensor, TchTensor) {
        let rstd = rstd.tensor.unsqueeze(-1);
        let dy = wide(&dy.tensor);
        let mut x_hat = wide(&x.tensor) * &rstd;
        let dweight = in_place(dweight, "rms_norm_backward", |dweight| {
            let terms = rows(&(&dy * &x_hat));
            let _ = dweight.g_add_(&terms.sum_dim_intlist([0i64].as_slice(), false, Kind::Float));
        });
        let mut dx = dy * &weight.tensor;
        let mean = mean_of_rows(&(&dx * &x_hat));
        let _ = dx.g_sub_(&x_hat.g_mul_(&mean));
        let dx = dx.g_mul_(&rstd).to_kind(x.tensor.kind());
        (TchTensor::new(dx), dweight)
    }

    fn residual_rms_norm_forward(
        x: TchTensor,
        branch: TchTensor,
        weight: TchTensor,
        eps: f64,
    ) -> (TchTensor, TchTensor, TchTensor) {
        let h = TchTensor::new(x.tensor + branch.tensor);
        let (y, rstd) = Self::rms_norm_forward(h.clone(), weight, eps);
        (h, y, rstd)
    }

    fn residual_rms_norm_backward(
        dstream: TchTensor,
        dy: TchTensor,
        x: TchTensor,
        weight: TchTensor,
        rstd: TchTensor,
        dweight: TchTensor,
    ) -> (TchTensor, TchTensor) {
        let (dx, dweight) = Self::rms_norm_backward(dy, x, weight, rstd, dweight);
        (Self::residual_forward(dstream, dx), dweight)
    }

    fn residual_forward(mut x: TchTensor, branch: TchTensor) -> TchTensor {
        if x.can_mut() {
            let _ = x.tensor.g_add_(&branch.tensor);
            return x;
        }
        TchTensor::new(x.tensor + branch.tensor)
    }

    fn rope_forward(x: TchTensor, cos: TchTensor, sin: TchTensor) -> TchTensor {
        rotate(x, &cos.tensor, &sin.tensor)
    }

    fn rope_backward(dy: TchTensor, cos: TchTensor, sin: TchTensor) -> TchTensor {
        rotate(dy, &cos.tensor, &sin.tensor.neg())
    }

    fn swiglu_forward(gate: TchTensor, up: TchTensor) -> TchTensor {
        let mut y = wide(&gate.tensor).silu();
        TchTensor::new(y.g_mul_(&up.tensor).to_kind(gate.tensor.kind()))
    }

    fn swiglu_backward(dy: TchTensor, gate: TchTensor, up: TchTensor) -> (TchTensor, TchTensor) {
        let kind = gate.tensor.kind();
        let (dy, gate) = (wide(&dy.tensor), wide(&gate.tensor));
        let dgate = gate.silu_backward(&(&dy * &up.tensor)).to_kind(kind);
        let mut dup = gate.silu();
        let dup = dup.g_mul_(&dy).to_kind(kind);
        (TchTensor::new(dgate), TchTensor::new(dup))
    }

    fn causal_attention_forward(
        q: TchTensor,
        k: TchTensor,
        v: TchTensor,
        first_visible: TchTensor,
    ) -> (TchTensor, TchTensor) {
        let (o, lse) = attention::forward(&q.tensor, &k.tensor, &v.tensor, &first_visible.tensor);
        (TchTensor::new(o), TchTensor::new(lse))
    }

    fn causal_attention_backward(
        dout: TchTensor,
        q: TchTensor,
        k: TchTensor,
        v: TchTensor,
        o: TchTensor,
        lse: TchTensor,
        first_visible: TchTensor,
    ) -> (TchTensor, TchTensor, TchTensor) {
        let (dq, dk, dv) = attention::backward(
            &dout.tensor,
            &q.tensor,
            &k.tensor,
            &v.tensor,
            &o.tensor,
            &lse.tensor,
            &first_visible.tensor,
        );
        (TchTensor::new(dq), TchTensor::new(dk), TchTensor::new(dv))
    }

    fn head_cross_entropy_forward(
        x: TchTensor,
        weight: TchTensor,
        targets: TchTensor,
    ) -> TchTensor {
        TchTensor::new(head::forward(&x.tensor, &weight.tensor, &targets.tensor))
    }

    fn head_cross_entropy_backward(
        x: TchTensor,
        weight: TchTensor,
        targets: TchTensor,
        scale: f32,
        dweight: TchTensor,
    ) -> (TchTensor, TchTensor, TchTensor) {
        let mut results = None;
        let dweight = in_place(dweight, "head_cross_entropy_backward", |dweight| {
            let scale = f64::from(scale);
            let (x, weight, targets) = (&x.tensor, &weight.tensor, &targets.tensor);
            results = Some(head::backward(x, weight, targets, scale, dweight));
        });
        let (losses, dx) = results.expect("set above");
        (TchTensor::new(losses), TchTensor::new(dx), dweight)
    }

    fn adamw_step(
        param: TchTensor,
        mut m: TchTensor,
        mut v: TchTensor,
        grad: TchTensor,
        hyper: AdamWStep,
    ) -> (TchTensor, TchTensor, TchTensor) {
        let op = "adamw_step";
        assert!(m.can_mut() && v.can_mut(), "{op}: the storage of a moment is shared");
        let param = in_place(param, op, |param| {
            fused::adamw(param, &mut m.tensor, &mut v.tensor, &grad.tensor, &hyper);
        });
        (param, m, v)
    }

    fn adamw_step_with_copy(
        param: TchTensor,
        m: TchTensor,
        v: TchTensor,
        grad: TchTensor,
        copy: TchTensor,
        hyper: AdamWStep,
    ) -> (TchTensor, TchTensor, TchTensor, TchTensor) {
        let (param, m, v) = Self::adamw_step(param, m, v, grad, hyper);
        let copy = in_place(copy, "adamw_step_with_copy", |copy| copy.copy_(&param.tensor));
        (param, m, v, copy)
    }

    fn sum_of_squares(x: TchTensor) -> TchTensor {
        TchTensor::new(sum_of_squares::sum_of_squares(&x.tensor))
    }

    fn fill_zero(x: TchTensor) -> TchTensor {
        in_place(x, "fill_zero", |x| {
            let _ = x.zero_();
        })
    }

    fn head_logits(x: TchTensor, weight: TchTensor) -> TchTensor {
        let size = with_width(&x.tensor, weight.tensor.size()[0]);
        let logits = f32_product_of_few_rows(&rows(&x.tensor), &weight.tensor);
        TchTensor::new(logits.view(size.as_slice()))
    }

    fn kv_cache_write(cache: TchTensor, rows: TchTensor, position: usize) -> TchTensor {
        in_place(cache, "kv_cache_write", |cache| {
            let count = rows.tensor.size()[0];
            cache.narrow(0, position as i64, count).copy_(&rows.tensor);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYPER: AdamWStep = AdamWStep {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 0.5,
    };

    fn random<const D: usize>(size: [i64; D]) -> TchTensor {
        TchTensor::new(Tensor::randn(size, (Kind::Float, Device::Cpu)))
    }

    /// `change` hands `x` back at the address where it was, with other elements.
    fn stays(what: &str, x: TchTensor, change: impl FnOnce(TchTensor) -> TchTensor) {
        let (place, before) = (x.tensor.data_ptr(), x.tensor.copy());
        let x = change(x);
        assert_eq!(x.tensor.data_ptr(), place, "{what} was copied");
        assert!(x.can_mut(), "{what} is shared afterwards");
        assert!(!x.tensor.equal(&before), "{what} is as it was");
    }

    #[test]
    fn what_works_in_place_stays_in_place() {
        let ids = || TchTensor::new(Tensor::from_slice(&[2i32, 0, 2]).view([1, 3]));
        stays("embedding", random([4, 8]), |d| {
            LibTorch::embedding_backward(d, random([1, 3, 8]), ids())
        });
        stays("linear", random([5, 8]), |d| {
            LibTorch::linear_backward_weight(d, random([1, 3, 5]), random([1, 3, 8]))
        });
        stays("rms_norm", random([8]), |d| {
            let (dy, x) = (random([1, 3, 8]), random([1, 3, 8]));
            LibTorch::rms_norm_backward(dy, x, random([8]), random([1, 3]), d).1
        });
        stays("head", random([4, 8]), |d| {
            let (x, weight) = (random([1, 3, 8]), random([4, 8]));
            LibTorch::head_cross_entropy_backward(x, weight, ids(), 0.5, d).2
        });
        stays("residual", random([1, 3, 8]), |x| LibTorch::residual_forward(x, random([1, 3, 8])));
        let table = || random([3, 2]);
        stays("rope", random([1, 3, 2, 4]), |x| LibTorch::rope_forward(x, table(), table()));
        stays("cache", random([6, 2, 4]), |x| LibTorch::kv_cache_write(x, random([2, 2, 4]), 3));
        stays("zero", random([5, 8]), LibTorch::fill_zero);
        let moments = || (random([5, 8]), TchTensor::new(random([5, 8]).tensor.square()));
        stays("param", random([5, 8]), |p| {
            let (m, v) = moments();
            LibTorch::adamw_step(p, m, v, random([5, 8]), HYPER).0
        });
        stays("copy", TchTensor::new(random([5, 8]).tensor.to_kind(Kind::BFloat16)), |copy| {
            let (m, v) = moments();
            LibTorch::adamw_step_with_copy(random([5, 8]), m, v, random([5, 8]), copy, HYPER).3
        });
    }

    /// The gradient is the caller's: clipping scales a copy of it.
    #[test]
    fn adamw_leaves_the_gradient_alone() {
        let (grad, zeros) = (random([5, 8]), || TchTensor::new(random([5, 8]).tensor.zeros_like()));
        let before = grad.tensor.copy();
        LibTorch::adamw_step(random([5, 8]), zeros(), zeros(), grad.clone(), HYPER);
        assert!(grad.tensor.equal(&before));
    }

    #[test]
    #[should_panic(expected = "linear_backward_weight: the storage it works on in place is shared")]
    fn a_shared_accumulator_is_refused() {
        let dweight = random([5, 8]);
        let _other = dweight.clone();
        LibTorch::linear_backward_weight(dweight, random([1, 3, 5]), random([1, 3, 8]));
    }
}
