//! Linear layer without bias, weight stored (outputs, inputs). Derivation:
//! `docs/backward/linear.md`.
//!
//! ```text
//! y   = x wᵀ
//!
//! dx  = dy w
//! dw += dyᵀ x
//! ```
//!
//! Products accumulate in f32 whatever the element.

use crate::element::Element;
use crate::gemm::{Output, SharedPointer, gemm};
use crate::packing::Operand;
use crate::simd::{LANES, sum_lanes, vectorized};
use rayon::prelude::*;

/// The shape of a linear layer applied to some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of `x` and `y`, `M`.
    pub rows: usize,
    /// Columns of `x`, the contraction of the forward product.
    pub inputs: usize,
    /// Columns of `y`, rows of the weight.
    pub outputs: usize,
}

impl LinearShape {
    /// Panics unless the lengths of `x`, `weight` and `y` are this shape's.
    pub(crate) fn check(self, op: &str, x: usize, weight: usize, y: usize) {
        let Self { rows, inputs, outputs } = self;
        assert_eq!(x, rows * inputs, "{op}: x is not ({rows}, {inputs})");
        assert_eq!(weight, outputs * inputs, "{op}: weight is not ({outputs}, {inputs})");
        assert_eq!(y, rows * outputs, "{op}: y is not ({rows}, {outputs})");
    }
}

/// `y` (M, outputs) `=` `x` (M, inputs) times `weight` (outputs, inputs) transposed.
pub fn linear_forward<E: Element>(y: &mut [E], x: &[E], weight: &[E], shape: LinearShape) {
    let LinearShape { rows, inputs, outputs } = shape;
    shape.check("linear_forward", x.len(), weight.len(), y.len());
    if rows <= FEW_ROWS {
        return few_rows_forward(y, x, weight, shape);
    }
    let a = Operand::rows(x, rows, inputs);
    let b = Operand::rows(weight, outputs, inputs);
    gemm(Output::Assign(y), a, b);
}

/// `y` (M, outputs) `+=` `x` (M, inputs) times `weight` (outputs, inputs) transposed: a layer that
/// ends in a residual stream.
pub fn linear_forward_add<E: Element>(y: &mut [E], x: &[E], weight: &[E], shape: LinearShape) {
    let LinearShape { rows, inputs, outputs } = shape;
    shape.check("linear_forward_add", x.len(), weight.len(), y.len());
    let a = Operand::rows(x, rows, inputs);
    let b = Operand::rows(weight, outputs, inputs);
    gemm(Output::Add(y), a, b);
}

/// As [`linear_forward`], with the output in f32 whatever the element: logits to choose from,
/// neighbours of which round to the same bf16 number.
pub fn head_logits<E: Element>(logits: &mut [f32], x: &[E], weight: &[E], shape: LinearShape) {
    let LinearShape { rows, inputs, outputs } = shape;
    shape.check("head_logits", x.len(), weight.len(), logits.len());
    if rows <= FEW_ROWS {
        return few_rows_forward(logits, x, weight, shape);
    }
    let a = Operand::rows(x, rows, inputs);
    let b = Operand::rows(weight, outputs, inputs);
    gemm(Output::AssignF32(logits), a, b);
}

/// Most rows for which the weight is not packed but read once where it lies: generation takes a few
/// tokens at a time and runs at the speed of memory.
const FEW_ROWS: usize = 4;

/// Outputs that one task computes.
const OUTPUTS: usize = 64;

fn few_rows_forward<E: Element, O: Element>(
    y: &mut [O],
    x: &[E],
    weight: &[E],
    shape: LinearShape,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let y = SharedPointer::new(y);
    (0..outputs.div_ceil(OUTPUTS)).into_par_iter().for_each(|task| {
        let first = task * OUTPUTS;
        for n in first..(first + OUTPUTS).min(outputs) {
            for m in 0..rows {
                let sum = dot(&x[m * inputs..][..inputs], &weight[n * inputs..][..inputs]);
                // SAFETY: inside y, and column n belongs to this task.
                unsafe { y.at(m * outputs + n).write(O::from_f32(sum)) };
            }
        }
    });
}

