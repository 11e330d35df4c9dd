//! `POST /v1/completions`.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::App;
use crate::choice::Delta;
use crate::error::{ApiError, ApiResult};
use crate::event_stream::{self, Events};
use crate::fields::Fields;
use crate::generation::{Answers, Arrival, MaxTokens, Submitted, Usage, submit};
use crate::logprobs::CompletionLogprobs;
use crate::request_body::RequestBody;
use crate::sampling::{Sampling, check_ids, within};
use crate::served_model::{ServedModel, now};

/// Tokens of an answer where a request says nothing, as OpenAI has it.
const DEFAULT_MAX_TOKENS: usize = 16;
/// Most prompts of a request.
const MOST_PROMPTS: usize = 4096;

/// A prompt as it was given.
#[derive(Debug, Clone)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// A request that was understood.
struct Completion {
    id: String,
    echo: bool,
    logprobs: Option<usize>,
    prompt_logprobs: bool,
    /// Texts of the prompts, for `echo`.
    texts: Vec<String>,
    submitted: Submitted,
}

/// Answers a request.
///
/// # Errors
/// In OpenAI's shape.
pub async fn answer(app: &Arc<App>, body: RequestBody, id: &str) -> ApiResult<Response> {
    let completion = start(app, body, id).await?;
    if completion.submitted.sampling.stream.is_some() {
        return Ok(stream(completion));
    }
    Ok(axum::Json(collect(completion).await?).into_response())
}

/// Answers a request as a whole.
///
/// # Errors
/// In OpenAI's shape.
pub async fn answer_whole(app: &Arc<App>, body: RequestBody, id: &str) -> ApiResult<Value> {
    let completion = start(app, body, id).await?;
    if completion.submitted.sampling.stream.is_some() {
        return Err(ApiError::field("stream", "there is no stream here"));
    }
    collect(completion).await
}

/// Reads and tokenizes a request.
async fn start(app: &Arc<App>, body: RequestBody, id: &str) -> ApiResult<Completion> {
    let (app, id) = (Arc::clone(app), id.to_owned());
    let arrival = Arrival::now(&app);
    body.with_json(move |json| read(&app, json, &id, arrival)).await
}

fn read(app: &Arc<App>, body: Value, id: &str, arrival: Arrival) -> ApiResult<Completion> {
    app.check_ready()?;
    let mut fields = Fields::of(body)?;
    let model = &app.model;
    model.check_name(fields.take::<String>("model", "a text")?.as_deref())?;
    let mut sampling = Sampling::read(&mut fields, model, &app.sampling_limits())?;
    let whole = "a whole number, 0 or more";
    let max_tokens = fields.take("max_tokens", whole)?.unwrap_or(DEFAULT_MAX_TOKENS);
    let echo = fields.take("echo", "true or false")?.unwrap_or(false);
    let logprobs = match fields.take::<usize>("logprobs", whole)? {
        Some(count) => Some(within("logprobs", count, app.options.max_logprobs)?),
        None => None,
    };
    let add_special = fields.take("add_special_tokens", "true or false")?.unwrap_or(true);
    fields.refuse(&["suffix"])?;
    let prompts = prompts(fields.take_value("prompt").or_else(|| fields.take_value("prompts")))?;
    fields.log_unknown();

    let prompt_logprobs = sampling.params.prompt_logprobs.is_some();
    sampling.params.logprobs = logprobs;
    if sampling.best_of > sampling.n {
        // Answers are compared by their probability.
        sampling.params.logprobs = Some(logprobs.unwrap_or(0));
    }
    if echo && let Some(count) = logprobs {
        let more = sampling.params.prompt_logprobs.unwrap_or(0);
        sampling.params.prompt_logprobs = Some(more.max(count));
    }
    // Before anything is tokenized: a token is about four bytes.
    let about = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.len() / 4 + 1,
        Prompt::Ids(ids) => ids.len(),
    };
    let tokens = prompts.iter().map(about).sum();
    let permit = app.admission.enter(prompts.len() * sampling.best_of, tokens)?;
    let mut texts = Vec::new();
    let mut ids = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        match prompt {
            Prompt::Text(text) => {
                let mut encoded = model.encode_prompt(&text, add_special)?;
                let cut = sampling.cut(&mut encoded);
                if echo {
                    texts.push(if cut { text_of(&encoded, model)? } else { text });
                }
                ids.push(encoded);
            }
            Prompt::Ids(mut given) => {
                check_ids("prompt", &given, model)?;
                sampling.cut(&mut given);
                if echo {
                    texts.push(text_of(&given, model)?);
                }
                ids.push(given);
            }
        }
    }
    let max_tokens = MaxTokens::Exactly(max_tokens);
    let submitted = submit(app, ids, sampling, max_tokens, permit, arrival)?;
    let id = submitted.sampling.request_id.as_deref().unwrap_or(id);
    Ok(Completion { id: format!("cmpl-{id}"), echo, logprobs, prompt_logprobs, texts, submitted })
}

