//! One bit is flipped in every file that the chain from raw text to generated text leaves: some
//! command of the chain names the file, and what `data run` and `tokenize` wrote they mend.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Finished, repository, run};

/// The chain in miniature, done once: documents of one source, tokenizer, shards, a run.
struct Chain {
    dir: tempfile::TempDir,
}

/// Steps of the run.
const STEPS: u64 = 4;

impl Chain {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let speeches = repository("tests/fixtures/plain/speeches/179*.txt");
        // A text that is there twice, for the log of what is dropped.
        let copy = repository("tests/fixtures/plain/speeches/1790_george_washington.txt");
        fs::copy(&copy, dir.path().join("copy.txt")).unwrap();
        let data = format!(
            "output: data\n\
             sources:\n\
             - name: early\n  text: {{ paths: [{speeches:?}, copy.txt], format: files }}\n  \
               steps: [{{dedup_documents: {{key: text}}}}]\n\
             holdout: {{ bytes_per_source: 3000 }}\n\
             tokenizer: {{ vocab_size: 320, input_bytes: 100000 }}\n"
        );
        fs::write(dir.path().join("data.yaml"), data).unwrap();
        let train = format!(
            "name: small\n\
             output: runs\n\
             precision: f32\n\
             model: {{ dim: 16, n_layers: 1, n_heads: 2, hidden_dim: 32, vocab_size: 320,\n\
             \x20       max_seq_len: 32 }}\n\
             tokenizer: data/tokenizer.model\n\
             data: {{ sources: [{{ path: data/tokens/early, weight: 1 }}] }}\n\
             batch: {{ micro_batch: 2, seq_len: 32 }}\n\
             steps: {STEPS}\n\
             optimizer: {{ lr: 1.0e-3, warmup_steps: 1 }}\n\
             validate: {{ every: 2, max_sequences: 2 }}\n\
             checkpoint: {{ every: 2, keep_last: 1 }}\n"
        );
        fs::write(dir.path().join("train.yaml"), train).unwrap();
        let chain = Self { dir };
        chain.data_run().ok();
        chain.tokenizer_train().ok();
        chain.tokenize().ok();
        run(["train", &chain.text("train.yaml")]).ok();
        chain
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn data_run(&self) -> Finished {
        run(["data", "run", &self.text("data.yaml")])
    }

    fn data_report(&self) -> Finished {
        run(["data", "report", &self.text("data")])
    }

    fn tokenizer_train(&self) -> Finished {
        run(["tokenizer", "train", &self.text("data.yaml")])
    }

    fn tokenize(&self) -> Finished {
        run(["tokenize", &self.text("data.yaml")])
    }

    fn train_language_model(&self) -> Finished {
        let config = "documents: [data/documents/early]\nmodel: {language: en, output: lm}\n";
        fs::write(self.path("lm.yaml"), config).unwrap();
        run(["data", "train-lm", &self.text("lm.yaml")])
    }

    fn explain(&self) -> Finished {
        run(["data", "explain", "copy.txt", &self.text("data")])
    }

    fn resume(&self) -> Finished {
        run(["train", "--resume", &self.text("runs/small")])
    }

    fn checkpoint(&self) -> String {
        self.text(&format!("runs/small/checkpoints/step_{STEPS:08}"))
    }

    fn generate(&self) -> Finished {
        run([
            "generate",
            "--checkpoint",
            &self.checkpoint(),
            "--prompt",
            "The",
            "--max-tokens",
            "2",
        ])
    }

    fn eval(&self) -> Finished {
        let documents = self.text("data/documents/early/validation-00000.parquet");
        run(["eval", "--checkpoint", &self.checkpoint(), "--documents", &documents])
    }

    /// The part of a path that messages have, however they reach the folder.
    fn name<'a>(&self, path: &'a Path) -> &'a str {
        path.strip_prefix(self.dir.path()).unwrap().to_str().unwrap()
    }

    /// Every file below `folder`, by its path inside it.
    fn files(&self, folder: &str) -> BTreeSet<PathBuf> {
        let root = self.path(folder);
        let mut files = BTreeSet::new();
        let mut open = vec![root.clone()];
        while let Some(next) = open.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    files.insert(path.strip_prefix(&root).unwrap().to_owned());
                }
            }
        }
        files
    }
}

/// Flips a bit of the byte `share` of the way into the file. The bytes before.
fn flip(path: &Path, share: f64) -> Vec<u8> {
    let whole = fs::read(path).unwrap();
    let mut bytes = whole.clone();
    let at = ((bytes.len() - 1) as f64 * share) as usize;
    bytes[at] ^= 2;
    fs::write(path, bytes).unwrap();
    whole
}

/// Where in a file a bit is flipped for every command.
const PLACE: f64 = 0.6;
/// Where else for one of them: the unit tests of the formats flip every bit.
const MORE_PLACES: [f64; 2] = [0.0, 1.0];

type Command = fn(&Chain) -> Finished;

/// Each of `refusing` fails and names `path` when a bit of it is flipped.
#[track_caller]
fn refused(chain: &Chain, path: &Path, refusing: &[Command]) {
    let name = chain.name(path);
    let with_flipped = |share: f64, commands: &[Command]| {
        let whole = flip(path, share);
        for command in commands {
            command(chain).fails(1, &[name]);
        }
        fs::write(path, whole).unwrap();
    };
    with_flipped(PLACE, refusing);
    if let Some(first) = refusing.first() {
        for share in MORE_PLACES {
            with_flipped(share, &[*first]);
        }
    }
}

