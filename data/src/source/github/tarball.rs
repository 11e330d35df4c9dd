//! Repositories in tar archives and zip files.
//!
//! An archive is read twice: first for the licenses, which may lie after the files they cover,
//! then for the files. Memory holds one file at a time.

use std::collections::BTreeMap;
use std::io::{BufReader, Read};

use zip::ZipArchive;

use super::coding_line::coding_line;
use super::license::{UNKNOWN, detect_license, is_license_file, manifest_license};
use super::{CodeFile, GithubSource, is_binary};
use crate::document::Reason;
use crate::error::{DataError, Result};
use crate::source::archive::{
    ArchiveError, Capped, Member, MemberVisitor, Stream, inner_path, read_members,
};
use crate::source::input::InputReader;
use crate::source::record::too_long;
use crate::source::{ReadContext, Record, RecordSink, Rejection};
use crate::storage::local_file;

/// Bytes of a license file that are read.
const LICENSE_BYTES: u64 = 256 << 10;
/// Folders with licenses of their own in one repository.
const MOST_LICENSES: usize = 10_000;

/// What the first reading finds.
#[derive(Debug, Default)]
struct Repository {
    name: String,
    commit: Option<String>,
    /// The folder around everything, with its slash; empty when there is none.
    top: String,
    /// License by folder below `top`, from texts and manifests.
    licenses: BTreeMap<String, String>,
}

pub(super) fn read(
    config: &GithubSource,
    context: &ReadContext<'_>,
    sink: RecordSink<'_>,
) -> Result<()> {
    let input = context.input;
    let half = |bytes| (context.bytes_read)(bytes / 2);
    let repository = match survey(config, context, &half)? {
        Ok(repository) => repository,
        Err(detail) => {
            return sink(Record::Rejected(Rejection {
                reason: Reason::broken("expands_too_far"),
                offset: 0,
                bytes: input.bytes,
                detail: format!("{}: {detail}", input.name),
            }));
        }
    };
    let second = |bytes: u64| (context.bytes_read)(bytes - bytes / 2);
    walk(config, context, &second, &mut |member, body| {
        let reject = |reason, detail: String| {
            let (offset, bytes) = (member.offset, member.bytes);
            let detail = format!("{}: {detail}", member.path);
            Record::Rejected(Rejection { reason, offset, bytes, detail })
        };
        let Some(path) = inner_path(&member.path) else {
            let detail = "the path leaves the repository".to_owned();
            return Ok(sink(reject(Reason::broken("unsafe_path"), detail))?);
        };
        if member.bytes > config.max_record_bytes as u64 {
            return Ok(sink(too_long(member.offset, member.bytes, config.max_record_bytes))?);
        }
        let mut content = Vec::new();
        body.read_to_end(&mut content)?;
        let declared = coding_line(&content);
        let labels: Vec<&str> = declared.as_deref().into_iter().collect();
        let decoded = match config.encoding().decode(&content, &labels) {
            Ok(decoded) if !is_binary(decoded.text.as_bytes()) => decoded,
            _ => {
                let detail = "not text".to_owned();
                return Ok(sink(reject(Reason::unwanted("binary"), detail))?);
            }
        };
        let path = path.strip_prefix(&repository.top).unwrap_or(&path).to_owned();
        let license = repository.license_of(&path);
        let file = CodeFile {
            license,
            path: Some(path),
            repo_name: Some(repository.name.clone()),
            commit: repository.commit.clone(),
            repaired: (decoded.bad_bytes > 0).then(|| decoded.bad_share()),
            content: decoded.text,
            offset: member.offset,
            ..CodeFile::default()
        };
        Ok(sink(file.into_record(context.source, config.max_record_bytes))?)
    })?
    .map_err(|detail| DataError::bad_file(&input.path, detail))?;
    Ok(())
}

/// First reading; the inner error says that the repository expands too far.
fn survey(
    config: &GithubSource,
    context: &ReadContext<'_>,
    bytes_read: &dyn Fn(u64),
) -> Result<std::result::Result<Repository, String>> {
    let mut licenses: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
    let mut manifests: BTreeMap<String, String> = BTreeMap::new();
    let mut top: Option<String> = None;
    let walked = walk(config, context, bytes_read, &mut |member, body| {
        let Some(path) = inner_path(&member.path) else { return Ok(()) };
        let first = path.split_once('/').map_or("", |(first, _)| first);
        match &top {
            None => top = Some(first.to_owned()),
            Some(known) if known != first => top = Some(String::new()),
            Some(_) => {}
        }
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let is_manifest = matches!(name, "Cargo.toml" | "pyproject.toml" | "package.json");
        if !is_manifest && !is_license_file(name) || licenses.len() >= MOST_LICENSES {
            return Ok(());
        }
        let mut content = Vec::new();
        body.take(LICENSE_BYTES).read_to_end(&mut content)?;
        let text = String::from_utf8_lossy(&content);
        let names = licenses.entry(folder.to_owned()).or_default();
        if is_manifest {
            let found = manifest_license(name, &text);
            found.map(|found| manifests.entry(folder.to_owned()).or_insert(found));
        } else {
            names.push(detect_license(&text));
        }
        Ok(())
    })?;
    let comment = match walked {
        Ok(comment) => comment,
        Err(detail) => return Ok(Err(detail)),
    };
    let top = top.filter(|top| !top.is_empty()).map(|top| top + "/").unwrap_or_default();
    let is_commit = |text: &String| text.len() >= 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    Ok(Ok(Repository {
        name: repository_name(&context.input.name),
        commit: comment.filter(is_commit),
        licenses: licenses
            .into_iter()
            .filter_map(|(folder, found)| {
                let license = joined(found, manifests.remove(&folder))?;
                let folder = format!("{folder}/");
                let below = folder.strip_prefix(&top).unwrap_or(&folder);
                Some((below.trim_matches('/').to_owned(), license))
            })
            .collect(),
        top,
    }))
}

