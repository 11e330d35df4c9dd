//! ARPA files: the text form of n-gram models that all tools read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::records::{
    Equal, Record, RecordFile, RecordReader, Sorter, floats, set_count, set_floats,
};
use super::vocabulary::{BEGIN, END, UNKNOWN, Vocabulary, WordId, is_delimiter};
use super::{MOST_WORDS, NGrams};
use crate::atomic_file::{AtomicFile, scratch_folder};
use crate::error::{DataError, Result};

/// Longest line in bytes.
const LINE_BYTES: u64 = 1 << 20;

/// The logarithm of the probability of unknown words in a model that has no `<unk>`, as in KenLM.
const NO_UNKNOWN: f32 = -100.0;

/// Writes `ngrams` to `path`.
pub(super) fn write(ngrams: &mut NGrams, path: &Path) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    write_to(ngrams, &mut file, path)?;
    file.commit().map(drop)
}

fn write_to(ngrams: &mut NGrams, out: &mut impl Write, path: &Path) -> Result<()> {
    let io = DataError::io;
    writeln!(out, "\\data\\").map_err(io(path))?;
    for (index, count) in ngrams.counts().iter().enumerate() {
        writeln!(out, "ngram {}={count}", index + 1).map_err(io(path))?;
    }
    let order = ngrams.order();
    let NGrams { vocabulary, unigrams, longer, .. } = ngrams;
    writeln!(out, "\n\\1-grams:").map_err(io(path))?;
    for (word, (log10, backoff)) in vocabulary.words().zip(unigrams) {
        writeln!(out, "{log10}\t{word}\t{backoff}").map_err(io(path))?;
    }
    for (index, file) in longer.iter_mut().enumerate() {
        let n = index + 2;
        writeln!(out, "\n\\{n}-grams:").map_err(io(path))?;
        for record in file.read()? {
            let record = record?;
            let (log10, backoff) = floats(&record);
            write!(out, "{log10}").map_err(io(path))?;
            for (at, id) in record[..n].iter().rev().enumerate() {
                let separator = if at == 0 { '\t' } else { ' ' };
                let word = vocabulary.word(*id).unwrap_or_default();
                write!(out, "{separator}{word}").map_err(io(path))?;
            }
            let end = if n == order { "\n".to_owned() } else { format!("\t{backoff}\n") };
            out.write_all(end.as_bytes()).map_err(io(path))?;
        }
    }
    writeln!(out, "\n\\end\\").map_err(io(path))
}

/// Reads `path`.
pub(super) fn read(path: &Path, scratch: &Path, memory_bytes: u64) -> Result<NGrams> {
    let mut lines = Lines::open(path)?;
    let scratch = scratch_folder(scratch)?;
    let counts = lines.counts()?;
    let order = counts.len();

    let (mut vocabulary, mut unigrams) = (Vocabulary::default(), Vec::new());
    lines.unigrams(counts[0], &mut vocabulary, &mut unigrams)?;
    let mut longer: Vec<RecordFile> = Vec::new();
    let mut suffixes_complete = true;
    for (n, &count) in (2..).zip(&counts[1..]) {
        let mut sorter = Sorter::new(scratch.path(), n, Equal::Keep, memory_bytes / 2);
        let mut contexts = Sorter::new(scratch.path(), n - 1, Equal::Add, memory_bytes / 2);
        lines.section(n, count, |entry| {
            let mut record = Record::default();
            for (to, word) in record[..n].iter_mut().rev().zip(&entry.words) {
                *to = word_of(&vocabulary, word)
                    .ok_or_else(|| format!("the word {word:?} is not among the \\1-grams"))?;
            }
            let backoff = if n == order { 0.0 } else { entry.backoff };
            set_floats(&mut record, entry.log10, backoff);
            let mut context = Record::default();
            context[..n - 1].copy_from_slice(&record[1..n]);
            set_count(&mut context, 1);
            Ok(sorter.push(record).and_then(|()| contexts.push(context)))
        })?;
        let mut found = sorter.finish()?;
        let names = |record: &Record, n: usize| -> Vec<&str> {
            record[..n].iter().rev().map(|id| vocabulary.word(*id).unwrap_or("?")).collect()
        };
        if let Some(twice) = repeated(&mut found, n)? {
            let words = names(&twice, n);
            let line = line_of(path, n, &words, 2)?;
            let reason = format!("line {line}: the n-gram {:?} is there twice", words.join(" "));
            return Err(DataError::bad_file(path, reason));
        }
        if let Some(lower) = longer.last_mut() {
            if let Some(missing) = first_missing(&mut contexts.finish()?, lower, n - 1)? {
                let words = names(&missing, n - 1);
                let line = line_of(path, n, &words, 1)?;
                return Err(DataError::bad_file(
                    path,
                    format!(
                        "line {line}: {:?} begins an n-gram of {n} words but is no n-gram itself",
                        words.join(" ")
                    ),
                ));
            }
            suffixes_complete &= first_missing(&mut found, lower, n - 1)?.is_none();
        }
        longer.push(found);
    }
    lines.end()?;
    Ok(NGrams { vocabulary, unigrams, longer, suffixes_complete, scratch, memory_bytes })
}

