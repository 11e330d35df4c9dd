//! The three formats of examples.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::conversation::Conversation;
use crate::chat::Message;
use crate::error::{DataError, Result};
use crate::sharegpt::Speaker;
use crate::source::JsonRecords;

/// Most messages of a conversation.
const MOST_MESSAGES: usize = 100_000;

/// How the records of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExampleFormat {
    /// `{"instruction", "input", "output"}`, of which `input` may be missing: Stanford Alpaca.
    Alpaca,
    /// `{"id", "conversations": [{"from", "value"}, …]}`: ShareGPT.
    Sharegpt,
    /// `{"messages": [{"role", "content"}, …]}`: OpenAI.
    Messages,
}

impl ExampleFormat {
    /// The format of a record, by the keys it has.
    fn seen_from(record: &Value) -> Option<Self> {
        let has = |key| record.get(key).is_some();
        match (has("conversations"), has("messages"), has("instruction")) {
            (true, _, _) => Some(Self::Sharegpt),
            (_, true, _) => Some(Self::Messages),
            (_, _, true) => Some(Self::Alpaca),
            _ => None,
        }
    }
}

/// Reads the examples of a file in order. `on_example` gets the index of the record, from 0, and the
/// conversation; `bytes_read` the bytes of the file consumed since the last call. Without `format` it is
/// seen from the first record.
///
/// Gives the keys that were not read and how many records had each.
///
/// # Errors
/// [`DataError::BadFile`] names the file, the record and its key: not JSON, not UTF-8, a key that is missing,
/// a value of another type, an unknown role. The errors of `on_example`.
pub fn for_each_example(
    path: &Path,
    format: Option<ExampleFormat>,
    bytes_read: &dyn Fn(u64),
    mut on_example: impl FnMut(u64, Conversation) -> Result<()>,
) -> Result<BTreeMap<String, u64>> {
    let mut records = JsonRecords::open(path)?;
    let (mut text, mut index, mut format) = (Vec::new(), 0, format);
    let mut ignored = BTreeMap::new();
    while let Some(offset) = records.next(&mut text)? {
        bytes_read(records.newly_consumed());
        let place = Place { path, index };
        if let Err(error) = std::str::from_utf8(&text) {
            let at = offset + error.valid_up_to() as u64;
            return Err(place.fail(format!("not UTF-8 at byte {at} of the file")));
        }
        let record: Value = serde_json::from_slice(&text)
            .map_err(|error| place.fail(format!("not JSON: {error}")))?;
        let known = format.or_else(|| ExampleFormat::seen_from(&record));
        let Some(known) = known else {
            return Err(place.fail(
                "has none of the keys of a known format: `instruction` (alpaca), `conversations` \
                 (sharegpt), `messages`"
                    .into(),
            ));
        };
        format = Some(known);
        let conversation = match known {
            ExampleFormat::Alpaca => alpaca(&place, &record, &mut ignored)?,
            ExampleFormat::Sharegpt => sharegpt(&place, &record, &mut ignored)?,
            ExampleFormat::Messages => messages(&place, &record, &mut ignored)?,
        };
        on_example(index, conversation)?;
        index += 1;
    }
    bytes_read(records.newly_consumed());
    Ok(ignored)
}

/// The record an error is about.
struct Place<'a> {
    path: &'a Path,
    index: u64,
}

