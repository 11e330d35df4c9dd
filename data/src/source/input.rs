//! Input files: finding them, and reading them decompressed with an eye on truncation.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use encoding_rs::{CoderResult, Decoder, Encoding};
use flate2::bufread::MultiGzDecoder;
use globset::{GlobBuilder, GlobMatcher};

use crate::error::{DataError, Result};
use crate::fingerprint::modified_nanos;
use crate::storage::{self, InputFile, Object, Pattern, is_remote};

/// Characters that make a path component a pattern.
const PATTERN_CHARACTERS: [char; 5] = ['*', '?', '[', '{', '\\'];

/// One input file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Where it is.
    pub path: PathBuf,
    /// Its name inside the source: the path below the fixed part of the pattern. Document ids
    /// are made from it, so they do not depend on where the corpus lies.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last change, in nanoseconds since 1970; 0 where an ETag stands for it.
    pub modified_nanos: u128,
    /// What a server says the content is, of an object.
    pub etag: Option<String>,
}

impl Input {
    /// The input that is an object of object storage or of a web server.
    pub(super) fn of_object(name: String, object: &Object) -> Self {
        let modified_nanos = if object.etag.is_some() { 0 } else { object.modified_nanos };
        let (path, bytes, etag) = (object.address.clone(), object.bytes, object.etag.clone());
        Self { path, name, bytes, modified_nanos, etag }
    }

    /// Whether it is one file; a paper or a site may be a folder.
    pub fn is_file(&self) -> bool {
        is_remote(&self.path) || self.path.is_file()
    }
}

/// Files that match any of `patterns` (`*`, `?`, `[ab]`, `{a,b}`, and `**` for any depth), sorted
/// by name. `key` is the configuration key to blame.
///
/// # Errors
/// [`DataError::NoInput`] when none matches anything, or a path without wildcards is not there,
/// [`DataError::Config`] when a pattern is
/// malformed or two files would have the same name.
pub fn list_inputs(key: &str, patterns: &[PathBuf]) -> Result<Vec<Input>> {
    let mut inputs: BTreeMap<String, Input> = BTreeMap::new();
    let mut empty: Option<&PathBuf> = None;
    for pattern in patterns {
        let mut found = false;
        if is_remote(pattern) {
            let split = |keys: &Path| {
                split_pattern(key, keys).map(|(base, matcher)| Pattern { base, matcher })
            };
            for (name, object) in storage::list(key, pattern, split)? {
                found = true;
                insert(key, &mut inputs, Input::of_object(name, &object))?;
            }
            if !found {
                note_empty(key, pattern, patterns.len() > 1, &mut empty)?;
            }
            continue;
        }
        let (base, matcher) = split_pattern(key, pattern)?;
        // Of several patterns one may be for files that are still to come.
        let may_be_empty = matcher.is_some() && patterns.len() > 1;
        if !base.exists() {
            note_empty(key, pattern, may_be_empty, &mut empty)?;
            continue;
        }
        let walk = walkdir::WalkDir::new(&base).follow_links(true).sort_by_file_name();
        for entry in walk {
            let entry = entry.map_err(|error| unreadable(&base, error))?;
            let path = entry.path();
            let matches = match &matcher {
                Some(matcher) => matcher.is_match(path),
                None => path == base,
            };
            if !entry.file_type().is_file() || !matches {
                continue;
            }
            found = true;
            insert(key, &mut inputs, describe(path, &base)?)?;
        }
        if !found {
            note_empty(key, pattern, may_be_empty, &mut empty)?;
        }
    }
    if let (true, Some(pattern)) = (inputs.is_empty(), empty) {
        return Err(nothing(key, pattern));
    }
    Ok(inputs.into_values().collect())
}

/// Adds an input, whose name must be new.
fn insert(key: &str, inputs: &mut BTreeMap<String, Input>, input: Input) -> Result<()> {
    if let Some(known) = inputs.get(&input.name)
        && known.path != input.path
    {
        return Err(DataError::config(
            key,
            format!("{} and {}", known.path.display(), input.path.display()),
            "files with different names below their patterns, because document ids are made from \
             them: use one pattern with `**`, or two sources",
        ));
    }
    inputs.insert(input.name.clone(), input);
    Ok(())
}

