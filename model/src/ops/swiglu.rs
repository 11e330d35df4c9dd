//! SwiGLU (Shazeer 2020). Derivation: `docs/backward/swiglu.md`.
//!
//! ```text
//! σ     = 1 / (1 + exp(−gate))
//! y     = gate ∘ σ ∘ up
//!
//! dup   = dy ∘ gate ∘ σ
//! dgate = dy ∘ up ∘ σ ∘ (1 + gate ∘ (1 − σ))
//! ```

use burn::backend::Dispatch;
use burn::tensor::Tensor;

use super::fast;
use crate::backend::TransformerOps;

/// silu(`gate`) · `up`, all (B, T, F).
pub fn swiglu_forward(gate: &Tensor<3>, up: &Tensor<3>) -> Tensor<3> {
    if !fast(gate) {
        return reference::forward(gate, up);
    }
    Tensor::from_dispatch(Dispatch::swiglu_forward(
        gate.clone().into_dispatch(),
        up.clone().into_dispatch(),
    ))
}

/// (dgate, dup), all (B, T, F).
pub fn swiglu_backward(dy: &Tensor<3>, gate: &Tensor<3>, up: &Tensor<3>) -> (Tensor<3>, Tensor<3>) {
    if !fast(gate) {
        return reference::backward(dy, gate, up);
    }
    let (dgate, dup) = Dispatch::swiglu_backward(
        dy.clone().into_dispatch(),
        gate.clone().into_dispatch(),
        up.clone().into_dispatch(),
    );
    (Tensor::from_dispatch(dgate), Tensor::from_dispatch(dup))
}

/// The op in plain tensor operations.
pub mod reference {
    use burn::tensor::Tensor;
    use burn::tensor::activation::sigmoid;

    use super::super::wide;

    /// See [`super::swiglu_forward`].
    pub fn forward(gate: &Tensor<3>, up: &Tensor<3>) -> Tensor<3> {
        let wide_gate = wide(gate);
        (wide_gate.clone() * sigmoid(wide_gate) * wide(up)).cast(gate.dtype())
    }

    /// See [`super::swiglu_backward`].
    pub fn backward(dy: &Tensor<3>, gate: &Tensor<3>, up: &Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let (dy, wide_gate, wide_up) = (wide(dy), wide(gate), wide(up));
        let sigma = sigmoid(wide_gate.clone());
        let silu = wide_gate.clone() * sigma.clone();
        let dsilu = sigma.clone() * ((sigma.neg() + 1.0) * wide_gate + 1.0);
        let dgate = dy.clone() * wide_up * dsilu;
        (dgate.cast(gate.dtype()), (dy * silu).cast(up.dtype()))
    }
}
