//! Lists of archive files, in the form of Common Crawl's `wet.paths.gz`.

use std::path::{Component, Path};

use crate::error::{DataError, Result};
use crate::source::Input;
use crate::source::input::{InputReader, describe};
use crate::source::lines::{Line, Lines};
use crate::storage::{describe_all, is_remote};

/// Longest line of a list in bytes.
const LINE_BYTES: usize = 1 << 16;
/// Missing files that are named.
const NAMED: usize = 5;

/// The files that `list` names, one path or address a line, below `root`, which may be an address too. Of an address the path
/// counts. Empty lines and lines that begin with `#` are passed over.
///
/// # Errors
/// [`DataError::Io`] or [`DataError::Archive`] when the list cannot be read,
/// [`DataError::BadFile`] when it names nothing, a path that leaves `root`, or files that are not
/// there; [`DataError::Storage`] where `root` is an address.
pub(super) fn read(list: &Path, root: &Path) -> Result<Vec<Input>> {
    let mut reader = InputReader::open(list)?;
    let mut lines = Lines::new(&mut reader, LINE_BYTES);
    let mut line = Vec::new();
    let mut inputs = Vec::new();
    let mut missing = Vec::new();
    let mut remote = Vec::new();
    let mut number = 0;
    loop {
        number += 1;
        let entry = match lines.next(&mut line)? {
            Line::End => break,
            Line::TooLong => None,
            Line::Whole => std::str::from_utf8(&line).ok().map(str::trim),
        };
        let entry = entry.ok_or_else(|| {
            DataError::bad_file(list, format!("line {number} is not a path: too long or not UTF-8"))
        })?;
        let entry = entry.trim_start_matches('\u{feff}');
        if entry.is_empty() || entry.starts_with('#') {
            continue;
        }
        let relative = path_of(entry);
        let path = root.join(relative);
        // An absolute path is taken as it is; an address never is one.
        let name = path.strip_prefix(root).unwrap_or(path.strip_prefix("/").unwrap_or(&path));
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
        if name.as_os_str().is_empty() || !name.components().all(plain) {
            return Err(DataError::bad_file(
                list,
                format!("line {number}: {entry:?} does not name a file below {}", root.display()),
            ));
        }
        // What comes from elsewhere may not name files of this machine, nor be read under another name.
        if (is_remote(root) || is_remote(list)) && path.is_absolute() {
            return Err(DataError::bad_file(
                list,
                format!(
                    "line {number}: {entry:?} is a path of this machine; expected one below {}",
                    root.display()
                ),
            ));
        }
        if is_remote(&path) && entry.contains(['?', '#']) {
            return Err(DataError::bad_file(
                list,
                format!("line {number}: {entry:?}: expected a name without `?` and `#`"),
            ));
        }
        let name = name.to_string_lossy().into_owned();
        if is_remote(&path) {
            remote.push((name, path));
        } else if path.is_file() {
            inputs.push(Input { name, ..describe(&path, root)? });
        } else {
            missing.push(name);
        }
    }
    let (names, addresses): (Vec<_>, Vec<_>) = remote.into_iter().unzip();
    for (name, object) in names.into_iter().zip(describe_all(addresses)?) {
        let object = object?;
        inputs.push(Input::of_object(name, &object));
    }
    if !missing.is_empty() {
        let named = missing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = if missing.len() > NAMED { ", …" } else { "" };
        return Err(DataError::bad_file(
            list,
            format!(
                "{} of {} files are not below {}: {named}{more}; fetch them, or take them off \
                 the list",
                missing.len(),
                missing.len() + inputs.len(),
                root.display()
            ),
        ));
    }
    if inputs.is_empty() {
        return Err(DataError::bad_file(list, "it names no file"));
    }
    Ok(inputs)
}

/// The path of an address; a path as it is.
fn path_of(entry: &str) -> &str {
    let path = match entry.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => entry,
    };
    path.split(['?', '#']).next().unwrap_or_default()
}
