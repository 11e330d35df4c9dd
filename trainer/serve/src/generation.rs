//! A request at work: its prompts go to the engine, and what comes back becomes answers.

use std::sync::Arc;
use std::time::Instant;

use altiplano_model::infer::{Request, RequestId, ScoredToken, TokenConstraint};
use serde_json::{Value, json};

use crate::admission::Permit;
use crate::app::{App, OpenRequest};
use crate::choice::{Choice, Delta};
use crate::constraint::{BadWords, Both};
use crate::engine_thread::{AbortGuard, Aborter, Deliveries, Delivery};
use crate::error::{ApiError, ApiResult};
use crate::logprobs::TokenNames;
use crate::sampling::Sampling;
use crate::served_model::ServedModel;

/// Tokens of prompts and answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// Of all answers.
    pub completion_tokens: usize,
    /// Of the prompts, those that were not computed again.
    pub cached_tokens: usize,
}

impl Usage {
    /// OpenAI's object.
    pub fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }
}

/// A request that the engine has.
#[derive(Debug)]
pub struct Submitted {
    /// The server.
    pub app: Arc<App>,
    /// The prompts.
    pub prompts: Vec<Arc<[u32]>>,
    /// How they go on.
    pub sampling: Sampling,
    deliveries: Deliveries,
    aborter: Aborter,
    guard: Option<AbortGuard>,
    _permit: Permit,
    arrival: Arrival,
}

/// A request that has come: the server does not end before it has been answered.
#[derive(Debug)]
pub struct Arrival {
    at: Instant,
    _open: OpenRequest,
}

impl Arrival {
    /// A request that has come now.
    pub fn now(app: &Arc<App>) -> Self {
        Self { at: Instant::now(), _open: app.open_request() }
    }
}

/// How many tokens of an answer there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxTokens {
    /// As many as the context has room for.
    Context,
    /// So many.
    Exactly(usize),
}

/// Cuts prompts as `truncate_prompt_tokens` says, checks their lengths and hands them to the engine.
///
/// # Errors
/// 400 when a prompt is empty or does not fit, or a grammar is none; 500 when the engine has ended.
pub fn submit(
    app: &Arc<App>,
    mut prompts: Vec<Vec<u32>>,
    sampling: Sampling,
    max_tokens: MaxTokens,
    mut permit: Permit,
    arrival: Arrival,
) -> ApiResult<Submitted> {
    let model = &app.model;
    for prompt in &mut prompts {
        sampling.cut(prompt);
    }
    let context = model.max_model_len;
    let mut constraint = match &sampling.form {
        Some(form) => Some(app.grammars.compile(model, form)?),
        None => None,
    };
    if !sampling.bad_words.is_empty() {
        let words: Box<dyn TokenConstraint> =
            Box::new(BadWords::new(bad_words(model, &sampling.bad_words)?));
        constraint = Some(match constraint {
            Some(grammar) => Box::new(Both(grammar, words)),
            None => words,
        });
    }
    let mut requests = Vec::with_capacity(prompts.len());
    let mut shared = Vec::with_capacity(prompts.len());
    for (number, prompt) in prompts.into_iter().enumerate() {
        if prompt.is_empty() {
            return Err(ApiError::field("prompt", "a list of no tokens; give at least one"));
        }
        let room = context.saturating_sub(prompt.len());
        let wanted = match max_tokens {
            MaxTokens::Context => room.min(model.defaults.max_tokens.unwrap_or(room)),
            MaxTokens::Exactly(wanted) => wanted,
        };
        // A prompt that fills the context can be scored but not continued.
        let continued = max_tokens == MaxTokens::Context || wanted > 0;
        if prompt.len() > context || wanted > room || (continued && room == 0) {
            return Err(too_long(context, prompt.len(), wanted));
        }
        let mut params = sampling.params.clone();
        params.max_tokens = wanted;
        if !sampling.has_seed {
            // A prompt given twice is answered in two ways.
            params.seed = params.seed.wrapping_add(number as u64);
        }
        if params.min_tokens > wanted {
            let message =
                format!("found {}, which is above max_tokens, {wanted}", params.min_tokens);
            return Err(ApiError::field("min_tokens", message));
        }
        let prompt: Arc<[u32]> = prompt.into();
        shared.push(Arc::clone(&prompt));
        requests.push(Request {
            id: RequestId(0),
            prompt,
            sampling: params,
            n: sampling.best_of,
            priority: sampling.priority,
            cache_salt: sampling.cache_salt.clone(),
            constraint: constraint.as_ref().map(|constraint| constraint.fork()),
        });
    }
    permit.set_tokens(shared.iter().map(|prompt| prompt.len()).sum());
    let metrics = &app.metrics;
    for request in &requests {
        metrics.prompt_tokens.add(request.prompt.len() as u64);
        metrics.request_prompt_tokens.observe(request.prompt.len() as f64);
        metrics.request_max_tokens.observe(request.sampling.max_tokens as f64);
        metrics.request_n.observe(sampling.n as f64);
    }
    let (deliveries, guard) = app.engine.submit(requests)?;
    Ok(Submitted {
        app: Arc::clone(app),
        prompts: shared,
        sampling,
        deliveries,
        aborter: guard.aborter(),
        guard: Some(guard),
        _permit: permit,
        arrival,
    })
}

