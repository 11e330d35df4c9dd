//! Chat templates: where they come from, and how they are rendered within bounds.

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::json_value::{object_to_template, to_template, tojson};
use super::rendered::{Marks, RenderedChat, SpecialTokens, read};
use super::strftime::strftime_now;
use crate::error::{DataError, Result};

/// Templates that are known by name.
pub const BUILT_IN_TEMPLATES: [(&str, &str); 2] = [
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("vicuna_v1.1", include_str!("templates/vicuna_v1.1.jinja")),
];

/// Largest template file in bytes.
const LARGEST_SOURCE: usize = 1 << 20;
/// Largest rendered conversation in bytes.
const LARGEST_TEXT: usize = 16 << 20;
/// Instructions of the template's virtual machine for one rendering.
const FUEL: u64 = 20_000_000;
/// Deepest nesting of macros and blocks.
const DEEPEST: usize = 100;
/// Name under which a template finds the marks around what the assistant says.
const MARKS: &str = "altiplano_marks";
/// The filter that takes the place of `{% generation %}`.
const GENERATION: &str = "altiplano_generation";

/// A template that is not compiled yet, and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    /// For messages.
    pub origin: String,
    /// The template.
    pub source: String,
}

impl TemplateSource {
    /// Compiles it.
    ///
    /// # Errors
    /// As [`ChatTemplate::compile`].
    pub fn compile(&self) -> Result<ChatTemplate> {
        ChatTemplate::compile(&self.origin, &self.source)
    }
}

/// A message of a conversation, as a template sees it: `role`, `content` and what else was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(pub Map<String, Json>);

impl Message {
    /// A message of two keys.
    pub fn new(role: &str, content: &str) -> Self {
        let pairs = [("role", role), ("content", content)];
        Self(pairs.into_iter().map(|(key, value)| (key.to_owned(), Json::from(value))).collect())
    }

    /// Who speaks: `system`, `user`, `assistant`; empty when it is not said.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Json::as_str).unwrap_or_default()
    }

    /// What is said; empty when nothing is.
    pub fn content(&self) -> &str {
        self.0.get("content").and_then(Json::as_str).unwrap_or_default()
    }
}

/// How a conversation is rendered.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions {
    /// The text ends where the assistant begins to speak.
    pub add_generation_prompt: bool,
    /// The text ends with the last message, open to be continued.
    pub continue_final_message: bool,
    /// The parts that the assistant says are looked for.
    pub find_assistant: bool,
    /// Further variables: `tools`, `documents` and those that a template has of its own.
    pub variables: Map<String, Json>,
}

/// A template that was compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    /// Its file or name, for messages.
    origin: String,
    /// As it was given.
    source: String,
    marks_generation: bool,
    environment: Environment<'static>,
}

impl ChatTemplate {
    /// A template of [`BUILT_IN_TEMPLATES`], or the file of that path.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] when it does not compile or the name is neither; [`DataError::Io`] when the
    /// file cannot be read.
    pub fn open(name: &str) -> Result<Self> {
        if let Some((name, source)) = BUILT_IN_TEMPLATES.iter().find(|(known, _)| *known == name) {
            return Self::compile(name, source);
        }
        let path = Path::new(name);
        let looks_like_a_name = !name.contains(['/', '\\']) && path.extension().is_none();
        if !path.exists() && (looks_like_a_name || name.starts_with("vicuna")) {
            let reason = match name {
                "vicuna_v0" | "vicuna" => {
                    "is not supported: weights of that time used `### Human:` and `### Assistant:`; \
                     those of today use vicuna_v1.1"
                }
                _ => "is neither a file nor a built-in template: alpaca, vicuna_v1.1",
            };
            return Err(failed(name, None, reason));
        }
        let source = std::fs::read(path).map_err(DataError::io(path))?;
        let source = String::from_utf8(source)
            .map_err(|error| failed(name, None, format!("not UTF-8: {error}")))?;
        Self::compile(name, &source)
    }

