//! Progress of a job: a line that is drawn again and again on a terminal, a plain line every few
//! seconds elsewhere.
//!
//! The share that is done, and the time left, come from bytes or from a count of what takes the
//! time, not from files: files differ too much in size.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::terminal::{self, LiveLine, Part, Ticker};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Time between two draws of the live line. A window that changed its size is noticed then.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Whether a job shows its progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgressMode {
    /// A live line when stderr is a terminal, plain lines otherwise.
    #[default]
    Auto,
    /// Nothing.
    Hidden,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    total: u64,
    /// What `total` counts; none for bytes.
    unit: Option<&'static str>,
    items: Option<(u64, &'static str)>,
}

impl Work {
    /// So many bytes of input. With 0 the length is not known.
    pub fn bytes(total: u64) -> Self {
        Self { total, unit: None, items: None }
    }

    /// So many of what `unit` names in the plural, such as `pieces`. With 0 the number is not known
    /// yet: [`Progress::set_total`].
    pub fn count(total: u64, unit: &'static str) -> Self {
        Self { total, unit: Some(unit), items: None }
    }

    /// The work is in `items` parts, named in the plural, such as `files`: see
    /// [`Progress::item_done`].
    pub fn of(self, items: u64, name: &'static str) -> Self {
        Self { items: Some((items, name)), ..self }
    }
}

/// The progress of one job. Safe to share between threads.
#[derive(Debug)]
pub struct Progress {
    job: Arc<Job>,
    ticker: Mutex<Option<Ticker>>,
}

impl Progress {
    /// A job that begins now.
    pub fn new(mode: ProgressMode, label: &str, work: Work) -> Self {
        let display = match mode {
            ProgressMode::Hidden => Display::Hidden,
            ProgressMode::Auto => LiveLine::start().map_or(Display::Lines, Display::Live),
        };
        let now = Instant::now();
        let job = Arc::new(Job {
            label: label.to_owned(),
            work,
            display,
            started: now,
            shown: Mutex::new(now),
            counted_since: Mutex::new(now),
            phase: Mutex::new(String::new()),
            total: AtomicU64::new(work.total),
            done: AtomicU64::new(0),
            items: AtomicU64::new(0),
            records: AtomicU64::new(0),
            kept: AtomicU64::new(0),
        });
        if matches!(job.display, Display::Live(_)) {
            job.show();
        }
        // Without a thread for it, the job shows its progress when it counts.
        let shown = Arc::clone(&job);
        let tick = move || shown.show_when_due();
        let ticker = (mode == ProgressMode::Auto).then(|| Ticker::start(DRAW_EVERY, tick));
        let ticker = ticker.flatten();
        Self { job, ticker: Mutex::new(ticker) }
    }

    /// A job that shows nothing.
    pub fn hidden() -> Self {
        Self::new(ProgressMode::Hidden, "", Work::default())
    }

    /// So many bytes, or whatever is counted, more are done.
    pub fn add(&self, amount: u64) {
        self.job.done.fetch_add(amount, Ordering::Relaxed);
        self.job.show_when_due();
    }

    /// So many bytes, or whatever is counted, are done in all.
    pub fn set_done(&self, done: u64) {
        self.job.done.store(done, Ordering::Relaxed);
        self.job.show_when_due();
    }

    /// So much is to be done in all, as far as is known now.
    pub fn set_total(&self, total: u64) {
        if self.job.total.swap(total, Ordering::Relaxed) == 0 {
            *lock(&self.job.counted_since) = Instant::now();
        }
    }

    /// Something begins of which so much is to be done.
    pub fn begin(&self, total: u64) {
        self.job.total.store(0, Ordering::Relaxed);
        self.job.done.store(0, Ordering::Relaxed);
        self.set_total(total);
    }

    /// The share that is done, if it is known how much there is to do.
    pub fn share(&self) -> Option<f64> {
        self.job.share()
    }

    /// One more of the items is done.
    pub fn item_done(&self) {
        self.items_done(1);
    }

    /// So many more of the items are done.
    pub fn items_done(&self, items: u64) {
        self.job.items.fetch_add(items, Ordering::Relaxed);
    }

