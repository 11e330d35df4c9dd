//! One short use of every command, for what all of them have to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{ARPA, SmallRun, altiplano, copy_dir, corpus, repository, run};

/// The commands that do something, as `["data", "run"]`, from the help of the binary.
pub fn commands() -> Vec<Vec<String>> {
    let mut found = Vec::new();
    visit(&mut Vec::new(), &mut found);
    assert!(found.len() > 15, "{found:?}");
    found
}

fn visit(path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let help = help_of(path);
    let Some((_, listed)) = help.split_once("\nCommands:\n") else {
        found.push(path.clone());
        return;
    };
    // Some do something without one of the commands below them too.
    let usage = help.lines().find(|line| line.starts_with("Usage: "));
    if usage.is_some_and(|usage| !usage.contains("<COMMAND>")) {
        found.push(path.clone());
    }
    let names = listed.lines().take_while(|line| !line.is_empty());
    // A long description goes on in a line that is indented further.
    let names = names.filter(|line| !line.starts_with("   "));
    for name in names.filter_map(|line| line.split_whitespace().next()) {
        if name != "help" {
            path.push(name.to_owned());
            visit(path, found);
            path.pop();
        }
    }
}

/// Whether a command works until a signal ends it: `tests/serve` has its uses.
pub fn serves(command: &[String]) -> bool {
    ["serve", "route"].iter().any(|name| command.first().is_some_and(|first| first == name))
}

/// What `--help` prints for a command.
pub fn help_of(command: &[String]) -> String {
    run(command.iter().map(String::as_str).chain(["--help"])).ok().stdout
}

/// A folder in which every command has something to do.
pub struct EveryCommand {
    run: SmallRun,
    data: PathBuf,
    id: String,
}

/// A use of a command.
pub struct Use {
    pub arguments: Vec<String>,
    pub stdin: &'static str,
}

impl Use {
    /// The command with its input; standard output and error are still to be said.
    pub fn command(&self, dir: &Path) -> Command {
        let mut command = altiplano();
        command.args(&self.arguments).current_dir(dir);
        let stdin = dir.join("stdin");
        fs::write(&stdin, self.stdin).unwrap();
        command.stdin(Stdio::from(fs::File::open(stdin).unwrap()));
        command
    }
}

impl EveryCommand {
    pub fn new() -> Self {
        let run = SmallRun::new();
        // A context in which a conversation has room.
        run.train(&["steps=2", "checkpoint.every=0", "validate.every=0", "model.max_seq_len=256"])
            .ok();
        let dir = run.dir.path();
        let data = dir.join("corpus");
        copy_dir(corpus(), &data);
        let language = |code: &str, words: &str| format!("__label__{code} {words}\n").repeat(40);
        let words = ["the house and the garden", "das haus und der garten"];
        let lines = language("en", words[0]) + &language("de", words[1]);
        fs::write(dir.join("lines.txt"), lines).unwrap();
        let one = "{\"text\": \"A sentence stands here. And another one, for a whole line.\"}\n";
        fs::write(dir.join("one.jsonl"), one).unwrap();
        fs::write(dir.join("xx.arpa"), ARPA).unwrap();
        let request = "{\"custom_id\": \"a\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"The\"}}\n";
        fs::write(dir.join("requests.jsonl"), request).unwrap();
        fs::write(dir.join("example.json"), "[{\"instruction\": \"a\", \"output\": \"b\"}]")
            .unwrap();
        fs::create_dir(dir.join("evaluated")).unwrap();
        let sample = "{\"doc_id\": 0, \"id\": \"1\", \"arguments\": [], \"target\": 0, \"resps\": [], \
                      \"metrics\": {\"acc,none\": 1.0}}\n";
        fs::write(dir.join("evaluated/samples_piqa.jsonl"), sample).unwrap();
        for (name, text) in [
            (
                "sft.yaml",
                "name: sft\nbase: runs/small\ntemplate: alpaca\ndata: [{ path: example.json }]\n\
                 train_on: all\nmax_length: 64\nsteps: 1\nvalidate: { examples: 0 }\n\
                 batch: { examples: 2, micro_batch: 1 }\ncheckpoint: { every: 0 }\n",
            ),
            (
                "language.yaml",
                "inputs: [lines.txt]\noutput: lid.bin\nheld_out: 0\nmin_chars: 1\n\
                 training: { dimensions: 2, min_count: 1, buckets: 10 }\n",
            ),
            (
                "classifier.yaml",
                "references: [corpus/documents/books]\nrandom: [corpus/documents/speeches]\n\
                 output: classifier.bin\nmin_chars: 10\nheld_out: 0.5\n\
                 training: { dimensions: 2, epochs: 1 }\n",
            ),
            (
                "lm.yaml",
                "documents: [corpus/documents/speeches]\nmodel: { language: en, output: lm, \
                 vocab_size: 400, memory_bytes: 4000000 }\n",
            ),
        ] {
            fs::write(dir.join(name), text).unwrap();
        }
        let fixtures = |path: &str| repository("tests/fixtures").join(path).display().to_string();
        let model = "checkpoint: runs/small, chat_template: chat.jinja, concurrency: 1";
        let judge = format!(
            "output: judged\nquestions: one_question.jsonl\nprompts: {:?}\nmode: single\n\
             models: [{{ name: small, endpoint: {{ {model} }} }}]\njudge: {{ {model} }}\n\
             max_tokens: 2\njudge_max_tokens: 2\n",
            fixtures("judge/prompts.jsonl"),
        );
        let template = "{% for message in messages %}{{ message.content }} {% endfor %}";
        fs::write(dir.join("chat.jinja"), template).unwrap();
        fs::write(dir.join("judge.yaml"), judge).unwrap();
        fs::write(dir.join("one_question.jsonl"), "{\"question_id\": 1, \"turns\": [\"a\"]}\n")
            .unwrap();
        let instruct = format!(
            "output: instructions\nseed_tasks: {:?}\nprompt: {:?}\nendpoint: {{ {model} }}\n\
             instructions: 1\nmax_requests: 1\nprompts_per_request: 1\ntasks_per_prompt: 1\n\
             max_tokens: 2\n",
            fixtures("self_instruct/seed_tasks.jsonl"),
            fixtures("self_instruct/prompt.txt"),
        );
        fs::write(dir.join("instruct.yaml"), instruct).unwrap();
        let books = data.join("documents/books");
        let cat = ["data", "cat", books.to_str().unwrap(), "--format", "jsonl", "--limit", "1"];
        let first = crate::harness::run(cat).ok().json();
        let id = first["id"].as_str().unwrap().to_owned();
        Self { run, data, id }
    }

