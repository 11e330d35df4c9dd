//! Answers to their questions, within a memory cap.
//!
//! Posts are spread over partitions by the hash of the question's id. A partition that does not
//! fit in memory is on disk, and is spread again when it is still too large. Each partition's
//! threads come out in the order of their questions in the file; a merge puts all of them into
//! that order, so the result does not depend on the cap.

use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::post::{Kind, Post};
use crate::error::{DataError, Result};

/// Partitions of a spread.
const PARTITIONS: u64 = 32;
/// Spreads of a spread; what still does not fit belongs to one question.
const DEEPEST: u64 = 4;
/// Least memory to work with, whatever the cap.
const LEAST_BYTES: u64 = 1 << 16;

/// What becomes of posts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Joined {
    /// A question and its answers, in no order.
    Thread(Post, Vec<Post>),
    /// An answer without its question.
    Orphan(Post),
    /// A question whose id an earlier one has.
    Duplicate(Post),
    /// A post of a thread that does not fit in memory.
    TooLarge(Post),
}

impl Joined {
    /// Its place in the output: where its row begins.
    fn offset(&self) -> u64 {
        match self {
            Self::Thread(post, _)
            | Self::Orphan(post)
            | Self::Duplicate(post)
            | Self::TooLarge(post) => post.offset,
        }
    }
}

/// Posts on their way to [`Join::finish`].
pub(super) struct Join {
    folder: PathBuf,
    level: u64,
    memory_bytes: u64,
    partitions: Vec<Partition>,
    buffered: u64,
    spilled: bool,
}

#[derive(Default)]
struct Partition {
    buffer: Vec<u8>,
    bytes: u64,
}

impl Join {
    /// Holds about `memory_bytes`; what does not fit goes to `folder`.
    pub fn new(folder: &Path, memory_bytes: u64) -> Self {
        Self::at_level(folder.to_owned(), memory_bytes.max(LEAST_BYTES), 0)
    }

    fn at_level(folder: PathBuf, memory_bytes: u64, level: u64) -> Self {
        let partitions = (0..PARTITIONS).map(|_| Partition::default()).collect();
        Self { folder, level, memory_bytes, partitions, buffered: 0, spilled: false }
    }

