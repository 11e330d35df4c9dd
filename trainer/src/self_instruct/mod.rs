//! Self-Instruct: a model writes instructions with inputs and outputs after the example of seed tasks.
//!
//! What a request shows depends on its number and the seed alone. Instructions are appended to
//! `instructions.jsonl` as they are made, in the format `alpaca`, and then the request to `requests.jsonl`; what a
//! kill leaves of a request whose line is missing is made again.

mod answers;
mod rouge;
mod seed_tasks;

pub use seed_tasks::{SeedTask, read_seed_tasks};

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use altiplano_data::progress::{Progress, ProgressMode, Work};
use altiplano_serve::api_client::Interface;
use altiplano_serve::error::ServeError;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{PromptInterface, SelfInstructConfig};
use crate::endpoint::{Model, chat_text};
use crate::error::{Result, TrainerError};
use crate::json_log::JsonLog;

/// Where an answer ends: after 19 instructions.
const STOPS: [&str; 2] = ["\n20", "20."];
/// Most similar instructions that are kept beside one.
const MOST_SIMILAR: usize = 10;

/// A line of `instructions.jsonl`: an example in the format `alpaca`, and how new it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct InstructionLine {
    instruction: String,
    input: String,
    output: String,
    /// The most similar earlier instructions with their ROUGE-L.
    most_similar_instructions: BTreeMap<String, f64>,
    /// Mean ROUGE-L with all earlier instructions.
    avg_similarity_score: f64,
    /// Number of the request, from 0.
    request: u64,
}

/// A line of `requests.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
struct RequestLine {
    /// From 0.
    request: u64,
    /// Of what was asked.
    key: String,
    /// Instructions that were kept.
    kept: u64,
    /// The others, by reason.
    dropped: BTreeMap<String, u64>,
}

/// What came of all requests, those of earlier calls too.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SelfInstructReport {
    /// Requests.
    pub requests: u64,
    /// Instructions the model wrote.
    pub written: u64,
    /// Of them kept.
    pub kept: u64,
    /// Of them dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

impl SelfInstructReport {
    fn add(&mut self, line: &RequestLine) {
        self.requests += 1;
        self.kept += line.kept;
        self.written += line.kept;
        for (reason, count) in &line.dropped {
            *self.dropped.entry(reason.clone()).or_default() += count;
            self.written += count;
        }
    }
}

impl fmt::Display for SelfInstructReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} instructions written, {} kept",
            self.requests, self.written, self.kept
        )?;
        for (reason, count) in &self.dropped {
            write!(f, "\n  - {reason:<12} {count}")?;
        }
        Ok(())
    }
}

/// All instructions so far, as numbered words.
#[derive(Default)]
struct Known {
    numbers: HashMap<String, u32>,
    instructions: Vec<(String, Vec<u32>)>,
}

impl Known {
    fn numbers_of(&mut self, text: &str) -> Vec<u32> {
        let mut number = |word: String| {
            let next = self.numbers.len() as u32;
            *self.numbers.entry(word).or_insert(next)
        };
        rouge::words(text).into_iter().map(&mut number).collect()
    }

    fn add(&mut self, text: &str) {
        let words = self.numbers_of(text);
        self.add_words(text, words);
    }

    /// [`Known::add`] of a text whose words have their numbers.
    fn add_words(&mut self, text: &str, words: Vec<u32>) {
        self.instructions.push((text.to_owned(), words));
    }
}

