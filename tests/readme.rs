//! README, CONTRIBUTING and docs say what is true: every command of the README runs, every command
//! of the other pages exists with the options it names, every file they name is there.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::data::{gzip, warc_record};
use crate::every_command::{self, help_of};
use crate::harness::{ARPA, Running, altiplano, copy_dir, repository, temporary};

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

/// The lines of ```sh blocks, continued lines joined, comments dropped; and the indented lines that
/// begin with the name of the program.
fn commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut open = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = line.trim() == "```sh";
            continue;
        }
        let indented = line.starts_with("    ");
        let line = line.split(" # ").next().unwrap_or_default().trim();
        let shown = inside || indented && line.starts_with("altiplano ");
        if !shown || line.is_empty() || line.starts_with('#') {
            continue;
        }
        open.push_str(line.trim_end_matches('\\'));
        if !line.ends_with('\\') {
            commands.push(std::mem::take(&mut open));
        }
    }
    commands
}

/// The files that ```yaml blocks show: the first line is a comment with the name, the rest is the
/// file.
fn files(text: &str) -> Vec<(&str, &str)> {
    let blocks = text.split("\n```yaml\n").skip(1);
    blocks
        .map(|block| {
            let file = block.split("```").next().unwrap();
            let (name, file) = file.strip_prefix("# ").unwrap().split_once('\n').unwrap();
            (name, file)
        })
        .collect()
}

/// A folder with copies of what documented commands read, and the binary in the `PATH`.
struct Shell {
    dir: TempDir,
    path: String,
}

impl Shell {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&repository("configs"), &dir.path().join("configs"));
        fs::create_dir(dir.path().join("tests")).unwrap();
        copy_dir(&repository("tests/fixtures"), &dir.path().join("tests/fixtures"));
        fs::copy(repository("README.md"), dir.path().join("README.md")).unwrap();
        let binary = altiplano().get_program().to_owned();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(binary, bin.join("altiplano")).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        Self { dir, path }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn bash(&self, command: &str) -> std::process::Command {
        let mut bash = std::process::Command::new("bash");
        bash.args(["-o", "pipefail", "-c", command]);
        bash.current_dir(self.dir.path());
        bash.env("PATH", &self.path).env("XDG_CACHE_HOME", temporary("cache"));
        bash
    }

    /// Runs a command that serves on a free port, does `requests` there, and ends it by SIGTERM.
    fn serve(&self, command: &str, requests: &[String]) {
        let port = command.split_whitespace().skip_while(|word| *word != "--port").nth(1).unwrap();
        let free = command.replace(&format!("--port {port}"), "--port 0");
        let mut process = Running::start(&mut self.bash(&format!("exec {free}")));
        let address = RefCell::new(String::new());
        process.wait_until(|said| {
            let line = said.lines().find(|line| line.contains("ing ") && line.ends_with('/'));
            let found = line.and_then(|line| line.rsplit("http://").next());
            *address.borrow_mut() = found.unwrap_or_default().trim_end_matches('/').to_owned();
            found.is_some()
        });
        let has_curl = std::process::Command::new("curl").arg("--version").output().is_ok();
        for request in requests {
            if !has_curl {
                eprintln!("skipped: {request}: there is no curl");
                continue;
            }
            let own = request.replace(&format!("127.0.0.1:{port}"), &address.borrow());
            self.run(&own.replace("curl ", "curl --fail --silent --show-error "));
        }
        process.signal("TERM");
        process.finish().ok();
    }

    /// Runs a command that has to succeed.
    fn run(&self, command: &str) {
        let output = self.bash(command).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{stderr}");
    }
}

/// The examples in the help of a command, continued lines joined.
fn examples(help: &str) -> Vec<String> {
    let headings = ["Example:", "Examples:", "From raw text to generated text:"];
    let mut examples = Vec::new();
    let mut inside = false;
    let mut open = String::new();
    for line in help.lines() {
        if !line.starts_with("  ") {
            inside = headings.contains(&line);
            continue;
        }
        if !inside {
            continue;
        }
        open.push_str(line.trim().trim_end_matches('\\'));
        if !line.ends_with('\\') {
            examples.push(std::mem::take(&mut open));
        }
    }
    examples
}

