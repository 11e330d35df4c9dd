//! Progress of a job: a bar on a terminal, a plain line every few seconds elsewhere.
//!
//! The estimate of the time left comes from bytes, not from files: files differ too much in size.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Seconds between two plain lines when stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Whether a job shows its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressMode {
    /// A bar when stderr is a terminal, plain lines otherwise.
    #[default]
    Auto,
    /// Nothing.
    Hidden,
}

/// The progress of one job. Safe to share between threads.
#[derive(Debug)]
pub struct Progress {
    label: String,
    bar: Option<ProgressBar>,
    plain: bool,
    started: Instant,
    last_line: Mutex<Instant>,
    total_bytes: u64,
    bytes: AtomicU64,
    total_files: u64,
    files: AtomicU64,
    records: AtomicU64,
    kept: AtomicU64,
}

impl Progress {
    /// A job over `total_bytes` of input in `total_files` files. With `total_bytes` 0 the length
    /// is unknown and only the elapsed time is shown.
    pub fn new(mode: ProgressMode, label: &str, total_bytes: u64, total_files: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (mode == ProgressMode::Auto && terminal).then(|| {
            let bar =
                ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::stderr());
            let template = if total_bytes == 0 {
                "{prefix:>12} {spinner} {elapsed} {msg}"
            } else {
                "{prefix:>12} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {msg}"
            };
            // The templates are constants; a mistake in one costs the look, not the job.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(label.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            label: label.to_owned(),
            bar,
            plain: mode == ProgressMode::Auto && !terminal,
            started: Instant::now(),
            last_line: Mutex::new(Instant::now()),
            total_bytes,
            bytes: AtomicU64::new(0),
            total_files,
            files: AtomicU64::new(0),
            records: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        }
    }

    /// `bytes` more of the input are done.
    pub fn add_bytes(&self, bytes: u64) {
        let done = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
        self.line_when_due();
    }

    /// One more file is done.
    pub fn file_done(&self) {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{files}/{} files{}", self.total_files, self.kept_share()));
        }
    }

    /// `records` more were looked at and `kept` of them used.
    pub fn add_records(&self, records: u64, kept: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.kept.fetch_add(kept, Ordering::Relaxed);
    }

    /// The share of the records that was used, for jobs that count them.
    fn kept_share(&self) -> String {
        let records = self.records.load(Ordering::Relaxed);
        if records == 0 {
            return String::new();
        }
        let kept = self.kept.load(Ordering::Relaxed);
        format!(", {:.1}% kept", 100.0 * kept as f64 / records as f64)
    }

    /// Shows what is being done, for jobs without a known length.
    pub fn phase(&self, phase: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(phase.to_owned());
        } else if self.plain {
            eprintln!("{}: {phase}", self.label);
        }
    }

    /// Writes the plain line if the last one is old enough. Jobs without byte counts call this
    /// from time to time.
    pub fn line_when_due(&self) {
        if !self.plain {
            return;
        }
        let Ok(mut last) = self.last_line.try_lock() else {
            return;
        };
        if last.elapsed() < LINE_EVERY {
            return;
        }
        *last = Instant::now();
        eprintln!("{}", self.line());
    }

    /// Seconds since the job began.
    pub fn elapsed_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Ends the job and leaves `summary` on the screen.
    pub fn finish(&self, summary: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.bar.is_some() || self.plain {
            eprintln!("{}: {summary} in {:.1} s", self.label, self.elapsed_seconds());
        }
    }

    fn line(&self) -> String {
        let seconds = self.elapsed_seconds();
        if self.total_bytes == 0 {
            return format!("{}: {seconds:.0} s", self.label);
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        let files = self.files.load(Ordering::Relaxed);
        let rate = bytes as f64 / seconds.max(1e-9);
        let left = self.total_bytes.saturating_sub(bytes) as f64 / rate.max(1.0);
        format!(
            "{}: {files}/{} files, {:.1}/{:.1} MB, {:.1} MB/s{}, {left:.0} s left",
            self.label,
            self.total_files,
            bytes as f64 / 1e6,
            self.total_bytes as f64 / 1e6,
            rate / 1e6,
            self.kept_share(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts_files_and_bytes() {
        let progress = Progress::new(ProgressMode::Hidden, "documents", 4_000_000, 2);
        progress.add_bytes(1_000_000);
        progress.file_done();
        progress.add_records(3, 2);
        let line = progress.line();
        assert!(line.starts_with("documents: 1/2 files, 1.0/4.0 MB"), "{line}");
        assert!(line.contains("66.7% kept"), "{line}");
    }
}
