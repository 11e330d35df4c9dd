//! `metrics.jsonl`: one JSON object per optimizer step, before them one of the validation before the
//! first step.

mod line;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use line::Line;

use crate::error::{Result, TrainerError};

/// What is recorded of one optimizer step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Number of the step, counted from 1.
    pub step: u64,
    /// Tokens seen up to and including this step.
    pub tokens: u64,
    /// When the step was done, in seconds since 1970 (UTC); 0 in lines of versions that did not
    /// record it.
    #[serde(default)]
    pub wall_time: f64,
    /// Mean cross entropy over the target tokens of the step, in nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of the step over its time.
    pub tokens_per_second: f64,
    /// Model FLOP/s as a share of the device's peak ([`crate::peak`]); null where that is not known.
    pub mfu: Option<f64>,
    /// Time of the step, in seconds.
    pub step_seconds: f64,
    /// Part of it spent waiting for data, in seconds.
    pub data_seconds: f64,
    /// Most memory the process has held so far, in bytes.
    pub peak_memory_bytes: u64,
    /// True when the update was skipped because the step was an outlier.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Present when several ranks did the step.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<RankMetrics>,
    /// Present when the step was followed by a validation.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationMetrics>,
    /// Present when the step was followed by an evaluation.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvalMetrics>,
}

/// Scores in tasks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// By `task/measure`; without those that are not finite.
    pub eval: BTreeMap<String, f64>,
    /// Time they took, in seconds.
    pub eval_seconds: f64,
}

/// How the ranks of a step fared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RankMetrics {
    /// All ranks.
    pub ranks: usize,
    /// Ranks that split every matrix.
    pub tensor: usize,
    /// Copies of the model.
    pub data: usize,
    /// Mean time that a rank waited for others, in seconds.
    pub communication_seconds: f64,
    /// The rank that computed longest.
    pub slowest_rank: usize,
    /// Its time over the mean of all.
    pub slowest_over_mean: f64,
}

/// Loss on held-out documents, of the mixture and of each source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ValidationMetrics {
    /// Mean over the sources of `val_loss_per_source`, weighted by their shares of the mixture, so it
    /// compares with the training loss.
    pub val_loss: f64,
    /// Mean cross entropy over the held-out target tokens read of each source, in nats.
    pub val_loss_per_source: BTreeMap<String, f64>,
    /// Bits needed per byte of held-out text in the proportions of the mixture.
    pub bits_per_byte: f64,
    /// Bits needed per byte of held-out text of each source.
    pub bits_per_byte_per_source: BTreeMap<String, f64>,
}

/// The validation before the first step: the first line of `metrics.jsonl`, with step 0 and without
/// the keys that only a step has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InitialMetrics {
    /// Always 0.
    pub step: u64,
    /// Always 0.
    pub tokens: u64,
    /// When it was done, in seconds since 1970 (UTC).
    pub wall_time: f64,
    /// What the weights that training starts from reach.
    #[serde(flatten)]
    pub validation: ValidationMetrics,
}

/// What `metrics.jsonl` says of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// The validation before the first step, if there was one.
    pub initial: Option<InitialMetrics>,
    /// The steps, in order.
    pub steps: Vec<StepMetrics>,
}

/// The time of the wall clock, in seconds since 1970 (UTC).
pub fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Appends to the `metrics.jsonl` of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the file for a run that goes on after `last_step` (0 for a new run). Lines of later
    /// steps, written between the checkpoint and a crash, are removed, and so is a torn last line.
    /// Steps whose lines are missing are said; `last_step` itself may be, because its line is
    /// written after its checkpoint.
    ///
    /// # Errors
    /// When the file cannot be read or written, or a line before `last_step` is not as it was
    /// written: its number is named, and nothing is changed.
    pub fn open(path: &Path, last_step: u64) -> Result<Self> {
        let keep = match File::open(path) {
            _ if last_step == 0 => 0,
            Ok(file) => kept_bytes(path, file, last_step)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                say_missing(path, &[(1, last_step - 1)]);
                0
            }
            Err(e) => return Err(TrainerError::io(path)(e)),
        };
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(path).map_err(TrainerError::io(path))?;
        file.set_len(keep).map_err(TrainerError::io(path))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Adds the line of a step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.append_line(metrics)
    }

    /// Adds the line of the validation before the first step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_initial(&mut self, metrics: &InitialMetrics) -> Result<()> {
        self.append_line(metrics)
    }

    fn append_line(&mut self, metrics: &impl Serialize) -> Result<()> {
        let line = line::write(metrics).map_err(|error| TrainerError::RunFile {
            path: self.path.clone(),
            reason: error.to_string(),
        })?;
        // One write, so a crash tears at most the last line.
        self.file.write_all(&line).map_err(TrainerError::io(&self.path))
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(TrainerError::io(&self.path))
    }
}

