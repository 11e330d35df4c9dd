//! Judged evaluation: models answer questions, a judge says which answer is better or rates each.
//!
//! Answers and judgments are appended as they are made, each with a key of all that it depends on, so a command
//! that was killed goes on and nothing is asked twice.

mod prompts;
mod questions;
mod report;
mod verdicts;

pub use prompts::{Needs, Prompts};
pub use questions::{Question, read_answers, read_questions};
pub use report::{JudgeReport, ModelScore, PairScore, Tally};
pub use verdicts::{Outcome, Verdict, comparison, outcome, points};

use std::collections::{BTreeMap, HashMap};

use altiplano_data::progress::{Progress, ProgressMode, Work};
use altiplano_serve::api_client::Interface;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{JudgeConfig, JudgeMode, JudgedModel};
use crate::endpoint::{Model, chat_text};
use crate::error::{Result, TrainerError};
use crate::json_log::JsonLog;

/// Below it an answer is the most probable one.
const LEAST_TEMPERATURE: f64 = 1e-4;

/// Answers to one question, by turn.
type Turns = Vec<String>;

/// An answer as it lies in `answers/NAME.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
struct AnswerLine {
    question_id: String,
    /// Turn of the conversation, from 1.
    turn: usize,
    model: String,
    /// Of the request, for going on.
    key: String,
    text: String,
}

/// A judgment as it lies in `judgments.jsonl`.
#[derive(Debug, Serialize, Deserialize)]
struct JudgmentLine {
    question_id: String,
    category: String,
    /// Turn of the conversation, from 1.
    turn: usize,
    /// The model that is judged; in a comparison the one whose answer is shown first.
    assistant_a: String,
    /// The one whose answer is shown second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    assistant_b: Option<String>,
    system_prompt: String,
    prompt: String,
    /// Of the request, for going on.
    key: String,
    /// What the judge said.
    text: String,
}

/// One question to the judge.
struct Game {
    question: usize,
    turn: usize,
    /// Models by number; one or two.
    shown: Vec<usize>,
    system: String,
    prompt: String,
}

/// Has the models answer and the judge judge, as far as that was not done before.
///
/// # Errors
/// What is wrong with a file or an endpoint; what was answered before is kept.
pub fn run(config: &JudgeConfig, progress: ProgressMode) -> Result<JudgeReport> {
    // What is wrong with the judge is said before anything is paid for.
    let judge_model = Model::open(&config.judge)?;
    let questions = read_questions(&config.questions)?;
    let prompts = Prompts::read(&config.prompts)?;
    let references = config.references.as_deref().map(read_answers).transpose()?;
    let references = references_of(config, &questions, references.unwrap_or_default())?;
    let answers = config
        .models
        .iter()
        .map(|model| answers_of(config, model, &questions, progress))
        .collect::<Result<Vec<_>>>()?;
    let games = games(config, &questions, &references, &prompts, &answers)?;
    let texts = judge(config, &judge_model, &questions, &games, progress)?;
    let mut report = JudgeReport::new(config.mode, config.models.iter().map(|m| m.name.clone()));
    match config.mode {
        JudgeMode::Single => {
            for (game, text) in games.iter().zip(&texts) {
                let category = &questions[game.question].category;
                report.rate(game.shown[0], category, game.turn, points(text));
            }
        }
        // Both orders of a pair follow each other.
        JudgeMode::Pairwise => {
            for (games, texts) in games.chunks(2).zip(texts.chunks(2)) {
                let ([game, _], [first, second]) = (games, texts) else { continue };
                let length =
                    |model: usize| answers[model][game.question][game.turn].chars().count();
                let (one, other) = (game.shown[0], game.shown[1]);
                let (outcome, flipped) = outcome(comparison(first), comparison(second));
                let category = &questions[game.question].category;
                let lengths = [length(one), length(other)];
                report.compare([one, other], category, outcome, flipped, lengths);
            }
        }
    }
    Ok(report)
}

/// The right answers to every question, as far as the judge needs them.
fn references_of(
    config: &JudgeConfig,
    questions: &[Question],
    mut from_file: HashMap<String, Turns>,
) -> Result<Vec<Turns>> {
    let of = |question: &Question| {
        let found = from_file.remove(&question.id).unwrap_or_else(|| question.reference.clone());
        if !question.needs_reference() {
            return Ok(Vec::new());
        }
        if found.len() >= question.turns.len() {
            return Ok(found);
        }
        let place = config.references.as_ref().unwrap_or(&config.questions);
        Err(questions::wrong(
            &place.display().to_string(),
            format!(
                "question {} is one of {}, for which the judge needs {} right answers: found {}; give \
                 them in `references`, or as `reference` of the question",
                question.id,
                question.category,
                question.turns.len(),
                found.len()
            ),
        ))
    };
    questions.iter().map(of).collect()
}

