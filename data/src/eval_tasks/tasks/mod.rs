//! The tasks, a file a family.

mod arc;
mod boolq;
mod code;
mod crows_pairs;
mod hellaswag;
mod mathematics;
mod mmlu;
mod open_questions;
mod openbookqa;
mod piqa;
mod race;
mod siqa;
mod truthfulqa;
mod wikitext;
mod winogender;
mod winogrande;

use super::example::{Choice, Example, ExampleKind, Gold};
use super::rows::{RowFault, RowResult};
use super::task::{EMPTY_CHOICE, NO_SUCH_CHOICE, Task};

/// All tasks, in the order of the paper.
pub static TASKS: &[&Task] = &[
    &boolq::TASK,
    &piqa::TASK,
    &siqa::TASK,
    &hellaswag::TASK,
    &winogrande::TASK,
    &arc::EASY,
    &arc::CHALLENGE,
    &openbookqa::TASK,
    &open_questions::NQ_OPEN,
    &open_questions::TRIVIAQA,
    &race::MIDDLE,
    &race::HIGH,
    &mathematics::MATH,
    &mathematics::GSM8K,
    &code::HUMANEVAL,
    &code::MBPP,
    &mmlu::TASK,
    &crows_pairs::TASK,
    &winogender::TASK,
    &truthfulqa::MC1,
    &truthfulqa::MC2,
    &wikitext::TASK,
];

/// The task of this name.
pub fn find_task(name: &str) -> Option<&'static Task> {
    TASKS.iter().find(|task| task.name == name).copied()
}

/// An example with choices behind a space, of which one is right.
fn one_right(
    id: String,
    question: String,
    labels: &[String],
    gold: Option<usize>,
) -> RowResult<Vec<Example>> {
    let gold = gold.filter(|gold| *gold < labels.len());
    let Some(gold) = gold else { return Err(RowFault::LeftOut(NO_SUCH_CHOICE)) };
    if labels.iter().any(|label| label.trim().is_empty()) {
        return Err(RowFault::LeftOut(EMPTY_CHOICE));
    }
    let choices = labels.iter().map(|label| Choice::behind_space(label)).collect();
    Ok(vec![Example {
        id,
        groups: Vec::new(),
        shot_key: String::new(),
        description: String::new(),
        question,
        answer: labels[gold].clone(),
        kind: ExampleKind::Choices { choices, gold: Gold::Index(gold) },
    }])
}
