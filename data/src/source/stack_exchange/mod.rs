//! StackExchange: the posts of a dump, each question with its answers.
//!
//! A dump is one 7z archive per site with `Posts.xml` in it
//! (<https://archive.org/details/stackexchange>), for Stack Overflow one archive per table. The
//! posts are streamed; questions and answers, which stand anywhere in the file, meet in partitions
//! on disk when they do not fit in memory. Documents come in the order of their questions.

mod join;
mod post;
mod rows;
mod seven_zip;
mod sites;
mod thread;

#[cfg(test)]
mod tests;

pub use sites::{LARGEST_SITES, SitePosts};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::input::{InputReader, pattern_below};
use super::record::utf8;
use super::{Input, ReadContext, Record, RecordSink, Rejection, SourceOptions, list_inputs};
use crate::document::Reason;
use crate::error::{DataError, Result};
use crate::text::html::stack_exchange;
use join::{Join, Joined};
use post::{Kind, Post};
use rows::{ByteSource, Found, Rows};

/// Stands for [`LARGEST_SITES`] in `sites`.
const LARGEST: &str = "largest_28";

/// A row that is not a post.
const BAD_ROW: Reason = Reason::broken("bad_row");
/// An answer whose question is not in the file.
const ORPHAN: Reason = Reason::unwanted("orphan_answer");
/// A question whose id an earlier one has.
const DUPLICATE: Reason = Reason::broken("duplicate_id");

/// How question and answers are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThreadLayout {
    /// `Q: {title} {body}`, then `A: {answer}` lines.
    #[default]
    #[serde(rename = "redpajama")]
    RedPajama,
    /// `Q:`, title, body, then `A:` and the answer, separated by blank lines.
    Eleuther,
}

/// StackExchange dumps: `Posts.xml`, plain, compressed with gzip or Zstandard, or in 7z archives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackExchangeSource {
    /// Path patterns (list of strings), relative to the configuration: `*`, `?`, `[ab]`, `{a,b}`
    /// and `**` for any depth. The site is the name of the archive (`math.stackexchange.com.7z`,
    /// `stackoverflow.com-Posts.7z`) or of the folder of `Posts.xml`. Archives of other tables are
    /// passed over.
    pub paths: Vec<PathBuf>,
    /// Sites to read; `largest_28` stands for the 28 largest (list of strings, default every site
    /// that `paths` finds).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<String>,
    /// `redpajama` or `eleuther` (string, default `redpajama`).
    #[serde(default)]
    pub layout: ThreadLayout,
    /// Lowest score of an answer; EleutherAI has 3 (integer, default none).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_answer_score: Option<i64>,
    /// Most answers of a question; EleutherAI has 3 (integer, default all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_answers: Option<usize>,
    /// Keep questions without an answer (bool, default true).
    #[serde(default = "default_true")]
    pub keep_unanswered: bool,
    /// Longest row in bytes; longer ones are counted and skipped (integer, default 16 MiB).
    #[serde(default = "default_max_record_bytes")]
    pub max_record_bytes: usize,
    /// Most bytes a file may decompress to; more is an error (integer, default 1 TiB).
    #[serde(default = "default_max_expanded_bytes")]
    pub max_expanded_bytes: u64,
}

fn default_true() -> bool {
    true
}
fn default_max_record_bytes() -> usize {
    16 << 20
}
fn default_max_expanded_bytes() -> u64 {
    1 << 40
}

impl StackExchangeSource {
    /// Files that match `paths`, all else at its default.
    pub fn files(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            sites: Vec::new(),
            layout: ThreadLayout::RedPajama,
            min_answer_score: None,
            max_answers: None,
            keep_unanswered: true,
            max_record_bytes: default_max_record_bytes(),
            max_expanded_bytes: default_max_expanded_bytes(),
        }
    }

    /// Counts the posts of one input by type.
    ///
    /// # Errors
    /// As [`SourceOptions::read`].
    pub fn count(&self, input: &Input, bytes_read: &dyn Fn(u64)) -> Result<SitePosts> {
        let site = site(input)?;
        let mut counts = SitePosts { site, ..SitePosts::default() };
        self.each_row(&input.path, bytes_read, &mut |row| {
            match row {
                Ok(Post { kind: Kind::Question, .. }) => counts.questions += 1,
                Ok(Post { kind: Kind::Answer, .. }) => counts.answers += 1,
                Ok(_) => counts.other += 1,
                Err(_) => counts.broken += 1,
            }
            Ok(())
        })?;
        Ok(counts)
    }

    /// Hands every row of the file at `path` to `each`, as a post or as why it is none.
    fn each_row(
        &self,
        path: &Path,
        bytes_read: &dyn Fn(u64),
        each: &mut dyn FnMut(std::result::Result<Post, Rejection>) -> Result<()>,
    ) -> Result<()> {
        let mut read = |bytes: &mut dyn ByteSource| {
            let mut rows =
                Rows::new(bytes, path, self.max_record_bytes, self.max_expanded_bytes, bytes_read);
            let mut row = Vec::new();
            loop {
                let found = rows.next(&mut row)?;
                let offset = rows.row_offset();
                each(match found {
                    Found::End => return Ok(()),
                    Found::Bad(rejection) => Err(rejection),
                    Found::Row => post(&mut row, offset),
                })?;
            }
        };
        if path.extension().is_some_and(|extension| extension == "7z") {
            return seven_zip::with_posts(path, self.max_expanded_bytes, &mut read);
        }
        read(&mut InputReader::open(path)?)
    }
}

