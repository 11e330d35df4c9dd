//! SIQA: social common sense, one of three answers.

use super::one_right;
use crate::eval_tasks::example::{Example, Rules};
use crate::eval_tasks::rows::{Row, RowResult};
use crate::eval_tasks::task::{ACC, LIKELIHOODS, Task, read_with_labels};

pub static TASK: Task = Task {
    name: "social_iqa",
    title: "SIQA, social common sense",
    published: "https://allenai.org/data/socialiqa",
    licence: "CC BY 4.0",
    files: &["dev.jsonl", "validation*.parquet"],
    shot_files: &["train.jsonl", "train*.parquet"],
    measures: [&[ACC], &[ACC]],
    read: read_with_labels,
    examples,
    ..LIKELIHOODS
};

/// Labels count from 1.
fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let prompt = format!("Q: {} {}\nA:", row.text("context")?, row.text("question")?);
    let labels = [row.text("answerA")?, row.text("answerB")?, row.text("answerC")?];
    let gold = row.number_in("label")?.checked_sub(1).and_then(|gold| usize::try_from(gold).ok());
    one_right(row.number().to_string(), prompt, &labels.map(str::to_owned), gold)
}
