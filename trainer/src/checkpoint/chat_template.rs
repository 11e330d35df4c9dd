//! The chat template of a model on disk: where it is looked for, once for all that need it.

use std::path::Path;

use altiplano_data::chat::{ChatTemplate, TemplateSource};

use super::hugging_face::TOKENIZER_CONFIG_FILE;
use super::verify::{read_bounded, read_file};
use crate::error::{Result, TrainerError};

/// The template of a model as a file of its own.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// The template of the model in `dir`: `chat_template.jinja`, else the one in `tokenizer_config.json`, of
/// several that are named `default`. None where there is none.
///
/// # Errors
/// When a file cannot be read, or has something else in the place of a template.
pub fn read_chat_template(dir: &Path) -> Result<Option<TemplateSource>> {
    let unfit = |path: &Path, reason: String| TrainerError::RunFile { path: path.into(), reason };
    let path = dir.join(CHAT_TEMPLATE_FILE);
    if path.exists() {
        let source = String::from_utf8(read_bounded(&path)?)
            .map_err(|error| unfit(&path, format!("is not UTF-8: {error}")))?;
        return Ok(Some(TemplateSource { origin: path.display().to_string(), source }));
    }
    let path = dir.join(TOKENIZER_CONFIG_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let json = read_file(dir, TOKENIZER_CONFIG_FILE)?;
    let config = serde_json::from_slice(&json)
        .map_err(|error| unfit(&path, format!("is not JSON: {error}")))?;
    Ok(ChatTemplate::in_tokenizer_config(&path, &config, None)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_a_file_a_string_or_one_of_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let read = || read_chat_template(dir.path()).map(|found| found.map(|found| found.source));
        assert_eq!(read().unwrap(), None);
        write(TOKENIZER_CONFIG_FILE, r#"{"chat_template": "one"}"#);
        assert_eq!(read().unwrap().as_deref(), Some("one"));
        let list = r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#;
        write(TOKENIZER_CONFIG_FILE, list);
        assert_eq!(read().unwrap().as_deref(), Some("d"));
        write(TOKENIZER_CONFIG_FILE, &list.replace("default", "tools"));
        assert!(read().unwrap_err().to_string().contains("rag, tools"));
        write(CHAT_TEMPLATE_FILE, "file");
        assert_eq!(read().unwrap().as_deref(), Some("file"));
    }
}
