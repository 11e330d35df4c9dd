//! Tar archives read as a stream: nothing is unpacked to disk and no length is believed.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use super::input::InputReader;
use crate::error::DataError;

/// Bytes of a long name or of an extended header.
const HEADER_BYTES: u64 = 64 << 10;
/// Size of a block of an archive.
const BLOCK: u64 = 512;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// The path as written in the archive.
    pub path: String,
    /// Size in bytes according to the archive.
    pub bytes: u64,
    /// Where its header begins, in the uncompressed archive.
    pub offset: u64,
    /// Time of the last change, in seconds since 1970.
    pub modified: u64,
}

/// Why an archive was not read to its end.
#[derive(Debug)]
pub(super) enum ArchiveError {
    /// It is damaged, cut short, or expands too far.
    Damaged {
        /// Where, in the uncompressed archive.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// What the visitor or the reader below said.
    Other(DataError),
}

impl From<DataError> for ArchiveError {
    fn from(error: DataError) -> Self {
        Self::Other(error)
    }
}

impl From<io::Error> for ArchiveError {
    /// An error while a member is read; where is filled in by [`read_members`].
    fn from(error: io::Error) -> Self {
        damaged(error, 0)
    }
}

/// Sees a file of an archive; need not read it.
pub(super) type MemberVisitor<'a> =
    &'a mut dyn FnMut(&Member, &mut dyn Read) -> Result<(), ArchiveError>;

/// Shows the regular files of a tar archive to `visit`, in order. Returns the comment of the
/// archive: the commit, in archives that git wrote.
///
/// An archive without its end marker is damaged, and so is one whose compressed form lacks its
/// trailer: `reader` is read to the end.
pub(super) fn read_members(
    reader: &mut dyn Read,
    visit: MemberVisitor<'_>,
) -> Result<Option<String>, ArchiveError> {
    let position = Rc::new(Cell::new(0));
    let counted = Counted { inner: reader, count: Rc::clone(&position) };
    let mut archive = tar::Archive::new(counted);
    let damaged = |error: io::Error| damaged(error, position.get());
    let mut comment = None;
    let mut long_name: Option<Vec<u8>> = None;
    let mut end = 0;
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        let header = entry.header();
        let (kind, bytes) = (header.entry_type(), header.entry_size().map_err(damaged)?);
        let name = long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
        let member = Member {
            path: String::from_utf8_lossy(&name).into_owned(),
            bytes,
            offset: entry.raw_header_position(),
            modified: header.mtime().unwrap_or(0),
        };
        end = bytes
            .checked_next_multiple_of(BLOCK)
            .and_then(|padded| padded.checked_add(entry.raw_file_position()))
            .ok_or_else(|| damaged(io::Error::other("a member of impossible size")))?;
        if kind.is_gnu_longname() {
            let mut name = read_header(&mut entry, bytes).map_err(damaged)?;
            name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
            long_name = Some(name);
        } else if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
            let records = read_header(&mut entry, bytes).map_err(damaged)?;
            for record in tar::PaxExtensions::new(&records) {
                let record = record.map_err(damaged)?;
                match record.key_bytes() {
                    b"path" if kind.is_pax_local_extensions() => {
                        long_name = Some(record.value_bytes().to_owned());
                    }
                    b"comment" => comment = record.value().ok().map(str::to_owned),
                    _ => {}
                }
            }
        } else if (kind.is_file() || kind.is_contiguous()) && !member.path.ends_with('/') {
            let mut body = Body { inner: &mut entry, left: bytes, short: false };
            let result = visit(&member, &mut body);
            if body.short {
                let reason = format!("{} is cut short", member.path);
                return Err(ArchiveError::Damaged { offset: position.get(), reason });
            }
            result.map_err(|error| match error {
                ArchiveError::Damaged { reason, .. } => {
                    ArchiveError::Damaged { offset: position.get(), reason }
                }
                other => other,
            })?;
        }
    }
    if position.get() <= end {
        let reason = "the archive ends without its end marker".to_owned();
        return Err(ArchiveError::Damaged { offset: position.get(), reason });
    }
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
    Ok(comment)
}

/// An error of a reader under an archive, `offset` bytes in.
fn damaged(error: io::Error, offset: u64) -> ArchiveError {
    match error.downcast::<DataError>() {
        Ok(error) => ArchiveError::Other(error),
        Err(error) => ArchiveError::Damaged { offset, reason: error.to_string() },
    }
}

fn read_header(entry: &mut impl Read, bytes: u64) -> io::Result<Vec<u8>> {
    if bytes > HEADER_BYTES {
        return Err(io::Error::other(format!("a header of {bytes} bytes, at most {HEADER_BYTES}")));
    }
    let mut header = Vec::new();
    entry.take(bytes).read_to_end(&mut header)?;
    Ok(header)
}

struct Counted<'a> {
    inner: &'a mut dyn Read,
    count: Rc<Cell<u64>>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count.set(self.count.get() + read as u64);
        Ok(read)
    }
}

/// The bytes of a member; the end of the archive inside of it is an error.
struct Body<'a> {
    inner: &'a mut dyn Read,
    left: u64,
    short: bool,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.saturating_sub(read as u64);
        if read == 0 && self.left > 0 && !buffer.is_empty() {
            self.short = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(read)
    }
}

/// Refuses to give more than a number of bytes.
pub(super) struct Capped<R> {
    inner: R,
    left: u64,
    /// Whether it refused.
    pub exceeded: bool,
}