/// What a model answers to every question.
fn answers_of(
    config: &JudgeConfig,
    model: &JudgedModel,
    questions: &[Question],
    progress: ProgressMode,
) -> Result<Vec<Turns>> {
    if let Some(path) = &model.answers {
        let mut answers = read_answers(path)?;
        return questions
            .iter()
            .map(|question| match answers.remove(&question.id) {
                Some(turns) if turns.len() >= question.turns.len() => Ok(turns),
                found => Err(questions::wrong(
                    &path.display().to_string(),
                    format!(
                        "question {} has {} turns: found answers to {}",
                        question.id,
                        question.turns.len(),
                        found.map_or(0, |turns| turns.len())
                    ),
                )),
            })
            .collect();
    }
    let Some(endpoint) = &model.endpoint else { return Ok(Vec::new()) };
    let path = config.output.join("answers").join(format!("{}.jsonl", model.name));
    let (mut log, lines) = JsonLog::open::<AnswerLine>(&path)?;
    let known: HashMap<String, String> =
        lines.into_iter().map(|line| (line.key, line.text)).collect();
    let asked = Model::open(endpoint)?;
    let turns: usize = questions.iter().map(|question| question.turns.len()).sum();
    let label = format!("answers of {}", model.name);
    let progress = Progress::new(progress, &label, Work::count(turns as u64, "answers"));
    let mut answers: Vec<Turns> = vec![Vec::new(); questions.len()];
    for turn in 0..questions.iter().map(|question| question.turns.len()).max().unwrap_or(0) {
        let at_turn: Vec<usize> =
            (0..questions.len()).filter(|&n| questions[n].turns.len() > turn).collect();
        let (mut waiting, mut bodies, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for &number in &at_turn {
            let body = answer_request(config, &questions[number], &answers[number], turn);
            let key = asked.request_key(&body);
            match known.get(&key) {
                Some(text) => {
                    answers[number].push(text.clone());
                    progress.add(1);
                }
                None => {
                    waiting.push(number);
                    bodies.push(body);
                    keys.push(key);
                }
            }
        }
        asked.ask(Interface::Chat, bodies, |index, answer| {
            let number = waiting[index];
            let text = text_of(&answer, &questions[number].id)?.to_owned();
            log.append(&AnswerLine {
                question_id: questions[number].id.clone(),
                turn: turn + 1,
                model: model.name.clone(),
                key: keys[index].clone(),
                text: text.clone(),
            })?;
            answers[number].push(text);
            progress.add(1);
            Ok(())
        })?;
    }
    progress.finish(&format!("{turns} answers"));
    Ok(answers)
}

/// The text of an answer to `question`.
fn text_of<'a>(answer: &'a Value, question: &str) -> Result<&'a str> {
    chat_text(answer).ok_or_else(|| {
        questions::wrong(
            &format!("question {question}"),
            "the answer of the endpoint has no choices.0.message.content",
        )
    })
}

/// What a model is asked in a turn after its `answers` of the turns before.
fn answer_request(
    config: &JudgeConfig,
    question: &Question,
    answers: &[String],
    turn: usize,
) -> Value {
    let mut messages = Vec::new();
    for (number, said) in question.turns[..=turn].iter().enumerate() {
        messages.push(json!({"role": "user", "content": said}));
        if let Some(answer) = answers.get(number) {
            messages.push(json!({"role": "assistant", "content": answer}));
        }
    }
    let mut body = json!({"messages": messages, "max_tokens": config.max_tokens});
    set_sampling(&mut body, question.temperature(), config.seed);
    body
}

/// Sets temperature and, where something is drawn, the seed.
fn set_sampling(body: &mut Value, temperature: f64, seed: u64) {
    let greedy = temperature < LEAST_TEMPERATURE;
    body["temperature"] = json!(if greedy { 0.0 } else { temperature });
    if !greedy {
        body["seed"] = json!(seed);
    }
}

