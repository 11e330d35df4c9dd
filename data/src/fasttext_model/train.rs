//! Training fastText models, with the `fasttext` crate.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use fasttext::FastText;
use fasttext::args::{Args, LossName};
use serde::{Deserialize, Serialize};

use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};
use crate::progress::Progress;

/// Time between two looks at how far the training has read.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What fastText minimises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Softmax over all labels.
    #[default]
    Softmax,
    /// Softmax along a Huffman tree: faster with many labels.
    HierarchicalSoftmax,
    /// A logistic per label against sampled others.
    NegativeSampling,
    /// A logistic per label against all others.
    OneVsAll,
}

/// Arguments of fastText's supervised training; the defaults are fastText's (`args.cc`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingOptions {
    /// Learning rate at the start; it falls linearly to 0 (number, default 0.1).
    pub learning_rate: f64,
    /// Length of the vectors (integer, default 100).
    pub dimensions: u32,
    /// Passes over the text (integer, default 5).
    pub epochs: u32,
    /// Words seen less often are left out (integer, default 1).
    pub min_count: u32,
    /// Longest n-gram of words (integer, default 1).
    pub word_ngrams: u32,
    /// Shortest n-gram of characters (integer, default 0).
    pub min_chars: u32,
    /// Longest n-gram of characters (integer, default 0: none).
    pub max_chars: u32,
    /// Rows that n-grams share (integer, default 2000000). There are none without n-grams.
    pub buckets: u32,
    /// `softmax`, `hierarchical_softmax`, `negative_sampling` or `one_vs_all` (string, default
    /// `softmax`).
    pub loss: Loss,
    /// Seed of the starting vectors and of the order of the examples (integer, default 0).
    pub seed: u32,
}

impl Default for TrainingOptions {
    fn default() -> Self {
        Self {
            learning_rate: 0.1,
            dimensions: 100,
            epochs: 5,
            min_count: 1,
            word_ngrams: 1,
            min_chars: 0,
            max_chars: 0,
            buckets: 2_000_000,
            loss: Loss::Softmax,
            seed: 0,
        }
    }
}

impl TrainingOptions {
    /// Checks the values. `key` is the dotted path of the options.
    ///
    /// # Errors
    /// [`DataError::Config`] naming the key.
    pub fn validate(&self, key: &str) -> Result<()> {
        let whole = [
            ("dimensions", self.dimensions, 1, 4096),
            ("epochs", self.epochs, 1, 10_000),
            ("min_count", self.min_count, 1, i32::MAX as u32),
            ("word_ngrams", self.word_ngrams, 1, 30),
            ("max_chars", self.max_chars, 0, 30),
            ("min_chars", self.min_chars, 0, self.max_chars),
            ("buckets", self.buckets, 1, 1 << 30),
            ("seed", self.seed, 0, i32::MAX as u32),
        ];
        for (name, value, least, most) in whole {
            if !(least..=most).contains(&value) {
                return Err(DataError::config(
                    format!("{key}.{name}"),
                    value,
                    format!("{least} to {most}"),
                ));
            }
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 100.0) {
            return Err(DataError::config(
                format!("{key}.learning_rate"),
                self.learning_rate,
                "above 0, at most 100",
            ));
        }
        Ok(())
    }

    fn arguments(&self, lines: &Path) -> Args {
        let mut arguments = Args { word_ngrams: self.word_ngrams as i32, ..Args::default() };
        arguments.apply_supervised_defaults();
        let ngrams = self.word_ngrams > 1 || self.max_chars > 0;
        Args {
            input: lines.to_owned(),
            lr: self.learning_rate,
            dim: self.dimensions as i32,
            epoch: self.epochs as i32,
            min_count: self.min_count as i32,
            minn: self.min_chars as i32,
            maxn: self.max_chars as i32,
            bucket: if ngrams { self.buckets as i32 } else { 0 },
            loss: match self.loss {
                Loss::Softmax => LossName::Softmax,
                Loss::HierarchicalSoftmax => LossName::HierarchicalSoftmax,
                Loss::NegativeSampling => LossName::NegativeSampling,
                Loss::OneVsAll => LossName::OneVsAll,
            },
            seed: self.seed as i32,
            // More threads update the same vectors without a lock: never twice the same model.
            thread: 1,
            verbose: 0,
            ..arguments
        }
    }
}

