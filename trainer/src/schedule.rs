//! Learning rate: linear warm-up, then a cosine, a constant, or a constant with a decay at the end.
//!
//! Steps count from 1, as in Adam's bias correction: the first update of a run is step 1 and the
//! last is step `N`. With `W` warm-up steps, peak `p` and floor `f = min_lr_ratio · p`, all of them
//! begin with
//!
//! ```text
//! lr(s) = p · s / W                                               s ≤ W
//! ```
//!
//! so `lr(0) = 0` is never used and `lr(W) = p` exactly. Then, with the decay ending at step
//! `E = decay_steps` (the last step unless it is given) and `C = cooldown_steps`:
//!
//! ```text
//! cosine    lr(s) = f + (p − f) · (1 + cos(π · (s − W) / (E − W))) / 2      W < s < E
//! wsd       lr(s) = p                                                       W < s ≤ E − C
//!           lr(s) = f + (p − f) · (E − s) / C                           E − C < s < E
//! constant  lr(s) = p                                                       W < s
//! ```
//!
//! From step `E` on the rate of `cosine` and `wsd` is `f` exactly. It depends on `E`, not on the
//! length of the run, so a run can be planned for longer than it is first trained.
//!
//! Sources: cosine, LLaMA (arXiv 2302.13971, section 2.3); warm-up, stable, decay with a tenth of the
//! steps for the decay, MiniCPM (arXiv 2404.06395, section 4).

use crate::config::{LrSchedule, OptimizerConfig};

/// The learning rate as a function of the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    kind: LrSchedule,
    peak: f64,
    floor: f64,
    warmup_steps: u64,
    /// Step at which the floor is reached.
    decay_steps: u64,
    /// Steps of the straight line of `wsd`.
    cooldown_steps: u64,
}

impl Schedule {
    /// The schedule of a run of `total_steps` steps.
    pub fn new(optimizer: &OptimizerConfig, total_steps: u64) -> Self {
        let decay_steps = optimizer.decay_steps.unwrap_or(total_steps);
        let longest = decay_steps.saturating_sub(optimizer.warmup_steps);
        Self {
            kind: optimizer.schedule,
            peak: optimizer.lr,
            floor: optimizer.lr * optimizer.min_lr_ratio,
            warmup_steps: optimizer.warmup_steps,
            decay_steps,
            cooldown_steps: optimizer.cooldown_steps.unwrap_or(decay_steps / 10).min(longest),
        }
    }

    /// The learning rate of `step`, counted from 1.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        if step == self.warmup_steps || self.kind == LrSchedule::Constant {
            return self.peak;
        }
        if step >= self.decay_steps {
            return self.floor;
        }
        match self.kind {
            LrSchedule::Cosine => {
                let progress = (step - self.warmup_steps) as f64
                    / (self.decay_steps - self.warmup_steps) as f64;
                self.floor
                    + (self.peak - self.floor)
                        * 0.5
                        * (1.0 + (std::f64::consts::PI * progress).cos())
            }
            LrSchedule::Wsd if self.decay_steps - step < self.cooldown_steps => {
                let left = (self.decay_steps - step) as f64 / self.cooldown_steps as f64;
                self.floor + (self.peak - self.floor) * left
            }
            LrSchedule::Wsd | LrSchedule::Constant => self.peak,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn schedule_config(warmup_steps: u64) -> OptimizerConfig {
        OptimizerConfig { lr: 1e-3, min_lr_ratio: 0.1, warmup_steps, ..Default::default() }
    }

    fn schedule(warmup_steps: u64, total_steps: u64) -> Schedule {
        Schedule::new(&schedule_config(warmup_steps), total_steps)
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

    #[test]
    fn warm_up_stable_decay() {
        let optimizer = OptimizerConfig {
            schedule: LrSchedule::Wsd,
            decay_steps: Some(100),
            cooldown_steps: Some(20),
            ..schedule_config(10)
        };
        let s = Schedule::new(&optimizer, 40);
        assert_eq!(s.lr(5), 5e-4);
        assert!((10..=80).all(|step| s.lr(step) == 1e-3));
        assert!((80..100).all(|step| s.lr(step) > s.lr(step + 1)));
        assert!((s.lr(90) - 5.5e-4).abs() < 1e-15);
        assert!([100, 101, 5000].iter().all(|&step| s.lr(step) == 1e-4));
        // A tenth of the run by default, never more than the warm-up leaves.
        let default = OptimizerConfig { decay_steps: None, cooldown_steps: None, ..optimizer };
        let s = Schedule::new(&default, 200);
        assert_eq!((s.lr(180), s.lr(181) < 1e-3, s.lr(200)), (1e-3, true, 1e-4));
        let s = Schedule::new(&default, 10);
        assert!((s.lr(9) - 9e-4).abs() < 1e-15);
        assert_eq!((s.lr(10), s.lr(11)), (1e-3, 1e-4));
    }

    #[test]
    fn constant_is_constant_after_the_warm_up() {
        let optimizer = OptimizerConfig { schedule: LrSchedule::Constant, ..schedule_config(10) };
        let s = Schedule::new(&optimizer, 20);
        assert_eq!(s.lr(1), 1e-4);
        assert!((10..100).all(|step| s.lr(step) == 1e-3));
    }

    /// What is planned for later is the same now, however long the run is at first.
    #[test]
    fn the_end_of_the_decay_decides_not_the_length_of_the_run() {
        let optimizer = OptimizerConfig { decay_steps: Some(1000), ..schedule_config(100) };
        let (short, whole) = (Schedule::new(&optimizer, 300), schedule(100, 1000));
        assert!((1..=1000).all(|step| short.lr(step) == whole.lr(step)));
    }
}
