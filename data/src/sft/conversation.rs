//! A conversation as it was read, and what is left of it to train on.

use serde::{Deserialize, Serialize};

use crate::chat::Message;

/// Messages in order: `system`, `user`, `assistant`. A user's message of an Alpaca file may have an
/// `input` beside its `content`.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// The messages.
    pub messages: Vec<Message>,
}

/// Why an example is not trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dropped {
    /// The assistant says nothing but white space.
    EmptyResponse,
    /// A message has nothing but white space.
    EmptyTurn,
    /// Fewer than two messages.
    TooShort,
    /// Two messages of one role follow each other, or a system message is not the first.
    RolesDoNotAlternate,
    /// The user says nothing.
    NoUser,
    /// The example was cut before its first trained token.
    NothingToTrain,
    /// An earlier example has the same messages.
    Duplicate,
}

impl Dropped {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::EmptyResponse => "empty_response",
            Self::EmptyTurn => "empty_turn",
            Self::TooShort => "too_short",
            Self::RolesDoNotAlternate => "roles_do_not_alternate",
            Self::NoUser => "no_user",
            Self::NothingToTrain => "nothing_to_train",
            Self::Duplicate => "duplicate",
        }
    }
}

/// A conversation of rounds, and what was taken off it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tidied {
    /// An optional system message, then rounds of user and assistant.
    pub messages: Vec<Message>,
    /// Messages taken off: an assistant's at the beginning, a user's at the end.
    pub removed_messages: u64,
}

impl Conversation {
    /// Takes off a first message of the assistant and a last message of the user, and says why the rest is
    /// not rounds of user and assistant if it is not.
    ///
    /// # Errors
    /// The reason to leave the example out.
    pub fn tidy(mut self) -> Result<Tidied, Dropped> {
        let before = self.messages.len();
        let system =
            usize::from(self.messages.first().is_some_and(|first| first.role() == "system"));
        if self.messages.get(system).is_some_and(|first| first.role() == "assistant") {
            self.messages.remove(system);
        }
        if self.messages.len() > system
            && self.messages.last().is_some_and(|last| last.role() == "user")
        {
            self.messages.pop();
        }
        let rounds = &self.messages[system.min(self.messages.len())..];
        if rounds.len() < 2 {
            return Err(Dropped::TooShort);
        }
        if !rounds.iter().any(|message| message.role() == "user") {
            return Err(Dropped::NoUser);
        }
        let alternate = rounds
            .iter()
            .enumerate()
            .all(|(n, message)| message.role() == if n % 2 == 0 { "user" } else { "assistant" });
        if !alternate || rounds.len() % 2 == 1 {
            return Err(Dropped::RolesDoNotAlternate);
        }
        let blank = |message: &Message| message.content().trim().is_empty();
        let says = |message: &&Message| message.role() == "assistant";
        if rounds.iter().filter(says).all(blank) {
            return Err(Dropped::EmptyResponse);
        }
        if rounds.iter().any(blank) {
            return Err(Dropped::EmptyTurn);
        }
        let removed_messages = (before - self.messages.len()) as u64;
        Ok(Tidied { messages: self.messages, removed_messages })
    }
}