/// The number of the line of the `nth` n-gram of `n` words that begins with `words`. The file is
/// read again: n-grams are sorted without their lines.
fn line_of(path: &Path, n: usize, words: &[&str], nth: usize) -> Result<u64> {
    let mut lines = Lines::open(path)?;
    let section = format!("\\{n}-grams:");
    let (mut inside, mut found) = (false, 0);
    while found < nth && lines.next()? {
        if lines.line.first() == Some(&b'\\') {
            inside = lines.line == section.as_bytes();
        } else if inside && let Ok(entry) = parse(lines.text()?, n) {
            let same = |(word, wanted): (&&str, &&str)| match *word {
                "<UNK>" => *wanted == "<unk>",
                word => word == *wanted,
            };
            found += usize::from(entry.words.iter().zip(words).all(same));
        }
    }
    Ok(lines.number)
}

/// The number of a word; SRILM writes `<UNK>`.
fn word_of(vocabulary: &Vocabulary, word: &str) -> Option<WordId> {
    if word == "<UNK>" { Some(UNKNOWN) } else { vocabulary.find(word) }
}

/// A record whose words stand in the one behind it too.
fn repeated(sorted: &mut RecordFile, words: usize) -> Result<Option<Record>> {
    let mut last: Option<Record> = None;
    for record in sorted.read()? {
        let record = record?;
        if last.is_some_and(|last| last[..words] == record[..words]) {
            return Ok(Some(record));
        }
        last = Some(record);
    }
    Ok(None)
}

