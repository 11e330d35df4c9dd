//! Papers of ArXiv in TeX.
//!
//! The archives are those of arXiv's bulk access (`arXiv_src_YYMM_NNN.tar`): members
//! `YYMM/<id>.gz`, each a gzipped tar of a project or one gzipped TeX file, and `YYMM/<id>.pdf`
//! for papers that have no source. One document is one paper: its TeX files joined.

mod inclusion;
mod project;
mod styles;
mod submission;

pub use project::{SplicedTex, splice_tex};

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::archive::{ArchiveError, Stream, inner_path, read_members, rfc3339};
use super::input::{Input, InputReader, list_inputs, literal_path, pattern_below};
use super::{ReadContext, Record, RecordSink, Rejection, SourceOptions};
use crate::document::{Document, Reason, metadata_text};
use crate::error::{DataError, Result};
use crate::fingerprint::modified_nanos;
use crate::storage::{InputFile, is_remote};
use crate::text::charset::{EncodingOptions, default_max_bad_bytes};
use project::{DecodedFiles, decode_files};
use submission::{Bounds, Files, Refusal, Submission, is_text, may_be_tex};

/// How the papers lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArxivFormat {
    /// `.tar` archives of many papers as arXiv offers them, or one submission a file (`.gz`,
    /// `.tex`).
    #[default]
    Archives,
    /// Folders that hold one unpacked project in each of their folders.
    Folders,
}

/// Papers of ArXiv.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArxivSource {
    /// Path patterns (list of strings), relative to the configuration: `*`, `?`, `[ab]`, `{a,b}`
    /// and `**` for any depth. For `folders`: the folders themselves.
    pub paths: Vec<PathBuf>,
    /// `archives` or `folders` (string, default `archives`).
    #[serde(default)]
    pub format: ArxivFormat,
    /// Undo the encoding of text that was encoded twice, `cafÃ©` (bool, default false).
    #[serde(default)]
    pub fix_mojibake: bool,
    /// Largest share of bytes that mean nothing in the encoding of a paper; a paper with more is
    /// dropped as `bad_encoding` (number, 0 to 1, default 0.05).
    #[serde(default = "default_max_bad_bytes")]
    pub max_bad_bytes: f64,
    /// Most TeX of one paper in bytes; papers with more are counted and skipped (integer, default
    /// 64 MiB).
    #[serde(default = "default_max_record_bytes")]
    pub max_record_bytes: usize,
    /// Most bytes of one paper, decompressed, with figures (integer, default 1 GiB). What expands
    /// further is counted and skipped.
    #[serde(default = "default_max_expanded_bytes")]
    pub max_expanded_bytes: u64,
}

fn default_max_record_bytes() -> usize {
    64 << 20
}
fn default_max_expanded_bytes() -> u64 {
    1 << 30
}

impl ArxivSource {
    /// Archives that match `paths`, all else at its default.
    pub fn archives(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            format: ArxivFormat::Archives,
            fix_mojibake: false,
            max_bad_bytes: default_max_bad_bytes(),
            max_record_bytes: default_max_record_bytes(),
            max_expanded_bytes: default_max_expanded_bytes(),
        }
    }

    fn encoding(&self) -> EncodingOptions {
        EncodingOptions { fix_mojibake: false, max_bad_bytes: self.max_bad_bytes }
    }

    fn bounds(&self) -> Bounds {
        Bounds { text: self.max_record_bytes, expanded: self.max_expanded_bytes }
    }
}

impl SourceOptions for ArxivSource {
    /// Version 1 took a bad byte for another encoding, and left out the authors' own macros. Version 2 did
    /// not read the encodings of DOS and of seven bits.
    fn version(&self) -> u32 {
        3
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        for path in &mut self.paths {
            *path = pattern_below(base, path);
        }
    }

    fn validate(&self, key: &str) -> Result<()> {
        if self.paths.is_empty() {
            let key = format!("{key}.paths");
            return Err(DataError::config(key, "an empty list", "at least one path"));
        }
        self.encoding().validate(key)?;
        if self.max_record_bytes == 0 || self.max_record_bytes > 1 << 30 {
            return Err(DataError::config(
                format!("{key}.max_record_bytes"),
                self.max_record_bytes,
                "1 to 1073741824",
            ));
        }
        if self.max_expanded_bytes < self.max_record_bytes as u64 {
            return Err(DataError::config(
                format!("{key}.max_expanded_bytes"),
                self.max_expanded_bytes,
                format!("max_record_bytes ({}) or more", self.max_record_bytes),
            ));
        }
        Ok(())
    }

