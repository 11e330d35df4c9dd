//! Event files for TensorBoard beside `metrics.jsonl`: `tensorboard --logdir runs` shows the runs side
//! by side.
//!
//! An event file is a row of records (TensorFlow's TFRecord): the length of the data as a little-endian
//! u64, a masked CRC-32C of these eight bytes, the data, a masked CRC-32C of the data. The data is an
//! `Event` message, of which the part used here is written down below with the field numbers of
//! TensorFlow's `event.proto` and `summary.proto`.
//!
//! Every process that goes on with a run adds a file. It begins with the message that a session starts
//! at the first step it will write: TensorBoard then forgets what earlier files say of that step and
//! later ones, which a crash or an older checkpoint made void. `metrics.jsonl` loses the same steps. The
//! first file of a run repeats the steps that `metrics.jsonl` has already.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use prost::Message;

use crate::error::{Result, TrainerError};
use crate::metrics::{
    EvalMetrics, History, InitialMetrics, StepMetrics, ValidationMetrics, wall_time,
};

/// Begins the name of every event file; TensorBoard reads a folder's files in the order of their names.
const FILE_PREFIX: &str = "events.out.tfevents.";

/// What the first event of a file says of the format.
const FILE_VERSION: &str = "brain.Event:2";

/// `SessionLog.SessionStatus.START`.
const SESSION_START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    values: Vec<Scalar>,
}

/// `Summary.Value` with a scalar.
#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    /// Written even if it is 0.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Writes an event file of a run.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Adds an event file to the directory of a run whose `metrics.jsonl` holds `history`; the next
    /// step written is the one behind it.
    ///
    /// # Errors
    /// When the directory cannot be read or the file cannot be made.
    pub fn create(run_dir: &Path, history: &History) -> Result<Self> {
        let newest = newest_number(run_dir)?;
        let now = wall_time();
        // Behind the files that are there, whatever the clock says.
        let number = newest.map_or(now as u64, |newest| (now as u64).max(newest.saturating_add(1)));
        let path = run_dir.join(format!("{FILE_PREFIX}{number:010}"));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .map_err(TrainerError::io(&path))?;
        let mut events = Self { path, file };
        let first_step = match (newest, history.steps.last()) {
            (Some(_), Some(last)) => last.step + 1,
            _ => 0,
        };
        let version = What::FileVersion(FILE_VERSION.to_string());
        let start = What::SessionLog(SessionLog { status: SESSION_START });
        let mut bytes = record(&event(now, 0, version));
        bytes.extend(record(&event(now, first_step, start)));
        if first_step == 0 {
            if let Some(initial) = &history.initial {
                bytes.extend(initial_record(initial));
            }
            for step in &history.steps {
                bytes.extend(step_record(step));
            }
        }
        events.write(&bytes)?;
        Ok(events)
    }

    /// Adds what is known of a step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.write(&step_record(metrics))
    }

    /// Adds the validation before the first step.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_initial(&mut self, metrics: &InitialMetrics) -> Result<()> {
        self.write(&initial_record(metrics))
    }

    fn write(&mut self, records: &[u8]) -> Result<()> {
        // One write, so a crash tears at most the last record, which readers leave out.
        self.file.write_all(records).map_err(TrainerError::io(&self.path))
    }
}

/// The largest number among the event files of a folder.
fn newest_number(run_dir: &Path) -> Result<Option<u64>> {
    let mut newest = None;
    for entry in std::fs::read_dir(run_dir).map_err(TrainerError::io(run_dir))? {
        let name = entry.map_err(TrainerError::io(run_dir))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(FILE_PREFIX));
        let digits = number.map(|number| number.split('.').next().unwrap_or_default());
        newest = newest.max(digits.and_then(|digits| digits.parse().ok()));
    }
    Ok(newest)
}

fn event(wall_time: f64, step: u64, what: What) -> Event {
    Event { wall_time, step: i64::try_from(step).unwrap_or(i64::MAX), what: Some(what) }
}

fn initial_record(metrics: &InitialMetrics) -> Vec<u8> {
    let values = validation_scalars(&metrics.validation);
    record(&event(metrics.wall_time, 0, What::Summary(Summary { values })))
}

