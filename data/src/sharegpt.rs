//! Conversations in the format of ShareGPT, as the text of a document: the JSON list of their messages,
//! `[{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]`.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::document::Document;

/// The key of a record with its messages.
pub(crate) const CONVERSATIONS: &str = "conversations";
/// The key of a record, and of a document's metadata, with the plugins that answered.
pub(crate) const PLUGINS: &str = "plugins";
/// Reason of a document whose text is not a conversation.
pub(crate) const BAD_CONVERSATION: &str = "bad_conversation";

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaker {
    /// Who asks.
    Human,
    /// Who answers.
    Gpt,
    /// Who says what holds for the conversation.
    System,
}

/// The names that collections of conversations give their speakers, in any case.
const SPEAKERS: &[(&str, Speaker)] = &[
    ("human", Speaker::Human),
    ("user", Speaker::Human),
    ("gpt", Speaker::Gpt),
    ("chatgpt", Speaker::Gpt),
    ("bing", Speaker::Gpt),
    ("bard", Speaker::Gpt),
    ("assistant", Speaker::Gpt),
    ("system", Speaker::System),
];

impl Speaker {
    /// The speaker that a collection calls so.
    pub fn called(name: &str) -> Option<Self> {
        let known = SPEAKERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        known.map(|(_, speaker)| *speaker)
    }

    /// All names that are known, as a list in words.
    pub fn known() -> String {
        SPEAKERS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// ShareGPT's own name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Human => "human",
            Self::Gpt => "gpt",
            Self::System => "system",
        }
    }
}

/// A message. Other keys than these are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Turn {
    /// Who says it: `human`, `gpt` or `system`, whatever the collection calls them; an unknown name as it is.
    #[serde(deserialize_with = "speaker")]
    pub from: String,
    /// What is said.
    pub value: String,
}

fn speaker<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let found = String::deserialize(deserializer)?;
    Ok(Speaker::called(&found).map_or(found, |speaker| speaker.name().to_owned()))
}

/// The messages of a document's text.
pub(crate) fn turns(text: &str) -> serde_json::Result<Vec<Turn>> {
    serde_json::from_str(text)
}

/// A document's text of the messages.
pub(crate) fn text(turns: &[Turn]) -> String {
    // Serializing plain structs of strings does not fail.
    serde_json::to_string(turns).unwrap_or_default()
}

/// A document's text of the messages of a record. What is not one is left for the steps to find.
pub(crate) fn text_of_value(messages: &Value) -> String {
    match Vec::<Turn>::deserialize(messages) {
        Ok(turns) => text(&turns),
        Err(_) => messages.to_string(),
    }
}

/// The record of a document: its id and messages, as fine-tuning reads them; none when its text is not a
/// conversation.
pub fn record(document: &Document) -> Option<Value> {
    let turns = turns(&document.text).ok()?;
    Some(json!({"id": document.id, CONVERSATIONS: turns}))
}

/// What all messages say, joined by line feeds.
pub(crate) fn messages(turns: &[Turn]) -> String {
    turns.iter().map(|turn| turn.value.as_str()).collect::<Vec<_>>().join("\n")
}

/// The plugins of a record, if there are any.
pub(crate) fn plugins(record: &Map<String, Value>) -> Option<&Value> {
    record.get(PLUGINS).filter(|value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    })
}
