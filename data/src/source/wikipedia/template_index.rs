//! Templates by name, on the disk.
//!
//! A file holds the definitions of one dump one after the other, then a table of entries of
//! [`ENTRY_BYTES`]: the hash of language and name, where the definition lies, how long it is, and
//! whether it is the name of another template. Only the tables are held in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::atomic_file::AtomicFile;
use crate::checksum::FileDigest;
use crate::document::RUN_AGAIN;
use crate::error::{DataError, Result};

/// Bytes of an entry of the table: hash, place, length, kind.
const ENTRY_BYTES: usize = 32;
/// Entries that are held in memory, 128 MB of them. Those of later files are left out.
const MOST_TEMPLATES: usize = 4 << 20;
/// Longest definition, in bytes. MediaWiki's longest page has 2 MiB.
const LONGEST_DEFINITION: usize = 2 << 20;
/// Redirects that are followed, one after the other.
const MOST_REDIRECTS: usize = 3;
/// Longest name of a page, in bytes.
const LONGEST_NAME: usize = 255;

/// What is written beside a file of definitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateFile {
    /// What the file depends on.
    pub key: String,
    /// The file.
    pub digest: FileDigest,
    /// Its templates.
    pub templates: u64,
    /// Templates that are too long.
    pub too_long: u64,
    /// Where its table begins.
    pub table: u64,
    /// Language of the dump; none when it was not read.
    pub language: Option<String>,
    /// Names of the namespace of templates, in lower case.
    pub namespace: Vec<String>,
}

/// Where a definition lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    hash: u128,
    offset: u64,
    length: u32,
    /// It is the name of another template.
    redirect: bool,
    file: u16,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..16].copy_from_slice(&self.hash.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..].copy_from_slice(&u32::from(self.redirect).to_le_bytes());
        bytes
    }

    fn of_bytes(bytes: &[u8; ENTRY_BYTES], file: u16) -> Self {
        let number = |range: std::ops::Range<usize>| {
            bytes[range].iter().rev().fold(0, |sum: u128, &byte| sum << 8 | u128::from(byte))
        };
        Self {
            hash: number(0..16),
            offset: number(16..24) as u64,
            length: number(24..28) as u32,
            redirect: number(28..32) != 0,
            file,
        }
    }
}

/// Writes a file of definitions.
pub(super) struct TemplateWriter<'a> {
    path: &'a Path,
    file: AtomicFile,
    entries: Vec<Entry>,
    written: u64,
    too_long: u64,
}

impl<'a> TemplateWriter<'a> {
    pub fn create(path: &'a Path) -> Result<Self> {
        let file = AtomicFile::create(path)?;
        Ok(Self { path, file, entries: Vec::new(), written: 0, too_long: 0 })
    }

    /// Adds a template of `language`, its name without the namespace.
    pub fn add(&mut self, language: &str, name: &str, text: &str, redirect: bool) -> Result<()> {
        let Some(name) = page_name(name) else { return Ok(()) };
        if text.len() > LONGEST_DEFINITION || self.entries.len() >= MOST_TEMPLATES {
            self.too_long += 1;
            return Ok(());
        }
        self.file.write_all(text.as_bytes()).map_err(DataError::io(self.path))?;
        self.entries.push(Entry {
            hash: hash(language, &name),
            offset: self.written,
            length: text.len() as u32,
            redirect,
            file: 0,
        });
        self.written += text.len() as u64;
        Ok(())
    }

    /// Writes the table. The first of several templates of a name counts.
    pub fn finish(
        mut self,
        key: String,
        language: Option<String>,
        namespace: Vec<String>,
    ) -> Result<TemplateFile> {
        self.entries.sort_by_key(|entry| entry.hash);
        self.entries.dedup_by_key(|entry| entry.hash);
        for entry in &self.entries {
            self.file.write_all(&entry.to_bytes()).map_err(DataError::io(self.path))?;
        }
        Ok(TemplateFile {
            key,
            digest: self.file.commit()?,
            templates: self.entries.len() as u64,
            too_long: self.too_long,
            table: self.written,
            language,
            namespace,
        })
    }
}

/// The templates of all dumps of a source.
#[derive(Debug, Default)]
pub struct TemplateIndex {
    files: Vec<File>,
    /// Sorted by hash.
    table: Vec<Entry>,
    /// Names of the namespace of templates, by language.
    namespaces: HashMap<String, Vec<String>>,
}

