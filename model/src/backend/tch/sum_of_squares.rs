//! Σ x² in f64, in an order that the number of threads does not change: torch splits the sum of a
//! whole tensor among threads, but gives each sum of a row to one.

use tch::{Kind, Tensor};

/// Elements summed by one thread.
const ROW: i64 = 4096;

/// Rows widened to f64 at once: 32 MB.
const ROWS_AT_ONCE: i64 = 1024;

/// Σ x² as one f64, (1).
pub(super) fn sum_of_squares(x: &Tensor) -> Tensor {
    let flat = x.reshape([-1]);
    let count = flat.size()[0];
    let piece = ROW * ROWS_AT_ONCE;
    let sums: Vec<Tensor> = (0..count)
        .step_by(piece as usize)
        .map(|start| {
            let piece = flat.narrow(0, start, piece.min(count - start)).to_kind(Kind::Double);
            sums_of_rows(&piece.square())
        })
        .collect();
    let mut sums = Tensor::cat(&sums, 0);
    while sums.size()[0] > 1 {
        sums = sums_of_rows(&sums);
    }
    sums
}

/// The sum of every [`ROW`] elements of `x` (n), and of those left over.
fn sums_of_rows(x: &Tensor) -> Tensor {
    let count = x.size()[0];
    let whole = count / ROW * ROW;
    let sum = |x: Tensor| x.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
    let mut sums = Vec::new();
    if whole > 0 {
        sums.push(sum(x.narrow(0, 0, whole).view([-1, ROW])));
    }
    if whole < count {
        sums.push(sum(x.narrow(0, whole, count - whole).view([1, -1])));
    }
    Tensor::cat(&sums, 0)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Of every length around a row and a piece, and never another bit for another number of
    /// threads.
    #[test]
    fn sums_are_exact_for_any_threads() {
        let threads = tch::get_num_threads();
        for count in [1, ROW - 1, ROW, ROW + 1, ROW * ROWS_AT_ONCE + ROW + 7] {
            // Squares of small integers: their sum is exact in any order.
            let x = Tensor::arange(count, (Kind::Int64, Device::Cpu)).remainder(11);
            let expected = x.square().sum(Kind::Int64).int64_value(&[]);
            let ones = sum_of_squares(&x.to_kind(Kind::Float));
            assert_eq!(ones.size(), [1]);
            assert_eq!(ones.double_value(&[0]), expected as f64, "{count}");

            let x = Tensor::randn([count], (Kind::Float, Device::Cpu));
            let sums = [1, 2, 3].map(|threads| {
                tch::set_num_threads(threads);
                sum_of_squares(&x).double_value(&[0]).to_bits()
            });
            assert!(sums.iter().all(|sum| *sum == sums[0]), "{count}: {sums:?}");
        }
        tch::set_num_threads(threads);
    }
}
