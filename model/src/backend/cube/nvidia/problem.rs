//! A matrix product as the vendor's library is asked for it.

use burn::tensor::DType;

/// left (m, k) · right (k, n), all stored by rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) struct Problem {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Whether the left operand is stored as its transpose, (k, m).
    pub left_transposed: bool,
    /// Whether the right operand is stored as its transpose, (n, k).
    pub right_transposed: bool,
    /// The type of both operands.
    pub input: DType,
    /// The type of the result and of what is added to it.
    pub output: DType,
}

impl Problem {
    /// Additions and multiplications.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}