impl TemplateIndex {
    /// Opens files of definitions, in the order of their dumps: the first template of a name counts.
    ///
    /// # Errors
    /// [`DataError::Altered`] when a file is not as it was written, [`DataError::Io`].
    pub fn open(files: &[(impl AsRef<Path>, TemplateFile)]) -> Result<Self> {
        let mut index = Self::default();
        let mut left_out = 0;
        for (path, written) in files {
            let path = path.as_ref();
            let Some(language) = &written.language else { continue };
            written.digest.verify(path, RUN_AGAIN)?;
            let names = index.namespaces.entry(language.clone()).or_default();
            names.extend(written.namespace.iter().cloned());
            names.dedup();
            let room = MOST_TEMPLATES.saturating_sub(index.table.len()) as u64;
            left_out += written.templates.saturating_sub(room);
            let (Ok(number), true) = (u16::try_from(index.files.len()), room > 0) else { continue };
            let file = File::open(path).map_err(DataError::io(path))?;
            let length = written.digest.bytes.saturating_sub(written.table) as usize;
            let length = length.min(room as usize * ENTRY_BYTES);
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, written.table).map_err(DataError::io(path))?;
            let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
            index.table.extend(entries.iter().map(|bytes| Entry::of_bytes(bytes, number)));
            index.files.push(file);
        }
        if left_out > 0 {
            tracing::warn!(
                "{left_out} templates are left out: at most {MOST_TEMPLATES} of a source are known"
            );
        }
        // Stable: the first file of several counts.
        index.table.sort_by_key(|entry| entry.hash);
        index.table.dedup_by_key(|entry| entry.hash);
        Ok(index)
    }

    /// How many templates there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether `name`, as it stands in a call, is a template of `language`.
    pub fn contains(&self, language: &str, name: &str) -> bool {
        self.find(language, name).is_some()
    }

    /// The wikitext of the template that a call names, redirects followed.
    ///
    /// # Errors
    /// [`DataError::Io`] when the file cannot be read.
    pub fn get(&self, language: &str, name: &str) -> Result<Option<String>> {
        let mut name = name.to_owned();
        for _ in 0..=MOST_REDIRECTS {
            let Some(entry) = self.find(language, &name) else { return Ok(None) };
            let mut bytes = vec![0; entry.length as usize];
            let read = self.files[usize::from(entry.file)].read_exact_at(&mut bytes, entry.offset);
            read.map_err(DataError::io("the index of templates"))?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if !entry.redirect {
                return Ok(Some(text));
            }
            name = text;
        }
        Ok(None)
    }

    /// Whether `title`, with the name of its namespace, is a template of `language`.
    pub fn contains_page(&self, language: &str, title: &str) -> bool {
        self.below_namespace(language, title).is_some_and(|name| self.contains(language, name))
    }

    fn find(&self, language: &str, name: &str) -> Option<&Entry> {
        let name = self.below_namespace(language, name).unwrap_or(name);
        let hash = hash(language, &page_name(name)?);
        let place = self.table.binary_search_by_key(&hash, |entry| entry.hash).ok()?;
        self.table.get(place)
    }

    /// What stands behind the name of the namespace of templates.
    fn below_namespace<'a>(&self, language: &str, title: &'a str) -> Option<&'a str> {
        let (prefix, name) = title.split_once(':')?;
        let prefix = prefix.trim().to_lowercase();
        let own = self.namespaces.get(language);
        let is_own = own.is_some_and(|names| names.contains(&prefix));
        (prefix == "template" || is_own).then_some(name)
    }
}

/// A name as MediaWiki has it: spaces for underscores, single ones, the first letter a capital. None for
/// what names no page.
fn page_name(name: &str) -> Option<String> {
    let name = name.split('#').next().unwrap_or_default();
    let words = name.split(|c: char| c == '_' || c.is_whitespace()).filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join(" ");
    let mut letters = name.chars();
    let first = letters.next()?;
    if name.len() > LONGEST_NAME || name.contains(['<', '>', '[', ']', '{', '}', '|', '\u{fffd}']) {
        return None;
    }
    let mut upper = first.to_uppercase();
    Some(match (upper.next(), upper.next()) {
        (Some(upper), None) => format!("{upper}{}", letters.as_str()),
        _ => name,
    })
}

fn hash(language: &str, name: &str) -> u128 {
    xxh3_128(format!("{language}\0{name}").as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_found_by_any_form_of_their_name() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, templates: &[(&str, &str, bool)]| {
            let path = folder.path().join(name);
            let mut writer = TemplateWriter::create(&path).unwrap();
            for (name, text, redirect) in templates {
                writer.add("de", name, text, *redirect).unwrap();
            }
            let file = writer.finish("key".into(), Some("de".into()), vec!["vorlage".into()]);
            (path.clone(), file.unwrap())
        };
        let files = [
            write(
                "a",
                &[("Über uns", "one", false), ("B", "Vorlage:über_uns", true), ("L", "L", true)],
            ),
            write("b", &[("Über uns", "two", false), ("C", "", false)]),
        ];
        let index = TemplateIndex::open(&files).unwrap();
        assert_eq!(index.len(), 4);
        for name in
            ["über uns", "Über_uns", " über  uns ", "Vorlage:Über uns", "template:über uns#x", "b"]
        {
            assert_eq!(index.get("de", name).unwrap().as_deref(), Some("one"), "{name}");
        }
        assert_eq!(index.get("de", "c").unwrap().as_deref(), Some(""));
        for missing in ["Über", "", "a|b", "L", "Modell:B"] {
            assert_eq!(index.get("de", missing).unwrap(), None, "{missing}");
        }
        assert!(index.contains("de", "L") && !index.contains("en", "C"));
        // What is not as it was written is not read.
        std::fs::write(&files[1].0, "x").unwrap();
        assert!(TemplateIndex::open(&files).is_err());
    }
}
