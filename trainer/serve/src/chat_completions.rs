//! `POST /v1/chat/completions`.

use std::sync::Arc;

use altiplano_data::chat::{Message, RenderOptions, RenderedChat};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::choice::{Delta, PlacedToken};
use crate::completions::add_usage;
use crate::error::{ApiError, ApiResult};
use crate::event_stream::{self, Events};
use crate::fields::Fields;
use crate::generation::{Answers, Arrival, MaxTokens, Submitted, submit};
use crate::request_body::RequestBody;
use crate::sampling::{Sampling, within};
use crate::served_model::{ServedModel, check_length, now};

/// Most messages of a conversation.
const MOST_MESSAGES: usize = 4096;

/// Fields of OpenAI and vLLM that do nothing here.
const NOT_SUPPORTED: &[&str] = &[
    "tools",
    "functions",
    "function_call",
    "audio",
    "prediction",
    "web_search_options",
    "reasoning_effort",
    "verbosity",
    "chat_template",
    "media_io_kwargs",
    "best_of",
    "logit_processors",
];

/// A request that was understood.
struct ChatCompletion {
    id: String,
    /// What the assistant has said already, for `echo`.
    echoed: String,
    top_logprobs: Option<usize>,
    prompt_logprobs: bool,
    submitted: Submitted,
}

/// Answers a request.
///
/// # Errors
/// In OpenAI's shape.
pub async fn answer(app: &Arc<App>, body: RequestBody, id: &str) -> ApiResult<Response> {
    let chat = start(app, body, id).await?;
    if chat.submitted.sampling.stream.is_some() {
        return Ok(stream(chat));
    }
    Ok(axum::Json(collect(chat).await?).into_response())
}

/// Answers a request as a whole.
///
/// # Errors
/// In OpenAI's shape.
pub async fn answer_whole(app: &Arc<App>, body: RequestBody, id: &str) -> ApiResult<Value> {
    let chat = start(app, body, id).await?;
    if chat.submitted.sampling.stream.is_some() {
        return Err(ApiError::field("stream", "there is no stream here"));
    }
    collect(chat).await
}

/// Reads and tokenizes a request.
async fn start(app: &Arc<App>, body: RequestBody, id: &str) -> ApiResult<ChatCompletion> {
    let (app, id) = (Arc::clone(app), id.to_owned());
    let arrival = Arrival::now(&app);
    body.with_json(move |json| read(&app, json, &id, arrival)).await
}

fn read(app: &Arc<App>, body: Value, id: &str, arrival: Arrival) -> ApiResult<ChatCompletion> {
    app.check_ready()?;
    let mut fields = Fields::of(body)?;
    let model = &app.model;
    model.check_name(fields.take::<String>("model", "a text")?.as_deref())?;
    refuse(&mut fields)?;
    let mut sampling = Sampling::read(&mut fields, model, &app.sampling_limits())?;
    let whole = "a whole number, 1 or more";
    let older = fields.take::<usize>("max_tokens", whole)?;
    let max_tokens = match fields.take::<usize>("max_completion_tokens", whole)?.or(older) {
        Some(0) => {
            return Err(ApiError::field("max_completion_tokens", "found 0, expected 1 or more"));
        }
        Some(count) => MaxTokens::Exactly(count),
        None => MaxTokens::Context,
    };
    let yes_or_no = "true or false";
    let logprobs = fields.take("logprobs", yes_or_no)?.unwrap_or(false);
    let top = fields.take::<usize>("top_logprobs", "a whole number, 0 or more")?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(ApiError::field("top_logprobs", "only allowed with \"logprobs\": true"));
    }
    let top_logprobs = match logprobs {
        true => Some(within("top_logprobs", top.unwrap_or(0), app.options.max_logprobs)?),
        false => None,
    };
    sampling.params.logprobs = top_logprobs;
    let echo = fields.take("echo", yes_or_no)?.unwrap_or(false);
    let add_special = fields.take("add_special_tokens", yes_or_no)?.unwrap_or(false);
    let (messages, options) = conversation(&mut fields)?;
    fields.log_unknown();

    let about: usize = messages.iter().map(|message| message.content().len() / 4 + 8).sum();
    let permit = app.admission.enter(sampling.n, about)?;
    let rendered = render(model, &messages, &options)?;
    let ids = ids(model, &rendered, add_special)?;
    let echoed = match messages.last().filter(|last| echo && last.role() == "assistant") {
        Some(last) => last.content().to_owned(),
        None => String::new(),
    };
    let prompt_logprobs = sampling.params.prompt_logprobs.is_some();
    let submitted = submit(app, vec![ids], sampling, max_tokens, permit, arrival)?;
    let id = submitted.sampling.request_id.as_deref().unwrap_or(id);
    Ok(ChatCompletion {
        id: format!("chatcmpl-{id}"),
        echoed,
        top_logprobs,
        prompt_logprobs,
        submitted,
    })
}

