//! Writing safetensors files row by row, one or in shards.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use altiplano_data::progress::Progress;
use altiplano_model::quantize::StoredAs;
use altiplano_model::weight_files::{index_name, shard_name};
use serde_json::{Map, Value, json};

use super::parameter::Parameter;
use super::rows::{Part, RotaryLayout};
use super::stored_model::{StoredModel, file_error};
use crate::checkpoint::{CheckpointFiles, MODEL_FILE};
use crate::error::{Result, TrainerError};

/// One tensor of a file.
struct Entry {
    parameter: Parameter,
    part: Part,
    bytes: usize,
}

/// Which tensor goes into which file.
pub struct Plan {
    entries: Vec<Entry>,
    /// The entries of each file.
    shards: Vec<Range<usize>>,
    stored: StoredAs,
}

impl Plan {
    /// All parameters of `model`, with elements stored as `stored`, in files of at most
    /// `max_shard_bytes`. A tensor that is larger has a file of its own.
    ///
    /// # Errors
    /// When the model is larger than memory can be.
    pub fn new(model: &StoredModel, stored: StoredAs, max_shard_bytes: u64) -> Result<Self> {
        let mut entries = Vec::new();
        let mut shards: Vec<Range<usize>> = Vec::new();
        let mut room = 0u64;
        for parameter in model.parameters() {
            let part = Part::whole(parameter.shape(&model.config), RotaryLayout::Halves, stored);
            let Some(bytes) = part.bytes() else {
                return Err(file_error(Path::new(MODEL_FILE), "the model is too large to write"));
            };
            let at = entries.len();
            match shards.last_mut() {
                Some(shard) if bytes as u64 <= room => shard.end = at + 1,
                _ => {
                    shards.push(at..at + 1);
                    room = max_shard_bytes;
                }
            }
            room = room.saturating_sub(bytes as u64);
            entries.push(Entry { parameter, part, bytes });
        }
        Ok(Self { entries, shards, stored })
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.entries.len()
    }

    fn file_name(&self, shard: usize) -> String {
        shard_name(MODEL_FILE, shard, self.shards.len())
    }

    /// Writes the files, and the index of several.
    ///
    /// # Errors
    /// When a file cannot be written, or a value does not fit the format.
    pub fn write(
        &self,
        model: &StoredModel,
        files: &mut CheckpointFiles,
        progress: &Progress,
    ) -> Result<()> {
        for (n, shard) in self.shards.iter().enumerate() {
            let entries = &self.entries[shard.clone()];
            files.write(&self.file_name(n), |out, path| {
                out.write_all(&self.header(entries)).map_err(TrainerError::io(path))?;
                for entry in entries {
                    model.rows(entry.parameter)?.write(&entry.part, out, path, progress)?;
                }
                Ok(())
            })?;
        }
        if self.shards.len() > 1 {
            files
                .write_bytes(&index_name(MODEL_FILE), format!("{:#}\n", self.index()).as_bytes())?;
        }
        Ok(())
    }

    /// Length of the header, the header, and spaces up to a multiple of 8.
    fn header(&self, entries: &[Entry]) -> Vec<u8> {
        let dtype = match self.stored {
            StoredAs::F16 => "F16",
            StoredAs::Bf16 => "BF16",
            _ => "F32",
        };
        let mut end = 0;
        let mut header = Map::new();
        // transformers refuses a file whose metadata does not name a format.
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        for entry in entries {
            let begin = end;
            end += entry.bytes;
            let tensor = json!({
                "dtype": dtype,
                "shape": self.dimensions(entry),
                "data_offsets": [begin, end],
            });
            header.insert(entry.parameter.hugging_face(), tensor);
        }
        let mut text = Value::Object(header).to_string();
        text.push_str(&" ".repeat(text.len().next_multiple_of(8) - text.len()));
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn dimensions(&self, entry: &Entry) -> Vec<usize> {
        let (rows, columns) = (entry.part.rows.len(), entry.part.columns.len());
        if rows == 1 && entry.parameter.is_vector() { vec![columns] } else { vec![rows, columns] }
    }

    fn index(&self) -> Value {
        let mut weight_map = Map::new();
        for (n, shard) in self.shards.iter().enumerate() {
            for entry in &self.entries[shard.clone()] {
                weight_map.insert(entry.parameter.hugging_face(), self.file_name(n).into());
            }
        }
        json!({ "metadata": { "total_size": self.bytes() }, "weight_map": weight_map })
    }
}
