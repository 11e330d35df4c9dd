//! How much longer a `tokenizer.json` may make a text.
//!
//! A file can ask for replacements that double a text, one after the other: forty of them make a
//! terabyte of a letter. What the steps of a file may do at most is computed before it is used.

use serde_json::Value;

/// Most that steps may multiply the length of a text by. Files in use stay below 40, most at 3.
const MOST: u64 = 64;
/// Most bytes that a step may put before or behind a text.
const MOST_ADDED: usize = 1024;

/// Refuses steps (normalizers, pre-tokenizers or decoders) that make a text too long. `part` is their
/// key in the file.
pub(super) fn check(part: &str, steps: &Value) -> Result<(), String> {
    let mut growth = 1u64;
    for step in flat(steps) {
        let added = ["prepend", "append"].map(|key| step[key].as_str().map_or(0, str::len));
        if let Some(added) = added.into_iter().find(|added| *added > MOST_ADDED) {
            return Err(format!(
                "{part}: adds {added} bytes to a text, expected at most {MOST_ADDED}"
            ));
        }
        growth = growth.saturating_mul(factor(step)?);
        if growth > MOST {
            return Err(format!(
                "{part}: its steps may make a text {growth} times as long or more, expected at most \
                 {MOST}"
            ));
        }
    }
    Ok(())
}

/// Steps and those inside them.
fn flat(steps: &Value) -> Vec<&Value> {
    let inner = ["normalizers", "pretokenizers", "decoders"]
        .into_iter()
        .find_map(|key| steps.get(key).and_then(Value::as_array));
    match inner {
        Some(inner) => inner.iter().flat_map(flat).collect(),
        None => vec![steps],
    }
}

/// The most bytes that a step makes of one. Steps that follow Unicode's tables, such as NFKD, grow a text
/// once, however often they are repeated, and count as nothing.
fn factor(step: &Value) -> Result<u64, String> {
    let ratio = |made: usize, of: usize| made.div_ceil(of.max(1)).max(1) as u64;
    Ok(match step["type"].as_str() {
        Some("Replace") => {
            let content = step["content"].as_str().map_or(0, str::len);
            match step["pattern"]["String"].as_str() {
                Some(pattern) if !pattern.is_empty() => ratio(content, pattern.len()),
                // It may match the empty text between any two characters.
                _ => content.saturating_add(1) as u64,
            }
        }
        // A character of two bytes for many bytes.
        Some("ByteLevel") => 2,
        Some("Precompiled") => {
            let map = step["precompiled_charsmap"].as_str().unwrap_or_default();
            let longest = longest_text(&from_base64(map).unwrap_or_default());
            let longest = longest.ok_or("a precompiled map of characters is damaged")?;
            // Characters that stand for many are not of one byte in maps that are in use.
            ratio(longest, 3)
        }
        _ => 1,
    })
}

/// Bytes of the longest text in a map of characters: a length, a trie of so many bytes, and texts that
/// each end with a zero. None when the length does not fit.
fn longest_text(map: &[u8]) -> Option<usize> {
    if map.is_empty() {
        return Some(0);
    }
    let (length, rest) = map.split_first_chunk::<4>()?;
    let texts = rest.get(u32::from_le_bytes(*length) as usize..)?;
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max()
}

/// The bytes of a text in base 64; none where it is no such text.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let digit = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(digit);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_doubles_a_text_again_and_again_is_refused() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let sequence = |key: &str, steps: Vec<Value>| json!({"type": "Sequence", key: steps});
        for (part, key) in [("normalizer", "normalizers"), ("decoder", "decoders")] {
            let error = check(part, &sequence(key, vec![double.clone(); 40]));
            assert!(error.is_err_and(|error| error.contains(part) && error.contains("times")));
            // Nested ones too.
            let nested = sequence(key, vec![sequence(key, vec![double.clone(); 4]); 4]);
            assert!(check(part, &nested).is_err());
            assert_eq!(check(part, &sequence(key, vec![double.clone(); 6])), Ok(()));
        }
        let bytes = vec![json!({"type": "ByteLevel", "add_prefix_space": false}); 20];
        assert!(check("pre_tokenizer", &sequence("pretokenizers", bytes)).is_err());
        let everywhere =
            json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y".repeat(64)});
        assert!(check("normalizer", &everywhere).is_err());
        assert!(
            check("normalizer", &json!({"type": "Prepend", "prepend": "x".repeat(2000)})).is_err()
        );
        // A length of 4, a trie of 4 bytes, a text of 200: one character becomes all of it.
        let map = [&[4, 0, 0, 0, 0, 0, 0, 0][..], &[b'x'; 300], &[0]].concat();
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let encoded: String = map
            .chunks(3)
            .flat_map(|three| {
                let held = three.iter().fold(0u32, |held, byte| held << 8 | u32::from(*byte));
                let held = held << (8 * (3 - three.len()));
                (0..=three.len())
                    .map(move |n| char::from(letters[(held >> (18 - 6 * n) & 63) as usize]))
            })
            .collect();
        assert_eq!(from_base64(&encoded).as_deref(), Some(&map[..]));
        let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": encoded});
        assert!(check("normalizer", &precompiled).is_err());
    }

    #[test]
    fn what_files_in_use_ask_for_is_taken() {
        let spaces = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]});
        let albert = json!({"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "``"}, "content": "\""},
            {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]});
        for steps in [Value::Null, json!({"type": "NFC"}), spaces, albert] {
            assert_eq!(check("normalizer", &steps), Ok(()), "{steps}");
        }
    }
}
