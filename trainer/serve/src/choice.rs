//! One answer while it is made: its tokens, the text that is certain, and why it ended.

use altiplano_data::StreamDecoder;
use altiplano_data::chat::StopStrings;
use altiplano_model::infer::{FinishReason, ScoredToken, SequenceOutput};
use serde_json::{Value, json};

use crate::sampling::Sampling;
use crate::served_model::ServedModel;

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// `stop`, `length`, `abort` or `error`.
    pub reason: &'static str,
    /// The stop string or stop token that was found; null otherwise.
    pub stop_reason: Value,
    /// What failed, where the reason is `error`.
    pub error: Option<String>,
}

/// A token with its probability, and where its text begins.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedToken {
    /// The token and the likeliest ones at its place; none where it was not asked for.
    pub scored: ScoredToken,
    /// Characters of the answer before it.
    pub offset: usize,
}

/// What a step brought an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    /// Text that has become certain.
    pub text: String,
    /// The tokens.
    pub token_ids: Vec<u32>,
    /// Their probabilities, when asked for.
    pub logprobs: Vec<PlacedToken>,
    /// Set with the last one.
    pub finish: Option<Finish>,
}

impl Delta {
    /// Appends what came next.
    pub fn append(&mut self, next: Self) {
        self.text.push_str(&next.text);
        self.token_ids.extend(next.token_ids);
        self.logprobs.extend(next.logprobs);
        // The engine may not know yet that a stop string was found.
        self.finish = next.finish.or(self.finish.take());
    }
}

/// An answer in the making.
#[derive(Debug)]
pub struct Choice<'a> {
    model: &'a ServedModel,
    decoder: Option<StreamDecoder<'a>>,
    stops: StopStrings,
    min_tokens: usize,
    include_stop: bool,
    show_special: bool,
    /// Tokens so far.
    pub tokens: usize,
    /// Sum of the log-probabilities, where they were asked for.
    pub cumulative_logprob: f64,
    /// Characters that the tokens gave so far.
    chars: usize,
    /// It has ended.
    pub finished: bool,
}

impl<'a> Choice<'a> {
    /// An answer without a token.
    pub fn new(model: &'a ServedModel, sampling: &Sampling) -> Self {
        Self {
            model,
            decoder: Some(StreamDecoder::after_prompt(&model.tokenizer)),
            stops: StopStrings::new(&sampling.stop, sampling.include_stop),
            min_tokens: sampling.params.min_tokens,
            include_stop: sampling.include_stop,
            show_special: !sampling.skip_special_tokens,
            tokens: 0,
            cumulative_logprob: 0.0,
            chars: 0,
            finished: false,
        }
    }

    /// Takes in what a step brought. Nothing more comes once it has ended.
    pub fn push(&mut self, output: SequenceOutput) -> Delta {
        let mut delta = Delta::default();
        if self.finished {
            return delta;
        }
        if let Some(scored) = output.logprobs {
            self.cumulative_logprob += f64::from(scored.token.logprob);
            delta.logprobs.push(PlacedToken { scored, offset: self.chars });
        }
        let mut ended = output.finish_reason;
        if let Some(id) = output.token {
            self.tokens += 1;
            delta.token_ids.push(id);
            let hidden = !self.include_stop && ended == Some(FinishReason::StopToken(id));
            let piece = if hidden { String::new() } else { self.text_of(id) };
            self.chars += piece.chars().count();
            delta.text = match self.tokens < self.min_tokens {
                true => self.stops.pass(&piece),
                false => self.stops.push(&piece),
            };
        }
        if self.stops.matched().is_none() && ended.is_some() {
            let rest = self.decoder.take().map(StreamDecoder::finish).unwrap_or_default();
            delta.text.push_str(&self.stops.push(&rest));
        }
        if let Some(stop) = self.stops.matched() {
            delta.finish = Some(Finish { reason: "stop", stop_reason: json!(stop), error: None });
            ended = None;
        }
        if let Some(reason) = ended {
            delta.text.push_str(&self.stops.finish());
            delta.finish = Some(Finish { error: output.error, ..finish(reason) });
        }
        self.finished = delta.finish.is_some();
        delta
    }

    /// The server ends it: what is there is all.
    pub fn abort(&mut self) -> Delta {
        let mut delta = Delta::default();
        if !self.finished {
            delta.text = self.stops.finish();
            delta.finish = Some(finish(FinishReason::Abort));
            self.finished = true;
        }
        delta
    }

    fn text_of(&mut self, id: u32) -> String {
        let text = self.decoder.as_mut().map(|decoder| decoder.push(id)).unwrap_or_default();
        match self.model.special_name(id) {
            Some(name) if self.show_special => text + name,
            _ => text,
        }
    }
}

fn finish(reason: FinishReason) -> Finish {
    let (reason, stop_reason) = match reason {
        FinishReason::Stop => ("stop", Value::Null),
        FinishReason::StopToken(id) => ("stop", json!(id)),
        FinishReason::Length => ("length", Value::Null),
        FinishReason::Abort => ("abort", Value::Null),
        FinishReason::Error => ("error", Value::Null),
    };
    Finish { reason, stop_reason, error: None }
}