/// The post of a row.
fn post(row: &mut Vec<u8>, offset: u64) -> std::result::Result<Post, Rejection> {
    let bytes = row.len() as u64;
    let text = utf8(std::mem::take(row), offset)?;
    let post = Post::parse(&text, offset);
    // The buffer is used again.
    *row = text.into_bytes();
    post.map_err(|detail| Rejection { reason: BAD_ROW, offset, bytes, detail })
}

fn site(input: &Input) -> Result<String> {
    sites::site_of(&input.path)
        .ok_or_else(|| DataError::bad_file(&input.path, "its name says that it holds no posts"))
}

impl SourceOptions for StackExchangeSource {
    fn version(&self) -> u32 {
        1
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        for path in &mut self.paths {
            *path = pattern_below(base, path);
        }
    }

    fn validate(&self, key: &str) -> Result<()> {
        let wrong = |field: &str, found: String, expected: &str| {
            Err(DataError::config(format!("{key}.{field}"), found, expected))
        };
        if self.paths.is_empty() {
            return wrong("paths", "an empty list".into(), "at least one path");
        }
        if self.max_record_bytes == 0 || self.max_record_bytes > 1 << 30 {
            return wrong("max_record_bytes", self.max_record_bytes.to_string(), "1 to 1073741824");
        }
        if self.max_expanded_bytes == 0 {
            return wrong("max_expanded_bytes", "0".into(), "at least 1");
        }
        if self.max_answers == Some(0) {
            return wrong("max_answers", "0".into(), "at least 1, or none for all");
        }
        Ok(())
    }

    fn inputs(&self, key: &str) -> Result<Vec<Input>> {
        let mut by_site: BTreeMap<String, Input> = BTreeMap::new();
        for input in list_inputs(&format!("{key}.paths"), &self.paths)? {
            let Some(site) = sites::site_of(&input.path) else {
                continue;
            };
            if let Some(known) = by_site.get(&site) {
                return Err(DataError::config(
                    format!("{key}.paths"),
                    format!("{} and {}", known.path.display(), input.path.display()),
                    format!("one file with the posts of {site}"),
                ));
            }
            by_site.insert(site, input);
        }
        if !self.sites.is_empty() {
            for site in self.sites.iter().filter(|site| *site != LARGEST) {
                if !by_site.contains_key(site) {
                    return Err(DataError::NoInput {
                        key: format!("{key}.sites"),
                        pattern: site.clone(),
                    });
                }
            }
            let largest = self.sites.iter().any(|site| site == LARGEST);
            if largest {
                let absent: Vec<_> = LARGEST_SITES
                    .iter()
                    .copied()
                    .filter(|site| !by_site.contains_key(*site))
                    .collect();
                if !absent.is_empty() {
                    let absent = absent.join(", ");
                    tracing::warn!("of the 28 largest sites these are not there: {absent}");
                }
            }
            by_site.retain(|site, _| {
                self.sites.contains(site) || (largest && LARGEST_SITES.contains(&site.as_str()))
            });
        }
        if by_site.is_empty() {
            let pattern =
                self.paths.first().map_or(String::new(), |path| path.display().to_string());
            return Err(DataError::NoInput { key: format!("{key}.paths"), pattern });
        }
        let mut inputs: Vec<Input> = by_site.into_values().collect();
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(inputs)
    }

    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let path = &context.input.path;
        let site = site(context.input)?;
        let mut join = Join::new(context.scratch, context.memory_bytes);
        self.each_row(path, context.bytes_read, &mut |row| {
            let mut post = match row {
                Ok(post) => post,
                Err(rejection) => return sink(Record::Rejected(rejection)),
            };
            if let Kind::Other(_) = post.kind {
                return sink(rejected(Reason::unwanted(post.kind.reason()), &post));
            }
            // Rendered here, the text that waits for its thread is shorter.
            post.body = stack_exchange(&post.body);
            join.add(&post)
        })?;
        // Nothing was handed on before the file proved whole.
        join.finish(&mut |joined| {
            sink(match joined {
                Joined::Thread(question, answers) => {
                    self.thread(context.source, &site, question, answers)
                }
                Joined::Orphan(post) => rejected(ORPHAN, &post),
                Joined::Duplicate(post) => rejected(DUPLICATE, &post),
                Joined::TooLarge(post) => rejected(Reason::TOO_LONG, &post),
            })
        })
    }
}

fn rejected(reason: Reason, post: &Post) -> Record {
    let parent = post.parent.map_or(String::new(), |parent| format!(", question {parent}"));
    Record::Rejected(Rejection {
        reason,
        offset: post.offset,
        bytes: post.body.len() as u64,
        detail: format!("post {}{parent}", post.id),
    })
}
