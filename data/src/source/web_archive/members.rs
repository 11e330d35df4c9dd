//! Compressed files read member by member, with a way on after damage.
//!
//! Web archives are one gzip member (RFC 1952) or one Zstandard frame (RFC 8878) per record. A
//! damaged member is reported with its offsets, and reading goes on at the next one, found by its
//! magic number and by decoding. A file that is not compressed is one endless member.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::{Crc, Decompress, FlushDecompress, Status};
use memchr::memmem;
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use crate::error::{DataError, Result};
use crate::storage::InputFile;

/// Compressed bytes in memory.
const INPUT_BYTES: usize = 1 << 18;
/// Decompressed bytes in memory.
const OUTPUT_BYTES: usize = 1 << 17;
/// Longest gzip header: a file name and a comment at most, in practice.
const GZIP_HEADER_BYTES: usize = 1 << 14;
/// Decompressed bytes that show a member found by its magic number to be one.
const PROOF_BYTES: usize = 4096;
/// Compressed bytes that must be enough for them.
const PROOF_INPUT_BYTES: u64 = 1 << 16;
/// Bytes at the beginning of a member that are decoded together.
const LOOK_AHEAD: usize = 64;

pub(super) const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
pub(super) const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Begins every record, and so every member of an archive with one member per record.
pub(super) const RECORD_MAGIC: &[u8] = b"WARC/";

/// What [`Members::fill`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// [`Members::available`] is not empty.
    Data,
    /// A member ends too early or is damaged. The next call goes on behind it.
    Damaged(Damage),
    /// The end of the file.
    End,
}

/// Damage of a compressed member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// Offset of the member in the file.
    pub member: u64,
    /// Offset in the file where the damage showed.
    pub offset: u64,
    /// The decoder's answer.
    pub reason: String,
}

#[derive(Clone, Copy)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

enum Codec {
    Plain,
    Gzip { inflate: Box<Decompress>, crc: Crc },
    Zstd(Box<ZstdDecoder<'static>>),
}

/// A file, decompressed.
pub(super) struct Members {
    path: PathBuf,
    file: InputFile,
    codec: Codec,
    input: Vec<u8>,
    /// The part of `input` that is not decoded yet.
    unread: std::ops::Range<usize>,
    /// Offset in the file of `unread.start`.
    position: u64,
    at_end: bool,
    output: Vec<u8>,
    /// The part of `output` that is not used yet.
    ready: std::ops::Range<usize>,
    /// Bytes that were given back, read before `ready`.
    returned: Vec<u8>,
    /// How many of them are read.
    returned_read: usize,
    /// Bytes of the member that were used.
    used: u64,
    /// Offset of the member that is being decoded, or was last.
    member: u64,
    inside: bool,
    /// Whether `ready` begins with the first byte of a member.
    fresh: bool,
    damage: Option<Damage>,
    /// Bytes that may still be read a second time in search of members.
    second_reads: u64,
    reported: u64,
}

impl Members {
    /// Opens `path`; its first bytes, or else its name, say how it is compressed.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = InputFile::open(path)?;
        let length = file.length().map_err(DataError::io(path))?;
        let mut members = Self {
            path: path.to_owned(),
            file,
            codec: Codec::Plain,
            input: vec![0; INPUT_BYTES],
            unread: 0..0,
            position: 0,
            at_end: false,
            output: vec![0; OUTPUT_BYTES],
            ready: 0..0,
            returned: Vec::new(),
            returned_read: 0,
            used: 0,
            member: 0,
            inside: false,
            fresh: false,
            damage: None,
            second_reads: length.saturating_add(64 << 20),
            reported: 0,
        };
        members.codec = match members.compression()? {
            Compression::None => Codec::Plain,
            Compression::Gzip => {
                Codec::Gzip { inflate: Box::new(Decompress::new(false)), crc: Crc::new() }
            }
            Compression::Zstd => {
                Codec::Zstd(Box::new(ZstdDecoder::new().map_err(DataError::io(path))?))
            }
        };
        Ok(members)
    }

