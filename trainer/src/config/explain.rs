//! What the deserializer complains about, in the words of someone who edits the file.

use serde_path_to_error::{Path, Segment};

use super::load::Problem;
use super::locate::Part;

/// Turns a deserialization error into the key it is about and a message with the nearest key.
pub(super) fn explain(error: &serde_path_to_error::Error<serde_yaml::Error>) -> Problem {
    let mut key = parts(error.path());
    let message = error.inner().to_string();
    if let Some((name, known)) = unknown(&message, "unknown field ") {
        // The path ends at the mapping or at the key itself.
        if key.last() == Some(&name) {
            key.pop();
        }
        let place = if key.is_empty() { String::new() } else { format!(" in {}", key.join(".")) };
        key.push(name.clone());
        let message = format!("unknown key {name:?}{place}{}", suggestion(&name, &known, "keys"));
        return Problem { key, part: Part::Key, message };
    }
    if let Some((name, known)) = unknown(&message, "unknown variant ") {
        let place = key.join(".");
        let message =
            format!("{place}: unknown value {name:?}{}", suggestion(&name, &known, "values"));
        return Problem { key, part: Part::Value, message };
    }
    if let Some(name) = message.strip_prefix("missing field ") {
        let name = name.trim_matches('`');
        let place = if key.is_empty() { String::new() } else { format!(" in {}", key.join(".")) };
        let message = format!("the key {name:?} is missing{place}");
        return Problem { key, part: Part::Key, message };
    }
    let message = if key.is_empty() { message } else { format!("{}: {message}", key.join(".")) };
    Problem { key, part: Part::Value, message }
}

fn parts(path: &Path) -> Vec<String> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// The name and the known names of "unknown field `x`, expected one of `a`, `b`".
fn unknown(message: &str, prefix: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix(prefix)?.strip_prefix('`')?;
    let (name, rest) = rest.split_once('`')?;
    // Every second piece between backticks is a name.
    let known = rest.split('`').skip(1).step_by(2).map(str::to_string).collect();
    Some((name.to_string(), known))
}

fn suggestion(name: &str, known: &[String], what: &str) -> String {
    if known.is_empty() {
        return format!("; there are no {what} here");
    }
    let nearest = nearest(name, known.iter().map(String::as_str))
        .map(|nearest| format!("; did you mean {nearest:?}?"))
        .unwrap_or_default();
    format!("{nearest} known {what}: {}", known.join(", "))
}

/// The known name that looks most like `name`, if any looks like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |candidate: &str| {
        let edits = strsim::normalized_damerau_levenshtein(name, candidate);
        strsim::jaro_winkler(name, candidate).max(edits).max(shared_words(name, candidate))
    };
    known
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Share of words two names have in common, in any order.
fn shared_words(a: &str, b: &str) -> f64 {
    let (a, b): (Vec<&str>, Vec<&str>) = (a.split('_').collect(), b.split('_').collect());
    let shared = a.iter().filter(|word| b.contains(word)).count();
    shared as f64 / a.len().max(b.len()) as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_the_one_meant() {
        let known = ["lr", "min_lr_ratio", "warmup_steps", "weight_decay", "grad_clip"];
        for (typed, meant) in [
            ("lrr", Some("lr")),
            ("warmup", Some("warmup_steps")),
            ("weigth_decay", Some("weight_decay")),
            ("clip_grad", Some("grad_clip")),
            ("zzz", None),
        ] {
            assert_eq!(nearest(typed, known.into_iter()), meant, "{typed}");
        }
    }

    #[test]
    fn known_names_are_read_from_the_message() {
        let (name, known) =
            unknown("unknown field `a`, expected one of `b`, `c`", "unknown field ").unwrap();
        assert_eq!((name.as_str(), known), ("a", vec!["b".to_string(), "c".to_string()]));
        let (_, known) = unknown("unknown field `a`, expected `b`", "unknown field ").unwrap();
        assert_eq!(known, ["b"]);
        let (_, known) =
            unknown("unknown field `a`, there are no fields", "unknown field ").unwrap();
        assert!(known.is_empty());
    }
}
