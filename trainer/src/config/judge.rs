//! The configuration of a judged evaluation.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::endpoint::EndpointConfig;
use super::load::{ConfigFile, Problem};

/// `configs/judge/*.yaml`: questions, who answers them and who judges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeConfig {
    /// Directory for answers and judgments, which are appended as they are made.
    pub output: PathBuf,
    /// Questions: JSON lines as in MT-bench and Vicuna.
    pub questions: PathBuf,
    /// Answers that the judge is shown with questions of mathematics, reasoning and coding. Default: those in
    /// the questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub references: Option<PathBuf>,
    /// The models that are compared.
    pub models: Vec<JudgedModel>,
    /// Who judges.
    pub judge: EndpointConfig,
    /// Prompts of the judge: JSON lines as in MT-bench.
    pub prompts: PathBuf,
    /// What the judge sees: two answers to compare, or one to rate. Default `pairwise`.
    #[serde(default)]
    pub mode: JudgeMode,
    /// Most tokens of an answer. Default 1024.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// Most tokens of a judgment. Default 2048.
    #[serde(default = "default_judge_max_tokens")]
    pub judge_max_tokens: usize,
    /// Seed of the answers. Default 1.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

/// A model that is judged: either its answers or where they are asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgedModel {
    /// Its name in the report, and of the file with its answers.
    pub name: String,
    /// A file with answers that were made before: JSON lines as in MT-bench.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<PathBuf>,
    /// Where it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointConfig>,
}

/// What the judge sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JudgeMode {
    /// Two answers, in both orders.
    #[default]
    Pairwise,
    /// One answer, which gets 1 to 10 points.
    Single,
}

fn default_max_tokens() -> usize {
    1024
}

fn default_judge_max_tokens() -> usize {
    2048
}

fn default_seed() -> u64 {
    1
}

/// Most models: every two of them are compared.
const MOST_MODELS: usize = 64;

impl ConfigFile for JudgeConfig {
    const PATHS: &'static [&'static str] = &[
        "output",
        "questions",
        "references",
        "prompts",
        "models.*.answers",
        "models.*.endpoint.checkpoint",
        "models.*.endpoint.chat_template",
        "judge.checkpoint",
        "judge.chat_template",
    ];
    const NAMES: &'static [&'static str] = &["alpaca", "vicuna_v1.1", "vicuna", "vicuna_v0"];

    fn check(&self) -> Check {
        let fewest = if self.mode == JudgeMode::Pairwise { 2 } else { 1 };
        if !(fewest..=MOST_MODELS).contains(&self.models.len()) {
            let found = self.models.len();
            let message = format!("found {found}, expected {fewest} to {MOST_MODELS} models");
            return Err(Problem::new("models", message));
        }
        for (number, model) in self.models.iter().enumerate() {
            let key = format!("models.{number}");
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if model.name.is_empty()
                || model.name.starts_with('.')
                || model.name.len() > 200
                || !model.name.chars().all(plain)
            {
                let message =
                    format!("found {:?}, expected letters, digits, -, _ and .", model.name);
                return Err(Problem::new(&format!("{key}.name"), message));
            }
            if self.models[..number].iter().any(|other| other.name == model.name) {
                let message = format!("{:?} is the name of another model too", model.name);
                return Err(Problem::new(&format!("{key}.name"), message));
            }
            match (&model.answers, &model.endpoint) {
                (Some(_), None) => {}
                (None, Some(endpoint)) => endpoint.check(&format!("{key}.endpoint"))?,
                _ => return Err(Problem::new(&key, "expected either `answers` or `endpoint`")),
            }
        }
        self.judge.check("judge")?;
        for (key, value) in
            [("max_tokens", self.max_tokens), ("judge_max_tokens", self.judge_max_tokens)]
        {
            if value == 0 {
                return Err(Problem::new(key, "found 0, expected at least 1"));
            }
        }
        Ok(())
    }
}