    /// How the file is compressed: by its first bytes, or when these are damaged by its name.
    fn compression(&mut self) -> Result<Compression> {
        let ending = self.path.extension().map(|ending| ending.to_ascii_lowercase());
        let start = self.peek(8)?;
        let text = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(start);
        Ok(if start.starts_with(&GZIP_MAGIC) {
            Compression::Gzip
        } else if start.starts_with(&ZSTD_MAGIC) || is_skippable_frame(start) {
            Compression::Zstd
        } else if text.starts_with(RECORD_MAGIC) || text.starts_with(b"filedesc") || text.is_empty()
        {
            Compression::None
        } else {
            match ending.as_deref().and_then(|ending| ending.to_str()) {
                Some("gz") => Compression::Gzip,
                Some("zst") => Compression::Zstd,
                _ => Compression::None,
            }
        })
    }

    /// Decompressed bytes that are ready.
    pub fn available(&self) -> &[u8] {
        match &self.returned[self.returned_read..] {
            [] => &self.output[self.ready.clone()],
            returned => returned,
        }
    }

    /// Where [`Members::available`] begins: the offset of the member in the file, and its own in the
    /// decompressed member.
    pub fn place(&self) -> (u64, u64) {
        (self.member, self.used)
    }

    /// Whether the file is compressed.
    pub fn is_compressed(&self) -> bool {
        !matches!(self.codec, Codec::Plain)
    }

    /// Gives back the last bytes that were used: they are read again.
    pub fn push_back(&mut self, bytes: &[u8]) {
        let mut returned = bytes.to_vec();
        returned.extend_from_slice(&self.returned[self.returned_read..]);
        self.returned = returned;
        self.returned_read = 0;
        self.used = self.used.saturating_sub(bytes.len() as u64);
    }

    /// Whether [`Members::available`] begins with the first byte of a member.
    pub fn at_member_start(&self) -> bool {
        self.fresh && self.returned_read == self.returned.len()
    }

    /// Offset in the file of the member the available bytes belong to.
    pub fn member(&self) -> u64 {
        self.member
    }

    /// Marks `count` of the available bytes as used.
    pub fn consume(&mut self, count: usize) {
        self.used += count as u64;
        if self.returned_read < self.returned.len() {
            self.returned_read += count;
            return;
        }
        self.ready.start += count;
        self.fresh &= count == 0;
    }

    /// Bytes of the file decoded since the last call.
    pub fn newly_consumed(&mut self) -> u64 {
        let new = self.position.saturating_sub(self.reported);
        self.reported += new;
        new
    }

