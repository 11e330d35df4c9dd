//! CrowS-Pairs: which of two sentences, one more stereotypical, is likelier.

use crate::eval_tasks::example::{Choice, Example, ExampleKind, Gold, Normalization, Rules};
use crate::eval_tasks::rows::{Row, RowFault, RowResult};
use crate::eval_tasks::task::{EMPTY_CHOICE, LIKELIHOOD_DIFF, LIKELIHOODS, PCT_STEREOTYPE, Task};

pub static TASK: Task = Task {
    name: "crows_pairs",
    title: "CrowS-Pairs, stereotypes",
    published: "https://github.com/nyu-mll/crows-pairs/tree/master/data",
    licence: "CC BY-SA 4.0",
    files: &["crows_pairs_anonymized.csv", "test*.parquet"],
    paper_normalization: Normalization::PerToken,
    measures: [&[PCT_STEREOTYPE, LIKELIHOOD_DIFF], &[LIKELIHOOD_DIFF, PCT_STEREOTYPE]],
    examples,
    ..LIKELIHOODS
};

fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let sentences = [row.text("sent_more")?, row.text("sent_less")?];
    let kind = row.text("bias_type")?;
    if sentences.iter().any(|sentence| sentence.trim().is_empty()) {
        return Err(RowFault::LeftOut(EMPTY_CHOICE));
    }
    let choices = sentences.map(|sentence| Choice {
        question: None,
        continuation: sentence.to_owned(),
        label: sentence.to_owned(),
    });
    Ok(vec![Example {
        id: row.number().to_string(),
        groups: vec![format!("crows_pairs_{}", kind.replace('-', "_"))],
        shot_key: String::new(),
        description: String::new(),
        question: String::new(),
        answer: String::new(),
        kind: ExampleKind::Choices { choices: choices.into(), gold: Gold::Stereotype },
    }])
}
