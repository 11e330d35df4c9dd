//! HellaSwag: which of four endings follows.

use std::sync::LazyLock;

use regex::Regex;

use super::one_right;
use crate::eval_tasks::example::{Example, Rules};
use crate::eval_tasks::rows::{Row, RowResult};
use crate::eval_tasks::task::{LIKELIHOODS, Task};

pub static TASK: Task = Task {
    name: "hellaswag",
    title: "HellaSwag, how a text goes on",
    published: "https://github.com/rowanz/hellaswag/tree/master/data",
    licence: "MIT",
    files: &["hellaswag_val.jsonl", "validation*.parquet"],
    shot_files: &["hellaswag_train.jsonl", "train*.parquet"],
    examples,
    ..LIKELIHOODS
};

/// Marks of the pages that the texts are from.
#[allow(clippy::unwrap_used, reason = "the pattern is a constant")]
static MARKS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[.*?\]").unwrap());

fn without_marks(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    MARKS.replace_all(&text, "").replace("  ", " ")
}

/// The first letter large and all others small.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters.flat_map(char::to_lowercase)).collect()
}

fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let (activity, ctx_a) = (row.text("activity_label")?, row.text("ctx_a")?);
    let ctx_b = capitalized(row.text("ctx_b")?);
    let prompt = without_marks(&format!("{activity}: {ctx_a} {ctx_b}"));
    let endings: Vec<String> =
        row.texts("endings")?.iter().map(|ending| without_marks(ending)).collect();
    let id = row.get("ind").map_or_else(|| row.number().to_string(), |id| id.to_string());
    one_right(id, prompt, &endings, usize::try_from(row.number_in("label")?).ok())
}
