//! MMLU: multiple choice in 57 subjects, answered by a letter.

use std::path::Path;

use crate::error::{DataError, Result};
use crate::eval_tasks::example::{Choice, Example, ExampleKind, Gold, Normalization, Rules};
use crate::eval_tasks::rows::{Row, RowFault, RowResult, read_rows};
use crate::eval_tasks::task::{ACC, LIKELIHOODS, NO_SUCH_CHOICE, Task};

pub static TASK: Task = Task {
    name: "mmlu",
    title: "MMLU, 57 subjects",
    published: "https://people.eecs.berkeley.edu/~hendrycks/data.tar",
    licence: "MIT",
    files: &["test/*_test.csv", "data/test/*_test.csv", "*/test*.parquet"],
    shot_files: &["dev/*_dev.csv", "data/dev/*_dev.csv", "*/dev*.parquet"],
    shots: [5, 0],
    paper_normalization: Normalization::Sum,
    measures: [&[ACC], &[ACC]],
    read,
    examples,
    ..LIKELIHOODS
};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// The subjects of each of the four fields.
const FIELDS: [(&str, &[&str]); 4] = [
    (
        "mmlu_humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
    (
        "mmlu_stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "mmlu_social_sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "mmlu_other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
];

/// The official files have no line of names and say their subject by their own.
fn read(path: &Path) -> Result<Vec<Row>> {
    if path.extension().is_some_and(|ending| ending == "parquet") {
        return read_rows(path, None);
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let subject = stem.strip_suffix("_test").or_else(|| stem.strip_suffix("_dev"));
    let Some(subject) = subject else {
        return Err(DataError::bad_file(path, "expected a name such as anatomy_test.csv"));
    };
    let mut rows = read_rows(path, Some(&["question", "A", "B", "C", "D", "answer"]))?;
    for row in &mut rows {
        let choices: Option<Vec<serde_json::Value>> =
            LETTERS.iter().map(|letter| row.get(letter).cloned()).collect();
        row.set("choices", choices.unwrap_or_default().into());
        row.set("subject", subject.into());
    }
    Ok(rows)
}

fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let (subject, question) = (row.text("subject")?, row.text("question")?.trim());
    let choices = row.texts("choices")?;
    if choices.len() != LETTERS.len() {
        return Err(row.unlike("four choices"));
    }
    let gold = match row.get("answer") {
        Some(serde_json::Value::String(letter)) => LETTERS.iter().position(|l| l == letter),
        _ => usize::try_from(row.number_in("answer")?).ok(),
    };
    let gold = gold.filter(|gold| *gold < LETTERS.len());
    let Some(gold) = gold else { return Err(RowFault::LeftOut(NO_SUCH_CHOICE)) };
    let listed: String = LETTERS
        .iter()
        .zip(&choices)
        .map(|(letter, choice)| format!("\n{letter}. {choice}"))
        .collect();
    let mut groups = vec![format!("mmlu_{subject}")];
    let field = FIELDS.iter().find(|(_, subjects)| subjects.contains(&subject));
    groups.extend(field.map(|(name, _)| (*name).to_owned()));
    Ok(vec![Example {
        id: format!("{subject}/{}", row.number()),
        groups,
        shot_key: subject.to_owned(),
        description: format!(
            "The following are multiple choice questions (with answers) about {}.\n\n",
            subject.replace('_', " ")
        ),
        question: format!("{question}{listed}\nAnswer:"),
        answer: LETTERS[gold].to_owned(),
        kind: ExampleKind::Choices {
            choices: LETTERS.iter().map(|letter| Choice::behind_space(letter)).collect(),
            gold: Gold::Index(gold),
        },
    }])
}
