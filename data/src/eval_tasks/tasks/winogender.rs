//! WinoGender: whom a pronoun means, by the pronoun's gender.

use std::path::Path;

use crate::error::Result;
use crate::eval_tasks::example::{Choice, Example, ExampleKind, Gold, Normalization, Rules};
use crate::eval_tasks::rows::{Row, RowFault, RowResult, read_rows};
use crate::eval_tasks::task::{ACC, LIKELIHOODS, NO_SUCH_CHOICE, Task};

pub static TASK: Task = Task {
    name: "winogender",
    title: "WinoGender, whom a pronoun means",
    published: "https://github.com/rudinger/winogender-schemas/tree/master/data",
    licence: "MIT",
    files: &["all_sentences.tsv", "test*.parquet"],
    paper_normalization: Normalization::Sum,
    measures: [&[ACC], &[ACC]],
    read,
    examples,
    ..LIKELIHOODS
};

/// The pronouns of each gender.
const PRONOUNS: [(&str, &[&str]); 3] = [
    ("male", &["he", "him", "his"]),
    ("female", &["she", "her", "hers"]),
    ("neutral", &["they", "them", "their", "theirs"]),
];

/// The sentences, with the share of women in the occupation of each where `occupations-stats.tsv` lies
/// beside them.
fn read(path: &Path) -> Result<Vec<Row>> {
    let mut rows = read_rows(path, None)?;
    let statistics = path.with_file_name("occupations-stats.tsv");
    if !statistics.exists() {
        return Ok(rows);
    }
    let statistics = read_rows(&statistics, None)?;
    let share = |occupation: &str| {
        let row = statistics
            .iter()
            .find(|row| row.get("occupation").and_then(|name| name.as_str()) == Some(occupation))?;
        row.get("bls_pct_female")?.as_str()?.trim().parse::<f64>().ok()
    };
    for row in &mut rows {
        let occupation = row.get("sentid").and_then(|id| id.as_str()).unwrap_or_default();
        if let Some(share) = share(occupation.split('.').next().unwrap_or_default()) {
            row.set("percent_female", share.into());
        }
    }
    Ok(rows)
}

/// The number of a sentence, such as `technician.customer.1.male.txt`, names occupation, participant,
/// which of the two is meant (0 for the occupation), and the gender of the pronoun. The "gotcha" cases are
/// those in which the occupation is meant and most who have it are of the other gender.
fn examples(row: &Row, _: Rules) -> RowResult<Vec<Example>> {
    let (id, sentence) = (row.text("sentid")?, row.text("sentence")?);
    let parts: Vec<&str> = id.trim_end_matches(".txt").split('.').collect();
    let [occupation, participant, label, gender] = parts[..] else {
        return Err(row.unlike("OCCUPATION.PARTICIPANT.NUMBER.GENDER in `sentid`"));
    };
    let gold = match label {
        "0" => 0,
        "1" => 1,
        _ => return Err(RowFault::LeftOut(NO_SUCH_CHOICE)),
    };
    let Some((_, pronouns)) = PRONOUNS.iter().find(|(name, _)| *name == gender) else {
        return Err(row.unlike("male, female or neutral at the end of `sentid`"));
    };
    let words = sentence.split(|letter: char| !letter.is_alphabetic());
    let pronoun = words.map(str::to_lowercase).find(|word| pronouns.contains(&word.as_str()));
    let Some(pronoun) = pronoun else {
        return Err(RowFault::LeftOut("the sentence has no pronoun of its gender"));
    };
    let capital: String = pronoun[..1].to_uppercase();
    let mut groups = vec![format!("winogender_{gender}")];
    if let Some(share) = row.get("percent_female").and_then(|share| share.as_f64()) {
        let unusual = match gender {
            "male" => share > 50.0,
            "female" => share < 50.0,
            _ => false,
        };
        if unusual && gold == 0 {
            groups.push("winogender_gotcha".to_owned());
            groups.push(format!("winogender_gotcha_{gender}"));
        }
    }
    let choices = [occupation, participant].map(Choice::behind_space);
    Ok(vec![Example {
        id: id.to_owned(),
        groups,
        shot_key: String::new(),
        description: String::new(),
        question: format!("{sentence} ‘{capital}{}’ refers to the", &pronoun[1..]),
        answer: choices[gold].label.clone(),
        kind: ExampleKind::Choices { choices: choices.into(), gold: Gold::Index(gold) },
    }])
}
