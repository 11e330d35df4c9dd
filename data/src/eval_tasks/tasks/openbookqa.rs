//! OpenBookQA: how a sentence about science ends.

use super::arc::{choices_of, is_of_arc};
use crate::eval_tasks::example::{Example, Normalization, Rules};
use crate::eval_tasks::rows::{Row, RowResult};
use crate::eval_tasks::task::{LIKELIHOODS, Task};

pub static TASK: Task = Task {
    name: "openbookqa",
    title: "OpenBookQA, science that a few facts answer",
    published: "https://allenai.org/data/open-book-qa",
    licence: "Apache-2.0",
    files: &["test.jsonl", "Main/test.jsonl", "Data/Main/test.jsonl", "test*.parquet"],
    shot_files: &["train.jsonl", "Main/train.jsonl", "Data/Main/train.jsonl", "train*.parquet"],
    paper_normalization: Normalization::Unconditional,
    examples,
    ..LIKELIHOODS
};

fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    if is_of_arc(&row.id("id")) {
        return Err(row.unlike(&format!(
            "an id of OpenBookQA, such as 7-980, and not one of ARC, {}",
            row.id("id")
        )));
    }
    let stem = match row.get("question.stem") {
        Some(_) => row.text("question.stem")?,
        None => row.text("question_stem")?,
    };
    choices_of(row, stem.to_owned())
}
