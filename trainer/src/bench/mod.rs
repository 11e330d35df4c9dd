//! Measurements that other programs can be held against: training steps, attention, generation,
//! steps of the data pipeline.
//!
//! Every figure is the median of several repetitions after a warm-up, in one process that does
//! nothing else, so that its peak memory is that of the work.

mod attention;
mod data;
mod generate;
mod train;

pub use attention::{AttentionBench, AttentionBenchOptions, attention_flops, bench_attention};
pub use data::{DataBench, bench_data};
pub use generate::{GenerateBench, GenerateBenchOptions, bench_generate};
pub use train::{TrainBench, TrainBenchOptions, bench_train};

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[middle],
        _ => 0.5 * (sorted[middle - 1] + sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 100.0]), 3.5);
    }
}