    /// `records` more were looked at and `kept` of them used.
    pub fn add_records(&self, records: u64, kept: u64) {
        self.job.records.fetch_add(records, Ordering::Relaxed);
        self.job.kept.fetch_add(kept, Ordering::Relaxed);
    }

    /// Names what is being done now, in a job of several parts.
    pub fn phase(&self, phase: &str) {
        phase.clone_into(&mut lock(&self.job.phase));
        match &self.job.display {
            Display::Lines => terminal::write_line(&format!("{}: {phase}", self.job.label)),
            Display::Live(_) => self.job.show(),
            Display::Hidden => {}
        }
    }

    /// Seconds since the job began.
    pub fn elapsed_seconds(&self) -> f64 {
        self.job.started.elapsed().as_secs_f64()
    }

    /// Ends the job and leaves `summary` on the screen.
    pub fn finish(&self, summary: &str) {
        drop(lock(&self.ticker).take());
        if let Display::Live(line) = &self.job.display {
            line.finish();
        }
        if !matches!(self.job.display, Display::Hidden) {
            let seconds = self.elapsed_seconds();
            terminal::write_line(&format!("{}: {summary} in {seconds:.1} s", self.job.label));
        }
    }
}

/// A reader whose bytes count for a progress.
#[derive(Debug)]
pub struct CountedReader<'a, R> {
    inner: R,
    progress: &'a Progress,
}

impl<'a, R> CountedReader<'a, R> {
    /// Reads from `inner`.
    pub fn new(inner: R, progress: &'a Progress) -> Self {
        Self { inner, progress }
    }
}

impl<R: Read> Read for CountedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.progress.add(read as u64);
        Ok(read)
    }
}

/// Where progress goes.
#[derive(Debug)]
enum Display {
    Hidden,
    Lines,
    Live(LiveLine),
}

/// What a job has done so far.
#[derive(Debug)]
struct Job {
    label: String,
    work: Work,
    display: Display,
    started: Instant,
    /// When the last line was written or drawn.
    shown: Mutex<Instant>,
    /// When `done` was 0.
    counted_since: Mutex<Instant>,
    phase: Mutex<String>,
    total: AtomicU64,
    done: AtomicU64,
    items: AtomicU64,
    records: AtomicU64,
    kept: AtomicU64,
}

impl Job {
    fn show_when_due(&self) {
        let every = match self.display {
            Display::Hidden => return,
            Display::Lines => LINE_EVERY,
            Display::Live(_) => DRAW_EVERY,
        };
        let Ok(mut shown) = self.shown.try_lock() else { return };
        if shown.elapsed() >= every {
            *shown = Instant::now();
            drop(shown);
            self.show();
        }
    }

    fn show(&self) {
        match &self.display {
            Display::Hidden => {}
            Display::Lines => terminal::write_line(&self.plain_line()),
            Display::Live(line) => line.draw(self.parts(), self.share()),
        }
    }

    /// The share that is done, if it is known how much there is to do.
    fn share(&self) -> Option<f64> {
        let total = self.total.load(Ordering::Relaxed);
        let done = self.done.load(Ordering::Relaxed);
        (total > 0).then(|| (done as f64 / total as f64).min(1.0))
    }

    fn plain_line(&self) -> String {
        let mut parts = self.parts().into_iter().map(|part| part.text).filter(|t| !t.is_empty());
        let label = parts.next().unwrap_or_default();
        format!("{label}: {}", parts.collect::<Vec<_>>().join(", "))
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts = vec![Part::new(0, &*self.label)];
        let phase = lock(&self.phase).clone();
        let share = self.share();
        if let Some(share) = share {
            let seconds = lock(&self.counted_since).elapsed().as_secs_f64();
            // The last per cent is not shown before it is done.
            parts.push(Part::new(0, format!("{:.0}%", (share * 100.0).floor())));
            parts.push(Part::new(1, eta(share, seconds)));
            parts.push(Part::new(2, self.items()));
            parts.push(Part::new(4, phase));
            parts.push(Part::new(3, self.amount(seconds)));
        } else {
            parts.push(Part::new(1, phase));
            parts.push(Part::new(2, duration(self.started.elapsed().as_secs_f64())));
            parts.push(Part::new(3, self.items()));
        }
        parts.push(Part::new(5, self.kept_share()));
        parts
    }

