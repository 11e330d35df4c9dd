//! What differs between pretraining and fine-tuning: where batches and weights come from, and how
//! settings are kept.

use std::path::Path;
use std::sync::Arc;

use altiplano_data::{Batch, Tokenizer};
use burn::tensor::Device;
use serde_json::Value;

use crate::checkpoint::hugging_face::{self, PadToken, SpecialTokens};
use crate::checkpoint::{CheckpointFiles, TrainState};
use crate::config::{Change, TrainConfig};
use crate::error::Result;
use crate::metrics::ValidationMetrics;
use crate::train_step::Trainer;
use crate::world::Ranks;

/// A kind of run: pretraining on a mixture, or fine-tuning on examples. The loop is the same for all.
pub(crate) trait Task: Send {
    /// What the loop has to know: the model, the number of steps, the optimizer, intervals.
    fn config(&self) -> &TrainConfig;

    /// Floating-point operations of one forward and backward pass per token.
    fn flops_per_token(&self) -> f64 {
        let config = self.config();
        config.model.train_flops_per_token(config.batch.seq_len)
    }

    /// The keys that give the length of a run, of which a larger value extends it.
    fn length_keys(&self) -> &'static [&'static str] {
        &["steps", "tokens"]
    }

    /// The settings as a checkpoint keeps them, with paths as seen from `run_dir`.
    ///
    /// # Errors
    /// When a path cannot be written that way.
    fn settings(&self, run_dir: &Path) -> Result<Value>;

    /// The same as the text of `run_dir/config.yaml`.
    ///
    /// # Errors
    /// As [`Task::settings`].
    fn yaml(&self, run_dir: &Path) -> Result<String>;

    /// The `config.yaml` in `run_dir`, as that of a run whose directory is `branch`.
    ///
    /// # Errors
    /// When the file cannot be read.
    fn branch_yaml(&self, run_dir: &Path, branch: &Path) -> Result<String>;

    /// Holds the settings of a resumed run to those of its `checkpoint`, and gives the recorded ones that
    /// changed. `overrides` are those in the settings, for messages.
    ///
    /// # Errors
    /// When a setting differs that may not.
    fn resumed_from(
        &mut self,
        saved: Value,
        checkpoint: &Path,
        run_dir: &Path,
        overrides: &[String],
    ) -> Result<Vec<Change>>;

    /// The trainer before its first step, with lines for the user about where its weights come from.
    ///
    /// # Errors
    /// When they are damaged or do not fit.
    fn start(&self, device: &Device, ranks: &Arc<Ranks>) -> Result<(Trainer, Vec<String>)>;

    /// The trainer that `checkpoint` holds, whose files are already verified.
    ///
    /// # Errors
    /// When a file cannot be read or its tensors are not those of the run.
    fn resume(
        &self,
        checkpoint: &Path,
        state: &TrainState,
        device: &Device,
        ranks: &Arc<Ranks>,
    ) -> Result<Trainer> {
        Trainer::resume(self.config(), checkpoint, state, device, ranks)
    }

    /// Writes what other programs read of the model beside its tensors.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn write_model_files(&self, files: &mut CheckpointFiles) -> Result<()> {
        let (tokens, template) = (self.special_tokens(), self.chat_template());
        let (model, tokenizer) = (&self.config().model, self.tokenizer());
        hugging_face::write(files, model, tokens, tokenizer, template, PadToken::None)
    }

    /// Opens what is trained on, of which these ranks read their shares. Nothing below is called before.
    ///
    /// # Errors
    /// When a file cannot be read or does not fit.
    fn open(&mut self, ranks: &Ranks) -> Result<()>;

    /// The micro-batches of the next step that this rank works on.
    ///
    /// # Errors
    /// When a file cannot be read.
    fn next_step(&mut self) -> Result<Vec<Batch>>;

    /// Where the stream of batches stands, as a checkpoint keeps it.
    ///
    /// # Errors
    /// When it has no JSON form.
    fn position(&self) -> serde_json::Result<Value>;

    /// Goes on from a position; `run_dir` is for messages.
    ///
    /// # Errors
    /// When it belongs to other data.
    fn restore(&mut self, position: Value, run_dir: &Path) -> Result<()>;

    /// Whether something is held out.
    fn validates(&self) -> bool;

    /// The loss on at most `max_sequences` sequences of each source that is held out. None when
    /// `interrupted` said so.
    ///
    /// # Errors
    /// When a file cannot be read.
    fn validate(
        &self,
        trainer: &Trainer,
        max_sequences: usize,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Option<ValidationMetrics>>;

    /// The tokenizer of the ids; none for random ones.
    fn tokenizer(&self) -> Option<&Tokenizer>;

    /// The chat template that the model is taught.
    fn chat_template(&self) -> Option<&str> {
        None
    }

    /// The ids that begin and end a text.
    fn special_tokens(&self) -> SpecialTokens {
        let mut special = SpecialTokens::default();
        if let Some(tokenizer) = self.tokenizer() {
            special.bos = tokenizer.bos_id().unwrap_or(special.bos);
            special.eos = tokenizer.eos_id().unwrap_or(special.eos);
        }
        special
    }

    /// What is about to be trained on, for the user to check before it starts.
    fn summary(&self) -> String;
}
