//! What a source's folder of documents is meant to hold: `manifest.json`, and the files held
//! against it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{DocumentFile, DocumentFileSummary, Split};
use crate::error::{DataError, Result};
use crate::json_file::{JsonDigest, read_json, write_json};

/// How documents, and all that `altiplano data run` writes beside them, are made anew.
pub(crate) const RUN_AGAIN: &str = "`altiplano data run` makes anew what is not as it was written";

/// What a source's folder holds, with checksums. Nothing in it depends on the time, the machine
/// or where the folder lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentManifest {
    /// Name of the source.
    pub source: String,
    /// Kind of the source.
    pub kind: String,
    /// Version of its reader.
    pub version: u32,
    /// The steps, in order.
    pub steps: Vec<ManifestStep>,
    /// Documents in all files.
    pub documents: u64,
    /// Bytes of their text.
    pub text_bytes: u64,
    /// The files.
    pub files: Vec<DocumentFileSummary>,
    /// The input files, in order.
    pub inputs: Vec<ManifestInput>,
}

/// A step that the documents went through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestStep {
    /// Name of the step.
    pub step: String,
    /// Its version.
    pub version: u32,
}

/// An input file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestInput {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

impl DocumentManifest {
    /// Path of the manifest in the folder of a source.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("manifest.json")
    }

    /// Writes the manifest of `folder`.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(crate) fn write(&self, folder: &Path) -> Result<JsonDigest> {
        write_json(&Self::path(folder), self)
    }

    /// Reads the manifest of `folder`.
    ///
    /// # Errors
    /// [`DataError::Unfinished`] when there is none, [`DataError::Altered`] or
    /// [`DataError::BadFile`] when it is not as it was written.
    pub fn read(folder: &Path) -> Result<Self> {
        read_json(&Self::path(folder), RUN_AGAIN).map_err(|error| match error {
            missing if missing.is_not_found() => DataError::Unfinished {
                path: folder.to_owned(),
                source_name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            },
            error => error,
        })
    }
}

/// The documents of one source, as its manifest names them.
#[derive(Clone, Debug)]
pub struct SourceDocuments {
    /// The manifest.
    pub manifest: DocumentManifest,
    files: Vec<DocumentFile>,
}