    /// `12/40 files`.
    fn items(&self) -> String {
        let Some((total, name)) = self.work.items else { return String::new() };
        format!("{}/{total} {name}", self.items.load(Ordering::Relaxed))
    }

    /// `1.0/4.0 MB, 0.5 MB/s` or `1200/7743 pieces`.
    fn amount(&self, seconds: f64) -> String {
        let done = self.done.load(Ordering::Relaxed);
        let total = self.total.load(Ordering::Relaxed);
        if let Some(unit) = self.work.unit {
            return format!("{}/{total} {unit}", done.min(total));
        }
        let (scale, unit) = match total {
            0..1_000_000_000 => (1e6, "MB"),
            1_000_000_000..1_000_000_000_000 => (1e9, "GB"),
            _ => (1e12, "TB"),
        };
        format!(
            "{:.1}/{:.1} {unit}, {:.1} MB/s",
            done as f64 / scale,
            total as f64 / scale,
            done as f64 / 1e6 / seconds.max(1e-9)
        )
    }

    /// The share of the records that was used, for jobs that count them.
    fn kept_share(&self) -> String {
        let records = self.records.load(Ordering::Relaxed);
        if records == 0 {
            return String::new();
        }
        let kept = self.kept.load(Ordering::Relaxed);
        format!("{:.1}% kept", 100.0 * kept as f64 / records as f64)
    }
}

/// The time that is left when `share` of the work took `seconds`, as `ETA 3m 12s`.
fn eta(share: f64, seconds: f64) -> String {
    if share <= 0.0 {
        return String::new();
    }
    format!("ETA {}", duration(seconds * (1.0 - share) / share))
}

/// The two largest units of a time: `1d 2h`, `3h 5m`, `2m 9s`, `12s`.
pub fn duration(seconds: f64) -> String {
    // A saturating cast: not-a-number and negative times are zero.
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86400, s % 86400 / 3600),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_share_and_counts() {
        let work = Work::bytes(4_000_000).of(2, "files");
        let progress = Progress::new(ProgressMode::Hidden, "documents", work);
        progress.add(1_000_000);
        progress.item_done();
        progress.add_records(3, 2);
        let line = progress.job.plain_line();
        assert!(line.starts_with("documents: 25%, ETA "), "{line}");
        assert!(line.contains(", 1/2 files, 1.0/4.0 MB, "), "{line}");
        assert!(line.ends_with("66.7% kept"), "{line}");
    }

    #[test]
    fn counts_are_named_and_end_at_their_total() {
        let progress = Progress::new(ProgressMode::Hidden, "tokenizer", Work::count(0, "pieces"));
        progress.phase("reading");
        assert!(progress.job.plain_line().starts_with("tokenizer: reading, 0s"));
        assert_eq!(progress.job.share(), None);
        progress.begin(200);
        assert_eq!(progress.job.share(), Some(0.0));
        assert!(progress.job.plain_line().starts_with("tokenizer: 0%, reading, 0/200 pieces"));
        progress.set_done(199);
        assert!(progress.job.plain_line().contains("99%"));
        progress.add(7);
        assert_eq!(progress.job.share(), Some(1.0));
        assert!(progress.job.plain_line().contains("200/200 pieces"));
    }

    #[test]
    fn the_time_left_follows_from_the_share() {
        assert_eq!(eta(0.25, 60.0), "ETA 3m 0s");
        assert_eq!(eta(1.0, 60.0), "ETA 0s");
        assert_eq!(eta(0.0, 60.0), "");
    }

    /// Label, share and time left fit into 40 columns for every label there is.
    #[test]
    fn forty_columns_are_enough() {
        for label in ["stage 12 of 14", "language model", "tokenizer", "documents", "duplicates"] {
            let progress = Progress::new(ProgressMode::Hidden, label, Work::bytes(1000));
            progress.add(450);
            let longest = format!("{label}  45%  ETA 23h 59m");
            assert!(longest.len() < 40, "{longest}");
            assert_eq!(progress.job.parts()[0].text, label);
        }
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
}
