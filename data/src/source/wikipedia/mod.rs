//! Wikipedia dumps: `pages-articles` as XML, plain, `.bz2` (single and multistream), `.gz` or
//! `.zst`.
//!
//! A document is an article as raw wikitext; the step `wikitext` makes it text. The templates of a dump
//! are no documents; a pass of their own over the dump indexes them for that step.

mod pages;
mod streams;
mod template_index;
mod templates;
mod utf16;
mod xml;

pub use template_index::{TemplateFile, TemplateIndex};

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::pages::{PageCutter, Piece};
use self::streams::{Bzip2Streams, Chunk, Damage};
use self::utf16::Unicode;
use self::xml::{DOCUMENT_TYPE, Page, SiteInfo, Wanted, read_page, read_site_info};
use super::input::{Input, InputReader, list_inputs, pattern_below};
use super::record::{document_or_empty, too_long, utf8};
use super::{ReadContext, Record, RecordSink, Rejection, SourceOptions};
use crate::document::{Document, Reason, metadata_text};
use crate::error::{DataError, Result};
use crate::text::wikipedia::{WikiNames, languages};

/// Wikipedia dumps: articles as wikitext.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WikipediaSource {
    /// Path patterns (list of strings), relative to the configuration, of dumps like
    /// `enwiki-20220620-pages-articles-multistream.xml.bz2`; also plain, `.gz` or `.zst`.
    pub paths: Vec<PathBuf>,
    /// Language of all files (string, default none: each file says it in its header or its
    /// name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Languages to read (list of strings, default the 20 of LLaMA). A file in another one is
    /// counted and not read.
    #[serde(default = "default_languages")]
    pub languages: Vec<String>,
    /// Longest page with its markup in bytes; longer ones are counted and skipped (integer,
    /// default 16 MiB).
    #[serde(default = "default_max_page_bytes")]
    pub max_page_bytes: usize,
}

fn default_languages() -> Vec<String> {
    languages().map(str::to_owned).collect()
}
fn default_max_page_bytes() -> usize {
    16 << 20
}

impl WikipediaSource {
    /// The dumps that match `paths`, all else at its default.
    pub fn dumps(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            language: None,
            languages: default_languages(),
            max_page_bytes: default_max_page_bytes(),
        }
    }
}

impl SourceOptions for WikipediaSource {
    fn version(&self) -> u32 {
        1
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
        if self.languages.is_empty() {
            let key = format!("{key}.languages");
            return Err(DataError::config(key, "an empty list", "at least one language"));
        }
        for code in self.languages.iter().chain(&self.language) {
            if !is_code(code) {
                let expected = "the code of a Wikipedia, `en` for example";
                return Err(DataError::config(format!("{key}.languages"), code, expected));
            }
        }
        if let Some(language) = self.language.as_ref().filter(|code| !self.languages.contains(code))
        {
            let expected = "one of `languages`";
            return Err(DataError::config(format!("{key}.language"), language, expected));
        }
        if self.max_page_bytes == 0 || self.max_page_bytes > 1 << 30 {
            let key = format!("{key}.max_page_bytes");
            return Err(DataError::config(key, self.max_page_bytes, "1 to 1073741824"));
        }
        Ok(())
    }

    fn inputs(&self, key: &str) -> Result<Vec<Input>> {
        list_inputs(&format!("{key}.paths"), &self.paths)
    }

    /// A page that is cut off, and a dump without its end, is an error after the whole pages
    /// before it were handed on. Damage inside a multistream dump is a rejection; reading goes
    /// on with the next stream.
    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        self.read_pieces(context, &mut Records { source: self, context, site: None, sink })
    }
}

/// Takes the pieces of a dump.
trait PieceSink {
    /// A piece.
    fn piece(&mut self, piece: Piece<'_>) -> Result<()>;

    /// `bytes` decompressed bytes from `offset` on are lost, and what was damaged with them.
    fn damaged(&mut self, damage: &Damage, offset: u64, bytes: u64) -> Result<()>;

    /// Whether the dump is in a language that is not wanted: the rest is not read.
    fn other_language(&self) -> bool;
}

impl WikipediaSource {
    fn read_pieces(&self, context: &ReadContext<'_>, pieces: &mut dyn PieceSink) -> Result<()> {
        let mut dump = Dump::open(context)?;
        let mut unicode = Unicode::default();
        let mut cutter = PageCutter::new(self.max_page_bytes);
        let mut damage: Option<Damage> = None;
        while let Some(chunk) = dump.next()? {
            (context.bytes_read)(dump.newly_read());
            if let Some(damage) = damage.take() {
                let lost = cutter.skip_damage();
                pieces.damaged(&damage, cutter.offset() - lost, lost)?;
            }
            match chunk {
                Chunk::Bytes(bytes) => {
                    let bytes = unicode.convert(&bytes);
                    cutter.push(bytes, &mut |piece| pieces.piece(piece))?;
                }
                Chunk::Damage(found) => damage = Some(found),
            }
            if pieces.other_language() {
                (context.bytes_read)(dump.rest(context.input.bytes));
                return Ok(());
            }
        }
        (context.bytes_read)(dump.newly_read());
        if let Some(Damage { offset, reason, .. }) = damage {
            return Err(DataError::Archive { path: context.input.path.clone(), offset, reason });
        }
        cutter.finish(&mut |piece| pieces.piece(piece))?;
        if !cutter.ended() && !pieces.other_language() {
            let reason = format!(
                "the dump ends at decompressed byte {} without </mediawiki>; fetch it again, or, \
                 if it was cut on purpose, add that line",
                cutter.offset()
            );
            return Err(DataError::bad_file(&context.input.path, reason));
        }
        Ok(())
    }