/// The first record of `upper` whose first `words` words are not a record of `lower`. Both sorted.
fn first_missing(
    upper: &mut RecordFile,
    lower: &mut RecordFile,
    words: usize,
) -> Result<Option<Record>> {
    let advance = |lower: &mut RecordReader<'_>| lower.next().transpose();
    let mut lower = lower.read()?;
    let mut head = advance(&mut lower)?;
    for record in upper.read()? {
        let record = record?;
        while head.is_some_and(|head| head[..words] < record[..words]) {
            head = advance(&mut lower)?;
        }
        if head.is_none_or(|head| head[..words] != record[..words]) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// One n-gram of a file.
struct Entry<'a> {
    log10: f32,
    words: Vec<&'a str>,
    backoff: f32,
}

/// The lines of an ARPA file that are not empty.
struct Lines<'a> {
    file: BufReader<Box<dyn Read>>,
    path: &'a Path,
    number: u64,
    /// The line last read, without its end.
    line: Vec<u8>,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let file: Box<dyn Read> = if path.extension().is_some_and(|extension| extension == "gz") {
            Box::new(MultiGzDecoder::new(file))
        } else {
            Box::new(file)
        };
        Ok(Self { file: BufReader::new(file), path, number: 0, line: Vec::new() })
    }

    fn fail(&self, reason: impl std::fmt::Display) -> DataError {
        DataError::bad_file(self.path, format!("line {}: {reason}", self.number))
    }

    /// Reads the next line that is not empty; false at the end.
    fn next(&mut self) -> Result<bool> {
        loop {
            self.line.clear();
            let mut bounded = (&mut self.file).take(LINE_BYTES);
            let length = bounded
                .read_until(b'\n', &mut self.line)
                .map_err(|error| DataError::bad_file(self.path, error))?;
            self.number += 1;
            if length == 0 {
                return Ok(false);
            }
            if length as u64 == LINE_BYTES && self.line.last() != Some(&b'\n') {
                return Err(self.fail(format!("longer than {LINE_BYTES} bytes")));
            }
            while self.line.last().is_some_and(u8::is_ascii_whitespace) {
                self.line.pop();
            }
            if !self.line.is_empty() {
                return Ok(true);
            }
        }
    }

    fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.line).map_err(|_| self.fail("is not UTF-8"))
    }

    /// Reads up to the first section: how many n-grams there are of each order, from 1.
    fn counts(&mut self) -> Result<Vec<u64>> {
        loop {
            if !self.next()? {
                return Err(self.fail("no \\data\\: not an ARPA file"));
            }
            if self.line == b"\\data\\" {
                break;
            }
        }
        let mut counts = Vec::new();
        while self.next()? {
            let line = self.text()?;
            if line == "\\1-grams:" {
                if !(2..=MOST_WORDS).contains(&counts.len()) {
                    let reason =
                        format!("a model of order {}, expected 2 to {MOST_WORDS}", counts.len());
                    return Err(self.fail(reason));
                }
                return Ok(counts);
            }
            let count = line
                .strip_prefix("ngram")
                .and_then(|rest| rest.split_once('='))
                .filter(|(n, _)| n.trim().parse() == Ok(counts.len() + 1))
                .and_then(|(_, count)| count.trim().parse().ok());
            match count {
                Some(count) if counts.len() < MOST_WORDS => counts.push(count),
                _ => {
                    let n = counts.len() + 1;
                    return Err(self.fail(format!("found {line:?}, expected `ngram {n}=COUNT`")));
                }
            }
        }
        Err(self.fail("ends before \\1-grams:"))
    }

    /// Reads the n-grams of `n` words, `count` of them. `add` says what is wrong with one, or
    /// that the disk fails.
    fn section(
        &mut self,
        n: usize,
        count: u64,
        mut add: impl FnMut(&Entry<'_>) -> std::result::Result<Result<()>, String>,
    ) -> Result<()> {
        // That of the first section was read with the counts.
        if n > 1 {
            let expected = format!("\\{n}-grams:");
            if !self.next()? || self.line != expected.as_bytes() {
                return Err(self.fail(format!(
                    "found {:?}, expected {expected:?}: the n-grams of {} words that were \
                     announced are all read",
                    String::from_utf8_lossy(&self.line),
                    n - 1
                )));
            }
        }
        for index in 0..count {
            if !self.next()? || self.line.first() == Some(&b'\\') {
                let reason = format!("{index} n-grams of {n} words, {count} were announced");
                return Err(self.fail(reason));
            }
            let entry = parse(self.text()?, n).map_err(|reason| self.fail(reason))?;
            add(&entry).map_err(|reason| self.fail(reason))??;
        }
        Ok(())
    }

    fn unigrams(
        &mut self,
        count: u64,
        vocabulary: &mut Vocabulary,
        unigrams: &mut Vec<(f32, f32)>,
    ) -> Result<()> {
        let mut marks = [false; 3];
        unigrams.resize(vocabulary.len(), (NO_UNKNOWN, 0.0));
        self.section(1, count, |entry| {
            let word = entry.words[0];
            let id = match word_of(vocabulary, word) {
                Some(id) => {
                    let mark = marks.get_mut(id as usize).filter(|mark| !**mark);
                    *mark.ok_or_else(|| format!("the word {word:?} is there twice"))? = true;
                    id
                }
                None => match vocabulary.add(word) {
                    Ok(id) => {
                        unigrams.push((0.0, 0.0));
                        id
                    }
                    Err(error) => return Ok(Err(error)),
                },
            };
            unigrams[id as usize] = (entry.log10, entry.backoff);
            Ok(Ok(()))
        })?;
        for (id, name) in [(BEGIN, "<s>"), (END, "</s>")] {
            if !marks[id as usize] {
                return Err(self.fail(format!("the \\1-grams have no {name}")));
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        if self.next()? && self.line == b"\\end\\" {
            return Ok(());
        }
        Err(self.fail("expected \\end\\: the file is cut short, or has more than was announced"))
    }
}

/// The parts of a line.
fn parse(line: &str, n: usize) -> std::result::Result<Entry<'_>, String> {
    let mut fields = line.split(is_delimiter).filter(|field| !field.is_empty());
    let number = |field: Option<&str>| {
        field.and_then(|field| field.parse::<f32>().ok()).filter(|number| !number.is_nan())
    };
    let log10 = number(fields.next())
        .filter(|log10| *log10 <= 0.0)
        .ok_or_else(|| format!("{line:?} does not begin with a logarithm of at most 0"))?;
    let words: Vec<&str> = fields.by_ref().take(n).collect();
    let backoff = match fields.next() {
        Some(field) => number(Some(field)),
        None => Some(0.0),
    };
    match backoff {
        Some(backoff) if words.len() == n && fields.next().is_none() => {
            Ok(Entry { log10, words, backoff })
        }
        _ => Err(format!("{line:?}, expected a logarithm, {n} words and perhaps a backoff")),
    }
}