/// The text of ids; those of padding have none.
fn text_of(ids: &[u32], model: &ServedModel) -> ApiResult<String> {
    let known = ids.iter().copied().filter(|id| (*id as usize) < model.tokenizer.vocab_size());
    Ok(model.tokenizer.decode(&known.collect::<Vec<u32>>())?)
}

fn prompts(value: Option<Value>) -> ApiResult<Vec<Prompt>> {
    let wrong = || {
        ApiError::field(
            "prompt",
            "expected a text, a list of texts, a list of token ids, or a list of such lists",
        )
    };
    let ids = |list: &[Value]| {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        list.iter().map(id).collect::<Option<Vec<u32>>>()
    };
    let prompts = match value.ok_or_else(|| ApiError::field("prompt", "is missing"))? {
        Value::String(text) => vec![Prompt::Text(text)],
        Value::Array(list) if list.is_empty() => return Err(wrong()),
        Value::Array(list) => match &list[0] {
            Value::Number(_) => vec![Prompt::Ids(ids(&list).ok_or_else(wrong)?)],
            _ => {
                let one = |value: &Value| match value {
                    Value::String(text) => Some(Prompt::Text(text.clone())),
                    Value::Array(list) => ids(list).map(Prompt::Ids),
                    _ => None,
                };
                list.iter().map(one).collect::<Option<_>>().ok_or_else(wrong)?
            }
        },
        _ => return Err(wrong()),
    };
    if prompts.len() > MOST_PROMPTS {
        let message = format!("{} prompts, the limit is {MOST_PROMPTS}", prompts.len());
        return Err(ApiError::field("prompt", message));
    }
    Ok(prompts)
}

impl Completion {
    fn object(&self, created: u64, choices: Vec<Value>) -> Value {
        self.submitted.object(&self.id, "text_completion", created, choices)
    }

    /// The beginning of an echoed answer: text and probabilities of the prompt.
    fn echoed(&self, prompt: usize, answers: &Answers<'_>) -> (String, CompletionLogprobs) {
        let mut logprobs = CompletionLogprobs::default();
        if !self.echo {
            return (String::new(), logprobs);
        }
        if self.logprobs.is_some() {
            let scored = answers.prompt_logprobs[prompt].as_deref().unwrap_or_default();
            logprobs.push_prompt(self.submitted.names(), &self.submitted.prompts[prompt], scored);
        }
        (self.texts[prompt].clone(), logprobs)
    }

    fn choice(
        &self,
        index: usize,
        text: &str,
        logprobs: &CompletionLogprobs,
        delta: &Delta,
    ) -> Value {
        let finish = delta.finish.as_ref();
        let mut choice = json!({
            "index": index,
            "text": text,
            "logprobs": self.logprobs.map(|_| logprobs.to_json()),
            "finish_reason": finish.map(|finish| finish.reason),
            "stop_reason": finish.map(|finish| &finish.stop_reason),
        });
        if self.submitted.sampling.return_token_ids {
            choice["token_ids"] = json!(delta.token_ids);
        }
        if let Some(error) = finish.and_then(|finish| finish.error.as_ref()) {
            choice["error"] = json!(error);
        }
        choice
    }
}