/// `mending` names `path` when a bit of it is flipped or the file is missing, and makes it anew:
/// the same bytes, but for the times in statistics.
#[track_caller]
fn mended(chain: &Chain, path: &Path, mending: Command) {
    let name = chain.name(path);
    let is_statistics = path.components().any(|part| part.as_os_str() == "stats");
    let whole = flip(path, PLACE);
    let said = mending(chain).ok().stderr;
    assert!(said.contains(name), "{name} is not named: {said}");
    assert!(is_statistics || fs::read(path).unwrap() == whole, "{name} is not mended");
    let whole = fs::read(path).unwrap();
    fs::remove_file(path).unwrap();
    let again = mending(chain).ok().stderr;
    assert!(!again.contains("altered"), "{name} was mended, but: {again}");
    assert!(is_statistics || fs::read(path).unwrap() == whole, "{name} is not made anew");
}

#[test]
fn a_flipped_bit_in_any_file_is_named() {
    let chain = Chain::new();
    chain.explain().ok();
    chain.eval().ok();
    let data = chain.files("data");
    for file in &data {
        let path = chain.path("data").join(file);
        let parts: Vec<&str> = file.iter().map(|part| part.to_str().unwrap()).collect();
        let refusing: &[Command] = match parts[..] {
            // Names the process that writes, for as long as it does.
            [".lock"] => continue,
            ["documents", "early", "train-00000.parquet"] => &[
                Chain::data_report,
                Chain::tokenizer_train,
                Chain::tokenize,
                Chain::train_language_model,
            ],
            ["documents", "early", "validation-00000.parquet"] => {
                &[Chain::data_report, Chain::tokenize, Chain::eval]
            }
            ["documents", "early", "manifest.json"] => {
                &[Chain::data_report, Chain::tokenizer_train, Chain::tokenize, Chain::eval]
            }
            ["stats", "early", _] => &[Chain::data_report],
            ["dropped", "early", name] if name.starts_with("stage1") => &[Chain::explain],
            ["dropped" | "work", "early", _] => &[],
            ["tokenizer.model" | "tokenizer.model.json"] => &[Chain::tokenize, Chain::resume],
            ["tokens", "early", _] => &[Chain::resume],
            _ => panic!("{file:?}: which command looks at it?"),
        };
        refused(&chain, &path, refusing);
        match parts[0] {
            "tokenizer.model" | "tokenizer.model.json" => {}
            "tokens" => mended(&chain, &path, Chain::tokenize),
            _ => mended(&chain, &path, Chain::data_run),
        }
    }
    assert_eq!(chain.files("data"), data);
    let run_files = chain.files("runs/small");
    for file in &run_files {
        let path = chain.path("runs/small").join(file);
        let name = path.file_name().unwrap().to_str().unwrap();
        match name {
            // Whoever generates or measures needs no moments and no state but the digests in it.
            "model.safetensors" | "config.json" | "tokenizer.model" | "state.json" | "DONE" => {
                refused(&chain, &path, &[Chain::resume, Chain::generate, Chain::eval]);
            }
            _ if file.starts_with("checkpoints") => refused(&chain, &path, &[Chain::resume]),
            "metrics.jsonl" => {
                for share in [0.0, PLACE] {
                    let whole = flip(&path, share);
                    chain.resume().fails(1, &[chain.name(&path), "line"]);
                    fs::write(&path, whole).unwrap();
                }
            }
            // The user may change settings here; those that decide numbers are compared with
            // the checkpoint's. Pictures are drawn anew and read by nobody.
            "config.yaml" | "loss.svg" | "loss.png" | ".lock" => {}
            _ => panic!("{file:?}: which command looks at it?"),
        }
    }
    chain.resume().ok();
    chain.generate().ok();
    // With everything as it was written, nothing is said and nothing is done again.
    let again = chain.data_run().ok();
    assert!(!again.stderr.contains("altered"), "{}", again.stderr);
    chain.data_report().ok();
}

/// Documents whose `data run` did not come to its end are used by no command.
#[test]
fn a_source_without_its_manifest_is_not_finished() {
    let chain = Chain::new();
    fs::remove_file(chain.path("data/documents/early/manifest.json")).unwrap();
    for command in
        [Chain::data_report, Chain::tokenizer_train, Chain::tokenize, Chain::train_language_model]
    {
        command(&chain).fails(1, &["\"early\" is not finished", "altiplano data run"]);
    }
    chain.data_run().ok();
    chain.data_report().ok();
}

/// A checkpoint has the tokenizer that was read at the start, whatever lies at its path later.
#[test]
fn the_tokenizer_saved_is_the_one_read_at_the_start() {
    let chain = Chain::new();
    let model = chain.path("data/tokenizer.model");
    let read = fs::read(&model).unwrap();
    let overrides = ["name=long", "steps=3000", "checkpoint.every=0", "validate.every=0"];
    let mut command = crate::harness::altiplano();
    command.arg("train").arg(chain.path("train.yaml")).args(overrides);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    // Once a step is logged the tokenizer is read, and thousands of steps are to come.
    let metrics = chain.path("runs/long/metrics.jsonl");
    while fs::read(&metrics).map_or(0, |bytes| bytes.len()) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "ended before its first step");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    fs::write(&model, b"another").unwrap();
    assert!(child.wait().unwrap().success());
    let saved = chain.path("runs/long/checkpoints/step_00003000/tokenizer.model");
    assert_eq!(fs::read(saved).unwrap(), read);
}
