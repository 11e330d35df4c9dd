//! HumanEval and MBPP: programs that have to pass tests.

use crate::eval_tasks::example::{Answer, Example, ExampleKind, Program, Rules};
use crate::eval_tasks::rows::{Row, RowResult};
use crate::eval_tasks::task::{Generation, LIKELIHOODS, Task};

const STOP: &[&str] = &["\nclass", "\ndef", "\n#", "\nif", "\nprint"];

pub static HUMANEVAL: Task = Task {
    name: "humaneval",
    title: "HumanEval, functions from their description",
    published: "https://github.com/openai/human-eval/tree/master/data",
    licence: "MIT",
    files: &[
        "HumanEval.jsonl.gz",
        "HumanEval.jsonl",
        "openai_humaneval/test*.parquet",
        "test*.parquet",
    ],
    measures: [&[], &[]],
    generation: Some(Generation { stop: [STOP, STOP], max_tokens: [512, 1024] }),
    runs_programs: true,
    examples: |row, _| human_eval(row),
    ..LIKELIHOODS
};

pub static MBPP: Task = Task {
    name: "mbpp",
    title: "MBPP, functions from a sentence and three tests",
    published: "https://github.com/google-research/google-research/tree/master/mbpp",
    licence: "CC BY 4.0",
    files: &["mbpp.jsonl", "full/test*.parquet", "test*.parquet"],
    shot_files: &["mbpp.jsonl", "full/prompt*.parquet", "prompt*.parquet"],
    test_rows: |row| row.number_in("task_id").is_ok_and(|id| (11..=510).contains(&id)),
    shot_rows: |row| row.number_in("task_id").is_ok_and(|id| (2..=4).contains(&id)),
    shots: [3, 3],
    measures: [&[], &[]],
    answer_delimiter: "",
    generation: Some(Generation { stop: [&["[DONE]"], &["[DONE]"]], max_tokens: [512, 256] }),
    runs_programs: true,
    examples: mbpp,
    ..LIKELIHOODS
};

fn human_eval(row: &Row) -> RowResult<Vec<Example>> {
    let (prompt, test) = (row.text("prompt")?, row.text("test")?);
    let after = format!("\n{test}\ncheck({})", row.text("entry_point")?);
    let program = Program { before: prompt.to_owned(), after };
    Ok(vec![Example {
        id: row.text("task_id")?.to_owned(),
        groups: Vec::new(),
        shot_key: String::new(),
        description: String::new(),
        question: prompt.to_owned(),
        answer: row.text("canonical_solution")?.to_owned(),
        kind: ExampleKind::Generation(Answer::Program(program)),
    }])
}

/// Problems 11 to 510 are the test, 2 to 4 the shots.
fn mbpp(row: &Row, rules: Rules) -> RowResult<Vec<Example>> {
    let (text, code, tests) = (row.text("text")?, row.text("code")?, row.texts("test_list")?);
    if tests.len() < 3 {
        return Err(row.unlike("three tests in `test_list`"));
    }
    let question = format!(
        "You are an expert Python programmer, and here is your task: {text} Your code should pass these \
         tests:\n\n{}\n{}\n{}\n[BEGIN]\n",
        tests[0], tests[1], tests[2]
    );
    let setup = match (rules, row.get("test_setup_code").and_then(|code| code.as_str())) {
        (Rules::Paper, Some(setup)) if !setup.is_empty() => format!("\n{setup}"),
        _ => String::new(),
    };
    let after = format!("{setup}\n{}", tests[..3].join("\n"));
    Ok(vec![Example {
        id: row.number_in("task_id")?.to_string(),
        groups: Vec::new(),
        shot_key: String::new(),
        description: String::new(),
        question,
        answer: format!("{code}\n[DONE]"),
        kind: ExampleKind::Generation(Answer::Program(Program { before: String::new(), after })),
    }])
}