fn step_record(metrics: &StepMetrics) -> Vec<u8> {
    let mut values = vec![
        scalar("train/loss", metrics.loss),
        scalar("train/lr", metrics.lr),
        scalar("train/grad_norm", metrics.grad_norm),
        scalar("train/tokens", metrics.tokens as f64),
        scalar("speed/tokens_per_second", metrics.tokens_per_second),
        scalar("speed/step_seconds", metrics.step_seconds),
        scalar("speed/data_seconds", metrics.data_seconds),
        scalar("speed/peak_memory_bytes", metrics.peak_memory_bytes as f64),
    ];
    values.extend(metrics.mfu.map(|mfu| scalar("speed/mfu", mfu)));
    values.extend(metrics.skipped.then(|| scalar("train/skipped", 1.0)));
    values.extend(metrics.validation.iter().flat_map(validation_scalars));
    if let Some(EvalMetrics { eval, eval_seconds }) = &metrics.evaluation {
        values.extend(eval.iter().map(|(score, &value)| scalar(&format!("eval/{score}"), value)));
        values.push(scalar("speed/eval_seconds", *eval_seconds));
    }
    record(&event(metrics.wall_time, metrics.step, What::Summary(Summary { values })))
}

fn validation_scalars(metrics: &ValidationMetrics) -> Vec<Scalar> {
    let mut values = vec![
        scalar("validation/loss", metrics.val_loss),
        scalar("validation/bits_per_byte", metrics.bits_per_byte),
    ];
    for (group, per_source) in [
        ("validation_loss", &metrics.val_loss_per_source),
        ("validation_bits_per_byte", &metrics.bits_per_byte_per_source),
    ] {
        values.extend(
            per_source.iter().map(|(name, &value)| scalar(&format!("{group}/{name}"), value)),
        );
    }
    values
}

fn scalar(tag: &str, value: f64) -> Scalar {
    Scalar { tag: tag.to_string(), simple_value: Some(value as f32) }
}

/// An event with its length and checksums.
fn record(event: &Event) -> Vec<u8> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(&data);
    record.extend(masked_crc(&data).to_le_bytes());
    record
}

/// CRC-32C, turned and shifted: a checksum over bytes that hold checksums themselves is a weak one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The events of a file.
    fn events(path: &Path) -> Vec<Event> {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            events.push(Event::decode(&rest[12..12 + length]).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    fn step(step: u64) -> StepMetrics {
        StepMetrics { step, loss: 1.0 / step as f64, wall_time: 1e9, ..Default::default() }
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn starts_at(events: &[Event]) -> i64 {
        assert_eq!(events[0].what, Some(What::FileVersion(FILE_VERSION.into())));
        let start = What::SessionLog(SessionLog { status: SESSION_START });
        assert_eq!(events[1].what, Some(start));
        events[1].step
    }

    #[test]
    fn a_checksum_is_that_of_the_published_test() {
        // RFC 3720, B.4: 32 bytes of zeroes.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(
            masked_crc(&[0; 32]),
            0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
    }

    #[test]
    fn every_process_adds_a_file_that_sorts_behind_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::default();
        for part in 0..3 {
            let mut file = EventFile::create(dir.path(), &history).unwrap();
            for number in [2 * part + 1, 2 * part + 2] {
                file.append(&step(number)).unwrap();
                history.steps.push(step(number));
            }
        }
        let files = files(dir.path());
        assert_eq!(files.len(), 3);
        for (part, file) in files.iter().enumerate() {
            let events = events(file);
            let steps: Vec<i64> = events[2..].iter().map(|event| event.step).collect();
            let first = 2 * part as i64 + 1;
            assert_eq!(steps, [first, first + 1]);
            assert_eq!(starts_at(&events), if part == 0 { 0 } else { first });
        }
    }

    #[test]
    fn an_older_checkpoint_voids_the_steps_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(EventFile::create(dir.path(), &History::default()).unwrap());
        let history = History { initial: None, steps: (1..=5).map(step).collect() };
        drop(EventFile::create(dir.path(), &history).unwrap());
        assert_eq!(starts_at(&events(&files(dir.path())[1])), 6);
    }

    #[test]
    fn the_first_file_repeats_the_steps_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let initial = InitialMetrics { wall_time: 9e8, ..Default::default() };
        let history = History { initial: Some(initial), steps: (1..=5).map(step).collect() };
        let mut file = EventFile::create(dir.path(), &history).unwrap();
        file.append(&step(6)).unwrap();
        let events = events(&files(dir.path())[0]);
        assert_eq!(starts_at(&events), 0);
        let steps: Vec<i64> = events[2..].iter().map(|event| event.step).collect();
        assert_eq!(steps, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(events[2].wall_time, 9e8);
    }

    #[test]
    fn a_value_of_zero_is_written() {
        let bytes = scalar("train/lr", 0.0).encode_to_vec();
        assert_eq!(Scalar::decode(&bytes[..]).unwrap().simple_value, Some(0.0));
        assert_eq!(bytes.len(), 2 + "train/lr".len() + 5);
    }
}