/// Notes the first pattern that matches nothing, which is an error unless it may.
fn note_empty<'a>(
    key: &str,
    pattern: &'a PathBuf,
    may_be_empty: bool,
    empty: &mut Option<&'a PathBuf>,
) -> Result<()> {
    if !may_be_empty {
        return Err(nothing(key, pattern));
    }
    tracing::warn!("{key}: nothing matches {:?}", pattern.display().to_string());
    empty.get_or_insert(pattern);
    Ok(())
}

fn nothing(key: &str, pattern: &Path) -> DataError {
    DataError::NoInput { key: key.to_owned(), pattern: pattern.display().to_string() }
}

/// A folder that cannot be read must not silently make the corpus smaller.
fn unreadable(base: &Path, error: walkdir::Error) -> DataError {
    DataError::io(error.path().unwrap_or(base).to_owned())(error.into())
}

/// `pattern` as seen from the folder `base`, which is not a pattern, whatever characters it has. An address
/// stays as it is.
pub fn pattern_below(base: &Path, pattern: &Path) -> PathBuf {
    if pattern.is_absolute() || is_remote(pattern) {
        pattern.to_owned()
    } else {
        escape(base).join(pattern)
    }
}

/// The one path that `pattern` matches, if it matches only one; the pattern as it is otherwise.
pub(super) fn literal_path(pattern: &Path) -> PathBuf {
    let names: Option<PathBuf> = pattern.components().map(|part| literal(&part)).collect();
    names.unwrap_or_else(|| pattern.to_owned())
}

/// The pattern that matches `path` alone: characters that mean something stand in brackets.
fn escape(path: &Path) -> PathBuf {
    let Some(text) = path.to_str() else { return path.to_owned() };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if PATTERN_CHARACTERS.contains(&c) || matches!(c, ']' | '}') {
            out.extend(['[', c, ']']);
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// The one name that a component of a pattern matches, if it matches only one.
fn literal(component: &Component<'_>) -> Option<String> {
    let text = component.as_os_str().to_string_lossy();
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '[' {
            out.push(rest.next()?);
            rest.next().filter(|&close| close == ']')?;
        } else if PATTERN_CHARACTERS.contains(&c) {
            return None;
        } else {
            out.push(c);
        }
    }
    Some(out)
}

/// Splits a pattern into its fixed folder and a matcher for whole paths; a path without pattern
/// characters has no matcher.
fn split_pattern(key: &str, pattern: &Path) -> Result<(PathBuf, Option<GlobMatcher>)> {
    let components: Vec<Component<'_>> = pattern.components().collect();
    let names: Vec<String> = components.iter().map_while(literal).collect();
    let base: PathBuf = names.iter().collect();
    if names.len() == components.len() {
        return Ok((base, None));
    }
    let base = if base.as_os_str().is_empty() { PathBuf::from(".") } else { base };
    let rest: PathBuf = components[names.len()..].iter().collect();
    let full = escape(&base).join(rest);
    let full = full.to_string_lossy();
    let matcher = GlobBuilder::new(&full)
        .literal_separator(true)
        .build()
        .map_err(|error| {
            DataError::config(key, pattern.display(), format!("a path pattern: {error}"))
        })?
        .compile_matcher();
    Ok((base, Some(matcher)))
}

/// The input at `path`, named after its place below `base`.
pub(super) fn describe(path: &Path, base: &Path) -> Result<Input> {
    let metadata = std::fs::metadata(path).map_err(DataError::io(path))?;
    let below = path.strip_prefix(base).unwrap_or(path);
    let name = if below.as_os_str().is_empty() {
        path.file_name().unwrap_or_default().to_string_lossy()
    } else {
        below.to_string_lossy()
    };
    Ok(Input {
        path: path.to_owned(),
        name: name.replace('\\', "/"),
        bytes: metadata.len(),
        modified_nanos: modified_nanos(&metadata),
        etag: None,
    })
}

/// Reads an input decompressed. An archive that ends early or is damaged is an error with the
/// offset in the compressed file, never a short read.
pub struct InputReader {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    consumed: Arc<AtomicU64>,
    reported: u64,
}

/// Counts the bytes that leave the file.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Turns the bytes of an encoding into UTF-8.
struct Decoding {
    inner: Box<dyn BufRead + Send>,
    /// None when all is decoded.
    decoder: Option<Decoder>,
}

impl Read for Decoding {
    /// `buffer` has room for a character at least.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let input = self.inner.fill_buf()?;
            let last = input.is_empty();
            let (result, read, written, _) = decoder.decode_to_utf8(input, buffer, last);
            self.inner.consume(read);
            if last && result == CoderResult::InputEmpty {
                self.decoder = None;
            }
            if written > 0 {
                return Ok(written);
            }
        }
        Ok(0)
    }
}

