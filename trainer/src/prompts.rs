//! Prompts from files: one text, one a line, or JSON lines.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Result, TrainerError};

/// What stands for standard input where a file is named.
const STDIN: &str = "-";

/// A line of JSON. Further keys are the user's own.
#[derive(Deserialize)]
struct JsonPrompt {
    prompt: String,
}

/// The whole text of a file, or of standard input for `-`, without line breaks at its end.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_prompt(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    if path == Path::new(STDIN) {
        std::io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .map_err(TrainerError::io("standard input"))?;
    } else {
        bytes = std::fs::read(path).map_err(TrainerError::io(path))?;
    }
    let text = String::from_utf8(bytes).map_err(|error| TrainerError::PromptFile {
        place: path.display().to_string(),
        reason: format!("not UTF-8 text: {}", error.utf8_error()),
    })?;
    Ok(text.trim_end_matches(['\n', '\r']).to_string())
}

/// The prompts of a file, or of standard input for `-`: of each line that is not empty the text, or in
/// a file whose first such line begins with `{`, its string `prompt`.
///
/// # Errors
/// When it cannot be read, has no prompts, or a line of JSON has none.
pub fn read_prompts(path: &Path) -> Result<Vec<String>> {
    let text = read_prompt(path)?;
    let lines: Vec<(usize, &str)> =
        text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    let is_json = lines.first().is_some_and(|(_, line)| line.trim_start().starts_with('{'));
    if lines.is_empty() {
        return Err(TrainerError::PromptFile {
            place: path.display().to_string(),
            reason: "no prompts: expected one a line, or JSON lines with a string `prompt`".into(),
        });
    }
    lines
        .into_iter()
        .map(|(n, line)| {
            if !is_json {
                return Ok(line.to_string());
            }
            let json: JsonPrompt =
                serde_json::from_str(line).map_err(|error| TrainerError::PromptFile {
                    place: format!("{}:{}", path.display(), n + 1),
                    reason: format!("expected a JSON object with a string `prompt`: {error}"),
                })?;
            Ok(json.prompt)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn prompts(text: &str) -> Result<Vec<String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read_prompts(file.path())
    }

    #[test]
    fn lines_and_json_lines() {
        assert_eq!(prompts("one\n\n two \r\n").unwrap(), ["one", " two "]);
        let json = "\n{\"prompt\": \"a\\nb\", \"id\": 7}\n{\"prompt\": \"\"}";
        assert_eq!(prompts(json).unwrap(), ["a\nb", ""]);
    }

    #[test]
    fn what_is_no_prompt_is_named_by_its_line() {
        let error = prompts("{\"prompt\": \"a\"}\n\n{\"text\": \"b\"}").unwrap_err().to_string();
        assert!(error.contains(":3: ") && error.contains("`prompt`"), "{error}");
        assert!(prompts("\n \n").unwrap_err().to_string().contains("no prompts"));
    }
}