    /// Compiles a template; `origin` is its file or name, for messages.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] with the line when it is not a template.
    pub fn compile(origin: &str, source: &str) -> Result<Self> {
        if source.len() > LARGEST_SOURCE {
            let reason = format!("{} bytes, the limit is {LARGEST_SOURCE}", source.len());
            return Err(failed(origin, None, reason));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| template_error(origin, &error))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEEPEST);
        environment.set_unknown_method_callback(pycompat::unknown_method_callback);
        environment.add_filter("tojson", |value: Value, indent: Option<usize>, more: Kwargs| {
            tojson(&value, indent, more)
        });
        environment.add_filter(GENERATION, |state: &State, said: String| {
            let marks = state.lookup(MARKS).and_then(|marks| marks.to_str()).unwrap_or_default();
            let mut marks = marks.chars();
            let [open, close] =
                [(); 2].map(|()| marks.next().map(String::from).unwrap_or_default());
            format!("{open}{said}{close}")
        });
        environment.add_function("raise_exception", |reason: String| {
            Err::<Value, Error>(Error::new(ErrorKind::InvalidOperation, reason))
        });
        environment.add_function("strftime_now", |format: String| {
            strftime_now(&format).map_err(|reason| Error::new(ErrorKind::InvalidOperation, reason))
        });
        let compiled = without_generation_tags(source);
        let marks_generation = matches!(compiled, Cow::Owned(_));
        environment
            .add_template_owned("chat_template", compiled.into_owned())
            .map_err(|error| template_error(origin, &error))?;
        let (origin, source) = (origin.to_owned(), source.to_owned());
        Ok(Self { origin, source, marks_generation, environment })
    }

    /// The template in a `tokenizer_config.json`: a string, or of a list of named ones that of `name`,
    /// `default` by default. None when there is no `chat_template`.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] when the key is of another shape or there is no template of that name.
    pub fn in_tokenizer_config(
        path: &Path,
        config: &Json,
        name: Option<&str>,
    ) -> Result<Option<TemplateSource>> {
        let origin = format!("{}: chat_template", path.display());
        let list = match config.get("chat_template") {
            None | Some(Json::Null) => return Ok(None),
            Some(Json::String(source)) => {
                return Ok(Some(TemplateSource { origin, source: source.clone() }));
            }
            Some(Json::Array(list)) => list,
            Some(_) => {
                let reason = "found neither a string nor a list of named ones";
                return Err(failed(&origin, None, reason));
            }
        };
        let wanted = name.unwrap_or("default");
        let named = list.iter().filter_map(|entry| {
            Some((entry.get("name")?.as_str()?, entry.get("template")?.as_str()?))
        });
        let named: Vec<(&str, &str)> = named.collect();
        match named.iter().find(|(known, _)| *known == wanted) {
            Some((name, source)) => Ok(Some(TemplateSource {
                origin: format!("{origin} {name:?}"),
                source: (*source).to_owned(),
            })),
            None => {
                let known: Vec<&str> = named.iter().map(|(name, _)| *name).collect();
                let known = known.join(", ");
                let reason = format!("no template {wanted:?}; there are: {known}");
                Err(failed(&origin, None, reason))
            }
        }
    }

    /// The template as it was given, for the `tokenizer_config.json` of a model that was trained on it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] with the line and what the template says: an exception of its own, too
    /// much work or too much text; with `find_assistant`, a template without `{% generation %}` whose
    /// texts do not begin with each other.
    pub fn render(
        &self,
        messages: &[Message],
        specials: &SpecialTokens,
        options: &RenderOptions,
    ) -> Result<RenderedChat> {
        let mut rendered = self.render_once(messages, specials, options)?;
        if options.find_assistant && !self.marks_generation {
            rendered.assistant =
                self.assistant_by_prefixes(messages, specials, options, &rendered)?;
        }
        Ok(rendered)
    }

    fn render_once(
        &self,
        messages: &[Message],
        specials: &SpecialTokens,
        options: &RenderOptions,
    ) -> Result<RenderedChat> {
        let mut texts = vec![self.source.as_str()];
        messages.iter().for_each(|message| strings_of_object(&message.0, &mut texts));
        strings_of_object(&options.variables, &mut texts);
        let Some(marks) = Marks::unused(texts.into_iter()) else {
            let reason = "the conversation has too many of the characters U+FDD0 to U+FDEF, which no \
                          text should have";
            return Err(failed(&self.origin, None, reason));
        };
        let guard = |text: &str| marks.guarded(text, specials);
        let last = messages.len().saturating_sub(1);
        let conversation = messages.iter().enumerate().map(|(index, message)| {
            if options.continue_final_message && index == last {
                let mut open = message.0.clone();
                let content = format!("{}{}", message.content(), marks.end);
                open.insert("content".to_owned(), Json::from(content));
                object_to_template(&open, &guard)
            } else {
                object_to_template(&message.0, &guard)
            }
        });
        let mut variables: Vec<(String, Value)> = options
            .variables
            .iter()
            .map(|(key, value)| (key.clone(), to_template(value, &guard)))
            .collect();
        let name = |token: &Option<String>| Value::from(token.clone().unwrap_or_default());
        let marked = String::from_iter([marks.open, marks.close]);
        variables.extend([
            ("messages".to_owned(), conversation.collect()),
            ("bos_token".to_owned(), name(&specials.bos)),
            ("eos_token".to_owned(), name(&specials.eos)),
            ("add_generation_prompt".to_owned(), Value::from(options.add_generation_prompt)),
            (MARKS.to_owned(), Value::from(marked)),
        ]);
        let context = Value::from_pairs(variables);
        let mut out = Bounded { bytes: Vec::new(), limit: LARGEST_TEXT };
        let rendered = self
            .environment
            .get_template("chat_template")
            .and_then(|template| template.render_captured_to(context, &mut out).map(drop));
        if let Err(error) = rendered {
            if out.bytes.len() >= LARGEST_TEXT {
                let reason = format!("gives more than {LARGEST_TEXT} bytes of text");
                return Err(failed(&self.origin, error.line(), reason));
            }
            return Err(template_error(&self.origin, &error));
        }
        let raw = String::from_utf8(out.bytes)
            .map_err(|error| failed(&self.origin, None, error.to_string()))?;
        read(&raw, marks, specials, options.continue_final_message).ok_or_else(|| {
            failed(&self.origin, None, "leaves out the message that should be continued")
        })
    }

    /// What the assistant says, without marks of the template: the text with the conversation up to a
    /// message and the generation prompt is the beginning of the text up to and with the message; the
    /// difference is the response.
    fn assistant_by_prefixes(
        &self,
        messages: &[Message],
        specials: &SpecialTokens,
        options: &RenderOptions,
        whole: &RenderedChat,
    ) -> Result<Vec<std::ops::Range<usize>>> {
        let mut spans = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if message.role() != "assistant" {
                continue;
            }
            let upto = |count: usize, prompt: bool| {
                let options = RenderOptions {
                    add_generation_prompt: prompt,
                    continue_final_message: false,
                    ..options.clone()
                };
                self.render_once(&messages[..count], specials, &options)
            };
            let before = upto(index, true)?.text;
            let with = match index + 1 == messages.len() {
                // The message that is open ends the text.
                true if options.continue_final_message => whole.text.clone(),
                _ => upto(index + 1, false)?.text,
            };
            if !with.starts_with(&before) || !whole.text.starts_with(&with) {
                let reason = format!(
                    "what the assistant says cannot be told from the rest: {before:?} is not the \
                     beginning of {with:?}, or that not of the whole conversation; put {{% generation %}} \
                     and {{% endgeneration %}} around it"
                );
                return Err(failed(&self.origin, None, reason));
            }
            spans.push(before.len()..with.len());
        }
        Ok(spans)
    }
}

