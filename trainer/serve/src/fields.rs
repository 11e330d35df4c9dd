//! The fields of a request, one by one: what is known and works, what is known and does not, and what
//! is not known.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};

/// The fields of a request that nobody has read yet.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of a JSON object.
    ///
    /// # Errors
    /// 400 when it is something else.
    pub fn of(body: Value) -> ApiResult<Self> {
        match body {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(ApiError::invalid("the body: expected a JSON object")),
        }
    }

    /// Takes a field out; None when it is missing or null.
    ///
    /// # Errors
    /// 400 that names the field, what was found and what was expected.
    pub fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
        expected: &str,
    ) -> ApiResult<Option<T>> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(&value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(ApiError::field(
                    name,
                    format!("found {}, expected {expected}", shown(&value)),
                )),
            },
        }
    }

    /// Takes a field as it is; None when it is missing or null.
    pub fn take_value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// A number within bounds.
    ///
    /// # Errors
    /// As [`Fields::take`].
    pub fn number(
        &mut self,
        name: &str,
        expected: &str,
        fits: impl Fn(f64) -> bool,
    ) -> ApiResult<Option<f32>> {
        let Some(value) = self.take::<f64>(name, expected)? else { return Ok(None) };
        if !(value.is_finite() && fits(value)) {
            return Err(ApiError::field(name, format!("found {value}, expected {expected}")));
        }
        Ok(Some(value as f32))
    }

    /// Refuses fields that are known but do nothing here, unless they say nothing.
    ///
    /// # Errors
    /// 400 that names the first one.
    pub fn refuse(&mut self, names: &[&str]) -> ApiResult<()> {
        for name in names {
            let says_nothing = |value: &Value| match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(list) => list.is_empty(),
                Value::Object(object) => object.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if self.0.remove(*name).is_some_and(|value| !says_nothing(&value)) {
                return Err(ApiError::field(name, "this server does not support it; leave it out"));
            }
        }
        Ok(())
    }

    /// Drops fields that are about the sender or the bill, not about the answer.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }

    /// Logs every name that is left, once in the life of the process.
    pub fn log_unknown(self) {
        static SEEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        /// Names that are remembered; more would let a client fill the memory.
        const MOST: usize = 100;
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        for name in self.0.keys() {
            let name: String = name.chars().take(60).collect();
            if seen.len() < MOST && seen.insert(name.clone()) {
                tracing::info!(
                    field = name,
                    "a request has a field that is not known; it is ignored"
                );
            }
        }
    }
}

/// A value for a message, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_name_the_field_what_was_found_and_what_was_expected() {
        let mut fields =
            Fields::of(json!({"n": "two", "top_p": 3, "best": null, "suffix": "x"})).unwrap();
        let error = fields.take::<usize>("n", "a whole number").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("n"));
        assert_eq!(error.message, "n: found \"two\", expected a whole number");
        let error =
            fields.number("top_p", "above 0, at most 1", |p| p > 0.0 && p <= 1.0).unwrap_err();
        assert_eq!(error.message, "top_p: found 3, expected above 0, at most 1");
        assert_eq!(fields.take::<usize>("best", "").unwrap(), None);
        assert_eq!(fields.refuse(&["suffix"]).unwrap_err().param.as_deref(), Some("suffix"));
        assert!(Fields::of(json!([1])).is_err());
    }
}