    /// What the `header` of a dump says of its pages.
    fn site(&self, input: &Input, header: &[u8]) -> Result<Site> {
        let path = &input.path;
        let info = read_site_info(&String::from_utf8_lossy(header)).map_err(|error| {
            let reason = format!("the header of the dump: {} ({})", error.detail, error.reason);
            DataError::bad_file(path, reason)
        })?;
        let language = match &self.language {
            Some(language) => language.clone(),
            None => language_of(&info, &input.name).ok_or_else(|| {
                let reason = "neither its header nor its name says the language; set `language`";
                DataError::bad_file(path, reason)
            })?,
        };
        let unwanted = !self.languages.contains(&language);
        let named = |number: i64, name: String| {
            (number != 0 && !name.is_empty()).then(|| (name.to_lowercase(), number))
        };
        let namespaces = info.namespaces.into_iter();
        Ok(Site {
            names: WikiNames::of(Some(&language)),
            language,
            other_namespaces: namespaces.filter_map(|(number, name)| named(number, name)).collect(),
            unwanted,
        })
    }
}

fn no_pages(path: &Path) -> DataError {
    DataError::bad_file(path, "no <page> in its first MiB; expected a pages-articles dump")
}

/// Whether `code` may be the code of a Wikipedia.
fn is_code(code: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    (2..=16).contains(&code.len()) && code.bytes().all(allowed)
}

/// The bytes of a dump.
enum Dump {
    Bzip2(Box<Bzip2Streams>, u64),
    Other(InputReader, u64),
}

impl Dump {
    fn open(context: &ReadContext<'_>) -> Result<Self> {
        let path = &context.input.path;
        if path.extension().is_some_and(|extension| extension == "bz2") {
            Ok(Self::Bzip2(Box::new(Bzip2Streams::open(path, context.memory_bytes)?), 0))
        } else {
            Ok(Self::Other(InputReader::open(path)?, 0))
        }
    }

    fn next(&mut self) -> Result<Option<Chunk>> {
        match self {
            Self::Bzip2(streams, _) => streams.next(),
            Self::Other(reader, _) => {
                let bytes = reader.fill()?.to_vec();
                reader.consume(bytes.len());
                Ok((!bytes.is_empty()).then_some(Chunk::Bytes(bytes)))
            }
        }
    }

    fn newly_read(&mut self) -> u64 {
        let (new, all) = match self {
            Self::Bzip2(streams, all) => (streams.newly_read(), all),
            Self::Other(reader, all) => (reader.newly_consumed(), all),
        };
        *all += new;
        new
    }

    /// What of `bytes` is not read.
    fn rest(&mut self, bytes: u64) -> u64 {
        let new = self.newly_read();
        let (Self::Bzip2(_, all) | Self::Other(_, all)) = self;
        new + bytes.saturating_sub(*all)
    }
}

/// What the header of the dump says of its pages.
struct Site {
    language: String,
    names: &'static WikiNames,
    /// Names and numbers of other namespaces than that of articles, for dumps whose pages do not say.
    other_namespaces: HashMap<String, i64>,
    unwanted: bool,
}

/// Makes records of the pieces of a dump.
struct Records<'a, 'b> {
    source: &'a WikipediaSource,
    context: &'a ReadContext<'b>,
    site: Option<Site>,
    sink: RecordSink<'a>,
}

impl PieceSink for Records<'_, '_> {
    fn other_language(&self) -> bool {
        self.site.as_ref().is_some_and(|site| site.unwanted)
    }

    fn damaged(&mut self, damage: &Damage, offset: u64, bytes: u64) -> Result<()> {
        let detail = format!(
            "{}: the bzip2 stream at byte {} is damaged at byte {} ({}); its pages are lost",
            self.context.input.path.display(),
            damage.stream,
            damage.offset,
            damage.reason
        );
        self.reject(Reason::broken("damaged_stream"), offset, bytes, detail)
    }