impl InputReader {
    /// Opens `path`; its first bytes say how it is compressed, or when these are damaged the ending
    /// `.gz`, `.tgz` or `.zst`.
    ///
    /// # Errors
    /// [`DataError::Io`] when it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = InputFile::open(path)?;
        let consumed = Arc::new(AtomicU64::new(0));
        let mut counted = BufReader::with_capacity(
            1 << 17,
            Counted { inner: file, count: Arc::clone(&consumed) },
        );
        let start = counted.fill_buf().map_err(DataError::io(path))?;
        let by_content = match start {
            [0x1f, 0x8b, 8, ..] => Some("gz"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zst"),
            _ => None,
        };
        let by_name = path.extension().and_then(|ending| ending.to_str());
        let reader: Box<dyn BufRead + Send> = match by_content.or(by_name) {
            Some("gz" | "tgz") => Box::new(BufReader::with_capacity(
                1 << 17,
                // Many members: archives of web text are one member per record.
                MultiGzDecoder::new(counted),
            )),
            Some("zst") => Box::new(BufReader::with_capacity(
                1 << 17,
                zstd::stream::read::Decoder::with_buffer(counted).map_err(DataError::io(path))?,
            )),
            _ => Box::new(counted),
        };
        Ok(Self { path: path.to_owned(), reader, consumed, reported: 0 })
    }

    /// The same bytes as UTF-8, which are in `encoding` now; what means nothing there is U+FFFD.
    pub(super) fn decoded(self, encoding: &'static Encoding) -> Self {
        let decoder = encoding.new_decoder_with_bom_removal();
        let reader = Decoding { inner: self.reader, decoder: Some(decoder) };
        Self { reader: Box::new(BufReader::with_capacity(1 << 17, reader)), ..self }
    }

    /// The path of the file name without a compression ending, for `name.json.gz` and the like.
    pub fn uncompressed_name(name: &str) -> &str {
        name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name)
    }

    /// The next decompressed bytes; empty at the end.
    ///
    /// # Errors
    /// [`DataError::Archive`] or [`DataError::Io`].
    pub fn fill(&mut self) -> Result<&[u8]> {
        // Asked twice because the borrow checker does not see that an error holds no borrow.
        if let Err(error) = self.reader.fill_buf() {
            return Err(self.blame(error));
        }
        self.reader.fill_buf().map_err(DataError::io(&self.path))
    }

    /// Marks `count` bytes of what [`InputReader::fill`] returned as used.
    pub fn consume(&mut self, count: usize) {
        self.reader.consume(count);
    }

    /// Bytes of the compressed file consumed since the last call.
    pub fn newly_consumed(&mut self) -> u64 {
        let consumed = self.consumed.load(Ordering::Relaxed);
        let new = consumed - self.reported;
        self.reported = consumed;
        new
    }

    fn blame(&self, error: io::Error) -> DataError {
        let error = match error.downcast::<DataError>() {
            Ok(error) => return error,
            Err(error) => error,
        };
        // Errors with a number come from the operating system, the others from a decoder.
        if error.raw_os_error().is_some() {
            return DataError::io(&self.path)(error);
        }
        DataError::Archive {
            path: self.path.clone(),
            offset: self.consumed.load(Ordering::Relaxed),
            reason: error.to_string(),
        }
    }
}

