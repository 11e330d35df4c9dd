//! SwiGLU (Shazeer 2020): y = silu(g) · u, with silu(g) = g σ(g) and σ the logistic function.
//!
//! From σ' = σ (1 − σ): silu'(g) = σ + g σ (1 − σ) = σ (1 + g (1 − σ)). Hence
//!
//! dg = dy · u · σ (1 + g (1 − σ)),  du = dy · g σ.

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
        let g = wide(gate);
        (g.clone() * sigmoid(g) * wide(up)).cast(gate.dtype())
    }

    /// See [`super::swiglu_backward`].
    pub fn backward(dy: &Tensor<3>, gate: &Tensor<3>, up: &Tensor<3>) -> (Tensor<3>, Tensor<3>) {
        let (dy, g, u) = (wide(dy), wide(gate), wide(up));
        let s = sigmoid(g.clone());
        let silu = g.clone() * s.clone();
        let dsilu = s.clone() * ((s.neg() + 1.0) * g + 1.0);
        let dgate = dy.clone() * u * dsilu;
        (dgate.cast(gate.dtype()), (dy * silu).cast(up.dtype()))
    }
}