vectorized! {
    /// `Σ a_i b_i` in 4 x 16 lanes, whose sums do not wait for each other.
    fn dot<E: Element>(a: &[E], b: &[E]) -> f32 {
        let mut sums = [[0.0f32; LANES]; 4];
        let (a_runs, b_runs) = (a.chunks_exact(4 * LANES), b.chunks_exact(4 * LANES));
        let (a_rest, b_rest) = (a_runs.remainder(), b_runs.remainder());
        for (a, b) in a_runs.zip(b_runs) {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let (a, b) = (a[i * LANES + lane], b[i * LANES + lane]);
                    *sum = a.to_f32().mul_add(b.to_f32(), *sum);
                }
            }
        }
        for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
            let sum = &mut sums[i / LANES][i % LANES];
            *sum = a.to_f32().mul_add(b.to_f32(), *sum);
        }
        let mut total = sums[0];
        for (lane, total) in total.iter_mut().enumerate() {
            *total = (*total + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
        }
        sum_lanes(total)
    }
}

/// `dx` (M, inputs) `=` `dy` (M, outputs) times `weight` (outputs, inputs).
pub fn linear_backward_input<E: Element>(dx: &mut [E], dy: &[E], weight: &[E], shape: LinearShape) {
    let LinearShape { rows, inputs, outputs } = shape;
    shape.check("linear_backward_input", dx.len(), weight.len(), dy.len());
    let a = Operand::rows(dy, rows, outputs);
    let b = Operand::columns(weight, outputs, inputs);
    gemm(Output::Assign(dx), a, b);
}

/// `dx` (M, inputs) `+=` `dy` (M, outputs) times `weight` (outputs, inputs): several layers of one
/// input.
pub fn linear_backward_input_add<E: Element>(
    dx: &mut [E],
    dy: &[E],
    weight: &[E],
    shape: LinearShape,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    shape.check("linear_backward_input_add", dx.len(), weight.len(), dy.len());
    let a = Operand::rows(dy, rows, outputs);
    let b = Operand::columns(weight, outputs, inputs);
    gemm(Output::Add(dx), a, b);
}