    fn piece(&mut self, piece: Piece<'_>) -> Result<()> {
        match piece {
            Piece::Header(bytes) => self.header(bytes),
            Piece::NoPages => Err(no_pages(&self.context.input.path)),
            Piece::TooLong { .. } | Piece::Page { .. } if self.other_language() => Ok(()),
            Piece::TooLong { offset, bytes } => {
                (self.sink)(too_long(offset, bytes, self.source.max_page_bytes))
            }
            Piece::Page { offset, bytes } => self.page(offset, bytes),
        }
    }
}

impl Records<'_, '_> {
    fn reject(&mut self, reason: Reason, offset: u64, bytes: u64, detail: String) -> Result<()> {
        (self.sink)(Record::Rejected(Rejection { reason, offset, bytes, detail }))
    }

    fn header(&mut self, bytes: &[u8]) -> Result<()> {
        let site = self.source.site(self.context.input, bytes)?;
        if site.unwanted {
            let language = &site.language;
            let detail = format!("the dump is in {language:?}, which is not in `languages`");
            let bytes = self.context.input.bytes;
            self.reject(Reason::unwanted("other_language"), 0, bytes, detail)?;
        }
        self.site = Some(site);
        Ok(())
    }

    fn page(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let text = match simdutf8::basic::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) => match utf8(bytes.to_vec(), offset) {
                Err(rejection) => return (self.sink)(Record::Rejected(rejection)),
                Ok(_) => return Ok(()),
            },
        };
        let page = match read_page(text, Wanted::Articles) {
            Ok(page) => page,
            Err(error) if error.reason == DOCUMENT_TYPE => {
                let reason = format!("page at byte {offset}: {}", error.detail);
                return Err(DataError::bad_file(&self.context.input.path, reason));
            }
            Err(error) => {
                return self.reject(Reason::broken(error.reason), offset, length, error.detail);
            }
        };
        let Some(site) = &self.site else { return Ok(()) };
        if let Some(reason) = unwanted(&page, site) {
            return self.reject(Reason::unwanted(reason), offset, length, page.title);
        }
        let document = document(page, &site.language, self.context.source);
        (self.sink)(document_or_empty(document, offset))
    }
}

/// Why a page is not an article.
fn unwanted(page: &Page, site: &Site) -> Option<&'static str> {
    let elsewhere = match page.namespace {
        Some(number) => number != 0,
        None => page
            .title
            .split_once(':')
            .is_some_and(|(prefix, _)| site.other_namespaces.contains_key(&prefix.to_lowercase())),
    };
    if elsewhere {
        Some("other_namespace")
    } else if page.redirect || site.names.is_redirect(&page.text) {
        Some("redirect")
    } else if !matches!(page.model.as_str(), "" | "wikitext") {
        Some("not_wikitext")
    } else {
        None
    }
}

fn document(page: Page, language: &str, source: &str) -> Document {
    let metadata = serde_json::json!({
        "title": page.title,
        "revid": page.revision,
        "timestamp": page.timestamp,
        "ns": page.namespace.unwrap_or(0),
    });
    Document {
        id: format!("{language}wiki:{}", page.id),
        url: Some(format!("https://{language}.wikipedia.org/wiki/{}", escape_title(&page.title))),
        text: page.text,
        source: source.to_owned(),
        language: Some(language.to_owned()),
        created: Some(page.timestamp).filter(|time| !time.is_empty()),
        metadata: Some(metadata_text(metadata)),
        ..Document::default()
    }
}

/// A title as in addresses: spaces as underscores, and percent-encoded but for the characters
/// MediaWiki leaves (`wfUrlencode`).
fn escape_title(title: &str) -> String {
    let mut escaped = String::with_capacity(title.len());
    for byte in title.bytes() {
        match byte {
            b' ' => escaped.push('_'),
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => escaped.push(byte as char),
            _ if b"-_.~;@$!*(),/:".contains(&byte) => escaped.push(byte as char),
            _ => {
                escaped.push('%');
                for digit in [byte >> 4, byte & 15] {
                    escaped.push(char::from(b"0123456789ABCDEF"[digit as usize]));
                }
            }
        }
    }
    escaped
}

/// The language of a dump: by its database, its file name, its address, or its `xml:lang`.
fn language_of(info: &SiteInfo, file_name: &str) -> Option<String> {
    let file = file_name.rsplit('/').next().unwrap_or(file_name);
    let by_name = |name: &str| {
        let end = name.find("wiki")?;
        let rest = &name[end + 4..];
        let whole = rest.is_empty() || rest.starts_with(['-', '.', '_']);
        whole.then(|| name[..end].replace('_', "-"))
    };
    let by_address = || {
        let host = info.base.split_once("://")?.1;
        Some(host.split_once(".wikipedia.org")?.0.to_owned())
    };
    by_name(&info.dbname)
        .or_else(|| by_name(file))
        .filter(|code| is_code(code))
        .or_else(|| by_address().filter(|code| is_code(code)))
        .or_else(|| Some(info.language.clone()).filter(|code| is_code(code)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
