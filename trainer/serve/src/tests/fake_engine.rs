//! An engine that says a fixed text, for what HTTP does with it and for faults that a real one should
//! not have. Letters of the prompt choose the fault: `P` panics, `B` breaks down by an error, `Z` is
//! slow, `X` ends by an error of its own, `Q` never ends.

use std::time::{Duration, Instant};

use altiplano_data::Tokenizer;
use altiplano_model::infer::{
    FinishReason, Request, RequestId, ScoredToken, SequenceId, SequenceOutput, TokenLogprob,
};

use crate::token_engine::{EngineEvent, EngineStats, EventKind, TokenEngine};

/// What it says: words, a character of two bytes, and the end.
pub const SCRIPT: &str = " the cat hat é then";

pub struct FakeEngine {
    script: Vec<u32>,
    letters: Vec<(char, u32)>,
    eos: u32,
    open: Vec<Open>,
    events: Vec<EngineEvent>,
    steps: usize,
}

struct Open {
    request: Request,
    /// Tokens said by each sequence; None once it ended.
    said: Vec<Option<usize>>,
}

impl FakeEngine {
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let id = |letter: char| {
            let found = (0..tokenizer.vocab_size() as u32).find(|id| {
                tokenizer.piece(*id).is_some_and(|piece| piece.text == letter.to_string())
            });
            (letter, found.expect("the letter is a piece"))
        };
        Self {
            script: tokenizer.encode(SCRIPT.trim_start()).expect("the script can be encoded"),
            letters: ['P', 'B', 'Z', 'X', 'Q'].map(id).to_vec(),
            eos: tokenizer.eos_id().expect("there is an end token"),
            open: Vec::new(),
            events: Vec::new(),
            steps: 0,
        }
    }

    fn asks(&self, request: &Request, letter: char) -> bool {
        let id = self.letters.iter().find(|(known, _)| *known == letter).map(|(_, id)| *id);
        id.is_some_and(|id| request.prompt.contains(&id))
    }

    fn scored(id: u32, place: usize, count: usize) -> ScoredToken {
        let logprob = -0.5 - place as f32 / 10.0;
        let token = TokenLogprob { id, logprob, rank: 2 };
        let top = (0..count).map(|rank| TokenLogprob {
            id: 3 + 97 + rank as u32,
            logprob: -0.25 - rank as f32,
            rank: rank + 1,
        });
        ScoredToken { token, top: top.collect() }
    }
}

impl TokenEngine for FakeEngine {
    fn add(&mut self, request: Request) -> Result<(), String> {
        let kinds = [EventKind::Queued, EventKind::Scheduled];
        let (id, at) = (request.id, Instant::now());
        self.events.extend(kinds.map(|kind| EngineEvent { request: id, kind, at }));
        let said = vec![Some(0); request.n];
        self.open.push(Open { request, said });
        Ok(())
    }

    fn abort(&mut self, request: RequestId) {
        self.open.retain(|open| open.request.id != request);
    }

    fn abort_sequence(&mut self, sequence: SequenceId) {
        for open in self.open.iter_mut().filter(|open| open.request.id == sequence.request) {
            open.said[sequence.index] = None;
        }
        self.open.retain(|open| open.said.iter().any(Option::is_some));
    }

    fn step(&mut self) -> Result<Vec<SequenceOutput>, String> {
        self.steps += 1;
        let mut outputs = Vec::new();
        for at in 0..self.open.len() {
            let request = &self.open[at].request;
            assert!(!self.asks(request, 'P'), "the engine was asked to panic");
            if self.asks(request, 'B') {
                return Err("the engine was asked to break".into());
            }
            if self.asks(request, 'Z') {
                std::thread::sleep(Duration::from_millis(5));
            }
            let (endless, fails) = (self.asks(request, 'Q'), self.asks(request, 'X'));
            let params = request.sampling.clone();
            let prompt = request.prompt.clone();
            let id = request.id;
            for index in 0..self.open[at].said.len() {
                let Some(said) = self.open[at].said[index] else { continue };
                let place = if endless { said % self.script.len() } else { said };
                let token = self.script.get(place).copied().unwrap_or(self.eos);
                let none = params.max_tokens == 0;
                let finish = if fails {
                    Some(FinishReason::Error)
                } else if !none && token == self.eos && !params.ignore_eos {
                    Some(FinishReason::Stop)
                } else if !none && params.stop_token_ids.contains(&token) {
                    Some(FinishReason::StopToken(token))
                } else if said + 1 >= params.max_tokens {
                    Some(FinishReason::Length)
                } else {
                    None
                };
                let of_prompt = params.prompt_logprobs.filter(|_| said == 0 && index == 0);
                outputs.push(SequenceOutput {
                    request: id,
                    index,
                    prompt_logprobs: of_prompt.map(|count| {
                        let rest = prompt.iter().enumerate().skip(1);
                        rest.map(|(place, id)| Self::scored(*id, place, count)).collect()
                    }),
                    cached_tokens: 0,
                    token: (!none && !fails).then_some(token),
                    logprobs: params
                        .logprobs
                        .filter(|_| !none && !fails)
                        .map(|count| Self::scored(token, said, count)),
                    finish_reason: finish,
                    error: fails.then(|| "the logits are not finite".to_owned()),
                });
                self.open[at].said[index] = finish.is_none().then_some(said + 1);
            }
        }
        self.open.retain(|open| open.said.iter().any(Option::is_some));
        Ok(outputs)
    }

    fn has_requests(&self) -> bool {
        !self.open.is_empty()
    }

    fn stats(&self) -> EngineStats {
        EngineStats {
            running: self.open.len(),
            used_blocks: self.open.len(),
            total_blocks: 8,
            block_size: 16,
            step_tokens: self.open.len(),
            ..EngineStats::default()
        }
    }

    fn take_events(&mut self) -> Vec<EngineEvent> {
        std::mem::take(&mut self.events)
    }

    fn reset_prefix_cache(&mut self) {}
}
