//! How an engine is set up.

use std::fmt;
use std::str::FromStr;

use crate::error::{ModelError, Result};

/// Whose turn it is when not all can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchedulingPolicy {
    /// First come, first served.
    #[default]
    Fcfs,
    /// Lower [`Request::priority`](super::Request::priority) first, then first come.
    Priority,
}

impl fmt::Display for SchedulingPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fcfs => "fcfs",
            Self::Priority => "priority",
        })
    }
}

impl FromStr for SchedulingPolicy {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "fcfs" => Ok(Self::Fcfs),
            "priority" => Ok(Self::Priority),
            _ => Err(format!("found {name:?}, expected fcfs or priority")),
        }
    }
}

/// Limits and choices of an engine, under vLLM's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens of a block of the cache, a multiple of 16.
    pub block_size: usize,
    /// Blocks of the cache. Memory is taken as they are first used.
    pub num_blocks: usize,
    /// Sequences that run at a time.
    pub max_num_seqs: usize,
    /// Tokens of one step, prompts and answers together. All that run wait for a step's end, so
    /// more of them make prompts faster and answers less even.
    pub max_num_batched_tokens: usize,
    /// Tokens of a sequence, prompt and answer together.
    pub max_model_len: usize,
    /// Most tokens of one sequence in a step; 0 is no limit beyond `max_num_batched_tokens`.
    pub long_prefill_token_threshold: usize,
    /// Requests share cached blocks of the prompts they have in common.
    pub enable_prefix_caching: bool,
    /// A prompt may be computed over several steps. Without it, `max_num_batched_tokens` has to
    /// be at least `max_model_len`.
    pub enable_chunked_prefill: bool,
    /// Whose turn it is.
    pub policy: SchedulingPolicy,
    /// End tokens of the model.
    pub eos_token_ids: Vec<u32>,
    /// Ids from here on are never chosen: padding of the vocabulary beyond the tokenizer's.
    pub vocab_limit: Option<usize>,
}

impl EngineOptions {
    /// Tokens of a block where nothing else is asked for.
    pub const BLOCK_SIZE: usize = 16;

    /// Options for sequences of up to `max_model_len` tokens, of which `sequences` that long find
    /// room in the cache.
    pub fn new(max_model_len: usize, sequences: usize) -> Self {
        Self {
            block_size: Self::BLOCK_SIZE,
            num_blocks: sequences * max_model_len.div_ceil(Self::BLOCK_SIZE),
            max_num_seqs: 128,
            max_num_batched_tokens: 512,
            max_model_len,
            long_prefill_token_threshold: 0,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            policy: SchedulingPolicy::Fcfs,
            eos_token_ids: Vec::new(),
            vocab_limit: None,
        }
    }

    /// Refuses options that fit neither each other nor a model whose context has `context` tokens.
    ///
    /// # Errors
    /// [`ModelError::EngineOption`].
    pub fn validate(&self, context: usize) -> Result<()> {
        let invalid = |option, found: usize, expected: String| {
            Err(ModelError::EngineOption { option, found: found.to_string(), expected })
        };
        if self.block_size == 0 {
            return invalid("block_size", 0, "at least 1".into());
        }
        if self.num_blocks == 0 || self.num_blocks >= u32::MAX as usize {
            return invalid("num_blocks", self.num_blocks, "from 1 to 4294967294".into());
        }
        if self.max_num_seqs == 0 {
            return invalid("max_num_seqs", 0, "at least 1".into());
        }
        if self.max_model_len == 0 || self.max_model_len > context {
            let expected = format!("from 1 to {context}, the context of the model");
            return invalid("max_model_len", self.max_model_len, expected);
        }
        let least = if self.enable_chunked_prefill { 1 } else { self.max_model_len };
        if self.max_num_batched_tokens < least {
            let mut expected = format!("at least {least}");
            if !self.enable_chunked_prefill {
                expected.push_str(", because prompts are not computed in chunks");
            }
            return invalid("max_num_batched_tokens", self.max_num_batched_tokens, expected);
        }
        if self.vocab_limit == Some(0) {
            return invalid("vocab_limit", 0, "at least 1".into());
        }
        Ok(())
    }
}
