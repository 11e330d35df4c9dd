//! What the server asks of an inference engine. The one that serves is
//! [`altiplano_model::infer`]'s; tests put others in its place to see what faults do.

use std::time::Instant;

use altiplano_model::infer::{
    self, Engine, EngineEventKind, EngineModel, Request, RequestId, SequenceId, SequenceOutput,
};

/// How an engine is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Blocks of the cache that sequences use.
    pub used_blocks: usize,
    /// All blocks of the cache.
    pub total_blocks: usize,
    /// Tokens of a block.
    pub block_size: usize,
    /// Prompt tokens looked up in the prefix cache so far.
    pub prefix_cache_queries: u64,
    /// Prompt tokens found there so far.
    pub prefix_cache_hits: u64,
    /// Sequences put back to be recomputed so far.
    pub preemptions: u64,
    /// Tokens of the last step.
    pub step_tokens: usize,
}

impl EngineStats {
    /// The share of the cache in use, 0 to 1.
    pub fn cache_usage(&self) -> f64 {
        self.used_blocks as f64 / self.total_blocks.max(1) as f64
    }
}

/// Something that happened to a sequence inside the engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineEvent {
    /// Of which request.
    pub request: RequestId,
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at: Instant,
}

/// What can happen to a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was put into the queue.
    Queued,
    /// It entered the batch.
    Scheduled,
    /// It was put back to be recomputed.
    Preempted,
}

/// An engine that continues token ids, many requests at a time.
pub trait TokenEngine: Send {
    /// Takes in a request.
    ///
    /// # Errors
    /// Why it never can be answered: the client's fault.
    fn add(&mut self, request: Request) -> Result<(), String>;

    /// Ends a request; its blocks are free at once.
    fn abort(&mut self, request: RequestId);

    /// Ends one sequence of a request that has given a token. Its last output comes with the next step.
    fn abort_sequence(&mut self, sequence: SequenceId);

    /// Computes one step of everything that runs.
    ///
    /// # Errors
    /// Why nothing can be computed any more.
    fn step(&mut self) -> Result<Vec<SequenceOutput>, String>;

    /// Whether a step has something to do.
    fn has_requests(&self) -> bool;

    /// How it is doing.
    fn stats(&self) -> EngineStats;

    /// What happened since the last call.
    fn take_events(&mut self) -> Vec<EngineEvent>;

    /// Forgets what it knows of earlier prompts, after weights have changed.
    fn reset_prefix_cache(&mut self);
}

impl<M: EngineModel> TokenEngine for Engine<M> {
    fn add(&mut self, request: Request) -> Result<(), String> {
        Self::add(self, request).map_err(|error| error.to_string())
    }

    fn abort(&mut self, request: RequestId) {
        Self::abort(self, request);
    }

    fn abort_sequence(&mut self, sequence: SequenceId) {
        Self::abort_sequence(self, sequence);
    }

    fn step(&mut self) -> Result<Vec<SequenceOutput>, String> {
        Self::step(self).map_err(|error| error.to_string())
    }

    fn has_requests(&self) -> bool {
        Self::has_requests(self)
    }

    fn stats(&self) -> EngineStats {
        let stats = Self::stats(self);
        EngineStats {
            running: stats.running,
            waiting: stats.waiting,
            used_blocks: stats.blocks_used,
            total_blocks: stats.blocks_total,
            block_size: self.options().block_size,
            prefix_cache_queries: stats.prefix_queries,
            prefix_cache_hits: stats.prefix_hits,
            preemptions: stats.preemptions,
            step_tokens: stats.step_tokens,
        }
    }

    fn take_events(&mut self) -> Vec<EngineEvent> {
        let event = |event: infer::EngineEvent| EngineEvent {
            request: event.sequence.request,
            kind: match event.kind {
                EngineEventKind::Queued => EventKind::Queued,
                EngineEventKind::Scheduled => EventKind::Scheduled,
                EngineEventKind::Preempted => EventKind::Preempted,
            },
            at: event.at,
        };
        Self::take_events(self).into_iter().map(event).collect()
    }

    fn reset_prefix_cache(&mut self) {
        Self::reset_prefix_cache(self);
    }
}
