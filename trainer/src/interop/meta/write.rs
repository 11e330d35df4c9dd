//! A model as a directory in Meta's layout.

use std::path::Path;

use altiplano_data::progress::ProgressMode;
use altiplano_model::LlamaConfig;
use altiplano_model::quantize::StoredAs;

use super::archive::{self, NewTensor};
use super::{PARAMS_FILE, file_name, params};
use crate::checkpoint::CheckpointFiles;
use crate::checkpoint::hugging_face::TOKENIZER_FILE;
use crate::error::{Result, TrainerError};
use crate::interop::output::OutputDirectory;
use crate::interop::parameter::{Parameter, Split};
use crate::interop::rows::{Part, RotaryLayout};
use crate::interop::stored_model::{StoredModel, Summary, progress};

/// How a directory is written.
#[derive(Debug, Clone, Copy)]
pub struct MetaOptions {
    /// Number format of the weights: one of the floating-point formats.
    pub stored: StoredAs,
    /// Files of the model-parallel group.
    pub shards: usize,
    /// Whether a model that is there is replaced.
    pub overwrite: bool,
    /// Whether progress is shown.
    pub progress: ProgressMode,
}

/// Writes a model as a directory.
///
/// # Errors
/// [`TrainerError::Usage`] when the model cannot be cut into so many files; when the directory cannot
/// be written or replaced, or a value does not fit the format.
pub fn write(model: &StoredModel, dir: &Path, options: MetaOptions) -> Result<Summary> {
    check_shards(&model.config, options.shards)?;
    let text = format!("{}\n", params::to_json(&model.config)?);
    let output = OutputDirectory::create(dir, options.overwrite)?;
    let mut files = CheckpointFiles::new(output.temporary());
    let mut summary = Summary::new("meta", dir, model);
    // The reference code has an output head always: of a tied model it is the embedding once more.
    let untied = LlamaConfig { tie_word_embeddings: false, ..model.config.clone() };
    if model.config.tie_word_embeddings {
        summary.notes.push("the embedding is written twice: Meta's layout has no tied ones".into());
    }
    let total: usize = Parameter::all(&untied)
        .flat_map(|parameter| (0..options.shards).map(move |n| (parameter, n)))
        .filter_map(|(parameter, n)| part(parameter, &model.config, n, options).bytes())
        .sum();
    let progress = progress(options.progress, "weights", total);
    for n in 0..options.shards {
        let mut tensors = Vec::new();
        for parameter in Parameter::all(&untied) {
            let part = part(parameter, &model.config, n, options);
            summary.tensor(part.stored);
            tensors.push(NewTensor { name: parameter.meta(), rows: model.rows(parameter)?, part });
        }
        archive::write(&output.temporary().join(file_name(n)), &tensors, &progress)?;
    }
    files.write_bytes(PARAMS_FILE, text.as_bytes())?;
    let tokenizer = model.tokenizer.as_ref().filter(|tokenizer| tokenizer.is_sentencepiece());
    if let Some(tokenizer) = tokenizer {
        files.write_bytes(TOKENIZER_FILE, tokenizer.model())?;
    } else {
        summary.notes.push(format!("no {TOKENIZER_FILE} was there to copy"));
    }
    summary.files_of(output.temporary())?;
    output.commit()?;
    progress.finish(&format!("{} tensors", summary.tensors));
    Ok(summary)
}

/// Rows and columns of a parameter that go into file `n`.
fn part(parameter: Parameter, config: &LlamaConfig, n: usize, options: MetaOptions) -> Part {
    let shape = parameter.shape(config);
    let mut part = Part::whole(shape, RotaryLayout::Pairs, options.stored);
    let share = |whole: usize| {
        let length = whole / options.shards;
        n * length..(n + 1) * length
    };
    match parameter.split() {
        Split::Copied => {}
        Split::Rows => part.rows = share(shape.rows),
        Split::Columns => part.columns = share(shape.columns),
    }
    part
}

/// Heads, widths and vocabulary are cut into equal parts.
fn check_shards(config: &LlamaConfig, shards: usize) -> Result<()> {
    for (what, length) in [
        ("n_heads", config.n_heads),
        ("n_kv_heads", config.kv_heads()),
        ("dim", config.dim),
        ("hidden_dim", config.ffn_dim()),
        ("vocab_size", config.vocab_size),
    ] {
        if !length.is_multiple_of(shards) {
            return Err(TrainerError::Usage {
                message: format!("--shards {shards}: does not divide {what}, which is {length}"),
            });
        }
    }
    Ok(())
}