    fn inputs(&self, key: &str) -> Result<Vec<Input>> {
        let key = format!("{key}.paths");
        match self.format {
            ArxivFormat::Archives => list_inputs(&key, &self.paths),
            ArxivFormat::Folders => list_projects(&key, &self.paths),
        }
    }

    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let input = context.input;
        if input.path.is_dir() {
            let paper = Paper::named(&input.name, None);
            let files = read_folder(&input.path, self.bounds());
            (context.bytes_read)(input.bytes);
            let record = self.record(context, &paper, 0, input.bytes, files);
            return sink(record?);
        }
        if input.name.ends_with(".tar") {
            return self.read_archive(context, sink);
        }
        let mut file = InputFile::open(&input.path)?;
        let submission = submission::read(&mut file, self.bounds());
        (context.bytes_read)(input.bytes);
        let paper = Paper::named(&input.name, None);
        sink(self.record(context, &paper, 0, input.bytes, submission)?)
    }
}

impl ArxivSource {
    fn read_archive(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let path = &context.input.path;
        let mut reader = InputReader::open(path)?;
        let mut stream = Stream::new(&mut reader, context.bytes_read);
        let result = read_members(&mut stream, &mut |member, body| {
            let reject = |reason, detail: String| {
                Record::Rejected(Rejection {
                    reason,
                    offset: member.offset,
                    bytes: member.bytes,
                    detail: format!("{}: {detail}", member.path),
                })
            };
            let Some(name) = inner_path(&member.path) else {
                let detail = "the path leaves the archive".to_owned();
                return Ok(sink(reject(Reason::broken("unsafe_path"), detail))?);
            };
            if !name.ends_with(".gz") {
                let reason = if name.ends_with(".pdf") { "pdf_only" } else { "other_member" };
                let detail = "not a .gz member".to_owned();
                return Ok(sink(reject(Reason::unwanted(reason), detail))?);
            }
            let paper = Paper::named(&name, Some(member.modified));
            let submission = submission::read(body, self.bounds());
            let record = self.record(context, &paper, member.offset, member.bytes, submission)?;
            // A member that the end of the archive cut short is not the paper's fault: the error
            // of the archive follows, if reading on shows one.
            if matches!(&record, Record::Rejected(rejection) if rejection.reason.is_error()) {
                std::io::copy(body, &mut std::io::sink())?;
            }
            Ok(sink(record)?)
        });
        match result {
            Ok(_) => Ok(()),
            Err(ArchiveError::Other(error)) => Err(error),
            Err(ArchiveError::Damaged { offset, reason }) => {
                Err(DataError::Archive { path: path.clone(), offset, reason })
            }
        }
    }

    fn record(
        &self,
        context: &ReadContext<'_>,
        paper: &Paper,
        offset: u64,
        bytes: u64,
        submission: std::result::Result<Submission, Refusal>,
    ) -> Result<Record> {
        let reject = |reason, detail: String| {
            let detail = format!("{}: {detail}", paper.id);
            Record::Rejected(Rejection { reason, offset, bytes, detail })
        };
        let (files, count) = match submission {
            Err(Refusal::Failed(error)) => return Err(error),
            Err(Refusal::Rejected(reason, detail)) => return Ok(reject(reason, detail)),
            Ok(Submission::Project { files, count }) => (files, count),
            Ok(Submission::Single(content)) => {
                (BTreeMap::from([(format!("{}.tex", paper.stem), content)]), 1)
            }
        };
        let DecodedFiles { texts: files, encodings, lossy, all } = decode_files(files);
        if let Err((reason, detail)) = self.encoding().check(&all) {
            return Ok(reject(reason, detail));
        }
        let Some(spliced) = splice_tex(&files) else {
            let detail = format!("{count} files, none of them TeX that could be the root");
            return Ok(reject(Reason::unwanted("no_root"), detail));
        };
        let mut metadata = json!({
            "arxiv_id": paper.id,
            "yymm": paper.yymm,
            "timestamp": paper.timestamp,
            "root": spliced.root,
            "n_files": count,
            "n_tex_files": spliced.n_tex_files,
            "n_used_files": spliced.n_used_files,
            "n_missing_files": spliced.n_missing_files,
            "n_lossy_files": lossy,
            "encodings": encodings,
        });
        if let Some(metadata) = metadata.as_object_mut() {
            all.note(metadata);
        }
        let record = super::record::document_or_empty(
            Document {
                id: paper.id.clone(),
                text: spliced.text,
                source: context.source.to_owned(),
                url: paper.yymm.as_ref().map(|_| format!("https://arxiv.org/abs/{}", paper.id)),
                created: paper.timestamp.clone(),
                metadata: Some(metadata_text(metadata)),
                ..Document::default()
            },
            offset,
        );
        Ok(super::record::with_fixed_text(record, self.fix_mojibake))
    }
}

