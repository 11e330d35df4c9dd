//! The configuration of generating instructions.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::endpoint::EndpointConfig;
use super::load::{ConfigFile, Problem};

/// `configs/self_instruct/*.yaml`: instructions after the example of seed tasks.
///
/// The defaults are those with which Alpaca's data were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelfInstructConfig {
    /// Directory for the instructions, which are appended as they are made.
    pub output: PathBuf,
    /// Seed tasks: JSON lines of `{"instruction", "instances": [{"input", "output"}]}`.
    pub seed_tasks: PathBuf,
    /// Who writes the instructions.
    pub endpoint: EndpointConfig,
    /// How the endpoint is asked: `completions` or `chat`. Default `completions`.
    #[serde(default)]
    pub interface: PromptInterface,
    /// File with the text that a prompt begins with. Default: the built-in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PathBuf>,
    /// Instructions after which nothing more is asked.
    pub instructions: usize,
    /// Requests after which nothing more is asked, however many instructions there are.
    pub max_requests: u64,
    /// Prompts of a request; each is a conversation of its own with `interface: chat`. Default 5.
    #[serde(default = "default_prompts")]
    pub prompts_per_request: usize,
    /// Seed tasks that a prompt shows. Default 3.
    #[serde(default = "default_shown")]
    pub tasks_per_prompt: usize,
    /// Most tokens of an answer. Default 3072.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// Sampling temperature. Default 1.
    #[serde(default = "default_one")]
    pub temperature: f64,
    /// Share of the probability that is sampled from. Default 1.
    #[serde(default = "default_one")]
    pub top_p: f64,
    /// Largest ROUGE-L with an earlier instruction. Default 0.7.
    #[serde(default = "default_similarity")]
    pub max_similarity: f64,
    /// Seed of the tasks that are shown and of the answers. Default 1.
    #[serde(default = "default_seed")]
    pub seed: u64,
}

/// How a prompt reaches the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptInterface {
    /// `/completions`: the model goes on with the prompt.
    #[default]
    Completions,
    /// `/chat/completions`: the prompt is a message, which the model answers.
    Chat,
}

fn default_prompts() -> usize {
    5
}
fn default_shown() -> usize {
    3
}
fn default_max_tokens() -> usize {
    3072
}
fn default_one() -> f64 {
    1.0
}
fn default_similarity() -> f64 {
    0.7
}
fn default_seed() -> u64 {
    1
}

impl ConfigFile for SelfInstructConfig {
    const PATHS: &'static [&'static str] =
        &["output", "seed_tasks", "prompt", "endpoint.checkpoint", "endpoint.chat_template"];
    const NAMES: &'static [&'static str] = &["alpaca", "vicuna_v1.1", "vicuna", "vicuna_v0"];

    fn check(&self) -> Check {
        self.endpoint.check("endpoint")?;
        for (key, value, most) in [
            ("instructions", self.instructions, 10_000_000),
            ("prompts_per_request", self.prompts_per_request, 128),
            ("tasks_per_prompt", self.tasks_per_prompt, 16),
            ("max_tokens", self.max_tokens, 1 << 20),
        ] {
            if !(1..=most).contains(&value) {
                return Err(Problem::new(key, format!("found {value}, expected 1 to {most}")));
            }
        }
        for (key, value, most) in [
            ("temperature", self.temperature, 2.0),
            ("top_p", self.top_p, 1.0),
            ("max_similarity", self.max_similarity, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(Problem::new(key, format!("found {value}, expected 0 to {most}")));
            }
        }
        Ok(())
    }
}
