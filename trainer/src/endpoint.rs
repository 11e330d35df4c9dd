//! What answers requests, opened from its configuration.

use std::time::Duration;

use altiplano_model::infer::SchedulingPolicy;
use altiplano_serve::admission::AdmissionLimits;
use altiplano_serve::api_client::{Endpoint, Interface, RemoteEndpoint, ask_all};
use altiplano_serve::app::AppOptions;
use altiplano_serve::runtime::Runtime;
use serde_json::{Value, json};

use crate::config::EndpointConfig;
use crate::error::{Result, TrainerError};
use crate::serving::{self, GenerationConfig, ServingOptions};

/// Tokens of a block of the cache, and of a step, of a checkpoint that answers in this process.
const BLOCK_SIZE: usize = 16;
const STEP_TOKENS: usize = 512;

/// A model that can be asked.
#[derive(Debug)]
pub struct Model {
    endpoint: Endpoint,
    concurrency: usize,
    /// The name in requests to a server.
    name: Option<String>,
    /// By what its answers are told from those of others.
    identity: String,
}

impl Model {
    /// Opens the checkpoint, or sees to it that the server can be asked; nothing is sent yet.
    ///
    /// # Errors
    /// What is wrong with the address, its key or the checkpoint.
    pub fn open(config: &EndpointConfig) -> Result<Self> {
        let (endpoint, identity) = match (&config.url, &config.checkpoint) {
            (Some(url), _) => {
                let key = config.key_env.as_deref().map(key_of).transpose()?;
                let time = Duration::from_secs(config.timeout);
                let remote = RemoteEndpoint::new(url, key.as_deref(), time)?;
                (Endpoint::Remote(Box::new(remote)), url.clone())
            }
            (None, Some(checkpoint)) => {
                let app = serving::open(options(config, checkpoint.clone()))?;
                let identity = format!("{} {:?}", app.model.root, config.chat_template);
                (Endpoint::Local(app), identity)
            }
            (None, None) => {
                let message = "an endpoint needs `url` or `checkpoint`".to_owned();
                return Err(TrainerError::Usage { message });
            }
        };
        let identity = format!("{identity} {}", config.model.as_deref().unwrap_or_default());
        Ok(Self { endpoint, concurrency: config.concurrency, name: config.model.clone(), identity })
    }

    /// Asks `bodies`, several at a time; `on_answer` gets each answer with the number of its body as soon as it
    /// is there.
    ///
    /// # Errors
    /// The first request that is refused, and the errors of `on_answer`.
    pub fn ask(
        &self,
        interface: Interface,
        bodies: Vec<Value>,
        on_answer: impl FnMut(usize, Value) -> Result<()>,
    ) -> Result<()> {
        let bodies = bodies.into_iter().map(|mut body| {
            if let Some(name) = &self.name {
                body["model"] = json!(name);
            }
            body
        });
        Runtime::start()?.run(ask_all(
            &self.endpoint,
            interface,
            bodies,
            self.concurrency,
            on_answer,
        ))
    }

    /// What an answer depends on: the model and what it is asked.
    pub fn request_key(&self, body: &Value) -> String {
        let mut hash = blake3::Hasher::new();
        hash.update(&(self.identity.len() as u64).to_le_bytes());
        hash.update(self.identity.as_bytes());
        hash.update(body.to_string().as_bytes());
        hash.finalize().to_hex()[..32].to_owned()
    }
}

fn key_of(variable: &str) -> Result<String> {
    std::env::var(variable).map_err(|_| TrainerError::Usage {
        message: format!(
            "key_env: the environment variable {variable} is not set; set it to the key of the endpoint"
        ),
    })
}

fn options(config: &EndpointConfig, checkpoint: std::path::PathBuf) -> ServingOptions {
    ServingOptions {
        checkpoint,
        device: "cpu".into(),
        precision: None,
        names: Vec::new(),
        max_model_len: None,
        block_size: BLOCK_SIZE,
        num_blocks: None,
        cache_bytes: None,
        max_num_seqs: config.concurrency,
        max_num_batched_tokens: STEP_TOKENS.max(config.concurrency),
        long_prefill_token_threshold: 0,
        enable_prefix_caching: true,
        enable_chunked_prefill: true,
        policy: SchedulingPolicy::Fcfs,
        chat_template: config.chat_template.clone(),
        generation_config: GenerationConfig::None,
        override_generation_config: None,
        app: AppOptions {
            admission: AdmissionLimits { requests: usize::MAX, tokens: usize::MAX },
            max_logprobs: 0,
            seed: 0,
            stream_interval: 1,
            return_tokens_as_token_ids: false,
            api_key: None,
            max_body_bytes: 0,
        },
    }
}

/// The text of the answer to a conversation.
pub fn chat_text(answer: &Value) -> Option<&str> {
    answer.pointer("/choices/0/message/content")?.as_str()
}
