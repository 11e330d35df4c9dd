//! What the fuzz targets share: readers run on bytes, and what holds for any input.
//!
//! No panic is the least of it. A target also checks that the same bytes give the same result,
//! that the output is bounded by the input, and that the counts add up.

use std::cell::Cell;
use std::path::Path;

use altiplano_data::document::Document;
use altiplano_data::source::{Input, ReadContext, Record, SourceOptions};
use altiplano_data::step::{Step, StepCounts, StepOptions, Verdict};
use tempfile::TempDir;

/// A file in a folder of its own.
pub struct TestFile {
    folder: TempDir,
    input: Input,
}

/// What reading a file gave.
#[derive(Debug, PartialEq)]
pub struct Reading {
    /// The records before the end or the error.
    pub records: Vec<Record>,
    /// The error.
    pub error: Option<String>,
}

impl TestFile {
    /// Writes `bytes` to the file `name`, a relative path with `/`.
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let path = folder.path().join("in").join(name);
        std::fs::create_dir_all(path.parent().expect("it is below a folder")).expect("a folder");
        std::fs::write(&path, bytes).expect("a file");
        let name = name.to_owned();
        let input = Input { path, name, bytes: bytes.len() as u64, modified_nanos: 0 };
        Self { folder, input }
    }

    /// The file.
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// Reads the file with at most `memory_bytes` of memory.
    ///
    /// Panics when the reader reports more progress than the file has bytes, unless
    /// `reads_twice`.
    pub fn read(
        &self,
        source: &dyn SourceOptions,
        memory_bytes: u64,
        reads_twice: bool,
    ) -> Reading {
        let scratch = self.folder.path().join("scratch");
        std::fs::create_dir(&scratch).expect("a folder");
        let progress = Cell::new(0u64);
        let bytes_read = |bytes| progress.set(progress.get() + bytes);
        let mut records = Vec::new();
        let context = ReadContext {
            source: "fuzz",
            input: &self.input,
            scratch: &scratch,
            memory_bytes,
            bytes_read: &bytes_read,
        };
        let result = source.read(&context, &mut |record| {
            records.push(record);
            Ok(())
        });
        std::fs::remove_dir_all(&scratch).expect("only files of the reader are in it");
        let (read, length) = (progress.get(), self.input.bytes);
        assert!(reads_twice || read <= length, "{read} bytes read of a file of {length}");
        for record in &records {
            if let Record::Document(document) = record {
                assert_document(document);
            }
        }
        Reading { records, error: result.err().map(|error| error.to_string()) }
    }

    /// Reads the file twice, with much and with little memory: the result must be the same.
    pub fn read_twice(&self, source: &dyn SourceOptions, reads_twice: bool) -> Reading {
        let first = self.read(source, 64 << 20, reads_twice);
        let second = self.read(source, 1, reads_twice);
        assert_eq!(first, second, "the result depends on the memory or on chance");
        first
    }
}

impl Reading {
    /// The documents, in the file's order.
    pub fn documents(&self) -> impl Iterator<Item = &Document> {
        self.records.iter().filter_map(|record| match record {
            Record::Document(document) => Some(document),
            Record::Rejected(_) => None,
        })
    }

    /// Bytes of text of all documents.
    pub fn text_bytes(&self) -> usize {
        self.documents().map(|document| document.text.len()).sum()
    }
}

/// Applies a step twice, checks that the result is the same, and returns it.
pub fn apply_twice(
    options: &dyn StepOptions,
    document: &Document,
) -> (Verdict, Document, StepCounts) {
    let step = options.build("step").expect("the options are valid");
    let once = apply(&*step, document);
    let again = apply(&*step, document);
    assert!(once == again, "the result depends on chance");
    if once.0 == Verdict::Keep {
        assert_document(&once.1);
    }
    once
}

fn apply(step: &dyn Step, document: &Document) -> (Verdict, Document, StepCounts) {
    let mut document = document.clone();
    let mut counts = StepCounts::default();
    let verdict = step.apply(&mut document, &mut counts);
    (verdict, document, counts)
}

/// Bytes that a step counted as taken out.
pub fn removed_bytes(counts: &StepCounts) -> usize {
    counts.removed_bytes() as usize
}

/// A document with only an id and a text.
pub fn document(text: &str) -> Document {
    Document { id: "fuzz".into(), text: text.to_owned(), ..Document::default() }
}

/// Picks one of `choices` by the length of `data`: the input itself stays plain text.
pub fn choose<T: Copy>(choices: &[T], data: &[u8]) -> T {
    choices[data.len() % choices.len()]
}

/// What holds for every document.
fn assert_document(document: &Document) {
    assert!(!document.id.is_empty(), "a document without an id");
    assert!(!document.text.trim().is_empty(), "an empty document");
    if let Some(metadata) = &document.metadata {
        assert!(metadata.starts_with('{') && !document.metadata().is_empty(), "{metadata}");
    }
}

/// Lets panics inside decoders pass that the data crate catches and reports as damage. Panics in
/// its own files are findings as before.
pub fn allow_caught_panics() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let own = |file: &str| {
            let path = Path::new(file);
            !path.components().any(|part| {
                let name = part.as_os_str().to_string_lossy();
                ["sevenz-rust2", "lzma-rust2", "ppmd-rust", "bzip2"]
                    .iter()
                    .any(|decoder| name.starts_with(decoder))
            })
        };
        if info.location().is_none_or(|location| own(location.file())) {
            abort(info);
        }
    }));
}
