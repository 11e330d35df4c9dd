//! The engine: takes requests, computes one pass a step over tokens of all that run, and gives what
//! each step brought each sequence.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;

use super::inference_model::InferenceModel;
use super::model::{EngineModel, Pass, PassSequence};
use super::options::EngineOptions;
use super::request::{FinishReason, Request, RequestId, ScoredToken, SequenceId, SequenceOutput};
use super::sampler::{Choice, NoChoice, Sampler, Vocabulary, score};
use super::scheduler::{Scheduler, StepPlan, Turn};
use crate::device::in_pool;
use crate::error::{ModelError, Result};

/// Rows of prompts whose logits exist at once when they are scored.
const SCORED_ROWS: usize = 64;

/// What the engine has and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EngineStats {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Blocks of the cache.
    pub blocks_total: usize,
    /// Blocks that sequences hold.
    pub blocks_used: usize,
    /// Blocks whose content can be found by a prefix, held or not.
    pub blocks_cached: usize,
    /// Room for tokens in held blocks that no token has taken: less than a block a sequence.
    pub slots_unused: usize,
    /// Tokens that were looked up in the prefix cache, since the start.
    pub prefix_queries: u64,
    /// Tokens that were found there.
    pub prefix_hits: u64,
    /// Sequences that lost their blocks to others, since the start.
    pub preemptions: u64,
    /// Tokens of prompts that were admitted, since the start.
    pub prompt_tokens: u64,
    /// Tokens chosen, since the start.
    pub generation_tokens: u64,
    /// Steps that computed something, since the start.
    pub steps: u64,
    /// Tokens of the last step.
    pub step_tokens: usize,
}

/// Something that happened to a sequence, for measures of latency. That a token came is told by
/// [`Engine::step`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineEvent {
    /// To which sequence.
    pub sequence: SequenceId,
    /// What.
    pub kind: EngineEventKind,
    /// When.
    pub at: Instant,
}

/// What happened to a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineEventKind {
    /// It began to wait for the first time.
    Queued,
    /// It began to run, for the first time or again.
    Scheduled,
    /// It lost its blocks and waits again.
    Preempted,
}

/// A sequence that waits or runs, besides what the scheduler knows.
struct SequenceState {
    sampler: Sampler,
    /// Further sequences of the request that begin when the prompt is computed.
    to_fork: usize,
    /// Sequences of the request.
    request_n: usize,
    /// Of the prompt so far, when asked for.
    prompt_logprobs: Option<Vec<ScoredToken>>,
    /// The last token of the prompt where it is scored and not computed.
    scored_end: Option<u32>,
    /// Why the sequence cannot go on.
    error: Option<String>,
}

/// A model and the requests it answers. Not a thread: it works when [`Engine::step`] is called.
pub struct Engine<M: EngineModel = Arc<InferenceModel>> {
    model: M,
    options: EngineOptions,
    cache: M::Cache,
    scheduler: Scheduler,
    sequences: HashMap<Turn, SequenceState>,
    /// Sequences of each request that have not ended.
    requests: HashMap<RequestId, usize>,
    /// Ended without a step; given with the next.
    outputs: Vec<SequenceOutput>,
    events: Vec<EngineEvent>,
    prompt_tokens: u64,
    generation_tokens: u64,
    steps: u64,
    step_tokens: usize,
}

impl<M: EngineModel> std::fmt::Debug for Engine<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut engine = f.debug_struct("Engine");
        engine.field("options", &self.options).field("stats", &self.stats()).finish()
    }
}

impl<M: EngineModel> Engine<M> {
    /// An engine without requests.
    ///
    /// # Errors
    /// When options do not fit, or the cache's memory cannot be had.
    pub fn new(model: M, options: EngineOptions) -> Result<Self> {
        options.validate(model.context())?;
        let cache = model.new_cache(options.num_blocks, options.block_size)?;
        Ok(Self {
            model,
            scheduler: Scheduler::new(options.clone()),
            options,
            cache,
            sequences: HashMap::new(),
            requests: HashMap::new(),
            outputs: Vec::new(),
            events: Vec::new(),
            prompt_tokens: 0,
            generation_tokens: 0,
            steps: 0,
            step_tokens: 0,
        })
    }