/// Whether a file that begins with `start` is a zip or tar archive.
pub(super) fn is_archive(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04") || start.get(257..262) == Some(b"ustar")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn read_all(path: &Path) -> Result<Vec<u8>> {
        let mut reader = InputReader::open(path)?;
        let mut all = Vec::new();
        loop {
            let bytes = reader.fill()?;
            if bytes.is_empty() {
                return Ok(all);
            }
            all.extend_from_slice(bytes);
            let count = bytes.len();
            reader.consume(count);
        }
    }

    /// Text that does not compress to nothing.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                b'a' + ((state >> 33) % 26) as u8
            })
            .collect()
    }

    #[test]
    fn the_folder_of_a_configuration_is_no_pattern() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["g[1]", "{a,b}", "x*y?", "back\\slash", "a]b}", "plain"] {
            let base = folder.path().join(name);
            std::fs::create_dir_all(base.join("in")).unwrap();
            std::fs::write(base.join("in/1.txt"), "").unwrap();
            for (pattern, found) in
                [("in/*.txt", "1.txt"), ("in/1.txt", "1.txt"), ("*/1.txt", "in/1.txt")]
            {
                let pattern = pattern_below(&base, Path::new(pattern));
                let inputs = list_inputs("paths", &[pattern]).unwrap();
                let names: Vec<&str> = inputs.iter().map(|input| &*input.name).collect();
                assert_eq!(names, [found], "{name}");
                assert!(inputs[0].path.starts_with(&base), "{name}");
            }
        }
        let absolute = Path::new("/a/[b]/c");
        assert_eq!(pattern_below(folder.path(), absolute), absolute);
    }

    #[test]
    fn all_members_of_a_gzip_file_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt.gz");
        let mut bytes = gzip(b"first ");
        bytes.extend(gzip(b"second"));
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(read_all(&path).unwrap(), b"first second");
    }

    #[test]
    fn every_truncation_of_an_archive_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let text = noise(3000);
        let two_members = [gzip(&text[..2000]), gzip(&text[2000..])].concat();
        let first_member = gzip(&text[..2000]).len();
        let frame = zstd::encode_all(&text[..], 3).unwrap();
        for (name, bytes) in [("a.gz", two_members), ("a.zst", frame)] {
            let path = folder.path().join(name);
            for length in (1..bytes.len()).step_by(7) {
                if length == first_member {
                    continue; // a whole archive of one member
                }
                std::fs::write(&path, &bytes[..length]).unwrap();
                match read_all(&path) {
                    Err(DataError::Archive { offset, .. }) => assert!(offset <= length as u64),
                    other => panic!("{name} cut at {length}: {:?}", other.map(|t| t.len())),
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(read_all(&path).unwrap(), text);
        }
    }

    #[test]
    fn patterns_find_files_in_sorted_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.txt", "a.txt", "c.md", "deep/d.txt"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "text").unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            list_inputs("paths", &[folder.path().join(pattern)])
                .unwrap()
                .into_iter()
                .map(|input| input.name)
                .collect()
        };
        assert_eq!(names("*.txt"), ["a.txt", "b.txt"]);
        assert_eq!(names("**/*.txt"), ["a.txt", "b.txt", "deep/d.txt"]);
        assert_eq!(names("{a,c}.*"), ["a.txt", "c.md"]);
        assert_eq!(names("a.txt"), ["a.txt"]);
        let missing = list_inputs("paths", &[folder.path().join("*.json")]);
        assert!(matches!(missing, Err(DataError::NoInput { .. })));
    }

    #[test]
    fn two_files_of_one_name_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x/a.txt", "y/a.txt"] {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "text").unwrap();
        }
        let patterns = [folder.path().join("x/*.txt"), folder.path().join("y/*.txt")];
        let error = list_inputs("paths", &patterns).unwrap_err();
        assert!(error.to_string().contains("two sources"), "{error}");
    }
}
