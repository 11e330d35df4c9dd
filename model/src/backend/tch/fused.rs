//! The fused ops of libtorch that tch has no binding for, reached through `fused.cpp`: AdamW, and
//! flash attention forward on NVIDIA GPUs.

use std::ffi::{CStr, c_char};

use altiplano_kernels::AdamWStep;
use tch::{Kind, Tensor};
use torch_sys::C_tensor;

/// Elements of a gradient scaled at once: what clipping needs beside the gradient is 64 MB.
const SCALED_ELEMENTS: i64 = 1 << 24;

unsafe extern "C" {
    fn altiplano_free_message(message: *mut c_char);
    fn altiplano_fused_adamw(
        param: *const C_tensor,
        grad: *const C_tensor,
        m: *const C_tensor,
        v: *const C_tensor,
        step: *const C_tensor,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn altiplano_cuda_flash_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        is_causal: bool,
        out: *mut *mut C_tensor,
        lse: *mut *mut C_tensor,
    ) -> *mut c_char;
}

/// Panics with what libtorch said, as tch does: a broken invariant, or the device out of memory.
fn check(op: &str, message: *mut c_char) {
    if message.is_null() {
        return;
    }
    // SAFETY: a message is a string that ends with a zero, owned here until it is released, once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        altiplano_free_message(message);
        text
    };
    panic!("{op}: {text}");
}

/// One AdamW step in place on `param`, `m` and `v`, all f32, contiguous and of one shape.
pub(super) fn adamw(
    param: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    grad: &Tensor,
    hyper: &AdamWStep,
) {
    let flat = |x: &Tensor| x.view([-1]);
    let (param, m, v, grad) = (flat(param), flat(m), flat(v), grad.reshape([-1]));
    let count = param.size1().expect("flat");
    let step = Tensor::full([0i64; 0], hyper.step as f64, (Kind::Float, param.device()));
    if hyper.grad_scale == 1.0 {
        return update(&param, &m, &v, &grad, &step, hyper);
    }
    // torch's own `grad_scale` would write the scaled gradient back into a tensor of the caller.
    for start in (0..count).step_by(SCALED_ELEMENTS as usize) {
        let part = |x: &Tensor| x.narrow(0, start, SCALED_ELEMENTS.min(count - start));
        let scaled = part(&grad) * f64::from(hyper.grad_scale);
        update(&part(&param), &part(&m), &part(&v), &scaled, &step, hyper);
    }
}

fn update(param: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor, step: &Tensor, hyper: &AdamWStep) {
    // SAFETY: the pointers are those of live tensors, which the callee only borrows.
    let message = unsafe {
        altiplano_fused_adamw(
            param.as_ptr(),
            grad.as_ptr(),
            m.as_ptr(),
            v.as_ptr(),
            step.as_ptr(),
            f64::from(hyper.lr),
            f64::from(hyper.beta1),
            f64::from(hyper.beta2),
            f64::from(hyper.weight_decay),
            f64::from(hyper.eps),
        )
    };
    check("adamw_step", message);
}

/// Flash attention on a CUDA device: `q`, `k`, `v` (B, H, T, D) in bf16, D a multiple of 8:
/// (o (B, H, T, D), lse (B, H, T) in f32).
pub(super) fn cuda_flash_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    is_causal: bool,
) -> (Tensor, Tensor) {
    let (mut out, mut lse) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the inputs are live tensors, only borrowed; the outputs are places for two pointers.
    let message = unsafe {
        altiplano_cuda_flash_attention(
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            is_causal,
            &mut out,
            &mut lse,
        )
    };
    check("causal_attention_forward", message);
    // SAFETY: without a message both are new tensors, made as tch makes them, and owned here.
    unsafe { (Tensor::from_ptr(out), Tensor::from_ptr(lse)) }
}
