//! NaturalQuestions and TriviaQA: questions answered from memory, in free text.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::Result;
use crate::eval_tasks::example::{Answer, Example, ExampleKind, Rules};
use crate::eval_tasks::rows::{Row, RowFault, RowResult, read_rows};
use crate::eval_tasks::task::{Generation, LIKELIHOODS, Task};

const GENERATION: Generation =
    Generation { stop: [&["\n"], &["\n", ".", ","]], max_tokens: [32, 256] };

pub static NQ_OPEN: Task = Task {
    name: "nq_open",
    title: "NaturalQuestions, closed book",
    published: "https://github.com/google-research-datasets/natural-questions/tree/master/nq_open",
    licence: "CC BY-SA 3.0",
    files: &["NQ-open.dev.jsonl", "validation*.parquet"],
    shot_files: &["NQ-open.train.jsonl", "NQ-open.efficientqa.dev.1.1.jsonl", "train*.parquet"],
    shot_separator: "\n",
    examples: natural_questions,
    ..OPEN
};

pub static TRIVIAQA: Task = Task {
    name: "triviaqa",
    title: "TriviaQA, closed book",
    published: "https://nlp.cs.washington.edu/triviaqa",
    licence: "Apache-2.0",
    files: &[
        "unfiltered-web-dev.json",
        "triviaqa-unfiltered/unfiltered-web-dev.json",
        "validation*.parquet",
    ],
    shot_files: &[
        "unfiltered-web-train.json",
        "triviaqa-unfiltered/unfiltered-web-train.json",
        "train*.parquet",
    ],
    read: read_trivia,
    examples: trivia,
    ..OPEN
};

const OPEN: Task = Task { measures: [&[], &[]], generation: Some(GENERATION), ..LIKELIHOODS };

/// What stands before the questions by the paper, and by the harness for NaturalQuestions.
const DESCRIPTION: &str = "Answer these questions:\n\n";

fn example(
    id: String,
    description: &str,
    question: String,
    aliases: Vec<String>,
) -> RowResult<Vec<Example>> {
    let Some(answer) = aliases.first().cloned() else {
        return Err(RowFault::LeftOut("there is no answer"));
    };
    Ok(vec![Example {
        id,
        groups: Vec::new(),
        shot_key: String::new(),
        description: description.to_owned(),
        question,
        answer,
        kind: ExampleKind::Generation(Answer::Aliases(aliases)),
    }])
}

/// Questions have no question mark in the file.
fn natural_questions(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let question = format!("Q: {}?\nA:", row.text("question")?);
    let answers = match row.get("answer") {
        Some(Value::String(answer)) => vec![answer.clone()],
        _ => row.texts("answer")?,
    };
    example(row.number().to_string(), DESCRIPTION, question, answers)
}

/// The official file is one object with the questions in `Data`, beside the pages that were searched.
fn read_trivia(path: &Path) -> Result<Vec<Row>> {
    let mut rows = read_rows(path, None)?;
    let questions = match &rows[..] {
        [row] => row.get("Data").and_then(Value::as_array),
        _ => None,
    };
    if let Some(questions) = questions {
        let text = |value: &Value, key: &str| value.get(key).cloned().unwrap_or_default();
        let questions = questions.iter().enumerate().map(|(n, question)| {
            let answer = text(question, "Answer");
            let columns = json!({
                "question": text(question, "Question"),
                "question_id": text(question, "QuestionId"),
                "answer": { "value": text(&answer, "Value"), "aliases": text(&answer, "Aliases") },
            });
            Row::new(path, n + 1, columns)
        });
        rows = questions.collect();
    }
    Ok(rows)
}

fn trivia(row: &Row, rules: Rules) -> RowResult<Vec<Example>> {
    let question = row.text("question")?;
    let aliases = row.texts("answer.aliases")?;
    let id = row.id("question_id");
    match rules {
        Rules::Paper => {
            let mark = if question.ends_with('?') { "" } else { "?" };
            let mut all = vec![row.text("answer.value")?.to_owned()];
            all.extend(aliases);
            example(id, DESCRIPTION, format!("Q: {question}{mark}\nA:"), all)
        }
        // With a second question mark, as the harness has it.
        Rules::Harness => example(id, "", format!("Question: {question}?\nAnswer:"), aliases),
    }
}