/// Length of the leading lines whose step is at most `last_step`. Says which steps are missing.
fn kept_bytes(path: &Path, file: File, last_step: u64) -> Result<u64> {
    let (mut kept, mut before, mut missing) = (0, 0, Vec::new());
    for_each_line(path, file, |number, length, line| {
        let line = match line {
            Ok(line) => line,
            // Of the lines before a checkpoint's step it is known that they reached the disk.
            Err(fault) if before + 1 >= last_step => {
                tracing::warn!("{}: line {number} is {fault}; it is written again", path.display());
                return Ok(false);
            }
            Err(fault) => return Err(bad_line(path, number, &fault)),
        };
        let step = line.step();
        if step > last_step {
            return Ok(false);
        }
        if step <= before && step > 0 {
            let fault = format!("of step {step} behind one of step {before}");
            return Err(bad_line(path, number, &fault));
        }
        if step > before + 1 {
            missing.push((before + 1, step - 1));
        }
        (kept, before) = (kept + length, step);
        Ok(before < last_step)
    })?;
    if before + 1 < last_step {
        missing.push((before + 1, last_step - 1));
    }
    say_missing(path, &missing);
    Ok(kept)
}

/// Says that the lines of these steps are not there, from the first to the last of each range.
fn say_missing(path: &Path, ranges: &[(u64, u64)]) {
    let ranges = ranges.iter().filter(|(first, last)| first <= last);
    let ranges: Vec<String> = ranges
        .map(|&(first, last)| match last - first {
            0 => first.to_string(),
            _ => format!("{first} to {last}"),
        })
        .collect();
    if !ranges.is_empty() {
        tracing::warn!(
            "{}: the lines of these steps are missing: {}; the run goes on without them",
            path.display(),
            ranges.join(", ")
        );
    }
}

/// The error for a line that is not as it was written.
fn bad_line(path: &Path, number: u64, fault: &str) -> TrainerError {
    TrainerError::RunFile {
        path: path.to_path_buf(),
        reason: format!(
            "line {number} is {fault}; put the file back from a copy, or delete the line and the \
             run goes on without it"
        ),
    }
}

/// Reads all whole lines of a `metrics.jsonl`; a torn last line is left out.
///
/// # Errors
/// When the file cannot be read, or a line is not as it was written: its number is named.
pub fn read_metrics(path: &Path) -> Result<History> {
    let file = File::open(path).map_err(TrainerError::io(path))?;
    let mut history = History::default();
    for_each_line(path, file, |number, _, line| {
        match line.map_err(|fault| bad_line(path, number, &fault))? {
            Line::Initial(metrics) => history.initial = Some(metrics),
            Line::Step(metrics) => history.steps.push(metrics),
        }
        Ok(true)
    })?;
    Ok(history)
}

/// The step of the last whole line of a `metrics.jsonl`, whatever the lines before it are; `None`
/// where there is no step.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn last_logged_step(path: &Path) -> Result<Option<u64>> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TrainerError::io(path)(error)),
    };
    let lines = bytes.rsplit(|byte| *byte == b'\n');
    let mut steps = lines.filter_map(|line| serde_json::from_slice::<Step>(line).ok());
    Ok(steps.next().map(|line| line.step).filter(|step| *step > 0))
}

/// Calls `visit` with the number, the length and the content of each whole line, or with what is
/// wrong with it, until it returns false.
fn for_each_line(
    path: &Path,
    file: File,
    mut visit: impl FnMut(u64, u64, std::result::Result<Line, String>) -> Result<bool>,
) -> Result<()> {
    let mut reader = BufReader::new(file);
    let mut bytes = Vec::new();
    let mut checksums = false;
    for number in 1.. {
        bytes.clear();
        let length = reader.read_until(b'\n', &mut bytes).map_err(TrainerError::io(path))?;
        if bytes.last() != Some(&b'\n') {
            break;
        }
        let line = line::read(&bytes).and_then(|checked| {
            // An earlier version may have begun the file, but none comes after this one.
            if checksums && !checked.has_checksum {
                return Err("without a checksum: altered".into());
            }
            checksums |= checked.has_checksum;
            Ok(checked.line)
        });
        if !visit(number, length as u64, line)? {
            break;
        }
    }
    Ok(())
}