/// Refuses what is known and does nothing here.
fn refuse(fields: &mut Fields) -> ApiResult<()> {
    fields.refuse(NOT_SUPPORTED)?;
    match fields.take_value("tool_choice") {
        None => {}
        Some(Value::String(choice)) if choice == "none" || choice == "auto" => {}
        Some(_) => {
            return Err(ApiError::field("tool_choice", "tools are not supported; leave it out"));
        }
    }
    let modalities =
        fields.take::<Vec<String>>("modalities", "a list of texts")?.unwrap_or_default();
    if modalities.iter().any(|modality| modality != "text") {
        return Err(ApiError::field("modalities", "only text is supported"));
    }
    fields.ignore(&["parallel_tool_calls", "include_reasoning", "chat_template_content_format"]);
    Ok(())
}

/// The messages and how they are rendered, from the fields that say so.
///
/// # Errors
/// 400 that names the field.
pub fn conversation(fields: &mut Fields) -> ApiResult<(Vec<Message>, RenderOptions)> {
    let yes_or_no = "true or false";
    let given = fields.take::<Vec<Map<String, Value>>>("messages", "a list of messages")?;
    let given = given.ok_or_else(|| ApiError::field("messages", "is missing"))?;
    if given.is_empty() || given.len() > MOST_MESSAGES {
        let message = format!("{} messages, expected 1 to {MOST_MESSAGES}", given.len());
        return Err(ApiError::field("messages", message));
    }
    let numbered = given.into_iter().enumerate();
    let messages =
        numbered.map(|(index, message)| read_message(index, message)).collect::<ApiResult<_>>()?;
    let prompt = fields.take("add_generation_prompt", yes_or_no)?;
    let continued = fields.take("continue_final_message", yes_or_no)?.unwrap_or(false);
    if continued && prompt == Some(true) {
        let message = "cannot be true together with add_generation_prompt";
        return Err(ApiError::field("continue_final_message", message));
    }
    let object = "an object";
    let mut variables =
        fields.take::<Map<String, Value>>("chat_template_kwargs", object)?.unwrap_or_default();
    if let Some(documents) = fields.take::<Vec<Value>>("documents", "a list")? {
        variables.insert("documents".to_owned(), Value::Array(documents));
    }
    let options = RenderOptions {
        add_generation_prompt: prompt.unwrap_or(!continued),
        continue_final_message: continued,
        variables,
        ..RenderOptions::default()
    };
    Ok((messages, options))
}

/// A message with its content as one text.
fn read_message(index: usize, mut message: Map<String, Value>) -> ApiResult<Message> {
    let wrong = |what: String| ApiError::field("messages", format!("message {index}: {what}"));
    match message.get("role").and_then(Value::as_str) {
        Some("system" | "user" | "assistant" | "tool") => {}
        Some("developer") => drop(message.insert("role".to_owned(), json!("system"))),
        Some(other) => {
            let known = "system, user, assistant and tool";
            return Err(wrong(format!("role {other:?} is not known; there are {known}")));
        }
        None => return Err(wrong("role is missing".into())),
    }
    let content = match message.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let mut texts = Vec::new();
            for part in parts {
                match (part.get("type").and_then(Value::as_str), part.get("text")) {
                    (Some("text") | None, Some(Value::String(text))) => texts.push(text.as_str()),
                    (kind, _) => {
                        let kind = kind.unwrap_or("without a type");
                        return Err(wrong(format!(
                            "a part of type {kind:?} is not supported, only text is"
                        )));
                    }
                }
            }
            texts.join("\n")
        }
        Some(_) => return Err(wrong("content: expected a text or a list of parts".into())),
    };
    message.insert("content".to_owned(), Value::String(content));
    Ok(Message(message))
}

/// The text of a conversation.
///
/// # Errors
/// 400 when the model has no template or the template refuses the conversation.
pub fn render(
    model: &ServedModel,
    messages: &[Message],
    options: &RenderOptions,
) -> ApiResult<RenderedChat> {
    let template = model.template.as_ref().ok_or_else(|| {
        ApiError::invalid(
            "this model has no chat template: use /v1/completions, or start the server with \
             --chat-template and a file, alpaca or vicuna_v1.1",
        )
    })?;
    Ok(template.render(messages, &model.specials, options)?)
}