impl<R> Capped<R> {
    /// At most `bytes` of `inner`.
    pub fn new(inner: R, bytes: u64) -> Self {
        Self { inner, left: bytes, exceeded: false }
    }
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                self.exceeded = true;
                return Err(io::Error::other("it expands too far"));
            }
        }
        Ok(read)
    }
}

/// An input as a reader, for the crates that want one. Errors keep the [`DataError`].
pub(super) struct Stream<'a> {
    input: &'a mut InputReader,
    bytes_read: &'a dyn Fn(u64),
}

impl<'a> Stream<'a> {
    /// Reads `input`, telling `bytes_read` how far.
    pub fn new(input: &'a mut InputReader, bytes_read: &'a dyn Fn(u64)) -> Self {
        Self { input, bytes_read }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.input.fill().map_err(io::Error::other)?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.input.consume(count);
        (self.bytes_read)(self.input.newly_consumed());
        Ok(count)
    }
}

/// A path inside an archive in its plain form: components joined by `/`. None when it is
/// absolute, leaves the archive or names nothing.
pub(super) fn inner_path(path: &str) -> Option<String> {
    let path = path.replace('\\', "/");
    let drive = path.as_bytes().get(1) == Some(&b':') && path.as_bytes()[0].is_ascii_alphabetic();
    if path.starts_with('/') || drive || path.contains('\0') {
        return None;
    }
    let components: Vec<&str> =
        path.split('/').filter(|component| !component.is_empty() && *component != ".").collect();
    (!components.is_empty() && !components.contains(&"..")).then(|| components.join("/"))
}

/// Seconds since 1970 as RFC 3339 in UTC.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    // Years begin in March, so that the leap day is the last: 719468 days lie between
    // 0000-03-01 and 1970-01-01, and 146097 days are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    /// A tar archive of `files`.
    pub(in crate::source) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mtime(1_175_425_445);
            header.set_mode(0o644);
            // The builder refuses paths that leave the archive, which is what some tests need.
            if path.len() < 100 {
                header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
                builder.append(&header, *content).unwrap();
            } else {
                builder.append_data(&mut header, path, *content).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    /// `bytes` compressed.
    pub(in crate::source) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        let mut encoder = flate2::read::GzEncoder::new(bytes, level);
        let mut out = Vec::new();
        encoder.read_to_end(&mut out).unwrap();
        out
    }

    fn read(bytes: &[u8]) -> Result<Vec<(String, String)>, ArchiveError> {
        let mut files = Vec::new();
        read_members(&mut &*bytes, &mut |member, body| {
            let mut text = String::new();
            body.read_to_string(&mut text)?;
            files.push((member.path.clone(), text));
            Ok(())
        })?;
        Ok(files)
    }

    #[test]
    fn members_are_read_with_long_names() {
        let long = format!("{}/a.tex", "deep/".repeat(40));
        let bytes = tar_of(&[("a.tex", b"first"), (&long, b"second"), ("b.tex", b"")]);
        let files = read(&bytes).unwrap();
        assert_eq!(files[0], ("a.tex".into(), "first".into()));
        assert_eq!(inner_path(&files[1].0), Some(format!("{}a.tex", "deep/".repeat(40))));
        assert_eq!((files[1].1.as_str(), files.len()), ("second", 3));
    }

    #[test]
    fn every_truncation_is_noticed() {
        let bytes = tar_of(&[("a.tex", &[b'x'; 700]), ("b.tex", b"y")]);
        for length in 0..=bytes.len() - 1024 {
            match read(&bytes[..length]) {
                Err(ArchiveError::Damaged { offset, .. }) => assert!(offset <= length as u64),
                other => panic!("cut at {length}: {other:?}"),
            }
        }
        assert_eq!(read(&bytes).unwrap().len(), 2);
        // Any changed bit of a header is noticed too.
        let mut changed = bytes.clone();
        changed[3] ^= 1;
        assert!(matches!(read(&changed), Err(ArchiveError::Damaged { .. })));
    }

    #[test]
    fn huge_headers_are_not_believed() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        assert!(matches!(
            read(&builder.into_inner().unwrap()),
            Err(ArchiveError::Damaged { reason, .. }) if reason.contains("header")
        ));
    }

    #[test]
    fn too_much_is_refused() {
        let mut capped = Capped::new(io::repeat(0), 1000);
        let mut all = Vec::new();
        assert!(capped.read_to_end(&mut all).is_err());
        assert!(capped.exceeded && all.len() <= 1000);
        let mut capped = Capped::new(&[0; 1000][..], 1000);
        assert_eq!(capped.read_to_end(&mut Vec::new()).unwrap(), 1000);
    }

    #[test]
    fn paths_stay_inside() {
        for (path, expected) in [
            ("a/b.tex", Some("a/b.tex")),
            ("./a//b.tex", Some("a/b.tex")),
            ("a\\b.tex", Some("a/b.tex")),
            ("a/../b", None),
            ("../b", None),
            ("..\\b", None),
            ("/etc/passwd", None),
            ("C:\\x", None),
            (".", None),
            ("a..b", Some("a..b")),
        ] {
            assert_eq!(inner_path(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_175_425_445), "2007-04-01T11:04:05Z");
        assert_eq!(rfc3339(4_107_542_399), "2100-02-28T23:59:59Z");
    }
}
