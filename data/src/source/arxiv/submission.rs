//! What authors sent in: a gzipped tar of a project, or one gzipped TeX file.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use crate::document::Reason;
use crate::error::DataError;
use crate::source::archive::{ArchiveError, Capped, inner_path, read_members};
use crate::text::charset::is_utf16;

/// Most files of a project that can hold TeX.
const MOST_FILES: usize = 20_000;
/// A block of a tar archive.
const BLOCK: usize = 512;

/// Endings of files that are no TeX: figures, bibliographies, classes.
const NOT_TEX: [&str; 35] = [
    "eps", "ps", "epsi", "pdf", "png", "jpg", "jpeg", "gif", "svg", "tif", "tiff", "bmp", "bib",
    "bst", "clo", "fd", "csv", "dat", "gz", "zip", "tar", "mp4", "avi", "mov", "mpg", "py", "m",
    "nb", "c", "f", "tfm", "pfb", "ttf", "xml", "html",
];

/// The files of one paper: path and content.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What was sent in.
#[derive(Debug, PartialEq)]
pub(super) enum Submission {
    /// Several files; those that can hold TeX, and how many others there were.
    Project {
        /// Files that can hold TeX.
        files: Files,
        /// All files.
        count: u64,
    },
    /// One file.
    Single(Vec<u8>),
}

/// Bounds on a submission.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of the files that can hold TeX.
    pub text: usize,
    /// Bytes of all that is in it, decompressed.
    pub expanded: u64,
}

/// Why a submission gives no files.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A reason and its detail.
    Rejected(Reason, String),
    /// The file around it cannot be read.
    Failed(DataError),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        ArchiveError::from(error).into()
    }
}

impl From<ArchiveError> for Refusal {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Damaged { offset, reason } => {
                let detail = format!("{reason}, {offset} bytes into its decompressed form");
                Self::Rejected(BAD_ARCHIVE, detail)
            }
            ArchiveError::Other(error) => Self::Failed(error),
        }
    }
}

const BAD_ARCHIVE: Reason = Reason::broken("bad_archive");

/// Reads one submission, compressed or not.
pub(super) fn read(reader: &mut dyn Read, bounds: Bounds) -> Result<Submission, Refusal> {
    let mut start = [0; 2];
    let length = read_full(reader, &mut start)?;
    let whole = start[..length].chain(reader);
    let reader: &mut dyn Read = match start {
        [0x1f, 0x8b] => &mut MultiGzDecoder::new(BufReader::new(whole)),
        _ => &mut { whole },
    };
    let mut capped = Capped::new(reader, bounds.expanded);
    let result = read_expanded(&mut capped, bounds.text);
    if capped.exceeded {
        let detail = format!("more than {} bytes, see max_expanded_bytes", bounds.expanded);
        return Err(Refusal::Rejected(Reason::broken("expands_too_far"), detail));
    }
    result
}

fn read_expanded(reader: &mut dyn Read, bound: usize) -> Result<Submission, Refusal> {
    let mut block = [0; BLOCK];
    let length = read_full(reader, &mut block)?;
    let head = &block[..length];
    let mut whole = head.chain(reader);
    if is_tar(head) {
        return read_project(&mut whole, bound);
    }
    if let Some(kind) = other_kind(head) {
        // Read on, so that damage is noticed whatever it is.
        io::copy(&mut whole, &mut io::sink())?;
        let detail = "the submission is no TeX".to_owned();
        return Err(Refusal::Rejected(Reason::unwanted(kind), detail));
    }
    let mut content = Vec::new();
    (&mut whole).take(bound as u64 + 1).read_to_end(&mut content)?;
    if content.len() > bound {
        return Err(too_long(bound));
    }
    Ok(Submission::Single(content))
}

fn read_project(reader: &mut dyn Read, bound: usize) -> Result<Submission, Refusal> {
    let mut files = Files::new();
    let (mut count, mut total, mut exceeded) = (0, 0, false);
    read_members(reader, &mut |member, body| {
        count += 1;
        // A path that leaves the project is no part of it.
        let Some(path) = inner_path(&member.path).filter(|path| may_be_tex(path)) else {
            return Ok(());
        };
        exceeded |= member.bytes > (bound - total) as u64 || files.len() >= MOST_FILES;
        if exceeded {
            return Ok(());
        }
        let mut content = Vec::new();
        body.read_to_end(&mut content)?;
        if is_text(&content) {
            total += content.len();
            files.insert(path, content);
        }
        Ok(())
    })?;
    if exceeded {
        return Err(too_long(bound));
    }
    Ok(Submission::Project { files, count })
}

