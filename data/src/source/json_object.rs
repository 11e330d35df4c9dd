//! A JSON object of which a few fields are wanted. All of it is checked; what is not wanted takes no
//! memory, of which a value needs up to a hundred times its text.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most elements kept of a list.
const MOST_ELEMENTS: usize = 1000;

/// The fields of the object `line` whose names are `wanted`: text, numbers, booleans and lists of
/// them, of which the first thousand elements; anything else in them is null. None when the line
/// holds something other than an object.
///
/// # Errors
/// When the line is not JSON.
pub(super) fn wanted_fields(
    line: &str,
    wanted: &dyn Fn(&str) -> bool,
) -> serde_json::Result<Option<Map<String, Value>>> {
    let mut parser = serde_json::Deserializer::from_str(line);
    let object = Object { wanted }.deserialize(&mut parser)?;
    parser.end()?;
    Ok(object)
}

/// Implements the methods of a visitor for values that are not made of others.
macro_rules! visit_scalars {
    ($value:ty, $scalar:expr) => {
        type Value = $value;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any JSON value")
        }

        fn visit_unit<E: Error>(self) -> Result<$value, E> {
            Ok($scalar(Value::Null))
        }

        fn visit_bool<E: Error>(self, value: bool) -> Result<$value, E> {
            Ok($scalar(Value::Bool(value)))
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<$value, E> {
            Ok($scalar(Value::from(value)))
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<$value, E> {
            Ok($scalar(Value::from(value)))
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<$value, E> {
            Ok($scalar(Number::from_f64(value).map_or(Value::Null, Value::Number)))
        }
    };
}

/// The object itself.
struct Object<'a> {
    wanted: &'a dyn Fn(&str) -> bool,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Option<Map<String, Value>>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    visit_scalars!(Option<Map<String, Value>>, |_: Value| None);

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Checked.visit_seq(list)?;
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if (self.wanted)(&key) {
                let value = object.next_value_seed(Kept { lists: true })?;
                fields.insert(key, value);
            } else {
                object.next_value_seed(Checked)?;
            }
        }
        Ok(Some(fields))
    }
}

/// A value of a wanted field.
#[derive(Clone, Copy)]
struct Kept {
    /// Whether it may be a list.
    lists: bool,
}

impl<'de> DeserializeSeed<'de> for Kept {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Value, D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Kept {
    visit_scalars!(Value, |value: Value| value);

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        while self.lists && elements.len() < MOST_ELEMENTS {
            match list.next_element_seed(Self { lists: false })? {
                Some(element) => elements.push(element),
                None => return Ok(Value::Array(elements)),
            }
        }
        Checked.visit_seq(list)?;
        Ok(if self.lists { Value::Array(elements) } else { Value::Null })
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Value, A::Error> {
        Checked.visit_map(object)?;
        Ok(Value::Null)
    }
}

/// A value that is only checked, as strictly as one that is kept.
#[derive(Clone, Copy)]
struct Checked;

impl<'de> DeserializeSeed<'de> for Checked {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<(), D::Error> {
        parser.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checked {
    visit_scalars!((), |_: Value| ());

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while object.next_key_seed(Self)?.is_some() {
            object.next_value_seed(Self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn fields(line: &str) -> serde_json::Result<Option<Map<String, Value>>> {
        wanted_fields(line, &|name| matches!(name, "text" | "id" | "list"))
    }

    #[test]
    fn wanted_fields_are_as_a_parser_of_everything_has_them() {
        for line in [
            r#"{"text": "a\u00e9\n\ud83d\ude00", "id": 7, "other": [1, {"x": null}], "list": ["a", 1]}"#,
            r#"{"id": -3, "text": null, "list": []}"#,
            r#"{"id": 1.50, "text": true}"#,
            r#"{"id": 18446744073709551615, "text": "first", "text": "last"}"#,
            "{}",
        ] {
            let mut all: Map<String, Value> = serde_json::from_str(line).unwrap();
            all.retain(|name, _| matches!(name.as_str(), "text" | "id" | "list"));
            assert_eq!(fields(line).unwrap(), Some(all), "{line}");
        }
        for line in ["7", "\"text\"", "[{\"text\": \"a\"}]", "null", "true", "-1.5"] {
            assert_eq!(fields(line).unwrap(), None, "{line}");
        }
    }

    #[test]
    fn what_is_not_json_is_an_error_wherever_it_stands() {
        let deep = format!("{{\"x\": {}1{}}}", "[".repeat(200), "]".repeat(200));
        for line in [
            "",
            "{",
            "{\"text\": \"a\"} x",
            "{\"x\": [1, 2}",
            "{\"x\": \"\\ud800\"}",
            "{\"x\": 1e999}",
            "{\"x\": {\"y\": tru}}",
            &deep,
        ] {
            serde_json::from_str::<Value>(line).unwrap_err();
            fields(line).unwrap_err();
        }
    }

    #[test]
    fn of_wanted_fields_too_only_what_is_of_use_is_kept() {
        let line = format!(
            "{{\"list\": [[1], {{\"a\": 1}}, {}0], \"text\": {{\"a\": 1}}}}",
            "0, ".repeat(5000)
        );
        let found = fields(&line).unwrap().unwrap();
        let list = found["list"].as_array().unwrap();
        assert_eq!(
            (list.len(), &list[0], &list[1], &list[2]),
            (1000, &Value::Null, &Value::Null, &Value::from(0))
        );
        assert_eq!(found["text"], Value::Null);
    }
}
