//! The fields that completions and chat have in common: how tokens are chosen, where text ends, what
//! the answer shows.

use std::collections::BTreeMap;

use altiplano_model::infer::SamplingParams;
use serde::Deserialize;
use serde_json::Value;

use crate::constraint::{AnswerForm, AskedForm};
use crate::error::{ApiError, ApiResult};
use crate::fields::Fields;
use crate::served_model::ServedModel;

/// Most answers to a prompt, as OpenAI has it.
const MOST_ANSWERS: usize = 128;
/// Most stop strings, and bad words. There are more than OpenAI's four in requests of `lm_eval`.
const MOST_STRINGS: usize = 256;
/// Longest stop string in bytes.
const LONGEST_STRING: usize = 1024;
/// Most ids in a list of ids.
const MOST_IDS: usize = 1 << 16;

/// Fields of vLLM and OpenAI that do nothing here: naming them is better than dropping them.
const NOT_SUPPORTED: &[&str] = &[
    "use_beam_search",
    "length_penalty",
    "logits_processors",
    "logprob_token_ids",
    "session_id",
    "metrics",
    "prompt_embeds",
    "kv_transfer_params",
    "vllm_xargs",
    "mm_processor_kwargs",
    "repetition_detection",
    "thinking_token_budget",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
    "structural_tag",
];

/// Fields about the sender or the bill.
const ABOUT_THE_SENDER: &[&str] =
    &["user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"];

/// Which end of a prompt stays when it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptSide {
    /// The beginning.
    Left,
    /// The end.
    Right,
}

/// What a stream has beside its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamOptions {
    /// A last event has the usage.
    pub include_usage: bool,
    /// Every event has it.
    pub continuous_usage: bool,
    /// Tokens of an event.
    pub interval: usize,
}

/// The fields in common.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// How tokens are chosen; `max_tokens` is set later, for every prompt.
    pub params: SamplingParams,
    /// The request has a seed of its own.
    pub has_seed: bool,
    /// Answers to a prompt.
    pub n: usize,
    /// Answers of which the `n` likeliest are given.
    pub best_of: usize,
    /// Texts before which an answer ends.
    pub stop: Vec<String>,
    /// The stop string stays in the answer.
    pub include_stop: bool,
    /// Special tokens have no text in the answer.
    pub skip_special_tokens: bool,
    /// What the answer has to look like.
    pub form: Option<AskedForm>,
    /// Words that may not appear.
    pub bad_words: Vec<String>,
    /// Tokens that are left of a long prompt, and which.
    pub truncate: Option<(usize, KeptSide)>,
    /// Tokens are written `token_id:123`.
    pub tokens_as_ids: bool,
    /// Answers have the ids of prompt and text.
    pub return_token_ids: bool,
    /// Lower ones first, under the policy `priority`.
    pub priority: i64,
    /// The prefix cache is shared with requests of the same salt alone.
    pub cache_salt: Option<String>,
    /// The answer comes as a stream.
    pub stream: Option<StreamOptions>,
    /// The sender's name for the request.
    pub request_id: Option<String>,
}

/// What a server sets for the fields.
#[derive(Debug, Clone, Copy)]
pub struct SamplingLimits {
    /// Most log-probabilities at a place.
    pub max_logprobs: usize,
    /// The seed of a request that has none.
    pub seed: u64,
    /// Tokens of an event of a stream.
    pub stream_interval: usize,
    /// Tokens are written `token_id:123` in any case.
    pub tokens_as_ids: bool,
}

/// One text or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::More(texts) => texts,
        }
    }
}

