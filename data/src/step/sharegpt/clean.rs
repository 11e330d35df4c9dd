//! From pages of chats to rounds of question and answer.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::message::clean_message;
use crate::document::Document;
use crate::error::{DataError, Result};
use crate::sharegpt::{self, BAD_CONVERSATION, PLUGINS, Speaker, Turn};
use crate::step::{Step, StepCounts, StepOptions, Verdict};
use crate::text::python::is_printable;

/// Most blocked words.
const MOST_WORDS: usize = 1000;
/// An answer that begins so, also behind a `!`, is an error of the site.
const TOO_MANY_REQUESTS: &str = "Too many requests in 1 hour. Try again later.";
/// Fewest characters of a conversation.
const FEWEST_CHARS: usize = 16;

/// Why a message is taken off a conversation that stays: where it stands.
const BEFORE_USER: &str = "before_first_question";
const UNANSWERED: &str = "unanswered_question";
const FROM_UNREADABLE: &str = "from_first_unreadable";

/// Cleans one conversation.
///
/// A first message that is not the user's and a last one that is are taken off, messages become Markdown,
/// and the conversation ends before a message of which nothing readable is left. Reasons to drop it:
/// `plugin`, `too_short`, `unknown_speaker`, `wrong_format`, `blocked_words`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharegptCleanOptions {
    /// Whether messages are HTML (bool, default true).
    pub html: bool,
    /// A conversation with one of these in a message, in any case, is dropped (list of strings, default
    /// `openai` and `chatgpt`, as published).
    pub blocked_words: Vec<String>,
}

impl Default for SharegptCleanOptions {
    fn default() -> Self {
        Self { html: true, blocked_words: ["openai", "chatgpt"].map(str::to_owned).into() }
    }
}

impl StepOptions for SharegptCleanOptions {
    fn version(&self) -> u32 {
        2
    }

    fn validate(&self, key: &str) -> Result<()> {
        let found = self.blocked_words.len();
        if found > MOST_WORDS || self.blocked_words.iter().any(String::is_empty) {
            let expected = format!("up to {MOST_WORDS} words, none of them empty");
            let found = format!("{found} words");
            return Err(DataError::config(format!("{key}.blocked_words"), found, expected));
        }
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        let mut step = self.clone();
        step.blocked_words.iter_mut().for_each(|word| *word = word.to_lowercase());
        Ok(Box::new(step))
    }
}

/// A conversation on its way, with what was taken off it.
struct Cleaning {
    turns: Vec<Turn>,
    removed: Vec<(&'static str, usize)>,
}

impl Step for SharegptCleanOptions {
    fn apply(&self, document: &mut Document, counts: &mut StepCounts) -> Verdict {
        if document.metadata().contains_key(PLUGINS) {
            return Verdict::unwanted("plugin", "answered with plugins");
        }
        let turns = match sharegpt::turns(&document.text) {
            Ok(turns) => turns,
            Err(error) => return Verdict::broken(BAD_CONVERSATION, error.to_string()),
        };
        let mut conversation = Cleaning { turns, removed: Vec::new() };
        if let Err(verdict) = self.clean(&mut conversation) {
            return verdict;
        }
        // Of a conversation that is dropped no message counts by itself.
        for (reason, bytes) in conversation.removed {
            counts.remove(reason, bytes);
        }
        document.text = sharegpt::text(&conversation.turns);
        Verdict::Keep
    }
}

impl SharegptCleanOptions {
    fn clean(&self, conversation: &mut Cleaning) -> std::result::Result<(), Verdict> {
        conversation.check_length()?;
        if conversation.turns[0].from != "human" {
            conversation.remove(0..1, BEFORE_USER);
        }
        let count = conversation.turns.len();
        if conversation.turns.last().is_some_and(|last| last.from == "human") {
            conversation.remove(count - 1..count, UNANSWERED);
        }
        conversation.check_length()?;
        let mut turns = conversation.turns.iter().enumerate();
        if let Some((number, turn)) = turns.find(|(_, turn)| Speaker::called(&turn.from).is_none())
        {
            let known = Speaker::known();
            let detail = format!("message {number} is from {:?}, known are {known}", turn.from);
            return Err(Verdict::unwanted("unknown_speaker", detail));
        }
        for (number, turn) in conversation.turns.iter().enumerate() {
            let expected = if number % 2 == 0 { "human" } else { "gpt" };
            if turn.from != expected {
                let detail = format!("message {number} is from {:?}, not {expected:?}", turn.from);
                return Err(Verdict::unwanted("wrong_format", detail));
            }
        }
        self.check_words(&conversation.turns)?;
        let mut readable = conversation.turns.len();
        for (number, turn) in conversation.turns.iter_mut().enumerate() {
            let value = match self.html {
                true => Cow::Owned(clean_message(&turn.value)),
                false => Cow::Borrowed(turn.value.trim()),
            };
            if !value.chars().next().is_some_and(is_printable) {
                readable = number;
                break;
            }
            turn.value = value.into_owned();
        }
        let count = conversation.turns.len();
        conversation.remove(readable..count, FROM_UNREADABLE);
        if readable % 2 == 1 {
            conversation.remove(readable - 1..readable, UNANSWERED);
        }
        let chars: usize = conversation.turns.iter().map(|turn| turn.value.chars().count()).sum();
        if chars < FEWEST_CHARS {
            let detail = format!("{chars} characters, at least {FEWEST_CHARS}");
            return Err(Verdict::unwanted("too_short", detail));
        }
        Ok(())
    }

    fn check_words(&self, turns: &[Turn]) -> std::result::Result<(), Verdict> {
        for turn in turns {
            let lower = turn.value.to_lowercase();
            if let Some(word) = self.blocked_words.iter().find(|word| lower.contains(*word)) {
                return Err(Verdict::unwanted("blocked_words", word.clone()));
            }
            let answer = turn.value.strip_prefix('!').unwrap_or(&turn.value);
            if turn.from == "gpt" && answer.starts_with(TOO_MANY_REQUESTS) {
                return Err(Verdict::unwanted("blocked_words", TOO_MANY_REQUESTS));
            }
        }
        Ok(())
    }
}

impl Cleaning {
    /// Takes messages off. Each counts with its bytes as they are now.
    fn remove(&mut self, range: std::ops::Range<usize>, reason: &'static str) {
        let removed = self.turns.drain(range).map(|turn| (reason, turn.value.len()));
        self.removed.extend(removed);
    }

    fn check_length(&self) -> std::result::Result<(), Verdict> {
        match self.turns.len() {
            count @ 0..2 => Err(Verdict::unwanted("too_short", format!("{count} messages"))),
            _ => Ok(()),
        }
    }
}
