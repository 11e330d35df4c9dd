//! PIQA: which of two solutions reaches a goal.

use super::one_right;
use crate::eval_tasks::example::{Example, Rules};
use crate::eval_tasks::rows::{Row, RowResult};
use crate::eval_tasks::task::{LIKELIHOODS, Task, read_with_labels};

pub static TASK: Task = Task {
    name: "piqa",
    title: "PIQA, physical common sense",
    published: "https://yonatanbisk.com/piqa",
    licence: "AFL 3.0",
    files: &["valid.jsonl", "validation*.parquet"],
    shot_files: &["train.jsonl", "train*.parquet"],
    read: read_with_labels,
    examples,
    ..LIKELIHOODS
};

fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let prompt = format!("Question: {}\nAnswer:", row.text("goal")?);
    let labels = [row.text("sol1")?.to_owned(), row.text("sol2")?.to_owned()];
    let gold = usize::try_from(row.number_in("label")?).ok();
    one_right(row.number().to_string(), prompt, &labels, gold)
}
