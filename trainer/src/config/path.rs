//! Relative paths of a configuration file. They mean what they mean to the operating system: `..`
//! leaves the directory that a symbolic link leads to, not the one that the link lies in.

use std::path::{Component, Path, PathBuf};

use altiplano_data::storage::is_remote;

/// Removes `.`, and `..` together with the name before it: `configs/train/../../runs` is `runs`. A
/// `..` behind a symbolic link stays, so the path leads where it led.
pub fn normalize(path: &Path) -> PathBuf {
    without_dots(path, |name| !name.is_symlink())
}

/// The place that `path` would lead to if no directory in it were a symbolic link: with `runs/x` a link
/// to another disk, `runs/x/../../data` is `data`.
pub(super) fn beside_links(path: &Path) -> PathBuf {
    without_dots(path, |_| true)
}

fn without_dots(path: &Path, may_leave: impl Fn(&Path) -> bool) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => match out.components().next_back() {
                Some(Component::Normal(_)) if may_leave(&out) => {
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

/// The directory that paths in `file` are relative to: the one in which the file lies, not the one
/// of a symbolic link to it.
pub(super) fn directory_of(file: &Path) -> PathBuf {
    let linked = file.is_symlink().then(|| file.canonicalize().ok()).flatten();
    let file = linked.as_deref().unwrap_or(file);
    file.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// `path` as seen from the directory `base`. Absolute when the two share nothing but the root. An address
/// is the same from everywhere.
///
/// Both are taken relative to the current directory when they are relative. Symbolic links below
/// what they share stay in the path.
///
/// # Errors
/// When the current directory is gone.
pub fn relative_to(path: &Path, base: &Path) -> std::io::Result<PathBuf> {
    if is_remote(path) {
        return Ok(path.to_owned());
    }
    let path = normalize(&std::path::absolute(path)?);
    // Where `..` leads to from `base` is decided by where `base` really lies.
    let base = real(&normalize(&std::path::absolute(base)?));
    for shared in path.ancestors() {
        let folder = real(shared);
        if !folder.components().any(|part| matches!(part, Component::Normal(_))) {
            break;
        }
        let (Ok(up), Ok(down)) = (base.strip_prefix(&folder), path.strip_prefix(shared)) else {
            continue;
        };
        let up = up.components().map(|_| Component::ParentDir);
        let out: PathBuf = up.chain(down.components()).collect();
        return Ok(if out.as_os_str().is_empty() { PathBuf::from(".") } else { out });
    }
    Ok(path)
}

/// The path without symbolic links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|there| Some((there, there.canonicalize().ok()?)));
    let Some((there, real)) = found else {
        return path.to_path_buf();
    };
    let rest = path.strip_prefix(there).unwrap_or(Path::new(""));
    real.components().chain(rest.components()).collect()
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

    /// `real/deep/run`, and `link`, which leads to `real/deep`.
    #[cfg(unix)]
    fn linked() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/deep/run")).unwrap();
        std::fs::create_dir(root.join("data")).unwrap();
        std::os::unix::fs::symlink("real/deep", root.join("link")).unwrap();
        (dir, root)
    }

    #[cfg(unix)]
    #[test]
    fn dots_behind_a_link_leave_what_it_leads_to() {
        let (_dir, root) = linked();
        assert_eq!(normalize(&root.join("link/run/../x")), root.join("link/x"));
        assert_eq!(normalize(&root.join("link/../x")), root.join("link/../x"));
        assert_eq!(beside_links(&root.join("link/../x")), root.join("x"));
        assert_eq!(normalize(&root.join("real/deep/../x")), root.join("real/x"));
        std::fs::write(root.join("real/deep/file"), "").unwrap();
        std::os::unix::fs::symlink(root.join("link/file"), root.join("other")).unwrap();
        assert_eq!(directory_of(&root.join("other")), root.join("real/deep"));
        assert_eq!(directory_of(&root.join("link/file")), root.join("link"));
    }

    #[cfg(unix)]
    #[test]
    fn a_path_is_seen_from_where_a_directory_lies() {
        let (_dir, root) = linked();
        for (path, base, expected) in [
            ("data", "link/run", "../../../data"),
            ("data", "real/deep/run", "../../../data"),
            ("link/tokens", "link/run", "../tokens"),
            ("link/tokens", "data", "../link/tokens"),
            ("link", "link/run", ".."),
        ] {
            let found = relative_to(&root.join(path), &root.join(base)).unwrap();
            assert_eq!(found, Path::new(expected), "{path} from {base}");
        }
    }

    #[test]
    fn a_path_is_seen_from_a_directory() {
        for (path, base, expected) in [
            ("/p/runs/data/tokens", "/p/runs/small", "../data/tokens"),
            ("/p/runs/small", "/p/runs/small", "."),
            ("/p/runs/small/x", "/p/runs/small", "x"),
            ("/other/x", "/p/runs/small", "/other/x"),
            ("s3://bucket/tokens", "/p/runs/small", "s3://bucket/tokens"),
        ] {
            let found = relative_to(Path::new(path), Path::new(base)).unwrap();
            assert_eq!(found, Path::new(expected), "{path} from {base}");
        }
    }
}
