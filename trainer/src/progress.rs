//! Progress of training: a line that is drawn again and again on a terminal, a plain line every few
//! steps elsewhere.

use std::sync::Arc;
use std::time::Duration;

use altiplano_data::progress::duration;
use altiplano_data::terminal::{self, LiveLine, Part, Ticker};

use crate::metrics::StepMetrics;

/// Share of the newest step in the running mean of the time per step.
const NEWEST: f64 = 0.1;
/// Time between two looks at the width of the terminal.
const FIT_EVERY: Duration = Duration::from_millis(200);

/// Shows steps on standard error.
#[derive(Debug)]
pub struct TrainProgress {
    live: Option<Arc<LiveLine>>,
    /// Fits the live line to a window that changes its size while a step goes on.
    _ticker: Option<Ticker>,
    total_steps: u64,
    log_every: u64,
    first_step: u64,
    step_seconds: Option<f64>,
    /// Whether nothing is shown, because another rank does.
    silent: bool,
}

impl TrainProgress {
    /// A run of `total_steps` steps of which `done` are done; without a terminal every
    /// `log_every`-th step gives a line. A `silent` one shows nothing.
    pub fn new(done: u64, total_steps: u64, log_every: u64, silent: bool) -> Self {
        let live = if silent { None } else { LiveLine::start().map(Arc::new) };
        let ticker = live.clone().and_then(|live| Ticker::start(FIT_EVERY, move || live.fit()));
        let log_every = log_every.max(1);
        Self {
            live,
            _ticker: ticker,
            total_steps,
            log_every,
            first_step: done + 1,
            step_seconds: None,
            silent,
        }
    }

    /// One more step is done.
    pub fn step(&mut self, metrics: &StepMetrics) {
        let mean = match self.step_seconds {
            Some(mean) => mean + NEWEST * (metrics.step_seconds - mean),
            None => metrics.step_seconds,
        };
        self.step_seconds = Some(mean);
        let left = self.total_steps.saturating_sub(metrics.step) as f64 * mean;
        if let Some(live) = &self.live {
            let share = metrics.step as f64 / self.total_steps.max(1) as f64;
            live.draw(parts(metrics, self.total_steps, left).into(), Some(share));
        } else if !self.silent && self.has_line(metrics.step) {
            terminal::write_line(&line(metrics, self.total_steps, left));
        }
    }

    /// Writes a line of its own, above the live line where there is one.
    pub fn println(&self, text: &str) {
        if !self.silent {
            terminal::write_line(text);
        }
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Some(live) = &self.live {
            live.finish();
        }
    }

    fn has_line(&self, step: u64) -> bool {
        step == self.first_step || step == self.total_steps || step.is_multiple_of(self.log_every)
    }
}

/// The live line. In 40 columns there is room for the step, the time left and the loss.
fn parts(metrics: &StepMetrics, total_steps: u64, seconds_left: f64) -> [Part; 4] {
    [
        Part::new(0, format!("{}/{total_steps}", metrics.step)),
        Part::new(2, format!("loss {:.3}", metrics.loss)),
        Part::new(1, format!("ETA {}", duration(seconds_left))),
        Part::new(3, format!("{} tokens/s", grouped(metrics.tokens_per_second))),
    ]
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
    fn step_loss_and_time_left_fit_into_40_columns() {
        let metrics = StepMetrics { step: 123_456, loss: 10.5, ..Default::default() };
        let [step, loss, eta, _] = parts(&metrics, 500_000, 86_399.0);
        assert_eq!(
            [&*step.text, &*loss.text, &*eta.text],
            ["123456/500000", "loss 10.500", "ETA 23h 59m"]
        );
        assert!(step.text.len() + loss.text.len() + eta.text.len() + 4 <= 39);
    }

    #[test]
    fn first_last_and_every_tenth_step_have_a_line() {
        let mut progress = TrainProgress::new(23, 55, 10, false);
        progress.live = None;
        let lines: Vec<u64> = (24..=55).filter(|&step| progress.has_line(step)).collect();
        assert_eq!(lines, [24, 30, 40, 50, 55]);
    }
}