fn too_long(context: usize, prompt: usize, max_tokens: usize) -> ApiError {
    ApiError::field(
        "prompt",
        format!(
            "This model's maximum context length is {context} tokens. However, you requested {} tokens \
             ({prompt} in the prompt, {max_tokens} in the completion). Shorten the prompt or lower \
             max_tokens, or set truncate_prompt_tokens.",
            prompt.saturating_add(max_tokens)
        ),
    )
}

/// The ids of bad words: at the beginning of a text, after other text, and after a blank. How a word is
/// cut into pieces depends on what is before it.
fn bad_words(model: &ServedModel, words: &[String]) -> ApiResult<Vec<Vec<u32>>> {
    // Nothing is joined across the end of a line.
    const BEFORE: &str = "\n";
    let before = model.tokenizer.encode(BEFORE)?;
    let mut all = Vec::new();
    for word in words {
        let bare = word.trim_start_matches(' ');
        let mut forms = vec![model.tokenizer.encode(word)?];
        for text in [word.clone(), bare.to_owned(), format!(" {bare}")] {
            let ids = model.tokenizer.encode(&format!("{BEFORE}{text}"))?;
            forms.extend(ids.strip_prefix(&before[..]).map(<[u32]>::to_vec));
        }
        for form in forms {
            // A blank alone is no word.
            let has_text = form.iter().any(|id| !model.token_text(*id).trim().is_empty());
            if (has_text || bare.is_empty()) && !form.is_empty() && !all.contains(&form) {
                all.push(form);
            }
        }
    }
    Ok(all)
}

/// What came for one answer.
#[derive(Debug)]
pub struct Update {
    /// Which: prompt × n + number.
    pub choice: usize,
    /// What.
    pub delta: Delta,
}

/// The answers of a request, in the making.
#[derive(Debug)]
pub struct Answers<'a> {
    /// `best_of` for every prompt.
    pub choices: Vec<Choice<'a>>,
    /// Probabilities of the tokens of each prompt but the first, where they were asked for.
    pub prompt_logprobs: Vec<Option<Vec<ScoredToken>>>,
    cached: Vec<usize>,
    /// When the first and the last token of each answer came.
    times: Vec<Option<(Instant, Instant)>>,
    open: usize,
}

impl<'a> Answers<'a> {
    /// Nothing yet.
    pub fn new(app: &'a App, submitted: &Submitted) -> Self {
        let (prompts, each) = (submitted.prompts.len(), submitted.sampling.best_of);
        let choices = (0..prompts * each).map(|_| Choice::new(&app.model, &submitted.sampling));
        Self {
            choices: choices.collect(),
            prompt_logprobs: vec![None; prompts],
            cached: vec![0; prompts],
            times: vec![None; prompts * each],
            open: prompts * each,
        }
    }

    /// Tokens so far.
    pub fn usage(&self, submitted: &Submitted) -> Usage {
        Usage {
            prompt_tokens: submitted.prompts.iter().map(|prompt| prompt.len()).sum(),
            completion_tokens: self.choices.iter().map(|choice| choice.tokens).sum(),
            cached_tokens: self.cached.iter().sum(),
        }
    }
}

impl Submitted {
    /// The guard that ends the request when it is dropped: for the body of a stream, which is dropped
    /// when its reader goes away.
    pub fn take_guard(&mut self) -> Option<AbortGuard> {
        self.guard.take()
    }