/// The license of a folder. One text that is known counts; where there are several or none, the
/// manifest says how they join. Without it all that are known count together.
fn joined(mut names: Vec<&'static str>, manifest: Option<String>) -> Option<String> {
    names.sort_unstable();
    names.dedup();
    let known = names.iter().filter(|&&name| name != UNKNOWN).count();
    if known > 0 {
        names.retain(|&name| name != UNKNOWN);
    }
    match manifest {
        Some(manifest) if known != 1 => Some(manifest),
        _ => (!names.is_empty()).then(|| names.join(" and ")),
    }
}

impl Repository {
    /// The license of the nearest folder around `path` that has one.
    fn license_of(&self, path: &str) -> Option<String> {
        let mut folder = path;
        while !folder.is_empty() {
            folder = folder.rsplit_once('/').map_or("", |(folder, _)| folder);
            if let Some(license) = self.licenses.get(folder) {
                return Some(license.clone());
            }
        }
        None
    }
}

/// As [`walk`], of a zip file. Git writes the commit as its comment.
fn walk_zip(
    config: &GithubSource,
    context: &ReadContext<'_>,
    bytes_read: &dyn Fn(u64),
    visit: MemberVisitor<'_>,
) -> Result<std::result::Result<Option<String>, String>> {
    let path = &context.input.path;
    let damaged =
        |offset: u64, reason: String| DataError::Archive { path: path.clone(), offset, reason };
    let file = local_file(path)?;
    let mut archive = ZipArchive::new(BufReader::new(file))
        .map_err(|error| damaged(context.input.bytes, error.to_string()))?;
    let comment = String::from_utf8_lossy(archive.comment()).into_owned();
    let mut expanded = 0u64;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| damaged(0, error.to_string()))?;
        if !entry.is_file() {
            continue;
        }
        let member = Member {
            // A name that is no text is no path either.
            path: entry.name().map(|name| name.into_owned()).unwrap_or_default(),
            bytes: entry.size(),
            offset: entry.data_start().unwrap_or(0),
            modified: 0,
        };
        expanded = expanded.saturating_add(member.bytes);
        if expanded > config.max_expanded_bytes {
            let bound = config.max_expanded_bytes;
            return Ok(Err(format!("more than {bound} bytes, see max_expanded_bytes")));
        }
        // The length is a claim.
        let mut body = (&mut entry).take(member.bytes);
        match visit(&member, &mut body) {
            Ok(()) => {}
            Err(ArchiveError::Other(error)) => return Err(error),
            Err(ArchiveError::Damaged { reason, .. }) => {
                return Err(damaged(member.offset, reason));
            }
        }
    }
    bytes_read(context.input.bytes);
    Ok(Ok((!comment.is_empty()).then_some(comment)))
}

/// `owner/name` from a file name like `owner/name.tar.gz`.
fn repository_name(input: &str) -> String {
    let mut name = InputReader::uncompressed_name(input);
    for ending in [".tgz", ".tar", ".zip"] {
        name = name.strip_suffix(ending).unwrap_or(name);
    }
    name.to_owned()
}

/// Reads the archive once. Returns git's comment, or what expands too far.
fn walk(
    config: &GithubSource,
    context: &ReadContext<'_>,
    bytes_read: &dyn Fn(u64),
    visit: MemberVisitor<'_>,
) -> Result<std::result::Result<Option<String>, String>> {
    let path = &context.input.path;
    let mut reader = InputReader::open(path)?;
    if reader.fill()?.starts_with(b"PK\x03\x04") {
        return walk_zip(config, context, bytes_read, visit);
    }
    let stream = Stream::new(&mut reader, bytes_read);
    let mut capped = Capped::new(stream, config.max_expanded_bytes);
    let result = read_members(&mut capped, visit);
    match result {
        Ok(comment) => Ok(Ok(comment)),
        Err(_) if capped.exceeded => Ok(Err(format!(
            "more than {} bytes, see max_expanded_bytes",
            config.max_expanded_bytes
        ))),
        Err(ArchiveError::Other(error)) => Err(error),
        Err(ArchiveError::Damaged { offset, reason }) => {
            Err(DataError::Archive { path: path.clone(), offset, reason })
        }
    }
}