/// Runs README's commands one after the other, then the examples of every `--help`. Scripts, which
/// build or test everything, are only looked for.
#[test]
fn commands_of_the_readme_and_of_every_help_run() {
    let shell = Shell::new();
    let (_, readme) = pages().into_iter().find(|(page, _)| page == "README.md").unwrap();
    let commands = commands(&readme);
    for (name, file) in files(&readme) {
        // "These five lines."
        assert_eq!(file.lines().count(), 5, "{name}");
        fs::write(shell.path(name), file).unwrap();
    }
    // The text of a user's own.
    fs::copy(repository("tests/fixtures/books/90005-0.txt"), shell.path("input.txt")).unwrap();
    let mut ran = BTreeSet::new();
    let spaces = |command: &str| command.split_whitespace().collect::<Vec<_>>().join(" ");
    for command in &commands {
        if let Some(script) = command.split_whitespace().next().filter(|c| c.contains('/')) {
            assert!(repository(script).exists(), "{command}: no such script");
            continue;
        }
        if is_server(command) {
            // The requests that follow it on the page.
            let rest = commands.iter().skip_while(|other| *other != command).skip(1);
            let requests: Vec<String> =
                rest.take_while(|line| line.starts_with("curl ")).cloned().collect();
            shell.serve(command, &requests);
            ran.insert(spaces(command));
        } else if command.starts_with("altiplano") {
            shell.run(command);
            ran.insert(spaces(command));
        }
    }
    assert!(ran.len() >= 6, "only {} of {} commands ran", ran.len(), commands.len());
    assert!(commands.iter().any(|c| c.contains("scripts/quickstart")));
    assert!(commands.iter().any(|c| c.contains("scripts/test")));

    let mut left: Vec<String> = examples(&help_of(&[]));
    for command in every_command::commands() {
        let of_command = examples(&help_of(&command));
        assert!(!of_command.is_empty(), "{command:?} has no example");
        left.extend(of_command);
    }
    let mut run_those = |wanted: &str| {
        let (now, later) = std::mem::take(&mut left)
            .into_iter()
            .partition(|example: &String| example.contains(wanted));
        left = later;
        for example in now as Vec<String> {
            if ran.insert(spaces(&example)) {
                match is_server(&example) {
                    true => shell.serve(&example, &[]),
                    false => shell.run(&cheaper(&example)),
                }
            }
        }
    };
    // The run that the others look at, under the number of steps that they name.
    run_those("configs/train/quickstart.yaml");
    let checkpoints = shell.path("runs/quickstart/checkpoints");
    copy_dir(&checkpoints.join("step_00000020"), &checkpoints.join("step_00001000"));
    let request =
        "{\"custom_id\": \"a\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"a\"}}\n";
    fs::write(shell.path("in.jsonl"), request).unwrap();
    run_those("runs/quickstart");
    prepare_large_run(&shell);
    for model in ["train-lid", "train-lm", "train-classifier"] {
        run_those(model);
    }
    // A model of another tool, with the pieces of one.
    fs::write(shell.path("en.arpa.gz"), gzip(ARPA.as_bytes())).unwrap();
    let pieces = shell.path("runs/llama/models/ngrams/en.sp.model");
    fs::copy(pieces, shell.path("en.sp.model")).unwrap();
    for made in ["references.bin", "references.json"] {
        fs::rename(shell.path(made), shell.path("runs/llama/models").join(made)).unwrap();
    }
    run_those("--rank 0");
    for rank in 1..4 {
        let config = "configs/data/common_crawl.yaml";
        shell.run(&format!("altiplano data run {config} --rank {rank} --world-size 4"));
    }
    run_those("");
}

/// Whether a command works until a signal ends it.
fn is_server(command: &str) -> bool {
    let words: Vec<String> = command.split_whitespace().skip(1).map(str::to_owned).collect();
    command.starts_with("altiplano") && every_command::serves(&words)
}