/// Has the model write instructions until there are enough, as far as that was not done before.
///
/// # Errors
/// What is wrong with a file or the endpoint; what was written before is kept.
pub fn run(config: &SelfInstructConfig, progress: ProgressMode) -> Result<SelfInstructReport> {
    let tasks = read_seed_tasks(&config.seed_tasks)?;
    if tasks.len() < config.tasks_per_prompt {
        return Err(TrainerError::PromptFile {
            place: config.seed_tasks.display().to_string(),
            reason: format!(
                "{} tasks; a prompt shows {} (`tasks_per_prompt`)",
                tasks.len(),
                config.tasks_per_prompt
            ),
        });
    }
    let text = match &config.prompt {
        None => seed_tasks::TASK_TEXT.to_owned(),
        Some(path) => std::fs::read_to_string(path).map_err(TrainerError::io(path))?,
    };
    let requests_path = config.output.join("requests.jsonl");
    let (mut requests, done) = JsonLog::open::<RequestLine>(&requests_path)?;
    let instructions_path = config.output.join("instructions.jsonl");
    let (mut instructions, mut lines) = JsonLog::open::<InstructionLine>(&instructions_path)?;
    lines.retain(|line| line.request < done.len() as u64);
    instructions.truncate(lines.len())?;
    let mut report = SelfInstructReport::default();
    done.iter().for_each(|line| report.add(line));
    if report.kept != lines.len() as u64 {
        return Err(TrainerError::RunFile {
            path: instructions_path,
            reason: format!(
                "{} instructions, and {} has {}; choose another `output`",
                lines.len(),
                requests_path.display(),
                report.kept
            ),
        });
    }
    let mut known = Known::default();
    tasks.iter().for_each(|task| known.add(&task.instruction));
    lines.iter().for_each(|line| known.add(&line.instruction));
    let model = Model::open(&config.endpoint)?;
    let request = |number| Request::new(config, &tasks, &text, number);
    for line in &done {
        let key = model.request_key(&request(line.request).content());
        if key != line.key {
            return Err(TrainerError::RunFile {
                path: requests_path,
                reason: format!(
                    "request {} was another one: the seed tasks, the prompt, the model or a setting has \
                     changed; choose another `output`",
                    line.request
                ),
            });
        }
    }
    let work = Work::count(config.instructions as u64, "instructions");
    let progress = Progress::new(progress, "instructions", work);
    progress.add(report.kept);
    while report.kept < config.instructions as u64 && report.requests < config.max_requests {
        let number = report.requests;
        let request = request(number);
        let key = model.request_key(&request.content());
        let mut line = RequestLine { request: number, key, kept: 0, dropped: BTreeMap::new() };
        for (written, cut_short) in request.ask(&model)? {
            for piece in answers::instructions(&written, config.tasks_per_prompt, cut_short) {
                let made = piece.and_then(|task| new_line(task, number, config, &mut known));
                match made {
                    Err(reason) => *line.dropped.entry(reason.to_owned()).or_default() += 1,
                    Ok((made, words)) => {
                        known.add_words(&made.instruction, words);
                        instructions.append(&made)?;
                        line.kept += 1;
                    }
                }
            }
        }
        requests.append(&line)?;
        progress.add(line.kept);
        report.add(&line);
    }
    progress.finish(&format!("{} instructions", report.kept));
    Ok(report)
}

/// What is asked at a time: prompts that show tasks drawn for its number.
struct Request {
    interface: Interface,
    /// One with all prompts, or with `Interface::Chat` one for each.
    bodies: Vec<Value>,
}

impl Request {
    /// Request `number`.
    fn new(config: &SelfInstructConfig, tasks: &[SeedTask], text: &str, number: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(number);
        let prompts: Vec<String> = (0..config.prompts_per_request)
            .map(|_| {
                let drawn = index::sample(&mut rng, tasks.len(), config.tasks_per_prompt);
                let shown: Vec<&SeedTask> = drawn.iter().map(|at| &tasks[at]).collect();
                seed_tasks::prompt(text, &shown)
            })
            .collect();
        let sampled = |mut body: Value, seed: u64| {
            body["temperature"] = json!(config.temperature);
            body["top_p"] = json!(config.top_p);
            body["stop"] = json!(STOPS);
            body["seed"] = json!(config.seed.wrapping_add(seed));
            body
        };
        match config.interface {
            PromptInterface::Completions => {
                let body = json!({"prompt": prompts, "max_tokens": config.max_tokens});
                Self { interface: Interface::Completions, bodies: vec![sampled(body, number)] }
            }
            PromptInterface::Chat => {
                let first = number.wrapping_mul(prompts.len() as u64);
                let body = |(at, prompt): (u64, String)| {
                    let messages = json!([{"role": "user", "content": prompt}]);
                    let body = json!({"messages": messages, "max_tokens": config.max_tokens});
                    sampled(body, first.wrapping_add(at))
                };
                Self { interface: Interface::Chat, bodies: (0..).zip(prompts).map(body).collect() }
            }
        }
    }