    /// The options.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Takes a request. Its first output comes with a later step.
    ///
    /// # Errors
    /// When it does not fit: [`ModelError::PromptTooLong`], [`ModelError::TokenId`],
    /// [`ModelError::CacheTooSmall`] when the cache could not hold it even alone, and otherwise
    /// [`ModelError::Request`].
    pub fn add(&mut self, request: Request) -> Result<()> {
        self.check(&request)?;
        let Request { id, prompt, sampling, n, priority, cache_salt, constraint } = request;
        let Entry::Vacant(entry) = self.requests.entry(id) else {
            return Err(ModelError::Request {
                field: "id",
                found: id.0.to_string(),
                expected: "one that is not in use".into(),
            });
        };
        if sampling.max_tokens == 0 && sampling.prompt_logprobs.is_none() {
            self.outputs.extend((0..n).map(|index| SequenceOutput {
                finish_reason: Some(FinishReason::Length),
                ..SequenceOutput::new(SequenceId { request: id, index })
            }));
            return Ok(());
        }
        entry.insert(n);
        // Logits of what is found in the cache are not computed.
        let scores_prompt = sampling.prompt_logprobs.is_some();
        let reusable = match scores_prompt {
            true => sampling.prompt_logprobs_start.saturating_sub(1),
            false => usize::MAX,
        };
        // Nothing follows from a pass over the last token.
        let (computed, scored_end) = match prompt.split_last() {
            Some((last, before)) if sampling.max_tokens == 0 && !before.is_empty() => {
                (before, Some(*last))
            }
            _ => (&*prompt, None),
        };
        let salt = cache_salt.as_deref();
        let turn = self.scheduler.add(id, computed, priority, salt, reusable);
        let state = SequenceState {
            sampler: Sampler::new(Arc::new(sampling), &prompt, constraint),
            to_fork: n - 1,
            request_n: n,
            prompt_logprobs: scores_prompt.then(Vec::new),
            scored_end,
            error: None,
        };
        self.sequences.insert(turn, state);
        self.event(SequenceId { request: id, index: 0 }, EngineEventKind::Queued);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<()> {
        let invalid = |field, found: String, expected: &str| {
            Err(ModelError::Request { field, found, expected: expected.into() })
        };
        let Request { prompt, sampling, n, .. } = request;
        sampling.validate(self.model.vocab_size())?;
        if *n == 0 {
            return invalid("n", n.to_string(), "at least 1");
        }
        if prompt.is_empty() {
            return invalid("prompt", "no tokens".into(), "at least one");
        }
        let vocab_size = self.model.vocab_size();
        if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab_size) {
            return Err(ModelError::TokenId { id: i64::from(*id), vocab_size });
        }
        // The last token is chosen or scored and never computed.
        let only_scored = usize::from(sampling.max_tokens == 0);
        let computed = prompt.len().saturating_sub(only_scored).max(1);
        let limit = self.options.max_model_len - (1 - only_scored);
        if computed > limit {
            let limit = self.options.max_model_len;
            return Err(ModelError::PromptTooLong { found: prompt.len(), limit });
        }
        let whole = prompt.len().saturating_add(sampling.max_tokens);
        let tokens = match sampling.max_tokens {
            0 => computed,
            _ => whole.min(self.options.max_model_len) - 1,
        };
        let (blocks, limit) = (self.scheduler.blocks_of(tokens), self.options.num_blocks);
        if blocks > limit {
            return Err(ModelError::CacheTooSmall { tokens, blocks, limit });
        }
        Ok(())
    }

    /// Ends a request whose answer nobody wants any more, and frees its blocks at once. The next step
    /// gives a last output for each of its sequences. Nothing happens when it has ended.
    pub fn abort(&mut self, request: RequestId) {
        self.abort_where(|id| id.request == request);
    }

    /// As [`Engine::abort`], for one sequence of a request. Sequences that have not parted from it,
    /// because their prompt is not computed yet, end with it.
    pub fn abort_sequence(&mut self, sequence: SequenceId) {
        self.abort_where(|id| id == sequence);
    }

    fn abort_where(&mut self, ends: impl Fn(SequenceId) -> bool) {
        for (turn, id) in self.scheduler.abort(ends) {
            let to_fork = self.sequences.remove(&turn).map_or(0, |state| state.to_fork);
            for index in id.index..=id.index + to_fork {
                self.outputs.push(SequenceOutput {
                    finish_reason: Some(FinishReason::Abort),
                    ..SequenceOutput::new(SequenceId { index, ..id })
                });
                self.count_end(id.request);
            }
        }
    }

