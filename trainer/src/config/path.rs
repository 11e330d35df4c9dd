//! Relative paths of a configuration file.

use std::path::{Component, Path, PathBuf};

/// Removes `.` and resolves `..` by name: `configs/train/../../runs` is `runs`.
pub fn normalize(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => match out.components().next_back() {
                Some(Component::Normal(_)) => {
                    out.pop();
                }
                Some(Component::RootDir | Component::Prefix(_)) => {}
                _ => out.push(".."),
            },
            other => out.push(other),
        }
    }
    if out.as_os_str().is_empty() { PathBuf::from(".") } else { out }
}

/// `path` as seen from the directory `base`. Absolute when the two share nothing but the root.
///
/// Both are taken relative to the current directory when they are relative.
///
/// # Errors
/// When the current directory is gone.
pub fn relative_to(path: &Path, base: &Path) -> std::io::Result<PathBuf> {
    let path = normalize(&std::path::absolute(path)?);
    let base = normalize(&std::path::absolute(base)?);
    let shared = path.components().zip(base.components()).take_while(|(a, b)| a == b).count();
    let shares_a_name = path.components().take(shared).any(|c| matches!(c, Component::Normal(_)));
    if !shares_a_name {
        return Ok(path);
    }
    let up = base.components().skip(shared).map(|_| Component::ParentDir);
    let out: PathBuf = up.chain(path.components().skip(shared)).collect();
    Ok(if out.as_os_str().is_empty() { PathBuf::from(".") } else { out })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_resolved_by_name() {
        for (given, expected) in [
            ("configs/train/../../runs", "runs"),
            ("./a/./b", "a/b"),
            ("../x", "../x"),
            ("a/../../x", "../x"),
            ("/../x", "/x"),
            ("a/..", "."),
        ] {
            assert_eq!(normalize(Path::new(given)), Path::new(expected), "{given}");
        }
    }

    #[test]
    fn a_path_is_seen_from_a_directory() {
        for (path, base, expected) in [
            ("/p/runs/data/tokens", "/p/runs/small", "../data/tokens"),
            ("/p/runs/small", "/p/runs/small", "."),
            ("/p/runs/small/x", "/p/runs/small", "x"),
            ("/other/x", "/p/runs/small", "/other/x"),
        ] {
            let found = relative_to(Path::new(path), Path::new(base)).unwrap();
            assert_eq!(found, Path::new(expected), "{path} from {base}");
        }
    }
}
