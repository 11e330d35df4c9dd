//! WinoGrande: which of two names a blank stands for.

use crate::eval_tasks::example::{Choice, Example, ExampleKind, Gold, Rules};
use crate::eval_tasks::rows::{Row, RowFault, RowResult};
use crate::eval_tasks::task::{ACC, EMPTY_CHOICE, LIKELIHOODS, NO_SUCH_CHOICE, Task};

pub static TASK: Task = Task {
    name: "winogrande",
    title: "WinoGrande, whom a blank stands for",
    published: "https://winogrande.allenai.org",
    licence: "CC BY",
    files: &["dev.jsonl", "validation*.parquet"],
    shot_files: &["train_xl.jsonl", "train*.parquet"],
    measures: [&[ACC], &[ACC]],
    examples,
    ..LIKELIHOODS
};

/// The text behind the blank is scored behind each of the names.
fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let sentence = row.text("sentence")?;
    let Some((before, behind)) = sentence.split_once('_') else {
        return Err(RowFault::LeftOut("the sentence has no blank"));
    };
    let names = [row.text("option1")?, row.text("option2")?];
    if names.iter().any(|name| name.trim().is_empty()) {
        return Err(RowFault::LeftOut(EMPTY_CHOICE));
    }
    let gold = match row.text("answer")? {
        "1" => 0,
        "2" => 1,
        _ => return Err(RowFault::LeftOut(NO_SUCH_CHOICE)),
    };
    let behind = behind.trim();
    let questions = names.map(|name| format!("{before}{name}"));
    // The same characters follow each name, so that their number decides nothing.
    let choices = questions.iter().map(|question| Choice {
        question: Some(question.clone()),
        continuation: format!(" {behind}"),
        label: behind.to_owned(),
    });
    Ok(vec![Example {
        id: row.id("qID"),
        groups: Vec::new(),
        shot_key: String::new(),
        description: String::new(),
        question: questions[gold].clone(),
        answer: behind.to_owned(),
        kind: ExampleKind::Choices { choices: choices.collect(), gold: Gold::Index(gold) },
    }])
}
