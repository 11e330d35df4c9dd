//! A model on disk, read parameter by parameter.

use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use altiplano_data::progress::{Progress, ProgressMode, Work};
use altiplano_model::LlamaConfig;
use altiplano_model::error::ModelError;
use altiplano_model::quantize::StoredAs;

use super::parameter::{Parameter, Shape};
use super::rows::Rows;
use crate::checkpoint::hugging_face::SpecialTokens;
use crate::error::{Result, TrainerError};

/// A model on disk: its configuration and tokenizer, and its parameters where they lie.
#[derive(Debug)]
pub struct StoredModel {
    /// Shape and constants.
    pub config: LlamaConfig,
    /// Marks of the text.
    pub tokens: SpecialTokens,
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<Tokenizer>,
    /// How text becomes ids and ids become text, beside the tokenizer.
    pub text: TextSettings,
    /// The Hugging Face directory it lies in, if it is one.
    pub hugging_face_dir: Option<PathBuf>,
    /// Its parameters: all are there, with the shapes of the configuration.
    pub weights: Box<dyn StoredWeights>,
}

/// What programs that generate text read beside the tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSettings {
    /// Whether the begin mark is put before a text.
    pub add_bos: bool,
    /// Whether the end mark is put behind a text.
    pub add_eos: bool,
    /// Id of the token that fills up a batch.
    pub padding: Option<u32>,
    /// How a conversation is written as text: a Jinja template.
    pub chat_template: Option<String>,
}

impl Default for TextSettings {
    fn default() -> Self {
        Self { add_bos: true, add_eos: false, padding: None, chat_template: None }
    }
}

/// The parameters of a model on disk.
pub trait StoredWeights: std::fmt::Debug {
    /// A parameter of the model, where it lies.
    ///
    /// # Errors
    /// [`ModelError::WeightTensor`] when it is missing or not what the configuration asks for.
    fn rows(&self, parameter: Parameter, shape: Shape, head_dim: usize) -> Result<Rows<'_>>;
}

impl StoredModel {
    /// All parameters, in the order of the checkpoint.
    pub fn parameters(&self) -> impl Iterator<Item = Parameter> + use<> {
        Parameter::all(&self.config)
    }

    /// A parameter, where it lies. The output head of a tied model is its embedding.
    ///
    /// # Errors
    /// As [`StoredWeights::rows`].
    pub fn rows(&self, parameter: Parameter) -> Result<Rows<'_>> {
        let shape = parameter.shape(&self.config);
        let tied = self.config.tie_word_embeddings && parameter == Parameter::head();
        let parameter = if tied { Parameter::embedding() } else { parameter };
        self.weights.rows(parameter, shape, self.config.head_dim())
    }
}

/// Holds the vocabulary of a model, whose size the file `path` says, against its tokenizer.
///
/// # Errors
/// [`TrainerError::RunFile`] when the tokenizer has ids that the model does not know, or the marks
/// are outside the vocabulary.
pub fn check_vocabulary(
    path: &Path,
    tokenizer: Option<&Tokenizer>,
    tokens: SpecialTokens,
    vocab_size: usize,
) -> Result<()> {
    if let Some(tokenizer) = tokenizer
        && tokenizer.vocab_size() > vocab_size
    {
        return Err(TrainerError::RunFile {
            path: tokenizer.path().to_path_buf(),
            reason: format!(
                "has {} pieces, the model knows {vocab_size} tokens: they do not belong together",
                tokenizer.vocab_size(),
            ),
        });
    }
    for (mark, id) in [("bos", tokens.bos), ("eos", tokens.eos)] {
        if id as usize >= vocab_size {
            let reason = format!("the id {id} of {mark} is outside the vocabulary of {vocab_size}");
            return Err(TrainerError::RunFile { path: path.to_path_buf(), reason });
        }
    }
    Ok(())
}

/// The error of a tensor that is not what it should be.
pub fn tensor_error(
    path: &Path,
    tensor: &str,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> TrainerError {
    ModelError::WeightTensor {
        path: path.to_path_buf(),
        tensor: tensor.to_string(),
        found: found.into(),
        expected: expected.into(),
    }
    .into()
}

/// The error of a file that is not what its name says.
pub fn file_error(path: &Path, reason: impl Into<String>) -> TrainerError {
    TrainerError::RunFile { path: path.to_path_buf(), reason: reason.into() }
}

/// What an export or import wrote.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// The format, as it was asked for.
    pub format: &'static str,
    /// The directory or file that was written.
    pub output: PathBuf,
    /// Its files, with their lengths in bytes.
    pub files: Vec<WrittenFile>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Tensors.
    pub tensors: usize,
    /// Parameters of the model.
    pub parameters: usize,
    /// Tensors stored in each number format.
    pub stored_as: std::collections::BTreeMap<&'static str, usize>,
    /// What could not be done as asked for, and what was done.
    pub notes: Vec<String>,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WrittenFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

impl Summary {
    /// Nothing written yet.
    pub fn new(format: &'static str, output: &Path, model: &StoredModel) -> Self {
        Self {
            format,
            output: output.to_path_buf(),
            files: Vec::new(),
            bytes: 0,
            tensors: 0,
            parameters: model.config.parameter_count(),
            stored_as: Default::default(),
            notes: Vec::new(),
        }
    }

    /// A tensor was written.
    pub fn tensor(&mut self, stored: StoredAs) {
        self.tensors += 1;
        *self.stored_as.entry(stored.name()).or_default() += 1;
    }

    /// Takes down the files of a directory, sorted by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn files_of(&mut self, dir: &Path) -> Result<()> {
        for entry in std::fs::read_dir(dir).map_err(TrainerError::io(dir))? {
            let entry = entry.map_err(TrainerError::io(dir))?;
            let bytes = entry.metadata().map_err(TrainerError::io(entry.path()))?.len();
            self.file(entry.file_name().to_string_lossy().into_owned(), bytes);
        }
        self.files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Takes down a file.
    pub fn file(&mut self, name: String, bytes: u64) {
        self.bytes += bytes;
        self.files.push(WrittenFile { name, bytes });
    }
}

/// The progress of writing so many bytes of tensors.
pub fn progress(mode: ProgressMode, label: &str, bytes: usize) -> Progress {
    Progress::new(mode, label, Work::bytes(bytes as u64))
}
