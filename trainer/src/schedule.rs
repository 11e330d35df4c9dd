//! Learning rate: linear warm-up, then a cosine down to a share of the peak.
//!
//! Steps count from 1, as in Adam's bias correction: the first update of a run is step 1 and the
//! last is step `N`. With `W` warm-up steps, peak `p` and floor `f = min_lr_ratio · p`:
//!
//! ```text
//! lr(s) = p · s / W                                               s ≤ W
//! lr(s) = f + (p − f) · (1 + cos(π · (s − W) / (N − W))) / 2      s > W
//! ```
//!
//! So `lr(0) = 0` is never used, `lr(W) = p` exactly, and `lr(N) = f` exactly.
//! Source: LLaMA (arXiv 2302.13971, section 2.3).

use crate::config::OptimizerConfig;

/// The learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    peak: f64,
    floor: f64,
    warmup_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// The schedule of a run of `total_steps` steps.
    pub fn new(optimizer: &OptimizerConfig, total_steps: u64) -> Self {
        Self {
            peak: optimizer.lr,
            floor: optimizer.lr * optimizer.min_lr_ratio,
            warmup_steps: optimizer.warmup_steps,
            total_steps,
        }
    }

    /// The learning rate of `step`, counted from 1. After the last step it stays at the floor.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        if step == self.warmup_steps {
            return self.peak;
        }
        if step >= self.total_steps {
            return self.floor;
        }
        let progress =
            (step - self.warmup_steps) as f64 / (self.total_steps - self.warmup_steps) as f64;
        self.floor
            + (self.peak - self.floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn schedule(warmup_steps: u64, total_steps: u64) -> Schedule {
        let optimizer =
            OptimizerConfig { lr: 1e-3, min_lr_ratio: 0.1, warmup_steps, ..Default::default() };
        Schedule::new(&optimizer, total_steps)
    }

    #[test]
    fn the_corners_are_exact() {
        let s = schedule(100, 1000);
        assert_eq!(s.lr(1), 1e-3 / 100.0);
        assert_eq!(s.lr(50), 5e-4);
        assert_eq!(s.lr(100), 1e-3);
        assert_eq!(s.lr(1000), 1e-4);
        assert_eq!(s.lr(5000), 1e-4);
        // Half way down the cosine lies the mean of peak and floor.
        assert!((s.lr(550) - 5.5e-4).abs() < 1e-15);
    }

    #[test]
    fn it_rises_then_falls() {
        let s = schedule(10, 60);
        assert!((1..10).all(|step| s.lr(step) < s.lr(step + 1)));
        assert!((10..60).all(|step| s.lr(step) > s.lr(step + 1)));
    }

    #[test]
    fn runs_without_warm_up_or_without_decay_have_no_division_by_zero() {
        let none = schedule(0, 10);
        assert!(none.lr(1) < 1e-3 && none.lr(1) > 9e-4);
        assert_eq!(none.lr(10), 1e-4);
        let all = schedule(10, 10);
        assert!((all.lr(9) - 9e-4).abs() < 1e-15);
        assert_eq!(all.lr(10), 1e-3);
        assert_eq!(schedule(1, 1).lr(1), 1e-3);
        assert_eq!(schedule(0, 1).lr(1), 1e-4);
    }
}
