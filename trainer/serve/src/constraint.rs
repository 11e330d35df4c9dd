//! What may follow, by grammar and by words that may not appear.
//!
//! Grammars are compiled by llguidance over the pieces of the tokenizer: JSON schemas, regular
//! expressions, lists of choices, and grammars in Lark's form.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use altiplano_data::tokenizer::PieceType;
use altiplano_model::infer::TokenConstraint;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult, ServeError};
use crate::served_model::ServedModel;

/// Largest schema, grammar or regular expression in bytes.
const LARGEST_GRAMMAR: usize = 64 << 10;
/// Most bytes of a regular expression, in a schema too: compiling takes time in the square of it, half
/// a second for this.
const LARGEST_REGEX: usize = 4 << 10;

/// What an answer has to look like.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerForm {
    /// Any JSON object.
    JsonObject,
    /// JSON of a schema.
    JsonSchema(Value),
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in Lark's form.
    Lark(String),
}

/// What an answer has to look like, and the field that says so.
#[derive(Debug, Clone, PartialEq)]
pub struct AskedForm {
    /// `response_format` or `structured_outputs`.
    pub field: &'static str,
    /// What it says.
    pub form: AnswerForm,
}

impl AnswerForm {
    /// Reads OpenAI's `response_format`; None for plain text.
    ///
    /// # Errors
    /// 400 when it is of another shape.
    pub fn of_response_format(format: &Value) -> ApiResult<Option<Self>> {
        let wrong = |message: &str| Err(ApiError::field("response_format", message));
        match format.get("type").and_then(Value::as_str) {
            Some("text") => Ok(None),
            Some("json_object") => Ok(Some(Self::JsonObject)),
            Some("json_schema") => {
                match format.get("json_schema").and_then(|named| named.get("schema")) {
                    Some(schema) => Ok(Some(Self::JsonSchema(schema.clone()))),
                    None => {
                        wrong("json_schema needs {\"json_schema\": {\"name\": …, \"schema\": {…}}}")
                    }
                }
            }
            _ => wrong("expected {\"type\": …} with text, json_object or json_schema"),
        }
    }

    /// Reads vLLM's `structured_outputs`.
    ///
    /// # Errors
    /// 400 when it is of another shape.
    pub fn of_structured_outputs(outputs: &Value) -> ApiResult<Option<Self>> {
        let wrong = |message: String| ApiError::field("structured_outputs", message);
        let object = outputs.as_object().ok_or_else(|| wrong("expected an object".into()))?;
        let mut forms = Vec::new();
        for (key, value) in object.iter().filter(|(_, value)| !value.is_null()) {
            let text = || value.as_str().map(str::to_owned);
            let form = match key.as_str() {
                "json" => match value {
                    // The schema may be given as a text.
                    Value::String(text) => serde_json::from_str(text).ok().map(Self::JsonSchema),
                    schema => Some(Self::JsonSchema(schema.clone())),
                },
                "json_object" => {
                    value.as_bool().and_then(|wanted| wanted.then_some(Self::JsonObject))
                }
                "regex" => text().map(Self::Regex),
                "grammar" => text().map(Self::Lark),
                "choice" => {
                    let list = value.as_array().filter(|list| !list.is_empty());
                    let texts = list.map(|list| {
                        list.iter().map(|choice| choice.as_str().map(str::to_owned)).collect()
                    });
                    texts.flatten().map(Self::Choice)
                }
                other => {
                    let known = "json, json_object, regex, choice and grammar";
                    return Err(wrong(format!("{other}: not supported; there are {known}")));
                }
            };
            forms.push(
                form.ok_or_else(|| wrong(format!("{key}: found {value}, which does not fit")))?,
            );
        }
        match forms.len() {
            0 => Ok(None),
            1 => Ok(forms.pop()),
            _ => Err(wrong("expected one of json, json_object, regex, choice and grammar".into())),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }

    /// Bytes of the longest regular expression. A grammar in Lark's form counts as one.
    fn longest_regex(&self) -> usize {
        match self {
            Self::JsonObject | Self::Choice(_) => 0,
            Self::JsonSchema(schema) => longest_text(schema),
            Self::Regex(text) | Self::Lark(text) => text.len(),
        }
    }

    fn grammar(&self) -> TopLevelGrammar {
        match self {
            Self::JsonObject => {
                TopLevelGrammar::from_json_schema(compact(&json!({"type": "object"})))
            }
            Self::JsonSchema(schema) => TopLevelGrammar::from_json_schema(compact(schema)),
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(texts) => {
                // JSON's way to write a text is Lark's too.
                let texts: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
                TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        }
    }
}

/// A schema whose JSON has no white space between its parts, unless the schema says otherwise: a small
/// model may write nothing else until its tokens are used up.
fn compact(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Value::Object(keys) = &mut schema
        && !keys.contains_key(GUIDANCE)
    {
        keys.insert(GUIDANCE.to_owned(), json!({"whitespace_flexible": false}));
    }
    schema
}

/// Bytes of the longest text in a schema: patterns are some of them.
fn longest_text(schema: &Value) -> usize {
    match schema {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(longest_text).max().unwrap_or(0),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| key.len().max(longest_text(value))).max().unwrap_or(0)
        }
        _ => 0,
    }
}