    /// What the answer depends on.
    fn content(&self) -> Value {
        match &self.bodies[..] {
            [body] => body.clone(),
            bodies => Value::from(bodies.to_vec()),
        }
    }

    /// What the model writes, in the order of the prompts, and whether it ended at the largest number of
    /// tokens.
    fn ask(self, model: &Model) -> Result<Vec<(String, bool)>> {
        let interface = self.interface;
        let mut answers = vec![Value::Null; self.bodies.len()];
        let asked = model.ask(interface, self.bodies, |number, answer| {
            answers[number] = answer;
            Ok(())
        });
        asked.map_err(|error| name_the_other_interface(error, interface))?;
        match interface {
            Interface::Completions => texts(&answers[0]),
            Interface::Chat => answers.iter().map(chat_answer).collect(),
        }
    }
}

/// Says what to set where a server lacks the interface that was asked.
fn name_the_other_interface(error: TrainerError, asked: Interface) -> TrainerError {
    match error {
        TrainerError::Serve(ServeError::Endpoint {
            url,
            reason,
            status: Some(404 | 405 | 501),
        }) => {
            let other = match asked {
                Interface::Completions => "interface: chat",
                Interface::Chat => "interface: completions",
            };
            let reason = format!("{reason}; where a server has only the other one, set `{other}`");
            TrainerError::PromptFile { place: url, reason }
        }
        other => other,
    }
}

fn wrong_answer(expected: &str) -> TrainerError {
    TrainerError::PromptFile {
        place: "the answer of the endpoint".into(),
        reason: format!("expected {expected}"),
    }
}

/// The text of an answer to a conversation, and whether it ended at the largest number of tokens.
fn chat_answer(answer: &Value) -> Result<(String, bool)> {
    let text = chat_text(answer)
        .ok_or_else(|| wrong_answer("choices with message.content and finish_reason"))?;
    let reason = answer.pointer("/choices/0/finish_reason").and_then(Value::as_str);
    Ok((text.to_owned(), reason == Some("length")))
}

/// The texts of an answer in the order of the prompts, and whether each ended at the largest number of tokens.
fn texts(answer: &Value) -> Result<Vec<(String, bool)>> {
    let wrong = || wrong_answer("choices with index, text and finish_reason");
    let choices = answer.get("choices").and_then(Value::as_array).ok_or_else(wrong)?;
    let mut texts = Vec::new();
    for choice in choices {
        let index = choice.get("index").and_then(Value::as_u64).ok_or_else(wrong)?;
        let text = choice.get("text").and_then(Value::as_str).ok_or_else(wrong)?;
        let cut_short = choice.get("finish_reason").and_then(Value::as_str) == Some("length");
        texts.push((index, text.to_owned(), cut_short));
    }
    texts.sort_by_key(|(index, ..)| *index);
    Ok(texts.into_iter().map(|(_, text, cut_short)| (text, cut_short)).collect())
}

/// The line of an instruction and its words, unless it is too similar to an earlier one.
fn new_line(
    task: SeedTask,
    request: u64,
    config: &SelfInstructConfig,
    known: &mut Known,
) -> std::result::Result<(InstructionLine, Vec<u32>), &'static str> {
    let words = known.numbers_of(&task.instruction);
    let scores: Vec<f64> =
        known.instructions.par_iter().map(|(_, other)| rouge::rouge_l(&words, other)).collect();
    if scores.iter().any(|score| *score > config.max_similarity) {
        return Err("similar");
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // The earlier one first where scores are equal.
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let similar = order.into_iter().take(MOST_SIMILAR);
    let line = InstructionLine {
        most_similar_instructions: similar
            .map(|at| (known.instructions[at].0.clone(), scores[at]))
            .collect(),
        avg_similarity_score: scores.iter().sum::<f64>() / scores.len().max(1) as f64,
        instruction: task.instruction,
        input: task.input,
        output: task.output,
        request,
    };
    Ok((line, words))
}
