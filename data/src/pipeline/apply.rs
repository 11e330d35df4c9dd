//! One step alone, over JSON objects.

use serde_json::{Map, Value};

use super::clock::Clock;
use super::drop_log::DroppedDocument;
use super::stats::{StepStats, run_step};
use crate::document::{Document, Reason, metadata_text};
use crate::sharegpt::{self, CONVERSATIONS};
use crate::source::splice_tex;
use crate::step::{Step, StepCounts, Verdict};

/// What became of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Applied {
    /// The step kept it, perhaps changed, or as several pieces.
    Kept(Vec<Map<String, Value>>),
    /// The step dropped it, or it could not be read.
    Dropped(DroppedDocument),
}

/// Sends one JSON object through `step`.
///
/// Of the object, `text` is the text and `id`, `url`, `language`, `language_score`, `created` and
/// `metadata` are what a document has of that name; all other fields are kept as they are. An
/// object without an id gets `default_id`. For the step `latex` a map `files` of names and contents
/// may stand for the text, for any step a list `conversations`, as ShareGPT has it, which is then what
/// comes out too.
pub fn apply_step(
    name: &str,
    step: &dyn Step,
    mut object: Map<String, Value>,
    default_id: impl FnOnce() -> String,
    counts: &mut StepCounts,
) -> Applied {
    let string = |object: &Map<String, Value>, key: &str| match object.get(key) {
        Some(Value::String(value)) => Some(value.clone()),
        Some(Value::Number(value)) => Some(value.to_string()),
        _ => None,
    };
    // A paper may come as its files.
    if let (false, "latex", Some(Value::Object(files))) =
        (object.contains_key("text"), name, object.get("files"))
    {
        let files = files
            .iter()
            .filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())))
            .collect();
        let Some(project) = splice_tex(&files) else {
            let id = string(&object, "id").unwrap_or_else(default_id);
            let reason = Reason::unwanted("no_root");
            let dropped = DroppedDocument::new(id, name, &reason, String::new(), 0);
            return Applied::Dropped(dropped);
        };
        object.insert("text".into(), Value::from(project.text));
    }
    let conversation = match object.get(CONVERSATIONS) {
        Some(messages @ Value::Array(_)) if !object.contains_key("text") => {
            Some(sharegpt::text_of_value(messages))
        }
        _ => None,
    };
    let is_conversation = conversation.is_some();
    if let Some(text) = conversation {
        object.insert("text".into(), Value::from(text));
    }
    let Some(Value::String(text)) = object.remove("text") else {
        let id = string(&object, "id").unwrap_or_else(default_id);
        let detail = "no string field \"text\"".to_owned();
        return Applied::Dropped(DroppedDocument::new(
            id,
            "read",
            &Reason::MISSING_TEXT,
            detail,
            0,
        ));
    };
    let bytes = text.len() as u64;
    let plugins = sharegpt::plugins(&object).filter(|_| is_conversation).cloned();
    let mut document = Document {
        id: string(&object, "id").unwrap_or_else(default_id),
        text,
        source: string(&object, "source").unwrap_or_default(),
        url: string(&object, "url"),
        language: string(&object, "language"),
        language_score: object.get("language_score").and_then(Value::as_f64),
        added: string(&object, "added"),
        created: string(&object, "created"),
        metadata: object.get("metadata").and_then(metadata_of),
    };
    if let Some(plugins) = plugins {
        document.set_metadata(sharegpt::PLUGINS, plugins);
    }
    let pieces = match step.apply(&mut document, counts) {
        Verdict::Keep => vec![document],
        Verdict::Split(pieces) => {
            // A piece has its own id, and its text and metadata; the rest is the whole's.
            object.remove("id");
            pieces
        }
        Verdict::Drop { reason, detail } => {
            let dropped = DroppedDocument::new(document.id, name, &reason, detail, bytes);
            return Applied::Dropped(dropped);
        }
    };
    let object_of = |piece| object_of(object.clone(), piece, is_conversation);
    Applied::Kept(pieces.into_iter().map(object_of).collect())
}

