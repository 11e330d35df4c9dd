//! The source of conversations in the format of ShareGPT: a JSON list, or JSON lines, of
//! `{"id", "conversations": [{"from", "value"}, …]}`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::input::{Input, list_inputs, pattern_below};
use super::json_records::JsonRecords;
use super::record::utf8;
use super::{ReadContext, Record, RecordSink, Rejection, SourceOptions};
use crate::document::{Document, Reason};
use crate::error::{DataError, Result};
use crate::sharegpt::{self, CONVERSATIONS, PLUGINS};

/// Conversations. The text of a document is the JSON list of its messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharegptSource {
    /// Path patterns (list of strings), relative to the configuration: `*`, `?`, `[ab]`, `{a,b}`
    /// and `**` for any depth. A file is a JSON list or JSON lines, also with `.gz` or `.zst`.
    pub paths: Vec<PathBuf>,
}

impl SourceOptions for SharegptSource {
    fn version(&self) -> u32 {
        2
    }

    fn make_paths_absolute(&mut self, base: &Path) {
        for path in &mut self.paths {
            *path = pattern_below(base, path);
        }
    }

    fn validate(&self, key: &str) -> Result<()> {
        match self.paths.is_empty() {
            true => {
                let key = format!("{key}.paths");
                Err(DataError::config(key, "an empty list", "at least one path"))
            }
            false => Ok(()),
        }
    }

    fn inputs(&self, key: &str) -> Result<Vec<Input>> {
        list_inputs(&format!("{key}.paths"), &self.paths)
    }

    fn read(&self, context: &ReadContext<'_>, sink: RecordSink<'_>) -> Result<()> {
        let ReadContext { source, input, bytes_read, .. } = *context;
        let mut records = JsonRecords::open(&input.path)?;
        let (mut bytes, mut index) = (Vec::new(), 0);
        while let Some(offset) = records.next(&mut bytes)? {
            bytes_read(records.newly_consumed());
            sink(record(source, input, index, offset, std::mem::take(&mut bytes)))?;
            index += 1;
        }
        bytes_read(records.newly_consumed());
        Ok(())
    }
}

fn record(source: &str, input: &Input, index: u64, offset: u64, bytes: Vec<u8>) -> Record {
    let length = bytes.len() as u64;
    let reject = |reason, detail: String| {
        Record::Rejected(Rejection { reason, offset, bytes: length, detail })
    };
    let text = match utf8(bytes, offset) {
        Ok(text) => text,
        Err(rejection) => return Record::Rejected(rejection),
    };
    let record: Map<String, Value> = match serde_json::from_str(&text) {
        Ok(record) => record,
        Err(error) => return reject(Reason::BAD_JSON, error.to_string()),
    };
    let Some(messages @ Value::Array(_)) = record.get(CONVERSATIONS) else {
        return reject(Reason::MISSING_TEXT, format!("no list {CONVERSATIONS:?}"));
    };
    let id = match record.get("id") {
        Some(Value::String(id)) if !id.is_empty() => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => format!("{}/{index:08}", input.name),
    };
    let text = sharegpt::text_of_value(messages);
    let mut document = Document { id, text, source: source.to_owned(), ..Document::default() };
    if let Some(plugins) = sharegpt::plugins(&record) {
        document.set_metadata(PLUGINS, plugins.clone());
    }
    Record::Document(document)
}
