//! Conversations from which a model learns its name and its makers.

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::load::{ConfigFile, Problem};

/// `configs/identity/*.yaml`: questions about name and maker with their answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// What the model calls itself: stands for `{name}`.
    pub name: String,
    /// Who made it: stands for `{organisation}`.
    pub organisation: String,
    /// What it is taken for: a question with `{other}` is asked of each.
    #[serde(default)]
    pub others: Vec<String>,
    /// Questions with their answers.
    pub groups: Vec<IdentityGroup>,
}

/// Questions, each of which has every one of the answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityGroup {
    /// What the user says.
    pub questions: Vec<String>,
    /// What the assistant says.
    pub answers: Vec<String>,
}

impl IdentityConfig {
    /// Questions and answers with all names filled in, in order.
    pub fn rounds(&self) -> Vec<[String; 2]> {
        let mut rounds = Vec::new();
        for group in &self.groups {
            for question in group.questions.iter().flat_map(|question| self.asked(question)) {
                let answers = group.answers.iter().map(|answer| self.filled(answer, None));
                rounds.extend(answers.map(|answer| [question.clone(), answer]));
            }
        }
        rounds
    }

    /// A question, of each of the others if it has a place for them.
    fn asked(&self, question: &str) -> Vec<String> {
        if !question.contains("{other}") {
            return vec![self.filled(question, None)];
        }
        self.others.iter().map(|other| self.filled(question, Some(other))).collect()
    }

    /// `text` with the names in their places; what they contain is not filled in again.
    fn filled(&self, text: &str, other: Option<&str>) -> String {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            filled.push_str(&rest[..at]);
            rest = &rest[at..];
            let places = [
                ("{name}", Some(self.name.as_str())),
                ("{organisation}", Some(self.organisation.as_str())),
                ("{other}", other),
            ];
            let place = places.iter().find(|(place, _)| rest.starts_with(place));
            match place {
                Some((place, Some(value))) => {
                    filled.push_str(value);
                    rest = &rest[place.len()..];
                }
                _ => {
                    filled.push('{');
                    rest = &rest[1..];
                }
            }
        }
        filled + rest
    }
}

impl ConfigFile for IdentityConfig {
    fn check(&self) -> Check {
        for (key, value) in [("name", &self.name), ("organisation", &self.organisation)] {
            if value.trim().is_empty() {
                return Err(Problem::new(key, "is empty"));
            }
        }
        for (number, group) in self.groups.iter().enumerate() {
            for (key, list) in [("questions", &group.questions), ("answers", &group.answers)] {
                let key = format!("groups.{number}.{key}");
                if list.is_empty() {
                    return Err(Problem::new(&key, "empty: expected at least one"));
                }
                if self.others.is_empty() && list.iter().any(|text| text.contains("{other}")) {
                    return Err(Problem::new("others", format!("empty, but {key} has {{other}}")));
                }
            }
        }
        Ok(())
    }
}
