//! README, CONTRIBUTING and docs say what is true: every command in them runs, every file they
//! name is there.

use std::fs;
use std::path::Path;

use crate::harness::{altiplano, copy_dir, repository};

fn pages() -> Vec<(String, String)> {
    let mut pages = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].map(String::from).to_vec();
    for dir in ["docs", "docs/backward"] {
        for entry in fs::read_dir(repository(dir)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                pages.push(format!("{dir}/{name}"));
            }
        }
    }
    pages.sort();
    let read = |page: String| {
        let text = fs::read_to_string(repository(&page)).unwrap();
        (page, text)
    };
    pages.into_iter().map(read).collect()
}

/// The lines of ```sh blocks, continued lines joined, comments dropped.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut open = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = line.trim() == "```sh";
            continue;
        }
        let line = line.split(" # ").next().unwrap_or_default().trim();
        if !inside || line.is_empty() || line.starts_with('#') {
            continue;
        }
        open.push_str(line.trim_end_matches('\\'));
        if !line.ends_with('\\') {
            commands.push(std::mem::take(&mut open));
        }
    }
    commands
}

/// Runs README's commands one after the other in a copy of what they read. Scripts, which build or
/// test everything, are only looked for.
#[test]
fn commands_of_the_readme_run() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&repository("configs"), &dir.path().join("configs"));
    fs::create_dir(dir.path().join("tests")).unwrap();
    copy_dir(&repository("tests/fixtures"), &dir.path().join("tests/fixtures"));
    let binary = altiplano().get_program().to_owned();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(binary, bin.join("altiplano")).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());

    let (_, readme) = pages().into_iter().find(|(page, _)| page == "README.md").unwrap();
    let commands = commands(&readme);
    let mut ran = 0;
    for command in &commands {
        if let Some(script) = command.split_whitespace().next().filter(|c| c.contains('/')) {
            assert!(repository(script).exists(), "{command}: no such script");
            continue;
        }
        if !command.starts_with("altiplano") {
            continue;
        }
        let output = std::process::Command::new("bash")
            .args(["-c", command])
            .current_dir(dir.path())
            .env("PATH", &path)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{stderr}");
        ran += 1;
    }
    assert!(ran >= 6, "only {ran} of {} commands ran", commands.len());
    assert!(commands.iter().any(|c| c.contains("scripts/quickstart")));
    assert!(commands.iter().any(|c| c.contains("scripts/test")));
}

/// Relative links lead to files, and paths in code style that look like files of the repository
/// exist.
#[test]
fn files_that_pages_name_exist() {
    for (page, text) in pages() {
        let folder = Path::new(&page).parent().unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(repository("").join(folder).join(target).exists(), "{page}: {target}");
        }
        let roots =
            ["data/src", "model/src", "model/kernels", "trainer/src", "scripts/", "configs/"];
        for quoted in text.split('`').skip(1).step_by(2) {
            let named = roots.iter().any(|root| quoted.starts_with(root));
            if !named || quoted.contains(['<', '*', ' ', '{', '\n', '…']) {
                continue;
            }
            assert!(repository(quoted).exists(), "{page}: {quoted}");
        }
    }
}

#[test]
fn every_shell_command_of_the_other_pages_names_a_command_that_exists() {
    for (page, text) in pages() {
        for command in commands(&text) {
            let words: Vec<&str> = command.split_whitespace().collect();
            if words[0].contains('/') {
                assert!(repository(words[0]).exists(), "{page}: {command}");
            } else if words[0] == "altiplano" {
                let sub: Vec<&str> = words[1..]
                    .iter()
                    .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
                    .copied()
                    .collect();
                let help = altiplano().args(&sub).arg("--help").output().unwrap();
                assert!(help.status.success(), "{page}: {command}");
            }
        }
    }
}