    pub fn dir(&self) -> &Path {
        self.run.dir.path()
    }

    /// A use of every command, each of which can be done again; `name` is new every time.
    pub fn uses(&self, name: &str) -> Vec<Use> {
        let checkpoint = self.run.checkpoint("small", 2).display().to_string();
        let documents = self.data.join("documents/speeches").display().to_string();
        let (id, config) = (&self.id, self.run.config().display().to_string());
        let estimated = repository("configs/train/quickstart.yaml").display().to_string();
        let object = "{\"id\": \"a\", \"text\": \"Read More\"}\n{\"id\": \"b\", \"text\": \"x\"}\n";
        let lines = [
            ("data run corpus/data.yaml".to_owned(), ""),
            ("data merge corpus/data.yaml".to_owned(), ""),
            ("data report corpus".to_owned(), ""),
            (format!("data explain {id} corpus"), ""),
            ("data apply ccnet_normalize".to_owned(), object),
            (format!("data cat {documents} --limit 2"), ""),
            ("data train-lid language.yaml".to_owned(), ""),
            ("data train-lm lm.yaml".to_owned(), ""),
            ("data train-classifier classifier.yaml".to_owned(), ""),
            (
                "data import-lm xx.arpa --pieces corpus/tokenizer.model --language xx --output lm"
                    .to_owned(),
                "",
            ),
            (format!("data batches {config}"), ""),
            ("tokenizer train corpus/data.yaml tokenizer.input_bytes=20000".to_owned(), ""),
            ("tokenizer encode --model corpus/tokenizer.model".to_owned(), "Call me Ishmael."),
            ("tokenizer decode --model corpus/tokenizer.model 300 301".to_owned(), ""),
            ("tokenize corpus/data.yaml".to_owned(), ""),
            (format!("train {config} name={name} steps=2 checkpoint.every=0"), ""),
            (format!("sft sft.yaml name={name}_sft"), ""),
            (format!("sft generate instruct.yaml output={name}_instructions"), ""),
            (
                format!("sft identity {}", repository("configs/identity/identity.yaml").display()),
                "",
            ),
            (format!("eval judge judge.yaml output={name}_judged"), ""),
            (
                format!(
                    "eval --checkpoint {checkpoint} --documents corpus/documents/early --batch 64"
                ),
                "",
            ),
            (
                format!(
                    "eval tasks --checkpoint {checkpoint} --data {} --tasks piqa --output eval_{name}",
                    repository("tests/fixtures/eval_tasks").display()
                ),
                "",
            ),
            ("eval compare evaluated".to_owned(), ""),
            (format!("generate --checkpoint {checkpoint} --prompt The --max-tokens 3"), ""),
            (
                format!(
                    "batch run --checkpoint {checkpoint} --input requests.jsonl --output answers.jsonl"
                ),
                "",
            ),
            (
                format!(
                    "export --checkpoint {checkpoint} --format gguf --type q8_0 --output out.gguf \
                     --overwrite"
                ),
                "",
            ),
            (format!("import --from hf {checkpoint} --output imported --overwrite"), ""),
            (format!("estimate {estimated}"), ""),
            ("devices".to_owned(), ""),
            ("comm-check --size 4kB".to_owned(), ""),
            (format!("bench train {config} --warmup 0"), ""),
            ("bench attention --heads 1 --seq-len 64 --repeats 1".to_owned(), ""),
            ("bench matmul".to_owned(), ""),
            (
                format!(
                    "bench generate --checkpoint {checkpoint} --prompt-tokens 2 --new-tokens 2 \
                     --repeats 1"
                ),
                "",
            ),
            ("bench data c4 one.jsonl".to_owned(), ""),
        ];
        let uses: Vec<Use> = lines
            .into_iter()
            .map(|(line, stdin)| Use {
                arguments: line.split_whitespace().map(str::to_owned).collect(),
                stdin,
            })
            .collect();
        for command in commands().into_iter().filter(|command| !serves(command)) {
            let used = |used: &Use| used.arguments.starts_with(&command);
            assert!(uses.iter().any(used), "no use of {command:?}");
        }
        uses
    }
}
