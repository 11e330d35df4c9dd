//! The streams of a bzip2 file, several at a time.
//!
//! A multistream dump is many bzip2 streams one after the other, about a hundred pages in each.
//! Streams begin at whole bytes with a signature of ten bytes, so they are found without the
//! index file and decoded in parallel; the output is in the order of the file. A stream that is
//! too long for that, the only one of an ordinary dump for example, is decoded as it comes.

use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};

use bzip2::{Decompress, Status};
use memchr::memmem;
use rayon::prelude::*;

use crate::error::{DataError, Result};
use crate::storage::InputFile;

/// Compressed bytes looked at together. A stream longer than this is decoded as it comes.
const WINDOW: usize = 8 << 20;
/// Bytes read from the file at a time.
const READ: usize = 1 << 20;
/// Decompressed bytes of a long stream handed on at a time. The checksum of a block comes after
/// it and a block has at most 900 kB, so the last chunk before damage is not to be trusted.
const CHUNK: usize = 1 << 20;
/// Length of the signature of a stream: `BZh`, the block size, and the first six bytes of its
/// first block or of its end.
const SIGNATURE: usize = 10;
const BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
const STREAM_END: [u8; 6] = [0x17, 0x72, 0x45, 0x38, 0x50, 0x90];

/// What comes out of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Decompressed bytes, in order.
    Bytes(Vec<u8>),
    /// Something is missing here.
    Damage(Damage),
}

/// A stream that cannot be decoded to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// Where the stream begins in the file.
    pub stream: u64,
    /// Compressed bytes of the file consumed when the damage showed.
    pub offset: u64,
    /// The decoder's answer.
    pub reason: String,
}

/// A bzip2 file as chunks of decompressed bytes.
pub(super) struct Bzip2Streams {
    path: PathBuf,
    file: InputFile,
    /// Compressed bytes not yet decoded.
    window: Vec<u8>,
    /// Offset in the file of the window's first byte.
    base: u64,
    at_end: bool,
    ready: VecDeque<Chunk>,
    long: Option<LongStream>,
    /// Streams that were decoded beside others and come after what is ready and what is long.
    waiting: VecDeque<Waiting>,
    /// Most decompressed bytes of a stream that is decoded beside others.
    stream_bytes: usize,
    newly_read: u64,
    #[cfg(test)]
    decoded_bytes: u64,
}

/// A stream that is decoded as it comes.
struct LongStream {
    decoder: Decompress,
    offset: u64,
    /// Decoded, and handed on when more is.
    held: Vec<u8>,
}

/// What became of a stream decoded beside others.
enum Decoded {
    Whole {
        bytes: Vec<u8>,
        consumed: usize,
    },
    /// It goes on where the decoder stopped.
    TooLong {
        bytes: Vec<u8>,
        consumed: usize,
        decoder: Decompress,
    },
    Broken {
        bytes: Vec<u8>,
        consumed: usize,
        reason: String,
    },
}

impl Decoded {
    fn bytes(&self) -> &[u8] {
        let (Self::Whole { bytes, .. } | Self::TooLong { bytes, .. } | Self::Broken { bytes, .. }) =
            self;
        bytes
    }
}

/// A stream decoded beside others whose turn has not come.
struct Waiting {
    /// Where it begins and ends in the file.
    start: u64,
    end: u64,
    decoded: Decoded,
}

