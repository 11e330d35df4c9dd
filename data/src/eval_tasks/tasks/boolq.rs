//! BoolQ: questions on a passage, answered by yes or no.

use serde_json::Value;

use super::one_right;
use crate::eval_tasks::example::{Example, Normalization, Rules};
use crate::eval_tasks::rows::{Row, RowResult};
use crate::eval_tasks::task::{ACC, LIKELIHOODS, Task};

pub static TASK: Task = Task {
    name: "boolq",
    title: "BoolQ, yes or no on a passage",
    published: "https://github.com/google-research-datasets/boolean-questions",
    licence: "CC BY-SA 3.0",
    files: &["dev.jsonl", "val.jsonl", "validation*.parquet"],
    shot_files: &["train.jsonl", "train*.parquet"],
    paper_normalization: Normalization::Unconditional,
    measures: [&[ACC], &[ACC]],
    examples,
    ..LIKELIHOODS
};

/// The official files have `answer`, those of SuperGLUE `label`.
fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let (passage, question) = (row.text("passage")?, row.text("question")?);
    let answer = row.get("answer").or(row.get("label"));
    let gold = match answer {
        Some(Value::Bool(truth)) => usize::from(*truth),
        Some(Value::Number(label)) => label.as_u64().unwrap_or(u64::MAX) as usize,
        _ => return Err(row.unlike("true or false in `answer` or `label`")),
    };
    let prompt = format!("{passage}\nQuestion: {question}?\nAnswer:");
    let labels = ["no", "yes"].map(str::to_owned);
    one_right(row.number().to_string(), prompt, &labels, Some(gold))
}
