//! Standard error: what a command says while it works, and a line that is drawn again and again.
//!
//! Nothing here fails: a terminal that is gone, a pipe whose reader left or a full disk costs the
//! message, never the work. Nothing else in the workspace writes to standard error.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// Draws of the live line per second, at most.
const DRAWS_PER_SECOND: u8 = 20;
/// Columns of the bar.
const BAR_COLUMNS: std::ops::RangeInclusive<usize> = 10..=30;
/// Positions of a whole bar.
const BAR_LENGTH: f64 = 1000.0;

/// The line that is drawn again and again, if there is one; messages go above it.
static LIVE: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Whether the live line is on the terminal now, with the cursor at its beginning.
static DRAWN: AtomicBool = AtomicBool::new(false);

fn live() -> MutexGuard<'static, Option<ProgressBar>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a message and a line feed. Control characters in it are escaped, but for line feeds and
/// tabs: a message quotes names and values out of files, which must not steer the terminal.
pub fn write_line(message: &str) {
    write_above_live_line(format!("{}\n", printable(message)).as_bytes());
}

/// `message` with its control characters, besides line feeds and tabs, as Rust escapes them.
fn printable(message: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !message.contains(steers) {
        return Cow::Borrowed(message);
    }
    let mut out = String::with_capacity(message.len() + 16);
    for c in message.chars() {
        if steers(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Writes a message as [`write_line`] does, but takes no lock that the thread may hold: for a
/// process that is about to end, from a panic hook too. The live line is gone afterwards.
pub fn write_last_line(message: &str) {
    let erase = if is_drawn() { ERASE } else { "" };
    write_now(format!("{erase}{}\n", printable(message)).as_bytes());
}

/// Standard error as a writer that takes everything, for libraries that write log lines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_above_live_line(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_above_live_line(bytes: &[u8]) {
    // The lock is held while writing, so that no other thread starts a live line meanwhile.
    match &*live() {
        Some(bar) => bar.suspend(|| write_now(bytes)),
        None => write_now(bytes),
    }
}

/// The one place where bytes go to standard error, whether it takes them or not.
fn write_now(bytes: &[u8]) {
    let _ = io::stderr().lock().write_all(bytes);
}

/// Whether standard error is a terminal on which a line can be drawn again.
pub fn is_live() -> bool {
    io::stderr().is_terminal() && !console::is_dumb()
}

/// Whether a live line is on the terminal now. Safe to ask in a signal handler.
pub fn is_drawn() -> bool {
    DRAWN.load(Ordering::Relaxed)
}

/// A line at the bottom of the terminal that is drawn again and again. There is one at a time.
#[derive(Debug)]
pub struct LiveLine {
    bar: ProgressBar,
    last: Mutex<Drawn>,
}

/// What a live line showed last.
#[derive(Debug, Default)]
struct Drawn {
    parts: Vec<Part>,
    share: Option<f64>,
    columns: usize,
}

/// A part of a [`LiveLine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it says.
    pub text: String,
    /// Parts of higher rank are left out first where the terminal is too narrow.
    pub rank: u8,
}

impl Part {
    /// A part of the line.
    pub fn new(rank: u8, text: impl Into<String>) -> Self {
        Self { text: text.into(), rank }
    }
}

impl LiveLine {
    /// A line, if standard error is a terminal and has no other.
    pub fn start() -> Option<Self> {
        let mut live = live();
        if !is_live() || live.as_ref().is_some_and(|other| !other.is_finished()) {
            return None;
        }
        let target =
            ProgressDrawTarget::term_like_with_hz(Box::<Screen>::default(), DRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(Some(BAR_LENGTH as u64), target);
        // Nothing before the first draw, where messages come earlier.
        if let Ok(style) = ProgressStyle::with_template("") {
            bar.set_style(style);
        }
        *live = Some(bar.clone());
        Some(Self { bar, last: Mutex::default() })
    }

    /// Draws the parts that fit and, where `share` of the work is known and there is room, a bar
    /// behind the first of them.
    pub fn draw(&self, parts: Vec<Part>, share: Option<f64>) {
        let mut last = self.last();
        *last = Drawn { parts, share, columns: columns() };
        self.draw_again(&last);
    }

    /// Draws the line again if the terminal has another width than it was drawn for.
    pub fn fit(&self) {
        let mut last = self.last();
        let columns = columns();
        if last.columns != columns && !last.parts.is_empty() {
            last.columns = columns;
            self.draw_again(&last);
        }
    }

    fn last(&self) -> MutexGuard<'_, Drawn> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw_again(&self, line: &Drawn) {
        let template = template(&line.parts, line.share.is_some(), line.columns);
        // Text in a template is escaped; a mistake in one would cost the look, not the work.
        if let Ok(style) = ProgressStyle::with_template(&template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        let position = line.share.unwrap_or(0.0).clamp(0.0, 1.0) * BAR_LENGTH;
        self.bar.update(|state| state.set_pos(position as u64));
    }

    /// Erases the line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for LiveLine {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A thread that does something from time to time, until it is dropped.
#[derive(Debug)]
pub struct Ticker {
    /// Dropped to end the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the thread; none where the system refuses it, which costs the progress alone.
    pub fn start(every: Duration, mut tick: impl FnMut() + Send + 'static) -> Option<Self> {
        let (stop, stopped) = mpsc::channel();
        let run = move || {
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                tick();
            }
        };
        let thread = std::thread::Builder::new().name("progress".into()).spawn(run).ok()?;
        Some(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Columns a line may fill: all but the last, where some terminals go on to the next line.
fn columns() -> usize {
    usize::from(Term::stderr().size().1).saturating_sub(1)
}

/// The line of `parts` within `columns`, in the template language of indicatif.
fn template(parts: &[Part], has_share: bool, columns: usize) -> String {
    let parts = fit(parts, columns);
    let width = parts.iter().map(|text| text.chars().count() + 2).sum::<usize>();
    // Brackets, and the two spaces before them.
    let room = columns.saturating_sub(width + 2);
    let escaped = |text: &str| text.replace('{', "{{").replace('}', "}}");
    let mut line = parts.iter().map(|text| escaped(text)).collect::<Vec<_>>();
    if has_share && !line.is_empty() && room >= *BAR_COLUMNS.start() {
        line.insert(1, format!("[{{bar:{}}}]", room.min(*BAR_COLUMNS.end())));
    }
    line.join("  ")
}

/// The texts of the parts that fit into `columns` with two spaces between them, in order. Parts of
/// the highest rank are left out first; what is left at last is cut.
fn fit(parts: &[Part], columns: usize) -> Vec<String> {
    let mut parts: Vec<(u8, String)> = parts
        .iter()
        .filter(|part| !part.text.is_empty())
        .map(|part| (part.rank, part.text.replace(char::is_control, " ")))
        .collect();
    let width = |parts: &[(u8, String)]| {
        let texts: usize = parts.iter().map(|(_, text)| text.chars().count()).sum();
        texts + 2 * parts.len().saturating_sub(1)
    };
    while parts.len() > 1 && width(&parts) > columns {
        // Of equal ranks the last.
        let most = parts.iter().enumerate().max_by_key(|(_, (rank, _))| *rank);
        let Some((index, _)) = most else { break };
        parts.remove(index);
    }
    parts.into_iter().map(|(_, text)| text.chars().take(columns).collect()).collect()
}

/// Goes to the beginning of the line and erases everything from there on.
const ERASE: &str = "\r\x1b[J";

/// Standard error as indicatif draws on it.
///
/// The cursor stays at the beginning of the live line, which is one row. When the window becomes
/// narrower, a terminal may break the line in two: the cursor then still stands before all of it,
/// and erasing what follows leaves nothing behind, whatever the terminal did.
#[derive(Debug, Default)]
struct Screen {
    pending: Mutex<String>,
}

impl Screen {
    fn push(&self, texts: &[&str]) -> io::Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.extend(texts.iter().copied());
        Ok(())
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        Term::stderr().size().1
    }

    fn height(&self) -> u16 {
        Term::stderr().size().0
    }

    fn move_cursor_up(&self, _rows: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _rows: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _columns: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _columns: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.push(&[text, "\n"])
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        // indicatif fills the row with spaces to take the cursor to its end.
        if text.trim_start_matches(' ').is_empty() {
            return Ok(());
        }
        DRAWN.store(true, Ordering::Relaxed);
        // Without line wrap, for a window that became narrower just now.
        self.push(&["\x1b[?7l", text, "\x1b[?7h\r"])
    }

    fn clear_line(&self) -> io::Result<()> {
        DRAWN.store(false, Ordering::Relaxed);
        self.push(&[ERASE])
    }

    fn flush(&self) -> io::Result<()> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        write_now(std::mem::take(&mut *pending).as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<Part> {
        vec![
            Part::new(0, "documents"),
            Part::new(0, "45%"),
            Part::new(1, "ETA 3m 12s"),
            Part::new(2, "12/40 files"),
            Part::new(3, "1.2/4.0 GB"),
            Part::new(2, ""),
        ]
    }

    #[test]
    fn what_matters_least_is_left_out_first() {
        for (columns, line) in [
            (80, "documents  [{bar:25}]  45%  ETA 3m 12s  12/40 files  1.2/4.0 GB"),
            (60, "documents  45%  ETA 3m 12s  12/40 files  1.2/4.0 GB"),
            (39, "documents  45%  ETA 3m 12s  12/40 files"),
            (38, "documents  45%  ETA 3m 12s"),
            (14, "documents  45%"),
            (13, "documents"),
            (4, "docu"),
            (0, ""),
        ] {
            assert_eq!(template(&parts(), true, columns), line, "{columns} columns");
        }
        assert!(!template(&parts(), false, 200).contains("bar"));
    }

    #[test]
    fn messages_do_not_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}]0;x\u{7}b\r\n\tc"), "a\\u{1b}]0;x\\u{7}b\\r\n\tc");
        assert_eq!(printable("ü ▁"), "ü ▁");
    }

    #[test]
    fn text_is_no_template_and_has_no_control_characters() {
        let parts = [Part::new(0, "a{b}\u{1b}[31m\n")];
        assert_eq!(template(&parts, false, 80), "a{{b}} [31m ");
    }

    #[test]
    fn the_screen_takes_everything() {
        let screen = Screen::default();
        screen.clear_line().unwrap_or_else(|_| unreachable!());
        let _ = screen.write_str("half  ");
        let _ = screen.write_str("     ");
        let pending = screen.pending.lock().map(|text| text.clone()).unwrap_or_default();
        assert_eq!(pending, "\r\x1b[J\x1b[?7lhalf  \x1b[?7h\r");
    }
}