/// The ids of a rendered conversation; the template writes the begin token itself, or `add_special`
/// puts it in front.
///
/// # Errors
/// 400 when the tokenizer cannot encode it.
pub fn ids(model: &ServedModel, rendered: &RenderedChat, add_special: bool) -> ApiResult<Vec<u32>> {
    check_length("messages", &rendered.text)?;
    let mut ids = rendered.encode(&model.tokenizer)?;
    if let Some(bos) =
        model.tokenizer.bos_id().filter(|bos| add_special && ids.first() != Some(bos))
    {
        ids.insert(0, bos);
    }
    Ok(ids)
}

impl ChatCompletion {
    fn object(&self, kind: &str, created: u64, choices: Vec<Value>) -> Value {
        self.submitted.object(&self.id, kind, created, choices)
    }

    fn logprobs(&self, tokens: &[PlacedToken]) -> Option<Value> {
        self.top_logprobs.map(|count| self.submitted.names().chat(tokens, count))
    }

    /// A choice whose text is under `key`: `message` or `delta`.
    fn choice(&self, index: usize, key: &str, said: Value, delta: &Delta) -> Value {
        let finish = delta.finish.as_ref();
        let mut choice = json!({
            "index": index,
            key: said,
            // An event without a token says nothing of probabilities.
            "logprobs": self.logprobs(&delta.logprobs).filter(|_| key == "message" || !delta.logprobs.is_empty()),
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

async fn collect(mut chat: ChatCompletion) -> ApiResult<Value> {
    let app = Arc::clone(&chat.submitted.app);
    let mut answers = Answers::new(&app, &chat.submitted);
    let whole = chat.submitted.whole(&mut answers).await?;
    let choices = whole.iter().enumerate().map(|(index, delta)| {
        let text = format!("{}{}", chat.echoed, delta.text);
        chat.choice(index, "message", json!({"role": "assistant", "content": text}), delta)
    });
    let mut object = chat.object("chat.completion", now(), choices.collect());
    object["usage"] = answers.usage(&chat.submitted).to_json();
    if chat.prompt_logprobs {
        let scored = answers.prompt_logprobs[0].as_deref().unwrap_or_default();
        object["prompt_logprobs"] = chat.submitted.names().of_prompt(scored);
    }
    if chat.submitted.sampling.return_token_ids {
        object["prompt_token_ids"] = json!(*chat.submitted.prompts[0]);
    }
    Ok(object)
}

fn stream(mut chat: ChatCompletion) -> Response {
    let guard = chat.submitted.take_guard();
    event_stream::respond(guard, |events| async move {
        let app = Arc::clone(&chat.submitted.app);
        let mut answers = Answers::new(&app, &chat.submitted);
        if let Err(error) = send(&mut chat, &mut answers, &events).await {
            events.send(&error.to_json());
        }
    })
}

/// Sends the events of a stream.
async fn send(
    chat: &mut ChatCompletion,
    answers: &mut Answers<'_>,
    events: &Events,
) -> ApiResult<()> {
    let created = now();
    let kind = "chat.completion.chunk";
    let options = chat.submitted.sampling.stream.unwrap_or_default();
    let mut held = vec![Delta::default(); answers.choices.len()];
    let mut begun = vec![false; answers.choices.len()];
    while let Some(updates) = chat.submitted.next(answers).await? {
        for update in updates {
            let index = update.choice;
            let emit = |chat: &ChatCompletion, said: Value, delta: &Delta| {
                let choice = chat.choice(index, "delta", said, delta);
                let mut event = chat.object(kind, created, vec![choice]);
                add_usage(&mut event, options.include_usage, || {
                    options.continuous_usage.then(|| answers.usage(&chat.submitted))
                });
                events.send(&event);
            };
            if !std::mem::replace(&mut begun[index], true) {
                let said = json!({"role": "assistant", "content": chat.echoed});
                emit(chat, said, &Delta::default());
            }
            held[index].append(update.delta);
            let delta = &held[index];
            let ended = delta.finish.is_some();
            if !ended && delta.token_ids.len() < options.interval {
                continue;
            }
            let mut delta = std::mem::take(&mut held[index]);
            // The last event has the reason and no text.
            let finish = delta.finish.take();
            if !delta.text.is_empty() || !delta.logprobs.is_empty() || !delta.token_ids.is_empty() {
                emit(chat, json!({"content": delta.text}), &delta);
            }
            if finish.is_some() {
                emit(chat, json!({}), &Delta { finish, ..Delta::default() });
            }
        }
    }
    if options.include_usage {
        let mut event = chat.object(kind, created, Vec::new());
        event["usage"] = answers.usage(&chat.submitted).to_json();
        events.send(&event);
    }
    Ok(())
}