    /// How tokens are written in the answers.
    pub fn names(&self) -> TokenNames<'_> {
        TokenNames { model: &self.app.model, as_ids: self.sampling.tokens_as_ids }
    }

    /// OpenAI's object around `choices`, of the kind that its `object` names.
    pub fn object(&self, id: &str, kind: &str, created: u64, choices: Vec<Value>) -> Value {
        let model = &self.app.model;
        json!({
            "id": id,
            "object": kind,
            "created": created,
            "model": model.name(),
            "system_fingerprint": model.tokenizer.fingerprint()[..12],
            "choices": choices,
        })
    }

    /// Waits for all that comes, for every answer.
    ///
    /// # Errors
    /// As [`Submitted::next`].
    pub async fn whole(&mut self, answers: &mut Answers<'_>) -> ApiResult<Vec<Delta>> {
        let mut whole = vec![Delta::default(); answers.choices.len()];
        while let Some(updates) = self.next(answers).await? {
            for update in updates {
                whole[update.choice].append(update.delta);
            }
        }
        Ok(whole)
    }

    /// Waits for what comes next; None when every answer has ended.
    ///
    /// # Errors
    /// 400 when the engine never can answer, 500 when it broke down.
    pub async fn next(&mut self, answers: &mut Answers<'_>) -> ApiResult<Option<Vec<Update>>> {
        if answers.open == 0 {
            return Ok(None);
        }
        match self.deliveries.recv().await {
            Some(Delivery::Output { prompt, mut output }) => {
                if let Some(scored) = output.prompt_logprobs.take() {
                    answers.prompt_logprobs[prompt] = Some(scored);
                }
                if output.cached_tokens > 0 && answers.cached[prompt] == 0 {
                    answers.cached[prompt] = output.cached_tokens;
                    self.app.metrics.prompt_tokens_cached.add(output.cached_tokens as u64);
                }
                let each = self.sampling.best_of;
                let choice = prompt * each + output.index;
                if output.index >= each || choice >= answers.choices.len() {
                    return Err(ApiError::internal(
                        "the engine answered with a sequence nobody asked for",
                    ));
                }
                if let Some(error) = &output.error {
                    tracing::warn!(error, "a sequence ended by an error");
                    if self.sampling.form.is_none() {
                        self.app.metrics.corrupted.add(1);
                    }
                }
                self.time(answers, choice, output.token.is_some());
                let index = output.index;
                let engine_knows = output.finish_reason.is_some();
                let delta = answers.choices[choice].push(output);
                if delta.finish.is_some() {
                    self.ended(answers, choice, &delta);
                    if !engine_knows {
                        // A stop string ends an answer without the engine's knowing.
                        self.aborter.abort_sequence(prompt, index);
                    }
                }
                Ok(Some(vec![Update { choice, delta }]))
            }
            Some(Delivery::Aborted) => {
                let mut updates = Vec::new();
                for choice in 0..answers.choices.len() {
                    let delta = answers.choices[choice].abort();
                    if delta.finish.is_some() {
                        self.ended(answers, choice, &delta);
                        updates.push(Update { choice, delta });
                    }
                }
                Ok(Some(updates))
            }
            Some(Delivery::Refused(reason)) => Err(ApiError::invalid(reason)),
            Some(Delivery::Failed(_)) | None => Err(self.app.engine.failure()),
        }
    }

    /// Measures the times between tokens.
    fn time(&self, answers: &mut Answers<'_>, choice: usize, has_token: bool) {
        if !has_token || answers.choices[choice].finished {
            return;
        }
        let (now, metrics) = (Instant::now(), &self.app.metrics);
        metrics.generation_tokens.add(1);
        let first = match answers.times[choice] {
            None => {
                metrics.first_token.observe((now - self.arrival.at).as_secs_f64());
                now
            }
            Some((first, last)) => {
                metrics.between_tokens.observe((now - last).as_secs_f64());
                first
            }
        };
        answers.times[choice] = Some((first, now));
    }

    /// Counts an answer that has ended.
    fn ended(&self, answers: &mut Answers<'_>, choice: usize, delta: &Delta) {
        answers.open = answers.open.saturating_sub(1);
        let metrics = &self.app.metrics;
        let tokens = answers.choices[choice].tokens;
        metrics.request_generation_tokens.observe(tokens as f64);
        metrics.end_to_end.observe(self.arrival.at.elapsed().as_secs_f64());
        if let Some((first, last)) = answers.times[choice].filter(|_| tokens > 1) {
            metrics.time_per_token.observe((last - first).as_secs_f64() / (tokens - 1) as f64);
        }
        if let Some(finish) = &delta.finish {
            metrics.finished.with(&[finish.reason]).add(1);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tests::server::{served_model, tokenizer};

    #[test]
    fn a_bad_word_is_barred_with_and_without_a_blank_before_it() {
        let model = served_model(tokenizer());
        let id = |text: &str| {
            let is = |id: &u32| model.tokenizer.piece(*id).is_some_and(|piece| piece.text == text);
            (0..model.vocab_size as u32).find(is).unwrap()
        };
        let ids = |texts: &[&str]| texts.iter().map(|text| id(text)).collect::<Vec<u32>>();
        let barred = |word: &str| bad_words(&model, &[word.to_owned()]).unwrap();
        for word in ["cat", " cat"] {
            let words = barred(word);
            assert!(words.contains(&ids(&["\u{2581}cat"])), "{words:?}");
            assert!(words.contains(&ids(&["c", "at"])), "{words:?}");
        }
        // The blank is a piece of its own here.
        let words = barred("hat");
        assert!(words.contains(&ids(&["\u{2581}", "h", "at"])), "{words:?}");
        assert!(words.contains(&ids(&["h", "at"])), "{words:?}");
        // No word of ids is a blank alone, which would bar all words.
        assert!(!words.contains(&ids(&["\u{2581}"])));
    }
}
