//! Documents to score: held-out ones of a data directory, or files of text, JSON lines and Parquet.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use altiplano_data::DataError;
use altiplano_data::document::{Split, list_documents};
use altiplano_data::source::{TextFormat, list_plain, plain_format, read_plain};
use serde::Serialize;

use crate::error::{Result, TrainerError};

/// Documents, and where they come from.
#[derive(Debug, Default)]
pub struct EvalDocuments {
    /// Source and text of each document, in the order of the paths.
    pub documents: Vec<(String, String)>,
    /// What was read of each file or data directory.
    pub origins: Vec<Origin>,
}

/// What was read of one file or data directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    /// The file or directory.
    pub path: PathBuf,
    /// What was taken of it.
    pub content: Content,
    /// Documents.
    pub documents: u64,
    /// Records that could not be used, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected: BTreeMap<String, u64>,
}

/// What was taken of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The held-out documents of a data directory.
    HeldOut,
    /// The documents of a data directory that were trained on.
    Train,
    /// All documents of a data directory or of a file that `altiplano data run` wrote.
    All,
    /// A file that is one text.
    Text,
    /// A file of JSON lines.
    Jsonl,
    /// A Parquet file from elsewhere.
    Parquet,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.content {
            Content::HeldOut => "held-out documents",
            Content::Train => "training documents",
            Content::All => "documents",
            Content::Text => "text",
            Content::Jsonl => "documents (JSON lines)",
            Content::Parquet => "documents (Parquet)",
        };
        write!(f, "{} {what} of {}", self.documents, self.path.display())?;
        if self.rejected.is_empty() {
            return Ok(());
        }
        let reasons: Vec<String> =
            self.rejected.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        write!(f, "; records left out: {}", reasons.join(", "))
    }
}

/// Reads the documents of `paths`. A path is a data directory (the `output` of a data configuration,
/// its `documents`, or a source of it), of which `split` is read, all of it when that is `None`; or a
/// file of text, JSON lines or Parquet, or a directory of such files, which are read whole.
///
/// # Errors
/// When a path holds no documents: what was expected there, and what makes them. When a file is
/// damaged.
pub fn read_documents(paths: &[PathBuf], split: Option<Split>) -> Result<EvalDocuments> {
    let mut read = EvalDocuments::default();
    for path in paths {
        if is_data_directory(path) && read.add_data_directory(path, split)? {
            continue;
        }
        if path.is_dir() {
            for file in list_plain(path)? {
                read.add_file(&file)?;
            }
        } else if path.exists() {
            read.add_file(path)?;
        } else {
            return Err(TrainerError::RunFile {
                path: path.clone(),
                reason: "does not exist; expected a file of text, JSON lines or Parquet, or the \
                         `output` of a data configuration, which `altiplano data run CONFIG` fills"
                    .into(),
            });
        }
    }
    if read.documents.is_empty() {
        let origins: Vec<String> = read.origins.iter().map(ToString::to_string).collect();
        return Err(TrainerError::Usage {
            message: format!("--documents: nothing to score: {}", origins.join("; ")),
        });
    }
    Ok(read)
}

/// Whether `altiplano data run` writes to this directory, to one above it or right below it.
fn is_data_directory(path: &Path) -> bool {
    let holds_documents = |folder: &Path| {
        let is_split = |name: &str| {
            let split = Split::ALL.iter().find_map(|split| name.strip_prefix(split.name()));
            split.is_some_and(|rest| rest.starts_with('-') && rest.ends_with(".parquet"))
        };
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        names.map(|entry| entry.file_name()).any(|name| {
            let name = name.to_string_lossy();
            name == "manifest.json" || is_split(&name)
        })
    };
    let children = || std::fs::read_dir(path).into_iter().flatten().flatten();
    path.join("documents").is_dir()
        || holds_documents(path)
        || children().any(|child| holds_documents(&child.path()))
}

impl EvalDocuments {
    /// False when there are no documents of `altiplano data run` in the directory and no folder for
    /// them.
    fn add_data_directory(&mut self, path: &Path, split: Option<Split>) -> Result<bool> {
        let content = match split {
            Some(Split::Validation) => Content::HeldOut,
            Some(Split::Train) => Content::Train,
            None => Content::All,
        };
        let files = match list_documents(path, split) {
            Err(DataError::NotMade { .. }) if list_documents(path, None).is_ok() => {
                return Err(TrainerError::RunFile {
                    path: path.to_path_buf(),
                    reason: format!(
                        "has no {} documents; `holdout` of the data configuration says what is held \
                         out, and --split all scores what there is",
                        if split == Some(Split::Train) { "training" } else { "held-out" }
                    ),
                });
            }
            Err(DataError::NotMade { .. }) if !path.join("documents").is_dir() => return Ok(false),
            files => files?,
        };
        let before = self.documents.len();
        for file in files {
            for document in file.reader()? {
                let document = document?;
                self.documents.push((document.source, document.text));
            }
        }
        self.add_origin(path, content, before, BTreeMap::new());
        Ok(true)
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let before = self.documents.len();
        if plain_format(path) == TextFormat::Parquet {
            match list_documents(path, None) {
                Ok(files) => {
                    for document in files.iter().map(|file| file.reader()) {
                        for document in document? {
                            let document = document?;
                            self.documents.push((document.source, document.text));
                        }
                    }
                    self.add_origin(path, Content::All, before, BTreeMap::new());
                    return Ok(());
                }
                // Not one of `altiplano data run`: its columns differ.
                Err(DataError::BadFile { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let file = read_plain(path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or(&name);
        let content = match file.format {
            TextFormat::Files => Content::Text,
            TextFormat::Jsonl => Content::Jsonl,
            TextFormat::Parquet => Content::Parquet,
        };
        self.documents.extend(
            file.documents.into_iter().map(|document| {
                (document.source.unwrap_or_else(|| stem.to_owned()), document.text)
            }),
        );
        self.add_origin(path, content, before, file.rejected);
        Ok(())
    }

    fn add_origin(
        &mut self,
        path: &Path,
        content: Content,
        before: usize,
        rejected: BTreeMap<String, u64>,
    ) {
        let documents = (self.documents.len() - before) as u64;
        self.origins.push(Origin { path: path.to_path_buf(), content, documents, rejected });
    }
}