/// Everything the judge is asked, in a fixed order.
fn games(
    config: &JudgeConfig,
    questions: &[Question],
    references: &[Turns],
    prompts: &Prompts,
    answers: &[Vec<Turns>],
) -> Result<Vec<Game>> {
    let mut games = Vec::new();
    let models = config.models.len();
    let shown: Vec<Vec<usize>> = match config.mode {
        JudgeMode::Single => (0..models).map(|model| vec![model]).collect(),
        JudgeMode::Pairwise => (0..models)
            .flat_map(|one| (one + 1..models).flat_map(move |other| [[one, other], [other, one]]))
            .map(Vec::from)
            .collect(),
    };
    for (number, question) in questions.iter().enumerate() {
        for turn in 0..question.turns.len() {
            let reference = question.needs_reference();
            let needs = Needs { mode: config.mode, turn, reference };
            for shown in &shown {
                let of = |model: usize| &answers[model][number];
                let values = values(question, &references[number], turn, shown, of);
                let (system, prompt) = prompts.fill(needs, &values)?;
                games.push(Game { question: number, turn, shown: shown.clone(), system, prompt });
            }
        }
    }
    Ok(games)
}

/// What stands in the places of a prompt.
fn values<'a>(
    question: &Question,
    reference: &[String],
    turn: usize,
    shown: &[usize],
    answers: impl Fn(usize) -> &'a Turns,
) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let names: &[&str] = if shown.len() == 1 { &["answer"] } else { &["answer_a", "answer_b"] };
    let mut add = |name: String, value: &str| values.insert(name, value.to_owned());
    add("question".into(), &question.turns[turn]);
    for (name, &model) in names.iter().zip(shown) {
        add((*name).into(), &answers(model)[turn]);
    }
    for number in 0..=turn {
        add(format!("question_{}", number + 1), &question.turns[number]);
        for (name, &model) in names.iter().zip(shown) {
            add(format!("{name}_{}", number + 1), &answers(model)[number]);
        }
        if let Some(right) = reference.get(number) {
            add(format!("ref_answer_{}", number + 1), right);
        }
    }
    values
}

/// What the judge says to every game.
fn judge(
    config: &JudgeConfig,
    asked: &Model,
    questions: &[Question],
    games: &[Game],
    progress: ProgressMode,
) -> Result<Vec<String>> {
    let (mut log, lines) = JsonLog::open::<JudgmentLine>(&config.output.join("judgments.jsonl"))?;
    let known: HashMap<String, String> =
        lines.into_iter().map(|line| (line.key, line.text)).collect();
    let progress =
        Progress::new(progress, "judgments", Work::count(games.len() as u64, "judgments"));
    let mut texts: Vec<Option<String>> = vec![None; games.len()];
    // Games that ask the same, because two models answer alike, are one question to the judge.
    let mut waiting: Vec<(Vec<usize>, String)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut bodies = Vec::new();
    for (number, game) in games.iter().enumerate() {
        let mut messages = vec![json!({"role": "user", "content": game.prompt})];
        if !game.system.is_empty() {
            messages.insert(0, json!({"role": "system", "content": game.system}));
        }
        let mut body = json!({"messages": messages, "max_tokens": config.judge_max_tokens});
        set_sampling(&mut body, 0.0, config.seed);
        let key = asked.request_key(&body);
        if let Some(text) = known.get(&key) {
            texts[number] = Some(text.clone());
            progress.add(1);
        } else if let Some(&place) = places.get(&key) {
            waiting[place].0.push(number);
        } else {
            places.insert(key.clone(), waiting.len());
            waiting.push((vec![number], key));
            bodies.push(body);
        }
    }
    asked.ask(Interface::Chat, bodies, |index, answer| {
        let (numbers, key) = &waiting[index];
        let game = &games[numbers[0]];
        let question = &questions[game.question];
        let text = text_of(&answer, &question.id)?;
        let name = |model: usize| config.models[model].name.clone();
        log.append(&JudgmentLine {
            question_id: question.id.clone(),
            category: question.category.clone(),
            turn: game.turn + 1,
            assistant_a: name(game.shown[0]),
            assistant_b: game.shown.get(1).copied().map(name),
            system_prompt: game.system.clone(),
            prompt: game.prompt.clone(),
            key: key.clone(),
            text: text.to_owned(),
        })?;
        for &number in numbers {
            texts[number] = Some(text.to_owned());
            progress.add(1);
        }
        Ok(())
    })?;
    progress.finish(&format!("{} judgments", games.len()));
    texts
        .into_iter()
        .map(|text| {
            text.ok_or_else(|| TrainerError::RunFile {
                path: config.output.clone(),
                reason: "a judgment is missing; run the command again".into(),
            })
        })
        .collect()
}
