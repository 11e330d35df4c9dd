//! Rotary position embedding (Su et al. 2021) in Hugging Face's layout (rotate half). Derivation:
//! `docs/backward/rope.md`.
//!
//! ```text
//! φ          = t θ^(−2i/D)                            position t, pair i of a head
//! y_i        = x_i cos φ − x_{i+D/2} sin φ
//! y_{i+D/2}  = x_{i+D/2} cos φ + x_i sin φ
//!
//! dx_i       = dy_i cos φ + dy_{i+D/2} sin φ
//! dx_{i+D/2} = dy_{i+D/2} cos φ − dy_i sin φ          the rotation by −φ
//! ```
//!
//! The backward pass reads the table of angles and nothing of the forward pass.

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::fast;
use crate::backend::TransformerOps;

/// cos φ and sin φ of positions 0..T, each (T, D/2).
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl RopeTable {
    /// The table of `positions` positions for heads of `head_dim`, in `dtype` (f32, or f64 for
    /// gradient checks). The angles are computed in f64.
    pub fn new(
        positions: usize,
        head_dim: usize,
        theta: f64,
        dtype: DType,
        device: &Device,
    ) -> Self {
        Self::at(0..positions, head_dim, theta, dtype, device)
    }

    /// As [`RopeTable::new`], for any positions in any order: those of the rows of a pass.
    pub fn at(
        positions: impl IntoIterator<Item = usize>,
        head_dim: usize,
        theta: f64,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> =
            (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for position in positions {
            for frequency in &frequencies {
                let angle = position as f64 * frequency;
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let table = |values: Vec<f64>| {
            let rows = values.len() / half;
            let data = TensorData::new(values, [rows, half]).convert_dtype(dtype);
            Tensor::from_data(data, (device, dtype))
        };
        Self { cos: table(cos), sin: table(sin) }
    }

    /// The rows of `time` positions from `start` on.
    pub fn positions(&self, start: usize, time: usize) -> Self {
        Self {
            cos: self.cos.clone().narrow(0, start, time),
            sin: self.sin.clone().narrow(0, start, time),
        }
    }
}

/// `x` (B, T, H, D) rotated by its positions, which are the T rows of `table`.
pub fn rope_forward(x: Tensor<4>, table: &RopeTable) -> Tensor<4> {
    if !fast(&x) {
        return reference::rotate(&x, &table.cos, &table.sin);
    }
    Tensor::from_dispatch(Dispatch::rope_forward(
        x.into_dispatch(),
        table.cos.clone().into_dispatch(),
        table.sin.clone().into_dispatch(),
    ))
}

/// `dy` (B, T, H, D) rotated back: dx.
pub fn rope_backward(dy: Tensor<4>, table: &RopeTable) -> Tensor<4> {
    if !fast(&dy) {
        return reference::rotate(&dy, &table.cos, &table.sin.clone().neg());
    }
    Tensor::from_dispatch(Dispatch::rope_backward(
        dy.into_dispatch(),
        table.cos.clone().into_dispatch(),
        table.sin.clone().into_dispatch(),
    ))
}

/// The op in plain tensor operations.
pub mod reference {
    use burn::tensor::Tensor;

    use super::super::wide;
    use super::RopeTable;

    /// See [`super::rope_forward`].
    pub fn forward(x: &Tensor<4>, table: &RopeTable) -> Tensor<4> {
        rotate(x, &table.cos, &table.sin)
    }

    /// See [`super::rope_backward`].
    pub fn backward(dy: &Tensor<4>, table: &RopeTable) -> Tensor<4> {
        rotate(dy, &table.cos, &table.sin.clone().neg())
    }

    /// Turns `x` (B, T, H, D) by the angles whose cosine and sine are given, (T, D/2).
    pub(super) fn rotate(x: &Tensor<4>, cos: &Tensor<2>, sin: &Tensor<2>) -> Tensor<4> {
        let [_, time, _, head_dim] = x.dims();
        let half = head_dim / 2;
        let cos = cos.clone().reshape([1, time, 1, half]);
        let sin = sin.clone().reshape([1, time, 1, half]);
        let wide_x = wide(x);
        let (low, high) = (wide_x.clone().narrow(3, 0, half), wide_x.narrow(3, half, half));
        let y_low = low.clone() * cos.clone() - high.clone() * sin.clone();
        let y_high = high * cos + low * sin;
        Tensor::cat(vec![y_low, y_high], 3).cast(x.dtype())
    }
}