/// The key under which a schema says how llguidance writes JSON.
const GUIDANCE: &str = "x-guidance";

/// Compiles grammars over one vocabulary.
pub struct Grammars {
    factory: OnceLock<Result<ParserFactory, String>>,
    /// Held while a grammar is compiled: one at a time, because each may take much memory.
    compiling: Mutex<()>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammars")
    }
}

impl Default for Grammars {
    /// The vocabulary is prepared with the first grammar.
    fn default() -> Self {
        Self { factory: OnceLock::new(), compiling: Mutex::default() }
    }
}

impl Grammars {
    /// Compiles what an answer has to look like.
    ///
    /// # Errors
    /// 400 when it is too large or not a grammar; 500 when the vocabulary cannot be used.
    pub fn compile(
        &self,
        model: &ServedModel,
        AskedForm { field: name, form }: &AskedForm,
    ) -> ApiResult<Box<dyn TokenConstraint>> {
        let size = form.size();
        if size > LARGEST_GRAMMAR {
            let message =
                format!("{size} bytes of schema or grammar, the limit is {LARGEST_GRAMMAR}");
            return Err(ApiError::field(name, message));
        }
        let longest = form.longest_regex();
        if longest > LARGEST_REGEX {
            let message =
                format!("{longest} bytes of regular expression, the limit is {LARGEST_REGEX}");
            return Err(ApiError::field(name, message));
        }
        let _one = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let factory =
            self.factory.get_or_init(|| factory(model).map_err(|error| error.to_string()));
        let factory = factory.as_ref().map_err(|error| ApiError::internal(error.clone()))?;
        let mut matcher = Matcher::new(factory.create_parser(form.grammar()));
        if let Some(error) = matcher.get_error() {
            return Err(ApiError::field(name, first_line(&error)));
        }
        // What cannot begin can never be answered.
        matcher
            .compute_mask_or_eos()
            .map_err(|error| ApiError::field(name, first_line(&error.to_string())))?;
        Ok(Box::new(Grammar { matcher, eos: model.eos_token_ids.clone() }))
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The pieces as llguidance reads them: bytes, and special tokens behind its mark.
fn factory(model: &ServedModel) -> Result<ParserFactory, ServeError> {
    let unfit = |reason: String| ServeError::Vocabulary { reason };
    let tokenizer = &model.tokenizer;
    let special = |name: &str| {
        let mut bytes = vec![TokTrie::SPECIAL_TOKEN_MARKER];
        bytes.extend_from_slice(name.as_bytes());
        bytes
    };
    let words: Vec<Vec<u8>> = (0..model.vocab_size as u32)
        .map(|id| match tokenizer.piece(id) {
            Some(piece) if piece.kind == PieceType::Control => special(&piece.text),
            Some(piece) if piece.kind == PieceType::Unknown => special("<unk>"),
            Some(_) => model.token_bytes(id),
            None => special(&format!("<unused {id}>")),
        })
        .collect();
    let eos = model.eos_token_ids.first().copied();
    let eos =
        eos.ok_or_else(|| unfit("there is no end token, so a grammar could not end".into()))?;
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, eos), &words);
    let trie = trie.with_eos_tokens(&model.eos_token_ids);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory =
        ParserFactory::new_simple(&environment).map_err(|error| unfit(error.to_string()))?;
    factory.quiet().limits_mut().verbose_errors = false;
    Ok(factory)
}

