//! GSM8k and MATH: word problems with a number, and problems of competitions with an expression.

use std::path::Path;

use crate::eval_tasks::example::{Answer, Example, ExampleKind, Rules};
use crate::eval_tasks::rows::{Row, RowFault, RowResult};
use crate::eval_tasks::task::{Generation, LIKELIHOODS, Task};
use crate::eval_tasks::tex_answer::boxed;

pub static GSM8K: Task = Task {
    name: "gsm8k",
    title: "GSM8k, word problems",
    published: "https://github.com/openai/grade-school-math/tree/master/grade_school_math/data",
    licence: "MIT",
    files: &["test.jsonl", "main/test*.parquet", "test*.parquet"],
    shot_files: &["train.jsonl", "main/train*.parquet", "train*.parquet"],
    shots: [8, 5],
    measures: [&[], &[]],
    generation: Some(Generation {
        stop: [&["\n\nQuestion:", "Question:"], &["Question:", "</s>", "<|im_end|>"]],
        max_tokens: [512, 256],
    }),
    examples: word_problems,
    ..LIKELIHOODS
};

pub static MATH: Task = Task {
    name: "math",
    title: "MATH, problems of competitions",
    published: "https://github.com/hendrycks/math",
    licence: "MIT",
    files: &["test/*/*.json", "*/test*.parquet", "test*.parquet"],
    shot_files: &["train/*/*.json", "*/train*.parquet", "train*.parquet"],
    shots: [4, 0],
    measures: [&[], &[]],
    generation: Some(Generation {
        stop: [&["\n\nProblem:", "Problem:"], &["Problem:"]],
        max_tokens: [512, 256],
    }),
    examples: competition_problems,
    ..LIKELIHOODS
};

fn word_problems(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let (question, answer) = (row.text("question")?, row.text("answer")?);
    if !answer.contains("#### ") {
        return Err(RowFault::LeftOut("the solution has no number behind ####"));
    }
    Ok(vec![Example {
        id: row.number().to_string(),
        groups: Vec::new(),
        shot_key: String::new(),
        description: String::new(),
        question: format!("Question: {question}\nAnswer:"),
        answer: answer.to_owned(),
        kind: ExampleKind::Generation(Answer::Number(answer.to_owned())),
    }])
}

/// The official files have one problem each, in a folder for each subject.
fn competition_problems(row: &Row, rules: Rules) -> RowResult<Vec<Example>> {
    let (problem, solution) = (row.text("problem")?, row.text("solution")?);
    let Some(answer) = boxed(solution) else {
        return Err(RowFault::LeftOut("the solution has no \\boxed answer"));
    };
    let kind = row.text("type")?;
    let folder = row.path().parent().and_then(Path::file_name).unwrap_or_default();
    let stem = row.path().file_stem().unwrap_or_default().to_string_lossy();
    let id = match row.path().extension() {
        Some(ending) if ending == "json" => format!("{}/{stem}", folder.to_string_lossy()),
        _ => format!("{kind}/{}", row.number()),
    };
    Ok(vec![Example {
        id,
        groups: vec![format!("math_{}", kind.to_lowercase().replace([' ', '&'], "_"))],
        shot_key: String::new(),
        description: String::new(),
        question: match rules {
            Rules::Paper => format!("Problem:\n{problem}\n\nSolution:"),
            Rules::Harness => format!("Problem: {problem}\nAnswer:"),
        },
        answer: match rules {
            Rules::Paper => solution.to_owned(),
            Rules::Harness => answer.clone(),
        },
        kind: ExampleKind::Generation(Answer::Expression(answer)),
    }])
}
