//! Where requests are answered: an OpenAI-compatible server, or a checkpoint in this process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::load::Problem;

/// Where requests are answered: either `url` or `checkpoint`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// Address of an OpenAI-compatible server, such as `http://127.0.0.1:8000/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Name of the model at `url`. Default: that of the only model there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Environment variable with the key that `url` asks for. Default: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// A checkpoint that answers in this process: a directory as `altiplano serve` takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// Chat template of `checkpoint`: `alpaca`, `vicuna_v1.1` or a file. Default: its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Requests that are open at a time. Default 4.
    #[serde(default = "default_concurrency")]
    pub concurrency: usize,
    /// How long an answer of `url` may take, in seconds. Default 600.
    #[serde(default = "default_timeout")]
    pub timeout: u64,
}

fn default_concurrency() -> usize {
    4
}

fn default_timeout() -> u64 {
    600
}

/// Most requests that are open at a time.
const MOST_CONCURRENCY: usize = 4096;

impl EndpointConfig {
    /// Checks what the types cannot; `key` is where the endpoint stands.
    pub(super) fn check(&self, key: &str) -> Check {
        let problem =
            |name: &str, message: &str| Err(Problem::new(&format!("{key}.{name}"), message));
        match (&self.url, &self.checkpoint) {
            (Some(_), Some(_)) => {
                return problem("url", "beside `checkpoint`: expected one of them");
            }
            (None, None) => {
                return Err(Problem::new(key, "expected `url` or `checkpoint`"));
            }
            (None, Some(_)) if self.model.is_some() => {
                return problem("model", "is for `url`; a checkpoint is one model");
            }
            (None, Some(_)) if self.key_env.is_some() => {
                return problem("key_env", "is for `url`; a checkpoint needs no key");
            }
            (Some(_), None) if self.chat_template.is_some() => {
                return problem("chat_template", "is for `checkpoint`; a server has its own");
            }
            _ => {}
        }
        if !(1..=MOST_CONCURRENCY).contains(&self.concurrency) {
            let message = format!("found {}, expected 1 to {MOST_CONCURRENCY}", self.concurrency);
            return problem("concurrency", &message);
        }
        if self.timeout == 0 {
            return problem("timeout", "found 0, expected at least 1 second");
        }
        Ok(())
    }
}
