//! The built binary, a small tokenized corpus made once, and small runs on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

/// The binary under test: `ALTIPLANO_BIN` where the tests were carried to another machine.
pub fn altiplano() -> Command {
    let built = || env!("CARGO_BIN_EXE_altiplano").into();
    let mut command = Command::new(std::env::var_os("ALTIPLANO_BIN").unwrap_or_else(built));
    command.env("RUST_BACKTRACE", "0").env_remove("RUST_LOG");
    command.env("XDG_CACHE_HOME", temporary("cache"));
    command
}

/// Runs to the end; the exit status, stdout and stderr.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Finished {
    altiplano().args(args).output().unwrap().into()
}

/// What a command left.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    /// The command did its work.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    /// The command ended with `code` and said all of `words` on stderr, without a panic.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// The JSON object on the last line of stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(self.stdout.lines().last().unwrap()).unwrap()
    }
}

/// A command that is running, with what it wrote so far.
pub struct Running {
    child: Child,
    stdout: tempfile::NamedTempFile,
    stderr: tempfile::NamedTempFile,
}

impl Running {
    /// Starts `command`, ended by a hang-up of its terminal even where the tests run under `nohup`.
    pub fn start(command: &mut Command) -> Self {
        #[cfg(unix)]
        {
            use std::os::unix::process::CommandExt;
            let hang_up_ends = || {
                // SAFETY: the default action runs no code of this process.
                unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) };
                Ok(())
            };
            // SAFETY: between `fork` and `exec` the closure makes a system call only.
            unsafe { command.pre_exec(hang_up_ends) };
        }
        let [stdout, stderr] = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
        let to = |file: &tempfile::NamedTempFile| Stdio::from(file.reopen().unwrap());
        let child = command.stdout(to(&stdout)).stderr(to(&stderr)).spawn().unwrap();
        Self { child, stdout, stderr }
    }

    /// Waits until `reached` says so of standard error.
    #[track_caller]
    pub fn wait_until(&mut self, reached: impl Fn(&str) -> bool) {
        let written = || fs::read_to_string(self.stderr.path()).unwrap();
        for _ in 0..2400 {
            if reached(&written()) {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended early with {status}: {}", written());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.child.kill().unwrap();
        panic!("waited for two minutes: {}", written());
    }

    /// Sends a signal: `TERM`.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("bash").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Finished {
        let status = self.child.wait().unwrap();
        Finished {
            code: status.code(),
            stdout: fs::read_to_string(self.stdout.path()).unwrap(),
            stderr: fs::read_to_string(self.stderr.path()).unwrap(),
        }
    }
}

/// A path inside the repository: in `ALTIPLANO_REPOSITORY` on a machine the tests were carried to.
pub fn repository(path: &str) -> PathBuf {
    let carried = std::env::var_os("ALTIPLANO_REPOSITORY");
    carried.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from).join(path)
}

/// A path that outlives the tests, for what they make once.
pub fn temporary(path: &str) -> PathBuf {
    match std::env::var_os("ALTIPLANO_REPOSITORY") {
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).join(path),
        Some(_) => repository("target/tmp").join(path),
    }
}

/// Folder of a corpus of three sources (`speeches`, `books` and the small `early`) with a tokenizer
/// of 400 pieces, made once: `documents/`, `tokenizer.model`, `tokens/`, and `data.yaml` beside them.
pub fn corpus() -> &'static Path {
    static CORPUS: OnceLock<PathBuf> = OnceLock::new();
    CORPUS.get_or_init(|| {
        let dir = temporary("corpus");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let config = dir.join("data.yaml");
        fs::write(&config, data_config(400, "19[5-7]*.txt")).unwrap();
        run(["data", "run", config.to_str().unwrap()]).ok();
        run(["tokenizer", "train", config.to_str().unwrap()]).ok();
        run(["tokenize", config.to_str().unwrap()]).ok();
        dir
    })
}

/// A data configuration over fixtures, whose output is its own folder.
pub fn data_config(vocab_size: usize, speeches: &str) -> String {
    format!(
        "output: .\n\
         sources:\n\
         - name: speeches\n  text: {{ paths: [{speeches:?}], format: files }}\n\
         - name: books\n  text: {{ paths: [{books:?}], format: jsonl }}\n\
         - name: early\n  text: {{ paths: [{early:?}], format: files }}\n\
         holdout: {{ bytes_per_source: 8000 }}\n\
         tokenizer: {{ vocab_size: {vocab_size}, input_bytes: 300000 }}\n",
        speeches = repository("tests/fixtures/plain/speeches").join(speeches),
        books = repository("tests/fixtures/plain/moby-dick.jsonl"),
        early = repository("tests/fixtures/plain/speeches/179*.txt"),
    )
}