/// A paper as its file name tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Paper {
    /// ArXiv's identifier, or the name when it is none.
    id: String,
    /// Year and month, if the name is an identifier.
    yymm: Option<String>,
    /// The last part of the name without its ending.
    stem: String,
    /// Time of the last change.
    timestamp: Option<String>,
}

impl Paper {
    /// From a name like `0704/0704.0001.gz` or `0001/math0001001.gz`. Identifiers are as in
    /// RedPajama: `math0001001` is `math/0001001`, `0704.0001` stays.
    fn named(name: &str, modified: Option<u64>) -> Self {
        let file = name.rsplit('/').next().unwrap_or(name);
        let mut stem = file;
        for ending in [".tgz", ".gz", ".tar", ".tex", ".pdf"] {
            stem = stem.strip_suffix(ending).unwrap_or(stem);
        }
        let letters = |c: char| c.is_ascii_alphabetic() || c == '-';
        let number = stem.trim_start_matches(letters);
        let archive = &stem[..stem.len() - number.len()];
        // Versions do not make another paper.
        let plain = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        };
        let number = match number.split_once('v') {
            Some((before, version)) if plain(version) => before,
            _ => number,
        };
        let yymm = number.get(..4).filter(|_| plain(number) && number.len() >= 7);
        let id = match (yymm, archive) {
            (None, _) => name.to_owned(),
            (Some(_), "") => number.to_owned(),
            (Some(_), _) => format!("{archive}/{number}"),
        };
        Self {
            id,
            yymm: yymm.map(str::to_owned),
            stem: stem.to_owned(),
            timestamp: modified.filter(|&seconds| seconds > 0).map(rfc3339),
        }
    }
}

/// The folders in each of `folders`, as inputs sorted by name.
fn list_projects(key: &str, folders: &[PathBuf]) -> Result<Vec<Input>> {
    let mut inputs: BTreeMap<String, Input> = BTreeMap::new();
    for folder in folders {
        let before = inputs.len();
        let folder = &literal_path(folder);
        if is_remote(folder) {
            let expected = "folders of this machine; from a bucket, `archives`";
            return Err(DataError::config(key, folder.display(), expected));
        }
        if !folder.is_dir() {
            let pattern = folder.display().to_string();
            return Err(DataError::NoInput { key: key.to_owned(), pattern });
        }
        for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
            let path = entry.map_err(DataError::io(folder))?.path();
            if !path.is_dir() {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let (mut bytes, mut modified) = (0, 0);
            for file in project_files(&path) {
                let file = file.map_err(|error| DataError::io(&path)(error.into()))?;
                let metadata = file.metadata().map_err(|e| DataError::io(file.path())(e.into()))?;
                bytes += metadata.len();
                modified = modified.max(modified_nanos(&metadata));
            }
            let input =
                Input { path, name: name.clone(), bytes, modified_nanos: modified, etag: None };
            if let Some(other) = inputs.insert(name, input) {
                return Err(DataError::config(
                    key,
                    format!("two folders named {:?}", other.name),
                    "projects with different names, because document ids are made from them",
                ));
            }
        }
        if inputs.len() == before {
            let pattern = folder.display().to_string();
            return Err(DataError::NoInput { key: key.to_owned(), pattern });
        }
    }
    Ok(inputs.into_values().collect())
}

/// The regular files under `folder`, sorted; links are not followed.
fn project_files(
    folder: &Path,
) -> impl Iterator<Item = std::result::Result<walkdir::DirEntry, walkdir::Error>> {
    let walk = walkdir::WalkDir::new(folder).sort_by_file_name();
    walk.into_iter().filter(|entry| {
        entry.as_ref().is_err() || entry.as_ref().is_ok_and(|entry| entry.file_type().is_file())
    })
}

fn read_folder(folder: &Path, bounds: Bounds) -> std::result::Result<Submission, Refusal> {
    let mut files = Files::new();
    let (mut count, mut total) = (0, 0);
    for entry in project_files(folder) {
        let failed = |error| Refusal::Failed(DataError::io(folder)(error));
        let entry = entry.map_err(|error| failed(error.into()))?;
        count += 1;
        let below = entry.path().strip_prefix(folder).unwrap_or(entry.path()).to_string_lossy();
        let Some(path) = inner_path(&below).filter(|path| may_be_tex(path)) else { continue };
        let mut content = Vec::new();
        let file = File::open(entry.path()).map_err(failed)?;
        let left = (bounds.text - total) as u64;
        file.take(left + 1).read_to_end(&mut content).map_err(failed)?;
        if content.len() as u64 > left {
            let detail = format!("more than {} bytes, see max_record_bytes", bounds.text);
            return Err(Refusal::Rejected(Reason::TOO_LONG, detail));
        }
        if is_text(&content) {
            total += content.len();
            files.insert(path, content);
        }
    }
    Ok(Submission::Project { files, count })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