impl Place<'_> {
    fn fail(&self, reason: String) -> DataError {
        DataError::bad_file(self.path, format!("record {}: {reason}", self.index))
    }

    /// The string at `key` of `object`, which `name` stands for in messages.
    fn string<'v>(&self, object: &'v Value, key: &str, name: &str) -> Result<&'v str> {
        match object.get(key) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => {
                Err(self.fail(format!("{name}{key}: found {}, expected a string", kind(other))))
            }
            None => Err(self.fail(format!("{name}{key}: missing, expected a string"))),
        }
    }

    /// The messages at `key`: role and text of each, by the keys `role` and `text`.
    fn list<'v>(
        &self,
        record: &'v Value,
        key: &str,
        role: &str,
        text: &str,
    ) -> Result<Vec<(&'v str, &'v str)>> {
        let list = match record.get(key) {
            Some(Value::Array(list)) => list,
            Some(other) => {
                return Err(self.fail(format!("{key}: found {}, expected a list", kind(other))));
            }
            None => return Err(self.fail(format!("{key}: missing, expected a list"))),
        };
        if list.len() > MOST_MESSAGES {
            let found = list.len();
            return Err(
                self.fail(format!("{key}: {found} messages, expected at most {MOST_MESSAGES}"))
            );
        }
        let message = |(n, message): (usize, &'v Value)| {
            let name = format!("{key}.{n}.");
            Ok((self.string(message, role, &name)?, self.string(message, text, &name)?))
        };
        list.iter().enumerate().map(message).collect()
    }

    fn unknown_role(&self, name: &str, found: &str, known: &str) -> DataError {
        self.fail(format!("{name}: found the role {found:?}, expected one of {known}"))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Counts the keys of a record that are not among those read.
fn count_ignored(record: &Value, read: &[&str], ignored: &mut BTreeMap<String, u64>) {
    /// Different keys that are told apart; records of honest files share theirs.
    const MOST_KEYS: usize = 1000;
    let keys = record.as_object().into_iter().flat_map(|object| object.keys());
    for key in keys.filter(|key| !read.contains(&key.as_str())) {
        if ignored.len() < MOST_KEYS || ignored.contains_key(key) {
            *ignored.entry(key.clone()).or_insert(0) += 1;
        }
    }
}

fn alpaca(
    place: &Place<'_>,
    record: &Value,
    ignored: &mut BTreeMap<String, u64>,
) -> Result<Conversation> {
    count_ignored(record, &["instruction", "input", "output"], ignored);
    let mut user = Message::new("user", place.string(record, "instruction", "")?);
    if record.get("input").is_some() {
        let input = place.string(record, "input", "")?;
        // Blanks are an input too, as in the reference.
        if !input.is_empty() {
            user.0.insert("input".to_owned(), Value::from(input));
        }
    }
    let assistant = Message::new("assistant", place.string(record, "output", "")?);
    Ok(Conversation { messages: vec![user, assistant] })
}

fn sharegpt(
    place: &Place<'_>,
    record: &Value,
    ignored: &mut BTreeMap<String, u64>,
) -> Result<Conversation> {
    count_ignored(record, &["id", "conversations"], ignored);
    let list = place.list(record, "conversations", "from", "value")?;
    let message = |(n, (from, text)): (usize, (&str, &str))| {
        let role = match Speaker::called(from) {
            Some(Speaker::Human) => "user",
            Some(Speaker::Gpt) => "assistant",
            Some(Speaker::System) => "system",
            None => {
                let key = format!("conversations.{n}.from");
                return Err(place.unknown_role(&key, from, &Speaker::known()));
            }
        };
        Ok(Message::new(role, text))
    };
    let messages = list.into_iter().enumerate().map(message).collect::<Result<_>>()?;
    Ok(Conversation { messages })
}

fn messages(
    place: &Place<'_>,
    record: &Value,
    ignored: &mut BTreeMap<String, u64>,
) -> Result<Conversation> {
    count_ignored(record, &["id", "messages"], ignored);
    let list = place.list(record, "messages", "role", "content")?;
    let message = |(n, (role, text)): (usize, (&str, &str))| match role {
        "system" | "user" | "assistant" => Ok(Message::new(role, text)),
        _ => {
            let known = "system, user, assistant";
            Err(place.unknown_role(&format!("messages.{n}.role"), role, known))
        }
    };
    let messages = list.into_iter().enumerate().map(message).collect::<Result<_>>()?;
    Ok(Conversation { messages })
}