fn too_long(bound: usize) -> Refusal {
    let detail = format!("more than {bound} bytes of TeX (max_record_bytes) or {MOST_FILES} files");
    Refusal::Rejected(Reason::TOO_LONG, detail)
}

fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// Whether `path` has an ending, or none, that files with TeX have.
pub(super) fn may_be_tex(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    !NOT_TEX.contains(&ending.as_str())
}

/// Whether `content` is text rather than a figure or a program's file.
pub(super) fn is_text(content: &[u8]) -> bool {
    let start = &content[..content.len().min(4096)];
    (is_utf16(start) || !start.contains(&0)) && other_kind(start).is_none()
}

/// Whether a file that begins with `head` is a tar archive: by the magic of POSIX and GNU, or by
/// the checksum of older ones.
fn is_tar(head: &[u8]) -> bool {
    if head.len() < BLOCK {
        return false;
    }
    if &head[257..262] == b"ustar" {
        return true;
    }
    // Eight spaces stand for the checksum in its sum.
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    let expected = sum(&head[..148]) + 8 * u32::from(b' ') + sum(&head[156..BLOCK]);
    let digits = std::str::from_utf8(&head[148..156]).unwrap_or_default();
    let stored = u32::from_str_radix(digits.trim_matches([' ', '\0']), 8);
    head[0] != 0 && stored == Ok(expected)
}

/// The kind of a file that is no TeX, as a reason.
fn other_kind(head: &[u8]) -> Option<&'static str> {
    let text = head.trim_ascii_start();
    let starts = |start: &str| {
        text.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start.as_bytes()))
    };
    if starts("%PDF-") {
        Some("pdf_only")
    } else if starts("%!PS") || starts("\u{4}%!PS") {
        Some("postscript_only")
    } else if starts("<!doctype html") || starts("<html") {
        Some("html_only")
    } else if starts("PK\u{3}\u{4}") {
        Some("office_document")
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::source::archive::tests::{gzip, tar_of};

    const BOUNDS: Bounds = Bounds { text: 1 << 20, expanded: 1 << 22 };
    const TEX: &[u8] = b"\\documentclass{article}\\begin{document}x\\end{document}";

    fn read_bytes(bytes: &[u8]) -> Result<Submission, String> {
        read(&mut &*bytes, BOUNDS).map_err(|refusal| match refusal {
            Refusal::Rejected(reason, _) => reason.name().to_owned(),
            Refusal::Failed(error) => panic!("{error}"),
        })
    }

    #[test]
    fn both_kinds_are_read() {
        let tar = tar_of(&[("main.tex", TEX), ("fig.eps", b"%!PS"), ("../x.tex", TEX)]);
        let project = Submission::Project {
            files: Files::from([("main.tex".to_owned(), TEX.to_vec())]),
            count: 3,
        };
        assert_eq!(read_bytes(&gzip(&tar)), Ok(project));
        assert_eq!(read_bytes(&gzip(TEX)), Ok(Submission::Single(TEX.to_vec())));
        assert_eq!(read_bytes(TEX), Ok(Submission::Single(TEX.to_vec())));
        // Without the magic of later formats, as tar wrote it in 1992.
        let mut old = tar_of(&[("main.tex", TEX)]);
        old[257..265].fill(0);
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(&old[..512]);
        header.set_cksum();
        old[..512].copy_from_slice(header.as_bytes());
        assert!(matches!(read_bytes(&old), Ok(Submission::Project { count: 1, .. })));
    }

    #[test]
    fn other_kinds_are_named() {
        for (content, reason) in [
            (&b"%PDF-1.4"[..], "pdf_only"),
            (b"%!PS-Adobe", "postscript_only"),
            (b"\n<HTML><head>", "html_only"),
            (b"PK\x03\x04", "office_document"),
        ] {
            assert_eq!(read_bytes(&gzip(content)), Err(reason.to_owned()));
        }
    }

    #[test]
    fn damage_and_bombs_are_refused() {
        let tar = gzip(&tar_of(&[("main.tex", TEX), ("b.tex", &TEX.repeat(50))]));
        for length in 1..tar.len() {
            let result = read_bytes(&tar[..length]);
            // One byte is no gzip, and shorter than what tells the kind.
            assert!(result == Err("bad_archive".to_owned()) || length < 2, "{length}: {result:?}");
        }
        let bomb = gzip(&vec![b'x'; 8 << 20]);
        assert!(bomb.len() < 10_000);
        assert_eq!(read_bytes(&bomb), Err("too_long".to_owned()));
        let large: &[u8] = &vec![0; 8 << 20];
        let bomb = gzip(&tar_of(&[("main.tex", TEX), ("data.png", large)]));
        assert_eq!(read_bytes(&bomb), Err("expands_too_far".to_owned()));
    }
}
