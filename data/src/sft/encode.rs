//! An example as token ids, and which of them are trained.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chat::{ChatTemplate, Message, RenderOptions, Segment, SpecialTokens};
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// Which tokens of an example are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// What the assistant says, and the end token behind it.
    #[default]
    Responses,
    /// Everything but the begin token.
    All,
}

/// An example as a model sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedExample {
    /// Token ids, at most `max_length`.
    pub ids: Vec<u32>,
    /// Places in `ids` of the tokens that are trained, in order.
    pub trained: Vec<Range<usize>>,
    /// Bytes of text that the trained tokens stand for; end tokens have none.
    pub trained_bytes: u64,
    /// Tokens that were cut off the end.
    pub cut: u64,
    /// Tokens that begin before a response and end in it. They are not trained.
    pub straddling: u64,
}

impl EncodedExample {
    /// Tokens that are trained.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().map(Range::len).sum()
    }

    fn push(&mut self, id: u32, trained: bool) {
        if trained {
            let at = self.ids.len();
            match self.trained.last_mut() {
                Some(last) if last.end == at => last.end += 1,
                _ => self.trained.push(at..at + 1),
            }
        }
        self.ids.push(id);
    }
}

/// Turns conversations into ids by a template and a tokenizer.
#[derive(Debug)]
pub struct ExampleEncoder<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    specials: SpecialTokens,
    /// Whether the template has a place of its own for the `input` of an Alpaca record.
    has_input: bool,
    max_length: usize,
    train_on: TrainOn,
}

impl<'a> ExampleEncoder<'a> {
    /// An encoder of examples of at most `max_length` tokens.
    pub fn new(
        tokenizer: &'a Tokenizer,
        template: &'a ChatTemplate,
        max_length: usize,
        train_on: TrainOn,
    ) -> Self {
        let specials = SpecialTokens::of(tokenizer);
        let spellings = ["message.input", "message['input']", "message[\"input\"]"];
        let has_input = spellings.iter().any(|place| template.source().contains(place));
        Self { tokenizer, template, specials, has_input, max_length, train_on }
    }

    /// The ids of a conversation of rounds. Where the template has no place for an `input`, it follows
    /// its instruction behind an empty line.
    ///
    /// # Errors
    /// When the template refuses the conversation or the tokenizer cannot encode it.
    pub fn encode(&self, messages: &[Message]) -> Result<EncodedExample> {
        let joined: Vec<Message>;
        let messages = match self.has_input || messages.iter().all(|m| !m.0.contains_key("input")) {
            true => messages,
            false => {
                joined = messages.iter().map(with_input_joined).collect();
                &joined
            }
        };
        let options = RenderOptions { find_assistant: true, ..RenderOptions::default() };
        let rendered = self.template.render(messages, &self.specials, &options)?;
        let mut said = Responses { ranges: &rendered.assistant };
        let mut example = EncodedExample::default();
        for segment in &rendered.segments {
            match segment {
                Segment::Special { bytes, id } => {
                    if self.is_full(&mut example, 1) {
                        continue;
                    }
                    let trained = match self.train_on {
                        TrainOn::Responses => said.has(bytes.start),
                        TrainOn::All => Some(*id) != self.tokenizer.bos_id(),
                    };
                    example.push(*id, trained);
                }
                Segment::Text(range) => {
                    let tokens = self.tokenizer.encode_with_spans(&rendered.text[range.clone()])?;
                    for token in tokens {
                        if self.is_full(&mut example, 1) {
                            continue;
                        }
                        let begin = range.start + token.bytes.start;
                        let end = range.start + token.bytes.end;
                        let in_response = said.has(begin);
                        if !in_response && said.begins_within(begin, end) {
                            example.straddling += 1;
                        }
                        let trained = in_response || self.train_on == TrainOn::All;
                        if trained {
                            example.trained_bytes += (end - begin) as u64;
                        }
                        example.push(token.id, trained);
                    }
                }
            }
        }
        Ok(example)
    }

    /// Whether the example has `max_length` tokens already; then `more` are cut.
    fn is_full(&self, example: &mut EncodedExample, more: u64) -> bool {
        let full = example.ids.len() >= self.max_length;
        if full {
            example.cut += more;
        }
        full
    }
}

/// The message with its `input` behind its instruction.
fn with_input_joined(message: &Message) -> Message {
    let mut joined = message.clone();
    if let Some(Value::String(input)) = joined.0.remove("input") {
        let content = format!("{}\n\n{input}", message.content());
        joined.0.insert("content".to_owned(), Value::from(content));
    }
    joined
}

/// What the assistant says, gone through from the beginning of the text to its end.
struct Responses<'a> {
    ranges: &'a [Range<usize>],
}

impl Responses<'_> {
    /// Leaves behind the responses that end at or before `at`.
    fn go_to(&mut self, at: usize) {
        while self.ranges.first().is_some_and(|range| range.end <= at) {
            self.ranges = &self.ranges[1..];
        }
    }

    /// Whether byte `at` is in a response. Places are asked for in order.
    fn has(&mut self, at: usize) -> bool {
        self.go_to(at);
        self.ranges.first().is_some_and(|range| range.start <= at)
    }

    /// Whether a response begins behind `begin` and before `end`.
    fn begins_within(&self, begin: usize, end: usize) -> bool {
        self.ranges.first().is_some_and(|range| begin < range.start && range.start < end)
    }
}
