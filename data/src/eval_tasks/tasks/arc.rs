//! ARC, easy and challenge: questions of science at school, and what OpenBookQA shares with them.

use std::path::Path;

use super::one_right;
use crate::error::{DataError, Result};
use crate::eval_tasks::example::{Example, Rules};
use crate::eval_tasks::rows::{Row, RowResult, read_rows};
use crate::eval_tasks::task::{LIKELIHOODS, Task};

pub static EASY: Task = Task {
    name: "arc_easy",
    title: "ARC, easy questions of science",
    files: &[
        "ARC-Easy-Test.jsonl",
        "ARC-Easy/ARC-Easy-Test.jsonl",
        "ARC-Easy/test*.parquet",
        "test*.parquet",
    ],
    shot_files: &[
        "ARC-Easy-Train.jsonl",
        "ARC-Easy/ARC-Easy-Train.jsonl",
        "ARC-Easy/train*.parquet",
        "train*.parquet",
    ],
    read: |path| read(path, "easy", "challenge"),
    ..ARC
};

pub static CHALLENGE: Task = Task {
    name: "arc_challenge",
    title: "ARC, hard questions of science",
    files: &[
        "ARC-Challenge-Test.jsonl",
        "ARC-Challenge/ARC-Challenge-Test.jsonl",
        "ARC-Challenge/test*.parquet",
        "test*.parquet",
    ],
    shot_files: &[
        "ARC-Challenge-Train.jsonl",
        "ARC-Challenge/ARC-Challenge-Train.jsonl",
        "ARC-Challenge/train*.parquet",
        "train*.parquet",
    ],
    read: |path| read(path, "challenge", "easy"),
    ..ARC
};

const ARC: Task = Task {
    published: "https://allenai.org/data/arc",
    licence: "CC BY-SA 4.0",
    examples,
    ..LIKELIHOODS
};

/// Both sets have the same form: names of files and folders alone tell which one a file is of.
fn read(path: &Path, set: &str, other: &str) -> Result<Vec<Row>> {
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
    let names = [folder, path.file_name().unwrap_or_default()];
    let says =
        |set: &str| names.iter().any(|name| name.to_string_lossy().to_lowercase().contains(set));
    match (says(set), says(other)) {
        (true, _) => {}
        (false, true) => {
            let reason = format!("its name is that of ARC's {other} set, expected the {set} set");
            return Err(DataError::bad_file(path, reason));
        }
        (false, false) => tracing::warn!(
            "{}: neither the file nor its folder says whether this is ARC's easy or challenge set; it is \
             taken for the {set} set",
            path.display()
        ),
    }
    read_rows(path, None)
}

/// Whether an id is one of OpenBookQA, such as `7-980`: those of ARC begin with a letter.
fn is_of_openbookqa(id: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    id.split_once('-').is_some_and(|(fact, question)| is_number(fact) && is_number(question))
}

/// Whether an id is one of ARC with the name of an examination, such as `Mercury_7175875`.
pub(super) fn is_of_arc(id: &str) -> bool {
    id.split_once('_').is_some_and(|(examination, number)| {
        examination.starts_with(|letter: char| letter.is_ascii_uppercase())
            && number.starts_with(|digit: char| digit.is_ascii_alphanumeric())
    })
}

fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    if is_of_openbookqa(&row.id("id")) {
        return Err(row.unlike(&format!(
            "an id of ARC, such as Mercury_7175875, and not one of OpenBookQA, {}",
            row.id("id")
        )));
    }
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