/// The example with less to do where that is much: what it shows is still done.
fn cheaper(example: &str) -> String {
    let settings = if example.trim_end().ends_with("train           configs/train/quickstart.yaml")
    {
        " name=whole steps=2 optimizer.warmup_steps=1"
    } else if example.contains("tokenizer.vocab_size=8000") {
        " tokenizer.model=other.model tokenizer.input_bytes=600000"
    } else {
        ""
    };
    // The run of the test has 20 steps.
    format!("{}{settings}", example.replace("--from-step 500", "--from-step 15"))
}

/// Puts small files where the configurations of the large sources expect what was downloaded or
/// made before.
fn prepare_large_run(shell: &Shell) {
    let large = shell.path("runs/llama");
    let made = shell.path("runs/quickstart/data");
    copy_dir(&made.join("tokens"), &large.join("data/tokens"));
    for (name, from) in [
        ("wikipedia", "wikipedia"),
        ("common_crawl_unfiltered", "common_crawl"),
        ("wikipedia_references", "wikipedia"),
    ] {
        let from = made.join("documents").join(from);
        copy_dir(&from, &large.join("data/documents").join(name));
    }
    let crawl = shell.path("tests/fixtures/common_crawl");
    copy_dir(&crawl, &large.join("raw/common_crawl"));
    let page = format!("<html><body><p>{}</p></body></html>", "Cited words. ".repeat(50));
    let response = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{page}");
    let headers = "WARC-Type: response\r\nWARC-Target-URI: http://www.example.org/\r\n\
                   WARC-Date: 2019-02-15T18:40:25Z\r\nWARC-Record-ID: <urn:uuid:1>\r\n\
                   Content-Type: application/http; msgtype=response\r\n";
    let cited = large.join("raw/wikipedia_references");
    fs::create_dir_all(&cited).unwrap();
    let record = gzip(&warc_record(headers, response.as_bytes()));
    fs::write(cited.join("a.warc.gz"), record).unwrap();
    for (language, words) in [("en", "the house and the garden"), ("de", "das haus und der garten")]
    {
        let folder = large.join("raw/languages").join(language);
        fs::create_dir_all(&folder).unwrap();
        let lines: String = (0..50).map(|n| format!("{words} number {n}\n")).collect();
        fs::write(folder.join("text.txt"), lines).unwrap();
    }
    fs::create_dir_all(large.join("models")).unwrap();
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

/// The words of a shell command as far as it is one program's: before a pipe, a redirection or the
/// next command.
fn words_of(command: &str) -> Vec<&str> {
    let ends = ["|", ">", "&&", "&", ";"];
    command.split_whitespace().take_while(|word| !ends.contains(word)).collect()
}

#[test]
fn every_command_of_the_other_pages_exists_with_its_options() {
    let mut checked = 0;
    for (page, text) in pages() {
        for command in commands(&text) {
            let words = words_of(&command);
            if words[0].contains('/') {
                assert!(repository(words[0]).exists(), "{page}: {command}");
            }
            let Some(program) = words.iter().position(|word| *word == "altiplano") else {
                continue;
            };
            let is_name = |word: &&&str| {
                word.starts_with(|c: char| c.is_ascii_lowercase())
                    && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            };
            let mut sub: Vec<String> = words[program + 1..]
                .iter()
                .take_while(is_name)
                .map(|word| (*word).to_owned())
                .collect();
            // The last of them may be arguments.
            let exists = |sub: &[String]| {
                let help = altiplano().args(sub).arg("--help").output().unwrap();
                help.status.success()
            };
            while !exists(&sub) && sub.pop().is_some() {}
            let help = help_of(&sub);
            assert!(!sub.is_empty(), "{page}: {command}");
            for option in words[program + 1..].iter().filter(|word| word.starts_with("--")) {
                let name = option.split('=').next().unwrap();
                let found = help.split(|c: char| c.is_whitespace() || ",[]=".contains(c));
                assert!(found.into_iter().any(|word| word == name), "{page}: {command}: {name}");
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "{checked} options");
}