/// Every string of an object and of what is in it, names too.
fn strings_of_object<'a>(object: &'a Map<String, Json>, out: &mut Vec<&'a str>) {
    for (key, value) in object {
        out.push(key);
        strings(value, out);
    }
}

fn strings<'a>(json: &'a Json, out: &mut Vec<&'a str>) {
    match json {
        Json::String(text) => out.push(text),
        Json::Array(values) => values.iter().for_each(|value| strings(value, out)),
        Json::Object(object) => strings_of_object(object, out),
        _ => {}
    }
}

/// `{% generation %}` is a tag of Hugging Face's own; as a filter block it is Jinja's.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    static TAG: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let Some(tag) = &*TAG else {
        return Cow::Borrowed(source);
    };
    tag.replace_all(source, |found: &regex::Captures<'_>| {
        let (left, right) = (&found[1], &found[3]);
        match found.get(2) {
            None => format!("{{%{left} filter {GENERATION} {right}%}}"),
            Some(_) => format!("{{%{left} endfilter {right}%}}"),
        }
    })
}

/// Text up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.limit - self.bytes.len();
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room {
            return Err(io::Error::other("too much text"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(origin: &str, line: Option<usize>, reason: impl Into<String>) -> DataError {
    let line = line.map(|line| format!(" line {line}:")).unwrap_or_default();
    DataError::ChatTemplate { template: origin.to_owned(), line, reason: reason.into() }
}

/// An error of the template engine, with the line.
fn template_error(origin: &str, error: &Error) -> DataError {
    let reason = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("takes more than {FUEL} steps"),
        // What the template itself says.
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    failed(origin, error.line(), reason)
}