/// `dweight` (outputs, inputs) `+=` `dy` (M, outputs) transposed times `x` (M, inputs).
pub fn linear_backward_weight<E: Element>(
    dweight: &mut [f32],
    dy: &[E],
    x: &[E],
    shape: LinearShape,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    shape.check("linear_backward_weight", x.len(), dweight.len(), dy.len());
    let a = Operand::columns(dy, rows, outputs);
    let b = Operand::columns(x, rows, inputs);
    gemm(Output::AddF32(dweight), a, b);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, assert_same_for_any_threads, at_every_level, bits, random, to_f64,
    };
    use half::bf16;

    /// Tiles, edges, an odd contraction, more than one block of it, and vectors.
    const SHAPES: [(usize, usize, usize); 10] = [
        (1, 1, 1),
        (12, 2, 32),
        (13, 33, 31),
        (97, 64, 257),
        (1, 300, 70),
        (3, 129, 65),
        (4, 64, 67),
        (5, 2500, 33),
        (130, 17, 300),
        (25, 4099, 40),
    ];

    fn product(m: usize, n: usize, k: usize, f: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
        (0..m * n).map(|i| (0..k).map(|k| f(i / n, i % n, k)).sum()).collect()
    }

    fn agrees_with_reference<E: Element>(product_tolerance: f64, sum_tolerance: f64) {
        for (rows, inputs, outputs) in SHAPES {
            let shape = LinearShape { rows, inputs, outputs };
            let x = random::<E>(rows * inputs, 1.0, 1);
            let w = random::<E>(outputs * inputs, 1.0, 2);
            let dy = random::<E>(rows * outputs, 1.0, 3);
            let (x64, w64, dy64) = (to_f64(&x), to_f64(&w), to_f64(&dy));

            let mut y = vec![E::from_f32(f32::NAN); rows * outputs];
            linear_forward(&mut y, &x, &w, shape);
            let want =
                product(rows, outputs, inputs, |m, n, k| x64[m * inputs + k] * w64[n * inputs + k]);
            assert_close(&format!("y {shape:?}"), &y, &want, product_tolerance);

            let start = random::<E>(rows * outputs, 1.0, 6);
            let mut y = start.clone();
            linear_forward_add(&mut y, &x, &w, shape);
            let want: Vec<f64> =
                want.iter().zip(to_f64(&start)).map(|(want, start)| want + start).collect();
            assert_close(&format!("y added {shape:?}"), &y, &want, product_tolerance);

            let mut dx = vec![E::from_f32(f32::NAN); rows * inputs];
            linear_backward_input(&mut dx, &dy, &w, shape);
            let want = product(rows, inputs, outputs, |m, k, n| {
                dy64[m * outputs + n] * w64[n * inputs + k]
            });
            assert_close(&format!("dx {shape:?}"), &dx, &want, product_tolerance);

            let start = random::<E>(rows * inputs, 1.0, 5);
            let mut dx = start.clone();
            linear_backward_input_add(&mut dx, &dy, &w, shape);
            let want: Vec<f64> =
                want.iter().zip(to_f64(&start)).map(|(want, start)| want + start).collect();
            assert_close(&format!("dx added {shape:?}"), &dx, &want, product_tolerance);

            let start = random::<f32>(outputs * inputs, 1.0, 4);
            let mut dw = start.clone();
            linear_backward_weight(&mut dw, &dy, &x, shape);
            let mut want = product(outputs, inputs, rows, |n, k, m| {
                dy64[m * outputs + n] * x64[m * inputs + k]
            });
            want.iter_mut().zip(&start).for_each(|(want, &start)| *want += f64::from(start));
            assert_close(&format!("dw {shape:?}"), &dw, &want, sum_tolerance);
        }
    }

    #[test]
    fn f32_agrees_with_reference() {
        at_every_level(|| agrees_with_reference::<f32>(1e-5, 1e-5));
    }

    #[test]
    fn bf16_agrees_with_reference() {
        // Rounding the result to bf16 costs 2^-9 of its largest element; f32 sums cost nothing.
        at_every_level(|| agrees_with_reference::<bf16>(1.6e-2, 1e-5));
    }

    #[test]
    fn a_product_of_nothing_is_zero() {
        let shape = LinearShape { rows: 2, inputs: 0, outputs: 3 };
        let mut y = [bf16::ONE; 6];
        linear_forward(&mut y, &[], &[], shape);
        assert_eq!(y, [bf16::ZERO; 6]);
        let mut dw = [1.0f32; 6];
        let shape = LinearShape { rows: 0, inputs: 2, outputs: 3 };
        linear_backward_weight::<f32>(&mut dw, &[], &[], shape);
        assert_eq!(dw, [1.0; 6]);
    }

    #[test]
    fn not_a_number_spreads() {
        let shape = LinearShape { rows: 2, inputs: 3, outputs: 2 };
        let mut x = random::<bf16>(6, 1.0, 1);
        x[4] = bf16::NAN;
        let mut y = [bf16::ZERO; 4];
        linear_forward(&mut y, &x, &random(6, 1.0, 2), shape);
        assert!(y[0].is_finite() && y[1].is_finite() && y[2].is_nan() && y[3].is_nan());
    }

    fn same_for_any_threads<E: Element>() {
        let shape = LinearShape { rows: 250, inputs: 2100, outputs: 300 };
        let LinearShape { rows, inputs, outputs } = shape;
        let x = random::<E>(rows * inputs, 1.0, 1);
        let w = random::<E>(outputs * inputs, 1.0, 2);
        let dy = random::<E>(rows * outputs, 1.0, 3);
        assert_same_for_any_threads(|| {
            let mut y = vec![E::ZERO; 2 * outputs];
            let few = LinearShape { rows: 2, ..shape };
            linear_forward(&mut y, &x[..2 * inputs], &w, few);
            bits(&y)
        });
        assert_same_for_any_threads(|| {
            let mut y = vec![E::ZERO; rows * outputs];
            let mut dx = vec![E::ZERO; rows * inputs];
            let mut dw = vec![0.0; outputs * inputs];
            linear_forward(&mut y, &x, &w, shape);
            linear_backward_input(&mut dx, &dy, &w, shape);
            linear_backward_weight(&mut dw, &dy, &x, shape);
            (bits(&y), bits(&dx), bits(&dw))
        });
    }

    #[test]
    fn f32_same_for_any_threads() {
        same_for_any_threads::<f32>();
    }

    #[test]
    fn bf16_same_for_any_threads() {
        same_for_any_threads::<bf16>();
    }
}