    /// Adds a question or an answer.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn add(&mut self, post: &Post) -> Result<()> {
        let key = question_of(post);
        let hash = xxh3_64_with_seed(&key.to_le_bytes(), self.level);
        let partition = &mut self.partitions[(hash % PARTITIONS) as usize];
        let before = partition.buffer.len();
        write_line(&mut partition.buffer, post).map_err(DataError::io(&self.folder))?;
        let added = (partition.buffer.len() - before) as u64;
        partition.bytes += added;
        self.buffered += added;
        // Parsed posts take about twice the memory of their lines.
        if self.buffered > self.memory_bytes / 4 {
            self.spill()?;
        }
        Ok(())
    }

    fn file(&self, partition: usize) -> PathBuf {
        self.folder.join(format!("posts-{}-{partition}", self.level))
    }

    fn spill(&mut self) -> Result<()> {
        for index in 0..self.partitions.len() {
            let path = self.file(index);
            let partition = &mut self.partitions[index];
            if partition.buffer.is_empty() {
                continue;
            }
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .map_err(DataError::io(&path))?;
            file.write_all(&partition.buffer).map_err(DataError::io(&path))?;
            // The capacity goes back too: partitions are not equally full.
            partition.buffer = Vec::new();
        }
        self.buffered = 0;
        self.spilled = true;
        Ok(())
    }

    /// Hands all threads and leftovers to `sink`, in the order of the file.
    ///
    /// # Errors
    /// [`DataError::Io`], and whatever `sink` returns.
    pub fn finish(mut self, sink: &mut dyn FnMut(Joined) -> Result<()>) -> Result<()> {
        if !self.spilled {
            let mut all = Vec::new();
            for partition in std::mem::take(&mut self.partitions) {
                join_posts(read_lines(&partition.buffer, &self.folder)?, &mut all);
            }
            all.sort_unstable_by_key(Joined::offset);
            return all.into_iter().try_for_each(sink);
        }
        self.spill()?;
        let mut runs = Vec::new();
        for index in 0..self.partitions.len() {
            let bytes = self.partitions[index].bytes;
            if bytes > 0 {
                runs.push(self.join_partition(index, bytes)?);
            }
        }
        merge(&runs, sink)?;
        runs.iter().try_for_each(|run| remove(run))
    }

    /// Joins one partition on disk and returns the sorted file of its threads.
    fn join_partition(&self, index: usize, bytes: u64) -> Result<PathBuf> {
        let path = self.file(index);
        let run = self.folder.join(format!("threads-{}-{index}", self.level));
        let file = File::create(&run).map_err(DataError::io(&run))?;
        let mut writer = BufWriter::with_capacity(1 << 16, file);
        let mut write =
            |joined: Joined| write_line(&mut writer, &joined).map_err(DataError::io(&run));
        if bytes <= self.memory_bytes / 4 {
            let lines = std::fs::read(&path).map_err(DataError::io(&path))?;
            let mut all = Vec::new();
            join_posts(read_lines(&lines, &path)?, &mut all);
            drop(lines);
            all.sort_unstable_by_key(Joined::offset);
            all.into_iter().try_for_each(&mut write)?;
        } else if self.level + 1 < DEEPEST {
            let folder = self.folder.join(format!("spread-{}-{index}", self.level));
            std::fs::create_dir(&folder).map_err(DataError::io(&folder))?;
            let mut spread = Self::at_level(folder.clone(), self.memory_bytes, self.level + 1);
            each_line(&path, |post: Post| spread.add(&post))?;
            // The files of the level above are not needed while it is joined.
            remove(&path)?;
            spread.finish(&mut write)?;
            std::fs::remove_dir_all(&folder).map_err(DataError::io(&folder))?;
        } else {
            each_line(&path, |post| write(Joined::TooLarge(Post { body: String::new(), ..post })))?;
        }
        writer.flush().map_err(DataError::io(&run))?;
        if path.exists() {
            remove(&path)?;
        }
        Ok(run)
    }
}

/// Id of the question a post belongs to.
fn question_of(post: &Post) -> i64 {
    match post.kind {
        Kind::Answer => post.parent.unwrap_or(0),
        _ => post.id,
    }
}

/// Joins the posts of a partition, which come in the order of the file.
fn join_posts(posts: Vec<Post>, joined: &mut Vec<Joined>) {
    // Only looked into, never walked through: its order has no influence.
    let mut place: HashMap<i64, usize> = HashMap::new();
    let mut answers = Vec::new();
    for post in posts {
        if post.kind == Kind::Answer {
            answers.push(post);
            continue;
        }
        joined.push(match place.entry(post.id) {
            Entry::Occupied(_) => Joined::Duplicate(post),
            Entry::Vacant(free) => {
                free.insert(joined.len());
                Joined::Thread(post, Vec::new())
            }
        });
    }
    for answer in answers {
        let found = place.get(&question_of(&answer)).and_then(|at| joined.get_mut(*at));
        match found {
            Some(Joined::Thread(_, answers)) => answers.push(answer),
            _ => joined.push(Joined::Orphan(answer)),
        }
    }
}

/// Merges sorted files.
fn merge(runs: &[PathBuf], sink: &mut dyn FnMut(Joined) -> Result<()>) -> Result<()> {
    let mut readers = Vec::new();
    let mut heads = BinaryHeap::new();
    let mut next = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let file = File::open(run).map_err(DataError::io(run))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let head = next_line::<Joined>(&mut reader, run)?;
        heads.extend(head.as_ref().map(|head| std::cmp::Reverse((head.offset(), index))));
        next.push(head);
        readers.push(reader);
    }
    while let Some(std::cmp::Reverse((_, index))) = heads.pop() {
        let head = next_line::<Joined>(&mut readers[index], &runs[index])?;
        heads.extend(head.as_ref().map(|head| std::cmp::Reverse((head.offset(), index))));
        if let Some(joined) = std::mem::replace(&mut next[index], head) {
            sink(joined)?;
        }
    }
    Ok(())
}