/// Trains on `lines`, a file of `__label__xx text` lines, and writes the model to `output`
/// (`.bin`). Gives what was written. One thread, so the same lines and options give the same bytes.
/// `progress` counts the bytes of `lines` that are read, of all passes.
///
/// Memory: (words + buckets) × dimensions × 4 bytes, and about 250 MB of tables.
///
/// # Errors
/// [`DataError::Config`] for a value that does not fit, [`DataError::BadFile`] when fastText
/// finds nothing to learn from in `lines`, [`DataError::Io`].
pub fn train(
    lines: &Path,
    output: &Path,
    options: &TrainingOptions,
    progress: &Progress,
) -> Result<FileDigest> {
    options.validate("training")?;
    let arguments = options.arguments(lines);
    let model = watched(lines, options.epochs, progress, || FastText::train(arguments))
        .map_err(|error| DataError::bad_file(lines, format!("training failed: {error}")))?;
    let mut file = AtomicFile::create(output)?;
    model
        .save(&mut file)
        .map_err(|error| DataError::bad_file(output, format!("cannot be written: {error}")))?;
    file.flush().map_err(DataError::io(output))?;
    file.commit()
}

/// Trains while a thread looks at how far `lines` is read: fastText says nothing of itself.
fn watched<T>(lines: &Path, epochs: u32, progress: &Progress, train: impl FnOnce() -> T) -> T {
    let (Ok(lines), Ok(bytes)) = (lines.canonicalize(), fs::metadata(lines).map(|m| m.len()))
    else {
        return train();
    };
    // The words are counted in a pass of their own.
    progress.begin((u64::from(epochs) + 1).saturating_mul(bytes));
    std::thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        let watch = move || {
            let mut passes = Passes { bytes, ..Passes::default() };
            while end.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                passes.look(position(&lines));
                progress.set_done(passes.read());
            }
        };
        // Where the system refuses a thread there is no progress.
        let _ = std::thread::Builder::new().spawn_scoped(scope, watch);
        let trained = train();
        drop(ended);
        trained
    })
}

/// Bytes read of a file that is read several times from beginning to end.
#[derive(Debug, Default)]
struct Passes {
    bytes: u64,
    ended: u64,
    position: u64,
}

impl Passes {
    /// Looks at the position in the file; none while it is closed.
    fn look(&mut self, position: Option<u64>) {
        let position = position.unwrap_or(0);
        self.ended += u64::from(position < self.position);
        self.position = position;
    }

    fn read(&self) -> u64 {
        self.ended * self.bytes + self.position
    }
}

/// How far this process has read the file it has open as `path`, where the system tells.
fn position(path: &Path) -> Option<u64> {
    for entry in fs::read_dir("/proc/self/fd").ok()?.flatten() {
        if fs::read_link(entry.path()).is_ok_and(|open| open == path) {
            let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
            let info = fs::read_to_string(info).ok()?;
            return info.lines().next()?.strip_prefix("pos:")?.trim().parse().ok();
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn passes_are_counted() {
        let mut passes = Passes { bytes: 100, ..Passes::default() };
        for (position, read) in [
            (None, 0),
            (Some(0), 0),
            (Some(60), 60),
            (Some(100), 100),
            // Closed, and opened again.
            (None, 100),
            (Some(40), 140),
            (Some(40), 140),
            (Some(10), 210),
        ] {
            passes.look(position);
            assert_eq!(passes.read(), read, "{position:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_position_in_an_open_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("lines");
        fs::write(&path, [b'x'; 50]).unwrap();
        assert_eq!(position(&path), None);
        let mut file = fs::File::open(&path).unwrap();
        file.read_exact(&mut [0; 30]).unwrap();
        assert_eq!(position(&path), Some(30));
    }
}
