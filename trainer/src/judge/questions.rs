//! Questions, answers and references, in the files of MT-bench and of the first Vicuna evaluation.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{Result, TrainerError};
use crate::prompts::read_objects;

/// Most turns of a question.
const MOST_TURNS: usize = 100;
/// Kinds of questions for which the judge is shown an answer that is right.
const WITH_REFERENCE: [&str; 3] = ["math", "reasoning", "coding"];

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Its name.
    pub id: String,
    /// What it is about: `writing`, `math`.
    pub category: String,
    /// What the user says, turn by turn.
    pub turns: Vec<String>,
    /// Answers that are right, by turn; empty where there are none.
    pub reference: Vec<String>,
}

impl Question {
    /// Whether the judge is shown an answer that is right.
    pub fn needs_reference(&self) -> bool {
        WITH_REFERENCE.contains(&self.category.as_str())
    }

    /// Temperature of an answer: writing needs variety, computing needs none.
    pub fn temperature(&self) -> f64 {
        match self.category.as_str() {
            "extraction" | "math" | "coding" | "reasoning" => 0.0,
            "stem" | "humanities" => 0.1,
            _ => 0.7,
        }
    }
}

pub(super) fn wrong(place: &str, reason: impl Into<String>) -> TrainerError {
    TrainerError::PromptFile { place: place.to_owned(), reason: reason.into() }
}

fn id_of(place: &str, object: &Value) -> Result<String> {
    match object.get("question_id") {
        Some(Value::String(id)) => Ok(id.clone()),
        Some(Value::Number(id)) => Ok(id.to_string()),
        _ => Err(wrong(place, "question_id: expected a number or a string")),
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
}

/// Reads `{"question_id", "category", "turns": […], "reference": […]}` or, with one turn,
/// `{"question_id", "category", "text"}`, a line each.
///
/// # Errors
/// [`TrainerError::PromptFile`] names the line and its key.
pub fn read_questions(path: &Path) -> Result<Vec<Question>> {
    let mut questions: Vec<Question> = Vec::new();
    let mut seen = HashMap::new();
    for (place, object) in read_objects(path)? {
        let id = id_of(&place, &object)?;
        if let Some(before) = seen.insert(id.clone(), place.clone()) {
            return Err(wrong(&place, format!("question_id {id:?} is that of {before} too")));
        }
        let turns = turns_of(object.get("turns"), &object);
        let Some(turns) = turns.filter(|turns| (1..=MOST_TURNS).contains(&turns.len())) else {
            let expected = format!("turns: expected a list of 1 to {MOST_TURNS} strings");
            return Err(wrong(&place, expected));
        };
        let category = object.get("category").and_then(Value::as_str).unwrap_or("general");
        let reference = object.get("reference").and_then(strings).unwrap_or_default();
        questions.push(Question { id, category: category.to_owned(), turns, reference });
    }
    Ok(questions)
}

/// The texts of `list`, or the object's `text` as the only one.
fn turns_of(list: Option<&Value>, object: &Value) -> Option<Vec<String>> {
    match (list, object.get("text")) {
        (Some(list), _) => strings(list),
        (None, Some(Value::String(text))) => Some(vec![text.clone()]),
        _ => None,
    }
}

/// Reads answers by question: `{"question_id", "choices": [{"turns": […]}]}` or `{"question_id", "text"}`, a
/// line each.
///
/// # Errors
/// [`TrainerError::PromptFile`] names the line and its key.
pub fn read_answers(path: &Path) -> Result<HashMap<String, Vec<String>>> {
    let mut answers = HashMap::new();
    for (place, object) in read_objects(path)? {
        let id = id_of(&place, &object)?;
        let Some(turns) = turns_of(object.pointer("/choices/0/turns"), &object) else {
            return Err(wrong(&place, "choices.0.turns: expected a list of strings"));
        };
        answers.insert(id, turns);
    }
    Ok(answers)
}