/// `object` with what a step made of its document.
fn object_of(
    mut object: Map<String, Value>,
    document: Document,
    is_conversation: bool,
) -> Map<String, Value> {
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value.filter(|value| object.get(key) != Some(value)) {
            object.insert(key.to_owned(), value);
        }
    };
    let metadata = document.metadata();
    set("metadata", (!metadata.is_empty()).then_some(Value::Object(metadata)));
    set("url", document.url.map(Value::from));
    set("language", document.language.map(Value::from));
    set("language_score", document.language_score.map(Value::from));
    set("created", document.created.map(Value::from));
    if !object.contains_key("id") {
        object.insert("id".into(), Value::from(document.id));
    }
    match serde_json::from_str(&document.text) {
        Ok(messages) if is_conversation => object.insert(CONVERSATIONS.into(), messages),
        _ => object.insert("text".into(), Value::from(document.text)),
    };
    object
}

/// Metadata as an object, or as `altiplano data cat` writes it: a string that holds one.
fn metadata_of(value: &Value) -> Option<String> {
    match value {
        Value::Object(_) => Some(metadata_text(value.clone())),
        Value::String(text) => {
            serde_json::from_str::<Map<String, Value>>(text).ok().map(|_| text.clone())
        }
        _ => None,
    }
}

/// A line that is not a JSON object, as a dropped document.
pub fn unreadable(id: String, error: &impl ToString, bytes: usize) -> Applied {
    let reason = Reason::BAD_JSON;
    Applied::Dropped(DroppedDocument::new(id, "read", &reason, error.to_string(), bytes as u64))
}

/// Sends every document through `step` on the calling thread and counts, with the processor time
/// that step and counting took.
pub fn measure_step(step: &dyn Step, mut documents: Vec<Document>) -> StepStats {
    let mut stats = StepStats::default();
    let clock = Clock::start();
    for document in &mut documents {
        run_step(step, document, &mut stats);
    }
    clock.stop(&mut stats.cpu_seconds);
    stats
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Shout;

    impl Step for Shout {
        fn apply(&self, document: &mut Document, _: &mut StepCounts) -> Verdict {
            if document.text.is_empty() {
                return Verdict::unwanted("silent", "0 letters");
            }
            document.text.make_ascii_uppercase();
            document.set_metadata("loud", true);
            Verdict::Keep
        }
    }

    fn apply(line: &str) -> Applied {
        let object = serde_json::from_str(line).unwrap();
        let mut counts = StepCounts::default();
        apply_step("shout", &Shout, object, || "line 1".into(), &mut counts)
    }

    fn kept(line: &str) -> Value {
        match apply(line) {
            Applied::Kept(mut objects) => Value::Object(objects.pop().unwrap()),
            Applied::Dropped(dropped) => panic!("{dropped:?}"),
        }
    }

    #[test]
    fn whatever_else_is_there_is_kept() {
        let out = kept(r#"{"id": 7, "text": "a", "extra": [1], "metadata": {"k": 1}}"#);
        let metadata = serde_json::json!({"k": 1, "loud": true});
        let expected =
            serde_json::json!({"id": 7, "text": "A", "extra": [1], "metadata": metadata});
        assert_eq!(out, expected);
        assert_eq!(kept(r#"{"text": "a"}"#)["id"], "line 1");
    }

    #[test]
    fn drops_have_a_reason() {
        let dropped = |line: &str| match apply(line) {
            Applied::Dropped(dropped) => (dropped.id, dropped.reason),
            Applied::Kept(objects) => panic!("{objects:?}"),
        };
        assert_eq!(dropped(r#"{"id": "x", "text": ""}"#), ("x".into(), "silent".into()));
        assert_eq!(dropped(r#"{"id": "y"}"#), ("y".into(), "missing_text".into()));
    }

    #[test]
    fn metadata_may_be_a_string_that_holds_an_object() {
        let out = kept(r#"{"id": "x", "text": "a", "metadata": "{\"k\":1}"}"#);
        assert_eq!(out["metadata"], serde_json::json!({"k": 1, "loud": true}));
    }
}
