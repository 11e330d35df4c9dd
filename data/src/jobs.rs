//! The jobs that a data configuration drives: documents, tokenizer, shards.

use crate::atomic_file::{remove_abandoned, remove_unfinished};
use crate::config::DataConfig;
use crate::document::{Split, list_documents};
use crate::error::{DataError, Result};
use crate::lock::lock;
use crate::pipeline::{self, RunOptions, RunReport};
use crate::progress::ProgressMode;
use crate::shard::{TokenizeReport, tokenize};
use crate::storage::{Mirror, MirroredPart};
use crate::tokenizer::{self, Tokenizer, TrainReport};

impl DataConfig {
    /// Lets the folder stand for the bucket, where `output` is one, with the files that `needed` names.
    fn mirror(&self, needed: MirroredPart<'_>) -> Result<Option<Mirror>> {
        match &self.work {
            Some(folder) => Mirror::attach("output", folder, &self.output, needed).map(Some),
            None => Ok(None),
        }
    }

    /// Raw text to documents.
    ///
    /// # Errors
    /// As [`pipeline::run`].
    pub fn run_pipeline(&self, options: &RunOptions) -> Result<RunReport> {
        self.validate()?;
        // Of a rank's own tasks everything, of the others what says how far they are.
        let _mirror = self.mirror(&|name| {
            let kind = name.split('/').next().unwrap_or_default();
            ["documents", "stats", "dropped", "work"].contains(&kind)
                && task_of(name).is_none_or(|task| options.rank.does(task))
        })?;
        pipeline::run(self.folder(), &self.sources, &self.holdout, options)
    }

    /// Makes the decisions over all documents, after every rank has done its part.
    ///
    /// # Errors
    /// As [`pipeline::merge`].
    pub fn merge_pipeline(&self, options: &RunOptions) -> Result<RunReport> {
        self.validate()?;
        // What the ranks have counted and signed; of the documents their lengths are enough.
        let _mirror = self.mirror(&|name| {
            ["documents/", "stats/", "work/"].iter().any(|kind| name.starts_with(kind))
                && !name.ends_with(".parquet")
        })?;
        pipeline::merge(self.folder(), &self.sources, &self.holdout, options)
    }

    /// Trains the tokenizer on the training documents of all sources.
    ///
    /// # Errors
    /// As [`tokenizer::train`]; [`DataError::NotMade`] when a source has no documents yet;
    /// [`DataError::InUse`] when another process writes there.
    pub fn train_tokenizer(&self, progress: ProgressMode) -> Result<TrainReport> {
        self.validate()?;
        let model = self.tokenizer_model();
        if tokenizer::is_json(&model) {
            return Err(DataError::config(
                "tokenizer.model",
                model.display(),
                "a SentencePiece model to write; a tokenizer.json is used as it is, by `tokenize`",
            ));
        }
        let _mirror =
            self.mirror(&|name| name.starts_with("documents/") || name.starts_with("tokenizer."))?;
        // A model elsewhere needs the documents only.
        let lock = model.starts_with(self.folder()).then(|| lock(self.folder())).transpose()?;
        match (&lock, model.parent()) {
            (Some(_), _) => remove_unfinished(self.folder())?,
            (None, Some(folder)) => remove_abandoned(folder)?,
            (None, None) => {}
        }
        let mut files = Vec::new();
        for source in &self.sources {
            let folder = pipeline::documents_folder(self.folder(), &source.name);
            files.extend(list_documents(&folder, Some(Split::Train))?);
        }
        tokenizer::train(&self.tokenizer, &files, &model, progress)
    }

    /// Documents to token shards.
    ///
    /// # Errors
    /// As [`tokenize`], those of opening the tokenizer, and [`DataError::InUse`] when another process
    /// writes there.
    pub fn tokenize(&self, progress: ProgressMode) -> Result<TokenizeReport> {
        self.validate()?;
        let _mirror = self.mirror(&|name| {
            ["documents/", "tokens/", "tokenizer."].iter().any(|kind| name.starts_with(kind))
        })?;
        let lock = lock(self.folder())?;
        let tokenizer = Tokenizer::open(&self.tokenizer_model())?;
        let names: Vec<&str> = self.sources.iter().map(|source| source.name.as_str()).collect();
        tokenize(&lock, &names, &tokenizer, &self.shards, progress)
    }
}

