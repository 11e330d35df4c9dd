//! The language model of one language in its folder, and the perplexity of texts.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::cutoffs::Cutoffs;
use super::estimate::EstimateReport;
use super::model::{NGramModel, Score};
use super::pieces::{PieceCache, Pieces};
use super::vocabulary::{UNKNOWN, WordId, is_plain};
use crate::atomic_file::{remove_durably, sync_folder};
use crate::checksum::FileDigest;
use crate::error::{DataError, Result};
use crate::json_file::{read_json, write_json};
use crate::text::ccnet;

/// End of the name of the SentencePiece model.
const PIECES_ENDING: &str = ".sp.model";
/// End of the name of the n-gram model.
const NGRAMS_ENDING: &str = ".ngrams";
/// What to do about a model that is not as it was written.
const TRAIN_AGAIN: &str = "make the model again with `altiplano data train-lm`";

/// What a model is made of, and what is stored of it besides: `<language>.json`. It is written
/// last, so it makes the other files one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    /// ISO 639 code.
    pub language: String,
    /// The SentencePiece model.
    pub pieces: FileDigest,
    /// Checksum of the n-gram model.
    pub ngrams: String,
    /// What was counted, unless the model was imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimate: Option<EstimateReport>,
    /// Documents the percentiles come from.
    #[serde(default)]
    pub sample_documents: u64,
    /// Percentiles 0 to 99 of the perplexity of the sample; empty if there was none.
    #[serde(default)]
    pub percentiles: Vec<f64>,
}

/// The files of a language in a folder of models.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelFiles {
    pub pieces: PathBuf,
    pub ngrams: PathBuf,
    pub arpa: PathBuf,
    pub description: PathBuf,
}

impl ModelFiles {
    /// Moves a whole model of the same file system to where `to` says, replacing the one there.
    /// A crash leaves the old model, the new one, or one without its description, which does not
    /// open.
    pub fn move_to(&self, to: &Self) -> Result<()> {
        remove_durably(&to.description)?;
        let Self { pieces, ngrams, arpa, description } = self;
        let others = [(pieces, &to.pieces), (ngrams, &to.ngrams), (arpa, &to.arpa)];
        for (from, to) in others.into_iter().filter(|(from, _)| from.exists()) {
            std::fs::rename(from, to).map_err(DataError::io(to))?;
        }
        let folder = to.description.parent().unwrap_or(Path::new("."));
        sync_folder(folder)?;
        std::fs::rename(description, &to.description).map_err(DataError::io(&to.description))?;
        sync_folder(folder)
    }

    pub fn new(folder: &Path, language: &str) -> Self {
        let file = |ending: &str| folder.join(format!("{language}{ending}"));
        Self {
            pieces: file(PIECES_ENDING),
            ngrams: file(NGRAMS_ENDING),
            arpa: file(".arpa"),
            description: file(".json"),
        }
    }
}

impl Description {
    /// Reads a description, without which a model is not finished.
    pub fn read(path: &Path) -> Result<Self> {
        read_json(path, TRAIN_AGAIN).map_err(|error| match error {
            missing if missing.is_not_found() => {
                DataError::altered(path, "missing, so the model is not finished", TRAIN_AGAIN)
            }
            error => error,
        })
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self).map(drop)
    }
}

/// A language model: SentencePiece pieces, n-grams and cut-offs. A folder holds the models of
/// any number of languages: `<language>.sp.model`, `<language>.ngrams` and `<language>.json`.
#[derive(Debug)]
pub struct PerplexityModel {
    language: String,
    pieces: Pieces,
    ngrams: NGramModel,
    cutoffs: Option<Cutoffs>,
    /// Work spaces not in use. There are as many as threads ever scored at once.
    idle: Mutex<Vec<WorkSpace>>,
}

#[derive(Default)]
struct WorkSpace {
    cache: PieceCache,
    ids: Vec<WordId>,
}

impl std::fmt::Debug for WorkSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkSpace").finish_non_exhaustive()
    }
}

