//! Labelled lines for training: without repetitions, shuffled, a share of them held out.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::dictionary::LABEL_PREFIX;
use crate::atomic_file::{remove_abandoned, scratch_folder};
use crate::error::{DataError, Result};
use crate::text::python;

/// Collects labelled lines in a file; holds 40 bytes of memory a line.
pub(crate) struct Examples {
    folder: TempDir,
    spool: BufWriter<File>,
    path: PathBuf,
    length: u64,
    seen: HashSet<u64>,
    entries: Vec<Entry>,
    seed: u64,
}

/// A line in the spool. The order of the fields is the order of training.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    order: u64,
    offset: u64,
    length: u32,
    label: u32,
}

/// The two sides of the examples.
pub(crate) struct Split {
    /// The lines to train on: `__label__xx text`.
    pub train: PathBuf,
    /// How many there are of each label.
    pub trained: Vec<u64>,
    /// The lines to measure on.
    pub held_out: HeldOut,
}

/// Lines to measure on. The folder of the training lines lives as long as this.
pub(crate) struct HeldOut {
    path: PathBuf,
    labels: Vec<u32>,
    _folder: TempDir,
}

impl Examples {
    /// Starts collecting in a folder beside `output`; it is removed in the end.
    pub fn new(output: &Path, seed: u32) -> Result<Self> {
        let parent = output.parent().filter(|parent| *parent != Path::new(""));
        let parent = parent.unwrap_or(Path::new("."));
        remove_abandoned(parent)?;
        let folder = scratch_folder(parent)?;
        let path = folder.path().join("examples");
        let spool = BufWriter::new(File::create(&path).map_err(DataError::io(&path))?);
        Ok(Self {
            folder,
            spool,
            path,
            length: 0,
            seen: HashSet::new(),
            entries: Vec::new(),
            seed: u64::from(seed),
        })
    }

    /// Takes in `text` under the label number `label`. Line ends and runs of white space become
    /// a space, and words that fastText would take for a label or an end of line are cut open.
    /// False when a text with the same words was taken in before, under whatever label.
    pub fn add(&mut self, label: u32, text: &str) -> Result<bool> {
        let mut line = String::with_capacity(text.len() + 1);
        for word in text.split(|c| c == '\0' || c == ' ' || c == '\t' || python::is_line_end(c)) {
            if !word.is_empty() {
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(word);
            }
        }
        if line.contains(LABEL_PREFIX) || line.contains("</s>") {
            line = line.replace(LABEL_PREFIX, "__label ").replace("</s>", "< /s>");
        }
        if line.is_empty() || !self.seen.insert(xxh3_64(line.as_bytes())) {
            return Ok(false);
        }
        let Ok(length) = u32::try_from(line.len()) else { return Ok(false) };
        self.spool.write_all(line.as_bytes()).map_err(DataError::io(&self.path))?;
        let order = xxh3_64_with_seed(line.as_bytes(), self.seed);
        self.entries.push(Entry { order, offset: self.length, length, label });
        self.length += u64::from(length);
        Ok(true)
    }