/// The number of the task that a file of a source belongs to: of `dropped/web/stage0-00012.jsonl.zst`, 12.
/// Statistics, and what is about all tasks, belong to none.
fn task_of(name: &str) -> Option<usize> {
    let file = name.rsplit('/').next().filter(|file| !file.ends_with(".json"))?;
    let (_, rest) = file.rsplit_once('-')?;
    rest.split('.').next()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::loader::{Loader, LoaderOptions, ValidationSet};
    use crate::mixture::{MixtureConfig, MixtureSource};
    use crate::shard::tokens_folder;

    const YAML: &str = "
output: made
sources:
  - name: tales
    text: {paths: ['raw/tales/*.txt']}
  - name: notes
    text: {paths: [raw/notes.jsonl], format: jsonl}
holdout: {bytes_per_source: 500}
tokenizer: {vocab_size: 330, input_bytes: 100000}
shards: {tokens_per_shard: 500}
";

    fn config(folder: &Path) -> DataConfig {
        let tales = folder.join("raw/tales");
        std::fs::create_dir_all(&tales).unwrap();
        for number in 0..10 {
            let text = format!("Once upon a time, {number} whales swam.\n").repeat(20);
            std::fs::write(tales.join(format!("{number}.txt")), text).unwrap();
        }
        let lines: String = (0..40)
            .map(|number| {
                let text = format!("Note {number}: the sea is wide.\\n").repeat(5);
                format!("{{\"text\": \"{text}\"}}\n")
            })
            .collect();
        std::fs::write(folder.join("raw/notes.jsonl"), lines).unwrap();
        let mut config: DataConfig = serde_yaml::from_str(YAML).unwrap();
        config.make_paths_absolute(folder);
        config
    }

    #[test]
    fn raw_text_becomes_batches() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let options = RunOptions { progress: ProgressMode::Hidden, ..RunOptions::default() };
        let documents = config.run_pipeline(&options).unwrap();
        assert_eq!(documents.waterfall.as_ref().unwrap().rows.len(), 2);
        let trained = config.train_tokenizer(ProgressMode::Hidden).unwrap();
        assert_eq!(trained.model, folder.path().join("made/tokenizer.model"));
        let tokens = config.tokenize(ProgressMode::Hidden).unwrap();
        assert!(tokens.sources.iter().all(|source| !source.skipped));
        assert!(tokens.sources[0].shards.len() > 2, "several shards");
        let before: Vec<_> = tokens.sources.iter().map(|source| source.shards.clone()).collect();
        let again = config.tokenize(ProgressMode::Hidden).unwrap();
        assert!(again.sources.iter().all(|source| source.skipped));
        let after: Vec<_> = again.sources.iter().map(|source| source.shards.clone()).collect();
        assert_eq!(before, after);

        let tokenizer = Tokenizer::open(&config.tokenizer_model()).unwrap();
        let mixture = MixtureConfig::of(
            ["tales", "notes"]
                .map(|name| MixtureSource {
                    path: tokens_folder(&config.output, name),
                    weight: 1.0,
                })
                .into(),
        );
        let options = LoaderOptions {
            seq_len: 64,
            batch_size: 2,
            seed: 1,
            readers: 2,
            tokenizer_fingerprint: tokenizer.fingerprint().into(),
            vocab_size: 330,
            progress: ProgressMode::Hidden,
        };
        let mut loader = Loader::open(&mixture, options.clone()).unwrap();
        let batch = loader.next_batch().unwrap();
        let row: Vec<u32> = batch.inputs[..64].iter().map(|&id| id as u32).collect();
        let text = tokenizer.decode(&row).unwrap();
        assert!(text.contains("whales") || text.contains("the sea"), "{text:?}");
        let bytes: u64 = loader.report().iter().map(|source| source.bytes).sum();
        let train: u64 = documents.waterfall.unwrap().rows.iter().map(|row| row.train_bytes).sum();
        assert_eq!(bytes, train);

        let validation = ValidationSet::open(&mixture, &options).unwrap();
        assert!(validation.sources().iter().all(|source| source.bytes >= 500));
    }

    #[test]
    fn shards_are_the_same_bytes_for_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let options = RunOptions { progress: ProgressMode::Hidden, ..RunOptions::default() };
        config.run_pipeline(&options).unwrap();
        config.train_tokenizer(ProgressMode::Hidden).unwrap();
        let made = [1, 2, 7].map(|threads| {
            let tokens = config.output.join("tokens");
            if tokens.exists() {
                std::fs::remove_dir_all(&tokens).unwrap();
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let report = pool.install(|| config.tokenize(ProgressMode::Hidden)).unwrap();
            // The summaries hold a checksum of every file.
            report.sources.into_iter().map(|source| source.shards).collect::<Vec<_>>()
        });
        assert!(made[0] == made[1] && made[0] == made[2]);
    }

    #[test]
    fn changed_settings_write_new_shards_and_drop_old_ones() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let options = RunOptions { progress: ProgressMode::Hidden, ..RunOptions::default() };
        config.run_pipeline(&options).unwrap();
        config.train_tokenizer(ProgressMode::Hidden).unwrap();
        config.tokenize(ProgressMode::Hidden).unwrap();
        config.shards.tokens_per_shard = 1_000_000;
        let tokens = config.tokenize(ProgressMode::Hidden).unwrap();
        let source = &tokens.sources[0];
        assert!(!source.skipped);
        let files: Vec<_> = std::fs::read_dir(tokens_folder(&config.output, "tales"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".arrow"))
            .collect();
        assert_eq!(files.len(), source.shards.len());
    }

    #[test]
    fn a_file_belongs_to_its_task() {
        for (name, task) in [
            ("dropped/web/stage0-00012.jsonl.zst", Some(12)),
            ("documents/web/validation-00003.parquet", Some(3)),
            ("work/web/ids-00100", Some(100)),
            ("work/web/stage1-00002.decisions", Some(2)),
            ("work/web/stage1-resolved.json", None),
            ("stats/web/stage0-00012.json", None),
            ("documents/web-7/manifest.json", None),
        ] {
            assert_eq!(task_of(name), task, "{name}");
        }
    }
}