impl Bzip2Streams {
    /// Opens `path`. At most about `memory_bytes` are held, but no less than 64 MiB.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn open(path: &Path, memory_bytes: u64) -> Result<Self> {
        let file = InputFile::open(path)?;
        let share = memory_bytes as usize / (2 * streams_at_once());
        Ok(Self {
            path: path.to_owned(),
            file,
            window: Vec::new(),
            base: 0,
            at_end: false,
            ready: VecDeque::new(),
            long: None,
            waiting: VecDeque::new(),
            #[cfg(test)]
            decoded_bytes: 0,
            stream_bytes: share.clamp(8 << 20, 64 << 20),
            newly_read: 0,
        })
    }

    /// Bytes read from the file since the last call.
    pub fn newly_read(&mut self) -> u64 {
        std::mem::take(&mut self.newly_read)
    }

    /// The next chunk; None at the end of the file.
    ///
    /// # Errors
    /// [`DataError::Io`], and [`DataError::BadFile`] when the file does not begin as bzip2 does.
    pub fn next(&mut self) -> Result<Option<Chunk>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if let Some(long) = self.long.take() {
                self.decode_more(long)?;
                continue;
            }
            if let Some(waiting) = self.waiting.pop_front() {
                self.hand_on(waiting)?;
                continue;
            }
            self.fill()?;
            if self.window.is_empty() {
                return Ok(None);
            }
            self.decode_batch()?;
        }
    }

    fn fill(&mut self) -> Result<()> {
        while !self.at_end && self.window.len() < WINDOW {
            let have = self.window.len();
            self.window.resize(have + READ, 0);
            let read = self.file.read(&mut self.window[have..]);
            self.window.truncate(have + *read.as_ref().unwrap_or(&0));
            let read = read.map_err(DataError::io(&self.path))?;
            self.newly_read += read as u64;
            self.at_end = read == 0;
        }
        Ok(())
    }

    fn drop_front(&mut self, count: usize) {
        self.window.drain(..count);
        self.base += count as u64;
    }

    fn damage(&mut self, stream: u64, at: usize, reason: impl Into<String>) {
        let offset = self.base + at as u64;
        self.ready.push_back(Chunk::Damage(Damage { stream, offset, reason: reason.into() }));
    }

    /// Decodes the streams at the beginning of the window that lie in it whole.
    fn decode_batch(&mut self) -> Result<()> {
        let mut starts: Vec<usize> = starts(&self.window).take(streams_at_once() + 1).collect();
        if starts.first() != Some(&0) {
            return self.skip_to(starts.first().copied());
        }
        if starts.len() <= streams_at_once() && self.at_end {
            starts.push(self.window.len());
        }
        let decoded: Vec<Decoded> = starts
            .par_windows(2)
            .map(|ends| decode(&self.window[ends[0]..ends[1]], self.stream_bytes))
            .collect();
        for (decoded, ends) in decoded.into_iter().zip(starts.windows(2)) {
            self.count(decoded.bytes());
            let [start, end] = [ends[0], ends[1]].map(|at| self.base + at as u64);
            self.waiting.push_back(Waiting { start, end, decoded });
        }
        if self.waiting.is_empty() {
            // It does not end in the window.
            self.long = Some(LongStream {
                decoder: Decompress::new(false),
                offset: self.base,
                held: Vec::new(),
            });
        }
        Ok(())
    }

    /// Hands on a stream that was decoded beside others.
    fn hand_on(&mut self, Waiting { start, end, decoded }: Waiting) -> Result<()> {
        // What was taken for its signature lies in a long stream before it.
        if start < self.base {
            return Ok(());
        }
        let place = |at: u64, base: u64| usize::try_from(at - base).unwrap_or(usize::MAX);
        if start > self.base {
            // Behind a long stream: tapes and block devices pad files with zeros.
            return self.skip_to(Some(place(start, self.base))).map(|()| {
                self.waiting.push_front(Waiting { start, end, decoded });
            });
        }
        match decoded {
            Decoded::Whole { bytes, consumed } => {
                self.ready.push_back(Chunk::Bytes(bytes));
                let rest = &self.window[consumed..place(end, start)];
                if rest.iter().any(|&byte| byte != 0) {
                    self.damage(start, consumed, "bytes after the stream that are no stream");
                }
                self.drop_front(place(end, start));
            }
            Decoded::Broken { bytes, consumed, reason } => {
                self.ready.push_back(Chunk::Bytes(bytes));
                self.damage(start, consumed, reason);
                self.drop_front(place(end, start));
            }
            Decoded::TooLong { mut bytes, consumed, decoder } => {
                let held = bytes.split_off(bytes.len().saturating_sub(CHUNK));
                self.ready.push_back(Chunk::Bytes(bytes));
                self.drop_front(consumed);
                self.long = Some(LongStream { decoder, offset: start, held });
            }
        }
        Ok(())
    }

    /// Tells the tests how much was decoded.
    fn count(&mut self, _bytes: &[u8]) {
        #[cfg(test)]
        {
            self.decoded_bytes += _bytes.len() as u64;
        }
    }

    /// Skips to the next stream, at `start` of the window if there is one in it.
    fn skip_to(&mut self, start: Option<usize>) -> Result<()> {
        if self.base == 0 {
            let reason = "not a bzip2 file; check its name, or fetch it again";
            return Err(DataError::bad_file(&self.path, reason));
        }
        let zeros = self.window[..start.unwrap_or(self.window.len())].iter().all(|&b| b == 0);
        if !zeros {
            self.damage(self.base, 0, "no stream begins here");
        }
        self.skip_searched(start);
        if zeros { Ok(()) } else { self.skip_until_found(start) }
    }

    /// Drops what was searched for a stream; a signature may begin in the last bytes of the
    /// window.
    fn skip_searched(&mut self, start: Option<usize>) {
        let kept = if self.at_end { 0 } else { SIGNATURE - 1 };
        let skipped = start.unwrap_or_else(|| self.window.len().saturating_sub(kept));
        self.drop_front(skipped);
    }

    /// Decodes the next chunk of a long stream.
    fn decode_more(&mut self, mut long: LongStream) -> Result<()> {
        let mut bytes: Vec<u8> = Vec::with_capacity(CHUNK);
        let mut used = 0;
        loop {
            if used == self.window.len() {
                self.drop_front(used);
                used = 0;
                self.fill()?;
            }
            let before = (long.decoder.total_in(), long.decoder.total_out());
            let status = long.decoder.decompress_vec(&self.window[used..], &mut bytes);
            used += (long.decoder.total_in() - before.0) as usize;
            let progress = (long.decoder.total_in(), long.decoder.total_out()) != before;
            match status {
                Ok(Status::StreamEnd) => {
                    self.count(&bytes);
                    self.drop_front(used);
                    self.ready.extend([long.held, bytes].map(Chunk::Bytes));
                    return Ok(());
                }
                Err(error) => {
                    self.drop_front(used);
                    self.damage(long.offset, 0, error.to_string());
                    // What follows is found by its signature; this stream's own is behind.
                    let next = starts(&self.window).next();
                    self.skip_searched(next);
                    self.skip_until_found(next)?;
                    return Ok(());
                }
                Ok(_) if bytes.len() == bytes.capacity() => {
                    self.count(&bytes);
                    self.drop_front(used);
                    self.ready.push_back(Chunk::Bytes(std::mem::replace(&mut long.held, bytes)));
                    self.long = Some(long);
                    return Ok(());
                }
                Ok(_) if !progress && used == self.window.len() && self.at_end => {
                    self.drop_front(used);
                    self.ready.extend([long.held, bytes].map(Chunk::Bytes));
                    self.damage(long.offset, 0, "the file ends inside a stream");
                    return Ok(());
                }
                Ok(_) => {}
            }
        }
    }

    /// After damage: reads on until a stream begins or the file ends, so that the rest of the
    /// damaged stream is not taken for more damage.
    fn skip_until_found(&mut self, mut found: Option<usize>) -> Result<()> {
        while found.is_none() && !(self.at_end && self.window.is_empty()) {
            self.fill()?;
            found = starts(&self.window).next();
            self.skip_searched(found);
        }
        Ok(())
    }
}

