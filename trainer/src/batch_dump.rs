//! The batches a run will see, written out, for those who compare frameworks or look for the text
//! behind a loss.
//!
//! Batches come from where training gets them ([`open_loader`] and [`next_batches`]), so they are those
//! of the run, whichever step is asked for first.

use std::io::Write;
use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::{AtomicFile, remove_abandoned};
use altiplano_data::{Batch, Loader, SequenceOrigin, Tokenizer};
use serde::Serialize;

use crate::config::TrainConfig;
use crate::error::{Result, TrainerError};
use crate::train_loop::{next_batches, open_loader};

/// The batches of some steps of a run.
#[derive(Debug)]
pub struct StepBatches<'a> {
    config: &'a TrainConfig,
    loader: Loader,
    tokenizer: Option<Tokenizer>,
    next_step: u64,
    last_step: u64,
}

/// Where a row of a step comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowOrigin<'a> {
    /// Optimizer step, from 1.
    pub step: u64,
    /// Micro-batch of the step, from 0.
    pub micro_batch: usize,
    /// Row of the micro-batch, from 0.
    pub row: usize,
    /// Name of the source.
    pub source: &'a str,
    /// How often the source was gone through before.
    pub epoch: u64,
    /// Number of the sequence inside the source.
    pub sequence: u64,
    /// The shard the row begins in; empty for random tokens.
    pub shard: &'a str,
    /// First token of the row in that shard.
    pub token: u64,
    /// Places of the row, behind its first, where a document begins.
    pub document_starts: Vec<usize>,
}

/// A row of a step: its origin and its ids.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row<'a> {
    /// Where it comes from.
    #[serde(flatten)]
    pub origin: RowOrigin<'a>,
    /// Token ids, (T).
    pub inputs: &'a [i32],
    /// The token after each input, or [`altiplano_data::IGNORED_TARGET`], (T).
    pub targets: &'a [i32],
}

impl<'a> StepBatches<'a> {
    /// `steps` steps of a run of `config`, the first of them `from_step`, counted from 1.
    ///
    /// # Errors
    /// When the run has no such steps, or its data cannot be opened.
    pub fn open(config: &'a TrainConfig, from_step: u64, steps: u64) -> Result<Self> {
        let total = config.total_steps();
        let last_step = from_step.saturating_add(steps).saturating_sub(1);
        if from_step == 0 || steps == 0 || last_step > total {
            return Err(TrainerError::Usage {
                message: format!(
                    "--from-step {from_step} --steps {steps}: expected steps of the run, which are \
                     1 to {total}"
                ),
            });
        }
        let (mut loader, tokenizer) = open_loader(config)?;
        loader.skip_batches((from_step - 1).saturating_mul(config.batch.grad_accum_steps as u64));
        Ok(Self { config, loader, tokenizer, next_step: from_step, last_step })
    }

    /// The tokenizer of the run; none where it trains on random tokens without one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The next step and its micro-batches; none after the last.
    ///
    /// # Errors
    /// When a shard holds an id outside the vocabulary.
    pub fn next_step(&mut self) -> Result<Option<(u64, Vec<Batch>)>> {
        if self.next_step > self.last_step {
            return Ok(None);
        }
        let batches = next_batches(self.config, &mut self.loader)?;
        self.next_step += 1;
        Ok(Some((self.next_step - 1, batches)))
    }

    /// Writes the ids of all steps to `inputs.npy` and `targets.npy` in `folder`, arrays of i32 of
    /// shape (steps, micro-batches, rows, tokens), and the origins of their rows to `rows.jsonl`. Each
    /// file appears whole or not at all.
    ///
    /// # Errors
    /// As [`StepBatches::next_step`], or when a file cannot be written.
    pub fn write_npy(mut self, folder: &Path) -> Result<()> {
        let batch = &self.config.batch;
        let shape = [
            self.last_step + 1 - self.next_step,
            batch.grad_accum_steps as u64,
            batch.micro_batch as u64,
            batch.seq_len as u64,
        ];
        remove_abandoned(folder)?;
        let mut inputs = OutputFile::create(folder.join("inputs.npy"))?;
        let mut targets = OutputFile::create(folder.join("targets.npy"))?;
        let mut origins = OutputFile::create(folder.join("rows.jsonl"))?;
        inputs.write(&npy_header(shape))?;
        targets.write(&npy_header(shape))?;
        while let Some((step, batches)) = self.next_step()? {
            for row in rows(step, &batches) {
                inputs.write(&little_endian(row.inputs))?;
                targets.write(&little_endian(row.targets))?;
                origins.write(&json_line(&row.origin)?)?;
            }
        }
        inputs.commit()?;
        targets.commit()?;
        origins.commit()
    }
}