    /// Examples taken in so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Writes both sides. A line's own hash says on which side it is, so neither the order nor
    /// the other lines matter.
    pub fn split(mut self, labels: &[String], held_out: f64) -> Result<Split> {
        self.spool.flush().map_err(DataError::io(&self.path))?;
        self.seen = HashSet::new();
        self.entries.sort_unstable();
        let file = File::open(&self.path).map_err(DataError::io(&self.path))?;
        let mut spool = BufReader::new(file);
        let train = self.folder.path().join("train");
        let held = self.folder.path().join("held_out");
        let create = |path: &Path| File::create(path).map(BufWriter::new);
        let mut train_file = create(&train).map_err(DataError::io(&train))?;
        let mut held_file = create(&held).map_err(DataError::io(&held))?;
        let mut trained = vec![0; labels.len()];
        let mut held_labels = Vec::new();
        let mut line = Vec::new();
        for entry in &self.entries {
            line.resize(entry.length as usize, 0);
            spool
                .seek(SeekFrom::Start(entry.offset))
                .and_then(|_| spool.read_exact(&mut line))
                .map_err(DataError::io(&self.path))?;
            // Another hash than the one that orders, so that the sides are not the two ends.
            let share = xxh3_64_with_seed(&line, !self.seed) as f64 / u64::MAX as f64;
            if share < held_out {
                held_file
                    .write_all(&line)
                    .and_then(|()| held_file.write_all(b"\n"))
                    .map_err(DataError::io(&held))?;
                held_labels.push(entry.label);
            } else {
                let label = &labels[entry.label as usize];
                write!(train_file, "{LABEL_PREFIX}{label} ")
                    .and_then(|()| train_file.write_all(&line))
                    .and_then(|()| train_file.write_all(b"\n"))
                    .map_err(DataError::io(&train))?;
                trained[entry.label as usize] += 1;
            }
        }
        train_file.flush().map_err(DataError::io(&train))?;
        held_file.flush().map_err(DataError::io(&held))?;
        let held_out = HeldOut { path: held, labels: held_labels, _folder: self.folder };
        Ok(Split { train, trained, held_out })
    }
}

impl HeldOut {
    /// Hands each held-out line to `visit` with its label's number.
    pub fn each(&self, mut visit: impl FnMut(u32, &str)) -> Result<()> {
        let file = File::open(&self.path).map_err(DataError::io(&self.path))?;
        for (line, &label) in BufReader::new(file).lines().zip(&self.labels) {
            visit(label, &line.map_err(DataError::io(&self.path))?);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_unique_shuffled_and_split_by_their_own_hash() {
        let folder = tempfile::tempdir().unwrap();
        let labels = ["a".to_owned(), "b".to_owned()];
        let split = |order: &[usize]| {
            let mut examples = Examples::new(&folder.path().join("model.bin"), 1).unwrap();
            for &number in order {
                let text = format!("text number {number}");
                assert!(examples.add((number % 2) as u32, &text).unwrap());
            }
            assert!(!examples.add(0, "  text\nnumber\u{2028}3 ").unwrap(), "a repetition");
            assert!(!examples.add(0, " \n").unwrap(), "nothing");
            assert_eq!(examples.len(), order.len());
            let split = examples.split(&labels, 0.2).unwrap();
            let mut held = Vec::new();
            split.held_out.each(|label, line| held.push((label, line.to_owned()))).unwrap();
            (std::fs::read_to_string(&split.train).unwrap(), split.trained.clone(), held)
        };
        let forward: Vec<usize> = (0..500).collect();
        let backward: Vec<usize> = (0..500).rev().collect();
        let (train, trained, held) = split(&forward);
        assert_eq!((train.clone(), trained.clone(), held.clone()), split(&backward));
        assert_eq!(train.lines().count() + held.len(), 500);
        assert!((70..130).contains(&held.len()), "{} of 500 held out", held.len());
        assert_eq!(trained.iter().sum::<u64>() as usize + held.len(), 500);
        // The labels are mixed.
        let ones = train.lines().take(50).filter(|line| line.starts_with("__label__b ")).count();
        assert!((10..40).contains(&ones), "{ones} of the first 50");
        assert!(
            held.iter()
                .all(|(label, line)| line.ends_with(['0', '2', '4', '6', '8']) == (*label == 0))
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn text_cannot_pose_as_a_label() {
        let folder = tempfile::tempdir().unwrap();
        let mut examples = Examples::new(&folder.path().join("model.bin"), 0).unwrap();
        examples.add(0, "one __label__x two </s> three\0four").unwrap();
        let split = examples.split(&["a".to_owned()], 0.0).unwrap();
        let line = std::fs::read_to_string(&split.train).unwrap();
        assert_eq!(line, "__label__a one __label x two < /s> three four\n");
    }
}
