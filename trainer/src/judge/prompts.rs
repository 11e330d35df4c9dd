//! What a judge is asked: files of prompts with places for questions and answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::questions::wrong;
use crate::config::JudgeMode;
use crate::error::{Result, TrainerError};
use crate::prompts::read_objects;

/// A prompt with places such as `{question}`.
#[derive(Clone, Debug, PartialEq)]
struct Prompt {
    place: String,
    mode: JudgeMode,
    system: String,
    template: String,
    names: Vec<String>,
}

/// The prompts of a file.
#[derive(Clone, Debug)]
pub struct Prompts {
    path: PathBuf,
    prompts: Vec<Prompt>,
}

/// What a question needs of its prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Two answers or one.
    pub mode: JudgeMode,
    /// Turn of the conversation that is judged, from 0.
    pub turn: usize,
    /// An answer that is right.
    pub reference: bool,
}

impl Prompts {
    /// Reads `{"type": "pairwise" or "single", "system_prompt", "prompt_template"}`, a line each.
    ///
    /// # Errors
    /// [`TrainerError::PromptFile`] names the line and its key.
    pub fn read(path: &Path) -> Result<Self> {
        let mut prompts = Vec::new();
        for (place, object) in read_objects(path)? {
            let string = |key: &str| object.get(key).and_then(Value::as_str);
            let mode = match string("type") {
                Some("pairwise") => JudgeMode::Pairwise,
                Some("single") => JudgeMode::Single,
                _ => return Err(wrong(&place, "type: expected pairwise or single")),
            };
            let Some(template) = string("prompt_template") else {
                return Err(wrong(&place, "prompt_template: expected a string"));
            };
            let names = parts(template)
                .filter_map(|part| match part {
                    Part::Name(name) => Some(name.to_owned()),
                    Part::Text(_) => None,
                })
                .collect();
            let system = string("system_prompt").unwrap_or_default().to_owned();
            prompts.push(Prompt { place, mode, system, template: template.to_owned(), names });
        }
        Ok(Self { path: path.to_owned(), prompts })
    }

    /// The system message and the prompt for `needs`, with `values` in their places: the first prompt of the
    /// file that has a place for the answer of that turn, none for a later turn, and one for a right answer
    /// if and only if one is needed.
    ///
    /// # Errors
    /// [`TrainerError::PromptFile`] when there is none, or it has a place that nothing fills.
    pub fn fill(
        &self,
        needs: Needs,
        values: &BTreeMap<String, String>,
    ) -> Result<(String, String)> {
        let fits = |prompt: &&Prompt| {
            let has = |name: &str| prompt.names.iter().any(|other| other == name);
            let last = (2..=needs.turn + 2).rev().find(|turn| has(&format!("question_{turn}")));
            prompt.mode == needs.mode
                && has("ref_answer_1") == needs.reference
                && last.unwrap_or(1) == needs.turn + 1
        };
        let Some(prompt) = self.prompts.iter().find(fits) else {
            let mode = match needs.mode {
                JudgeMode::Pairwise => "pairwise",
                JudgeMode::Single => "single",
            };
            let last = match needs.turn {
                0 => "{question}".to_owned(),
                turn => format!("{{question_{}}}", turn + 1),
            };
            let reference = match needs.reference {
                true => "with {ref_answer_1}",
                false => "without {ref_answer_1}",
            };
            return Err(TrainerError::PromptFile {
                place: self.path.display().to_string(),
                reason: format!(
                    "has no prompt of type {mode} {reference} whose last question is {last}; add one"
                ),
            });
        };
        let mut text = String::new();
        for part in parts(&prompt.template) {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Name(name) => match values.get(name) {
                    Some(value) => text.push_str(value),
                    None => {
                        let known: Vec<&str> = values.keys().map(String::as_str).collect();
                        let reason = format!(
                            "prompt_template: nothing stands for {{{name}}}; known: {}",
                            known.join(", ")
                        );
                        return Err(wrong(&prompt.place, reason));
                    }
                },
            }
        }
        Ok((prompt.system.clone(), text))
    }
}

/// A piece of a template.
#[derive(Debug, PartialEq)]
enum Part<'a> {
    Text(&'a str),
    /// A name in braces.
    Name(&'a str),
}

/// The pieces of a template. What is filled in is not looked at again, so it may have braces.
fn parts(template: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = template;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some((name, behind)) = name_at(rest) {
            rest = behind;
            return Some(Part::Name(name));
        }
        // Doubled braces are one, as in Python's formats.
        if rest.starts_with("{{") || rest.starts_with("}}") {
            let brace = &rest[..1];
            rest = &rest[2..];
            return Some(Part::Text(brace));
        }
        let next = rest.char_indices().skip(1);
        let end = next.into_iter().find(|(_, c)| matches!(c, '{' | '}')).map(|(at, _)| at);
        let (text, behind) = rest.split_at(end.unwrap_or(rest.len()));
        rest = behind;
        Some(Part::Text(text))
    })
}

/// A name in braces at the beginning of `text`, and what is behind it.
fn name_at(text: &str) -> Option<(&str, &str)> {
    let (name, behind) = text.strip_prefix('{')?.split_once('}')?;
    let is_name = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    is_name.then_some((name, behind))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_and_braces_are_told_apart() {
        let found = |text| {
            let part = |part| match part {
                Part::Text(text) => format!("t{text}"),
                Part::Name(name) => format!("n{name}"),
            };
            parts(text).map(part).collect::<Vec<_>>().join("|")
        };
        assert_eq!(found("a {question} b"), "ta |nquestion|t b");
        assert_eq!(found("{a}{b_1}"), "na|nb_1");
        assert_eq!(found("{\"k\": 1}"), "t{\"k\": 1|t}");
        assert_eq!(found("{{x}}"), "t{|tx|t}");
        assert_eq!(found("é{"), "té|t{");
        assert_eq!(found(""), "");
    }

    #[test]
    fn the_prompt_is_the_one_for_the_question() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompts.jsonl");
        let line = |template: &str| {
            format!(
                "{{\"type\": \"single\", \"system_prompt\": \"s\", \"prompt_template\": {template:?}}}\n"
            )
        };
        let text = line("q {question} a {answer}")
            + &line("r {ref_answer_1} q {question}")
            + &line("1 {question_1} 2 {question_2}");
        std::fs::write(&path, text).unwrap();
        let prompts = Prompts::read(&path).unwrap();
        let names = ["question", "answer", "ref_answer_1", "question_1", "question_2"];
        let values = names.map(|name| (name.to_owned(), format!("<{{{name}}}>"))).into();
        let fill = |turn, reference| {
            let needs = Needs { mode: JudgeMode::Single, turn, reference };
            prompts.fill(needs, &values).map(|(_, text)| text).map_err(|error| error.to_string())
        };
        assert_eq!(fill(0, false).unwrap(), "q <{question}> a <{answer}>");
        assert_eq!(fill(0, true).unwrap(), "r <{ref_answer_1}> q <{question}>");
        assert_eq!(fill(1, false).unwrap(), "1 <{question_1}> 2 <{question_2}>");
        let error = fill(1, true).unwrap_err();
        assert!(error.contains("single with {ref_answer_1}") && error.contains("{question_2}"));
    }
}