fn write_line(writer: &mut impl Write, value: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *writer, value)?;
    writer.write_all(b"\n")
}

fn parse_line<T: for<'de> Deserialize<'de>>(line: &[u8], path: &Path) -> Result<T> {
    serde_json::from_slice(line).map_err(|error| {
        DataError::bad_file(path, format!("a temporary file was altered: {error}; run again"))
    })
}

fn read_lines(lines: &[u8], path: &Path) -> Result<Vec<Post>> {
    let mut posts = Vec::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        posts.push(parse_line(line, path)?);
    }
    Ok(posts)
}

fn next_line<T: for<'de> Deserialize<'de>>(
    reader: &mut impl BufRead,
    path: &Path,
) -> Result<Option<T>> {
    let mut line = Vec::new();
    let length = reader.read_until(b'\n', &mut line).map_err(DataError::io(path))?;
    if length == 0 { Ok(None) } else { parse_line(&line, path).map(Some) }
}

fn each_line<T: for<'de> Deserialize<'de>>(
    path: &Path,
    mut each: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let file = File::open(path).map_err(DataError::io(path))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    while let Some(value) = next_line(&mut reader, path)? {
        each(value)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(DataError::io(path))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn post(offset: u64, kind: Kind, id: i64, parent: Option<i64>, bytes: usize) -> Post {
        Post { offset, kind, id, parent, body: "b".repeat(bytes), ..Post::default() }
    }

    fn join(posts: &[Post], memory_bytes: u64) -> Vec<Joined> {
        let folder = tempfile::tempdir().unwrap();
        let mut join = Join::new(folder.path(), memory_bytes);
        for post in posts {
            join.add(post).unwrap();
        }
        let mut all = Vec::new();
        join.finish(&mut |joined| {
            all.push(joined);
            Ok(())
        })
        .unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        all
    }

    #[test]
    fn the_result_does_not_depend_on_the_cap() {
        let mut posts = Vec::new();
        for number in 0..6000u64 {
            let id = number as i64 + 1;
            let (kind, parent) = match number % 5 {
                0 | 1 => (Kind::Question, None),
                // Some parents are answers, some come later, some are missing.
                _ => (Kind::Answer, Some((id * 7919) % 6500)),
            };
            posts.push(post(number, kind, id, parent, 200 + (number % 700) as usize));
        }
        posts.push(post(6000, Kind::Question, 1, None, 10));
        let whole = join(&posts, 1 << 30);
        assert_eq!(whole, join(&posts, 1 << 20));
        assert_eq!(whole, join(&posts, 1));
        let offsets: Vec<u64> = whole.iter().map(Joined::offset).collect();
        assert!(offsets.is_sorted());
        let kinds = |wanted: fn(&Joined) -> bool| whole.iter().filter(|j| wanted(j)).count();
        let answers: usize = whole
            .iter()
            .map(|joined| if let Joined::Thread(_, answers) = joined { answers.len() } else { 0 })
            .sum();
        let orphans = kinds(|joined| matches!(joined, Joined::Orphan(_)));
        assert_eq!(kinds(|joined| matches!(joined, Joined::Duplicate(_))), 1);
        assert_eq!(kinds(|joined| matches!(joined, Joined::Thread(..))), 2400);
        assert_eq!(answers + orphans, 3600);
        assert!(answers > 1000 && orphans > 100, "{answers} {orphans}");
    }

    #[test]
    fn a_thread_beyond_memory_is_counted_not_joined() {
        let mut posts = vec![post(0, Kind::Question, 1, None, 10)];
        posts.extend((1..500).map(|n| post(n, Kind::Answer, n as i64 + 1, Some(1), 1000)));
        posts.push(post(500, Kind::Question, 2000, None, 10));
        let all = join(&posts, 1);
        assert_eq!(all.len(), 501);
        assert_eq!(all.iter().filter(|joined| matches!(joined, Joined::TooLarge(_))).count(), 500);
        assert!(
            matches!(&all[500], Joined::Thread(post, answers) if post.id == 2000 && answers.is_empty())
        );
    }
}
