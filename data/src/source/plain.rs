//! Text files of any kind, without a configuration: the name of a file says how it is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::input::describe;
use super::text::{TextFormat, TextSource};
use super::{Input, ReadContext, Record, SourceOptions};
use crate::error::{DataError, Result};

/// Endings of JSON lines.
const JSON_ENDINGS: [&str; 3] = ["jsonl", "ndjson", "json"];
/// Endings of files that are one text.
const TEXT_ENDINGS: [&str; 3] = ["txt", "text", "md"];
/// Endings of compressed files.
const COMPRESSED: [&str; 2] = ["gz", "zst"];

/// The text of one document, and the source that its record names, if any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainText {
    /// Its text.
    pub text: String,
    /// Its field `source`.
    pub source: Option<String>,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainFile {
    /// How it was read.
    pub format: TextFormat,
    /// The documents, in order.
    pub documents: Vec<PlainText>,
    /// How many records could not be used, by reason.
    pub rejected: BTreeMap<String, u64>,
}

/// How a file of this name is read; whole when the name says nothing. Compressed files have one more
/// ending, `.gz` or `.zst`.
pub fn plain_format(path: &Path) -> TextFormat {
    format_of(path).unwrap_or(TextFormat::Files)
}

fn format_of(path: &Path) -> Option<TextFormat> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    let (stem, last) = name.rsplit_once('.')?;
    let compressed = COMPRESSED.contains(&last);
    let ending = if compressed { stem.rsplit_once('.')?.1 } else { last };
    match ending {
        "parquet" if !compressed => Some(TextFormat::Parquet),
        ending if JSON_ENDINGS.contains(&ending) => Some(TextFormat::Jsonl),
        ending if TEXT_ENDINGS.contains(&ending) => Some(TextFormat::Files),
        _ => None,
    }
}

/// Reads a file of text, JSON lines (an object a line, its text in `text`) or Parquet (a row a
/// document, its text in the column `text`).
///
/// # Errors
/// [`DataError::Io`], [`DataError::Archive`] or [`DataError::BadFile`] when the file cannot be read.
/// Records that cannot be used are counted.
pub fn read_plain(path: &Path) -> Result<PlainFile> {
    let format = plain_format(path);
    let options = TextSource {
        format: Some(format),
        // The text is taken as it is.
        unix_newlines: false,
        // Nothing but the text and its source is asked for, so the source goes where an address goes.
        url_field: "source".into(),
        ..TextSource::files(vec![path.to_owned()])
    };
    let input: Input = describe(path, path)?;
    let context = ReadContext {
        source: "",
        input: &input,
        scratch: Path::new(""),
        memory_bytes: 0,
        bytes_read: &|_| {},
    };
    let mut file = PlainFile { format, documents: Vec::new(), rejected: BTreeMap::new() };
    options.read(&context, &mut |record| {
        match record {
            Record::Document(document) => {
                file.documents.push(PlainText { text: document.text, source: document.url });
            }
            Record::Rejected(rejection) => {
                *file.rejected.entry(rejection.reason.name().to_owned()).or_default() += 1;
            }
        }
        Ok(())
    })?;
    Ok(file)
}

/// The files below `folder` whose names say that they hold text, sorted.
///
/// # Errors
/// [`DataError::BadFile`] when there is none, or a folder cannot be read.
pub fn list_plain(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true).sort_by_file_name() {
        let entry = entry.map_err(|error| DataError::bad_file(folder, error))?;
        // Logs and manifests are not text that anybody means.
        if ["manifest.json", "metrics.jsonl"].iter().any(|name| entry.path().join(name).is_file()) {
            return Err(DataError::bad_file(
                folder,
                format!(
                    "{} in it is a run or has documents of `altiplano data run`: name the data \
                     directory (the `output` of its configuration) or the files to read",
                    entry.path().display()
                ),
            ));
        }
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if entry.file_type().is_file() && !hidden && format_of(entry.path()).is_some() {
            files.push(entry.into_path());
        }
    }
    if files.is_empty() {
        return Err(DataError::bad_file(
            folder,
            format!(
                "no text in it; expected the output of `altiplano data run`, or files that end in \
                 {}, {} or parquet, the first ones also in {}",
                TEXT_ENDINGS.join(", "),
                JSON_ENDINGS.join(", "),
                COMPRESSED.join(" or ")
            ),
        ));
    }
    Ok(files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_how_a_file_is_read() {
        for (name, format) in [
            ("a.txt", Some(TextFormat::Files)),
            ("a.TXT.gz", Some(TextFormat::Files)),
            ("b.jsonl", Some(TextFormat::Jsonl)),
            ("b.json.zst", Some(TextFormat::Jsonl)),
            ("c.parquet", Some(TextFormat::Parquet)),
            ("c.parquet.gz", None),
            ("d.arrow", None),
            ("txt", None),
            ("README", None),
        ] {
            assert_eq!(format_of(Path::new(name)), format, "{name}");
        }
    }

    #[test]
    fn records_that_cannot_be_used_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        let lines = "{\"text\": \"one\", \"source\": \"a\"}\n{\"text\": \"two\"}\n{\n{\"text\": \" \"}\n[]\n";
        std::fs::write(&path, lines).unwrap();
        let file = read_plain(&path).unwrap();
        let text = |text: &str, source: Option<&str>| PlainText {
            text: text.into(),
            source: source.map(str::to_owned),
        };
        assert_eq!(file.documents, [text("one", Some("a")), text("two", None)]);
        let expected = [("bad_json".to_owned(), 2), ("empty".to_owned(), 1)];
        assert_eq!(file.rejected.into_iter().collect::<Vec<_>>(), expected);

        std::fs::write(folder.path().join("y.txt"), "a\r\nb").unwrap();
        assert_eq!(read_plain(&folder.path().join("y.txt")).unwrap().documents[0].text, "a\r\nb");
        let listed = list_plain(folder.path()).unwrap();
        assert_eq!(listed, [path, folder.path().join("y.txt")]);
        let empty = tempfile::tempdir().unwrap();
        assert!(list_plain(empty.path()).unwrap_err().to_string().contains("jsonl"));
    }
}