/// The rows of the micro-batches of a step, in order.
pub fn rows(step: u64, batches: &[Batch]) -> impl Iterator<Item = Row<'_>> {
    batches.iter().enumerate().flat_map(move |(micro_batch, batch)| {
        batch.origins.iter().enumerate().map(move |(row, origin)| {
            let places = row * batch.seq_len..(row + 1) * batch.seq_len;
            let first_visible = &batch.first_visible[places.clone()];
            let begins = |&place: &usize| first_visible[place] == place as i32;
            let SequenceOrigin { source, epoch, sequence, shard, token, .. } = origin;
            Row {
                origin: RowOrigin {
                    step,
                    micro_batch,
                    row,
                    source,
                    epoch: *epoch,
                    sequence: *sequence,
                    shard,
                    token: *token,
                    document_starts: (1..batch.seq_len).filter(begins).collect(),
                },
                inputs: &batch.inputs[places.clone()],
                targets: &batch.targets[places],
            }
        })
    })
}

/// A row as a JSON object on one line.
///
/// # Errors
/// None that a row can cause.
pub fn json_line(row: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(row)
        .map_err(|error| TrainerError::Output(std::io::Error::other(error)))?;
    line.push(b'\n');
    Ok(line)
}

/// A row for people: a line of its origin, and an indented line of its inputs as pieces of the
/// tokenizer, or as ids without one. A `|` stands where a document begins.
pub fn text(row: &Row<'_>, tokenizer: Option<&Tokenizer>) -> String {
    let RowOrigin { step, micro_batch, row: number, source, epoch, sequence, shard, token, .. } =
        row.origin;
    let end = token.saturating_add(row.inputs.len() as u64);
    let mut text = format!(
        "step {step}, micro-batch {micro_batch}, row {number}: {source}, epoch {epoch}, sequence \
         {sequence}"
    );
    if !shard.is_empty() {
        text.push_str(&format!(", {shard}, tokens {token}..{end}"));
    }
    text.push_str("\n ");
    for (place, &id) in row.inputs.iter().enumerate() {
        if row.origin.document_starts.binary_search(&place).is_ok() {
            text.push_str(" |");
        }
        let piece = u32::try_from(id).ok().and_then(|id| tokenizer?.piece(id));
        text.push(' ');
        match piece {
            Some(piece) => text.push_str(&visible(&piece.text)),
            None => text.push_str(&id.to_string()),
        }
    }
    text.push('\n');
    text
}

/// A piece with its control characters escaped, which a terminal would obey.
fn visible(piece: &str) -> String {
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    piece.chars().map(escaped).collect()
}

/// The head of a `.npy` file of little-endian i32 in C order (format version 1.0).
fn npy_header(shape: [u64; 4]) -> Vec<u8> {
    let [a, b, c, d] = shape;
    let dict =
        format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({a}, {b}, {c}, {d}), }}");
    // Magic, version and length take 10 bytes; the data begin at a multiple of 64.
    let whole = (10 + dict.len() + 1).next_multiple_of(64);
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((whole as u16 - 10).to_le_bytes());
    header.extend(dict.as_bytes());
    header.resize(whole - 1, b' ');
    header.push(b'\n');
    header
}

fn little_endian(ids: &[i32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

struct OutputFile {
    path: PathBuf,
    file: AtomicFile,
}

impl OutputFile {
    fn create(path: PathBuf) -> Result<Self> {
        Ok(Self { file: AtomicFile::create(&path)?, path })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(TrainerError::io(&self.path))
    }

    fn commit(self) -> Result<()> {
        self.file.commit()?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let origin = SequenceOrigin {
            source: "books".into(),
            shard: "train-00000.arrow".into(),
            epoch: 2,
            sequence: 7,
            token: 28,
            tokens: 4,
            ..Default::default()
        };
        Batch {
            batch_size: 1,
            seq_len: 4,
            inputs: vec![5, 6, 7, 8],
            targets: vec![6, -100, 8, 9],
            first_visible: vec![0, 0, 2, 3],
            origins: vec![origin],
        }
    }

    #[test]
    fn a_row_says_where_it_comes_from() {
        let batches = [batch(), batch()];
        let rows: Vec<Row> = rows(3, &batches).collect();
        assert_eq!(rows.len(), 2);
        let origin = &rows[1].origin;
        assert_eq!((origin.step, origin.micro_batch, origin.row), (3, 1, 0));
        assert_eq!(origin.document_starts, [2, 3]);
        assert_eq!(
            text(&rows[1], None),
            "step 3, micro-batch 1, row 0: books, epoch 2, sequence 7, train-00000.arrow, tokens \
             28..32\n  5 6 | 7 | 8\n"
        );
        let json: serde_json::Value =
            serde_json::from_slice(&json_line(&rows[1]).unwrap()).unwrap();
        assert_eq!(json["targets"], serde_json::json!([6, -100, 8, 9]));
        assert_eq!((&json["source"], &json["epoch"]), (&"books".into(), &2.into()));
    }

    #[test]
    fn control_characters_of_a_piece_are_shown() {
        assert_eq!(visible("▁a\u{1b}[2J"), "▁a\\u{1b}[2J");
    }

    #[test]
    fn the_head_of_an_array_is_aligned() {
        for shape in [[1, 1, 1, 1], [123_456_789, 1024, 1024, 1 << 20], [u64::MAX; 4]] {
            let header = npy_header(shape);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
            assert!(header.ends_with(b"\n"));
        }
    }
}