impl SourceDocuments {
    /// Opens the folder of a source: its files must be those of the manifest, with the lengths
    /// that it says. Their bytes are compared when they are read, or by
    /// [`SourceDocuments::verify`].
    ///
    /// # Errors
    /// [`DataError::NotMade`] when the folder is not there, [`DataError::Unfinished`] when it has
    /// no manifest, [`DataError::Altered`] naming what is missing, altered or one too many.
    pub fn open(folder: &Path) -> Result<Self> {
        let found = parquet_names(folder)?;
        let manifest = DocumentManifest::read(folder)?;
        let mut named = BTreeSet::new();
        let mut files = Vec::with_capacity(manifest.files.len());
        for summary in &manifest.files {
            // Only the name counts: a manifest cannot point outside its folder.
            let name = Path::new(&summary.file).file_name().unwrap_or_default();
            named.insert(name.to_owned());
            files.push(DocumentFile::of_summary(&folder.join(name), summary)?);
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        match found.difference(&named).next() {
            Some(other) => Err(DataError::altered(
                folder.join(other),
                "no file of the manifest.json beside it",
                RUN_AGAIN,
            )),
            None => Ok(Self { manifest, files }),
        }
    }

    /// The files, sorted by name; `split` keeps only one side of the holdout.
    pub fn files(&self, split: Option<Split>) -> impl Iterator<Item = &DocumentFile> {
        self.files.iter().filter(move |file| file.is_of(split))
    }

    /// Reads every byte and holds it against the manifest. A file that was read before by way of
    /// this value, or a clone of it, is not read again.
    ///
    /// # Errors
    /// [`DataError::Altered`] naming the file.
    pub fn verify(&self) -> Result<()> {
        self.files.par_iter().try_for_each(DocumentFile::verify)
    }
}

/// Document files of `path`, sorted by name: the file itself, the files of a source folder, or
/// those of every source below a folder of sources. `split` keeps only one side of the holdout.
///
/// A folder with documents must have its manifest, and a file beside a manifest must be as it
/// says. A file without a manifest beside it is taken as it is.
///
/// # Errors
/// [`DataError::NotMade`] when there is none, and the errors of [`SourceDocuments::open`].
pub fn list_documents(path: &Path, split: Option<Split>) -> Result<Vec<DocumentFile>> {
    let mut files = Vec::new();
    if path.is_file() {
        files.push(open_file(path)?);
        files.retain(|file| file.is_of(split));
    } else if path.exists() {
        // In a data folder there are other files too.
        let documents = Some(path.join("documents")).filter(|folder| folder.is_dir());
        let root = documents.as_deref().unwrap_or(path);
        for entry in walkdir::WalkDir::new(root).follow_links(true).sort_by_file_name() {
            let entry = entry.map_err(|error| DataError::bad_file(root, error))?;
            if entry.file_type().is_dir() && holds_documents(entry.path())? {
                files.extend(SourceDocuments::open(entry.path())?.files(split).cloned());
            }
        }
    }
    if files.is_empty() {
        return Err(not_made(path));
    }
    Ok(files)
}

fn not_made(path: &Path) -> DataError {
    DataError::NotMade {
        path: path.to_owned(),
        expected: "documents (Parquet with their manifest.json)",
        command: "data run CONFIG",
    }
}

/// A single document file, held against the manifest beside it if there is one.
fn open_file(path: &Path) -> Result<DocumentFile> {
    let folder = path.parent().unwrap_or(Path::new(""));
    if !DocumentManifest::path(folder).exists() {
        return DocumentFile::open(path);
    }
    let manifest = DocumentManifest::read(folder)?;
    let name = path.file_name().map(|name| name.to_string_lossy());
    match manifest.files.iter().find(|summary| Some(summary.file.as_str()) == name.as_deref()) {
        Some(summary) => DocumentFile::of_summary(path, summary),
        None => Err(DataError::altered(path, "no file of the manifest.json beside it", RUN_AGAIN)),
    }
}

/// Whether `folder` is that of a source: it has document files, or a manifest that names some.
fn holds_documents(folder: &Path) -> Result<bool> {
    if !parquet_names(folder)?.is_empty() {
        return Ok(true);
    }
    // Token shards have a manifest of the same name.
    let Ok(bytes) = fs::read(DocumentManifest::path(folder)) else {
        return Ok(false);
    };
    let value: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    Ok(value.is_none_or(|manifest| manifest.get("files").is_some()))
}

/// Names of the Parquet files of `folder`, those under construction left out.
fn parquet_names(folder: &Path) -> Result<BTreeSet<OsString>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(not_made(folder));
        }
        Err(error) => return Err(DataError::io(folder)(error)),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry.map_err(DataError::io(folder))?.file_name();
        let text = name.to_string_lossy();
        if text.ends_with(".parquet") && !text.starts_with('.') {
            names.insert(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::document::{Document, DocumentWriter};

    /// Makes `folder` the folder of a source with these files of documents.
    fn write_source(folder: &Path, files: &[(&str, &[Document])]) -> DocumentManifest {
        let summaries: Vec<DocumentFileSummary> = files
            .iter()
            .map(|(name, documents)| {
                let mut writer = DocumentWriter::create(&folder.join(name)).unwrap();
                documents.iter().for_each(|document| writer.write(document).unwrap());
                writer.finish().unwrap()
            })
            .collect();
        let manifest = DocumentManifest {
            source: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            kind: "text".into(),
            version: 1,
            steps: Vec::new(),
            documents: summaries.iter().map(|summary| summary.documents).sum(),
            text_bytes: summaries.iter().map(|summary| summary.text_bytes).sum(),
            files: summaries,
            inputs: Vec::new(),
        };
        manifest.write(folder).unwrap();
        manifest
    }

    fn documents(name: &str) -> Vec<Document> {
        let document = |number: usize| Document {
            id: format!("{name}/{number}"),
            text: format!("Text {number} of {name}."),
            ..Document::default()
        };
        (0..20).map(document).collect()
    }

    const TRAIN: &str = "train-00000.parquet";
    const VALIDATION: &str = "validation-00000.parquet";

    /// Two sources below `documents` of a data folder.
    fn two_sources() -> (tempfile::TempDir, PathBuf) {
        let data = tempfile::tempdir().unwrap();
        let folder = data.path().join("documents");
        for name in ["a", "b"] {
            let (train, validation) = (documents(name), documents(&format!("{name}v")));
            write_source(&folder.join(name), &[(TRAIN, &train), (VALIDATION, &validation)]);
        }
        (data, folder)
    }

    /// Lists and reads everything.
    fn read(path: &Path, split: Option<Split>) -> Result<Vec<Document>> {
        let mut all = Vec::new();
        for file in list_documents(path, split)? {
            for document in file.reader()? {
                all.push(document?);
            }
        }
        Ok(all)
    }

    #[test]
    fn a_folder_a_file_and_all_sources_are_listed() {
        let (data, folder) = two_sources();
        fs::create_dir(data.path().join("tokens")).unwrap();
        fs::write(data.path().join("tokens/manifest.json"), "{\"shards\": []}").unwrap();
        fs::write(folder.join("a/.train-00001.parquet.tmp.1"), "half").unwrap();
        assert_eq!(read(data.path(), None).unwrap().len(), 80);
        assert_eq!(read(&folder, Some(Split::Validation)).unwrap().len(), 40);
        assert_eq!(read(&folder.join("b"), Some(Split::Train)).unwrap(), documents("b"));
        assert_eq!(read(&folder.join("b").join(VALIDATION), None).unwrap(), documents("bv"));
        let nothing = list_documents(&folder.join("c"), None).unwrap_err();
        assert!(matches!(nothing, DataError::NotMade { .. }), "{nothing}");
    }

    #[test]
    fn a_changed_byte_a_missing_and_a_swapped_file_are_named() {
        let (_data, folder) = two_sources();
        let path = folder.join("a").join(TRAIN);
        let named = |path: &Path, of: &Path| {
            let error = read(of, None).unwrap_err();
            assert!(matches!(error, DataError::Altered { .. }), "{error}");
            let error = error.to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains("altiplano data run"), "{error}");
        };
        let whole = fs::read(&path).unwrap();
        for at in [10, whole.len() / 2, whole.len() - 9] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            for of in [&folder, &folder.join("a"), &path] {
                named(&path, of);
            }
            let all = SourceDocuments::open(&folder.join("a")).unwrap();
            assert!(all.verify().unwrap_err().to_string().contains(TRAIN));
        }
        fs::remove_file(&path).unwrap();
        named(&path, &folder.join("a"));
        // Of the same length, from the other source.
        fs::copy(folder.join("b").join(TRAIN), &path).unwrap();
        named(&path, &path);
        fs::write(&path, whole).unwrap();
        read(&folder, None).unwrap();
        let surplus = folder.join("a/train-00001.parquet");
        fs::copy(&path, &surplus).unwrap();
        named(&surplus, &folder);
        named(&surplus, &surplus);
    }

    #[test]
    fn a_source_without_its_manifest_is_not_finished() {
        let (_data, folder) = two_sources();
        let manifest = DocumentManifest::path(&folder.join("a"));
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("a/19", "a/18")).unwrap();
        let error = list_documents(&folder, None).unwrap_err().to_string();
        assert!(error.contains("a/manifest.json: altered"), "{error}");
        fs::remove_file(&manifest).unwrap();
        for path in [&folder, &folder.join("a")] {
            let error = list_documents(path, None).unwrap_err().to_string();
            assert!(error.contains("\"a\" is not finished"), "{error}");
        }
        // A file given by itself may come from anywhere.
        assert_eq!(read(&folder.join("a").join(TRAIN), None).unwrap().len(), 20);
        fs::write(&manifest, text).unwrap();
        for name in [TRAIN, VALIDATION] {
            fs::remove_file(folder.join("a").join(name)).unwrap();
        }
        let error = list_documents(&folder, None).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }

    #[test]
    fn a_file_is_hashed_once() {
        let (_data, folder) = two_sources();
        let source = SourceDocuments::open(&folder.join("a")).unwrap();
        source.verify().unwrap();
        let path = folder.join("a").join(TRAIN);
        let length = fs::metadata(&path).unwrap().len() as usize;
        fs::write(&path, vec![0; length]).unwrap();
        source.verify().unwrap();
        assert!(SourceDocuments::open(&folder.join("a")).unwrap().verify().is_err());
    }
}