    /// Decodes until bytes are available. What a member gave before its damage is given out
    /// first.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub fn fill(&mut self) -> Result<Fill> {
        if self.returned_read < self.returned.len() {
            return Ok(Fill::Data);
        }
        self.returned = Vec::new();
        self.returned_read = 0;
        loop {
            let ready = self.ready.len();
            let wants_more = self.fresh && self.inside && ready < LOOK_AHEAD;
            if ready > 0 && (!wants_more || self.damage.is_some()) {
                return Ok(Fill::Data);
            }
            if let Some(damage) = self.damage.take() {
                self.seek_member(&damage)?;
                return Ok(Fill::Damaged(damage));
            }
            if self.inside {
                self.decode()?;
            } else if !self.begin_member()? {
                return Ok(Fill::End);
            }
        }
    }

    /// Starts the next member; false at the end of the file.
    fn begin_member(&mut self) -> Result<bool> {
        self.member = self.position;
        self.ready = 0..0;
        if self.peek(1)?.is_empty() {
            return Ok(false);
        }
        if matches!(self.codec, Codec::Gzip { .. }) && self.peek(1)? == [0] && self.skip_zeros()? {
            return Ok(false);
        }
        self.member = self.position;
        let header = match &self.codec {
            Codec::Plain => Ok(0),
            Codec::Gzip { .. } => gzip_header(self.peek(GZIP_HEADER_BYTES)?),
            Codec::Zstd(_) => {
                let start = self.peek(4)?;
                match start == ZSTD_MAGIC || is_skippable_frame(start) {
                    true => Ok(0),
                    false => Err("no Zstandard frame begins here"),
                }
            }
        };
        match header {
            Ok(length) => self.advance(length),
            Err(reason) => {
                self.blame(reason.into());
                return Ok(true);
            }
        }
        match &mut self.codec {
            Codec::Plain => {}
            Codec::Gzip { inflate, crc } => {
                inflate.reset(false);
                crc.reset();
            }
            Codec::Zstd(decoder) => decoder.reinit().map_err(DataError::io(&self.path))?,
        }
        self.inside = true;
        self.fresh = true;
        self.used = 0;
        Ok(true)
    }

    /// Decodes once into the free part of the output.
    fn decode(&mut self) -> Result<()> {
        if self.ready.is_empty() {
            self.ready = 0..0;
        }
        if self.unread.is_empty() {
            self.read_file()?;
        }
        let input = &self.input[self.unread.clone()];
        let output = &mut self.output[self.ready.end..];
        let (read, written, state) = match &mut self.codec {
            Codec::Plain => {
                let count = input.len().min(output.len());
                output[..count].copy_from_slice(&input[..count]);
                (count, count, if count == 0 { State::Ended } else { State::Going })
            }
            Codec::Gzip { inflate, crc } => {
                let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
                let result = inflate.decompress(input, output, FlushDecompress::None);
                let read = (inflate.total_in() - before_in) as usize;
                let written = (inflate.total_out() - before_out) as usize;
                crc.update(&output[..written]);
                let state = match result {
                    Ok(Status::StreamEnd) => State::Ended,
                    Ok(_) if read == 0 && written == 0 => State::Stuck,
                    Ok(_) => State::Going,
                    Err(_) => State::Failed("no valid deflate data".into()),
                };
                (read, written, state)
            }
            Codec::Zstd(decoder) => {
                let mut source = InBuffer::around(input);
                let mut target = OutBuffer::around(output);
                let result = decoder.run(&mut source, &mut target);
                let (read, written) = (source.pos(), target.pos());
                let state = match result {
                    Ok(0) => State::Ended,
                    Ok(_) if read == 0 && written == 0 => State::Stuck,
                    Ok(_) => State::Going,
                    Err(error) => State::Failed(error.to_string()),
                };
                (read, written, state)
            }
        };
        self.advance(read);
        self.ready.end += written;
        match state {
            State::Going => {}
            State::Stuck if !self.unread.is_empty() => self.blame("no progress".into()),
            State::Stuck if self.at_end => self.blame("the file ends inside a member".into()),
            State::Stuck => {}
            State::Failed(reason) => self.blame(reason),
            State::Ended => {
                self.inside = false;
                self.check_trailer()?;
            }
        }
        Ok(())
    }

    /// Compares what gzip stores behind a member with what was decoded.
    fn check_trailer(&mut self) -> Result<()> {
        let Codec::Gzip { crc, .. } = &self.codec else {
            return Ok(());
        };
        let (sum, amount) = (crc.sum(), crc.amount());
        let trailer = self.peek(8)?;
        let Some((stored_sum, stored_amount)) = trailer.split_first_chunk::<4>() else {
            self.blame("the file ends inside a member".into());
            return Ok(());
        };
        let wrong = u32::from_le_bytes(*stored_sum) != sum || stored_amount != amount.to_le_bytes();
        if wrong {
            self.blame("checksum or length differ".into());
        } else {
            self.advance(8);
        }
        Ok(())
    }

    fn blame(&mut self, reason: String) {
        self.inside = false;
        self.damage = Some(Damage { member: self.member, offset: self.position, reason });
    }

    /// Goes to the next member behind a damaged one, or to the end of the file.
    ///
    /// The search begins directly behind the beginning of the damaged member, because the decoder
    /// may have run into the next one; when that has cost too much (a file made for it), where the
    /// decoder stopped.
    fn seek_member(&mut self, damage: &Damage) -> Result<()> {
        let again = self.position - damage.member;
        let mut from = damage.member + 1;
        if again > self.second_reads {
            from = self.position.max(from);
        }
        self.second_reads = self.second_reads.saturating_sub(again);
        loop {
            self.go_to(from)?;
            let Some(candidate) = self.find_magic()? else {
                self.ready = 0..0;
                return Ok(());
            };
            if self.proves_itself(candidate)? {
                return self.go_to(candidate);
            }
            from = candidate + 1;
        }
    }

    /// Offset of the next magic number; leaves the file at its end when there is none.
    fn find_magic(&mut self) -> Result<Option<u64>> {
        let magic: &[u8] = match self.codec {
            Codec::Plain => return Ok(None),
            Codec::Gzip { .. } => &GZIP_MAGIC,
            Codec::Zstd(_) => &ZSTD_MAGIC,
        };
        loop {
            let bytes = self.peek(INPUT_BYTES)?;
            if let Some(at) = memmem::find(bytes, magic) {
                return Ok(Some(self.position + at as u64));
            }
            if bytes.len() < INPUT_BYTES {
                let rest = bytes.len();
                self.advance(rest);
                return Ok(None);
            }
            self.advance(INPUT_BYTES - magic.len() + 1);
        }
    }

    /// Whether a member at `offset` decodes, far enough not to be chance.
    fn proves_itself(&mut self, offset: u64) -> Result<bool> {
        self.go_to(offset)?;
        self.begin_member()?;
        while self.inside && self.damage.is_none() && self.ready.len() < PROOF_BYTES {
            self.decode()?;
            if self.available().starts_with(RECORD_MAGIC) {
                break;
            }
            if self.position - offset > PROOF_INPUT_BYTES {
                self.blame("too little comes out".into());
            }
        }
        let fits = self.damage.take().is_none() && !self.ready.is_empty();
        self.inside = false;
        self.ready = 0..0;
        Ok(fits)
    }

    fn go_to(&mut self, offset: u64) -> Result<()> {
        self.inside = false;
        self.ready = 0..0;
        // What is still in memory is not read again.
        let kept = self.position - self.unread.start as u64;
        let wanted = offset.checked_sub(kept).map_or(usize::MAX, |at| at as usize);
        if wanted <= self.unread.end {
            self.unread.start = wanted;
        } else {
            self.file.seek(SeekFrom::Start(offset)).map_err(DataError::io(&self.path))?;
            self.unread = 0..0;
            self.at_end = false;
        }
        self.position = offset;
        Ok(())
    }

    /// Passes over zeros, which some tools append; true when the file ends with them.
    fn skip_zeros(&mut self) -> Result<bool> {
        loop {
            let bytes = self.peek(INPUT_BYTES)?;
            if bytes.is_empty() {
                return Ok(true);
            }
            let zeros = bytes.iter().position(|byte| *byte != 0);
            let count = zeros.unwrap_or(bytes.len());
            self.advance(count);
            if zeros.is_some() {
                return Ok(false);
            }
        }
    }

    /// The next `count` compressed bytes, fewer at the end of the file.
    fn peek(&mut self, count: usize) -> Result<&[u8]> {
        while self.unread.len() < count && !self.at_end {
            self.read_file()?;
        }
        let end = self.unread.end.min(self.unread.start + count);
        Ok(&self.input[self.unread.start..end])
    }

    /// Reads more of the file behind what is not decoded yet.
    fn read_file(&mut self) -> Result<()> {
        if self.unread.start > 0 {
            self.input.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let count = loop {
            match self.file.read(&mut self.input[self.unread.end..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => break result.map_err(DataError::io(&self.path))?,
            }
        };
        self.unread.end += count;
        self.at_end = count == 0;
        Ok(())
    }

    fn advance(&mut self, count: usize) {
        self.unread.start += count;
        self.position += count as u64;
    }
}

enum State {
    Going,
    Stuck,
    Ended,
    Failed(String),
}

fn is_skippable_frame(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Length of the gzip header that `bytes` begin with (RFC 1952, section 2.3).
fn gzip_header(bytes: &[u8]) -> std::result::Result<usize, &'static str> {
    const CUT: &str = "cut short, or too long, in the header of a gzip member";
    if !bytes.starts_with(&GZIP_MAGIC) {
        return Err("no gzip member begins here");
    }
    let flags = *bytes.get(3).ok_or(CUT)?;
    if flags & 0xe0 != 0 {
        return Err("unknown flags in the header of a gzip member");
    }
    let mut at = 10;
    if flags & 4 != 0 {
        let extra = bytes.get(at..at + 2).ok_or(CUT)?;
        at += 2 + usize::from(u16::from_le_bytes([extra[0], extra[1]]));
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            at += 1 + memchr::memchr(0, bytes.get(at..).ok_or(CUT)?).ok_or(CUT)?;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    if at > bytes.len() { Err(CUT) } else { Ok(at) }
}
