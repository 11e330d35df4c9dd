//! Where in a YAML text a key or a value stands, and whether a key is given twice.
//!
//! The YAML parser tells a position only together with an error, so the search walks down to the
//! key and fails there on purpose.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

/// Line and column of a place in a text, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub line: usize,
    pub column: usize,
}

impl Position {
    pub fn of(error: &serde_yaml::Error) -> Option<Self> {
        error.location().map(|at| Self { line: at.line(), column: at.column() })
    }
}

/// What of a `key: value` pair is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Key,
    Value,
}

/// The position of the key or value at `path`; of the nearest parent that is there if it is not.
pub(super) fn position(text: &str, path: &[String], part: Part) -> Option<Position> {
    let exact = find(text, path, part);
    let parents = (1..path.len()).rev();
    exact.or_else(|| parents.into_iter().find_map(|depth| find(text, &path[..depth], Part::Key)))
}

/// Whether the text has a key at `path`.
pub(super) fn key_exists(text: &str, path: &[String]) -> bool {
    find(text, path, Part::Key).is_some()
}

fn find(text: &str, path: &[String], part: Part) -> Option<Position> {
    if path.is_empty() {
        return None;
    }
    let seed = Find { path, part };
    seed.deserialize(serde_yaml::Deserializer::from_str(text))
        .err()
        .filter(|error| error.to_string().contains(FOUND))
        .and_then(|error| Position::of(&error))
}

const FOUND: &str = "\u{1}found\u{1}";

#[derive(Clone, Copy)]
struct Find<'a> {
    path: &'a [String],
    part: Part,
}

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Find<'_> {
    fn leaf<E: serde::de::Error>(self) -> Result<(), E> {
        if self.path.is_empty() { Err(E::custom(FOUND)) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.leaf()
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.leaf()
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        self.leaf()
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.leaf()
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.leaf()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.leaf()
    }

    // An empty file.
    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        self.leaf()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((wanted, rest)) = self.path.split_first() else {
            return Err(A::Error::custom(FOUND));
        };
        let stop = rest.is_empty() && self.part == Part::Key;
        while let Some(found) = map.next_key_seed(KeyIs { wanted, stop })? {
            if found {
                return map.next_value_seed(Find { path: rest, part: self.part });
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((wanted, rest)) = self.path.split_first() else {
            return Err(A::Error::custom(FOUND));
        };
        let Ok(wanted) = wanted.parse::<usize>() else {
            return Ok(());
        };
        for _ in 0..wanted {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        // An element has no key: its own start stands for it.
        seq.next_element_seed(Find { path: rest, part: self.part }).map(|_| ())
    }
}

/// Compares a key; fails at it when it is the one looked for and `stop` is set.
struct KeyIs<'a> {
    wanted: &'a str,
    stop: bool,
}

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.stop => Err(E::custom(FOUND)),
            found => Ok(found),
        }
    }
}

/// Brackets that may be open at a time. The parser's time grows with the square of them, long
/// before it says itself that a text is nested too deep.
const MOST_BRACKETS: usize = 1000;

/// Fails at the second of two equal keys of one mapping, at any depth, and on a text that is nested
/// too deep to be looked at.
pub(super) fn check_unique_keys(text: &str) -> Result<(), serde_yaml::Error> {
    let mut open = 0usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MOST_BRACKETS {
            let message = format!("more than {MOST_BRACKETS} brackets are open at a time");
            return Err(serde_yaml::Error::custom(message));
        }
    }
    Unique.deserialize(serde_yaml::Deserializer::from_str(text))
}

#[derive(Clone, Copy)]
struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value without a tag")
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    // An empty file.
    fn visit_none<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key_seed(NewKey { seen: &seen })? {
            seen.insert(key);
            map.next_value_seed(Self)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Self)?.is_some() {}
        Ok(())
    }
}

struct NewKey<'a> {
    seen: &'a BTreeSet<String>,
}

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        if self.seen.contains(key) {
            return Err(E::custom(format_args!("duplicate key {key:?}; keep one of the two")));
        }
        Ok(key.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const TEXT: &str = "a: 1\nb:\n  c: [x, y]\n  d:\n    - e: 2\n    - e: 3\n";

    fn at(path: &str, part: Part) -> Option<(usize, usize)> {
        let path: Vec<String> = path.split('.').map(str::to_string).collect();
        position(TEXT, &path, part).map(|p| (p.line, p.column))
    }

    #[test]
    fn keys_and_values_are_found() {
        assert_eq!(at("a", Part::Key), Some((1, 1)));
        assert_eq!(at("a", Part::Value), Some((1, 4)));
        assert_eq!(at("b.c", Part::Key), Some((3, 3)));
        assert_eq!(at("b.c.1", Part::Value), Some((3, 10)));
        assert_eq!(at("b.d.1.e", Part::Key), Some((6, 7)));
        assert_eq!(at("b.d.1.e", Part::Value), Some((6, 10)));
    }

    #[test]
    fn a_missing_key_gives_its_parent() {
        assert_eq!(at("b.zz.y", Part::Key), Some((2, 1)));
        assert_eq!(at("zz", Part::Key), None);
    }

    #[test]
    fn the_second_of_two_keys_is_the_error() {
        let error = check_unique_keys("a: 1\nb:\n  c: 1\n  c: 2\n").unwrap_err();
        assert_eq!(Position::of(&error), Some(Position { line: 4, column: 3 }));
        assert!(error.to_string().contains("duplicate key \"c\""), "{error}");
        check_unique_keys("a: {x: 1}\nb: {x: 1}\nc: [1, 1]\n").unwrap();
        check_unique_keys("").unwrap();
    }
}
