//! `altiplano eval tasks`.

use std::path::PathBuf;

use altiplano_data::eval_tasks::{Rules, TASKS, Task, find_task};
use altiplano_data::lock::lock;
use altiplano_data::progress::ProgressMode;
use altiplano_model::infer::InferencePrecision;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::super::engine_arguments::at_least_one;
use super::super::output::{print_json, print_line};
use super::super::threads::use_threads;
use crate::config::nearest;
use crate::error::{Result, TrainerError};
use crate::eval_tasks::{EvalOptions, Limits, OpenTask, Sampling, table, to_json};
use crate::text_model::TextModel;

/// Score a checkpoint on tasks: those of the LLaMA paper, from their official files.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct TasksArgs {
    /// The model: a run, which stands for its newest checkpoint, a checkpoint, a Hugging Face
    /// directory with its tokenizer, or a GGUF file.
    #[arg(long, value_name = "PATH", required_unless_present = "list")]
    checkpoint: Option<PathBuf>,
    /// The tasks, separated by commas; --list names them.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required_unless_present = "list")]
    tasks: Vec<String>,
    /// The folder with the files of the tasks, each task's in a folder of its name.
    #[arg(long, value_name = "FOLDER", required_unless_present = "list")]
    data: Option<PathBuf>,
    /// Whose prompts and scores: the LLaMA paper's or lm-evaluation-harness's.
    #[arg(long, value_enum, default_value_t = RulesName::Paper)]
    rules: RulesName,
    /// Examples shown before each question. Default: those of the rules.
    #[arg(long, value_name = "N")]
    shots: Option<usize>,
    /// Most examples of a task.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    limit: Option<usize>,
    /// The folder for what came of each example; a run that was ended goes on there.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Texts generated for each example: maj@k and pass@k are of several.
    #[arg(long, value_name = "K", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1024))]
    samples: u16,
    /// Divides the logits of generated texts. Default: 0, the likeliest token, for one text, 0.8 for several.
    #[arg(long)]
    temperature: Option<f32>,
    /// Generate from the likeliest tokens up to this share of the probability.
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Seed of generated texts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Run the programs that the model writes for HumanEval and MBPP: without a network, in a folder of
    /// their own, within limits on time, memory and processes. They write to that folder alone, and
    /// can read what others can.
    #[arg(long)]
    allow_code_execution: bool,
    /// Seconds a program may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0)]
    code_timeout: f64,
    /// The interpreter of programs.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: String,
    /// Where the model computes: a name that `altiplano devices` lists as usable.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// Number format: f32, bf16, q8_0 or q4_0; the last two on the CPU. Default: that of the weights.
    #[arg(long)]
    precision: Option<InferencePrecision>,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// List the tasks with their files, where they are published, and their licences.
    #[arg(long)]
    list: bool,
    /// Print one JSON object at the end, in lm-evaluation-harness's layout.
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Examples:
  altiplano eval tasks --list
  altiplano eval tasks --checkpoint runs/quickstart --data tests/fixtures/eval_tasks \\
      --tasks boolq,piqa,hellaswag --output runs/quickstart/eval
  altiplano eval tasks --checkpoint runs/quickstart --data tests/fixtures/eval_tasks \\
      --tasks arc_easy,gsm8k --rules harness --shots 0 --json";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RulesName {
    Paper,
    Harness,
}

/// Runs the command.
pub fn run(args: TasksArgs) -> Result<()> {
    if args.list {
        return list(args.json);
    }
    let usage = |message: String| Err(TrainerError::Usage { message });
    let (Some(checkpoint), Some(data)) = (&args.checkpoint, &args.data) else {
        return usage("--checkpoint and --data say what is scored; see --help".into());
    };
    let temperature = args.temperature.unwrap_or(if args.samples > 1 { 0.8 } else { 0.0 });
    if !temperature.is_finite() || temperature < 0.0 {
        return usage(format!("--temperature {temperature}: expected a number from 0 on"));
    }
    if temperature == 0.0 && args.samples > 1 {
        return usage("--temperature 0: all --samples would be equal; expected more than 0".into());
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        return usage(format!("--top-p {}: expected a number above 0, up to 1", args.top_p));
    }
    if !(args.code_timeout > 0.0 && args.code_timeout <= 3600.0) {
        let message = format!("--code-timeout {}: expected seconds up to 3600", args.code_timeout);
        return usage(message);
    }
    let tasks = find(&args.tasks)?;
    use_threads(args.threads)?;
    let limits = || Limits { seconds: args.code_timeout, python: args.python.clone() };
    let options = EvalOptions {
        data: data.clone(),
        rules: match args.rules {
            RulesName::Paper => Rules::Paper,
            RulesName::Harness => Rules::Harness,
        },
        shots: args.shots,
        limit: args.limit,
        sampling: Sampling {
            samples: usize::from(args.samples),
            temperature,
            top_p: args.top_p,
            seed: args.seed,
            execution: args.allow_code_execution.then(limits),
        },
        output: args.output.clone(),
        progress: ProgressMode::Auto,
    };
    let _lock = args.output.as_deref().map(lock).transpose()?;
    // All files are read before anything is computed.
    let open: Vec<OpenTask> =
        tasks.iter().map(|task| OpenTask::open(task, &options)).collect::<Result<_>>()?;
    let model = TextModel::open(checkpoint, &args.device, args.precision)?;
    let mut results = Vec::new();
    for task in &open {
        results.push(task.run(&model, &options)?);
    }
    print_line(&format!("checkpoint: {}", model.path.display()))?;
    for line in table(&results) {
        print_line(&line)?;
    }
    let config = json!({
        "model": "altiplano",
        "model_args": { "checkpoint": model.path },
        "rules": options.rules,
        "limit": args.limit,
        "samples": args.samples,
        "temperature": temperature,
        "top_p": args.top_p,
        "random_seed": args.seed,
    });
    let object = to_json(&results, options.rules, &config);
    if let Some(folder) = &args.output {
        let text = serde_json::to_vec_pretty(&object)
            .map_err(|error| TrainerError::Output(error.into()))?;
        altiplano_data::atomic_file::write_atomically(&folder.join("results.json"), &text)?;
    }
    match args.json {
        true => print_json(&object),
        false => Ok(()),
    }
}

/// The tasks of these names.
fn find(names: &[String]) -> Result<Vec<&'static Task>> {
    let known = || TASKS.iter().map(|task| task.name);
    let find = |name: &String| {
        find_task(name).ok_or_else(|| {
            let near = nearest(name, known()).map(|near| format!("; did you mean {near:?}?"));
            let known: Vec<&str> = known().collect();
            TrainerError::Usage {
                message: format!(
                    "--tasks {name:?} is no task{} known tasks: {}",
                    near.unwrap_or(";".into()),
                    known.join(", ")
                ),
            }
        })
    };
    names.iter().map(find).collect()
}

fn list(as_json: bool) -> Result<()> {
    for task in TASKS {
        print_line(&format!("{:<16} {}", task.name, task.title))?;
        print_line(&format!("{:<16} {} ({})", "", task.published, task.licence))?;
        print_line(&format!("{:<16} {}", "", task.file_patterns().join(" or ")))?;
    }
    if !as_json {
        return Ok(());
    }
    let tasks: Vec<_> = TASKS
        .iter()
        .map(|task| {
            json!({
                "task": task.name, "title": task.title, "published": task.published,
                "license": task.licence, "files": task.file_patterns(),
                "shots": { "paper": task.default_shots(Rules::Paper), "harness": task.default_shots(Rules::Harness) },
            })
        })
        .collect();
    print_json(&json!({ "tasks": tasks }))
}