impl Sampling {
    /// Reads the fields in common; those of one endpoint alone are still to be taken.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn read(
        fields: &mut Fields,
        model: &ServedModel,
        limits: &SamplingLimits,
    ) -> ApiResult<Self> {
        fields.refuse(NOT_SUPPORTED)?;
        fields.ignore(ABOUT_THE_SENDER);
        let whole = "a whole number, 0 or more";
        let yes_or_no = "true or false";
        let defaults = model.defaults;
        let mut params = SamplingParams {
            temperature: fields
                .number("temperature", "a number, 0 or more", |value| value >= 0.0)?
                .unwrap_or(defaults.temperature),
            top_p: fields
                .number("top_p", "above 0, at most 1", |value| value > 0.0 && value <= 1.0)?
                .unwrap_or(defaults.top_p),
            min_p: fields
                .number("min_p", "from 0 to 1", |value| (0.0..=1.0).contains(&value))?
                .unwrap_or(defaults.min_p),
            repetition_penalty: fields
                .number("repetition_penalty", "a number above 0", |value| value > 0.0)?
                .unwrap_or(defaults.repetition_penalty),
            ..SamplingParams::default()
        };
        let two = |value: f64| (-2.0..=2.0).contains(&value);
        let from_minus_two = "from -2 to 2";
        params.presence_penalty =
            fields.number("presence_penalty", from_minus_two, two)?.unwrap_or(0.0);
        params.frequency_penalty =
            fields.number("frequency_penalty", from_minus_two, two)?.unwrap_or(0.0);
        params.top_k = match fields.take::<i64>("top_k", "a whole number; 0 or -1 keep all")? {
            None => defaults.top_k,
            Some(-1) => 0,
            Some(top_k) => usize::try_from(top_k).map_err(|_| {
                ApiError::field("top_k", format!("found {top_k}, expected -1 or more"))
            })?,
        };
        // Signed and unsigned 64-bit seeds are both in use.
        let seed = fields.take::<serde_json::Number>("seed", "a whole number of 64 bits")?;
        let has_seed = seed.is_some();
        params.seed = match seed {
            None => limits.seed,
            Some(seed) => {
                seed.as_u64().or(seed.as_i64().map(i64::cast_unsigned)).ok_or_else(|| {
                    ApiError::field("seed", format!("found {seed}, expected a whole number"))
                })?
            }
        };
        params.min_tokens = fields.take("min_tokens", whole)?.unwrap_or(0);
        params.ignore_eos = fields.take("ignore_eos", yes_or_no)?.unwrap_or(false);
        params.stop_token_ids = ids(fields, "stop_token_ids", model)?.unwrap_or_default();
        params.allowed_token_ids = ids(fields, "allowed_token_ids", model)?;
        if params.allowed_token_ids.as_ref().is_some_and(Vec::is_empty) {
            return Err(ApiError::field("allowed_token_ids", "an empty list allows nothing"));
        }
        params.logit_bias = logit_bias(fields, model)?;
        params.prompt_logprobs = match fields
            .take::<i64>("prompt_logprobs", "a whole number, or -1")?
        {
            None => None,
            Some(-1) => Some(within("prompt_logprobs", model.vocab_size, limits.max_logprobs)?),
            Some(count) => {
                let count = usize::try_from(count).map_err(|_| {
                    ApiError::field(
                        "prompt_logprobs",
                        format!("found {count}, expected -1 or more"),
                    )
                })?;
                Some(within("prompt_logprobs", count, limits.max_logprobs)?.min(model.vocab_size))
            }
        };

        let n = fields.take("n", whole)?.unwrap_or(1);
        let best_of = fields.take("best_of", whole)?.unwrap_or(n);
        if !(1..=MOST_ANSWERS).contains(&n) {
            return Err(ApiError::field("n", format!("found {n}, expected 1 to {MOST_ANSWERS}")));
        }
        if !(n..=MOST_ANSWERS).contains(&best_of) {
            let message = format!("found {best_of}, expected n, which is {n}, to {MOST_ANSWERS}");
            return Err(ApiError::field("best_of", message));
        }
        let stop = strings(fields, "stop")?;
        let stream = stream(fields, limits)?;
        if stream.is_some() && best_of > n {
            return Err(ApiError::field("best_of", "more than n cannot be streamed"));
        }
        if stream.is_some() && params.prompt_logprobs.is_some() {
            return Err(ApiError::field("prompt_logprobs", "cannot be streamed"));
        }
        if fields.take("spaces_between_special_tokens", yes_or_no)? == Some(false) {
            let message = "false is not supported; no spaces are put between them in any case";
            return Err(ApiError::field("spaces_between_special_tokens", message));
        }
        let structured = fields.take_value("structured_outputs");
        let format = fields.take_value("response_format");
        if structured.is_some() && format.is_some() {
            let message = "cannot be given together with response_format";
            return Err(ApiError::field("structured_outputs", message));
        }
        let (field, form) = match (format, structured) {
            (Some(format), _) => ("response_format", AnswerForm::of_response_format(&format)?),
            (_, Some(outputs)) => {
                ("structured_outputs", AnswerForm::of_structured_outputs(&outputs)?)
            }
            _ => ("", None),
        };
        let form = form.map(|form| AskedForm { field, form });
        let text = "a text";
        Ok(Self {
            params,
            has_seed,
            n,
            best_of,
            stop,
            include_stop: fields.take("include_stop_str_in_output", yes_or_no)?.unwrap_or(false),
            skip_special_tokens: fields.take("skip_special_tokens", yes_or_no)?.unwrap_or(true),
            form,
            bad_words: strings(fields, "bad_words")?,
            truncate: truncation(fields, model)?,
            tokens_as_ids: fields
                .take("return_tokens_as_token_ids", yes_or_no)?
                .unwrap_or(limits.tokens_as_ids),
            return_token_ids: fields.take("return_token_ids", yes_or_no)?.unwrap_or(false),
            priority: fields.take("priority", "a whole number")?.unwrap_or(0),
            cache_salt: fields.take("cache_salt", text)?,
            stream,
            request_id: request_id(fields)?,
        })
    }

    /// Cuts a prompt as `truncate_prompt_tokens` says; whether anything was cut off.
    pub fn cut(&self, prompt: &mut Vec<u32>) -> bool {
        let whole = prompt.len();
        match self.truncate {
            None => {}
            Some((most, KeptSide::Left)) => prompt.truncate(most),
            Some((most, KeptSide::Right)) => drop(prompt.drain(..whole.saturating_sub(most))),
        }
        prompt.len() < whole
    }
}

