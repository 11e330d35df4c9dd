//! JSON for templates and back: objects keep the order of their keys, and `tojson` writes as Python does.

use std::io;
use std::sync::Arc;

use minijinja::value::{Enumerator, Kwargs, Object, ObjectExt, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Value as Json};

/// A JSON object inside a template, its keys in their order.
#[derive(Debug)]
struct JsonObject(Vec<(String, Value)>);

impl Object for JsonObject {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let key = key.as_str()?;
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|object| {
            Box::new(object.0.iter().map(|(name, _)| Value::from(name.as_str())))
        })
    }
}

/// What a template sees of a JSON value; strings go through `text`.
pub(super) fn to_template(json: &Json, text: &dyn Fn(&str) -> String) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (_, Some(value)) => Value::from(value),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(value) => Value::from(text(value)),
        Json::Array(values) => values.iter().map(|value| to_template(value, text)).collect(),
        Json::Object(object) => object_to_template(object, text),
    }
}

/// As [`to_template`] for an object.
pub(super) fn object_to_template(object: &Map<String, Json>, text: &dyn Fn(&str) -> String) -> Value {
    let pairs = object.iter().map(|(key, value)| (key.clone(), to_template(value, text)));
    Value::from_object(JsonObject(pairs.collect()))
}

/// The filter `tojson(indent=…)`.
pub(super) fn tojson(value: &Value, indent: Option<usize>, arguments: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => arguments.get::<Option<usize>>("indent")?,
    };
    // Python's `json.dumps` takes more; the text is UTF-8 and keys keep their order in any case.
    for known in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = arguments.get(known)?;
    }
    arguments.assert_all_used()?;
    let json = from_template(value, 0)?;
    let mut out = Vec::new();
    let written = match indent.map(|indent| " ".repeat(indent.min(16))) {
        Some(indent) => {
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            write(&json, &mut out, formatter)
        }
        None => write(&json, &mut out, PythonFormatter),
    };
    let failed = |reason: String| Error::new(ErrorKind::InvalidOperation, reason);
    written.map_err(|error| failed(format!("tojson: {error}")))?;
    String::from_utf8(out).map(Value::from_safe_string).map_err(|error| failed(error.to_string()))
}

fn write(json: &Json, out: &mut Vec<u8>, formatter: impl Formatter) -> serde_json::Result<()> {
    serde::Serialize::serialize(json, &mut serde_json::Serializer::with_formatter(out, formatter))
}

/// Deepest nesting that `tojson` writes.
const DEEPEST: usize = 64;

fn from_template(value: &Value, depth: usize) -> Result<Json, Error> {
    if depth > DEEPEST {
        let reason = format!("tojson: nested deeper than {DEEPEST} levels");
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    let unfit = || {
        let reason = format!("tojson: a value of kind {} is not JSON", value.kind());
        Error::new(ErrorKind::InvalidOperation, reason)
    };
    Ok(match value.kind() {
        ValueKind::Undefined | ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => match value.as_i64() {
            Some(number) if value.is_integer() => Json::from(number),
            _ => f64::try_from(value.clone()).map_or(Json::Null, Json::from),
        },
        ValueKind::String => Json::from(value.as_str().ok_or_else(unfit)?),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| from_template(&item, depth + 1));
            Json::Array(items.collect::<Result<_, _>>()?)
        }
        ValueKind::Map => {
            let mut object = Map::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                object.insert(key.to_string(), from_template(&item, depth + 1)?);
            }
            Json::Object(object)
        }
        _ => return Err(unfit()),
    })
}

/// One line, with a space after every comma and colon.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
