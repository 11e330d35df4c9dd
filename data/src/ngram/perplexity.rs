//! The language model of one language in its folder, and the perplexity of texts.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::cutoffs::Cutoffs;
use super::estimate::EstimateReport;
use super::model::{NGramModel, Score};
use super::pieces::{PieceCache, Pieces};
use super::vocabulary::{UNKNOWN, WordId, is_plain};
use crate::error::{DataError, Result};
use crate::text::ccnet;

/// End of the name of the SentencePiece model.
const PIECES_ENDING: &str = ".sp.model";
/// End of the name of the n-gram model.
const NGRAMS_ENDING: &str = ".ngrams";

/// What is stored of a model besides the model: `<language>.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Description {
    /// ISO 639 code.
    pub language: String,
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
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(DataError::io(path))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            DataError::bad_file(path, format!("not the description of a language model: {error}"))
        })
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
    /// The languages that `folder` has n-grams for, sorted.
    ///
    /// # Errors
    /// [`DataError::Io`] when the folder cannot be listed.
    pub fn languages(folder: &Path) -> Result<Vec<String>> {
        let mut languages = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
            let name = entry.map_err(DataError::io(folder))?.file_name();
            let language = name.to_str().and_then(|name| name.strip_suffix(NGRAMS_ENDING));
            // Files that are not finished begin with a dot.
            languages.extend(language.filter(|name| !name.starts_with('.')).map(str::to_owned));
        }
        languages.sort_unstable();
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

    /// Opens the model of `language`.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file is missing; [`DataError::BadFile`] or
    /// [`DataError::Tokenizer`] when one is damaged.
    pub fn open(folder: &Path, language: &str) -> Result<Self> {
        let files = ModelFiles::new(folder, language);
        let description = match Description::read(&files.description) {
            // A model of other tools has none.
            Err(DataError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Description::default()
            }
            description => description?,
        };
        Ok(Self {
            language: language.to_owned(),
            pieces: Pieces::open(&files.pieces)?,
            ngrams: NGramModel::open(&files.ngrams)?,
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