/// A folder with a small training configuration on [`corpus`], for one test.
pub struct SmallRun {
    pub dir: TempDir,
}

impl SmallRun {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let corpus = corpus();
        let tokens = corpus.join("tokens");
        let config = format!(
            "name: small\n\
             output: runs\n\
             precision: bf16\n\
             model: {{ dim: 32, n_layers: 2, n_heads: 4, n_kv_heads: 2, hidden_dim: 48,\n\
             \x20       vocab_size: 400, max_seq_len: 64 }}\n\
             tokenizer: {tokenizer:?}\n\
             data:\n\
             \x20 sources:\n\
             \x20 - {{ path: {speeches:?}, weight: 0.7 }}\n\
             \x20 - {{ path: {books:?}, weight: 0.3 }}\n\
             batch: {{ micro_batch: 4, grad_accum_steps: 2, seq_len: 64 }}\n\
             steps: 40\n\
             optimizer: {{ lr: 3.0e-3, warmup_steps: 1 }}\n\
             validate: {{ every: 20, max_sequences: 8 }}\n\
             checkpoint: {{ every: 10, keep_last: 2 }}\n\
             log_every: 20\n",
            tokenizer = corpus.join("tokenizer.model"),
            speeches = tokens.join("speeches"),
            books = tokens.join("books"),
        );
        fs::write(dir.path().join("train.yaml"), config).unwrap();
        Self { dir }
    }

    /// `altiplano train` on the configuration with overrides.
    pub fn train(&self, overrides: &[&str]) -> Finished {
        self.train_command(overrides).output().unwrap().into()
    }

    pub fn train_command(&self, overrides: &[&str]) -> Command {
        let mut command = altiplano();
        command.arg("train").arg(self.config()).args(overrides);
        command
    }

    /// `altiplano train --resume` of run `name` with overrides.
    pub fn resume(&self, name: &str, overrides: &[&str]) -> Finished {
        self.resume_command(name, overrides).output().unwrap().into()
    }

    pub fn resume_command(&self, name: &str, overrides: &[&str]) -> Command {
        let mut command = altiplano();
        command.arg("train").arg("--resume").arg(self.run_dir(name)).args(overrides);
        command
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("train.yaml")
    }

    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("runs").join(name)
    }

    /// Steps of the finished checkpoints.
    pub fn checkpoints(&self, name: &str) -> Vec<u64> {
        let list = altiplano_trainer::checkpoint::list(&self.run_dir(name)).unwrap();
        list.into_iter().map(|(step, _)| step).collect()
    }

    /// Checkpoint directory of a step.
    pub fn checkpoint(&self, name: &str, step: u64) -> PathBuf {
        self.run_dir(name).join(format!("checkpoints/step_{step:08}"))
    }

    /// The parsed lines of the steps in `metrics.jsonl`.
    pub fn metrics(&self, name: &str) -> Vec<Value> {
        self.metrics_lines(name).into_iter().filter(|line| line["step"] != 0).collect()
    }

    /// All parsed lines of `metrics.jsonl`: that of the validation before the first step too.
    pub fn metrics_lines(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.run_dir(name).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What must not depend on time, threads or interruptions: of each step its number, loss,
    /// gradient norm, learning rate and validation.
    pub fn numbers(&self, name: &str) -> Vec<Value> {
        let keys = ["step", "tokens", "loss", "grad_norm", "lr", "val_loss", "bits_per_byte"];
        let of = |line: Value| keys.iter().map(|key| line[*key].clone()).collect();
        self.metrics_lines(name).into_iter().map(of).collect()
    }

    /// The bytes of the tensors of a checkpoint.
    pub fn tensors(&self, name: &str, step: u64) -> [Vec<u8>; 2] {
        let dir = self.checkpoint(name, step);
        ["model.safetensors", "optimizer.safetensors"].map(|file| fs::read(dir.join(file)).unwrap())
    }
}

/// A small n-gram model in the text form of other tools.
pub const ARPA: &str = "\\data\\\nngram 1=4\nngram 2=1\n\n\\1-grams:\n-1 <unk>\n-99 <s> -0.5\n\
                        -1 </s>\n-0.9 the -0.2\n\n\\2-grams:\n-0.3 <s> the\n\n\\end\\\n";

/// Copies a folder with everything in it.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
