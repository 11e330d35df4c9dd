//! Progress of training: a bar on a terminal, a plain line every few steps elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::metrics::StepMetrics;

/// Share of the newest step in the running mean of the time per step.
const NEWEST: f64 = 0.1;

/// Shows steps on standard error.
#[derive(Debug)]
pub struct TrainProgress {
    bar: Option<ProgressBar>,
    total_steps: u64,
    log_every: u64,
    first_step: u64,
    step_seconds: Option<f64>,
}

impl TrainProgress {
    /// A run of `total_steps` steps of which `done` are done; without a terminal every
    /// `log_every`-th step gives a line.
    pub fn new(done: u64, total_steps: u64, log_every: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| bar(done, total_steps));
        let log_every = log_every.max(1);
        Self { bar, total_steps, log_every, first_step: done + 1, step_seconds: None }
    }

    /// One more step is done.
    pub fn step(&mut self, metrics: &StepMetrics) {
        let mean = match self.step_seconds {
            Some(mean) => mean + NEWEST * (metrics.step_seconds - mean),
            None => metrics.step_seconds,
        };
        self.step_seconds = Some(mean);
        let left = self.total_steps.saturating_sub(metrics.step) as f64 * mean;
        if let Some(bar) = &self.bar {
            bar.set_message(format!(
                "loss {:.4}  {} tokens/s  ETA {}",
                metrics.loss,
                grouped(metrics.tokens_per_second),
                duration(left)
            ));
            bar.set_position(metrics.step);
        } else if self.has_line(metrics.step) {
            eprintln!("{}", line(metrics, self.total_steps, left));
        }
    }

    /// Writes a line of its own, above the bar where there is one.
    pub fn println(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn has_line(&self, step: u64) -> bool {
        step == self.first_step || step == self.total_steps || step.is_multiple_of(self.log_every)
    }
}

fn bar(done: u64, total_steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr());
    // The template is a constant; a mistake in it would cost the look, not the run.
    if let Ok(style) = ProgressStyle::with_template("step {pos}/{len} [{bar:30}] {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_position(done);
    bar
}

fn line(metrics: &StepMetrics, total_steps: u64, seconds_left: f64) -> String {
    let width = total_steps.to_string().len();
    let skipped = if metrics.skipped { "  skipped (outlier)" } else { "" };
    format!(
        "step {:>width$}/{total_steps}  loss {:.4}  lr {:.2e}  grad norm {:.3}  {} tokens/s  ETA {}{skipped}",
        metrics.step,
        metrics.loss,
        metrics.lr,
        metrics.grad_norm,
        grouped(metrics.tokens_per_second),
        duration(seconds_left),
    )
}

/// 1234567.8 as `1 234 568`.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// The two largest units of a time: `1d 2h`, `3h 5m`, `2m 9s`, `12s`.
fn duration(seconds: f64) -> String {
    // A saturating cast: not-a-number and negative times are zero.
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86400, s % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_matters() {
        let metrics = StepMetrics {
            step: 120,
            loss: 3.21456,
            lr: 1.9e-3,
            grad_norm: 0.8123,
            tokens_per_second: 12345.6,
            ..Default::default()
        };
        let text = line(&metrics, 1000, 192.0);
        let expected =
            "step  120/1000  loss 3.2146  lr 1.90e-3  grad norm 0.812  12 346 tokens/s  ETA 3m 12s";
        assert_eq!(text, expected);
    }

    #[test]
    fn times_have_two_units() {
        for (seconds, text) in
            [(0.2, "0s"), (59.0, "59s"), (60.0, "1m 0s"), (7384.0, "2h 3m"), (1.8e6, "20d 20h")]
        {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(f64::NAN), "0s");
    }

    #[test]
    fn first_last_and_every_tenth_step_have_a_line() {
        let mut progress = TrainProgress::new(23, 55, 10);
        progress.bar = None;
        let lines: Vec<u64> = (24..=55).filter(|&step| progress.has_line(step)).collect();
        assert_eq!(lines, [24, 30, 40, 50, 55]);
    }
}
