//! The rule of ARCHITECTURE.md: `lib.rs` lists the modules of a crate from the bottom up, and a
//! module uses only those listed before it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::repository;

/// Crates with more than one module at the top.
const CRATES: [&str; 6] =
    ["data", "model", "model/comm", "model/kernels", "trainer", "trainer/serve"];

/// The modules in the table at the top of a `lib.rs`: in the first cell of each row, between
/// backticks.
fn table(lib: &str) -> Vec<String> {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" | ").next());
    let rows = rows.skip_while(|cell| *cell != "module").take_while(|cell| *cell != "word");
    let names = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    names.map(|name| name.trim_start_matches("mod@").to_owned()).collect()
}

/// The modules that a `lib.rs` declares, but for those of tests.
fn declared(lib: &str) -> Vec<String> {
    let mut modules = Vec::new();
    let mut of_tests = false;
    for line in lib.lines() {
        let name = line.split_once("mod ").and_then(|(before, rest)| {
            let is_module = before.is_empty() || before.starts_with("pub");
            rest.strip_suffix(';').filter(|_| is_module)
        });
        match name {
            Some(name) if !of_tests => modules.push(name.to_owned()),
            _ => {}
        }
        of_tests = line == "#[cfg(test)]" || of_tests && line.starts_with("#[");
    }
    modules
}

/// The files of a module, but for those of its tests.
fn files_of(crate_dir: &Path, module: &str) -> Vec<PathBuf> {
    let source = crate_dir.join("src");
    let mut files = vec![source.join(format!("{module}.rs"))];
    let mut folders = vec![source.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => files.push(path),
                _ => {}
            }
        }
    }
    let of_tests = |path: &PathBuf| path.iter().any(|part| part == "tests" || part == "tests.rs");
    files.retain(|path| path.is_file() && !of_tests(&path.strip_prefix(&source).unwrap().into()));
    files
}

/// The lines of a text without comments and without items at the left margin that are for tests.
fn without_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            code = code + line + "\n";
            continue;
        }
        let item = lines.find(|line| !line.starts_with("#[")).unwrap_or_default();
        if item.ends_with('{') {
            lines.find(|line| *line == "}");
        }
    }
    code
}

/// The modules at the top of the crate that a text names after `crate::`, comments and tests left
/// out.
fn used(text: &str) -> BTreeSet<String> {
    let code = without_tests(text);
    let mut used = BTreeSet::new();
    for (_, rest) in
        code.match_indices("crate::").map(|(at, found)| code.split_at(at + found.len()))
    {
        let mut depth = 0;
        let listed = rest.strip_prefix('{').unwrap_or(rest);
        let end = match rest.starts_with('{') {
            // Up to the brace that closes the list.
            true => listed.find(|c| {
                depth += i32::from(c == '{') - i32::from(c == '}');
                depth < 0
            }),
            false => listed.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')),
        };
        let listed = &listed[..end.unwrap_or(listed.len())];
        let first = |path: &str| path.trim().split("::").next().unwrap_or_default().to_owned();
        let mut depth = 0;
        let parts = listed.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        used.extend(parts.map(first));
    }
    used
}

#[test]
fn modules_use_those_listed_before_them() {
    for name in CRATES {
        let crate_dir = repository(name);
        let lib = fs::read_to_string(crate_dir.join("src/lib.rs")).unwrap();
        let order = table(&lib);
        assert!(order.len() > 10, "{name}: the table has {order:?}");
        assert_eq!(order, declared(&lib), "{name}: the table and the modules of lib.rs differ");
        for (place, module) in order.iter().enumerate() {
            for file in files_of(&crate_dir, module) {
                let text = fs::read_to_string(&file).unwrap();
                // In the file of a module at the top, `super` is the crate.
                let at_top = file == crate_dir.join("src").join(format!("{module}.rs"))
                    || file == crate_dir.join("src").join(module).join("mod.rs");
                let text =
                    if at_top { text.replace("\nuse super::", "\nuse crate::") } else { text };
                let used = used(&text);
                let later = order[place + 1..].iter().filter(|other| used.contains(*other));
                let later: Vec<_> = later.collect();
                assert!(
                    later.is_empty(),
                    "{} uses {later:?}, listed after `{module}` in {name}/src/lib.rs",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn uses_are_found_in_every_form() {
    let text = "//! crate::doc\nuse crate::one::Two;\nuse crate::{three, four::{five, six}, seven};\n\
                fn f() { crate::eight::g(); } // crate::also\n    // crate::comment\n\
                #[cfg(test)]\nmod tests;\nuse crate::nine;\n\
                #[cfg(test)]\n#[allow(x)]\nmod tests {\n    use crate::test;\n}\n";
    let found: Vec<String> = used(text).into_iter().collect();
    assert_eq!(found, ["also", "eight", "four", "nine", "one", "seven", "three"]);
    let lib = "//! | module | subject |\n//! |---|---|\n//! | [`a`], `b` | x `y` |\n//! | [`mod@c`] | |\n\
               //! | word | meaning |\n//! | `d` | |\n#[cfg(test)]\nmod t;\npub mod a;\nmod b;\npub mod c;\n";
    assert_eq!(table(lib), ["a", "b", "c"]);
    assert_eq!(declared(lib), ["a", "b", "c"]);
}
