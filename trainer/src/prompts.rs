//! Prompts from files: one text, one a line, or JSON lines; and any objects in JSON lines.

use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Result, TrainerError};

/// What stands for standard input where a file is named.
const STDIN: &str = "-";

/// Most bytes of a file of prompts.
const MOST_BYTES: u64 = 256 << 20;

/// All that comes, or one byte more than is allowed.
fn read_bounded(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A line of JSON. Further keys are the user's own.
#[derive(Deserialize)]
struct JsonPrompt {
    prompt: String,
}

/// The whole text of a file, or of standard input for `-`, without line breaks at its end.
///
/// # Errors
/// When it cannot be read, is too large or is not UTF-8.
pub fn read_prompt(path: &Path) -> Result<String> {
    let bytes = if path == Path::new(STDIN) {
        read_bounded(std::io::stdin().lock()).map_err(TrainerError::io("standard input"))?
    } else {
        let file = std::fs::File::open(path).map_err(TrainerError::io(path))?;
        read_bounded(file).map_err(TrainerError::io(path))?
    };
    if bytes.len() as u64 > MOST_BYTES {
        return Err(TrainerError::PromptFile {
            place: path.display().to_string(),
            reason: format!("has more than {MOST_BYTES} bytes, which is the most"),
        });
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

/// The objects of a file of JSON lines, with the place of each for messages. Empty lines are left out.
///
/// # Errors
/// When the file cannot be read, is too large, has no object, or a line is something else.
pub fn read_objects(path: &Path) -> Result<Vec<(String, Value)>> {
    let wrong = |place: String, reason: String| TrainerError::PromptFile { place, reason };
    let file = std::fs::File::open(path).map_err(TrainerError::io(path))?;
    let bytes = read_bounded(file).map_err(TrainerError::io(path))?;
    let name = || path.display().to_string();
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(name(), format!("has more than {MOST_BYTES} bytes, which is the most")));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| wrong(name(), format!("not UTF-8 text: {}", error.utf8_error())))?;
    let mut objects = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let place = format!("{}:{}", name(), number + 1);
        match serde_json::from_str(line) {
            Ok(value @ Value::Object(_)) => objects.push((place, value)),
            Ok(_) => return Err(wrong(place, "expected an object".into())),
            Err(error) => return Err(wrong(place, format!("not JSON: {error}"))),
        }
    }
    match objects.is_empty() {
        false => Ok(objects),
        true => Err(wrong(name(), "is empty".into())),
    }
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
    fn a_file_without_an_end_is_refused() {
        let error = read_prompts(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("/dev/zero") && error.contains("more than"), "{error}");
    }

    #[test]
    fn what_is_no_prompt_is_named_by_its_line() {
        let error = prompts("{\"prompt\": \"a\"}\n\n{\"text\": \"b\"}").unwrap_err().to_string();
        assert!(error.contains(":3: ") && error.contains("`prompt`"), "{error}");
        assert!(prompts("\n \n").unwrap_err().to_string().contains("no prompts"));
    }
}