impl PerplexityModel {
    /// The languages that `folder` has n-grams or pieces for, sorted. One of them alone is a model
    /// that does not open.
    ///
    /// # Errors
    /// [`DataError::Io`] when the folder cannot be listed.
    pub fn languages(folder: &Path) -> Result<Vec<String>> {
        let mut languages = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
            let name = entry.map_err(DataError::io(folder))?.file_name();
            let language = name.to_str().and_then(|name| {
                name.strip_suffix(NGRAMS_ENDING).or(name.strip_suffix(PIECES_ENDING))
            });
            // Files that are not finished begin with a dot.
            languages.extend(language.filter(|name| !name.starts_with('.')).map(str::to_owned));
        }
        languages.sort_unstable();
        languages.dedup();
        Ok(languages)
    }

    /// The files of `folder` that models are read from, sorted.
    ///
    /// # Errors
    /// As [`PerplexityModel::languages`].
    pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
        let languages = Self::languages(folder)?;
        let files = languages.iter().flat_map(|language| {
            let ModelFiles { pieces, ngrams, description, .. } = ModelFiles::new(folder, language);
            [pieces, ngrams, description]
        });
        Ok(files.filter(|file| file.exists()).collect())
    }

    /// Opens the model of `language`: pieces, n-grams and cut-offs that were made together.
    ///
    /// # Errors
    /// [`DataError::Altered`] naming the file that is missing, not as it was written or of another
    /// model; [`DataError::BadFile`] or [`DataError::Tokenizer`] when one is of another version.
    pub fn open(folder: &Path, language: &str) -> Result<Self> {
        let files = ModelFiles::new(folder, language);
        let description = Description::read(&files.description)?;
        let pieces = description.pieces.read(&files.pieces, TRAIN_AGAIN)?;
        let pieces = Pieces::from_bytes(&files.pieces, &pieces)?;
        let ngrams = NGramModel::open(&files.ngrams)?;
        if ngrams.checksum() != description.ngrams {
            let difference = format!(
                "of another model: its checksum is {}, expected {}",
                ngrams.checksum(),
                description.ngrams
            );
            return Err(DataError::altered(&files.ngrams, difference, TRAIN_AGAIN));
        }
        Ok(Self {
            language: language.to_owned(),
            pieces,
            ngrams,
            cutoffs: Cutoffs::from_percentiles(&description.percentiles),
            idle: Mutex::default(),
        })
    }

    /// The language.
    pub fn language(&self) -> &str {
        &self.language
    }

    /// The n-grams.
    pub fn ngrams(&self) -> &NGramModel {
        &self.ngrams
    }

    /// The cut-offs that were computed with the model, if there are any.
    pub fn cutoffs(&self) -> Option<Cutoffs> {
        self.cutoffs
    }

    /// Scores `text`: all of it is one sentence, as in CCNet.
    ///
    /// # Errors
    /// [`DataError::Codec`] when SentencePiece fails.
    pub fn score(&self, text: &str) -> Result<Score> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut space = idle().pop().unwrap_or_default();
        space.ids.clear();
        let vocabulary = self.ngrams.vocabulary();
        let id = |word: &str| Ok(Some(if is_plain(word) { vocabulary.id(word) } else { UNKNOWN }));
        let normalized = ccnet::normalize(text);
        self.pieces.ids(&normalized, &mut space.cache, &mut space.ids, id)?;
        let score = self.ngrams.score_sentence(space.ids.iter().copied());
        idle().push(space);
        Ok(score)
    }

    /// The perplexity of `text`, rounded to one decimal as in CCNet.
    ///
    /// # Errors
    /// As [`PerplexityModel::score`].
    pub fn perplexity(&self, text: &str) -> Result<f64> {
        let perplexity = self.score(text)?.perplexity();
        // Rounds the exact value, half to even, as Python's `round` does.
        Ok(format!("{perplexity:.1}").parse().unwrap_or(perplexity))
    }
}