/// `count`, if no more than `most`.
pub fn within(name: &str, count: usize, most: usize) -> ApiResult<usize> {
    if count > most {
        return Err(ApiError::field(
            name,
            format!("found {count}, the server gives at most {most}"),
        ));
    }
    Ok(count)
}

fn ids(fields: &mut Fields, name: &str, model: &ServedModel) -> ApiResult<Option<Vec<u32>>> {
    let Some(ids) = fields.take::<Vec<u32>>(name, "a list of token ids")? else { return Ok(None) };
    if ids.len() > MOST_IDS {
        return Err(ApiError::field(name, format!("{} ids, the limit is {MOST_IDS}", ids.len())));
    }
    check_ids(name, &ids, model)?;
    Ok(Some(ids))
}

/// Refuses ids that the model does not know.
///
/// # Errors
/// 400 that names the first one.
pub fn check_ids(name: &str, ids: &[u32], model: &ServedModel) -> ApiResult<()> {
    match ids.iter().find(|id| **id as usize >= model.vocab_size) {
        Some(id) => {
            let message = format!("id {id} is outside the vocabulary of {}", model.vocab_size);
            Err(ApiError::field(name, message))
        }
        None => Ok(()),
    }
}

fn logit_bias(fields: &mut Fields, model: &ServedModel) -> ApiResult<Vec<(u32, f32)>> {
    let expected = "an object of token ids and numbers";
    let bias = fields.take::<BTreeMap<String, f64>>("logit_bias", expected)?.unwrap_or_default();
    let entry = |(id, value): (String, f64)| {
        let id: u32 = id.parse().map_err(|_| {
            ApiError::field("logit_bias", format!("found {id:?}, expected a token id"))
        })?;
        check_ids("logit_bias", &[id], model)?;
        Ok((id, value.clamp(-100.0, 100.0) as f32))
    };
    bias.into_iter().map(entry).collect()
}

fn strings(fields: &mut Fields, name: &str) -> ApiResult<Vec<String>> {
    let given = fields.take::<OneOrMore>(name, "a text or a list of texts")?;
    let texts = given.map(OneOrMore::list).unwrap_or_default();
    if texts.len() > MOST_STRINGS {
        return Err(ApiError::field(
            name,
            format!("{} texts, the limit is {MOST_STRINGS}", texts.len()),
        ));
    }
    if let Some(text) = texts.iter().find(|text| text.len() > LONGEST_STRING) {
        let message = format!("a text of {} bytes, the limit is {LONGEST_STRING}", text.len());
        return Err(ApiError::field(name, message));
    }
    Ok(texts)
}

fn stream(fields: &mut Fields, limits: &SamplingLimits) -> ApiResult<Option<StreamOptions>> {
    let wanted = fields.take("stream", "true or false")?.unwrap_or(false);
    let options = fields.take_value("stream_options");
    let interval = fields.take::<usize>("stream_interval", "a whole number, 1 or more")?;
    if !wanted {
        if options.is_some() {
            return Err(ApiError::field("stream_options", "only allowed with \"stream\": true"));
        }
        return Ok(None);
    }
    let mut read = StreamOptions {
        interval: interval.unwrap_or(limits.stream_interval).max(1),
        ..StreamOptions::default()
    };
    if let Some(options) = options {
        let yes = |key: &str| match options.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => {
                let message = format!("{key}: found {other}, expected true or false");
                Err(ApiError::field("stream_options", message))
            }
        };
        if !options.is_object() {
            return Err(ApiError::field("stream_options", "expected an object"));
        }
        read.include_usage = yes("include_usage")?;
        read.continuous_usage = yes("continuous_usage_stats")?;
    }
    Ok(Some(read))
}

/// The sender's name for the request, which is a part of the answer's `id`.
fn request_id(fields: &mut Fields) -> ApiResult<Option<String>> {
    let id = fields.take::<String>("request_id", "a text")?;
    match id.as_deref().is_some_and(|id| id.is_empty() || id.len() > LONGEST_STRING) {
        true => Err(ApiError::field("request_id", format!("expected 1 to {LONGEST_STRING} bytes"))),
        false => Ok(id),
    }
}

fn truncation(fields: &mut Fields, model: &ServedModel) -> ApiResult<Option<(usize, KeptSide)>> {
    let count = fields.take::<i64>("truncate_prompt_tokens", "a whole number, or -1")?;
    let side = fields.take::<String>("truncation_side", "left or right")?;
    // The side that is cut off: of the left, the right end stays.
    let kept = match side.as_deref() {
        None | Some("left") => KeptSide::Right,
        Some("right") => KeptSide::Left,
        Some(other) => {
            let message = format!("found {other:?}, expected left or right");
            return Err(ApiError::field("truncation_side", message));
        }
    };
    match count {
        None => Ok(None),
        Some(-1) => Ok(Some((model.max_model_len, kept))),
        Some(count) if count >= 1 => Ok(Some((count as usize, kept))),
        Some(count) => {
            let message = format!("found {count}, expected -1, or 1 or more");
            Err(ApiError::field("truncate_prompt_tokens", message))
        }
    }
}
