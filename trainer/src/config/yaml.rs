//! YAML that readers of versions 1.1 and 1.2 read the same.
//!
//! PyYAML and many others read version 1.1. There a number with an exponent needs a dot and a sign
//! (`1.0e-8`; `1e-8` is a string), and words such as `on`, `12:30` or `2024-01-01` are no strings
//! unless they are quoted.

use serde::Serialize;
use serde_yaml::Value;

/// Words that are booleans, null or operators for some reader, in lower case.
const WORDS: [&str; 11] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "=", "<<"];

/// The value as YAML.
///
/// # Errors
/// When the value is nothing that YAML can hold.
pub(super) fn to_yaml(value: &impl Serialize) -> Result<String, serde_yaml::Error> {
    let mut value = serde_yaml::to_value(value)?;
    let text = serde_yaml::to_string(&value)?;
    // The emitter writes no scalar as it is told, so words that the document does not have stand for
    // those that are written here.
    let mut marker = String::from("scalar-");
    while text.contains(&marker) {
        marker.push('-');
    }
    let mut scalars = Vec::new();
    mark(&mut value, &marker, &mut scalars);
    let mut text = serde_yaml::to_string(&value)?;
    for (number, scalar) in scalars.iter().enumerate() {
        text = text.replacen(&placeholder(&marker, number), scalar, 1);
    }
    Ok(text)
}

fn placeholder(marker: &str, number: usize) -> String {
    format!("{marker}{number}.")
}

/// Puts a placeholder in the place of every scalar that is not written plainly, and adds what is to
/// be written there.
fn mark(value: &mut Value, marker: &str, scalars: &mut Vec<String>) {
    let written = match value {
        Value::Number(number) if number.is_f64() => with_dot_and_sign(&number.to_string()),
        Value::String(text) if is_ambiguous(text) => serde_json::to_string(text).ok(),
        Value::Sequence(items) => {
            items.iter_mut().for_each(|item| mark(item, marker, scalars));
            None
        }
        Value::Mapping(map) => {
            map.values_mut().for_each(|item| mark(item, marker, scalars));
            None
        }
        _ => None,
    };
    if let Some(written) = written {
        *value = Value::String(placeholder(marker, scalars.len()));
        scalars.push(written);
    }
}

/// `1e16` as `1.0e+16`; nothing when there is no exponent.
fn with_dot_and_sign(number: &str) -> Option<String> {
    let (mantissa, exponent) = number.split_once('e')?;
    let dot = if mantissa.contains('.') { "" } else { ".0" };
    let sign = if exponent.starts_with(['-', '+']) { "" } else { "+" };
    Some(format!("{mantissa}{dot}e{sign}{exponent}"))
}

/// Whether the text, without quotes, might be taken for something else: one of the words, or what
/// begins as a number or a date does. Text of several lines is never written without a mark.
fn is_ambiguous(text: &str) -> bool {
    if text.contains('\n') {
        return false;
    }
    let unsigned = text.trim_start_matches(['-', '+']);
    let digits = unsigned.strip_prefix('.').unwrap_or(unsigned);
    let special = unsigned.len() != digits.len() && digits.starts_with(['i', 'I', 'n', 'N', '_']);
    digits.starts_with(|c: char| c.is_ascii_digit())
        || special
        || WORDS.contains(&text.to_lowercase().as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_have_a_dot_and_a_signed_exponent() {
        for (number, written) in [
            (1e-8, "1.0e-8"),
            (2.5e-7, "2.5e-7"),
            (1e16, "1.0e+16"),
            (-1.5e300, "-1.5e+300"),
            (3e-4, "0.0003"),
            (1.0, "1.0"),
        ] {
            let yaml = to_yaml(&json!({ "x": number })).unwrap();
            assert_eq!(yaml, format!("x: {written}\n"));
            let back: Value = serde_yaml::from_str(&yaml).unwrap();
            assert_eq!(back["x"].as_f64(), Some(number));
        }
    }

    #[test]
    fn words_that_are_no_strings_elsewhere_are_quoted() {
        for word in [
            "on",
            "Yes",
            "NO",
            "y",
            "2024-01-01",
            "12:30:45",
            "1_000",
            "0o17",
            "0x1f",
            "1e5",
            "-3",
            "+.5",
            ".5",
            ".inf",
            "-.INF",
            ".NaN",
            "null",
            "~",
            "=",
            "1.2.3",
            "7b",
        ] {
            let yaml = to_yaml(&json!({ "x": [word] })).unwrap();
            let quoted = yaml.trim_end().ends_with(['"', '\'']);
            assert!(quoted, "{yaml}");
            let back: Value = serde_yaml::from_str(&yaml).unwrap();
            assert_eq!(back["x"][0], word);
        }
        for word in
            ["small", "../runs", "./x", "runs/1", "a: b", "scalar-0.", "scalar--1.", "1e-8\nx"]
        {
            let all = json!({ "x": word, "y": 1e-8, "z": "scalar-1." });
            let yaml = to_yaml(&all).unwrap();
            let back: serde_json::Value = serde_yaml::from_str(&yaml).unwrap();
            assert_eq!(back, all, "{yaml}");
        }
        assert_eq!(to_yaml(&json!({ "x": "../runs" })).unwrap(), "x: ../runs\n");
    }
}