/// Most memory the process has held so far, in bytes; 0 where the system does not tell.
pub fn peak_memory_bytes() -> u64 {
    own_peak_memory_bytes().unwrap_or_else(largest_resident_set)
}

/// As Linux counts it for the program alone. What `getrusage` gives there begins with the peak of the process
/// that started this one.
fn own_peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kilobytes * 1024)
}

fn largest_resident_set() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a writable rusage, which the call fills.
    let status = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    if status != 0 {
        return 0;
    }
    // SAFETY: rusage holds integers only, and zero is a value of each.
    let usage = unsafe { usage.assume_init() };
    // Kilobytes on Linux, bytes on macOS.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    u64::try_from(usage.ru_maxrss).unwrap_or(0) * unit
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepMetrics {
        StepMetrics { step, tokens: step * 10, loss: 1.0 / step as f64, ..Default::default() }
    }

    fn written(steps: std::ops::RangeInclusive<u64>) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        steps.for_each(|s| log.append(&step(s)).unwrap());
        log.sync().unwrap();
        (dir, path)
    }

    #[test]
    fn the_last_step_is_found_behind_torn_lines() {
        let (_dir, path) = written(1..=12);
        assert_eq!(last_logged_step(&path).unwrap(), Some(12));
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"not a line\n{\"step\": 1");
        std::fs::write(&path, text).unwrap();
        assert_eq!(last_logged_step(&path).unwrap(), Some(12));
        assert_eq!(last_logged_step(&path.with_file_name("none")).unwrap(), None);
    }

    #[test]
    fn lines_come_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let per_source = BTreeMap::from([("books".to_string(), 0.1 + 0.2)]);
        let full = StepMetrics {
            mfu: Some(0.25),
            wall_time: 1_700_000_000.123_456,
            skipped: true,
            validation: Some(ValidationMetrics {
                val_loss: 1.0 / 3.0,
                val_loss_per_source: per_source.clone(),
                bits_per_byte: 2.0 / 3.0,
                bits_per_byte_per_source: per_source,
            }),
            evaluation: Some(EvalMetrics {
                eval: BTreeMap::from([("piqa/acc".to_string(), 0.1 + 0.7)]),
                eval_seconds: 1.5,
            }),
            ..step(3)
        };
        let mut log = MetricsLog::open(&path, 0).unwrap();
        log.append(&step(1)).unwrap();
        log.append(&full).unwrap();
        assert_eq!(read_metrics(&path).unwrap().steps, [step(1), full]);
        let text = std::fs::read_to_string(&path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        for key in [
            "step",
            "tokens",
            "wall_time",
            "loss",
            "lr",
            "grad_norm",
            "tokens_per_second",
            "mfu",
            "step_seconds",
            "data_seconds",
            "peak_memory_bytes",
        ] {
            assert!(first.get(key).is_some(), "{key}");
        }
        assert!(first.get("val_loss").is_none());
        assert!(text.lines().nth(1).unwrap().contains("\"bits_per_byte\":0.6"));
    }

    #[test]
    fn resuming_drops_the_steps_after_the_checkpoint() {
        let (_dir, path) = written(1..=9);
        let mut log = MetricsLog::open(&path, 5).unwrap();
        log.append(&step(6)).unwrap();
        let steps: Vec<u64> = read_metrics(&path).unwrap().steps.iter().map(|m| m.step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn the_validation_before_the_first_step_is_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let validation = ValidationMetrics { val_loss: 5.5, ..Default::default() };
        let initial = InitialMetrics { wall_time: 1.5e9, validation, ..Default::default() };
        let mut log = MetricsLog::open(&path, 0).unwrap();
        log.append_initial(&initial).unwrap();
        (1..=4).for_each(|s| log.append(&step(s)).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((&first["step"], &first["val_loss"]), (&0.into(), &5.5.into()));
        assert!(first.get("loss").is_none(), "a reader of losses would take it for a step");

        MetricsLog::open(&path, 2).unwrap();
        let history = read_metrics(&path).unwrap();
        assert_eq!(history, History { initial: Some(initial), steps: vec![step(1), step(2)] });
        // A step without a loss is damaged, not another kind of line.
        let other = without_checksums(&text).replace("\"step\":0", "\"step\":7");
        std::fs::write(&path, other).unwrap();
        let error = read_metrics(&path).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("loss"), "{error}");
        // A run that starts again validates again.
        MetricsLog::open(&path, 0).unwrap();
        assert_eq!(read_metrics(&path).unwrap(), History::default());
    }

    #[test]
    fn lines_without_a_wall_time_are_read() {
        let (_dir, path) = written(1..=1);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"wall_time\":0.0,"), "{text}");
        std::fs::write(&path, without_checksums(&text).replace("\"wall_time\":0.0,", "")).unwrap();
        assert_eq!(read_metrics(&path).unwrap().steps, [step(1)]);
    }

    #[test]
    fn a_torn_last_line_is_dropped() {
        let (_dir, path) = written(1..=3);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 7);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_metrics(&path).unwrap().steps.len(), 2);
        let mut log = MetricsLog::open(&path, 3).unwrap();
        log.append(&step(3)).unwrap();
        assert_eq!(read_metrics(&path).unwrap().steps, [step(1), step(2), step(3)]);
    }

    /// The lines as versions without checksums wrote them.
    fn without_checksums(text: &str) -> String {
        let cut = |line: &str| format!("{}}}\n", line.split(",\"checksum\"").next().unwrap());
        text.lines().map(cut).collect()
    }

    #[test]
    fn altered_and_swapped_lines_are_named() {
        let (_dir, path) = written(1..=9);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let fails = |text: String, words: &[&str]| {
            std::fs::write(&path, &text).unwrap();
            let error = MetricsLog::open(&path, 9).unwrap_err().to_string();
            for word in ["metrics.jsonl"].iter().chain(words) {
                assert!(error.contains(word), "{error}");
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "nothing is changed");
        };
        fails(text.replace("\"tokens\":40,", "\"tokens\":48,"), &["line 4", "altered"]);
        // A line that lost its checksum among others that have one.
        let bare = without_checksums(lines[4]);
        fails(text.replace(&format!("{}\n", lines[4]), &bare), &["line 5", "checksum"]);
        let mut swapped = lines.clone();
        swapped.swap(2, 6);
        fails(swapped.join("\n") + "\n", &["line 4", "step 4 behind one of step 7"]);
        // The line of the last step may be what a crash left of it: the checkpoint has it.
        std::fs::write(&path, text.replace("\"tokens\":90,", "\"tokens\":91,")).unwrap();
        MetricsLog::open(&path, 9).unwrap();
        assert_eq!(read_metrics(&path).unwrap().steps.len(), 8);
    }

    #[test]
    fn a_log_of_an_earlier_version_goes_on() {
        let (_dir, path) = written(1..=5);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, without_checksums(&text)).unwrap();
        let mut log = MetricsLog::open(&path, 5).unwrap();
        log.append(&step(6)).unwrap();
        assert_eq!(read_metrics(&path).unwrap().steps.len(), 6);
    }

    #[test]
    fn a_run_goes_on_without_the_lines_that_are_missing() {
        let (_dir, path) = written(1..=9);
        let text = std::fs::read_to_string(&path).unwrap();
        let left: String = text
            .lines()
            .enumerate()
            .filter(|(at, _)| ![0, 3, 4].contains(at))
            .fold(String::new(), |text, (_, line)| text + line + "\n");
        std::fs::write(&path, &left).unwrap();
        MetricsLog::open(&path, 9).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), left);
        std::fs::remove_file(&path).unwrap();
        let mut log = MetricsLog::open(&path, 9).unwrap();
        log.append(&step(10)).unwrap();
        assert_eq!(read_metrics(&path).unwrap().steps, [step(10)]);
    }

    #[test]
    fn a_new_run_starts_an_empty_file() {
        let (_dir, path) = written(1..=3);
        MetricsLog::open(&path, 0).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn a_line_of_something_else_is_named() {
        let (_dir, path) = written(1..=2);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.insert_str(0, "not json\n");
        std::fs::write(&path, text).unwrap();
        let error = MetricsLog::open(&path, 2).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        assert_ne!(std::fs::metadata(&path).unwrap().len(), 0, "nothing is overwritten");
    }

    #[test]
    fn the_process_has_held_memory() {
        let before = peak_memory_bytes();
        assert!(before > 1 << 20, "{before}");
        let block = vec![1u8; 64 << 20];
        assert!(std::hint::black_box(&block).iter().map(|&b| b as u64).sum::<u64>() > 0);
        assert!(peak_memory_bytes() >= 64 << 20);
    }
}