/// Streams decoded beside each other.
fn streams_at_once() -> usize {
    2 * rayon::current_num_threads()
}

/// Where streams begin in `bytes`.
fn starts(bytes: &[u8]) -> impl Iterator<Item = usize> {
    memmem::find_iter(bytes, b"BZh").filter(|&at| {
        bytes.get(at + 3..at + SIGNATURE).is_some_and(|rest| {
            (b'1'..=b'9').contains(&rest[0]) && (rest[1..] == BLOCK || rest[1..] == STREAM_END)
        })
    })
}

/// Decodes the stream that `input` begins with, unless it has more than `bound` bytes.
fn decode(input: &[u8], bound: usize) -> Decoded {
    let mut decoder = Decompress::new(false);
    let mut bytes = Vec::with_capacity((5 * input.len()).min(bound));
    loop {
        if bytes.len() > bound {
            return Decoded::TooLong { bytes, consumed: decoder.total_in() as usize, decoder };
        }
        if bytes.len() == bytes.capacity() {
            bytes.reserve(CHUNK);
        }
        let before = (decoder.total_in(), decoder.total_out());
        let status = decoder.decompress_vec(&input[before.0 as usize..], &mut bytes);
        let consumed = decoder.total_in() as usize;
        match status {
            Ok(Status::StreamEnd) => return Decoded::Whole { bytes, consumed },
            Ok(_) if (decoder.total_in(), decoder.total_out()) == before => {
                let reason = "the stream ends too early".to_owned();
                return Decoded::Broken { bytes, consumed, reason };
            }
            Ok(_) => {}
            Err(error) => {
                bytes.truncate(bytes.len().saturating_sub(CHUNK));
                return Decoded::Broken { bytes, consumed, reason: error.to_string() };
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use bzip2::Compression;
    use bzip2::write::BzEncoder;

    use super::*;

    fn compress(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = BzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Bytes that do not compress well.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn read_all(bytes: &[u8], threads: usize) -> (Vec<u8>, Vec<Damage>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bz2");
        std::fs::write(&path, bytes).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut streams = Bzip2Streams::open(&path, 0).unwrap();
            let (mut all, mut damages, mut read) = (Vec::new(), Vec::new(), 0);
            while let Some(chunk) = streams.next().unwrap() {
                match chunk {
                    Chunk::Bytes(bytes) => all.extend(bytes),
                    Chunk::Damage(damage) => damages.push(damage),
                }
                read += streams.newly_read();
            }
            if damages.is_empty() {
                assert_eq!(streams.decoded_bytes, all.len() as u64, "decoded once");
            }
            assert_eq!(read + streams.newly_read(), bytes.len() as u64);
            (all, damages)
        })
    }

    #[test]
    fn streams_come_in_order_for_any_number_of_threads() {
        let parts: Vec<_> = (0..40).map(|n| noise(n, 1000 * n as usize)).collect();
        let file: Vec<u8> = parts.iter().flat_map(|part| compress(part)).collect();
        for threads in [1, 2, 7] {
            let (all, damages) = read_all(&file, threads);
            assert!(all == parts.concat() && damages.is_empty(), "{threads} threads");
        }
    }

    #[test]
    fn streams_too_long_for_the_window_are_read() {
        // One beyond the window, one that expands beyond what is decoded at once, a short one.
        let parts = [noise(1, WINDOW + WINDOW / 4), vec![b'x'; 20 << 20], noise(2, 1000)];
        let file: Vec<u8> = parts.iter().flat_map(|part| compress(part)).collect();
        let (all, damages) = read_all(&file, 2);
        assert!(all == parts.concat() && damages.is_empty());

        // Cut inside the long one: all that was whole comes, and where it ends.
        let (all, damages) = read_all(&file[..WINDOW], 2);
        assert!(all.len() > WINDOW * 3 / 4 && parts[0].starts_with(&all));
        assert_eq!((damages.len(), damages[0].stream, damages[0].offset), (1, 0, WINDOW as u64));

        // Damage inside the long one: the others come whole.
        let mut damaged = file.clone();
        damaged[WINDOW / 2] ^= 0x55;
        let (all, damages) = read_all(&damaged, 2);
        assert!(all.ends_with(&[&parts[1][..], &parts[2]].concat()));
        let kept = all.len() - parts[1].len() - parts[2].len();
        assert!(kept > WINDOW / 4 && parts[0].starts_with(&all[..kept]));
        assert_eq!((damages.len(), damages[0].stream), (1, 0));
        assert!(damages[0].offset >= (WINDOW / 2) as u64);
    }

    #[test]
    fn damage_in_one_stream_leaves_the_others() {
        let parts = [noise(1, 5000), noise(2, 5000), noise(3, 5000)];
        let streams = parts.each_ref().map(|part| compress(part));
        let second = streams[0].len();
        for at in [second + 12, second + 2000, second + streams[1].len() - 3] {
            let mut file = streams.concat();
            file[at] ^= 0xff;
            let (all, damages) = read_all(&file, 2);
            assert!(all == [&parts[0][..], &parts[2]].concat(), "damaged at {at}");
            assert_eq!((damages.len(), damages[0].stream), (1, second as u64), "{damages:?}");
        }
        // A stream without its end, before another one.
        let file = [&streams[0][..streams[0].len() - 100], &streams[1]].concat();
        let (all, damages) = read_all(&file, 2);
        assert!(all.ends_with(&parts[1]) && damages.len() == 1);
    }

    #[test]
    fn every_truncation_is_damage() {
        let file = [compress(&noise(1, 300)), compress(&noise(2, 300))].concat();
        let first = compress(&noise(1, 300)).len();
        for length in 1..file.len() {
            if length == first {
                continue; // a whole file of one stream
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.bz2");
            std::fs::write(&path, &file[..length]).unwrap();
            let mut streams = Bzip2Streams::open(&path, 0).unwrap();
            let mut damaged = false;
            loop {
                match streams.next() {
                    Ok(Some(Chunk::Bytes(_))) => {}
                    Ok(Some(Chunk::Damage(damage))) => {
                        assert!(damage.offset <= length as u64);
                        damaged = true;
                    }
                    Ok(None) => break,
                    Err(DataError::BadFile { .. }) => {
                        damaged = true;
                        break;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            assert!(damaged, "cut at {length}");
        }
        let padded = [&file[..], &[0; 5000]].concat();
        assert!(read_all(&padded, 2).1.is_empty());
    }
}
