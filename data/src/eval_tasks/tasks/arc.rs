//! ARC, easy and challenge: questions of science at school, and what OpenBookQA shares with them.

use super::one_right;
use crate::eval_tasks::example::{Example, Rules};
use crate::eval_tasks::rows::{Row, RowResult};
use crate::eval_tasks::task::{LIKELIHOODS, Task};

pub static EASY: Task = Task {
    name: "arc_easy",
    title: "ARC, easy questions of science",
    files: &["ARC-Easy-Test.jsonl", "ARC-Easy/ARC-Easy-Test.jsonl", "test*.parquet"],
    shot_files: &["ARC-Easy-Train.jsonl", "ARC-Easy/ARC-Easy-Train.jsonl", "train*.parquet"],
    ..ARC
};

pub static CHALLENGE: Task = Task {
    name: "arc_challenge",
    title: "ARC, hard questions of science",
    files: &["ARC-Challenge-Test.jsonl", "ARC-Challenge/ARC-Challenge-Test.jsonl", "test*.parquet"],
    shot_files: &[
        "ARC-Challenge-Train.jsonl",
        "ARC-Challenge/ARC-Challenge-Train.jsonl",
        "train*.parquet",
    ],
    ..ARC
};

const ARC: Task = Task {
    published: "https://allenai.org/data/arc",
    licence: "CC BY-SA 4.0",
    examples,
    ..LIKELIHOODS
};

fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let question = match row.get("question.stem") {
        Some(_) => row.text("question.stem")?,
        None => row.text("question")?,
    };
    choices_of(row, format!("Question: {question}\nAnswer:"))
}

/// An example with the choices of a row: in the official files a list of objects in the question, in
/// others two lists.
pub(super) fn choices_of(row: &Row, prompt: String) -> RowResult<Vec<Example>> {
    let (mut letters, mut texts) = (Vec::new(), Vec::new());
    match row.get("question.choices").and_then(|choices| choices.as_array()) {
        Some(choices) => {
            for choice in choices {
                let text = |key: &str| choice.get(key).and_then(|value| value.as_str());
                let (Some(letter), Some(text)) = (text("label"), text("text")) else {
                    return Err(row.unlike("`label` and `text` in each of `question.choices`"));
                };
                letters.push(letter.to_owned());
                texts.push(text.to_owned());
            }
        }
        None => (letters, texts) = (row.texts("choices.label")?, row.texts("choices.text")?),
    }
    let key = row.text("answerKey")?.trim();
    let gold = letters.iter().position(|letter| letter == key);
    one_right(row.id("id"), prompt, &texts, gold)
}