async fn collect(mut completion: Completion) -> ApiResult<Value> {
    let app = Arc::clone(&completion.submitted.app);
    let mut answers = Answers::new(&app, &completion.submitted);
    let whole = completion.submitted.whole(&mut answers).await?;
    let Sampling { n, best_of, .. } = completion.submitted.sampling;
    let mut choices = Vec::new();
    for prompt in 0..completion.submitted.prompts.len() {
        let mut order: Vec<usize> = (prompt * best_of..(prompt + 1) * best_of).collect();
        if best_of > n {
            let mean = |choice: &usize| {
                let choice = &answers.choices[*choice];
                choice.cumulative_logprob / choice.tokens.max(1) as f64
            };
            order.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        }
        for (number, choice) in order.into_iter().take(n).enumerate() {
            let (mut text, mut logprobs) = completion.echoed(prompt, &answers);
            let delta = &whole[choice];
            logprobs.push(completion.submitted.names(), &delta.logprobs, text.chars().count());
            text.push_str(&delta.text);
            let mut value = completion.choice(prompt * n + number, &text, &logprobs, delta);
            if completion.prompt_logprobs {
                let scored = answers.prompt_logprobs[prompt].as_deref().unwrap_or_default();
                value["prompt_logprobs"] = completion.submitted.names().of_prompt(scored);
            }
            if completion.submitted.sampling.return_token_ids {
                value["prompt_token_ids"] = json!(*completion.submitted.prompts[prompt]);
            }
            choices.push(value);
        }
    }
    let mut object = completion.object(now(), choices);
    object["usage"] = answers.usage(&completion.submitted).to_json();
    Ok(object)
}

fn stream(mut completion: Completion) -> Response {
    let guard = completion.submitted.take_guard();
    event_stream::respond(guard, |events| async move {
        let app = Arc::clone(&completion.submitted.app);
        let mut answers = Answers::new(&app, &completion.submitted);
        if let Err(error) = send(&mut completion, &mut answers, &events).await {
            events.send(&error.to_json());
        }
    })
}

/// Sends the events of a stream.
async fn send(
    completion: &mut Completion,
    answers: &mut Answers<'_>,
    events: &Events,
) -> ApiResult<()> {
    let created = now();
    let options = completion.submitted.sampling.stream.unwrap_or_default();
    let best_of = completion.submitted.sampling.best_of;
    let mut begun = vec![false; answers.choices.len()];
    let mut held = vec![Delta::default(); answers.choices.len()];
    // Characters of echoed prompts.
    let mut before = vec![0; answers.choices.len()];
    while let Some(updates) = completion.submitted.next(answers).await? {
        for update in updates {
            let index = update.choice;
            held[index].append(update.delta);
            let delta = &held[index];
            let ended = delta.finish.is_some();
            let nothing = delta.text.is_empty() && delta.token_ids.is_empty();
            if !ended && (nothing || delta.token_ids.len() < options.interval) {
                continue;
            }
            let delta = std::mem::take(&mut held[index]);
            let (mut text, mut logprobs) = match begun[index] {
                false => completion.echoed(index / best_of, answers),
                true => Default::default(),
            };
            if !std::mem::replace(&mut begun[index], true) {
                before[index] = text.chars().count();
            }
            logprobs.push(completion.submitted.names(), &delta.logprobs, before[index]);
            text.push_str(&delta.text);
            let choice = completion.choice(index, &text, &logprobs, &delta);
            let mut event = completion.object(created, vec![choice]);
            add_usage(&mut event, options.include_usage, || {
                options.continuous_usage.then(|| answers.usage(&completion.submitted))
            });
            events.send(&event);
        }
    }
    if options.include_usage {
        let mut event = completion.object(created, Vec::new());
        event["usage"] = answers.usage(&completion.submitted).to_json();
        events.send(&event);
    }
    Ok(())
}

/// `usage` of an event before the last: null, or the tokens so far where that was asked for.
pub fn add_usage(event: &mut Value, included: bool, usage: impl FnOnce() -> Option<Usage>) {
    if included {
        event["usage"] = usage().map_or(Value::Null, Usage::to_json);
    }
}
