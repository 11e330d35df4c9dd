//! Text whose language is known: lines `__label__xx text`, or a folder per language.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use walkdir::WalkDir;

use crate::error::{DataError, Result};
use crate::progress::{CountedReader, Progress};

const PREFIX: &str = "__label__";
/// Longest line taken in, in bytes; the rest of a longer one is skipped.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// A file of labelled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LabelledFile {
    pub path: PathBuf,
    /// The language of the whole file; none when each line says its own.
    pub language: Option<String>,
}

/// Lines that could not be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Skipped {
    pub not_utf8: u64,
    pub no_label: u64,
}

/// The files of `inputs`, sorted: a file holds labelled lines; a folder holds a folder per
/// language, named by its code, with plain text at any depth.
pub(super) fn list(inputs: &[PathBuf]) -> Result<Vec<LabelledFile>> {
    let mut files = Vec::new();
    for input in inputs {
        let before = files.len();
        if input.is_dir() {
            for entry in WalkDir::new(input).min_depth(2).sort_by_file_name() {
                let entry = entry.map_err(|error| DataError::bad_file(input, error))?;
                let below = entry.path().strip_prefix(input).ok();
                let language = below.and_then(|below| below.iter().next());
                if let (true, Some(language)) = (entry.file_type().is_file(), language) {
                    let language = Some(language.to_string_lossy().into_owned());
                    files.push(LabelledFile { path: entry.into_path(), language });
                }
            }
        } else if input.is_file() {
            files.push(LabelledFile { path: input.clone(), language: None });
        }
        if files.len() == before {
            return Err(DataError::NoInput {
                key: "inputs".into(),
                pattern: input.display().to_string(),
            });
        }
    }
    Ok(files)
}

impl LabelledFile {
    /// Hands each line to `visit` with its language. Files may end in `.gz`; `progress` counts
    /// their bytes as they are.
    pub fn each(
        &self,
        skipped: &mut Skipped,
        progress: &Progress,
        mut visit: impl FnMut(&str, &str) -> Result<()>,
    ) -> Result<()> {
        let file = File::open(&self.path).map_err(DataError::io(&self.path))?;
        let file = BufReader::new(CountedReader::new(file, progress));
        let packed = self.path.extension().is_some_and(|extension| extension == "gz");
        let mut reader: Box<dyn BufRead + '_> = if packed {
            Box::new(BufReader::new(MultiGzDecoder::new(file)))
        } else {
            Box::new(file)
        };
        let mut bytes = Vec::new();
        while read_line(&mut reader, &mut bytes, &self.path)? {
            let Ok(line) = std::str::from_utf8(&bytes) else {
                skipped.not_utf8 += 1;
                continue;
            };
            match &self.language {
                Some(language) => visit(language, line)?,
                None if line.trim().is_empty() => {}
                None => match labelled(line) {
                    Some((language, text)) => visit(language, text)?,
                    None => skipped.no_label += 1,
                },
            }
        }
        Ok(())
    }
}

/// The first label of a line and the text after it.
fn labelled(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start_matches('\u{feff}').trim_start();
    let (label, text) = line.strip_prefix(PREFIX)?.split_once(|c: char| c.is_ascii_whitespace())?;
    (!label.is_empty()).then_some((label, text))
}

/// Reads a line without its end; a longer one than the bound is cut at a character.
fn read_line(reader: &mut dyn BufRead, bytes: &mut Vec<u8>, path: &Path) -> Result<bool> {
    bytes.clear();
    let mut bounded = (&mut *reader).take(MAX_LINE_BYTES);
    let read = bounded.read_until(b'\n', bytes).map_err(DataError::io(path))?;
    if read == 0 {
        return Ok(false);
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    } else if read as u64 == MAX_LINE_BYTES {
        skip_line(reader).map_err(DataError::io(path))?;
        while bytes.pop_if(|byte| *byte & 0xc0 == 0x80).is_some() {}
        bytes.pop();
    }
    Ok(true)
}

fn skip_line(reader: &mut dyn BufRead) -> std::io::Result<()> {
    loop {
        let available = reader.fill_buf()?;
        let feed = available.iter().position(|&byte| byte == b'\n');
        let length = feed.map_or(available.len(), |at| at + 1);
        reader.consume(length);
        if feed.is_some() || length == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(file: &LabelledFile) -> (Vec<(String, String)>, Skipped) {
        let mut found = Vec::new();
        let mut skipped = Skipped::default();
        file.each(&mut skipped, &Progress::hidden(), |language, text| {
            found.push((language.to_owned(), text.to_owned()));
            Ok(())
        })
        .unwrap();
        (found, skipped)
    }

    #[test]
    fn both_layouts_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::write(
            root.join("l.txt"),
            b"__label__en a b\n\nno label\n__label__fr \xff\n  __label__de\tc",
        )
        .unwrap();
        std::fs::create_dir_all(root.join("tree/de/deep")).unwrap();
        std::fs::create_dir_all(root.join("tree/ca")).unwrap();
        std::fs::write(root.join("tree/de/deep/a.txt"), "eins\nzwei").unwrap();
        std::fs::write(root.join("tree/ca/b.txt"), "u\n").unwrap();
        std::fs::write(root.join("tree/README"), "not a language").unwrap();

        let files = list(&[root.join("l.txt"), root.join("tree")]).unwrap();
        let languages: Vec<_> = files.iter().map(|file| file.language.as_deref()).collect();
        assert_eq!(languages, [None, Some("ca"), Some("de")]);
        let (found, skipped) = lines(&files[0]);
        assert_eq!(found, [("en".into(), "a b".into()), ("de".into(), "c".into())]);
        assert_eq!(skipped, Skipped { not_utf8: 1, no_label: 1 });
        let (found, _) = lines(&files[2]);
        assert_eq!(found, [("de".into(), "eins".into()), ("de".into(), "zwei".into())]);
        assert!(list(&[root.join("missing")]).is_err());
    }

    #[test]
    fn a_long_line_is_cut_and_the_next_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.txt");
        let text = format!("x{}\nnext\n", "é".repeat(MAX_LINE_BYTES as usize));
        std::fs::write(&path, text).unwrap();
        let (found, skipped) = lines(&LabelledFile { path, language: Some("fr".into()) });
        assert_eq!(found.len(), 2);
        assert_eq!(skipped, Skipped::default());
        assert!(found[0].1.len() as u64 > MAX_LINE_BYTES - 4);
        assert_eq!(found[1].1, "next");
    }
}