struct Grammar {
    matcher: Matcher,
    eos: Vec<u32>,
}

impl TokenConstraint for Grammar {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= allowed.len() || !allowed.get(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        if self.matcher.is_stopped() && self.eos.contains(&id) {
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|error| error.to_string())
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self { matcher: self.matcher.deep_clone(), eos: self.eos.clone() })
    }
}

/// Words, as ids, that an answer may not have.
#[derive(Debug, Clone)]
pub struct BadWords {
    words: Vec<Vec<u32>>,
    chosen: Vec<u32>,
}

impl BadWords {
    /// Forbids the ids of `words`.
    pub fn new(words: Vec<Vec<u32>>) -> Self {
        Self {
            words: words.into_iter().filter(|word| !word.is_empty()).collect(),
            chosen: Vec::new(),
        }
    }
}

impl TokenConstraint for BadWords {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        for word in &self.words {
            if let Some((last, beginning)) = word.split_last()
                && self.chosen.ends_with(beginning)
                && let Some(logit) = logits.get_mut(*last as usize)
            {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        self.chosen.push(id);
        Ok(())
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

/// Two constraints that hold together.
pub struct Both(pub Box<dyn TokenConstraint>, pub Box<dyn TokenConstraint>);

impl TokenConstraint for Both {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), String> {
        self.0.mask(logits)?;
        self.1.mask(logits)
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        self.0.accept(id)?;
        self.1.accept(id)
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(Self(self.0.fork(), self.1.fork()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_word_is_barred_only_where_it_would_be_completed() {
        let mut words = BadWords::new(vec![vec![1, 2], vec![3]]);
        let barred = |words: &mut BadWords| {
            let mut logits = [0.0; 4];
            words.mask(&mut logits).map(|()| logits.map(|logit| logit == f32::NEG_INFINITY))
        };
        assert_eq!(barred(&mut words), Ok([false, false, false, true]));
        assert_eq!(words.accept(1), Ok(()));
        assert_eq!(barred(&mut words), Ok([false, false, true, true]));
        assert_eq!(words.accept(0), Ok(()));
        assert_eq!(barred(&mut words), Ok([false, false, false, true]));
    }

    #[test]
    fn forms_are_read_and_others_are_named() {
        let format = |value| AnswerForm::of_response_format(&value);
        assert_eq!(format(json!({"type": "text"})), Ok(None));
        assert_eq!(format(json!({"type": "json_object"})), Ok(Some(AnswerForm::JsonObject)));
        assert!(format(json!({"type": "json_schema"})).is_err());
        let outputs = |value| AnswerForm::of_structured_outputs(&value);
        assert_eq!(outputs(json!({"regex": "a+"})), Ok(Some(AnswerForm::Regex("a+".into()))));
        assert_eq!(
            outputs(json!({"choice": ["a", "b"]})),
            Ok(Some(AnswerForm::Choice(vec!["a".into(), "b".into()])))
        );
        assert!(outputs(json!({"choice": [1]})).is_err());
        assert!(outputs(json!({"regex": "a", "grammar": "b"})).is_err());
        assert!(
            outputs(json!({"backend": "x"})).is_err_and(|error| error.message.contains("backend"))
        );
    }
}
