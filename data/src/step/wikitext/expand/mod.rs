//! Templates of the dump itself, expanded as MediaWiki does: by their wikitext and its parser functions.
//!
//! This comes before the markup is taken out and makes wikitext of wikitext: a call is replaced by what
//! its template gives, so tables and boxes that come out of it go as those of the page do. A rule for a
//! template ([`Rules`]) counts more than its definition; what neither a rule nor a definition makes
//! words of stays a call, which is then counted as lost.
//!
//! Depth, steps and bytes of a call and of a page are bounded, and counted without a clock, so the
//! result is the same everywhere. The current time is that of the page's revision.

mod dates;
mod definitions;
mod expression;
mod functions;
mod magic_words;
mod numbers;
mod parse;
mod placing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use self::functions::Function;
use self::parse::{Node, Parsed, Part};
use super::templates::{Rendered, Rules, render};
use crate::error::DataError;
use crate::text::wikipedia::WikiNames;

pub(super) use self::definitions::Definitions;

/// Deepest nesting of templates, that of MediaWiki.
const MOST_TEMPLATES_DEEP: usize = 40;
/// Deepest nesting of anything that is evaluated.
const MOST_DEEP: usize = 240;
/// Parts of wikitext evaluated for one call of the page, and for all.
const CALL_STEPS: usize = 200_000;
const PAGE_STEPS: usize = 2_000_000;
/// Bytes written for one call of the page, those in between counted too, and for all.
const CALL_BYTES: usize = 2 << 20;
const PAGE_BYTES: usize = 16 << 20;
/// Bytes of a template's definition that count as one step.
const STEP_BYTES: usize = 64;

/// The page that is expanded.
#[derive(Clone, Copy)]
pub(super) struct Environment<'a> {
    /// What templates print.
    pub rules: &'a Rules,
    /// Names of the page's language.
    pub names: &'a WikiNames,
    /// The templates of the dump, if there are any.
    pub definitions: Option<&'a Definitions>,
    /// Language of the page; empty when it is not known.
    pub language: &'a str,
    /// Title of the page.
    pub title: &'a str,
    /// When the page was changed.
    pub stamp: Option<&'a str>,
}

/// A page with its templates expanded.
#[derive(Debug, Default)]
pub(super) struct Expanded {
    /// Wikitext.
    pub text: String,
    /// Calls that a definition was found for.
    pub templates: u64,
    /// Of those, tables and boxes, which were taken out.
    pub boxes: u64,
}

/// Why a call is not expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// Something that is not known here decides what it gives: code in Lua, data of other sites.
    Unknown,
    /// It is too deep, too long or takes too many steps.
    Exhausted,
}

/// Expands the templates of `page`.
///
/// # Errors
/// When the index of templates cannot be read.
pub(super) fn expand(page: &str, environment: Environment<'_>) -> Result<Expanded, DataError> {
    let mut expander = Expander {
        environment,
        page_steps: PAGE_STEPS,
        page_bytes: PAGE_BYTES,
        steps: 0,
        bytes: 0,
        depth: 0,
        left: 0,
        expanded: 0,
        active: Vec::new(),
        error: None,
    };
    let parsed = Parsed::of_page(page.to_owned());
    let expanded = expander.page(&parsed);
    expander.error.map_or(Ok(expanded), Err)
}

struct Expander<'a> {
    environment: Environment<'a>,
    /// What is left of the page's share.
    page_steps: usize,
    page_bytes: usize,
    /// What is left of that of the call.
    steps: usize,
    bytes: usize,
    depth: usize,
    /// Calls inside templates that stayed calls.
    left: usize,
    /// Templates whose definition was used.
    expanded: usize,
    /// Templates that are being expanded, by name.
    active: Vec<String>,
    error: Option<DataError>,
}

/// Where wikitext is evaluated: the page, or a template with its arguments.
#[derive(Clone, Copy)]
struct Frame<'f> {
    parsed: &'f Parsed,
    /// None on the page itself.
    arguments: Option<&'f HashMap<String, String>>,
}

/// A call with its arguments evaluated.
struct Call {
    title: String,
    parts: Vec<(Option<String>, String)>,
}

