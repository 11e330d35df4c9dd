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
        .unwrap_or_else(|| ";".into());
    format!("{nearest} known {what}: {}", known.join(", "))
}

/// The known name that was probably meant, if there is one: spelled almost as `name`, or made of
/// the same words.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    known
        .filter_map(|candidate| Some((unlikeness(&name, candidate)?, candidate)))
        .min_by_key(|(unlikeness, _)| *unlikeness)
        .map(|(_, candidate)| candidate)
}

/// How much two names differ, in edits; none when they differ too much to be meant for each other.
/// One edit in three letters is a slip; more are another word.
fn unlikeness(name: &str, candidate: &str) -> Option<usize> {
    let edits = strsim::damerau_levenshtein(name, &candidate.to_lowercase());
    let longer = name.chars().count().max(candidate.chars().count());
    (edits * 3 <= longer || same_words(name, candidate)).then_some(edits)
}

/// Whether the words of one name, apart from the shortest, are all words of the other and at least
/// half of them.
fn same_words(a: &str, b: &str) -> bool {
    let words = |name: &str| -> Vec<String> {
        let words = name.split(['_', '-', '.']).filter(|word| word.chars().count() > 2);
        words.map(str::to_lowercase).collect()
    };
    let (a, b) = (words(a), words(b));
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    !few.is_empty() && 2 * few.len() >= many.len() && few.iter().all(|word| many.contains(word))
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
            ("LR", Some("lr")),
            ("zzz", None),
            // Two of two letters, three of five: other words.
            ("ls", None),
            ("clips", None),
            ("steps_per_second", None),
        ] {
            assert_eq!(nearest(typed, known.into_iter()), meant, "{typed}");
        }
    }

    #[test]
    fn a_word_that_only_resembles_a_key_is_not_suggested() {
        let keys = ["seed", "steps", "output", "name", "model", "device", "precision"];
        for typed in ["foo", "sed_output_dir_path", "verbose", "epochs", "data_dir", "x", ""] {
            assert_eq!(nearest(typed, keys.into_iter()), None, "{typed}");
        }
        assert_eq!(nearest("outptu", keys.into_iter()), Some("output"));
        assert_eq!(nearest("presicion", keys.into_iter()), Some("precision"));
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
