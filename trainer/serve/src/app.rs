//! What every handler shares: the model, the way to the engine, limits and counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::admission::{Admission, AdmissionLimits};
use crate::api_key::ApiKey;
use crate::constraint::Grammars;
use crate::engine_thread::EngineHandle;
use crate::error::{ApiError, ApiResult};
use crate::sampling::SamplingLimits;
use crate::served_model::ServedModel;
use crate::serving_metrics::ServingMetrics;

/// How a server treats requests.
#[derive(Debug, Clone)]
pub struct AppOptions {
    /// Who is let in.
    pub admission: AdmissionLimits,
    /// Most log-probabilities at a place.
    pub max_logprobs: usize,
    /// The seed from which those of requests without one follow.
    pub seed: u64,
    /// Tokens of an event of a stream.
    pub stream_interval: usize,
    /// Tokens are written `token_id:123`.
    pub return_tokens_as_token_ids: bool,
    /// The key that requests to `/v1` and the tokenizer have to send.
    pub api_key: Option<ApiKey>,
    /// Largest body of a request in bytes.
    pub max_body_bytes: usize,
}

/// The server's state.
#[derive(Debug)]
pub struct App {
    /// The model.
    pub model: ServedModel,
    /// The way to the engine.
    pub engine: EngineHandle,
    /// What is counted.
    pub metrics: Arc<ServingMetrics>,
    /// Who is inside.
    pub admission: Arc<Admission>,
    /// Compiles grammars.
    pub grammars: Grammars,
    /// How requests are treated.
    pub options: AppOptions,
    draining: AtomicBool,
    requests: AtomicU64,
    open: AtomicUsize,
}

impl App {
    /// A server that nobody has asked anything.
    pub fn new(
        model: ServedModel,
        engine: EngineHandle,
        metrics: Arc<ServingMetrics>,
        options: AppOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            model,
            engine,
            admission: Admission::new(options.admission, Arc::clone(&metrics)),
            metrics,
            grammars: Grammars::default(),
            options,
            draining: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            open: AtomicUsize::new(0),
        })
    }

    /// From now on no request is let in.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Refuses a request when the server ends or the engine has.
    ///
    /// # Errors
    /// 503 while the server ends, 500 after the engine has.
    pub fn check_ready(&self) -> ApiResult<()> {
        if self.engine.ended().is_some() {
            return Err(self.engine.failure());
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        Ok(())
    }

    /// Counts a request as open until the guard is dropped.
    pub fn open_request(self: &Arc<Self>) -> OpenRequest {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenRequest(Arc::clone(self))
    }

    /// Requests that have not been answered to the end.
    pub fn open_requests(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// What a worker says of itself, in FastChat's fields.
    pub fn worker_status(&self) -> Value {
        let names = &self.model.names;
        json!({"model_names": names, "speed": 1, "queue_length": self.open_requests()})
    }

    /// A fresh name for a request.
    pub fn new_id(&self) -> String {
        let [high, low]: [u64; 2] = [rand::random(), rand::random()];
        format!("{high:016x}{low:016x}")
    }

    /// The limits of sampling, with the seed of the next request that has none.
    pub fn sampling_limits(&self) -> SamplingLimits {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&self.options.seed.to_le_bytes());
        seed[8..].copy_from_slice(&number.to_le_bytes());
        let hash = blake3::hash(&seed);
        let mut seed = [0; 8];
        seed.copy_from_slice(&hash.as_bytes()[..8]);
        SamplingLimits {
            max_logprobs: self.options.max_logprobs,
            seed: u64::from_le_bytes(seed),
            stream_interval: self.options.stream_interval,
            tokens_as_ids: self.options.return_tokens_as_token_ids,
        }
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct OpenRequest(Arc<App>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
