//! `POST /tokenize`, `POST /detokenize`, `GET /tokenizer_info`.

use serde_json::{Value, json};

use crate::app::App;
use crate::chat_completions::{conversation, ids, render};
use crate::error::{ApiError, ApiResult};
use crate::fields::Fields;
use crate::sampling::check_ids;
use crate::served_model::check_length;

/// Most ids of `/detokenize`.
const MOST_IDS: usize = 1 << 20;

/// The ids of a text or a conversation. Without `add_special_tokens`, special tokens that stand in a
/// text become their ids, as callers expect who write them out.
///
/// # Errors
/// In OpenAI's shape.
pub fn tokenize(app: &App, body: Value) -> ApiResult<Value> {
    let model = &app.model;
    let mut fields = Fields::of(body)?;
    model.check_name(fields.take::<String>("model", "a text")?.as_deref())?;
    let yes_or_no = "true or false";
    let add_special = fields.take::<bool>("add_special_tokens", yes_or_no)?;
    let with_texts = fields.take("return_token_strs", yes_or_no)?.unwrap_or(false);
    let tokens = match fields.take::<String>("prompt", "a text")? {
        Some(text) => {
            check_length("prompt", &text)?;
            match add_special.unwrap_or(true) {
                true => model.tokenizer.encode_document(&text, true, false)?,
                false => model.specials.encode(&model.tokenizer, &text)?,
            }
        }
        None => {
            let (messages, options) = conversation(&mut fields).map_err(|error| {
                let message = format!("expected prompt or messages: {}", error.message);
                ApiError { message, ..error }
            })?;
            let rendered = render(model, &messages, &options)?;
            ids(model, &rendered, add_special.unwrap_or(false))?
        }
    };
    fields.log_unknown();
    let texts: Option<Vec<String>> =
        with_texts.then(|| tokens.iter().map(|id| model.token_text(*id)).collect());
    Ok(json!({
        "count": tokens.len(),
        "max_model_len": model.max_model_len,
        "tokens": tokens,
        "token_strs": texts,
    }))
}

/// The text of ids.
///
/// # Errors
/// In OpenAI's shape.
pub fn detokenize(app: &App, body: Value) -> ApiResult<Value> {
    let model = &app.model;
    let mut fields = Fields::of(body)?;
    model.check_name(fields.take::<String>("model", "a text")?.as_deref())?;
    let tokens = fields.take::<Vec<u32>>("tokens", "a list of token ids")?;
    let tokens = tokens.ok_or_else(|| ApiError::field("tokens", "is missing"))?;
    fields.log_unknown();
    if tokens.len() > MOST_IDS {
        return Err(ApiError::field(
            "tokens",
            format!("{} ids, the limit is {MOST_IDS}", tokens.len()),
        ));
    }
    check_ids("tokens", &tokens, model)?;
    Ok(json!({"prompt": model.tokenizer.decode(&tokens)?}))
}

/// What the tokenizer is: `tokenizer_config.json`, with its template.
pub fn info(app: &App) -> Value {
    let model = &app.model;
    let mut info = match &model.tokenizer_config {
        Value::Object(config) => Value::Object(config.clone()),
        _ => json!({}),
    };
    let name = |id: Option<u32>| {
        id.and_then(|id| model.tokenizer.piece(id)).map(|piece| piece.text.as_str())
    };
    info["bos_token"] = json!(name(model.tokenizer.bos_id()));
    info["eos_token"] = json!(name(model.tokenizer.eos_id()));
    info["vocab_size"] = json!(model.tokenizer.vocab_size());
    info["max_model_len"] = json!(model.max_model_len);
    if let Some(template) = &model.template {
        info["chat_template"] = json!(template.source());
    }
    if info.get("tokenizer_class").is_none() {
        info["tokenizer_class"] = json!("LlamaTokenizer");
    }
    info
}
