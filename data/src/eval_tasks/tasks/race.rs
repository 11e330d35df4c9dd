//! RACE, middle and high school: questions on an article.

use std::path::Path;

use serde_json::{Value, json};

use super::one_right;
use crate::error::{DataError, Result};
use crate::eval_tasks::example::{Example, Normalization, Rules};
use crate::eval_tasks::rows::{Row, RowFault, RowResult, read_rows, texts_of};
use crate::eval_tasks::task::{ACC, LIKELIHOODS, NO_SUCH_CHOICE, Task};

pub static MIDDLE: Task = Task {
    name: "race_middle",
    title: "RACE, questions of middle schools on an article",
    files: &["test/middle/*.txt", "middle/test*.parquet"],
    shot_files: &["train/middle/*.txt", "middle/train*.parquet"],
    ..RACE
};

pub static HIGH: Task = Task {
    name: "race_high",
    title: "RACE, questions of high schools on an article",
    files: &["test/high/*.txt", "high/test*.parquet"],
    shot_files: &["train/high/*.txt", "high/train*.parquet"],
    ..RACE
};

const RACE: Task = Task {
    published: "https://www.cs.cmu.edu/~glai1/data/race",
    licence: "for research only",
    folder: Some("race"),
    paper_normalization: Normalization::Unconditional,
    measures: [&[ACC], &[ACC]],
    read,
    examples,
    ..LIKELIHOODS
};

/// An article a row with all its questions: the official files are one article each, Parquet files have
/// a row a question.
fn read(path: &Path) -> Result<Vec<Row>> {
    let rows = read_rows(path, None)?;
    if rows.iter().all(|row| row.get("questions").is_some()) {
        return Ok(rows);
    }
    let mut articles: Vec<(Value, [Vec<Value>; 3])> = Vec::new();
    for row in &rows {
        let column = |name: &str| {
            row.get(name).cloned().ok_or_else(|| match row.unlike(&format!("`{name}`")) {
                RowFault::File(error) => error,
                RowFault::LeftOut(reason) => DataError::bad_file(path, reason),
            })
        };
        let article = column("article")?;
        if articles.last().is_none_or(|(last, _)| *last != article) {
            articles.push((article, Default::default()));
        }
        if let Some((_, lists)) = articles.last_mut() {
            for (list, name) in lists.iter_mut().zip(["question", "options", "answer"]) {
                list.push(column(name)?);
            }
        }
    }
    let articles = articles.into_iter().enumerate();
    let row = |(n, (article, [questions, options, answers])): (usize, (Value, [Vec<Value>; 3]))| {
        let columns = json!({
            "article": article, "questions": questions, "options": options, "answers": answers,
        });
        Row::new(path, n + 1, columns)
    };
    Ok(articles.map(row).collect())
}

/// A question of an article.
struct Question {
    text: String,
    options: Vec<String>,
    gold: Option<usize>,
}

impl Question {
    fn right_option(&self) -> RowResult<&str> {
        let option = self.gold.and_then(|gold| self.options.get(gold));
        option.map(String::as_str).ok_or(RowFault::LeftOut(NO_SUCH_CHOICE))
    }
}

fn questions(row: &Row) -> RowResult<Vec<Question>> {
    let (texts, answers) = (row.texts("questions")?, row.texts("answers")?);
    let lists = row.get("options").and_then(Value::as_array);
    let options: Option<Vec<Vec<String>>> =
        lists.and_then(|lists| lists.iter().map(texts_of).collect());
    let Some(options) = options.filter(|options| {
        options.len() == texts.len() && answers.len() == texts.len() && !texts.is_empty()
    }) else {
        return Err(
            row.unlike("as many lists in `options` and letters in `answers` as `questions`")
        );
    };
    let rows = texts.into_iter().zip(options).zip(answers);
    Ok(rows
        .map(|((text, options), answer)| {
            let gold = ["A", "B", "C", "D"].iter().position(|letter| *letter == answer);
            Question { text, options, gold }
        })
        .collect())
}

/// By the paper each question is asked alone behind its article. lm-evaluation-harness asks the last one
/// of an article, behind the others with their answers.
fn examples(row: &Row, rules: Rules) -> RowResult<Vec<Example>> {
    let article = row.text("article")?;
    let questions = questions(row)?;
    let name = row.path().file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let id = |n: usize| match row.path().extension() {
        Some(ending) if ending == "parquet" => format!("{}/{n}", row.number()),
        _ => format!("{name}/{n}"),
    };
    if rules == Rules::Paper {
        let mut examples = Vec::new();
        for (n, question) in questions.iter().enumerate() {
            let prompt = format!("{article}\n\nQ: {}\n\nA:", question.text);
            examples.extend(one_right(id(n + 1), prompt, &question.options, question.gold)?);
        }
        return Ok(examples);
    }
    let mut prompt = format!("Article: {article}\n\n");
    let Some((last, others)) = questions.split_last() else {
        return Err(row.unlike("questions"));
    };
    for question in others {
        let answer = question.right_option()?;
        let shown = match question.text.strip_suffix("  _  .") {
            // The blank gives way to the answer; one of the spaces before it stays.
            Some(before) => format!("{before} {answer}\n"),
            None => format!("Question: {}\nAnswer: {answer}\n", question.text),
        };
        prompt.push_str(&shown);
    }
    prompt.push_str(&last.text);
    one_right(id(questions.len()), prompt, &last.options, last.gold)
}