    /// One sequence less of a request.
    fn count_end(&mut self, request: RequestId) {
        if let Entry::Occupied(mut left) = self.requests.entry(request) {
            *left.get_mut() -= 1;
            if *left.get() == 0 {
                left.remove();
            }
        }
    }

    /// Whether a step would do or give anything.
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty() || !self.outputs.is_empty()
    }

    /// What the engine has and did.
    pub fn stats(&self) -> EngineStats {
        let pool = self.scheduler.pool();
        EngineStats {
            running: self.scheduler.num_running(),
            waiting: self.scheduler.num_waiting(),
            blocks_total: pool.len(),
            blocks_used: pool.len() - pool.free(),
            blocks_cached: pool.cached(),
            slots_unused: self.scheduler.unused_slots(),
            prefix_queries: self.scheduler.prefix_queries,
            prefix_hits: self.scheduler.prefix_hits,
            preemptions: self.scheduler.preemptions,
            prompt_tokens: self.prompt_tokens,
            generation_tokens: self.generation_tokens,
            steps: self.steps,
            step_tokens: self.step_tokens,
        }
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<EngineEvent> {
        std::mem::take(&mut self.events)
    }

    /// Forgets what blocks hold: requests from now on find nothing that was computed before.
    pub fn reset_prefix_cache(&mut self) {
        self.scheduler.reset_prefix_cache();
    }

    /// Checks that every block is free or held exactly as often as it is counted, and that sequences
    /// hold what they need. For tests, between steps.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check_invariants(&self) -> std::result::Result<(), String> {
        self.scheduler.check_invariants()?;
        let sequences = self.scheduler.num_running() + self.scheduler.num_waiting();
        if sequences != self.sequences.len() {
            return Err(format!("{sequences} sequences have {} states", self.sequences.len()));
        }
        Ok(())
    }

    /// Computes one pass and gives what it brought. Without requests it does nothing.
    ///
    /// # Errors
    /// When a pass cannot be computed. The engine is then of no more use.
    pub fn step(&mut self) -> Result<Vec<SequenceOutput>> {
        let mut outputs = std::mem::take(&mut self.outputs);
        let plan = self.scheduler.schedule();
        for id in &plan.preempted {
            self.event(*id, EngineEventKind::Preempted);
        }
        for id in &plan.admitted {
            self.event(*id, EngineEventKind::Scheduled);
        }
        self.step_tokens = plan.tokens();
        if plan.scheduled.is_empty() {
            return Ok(outputs);
        }
        self.steps += 1;
        let device = self.model.device().clone();
        in_pool(&device, || self.compute(&plan, &mut outputs))?;
        Ok(outputs)
    }

    fn compute(&mut self, plan: &StepPlan, outputs: &mut Vec<SequenceOutput>) -> Result<()> {
        self.model.copy_blocks(&mut self.cache, &plan.copies);
        let pass = self.pass(plan);
        let hidden = self.model.forward(&pass, &mut self.cache)?;
        self.score_prompts(plan, &pass, &hidden);
        let complete = self.scheduler.computed(plan);
        let rows = plan.scheduled.iter().zip(&pass.sequences).filter_map(|(scheduled, part)| {
            complete.contains(&scheduled.turn).then_some((scheduled.turn, part.rows.end - 1))
        });
        let rows: Vec<(Turn, usize)> = rows.collect();
        self.choose(&rows, &hidden, outputs);
        Ok(())
    }

    /// The rows of a step.
    fn pass(&self, plan: &StepPlan) -> Pass {
        let mut pass = Pass::default();
        for scheduled in &plan.scheduled {
            let Some(sequence) = self.scheduler.running(scheduled.turn) else { continue };
            let positions = scheduled.start..scheduled.start + scheduled.count;
            let first = pass.ids.len();
            pass.ids.extend(&sequence.tokens[positions.clone()]);
            pass.positions.extend(positions.map(|position| position as u32));
            pass.sequences.push(PassSequence {
                rows: first..pass.ids.len(),
                start: scheduled.start,
                blocks: sequence.blocks.clone(),
            });
        }
        pass
    }

    /// Scores the tokens of prompts that follow rows of this pass, where they are asked for. Rows of all
    /// prompts go through the head together, some at a time: the logits of a long prompt are larger than the
    /// model.
    fn score_prompts(&mut self, plan: &StepPlan, pass: &Pass, hidden: &M::Hidden) {
        let vocab_size = self.model.vocab_size();
        let limit = self.options.vocab_limit.unwrap_or(vocab_size).min(vocab_size);
        let mut rows = Vec::new();
        for (scheduled, part) in plan.scheduled.iter().zip(&pass.sequences) {
            self.rows_to_score(scheduled.turn, part, &mut rows);
        }
        for rows in rows.chunks(SCORED_ROWS) {
            let numbers: Vec<usize> = rows.iter().map(|row| row.row).collect();
            let logits = self.model.logits(hidden, &numbers);
            let scores: Vec<Option<ScoredToken>> = logits
                .par_chunks(vocab_size)
                .zip(rows)
                .map(|(logits, row)| score(logits, limit, row.target, row.top))
                .collect();
            for (row, found) in rows.iter().zip(scores) {
                let Some(state) = self.sequences.get_mut(&row.turn) else { continue };
                match (found, state.prompt_logprobs.as_mut()) {
                    (Some(found), Some(scored)) => scored.push(found),
                    (None, _) => state.error = Some(self.model.why_not_finite(hidden)),
                    (Some(_), None) => {}
                }
            }
        }
    }

    /// Adds the rows of a sequence whose next tokens are to be scored.
    fn rows_to_score(&mut self, turn: Turn, part: &PassSequence, rows: &mut Vec<RowToScore>) {
        let Some(state) = self.sequences.get_mut(&turn) else { return };
        let Some(sequence) = self.scheduler.running(turn) else { return };
        let Some(top) = state.sampler.params().prompt_logprobs else { return };
        // A sequence that was preempted while its answer grew has them all.
        let Some(scored) = state.prompt_logprobs.as_mut().filter(|_| state.sampler.chosen() == 0)
        else {
            return;
        };
        let prompt = &sequence.tokens[..sequence.prompt_len];
        // The row of each token but the first is that of the token before it.
        let first = state.sampler.params().prompt_logprobs_start.max(1);
        let next = first.max(part.start + 1);
        scored.truncate(next - first);
        let targets = prompt.get(next..).unwrap_or_default();
        let targets = targets.iter().copied().chain(state.scored_end);
        let of_sequence = part.rows.clone().skip(next - 1 - part.start);
        rows.extend(of_sequence.zip(targets).map(|(row, target)| RowToScore {
            turn,
            row,
            target,
            top,
        }));
    }

    /// Chooses the next tokens of sequences, each after a row of the pass, and ends those that are at
    /// their end.
    fn choose(
        &mut self,
        rows: &[(Turn, usize)],
        hidden: &M::Hidden,
        outputs: &mut Vec<SequenceOutput>,
    ) {
        let (mut chosen_rows, mut jobs) = (Vec::new(), Vec::new());
        for (turn, row) in rows {
            let Some(state) = self.sequences.remove(turn) else { continue };
            if state.to_fork + 1 == state.request_n && state.sampler.chosen() == 0 {
                let prompt = self.scheduler.running(*turn).map_or(0, |x| x.prompt_len);
                let prompt = prompt + usize::from(state.scored_end.is_some());
                self.prompt_tokens += prompt as u64;
            }
            if state.error.is_some() || state.sampler.params().max_tokens == 0 {
                self.end_prompt(*turn, state, outputs);
                continue;
            }
            chosen_rows.push(*row);
            jobs.push(self.fork(*turn, state));
        }
        if chosen_rows.is_empty() {
            return;
        }
        let mut logits = self.model.logits(hidden, &chosen_rows);
        let vocab_size = self.model.vocab_size();
        let limit = self.options.vocab_limit.unwrap_or(vocab_size);
        let vocabulary = Vocabulary { eos: &self.options.eos_token_ids, limit };
        let chosen: Vec<Vec<Chosen>> = logits
            .par_chunks_mut(vocab_size)
            .zip(jobs)
            .map(|(logits, sequences)| {
                let count = sequences.len();
                let choose = |(n, (turn, mut state)): (usize, (Turn, SequenceState))| {
                    // Choosing overwrites the logits, so all but the last get a copy.
                    let choice = if n + 1 < count {
                        state.sampler.choose(&mut logits.to_vec(), vocabulary)
                    } else {
                        state.sampler.choose(logits, vocabulary)
                    };
                    (turn, state, choice)
                };
                sequences.into_iter().enumerate().map(choose).collect()
            })
            .collect();
        for (turn, state, choice) in chosen.into_iter().flatten() {
            let choice = choice.map_err(|error| match error {
                NoChoice::NotFinite => self.model.why_not_finite(hidden),
                NoChoice::Refused(reason) => reason,
            });
            outputs.extend(self.take_choice(turn, state, choice));
        }
    }

    /// A sequence whose tokens are all computed, and those that part from it here. Those for which there
    /// is no seat wait and are computed by themselves.
    fn fork(&mut self, turn: Turn, mut state: SequenceState) -> Vec<(Turn, SequenceState)> {
        let mut sequences = Vec::with_capacity(1 + state.to_fork);
        for index in 1..=std::mem::take(&mut state.to_fork) {
            let Some((turn, runs)) = self.scheduler.fork(turn, index) else { continue };
            let fork = SequenceState {
                sampler: state.sampler.fork(index),
                to_fork: 0,
                request_n: state.request_n,
                prompt_logprobs: None,
                scored_end: None,
                error: None,
            };
            if runs {
                sequences.push((turn, fork));
            } else {
                self.sequences.insert(turn, fork);
            }
        }
        sequences.insert(0, (turn, state));
        sequences
    }

    /// Ends all sequences of a request of whose prompt alone something was asked for, or which cannot
    /// go on.
    fn end_prompt(
        &mut self,
        turn: Turn,
        mut state: SequenceState,
        outputs: &mut Vec<SequenceOutput>,
    ) {
        let Some(sequence) = self.scheduler.running(turn) else { return };
        let (request, cached_tokens) = (sequence.id.request, sequence.cached_tokens.unwrap_or(0));
        let reason = if state.error.is_some() { FinishReason::Error } else { FinishReason::Length };
        for index in 0..=state.to_fork {
            outputs.push(SequenceOutput {
                cached_tokens,
                prompt_logprobs: state.prompt_logprobs.take(),
                finish_reason: Some(reason),
                error: state.error.clone(),
                ..SequenceOutput::new(SequenceId { request, index })
            });
        }
        self.scheduler.finish(turn);
        self.requests.remove(&request);
    }

    /// Appends a token to its sequence and ends it when it is at its end.
    fn take_choice(
        &mut self,
        turn: Turn,
        mut state: SequenceState,
        choice: std::result::Result<Choice, String>,
    ) -> Option<SequenceOutput> {
        let sequence = self.scheduler.running(turn)?;
        let (id, length) = (sequence.id, sequence.tokens.len() + 1);
        let mut output = SequenceOutput {
            cached_tokens: sequence.cached_tokens.unwrap_or(0),
            prompt_logprobs: state.prompt_logprobs.take(),
            ..SequenceOutput::new(id)
        };
        match choice {
            Ok(choice) => {
                self.scheduler.append(turn, choice.id);
                self.generation_tokens += 1;
                output.finish_reason = self.end(choice.id, length, &state.sampler);
                (output.token, output.logprobs) = (Some(choice.id), choice.logprobs);
            }
            Err(error) => {
                output.finish_reason = Some(FinishReason::Error);
                output.error = Some(error);
            }
        }
        if output.finish_reason.is_none() {
            self.sequences.insert(turn, state);
            return Some(output);
        }
        self.scheduler.finish(turn);
        self.count_end(id.request);
        Some(output)
    }

    /// Why a sequence ends with token `id`, its `length`-th, if it does.
    fn end(&self, id: u32, length: usize, sampler: &Sampler) -> Option<FinishReason> {
        let params = sampler.params();
        if !params.ignore_eos && self.options.eos_token_ids.contains(&id) {
            return Some(FinishReason::Stop);
        }
        if params.stop_token_ids.contains(&id) {
            return Some(FinishReason::StopToken(id));
        }
        let full = length >= self.options.max_model_len || sampler.chosen() >= params.max_tokens;
        full.then_some(FinishReason::Length)
    }

    fn event(&mut self, sequence: SequenceId, kind: EngineEventKind) {
        self.events.push(EngineEvent { sequence, kind, at: Instant::now() });
    }
}

/// A row of a pass after which a token of a prompt is scored.
struct RowToScore {
    turn: Turn,
    row: usize,
    target: u32,
    /// How many of the likeliest tokens are named beside it.
    top: usize,
}

/// A sequence and what was chosen for it.
type Chosen = (Turn, SequenceState, std::result::Result<Choice, NoChoice>);