impl Call {
    /// The call as wikitext without its braces, and where its `|` are.
    fn body(&self) -> (String, Vec<usize>) {
        let mut text = self.title.clone();
        let mut pipes = Vec::new();
        // A `|` or `=` that came out of an argument must not part it.
        let number = self.parts.iter().any(|(name, value)| name.is_none() && value.contains('='));
        let mut count = 0;
        for (name, value) in &self.parts {
            pipes.push(text.len());
            text.push('|');
            match name {
                Some(name) => {
                    text.push_str(name);
                    text.push('=');
                }
                None => {
                    count += 1;
                    if number {
                        text += &format!("{count}=");
                    }
                }
            }
            push_protected(value, &mut text);
        }
        (text, pipes)
    }
}

/// Appends the value of an argument; a `|` outside of links and calls as a character reference.
fn push_protected(value: &str, text: &mut String) {
    let mut depth = 0usize;
    let mut before = '\0';
    for c in value.chars() {
        match c {
            '[' | '{' if before == c => depth += 1,
            ']' | '}' if before == c => depth = depth.saturating_sub(1),
            _ => {}
        }
        match c {
            '|' if depth == 0 => text.push_str("&#124;"),
            c => text.push(c),
        }
        before = c;
    }
}

impl Expander<'_> {
    /// Evaluates one call of the page with a share of its own.
    fn begin_call(&mut self) {
        self.steps = CALL_STEPS.min(self.page_steps);
        self.bytes = CALL_BYTES.min(self.page_bytes);
        self.depth = 0;
        self.active.clear();
    }

    fn step(&mut self, steps: usize) -> Result<(), Failure> {
        self.page_steps = self.page_steps.saturating_sub(steps);
        self.steps = self.steps.checked_sub(steps).ok_or(Failure::Exhausted)?;
        Ok(())
    }

    fn push(&mut self, text: &str, out: &mut String) -> Result<(), Failure> {
        self.page_bytes = self.page_bytes.saturating_sub(text.len());
        self.bytes = self.bytes.checked_sub(text.len()).ok_or(Failure::Exhausted)?;
        out.push_str(text);
        Ok(())
    }

    fn text_of(&mut self, nodes: &[Node], frame: Frame<'_>) -> Result<String, Failure> {
        let mut text = String::new();
        self.nodes(nodes, frame, &mut text)?;
        Ok(text)
    }

    /// As [`Expander::text_of`], for what something depends on: a call that stays a call is not known.
    fn known(&mut self, nodes: &[Node], frame: Frame<'_>) -> Result<String, Failure> {
        let left = self.left;
        let text = self.text_of(nodes, frame)?;
        if self.left == left { Ok(text) } else { Err(Failure::Unknown) }
    }

    fn nodes(&mut self, nodes: &[Node], frame: Frame<'_>, out: &mut String) -> Result<(), Failure> {
        if self.depth >= MOST_DEEP {
            return Err(Failure::Exhausted);
        }
        self.depth += 1;
        let mut nodes = nodes.iter();
        let result = nodes.try_for_each(|node| self.node(node, frame, out));
        self.depth -= 1;
        result
    }

    fn node(&mut self, node: &Node, frame: Frame<'_>, out: &mut String) -> Result<(), Failure> {
        self.step(1)?;
        match node {
            Node::Text(range) => self.push(&frame.parsed.text[range.clone()], out),
            Node::Parameter { name, default, source } => {
                let Some(arguments) = frame.arguments else {
                    return self.push(&frame.parsed.text[source.clone()], out);
                };
                let name = self.known(name, frame)?;
                match (arguments.get(name.trim()), default) {
                    (Some(value), _) => self.push(value, out),
                    (None, Some(default)) => self.nodes(default, frame, out),
                    (None, None) => self.push(&format!("{{{{{{{name}}}}}}}"), out),
                }
            }
            Node::Call { title, parts, source } => {
                let written = title;
                let title = self.known(title, frame)?;
                let title = without_substitution(title.trim());
                if parts.is_empty()
                    && let Some(value) = magic_words::variable(title, &self.environment)
                {
                    return self.push(&value, out);
                }
                if let Some((name, argument)) = title.split_once(':')
                    && let Some(function) = Function::of(name)
                {
                    return self.function(function, argument, parts, frame, out);
                }
                if title.starts_with('#') {
                    return Err(Failure::Unknown);
                }
                let plain = |nodes: &[Node]| nodes.iter().all(|n| matches!(n, Node::Text(_)));
                let plain = plain(written)
                    && parts.iter().all(|part| {
                        plain(&part.value) && part.name.as_ref().is_none_or(|name| plain(name))
                    });
                let source = &frame.parsed.text[source.clone()];
                self.template(title, parts, source, plain, frame, out)
            }
        }
    }

    /// A call of a template. `source` is the call as it is written, `plain` when nothing in it is to be
    /// evaluated.
    fn template(
        &mut self,
        title: &str,
        parts: &[Part],
        source: &str,
        plain: bool,
        frame: Frame<'_>,
        out: &mut String,
    ) -> Result<(), Failure> {
        let Environment { rules, names, language, .. } = self.environment;
        let on_page = frame.arguments.is_none();
        let rule = rules.find(title).map(|(format, _)| format);
        if rule.is_some_and(|format| format.is_nothing()) {
            return if on_page { self.push(source, out) } else { Ok(()) };
        }
        let stays = names.is_disambiguation(title) || placing::is_box_name(title);
        let definition = if stays { None } else { self.definition(language, title) };
        if definition.is_none() && rule.is_none() && on_page {
            self.left += 1;
            return self.push(source, out);
        }
        let call = self.evaluated(title, parts, frame)?;
        let (body, pipes) = call.body();
        let literal = if plain && on_page { source.to_owned() } else { format!("{{{{{body}}}}}") };
        let prints =
            rule.is_some() && render(rules, &body, title, &pipes, 0, "") != Rendered::Unknown;
        if prints {
            return self.push(&literal, out);
        }
        let is_active = self.active.iter().any(|active| active == title);
        let definition =
            definition.filter(|_| !is_active && self.active.len() < MOST_TEMPLATES_DEEP);
        let expanded = match definition {
            Some(definition) => match self.body_of(&definition, call) {
                Err(Failure::Unknown) => None,
                expanded => Some(expanded?),
            },
            None => None,
        };
        match expanded {
            Some(text) => {
                self.expanded += 1;
                if begins_a_line(&text) && !out.is_empty() && !out.ends_with('\n') {
                    self.push("\n", out)?;
                }
                self.push(&text, out)
            }
            None => {
                self.left += 1;
                self.push(if on_page { source } else { &literal }, out)
            }
        }
    }

    fn definition(&mut self, language: &str, name: &str) -> Option<std::sync::Arc<Parsed>> {
        match self.environment.definitions?.get(language, name) {
            Ok(definition) => definition,
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    fn evaluated(
        &mut self,
        title: &str,
        parts: &[Part],
        frame: Frame<'_>,
    ) -> Result<Call, Failure> {
        let mut call = Call { title: title.to_owned(), parts: Vec::with_capacity(parts.len()) };
        for part in parts {
            let name = match &part.name {
                Some(name) => Some(self.known(name, frame)?),
                None => None,
            };
            let value = self.text_of(&part.value, frame)?;
            call.parts.push((name, value));
        }
        Ok(call)
    }

    /// What the template gives for the arguments of `call`: those without a name keep their white
    /// space, those with one lose it, and of several with one name the last counts.
    fn body_of(&mut self, definition: &Parsed, call: Call) -> Result<String, Failure> {
        self.step(1 + definition.text.len() / STEP_BYTES)?;
        let mut arguments = HashMap::with_capacity(call.parts.len());
        let mut number = 0;
        for (name, value) in call.parts {
            let (name, value) = match name {
                Some(name) => (name.trim().to_owned(), value.trim().to_owned()),
                None => {
                    number += 1;
                    (number.to_string(), value)
                }
            };
            arguments.insert(name, value);
        }
        self.active.push(call.title);
        let frame = Frame { parsed: definition, arguments: Some(&arguments) };
        let text = self.text_of(&definition.nodes, frame);
        self.active.pop();
        text
    }
}

/// `title` without the words that have it put in when a page is saved.
fn without_substitution(title: &str) -> &str {
    for prefix in ["subst:", "safesubst:", "msg:", "msgnw:"] {
        if let Some(start) = title.get(..prefix.len())
            && start.eq_ignore_ascii_case(prefix)
        {
            return title[prefix.len()..].trim_start();
        }
    }
    title
}

/// Whether wikitext means something at the beginning of a line alone: MediaWiki begins one for it.
fn begins_a_line(text: &str) -> bool {
    text.starts_with("{|") || text.starts_with([':', ';', '#', '*'])
}
