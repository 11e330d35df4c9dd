//! A GGUF file as bytes: what its header says, held against what is there.
//!
//! Nothing is allocated by a number that the file claims: keys, values and tensors are read one after
//! the other until the file ends.

use std::collections::BTreeMap;
use std::ops::Range;

use altiplano_model::quantize::StoredAs;

use super::{ALIGNMENT, MAGIC, TENSOR_TYPES, VERSION, key};

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;
/// Most arrays inside each other.
const MAX_NESTING: u32 = 3;
/// Largest alignment that is believed.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// What the header of a file says.
#[derive(Debug)]
pub struct Contents {
    /// Keys and values.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorPlace>,
}

/// A value of the header.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer that is not negative.
    Unsigned(u64),
    /// A negative integer.
    Negative(i64),
    /// A 32-bit number.
    Float32(f32),
    /// A 64-bit number.
    Float64(f64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    Text(String),
    /// Several values of one type.
    Array {
        /// Number of the type of the elements.
        element: u32,
        /// Elements.
        count: usize,
        /// Where they lie in the file.
        bytes: Range<usize>,
    },
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// Dimensions, fastest first: the row length begins.
    pub dimensions: Vec<usize>,
    /// How elements are stored.
    pub stored: StoredAs,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// Types of values by their number in the file.
pub(super) mod value_type {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// Reads on from a place in the bytes.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            return Err(format!(
                "the file ends inside {what}: {count} bytes expected at byte {}, {} are left",
                self.at,
                self.bytes.len().saturating_sub(self.at)
            ));
        };
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, String> {
        let length = self.u64(what)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))
    }

    pub(super) fn f32(&mut self, what: &str) -> Result<f32, String> {
        Ok(f32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn i32(&mut self, what: &str) -> Result<i32, String> {
        Ok(i32::from_le_bytes(self.array(what)?))
    }

    fn value(&mut self, kind: u32, what: &str, nesting: u32) -> Result<Value, String> {
        let integer = |value: i64| match u64::try_from(value) {
            Ok(value) => Value::Unsigned(value),
            Err(_) => Value::Negative(value),
        };
        Ok(match kind {
            value_type::U8 => Value::Unsigned(u8::from_le_bytes(self.array(what)?).into()),
            value_type::I8 => integer(i8::from_le_bytes(self.array(what)?).into()),
            value_type::U16 => Value::Unsigned(u16::from_le_bytes(self.array(what)?).into()),
            value_type::I16 => integer(i16::from_le_bytes(self.array(what)?).into()),
            value_type::U32 => Value::Unsigned(self.u32(what)?.into()),
            value_type::I32 => integer(self.i32(what)?.into()),
            value_type::F32 => Value::Float32(self.f32(what)?),
            value_type::BOOL => match u8::from_le_bytes(self.array(what)?) {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("{what}: found {other}, expected 0 or 1")),
            },
            value_type::STRING => Value::Text(self.text(what)?.to_string()),
            value_type::ARRAY => self.array_value(what, nesting)?,
            value_type::U64 => Value::Unsigned(self.u64(what)?),
            value_type::I64 => integer(i64::from_le_bytes(self.array(what)?)),
            value_type::F64 => Value::Float64(f64::from_le_bytes(self.array(what)?)),
            other => return Err(format!("{what}: found type {other}, expected 0 to 12")),
        })
    }

    /// An array is walked through, so that its end is known, and kept as a place.
    fn array_value(&mut self, what: &str, nesting: u32) -> Result<Value, String> {
        if nesting == MAX_NESTING {
            return Err(format!("{what}: more than {MAX_NESTING} arrays inside each other"));
        }
        let element = self.u32(what)?;
        let count = usize::try_from(self.u64(what)?).unwrap_or(usize::MAX);
        let begin = self.at;
        match fixed_size(element) {
            Some(size) => {
                self.take(count.saturating_mul(size), what)?;
            }
            // Each element takes at least a byte, so the file's end bounds the loop.
            None => {
                for _ in 0..count {
                    match element {
                        value_type::STRING => drop(self.text(what)?),
                        _ => drop(self.value(element, what, nesting + 1)?),
                    }
                }
            }
        }
        Ok(Value::Array { element, count, bytes: begin..self.at })
    }
}

fn fixed_size(kind: u32) -> Option<usize> {
    match kind {
        value_type::U8 | value_type::I8 | value_type::BOOL => Some(1),
        value_type::U16 | value_type::I16 => Some(2),
        value_type::U32 | value_type::I32 | value_type::F32 => Some(4),
        value_type::U64 | value_type::I64 | value_type::F64 => Some(8),
        _ => None,
    }
}

/// Reads the header of a file and checks that every tensor lies inside it.
///
/// # Errors
/// What was found and what was expected.
pub fn parse(bytes: &[u8]) -> Result<Contents, String> {
    let mut cursor = Cursor::new(bytes, 0);
    if cursor.take(4, "the magic number").ok() != Some(MAGIC) {
        return Err("is not a GGUF file: it does not begin with \"GGUF\"".into());
    }
    let version = cursor.u32("the version")?;
    if version != VERSION && version != 2 {
        return Err(format!("is GGUF of version {version}, expected 2 or 3, little-endian"));
    }
    let tensor_count = cursor.u64("the number of tensors")?;
    let value_count = cursor.u64("the number of keys")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..value_count {
        let name = cursor.text("the name of a key")?;
        let kind = cursor.u32(name)?;
        let value = cursor.value(kind, name, 0)?;
        if metadata.insert(name.to_string(), value).is_some() {
            return Err(format!("has the key {name:?} twice"));
        }
    }
    let alignment = alignment(&metadata)?;
    let mut entries = Vec::new();
    for _ in 0..tensor_count {
        entries.push(tensor_entry(&mut cursor)?);
    }
    let data = cursor.at.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    let mut tensors = BTreeMap::new();
    for entry in entries {
        let place = entry.place(data, alignment, bytes.len())?;
        if tensors.insert(entry.name.to_string(), place).is_some() {
            return Err(format!("has the tensor {:?} twice", entry.name));
        }
    }
    refuse_overlap(&tensors)?;
    Ok(Contents { metadata, tensors })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<usize, String> {
    match metadata.get(key::ALIGNMENT) {
        None => Ok(ALIGNMENT),
        Some(Value::Unsigned(found)) if found.is_power_of_two() && *found <= MAX_ALIGNMENT => {
            Ok(*found as usize)
        }
        Some(found) => Err(format!("{}: found {found:?}, expected a power of two", key::ALIGNMENT)),
    }
}

/// What the header says of a tensor.
struct TensorEntry<'a> {
    name: &'a str,
    dimensions: Vec<usize>,
    stored: StoredAs,
    offset: u64,
}

fn tensor_entry<'a>(cursor: &mut Cursor<'a>) -> Result<TensorEntry<'a>, String> {
    let name = cursor.text("the name of a tensor")?;
    let count = cursor.u32(name)?;
    if !(1..=MAX_DIMENSIONS).contains(&count) {
        return Err(format!("tensor {name:?}: found {count} dimensions, expected 1 to 4"));
    }
    let mut dimensions = Vec::new();
    for _ in 0..count {
        dimensions.push(usize::try_from(cursor.u64(name)?).unwrap_or(usize::MAX));
    }
    let kind = cursor.u32(name)?;
    let stored = TENSOR_TYPES.iter().find(|(number, _)| *number == kind);
    let Some(&(_, stored)) = stored else {
        let known: Vec<&str> = TENSOR_TYPES.iter().map(|(_, stored)| stored.name()).collect();
        let known = known.join(", ");
        return Err(format!("tensor {name:?}: found type {kind}, expected one of {known}"));
    };
    Ok(TensorEntry { name, dimensions, stored, offset: cursor.u64(name)? })
}

impl TensorEntry<'_> {
    /// Where it lies in a file of `length` bytes whose tensors begin at `data`.
    fn place(&self, data: usize, alignment: usize, length: usize) -> Result<TensorPlace, String> {
        let Self { name, dimensions, stored, offset } = self;
        let (columns, others) =
            (dimensions.first().copied().unwrap_or(0), dimensions.iter().skip(1));
        let bytes = others.fold(stored.row_bytes(columns), |bytes, n| bytes?.checked_mul(*n));
        let Some(bytes) = bytes.filter(|bytes| *bytes > 0) else {
            return Err(format!(
                "tensor {name:?}: {dimensions:?} of {}: expected rows of whole blocks of {}",
                stored.name(),
                stored.block_len()
            ));
        };
        if !offset.is_multiple_of(alignment as u64) {
            return Err(format!(
                "tensor {name:?}: begins at {offset}, expected a multiple of {alignment}"
            ));
        }
        let begin = usize::try_from(*offset).ok().and_then(|offset| data.checked_add(offset));
        let end = begin.and_then(|begin| begin.checked_add(bytes));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= length => Ok(TensorPlace {
                dimensions: dimensions.clone(),
                stored: *stored,
                bytes: begin..end,
            }),
            _ => Err(format!(
                "tensor {name:?}: {bytes} bytes at {offset} behind byte {data}, but the file has \
                 {length}: it is cut short or its header is wrong"
            )),
        }
    }
}

fn refuse_overlap(tensors: &BTreeMap<String, TensorPlace>) -> Result<(), String> {
    let mut places: Vec<_> = tensors.iter().collect();
    places.sort_by_key(|(_, place)| place.bytes.start);
    for pair in places.windows(2) {
        if let [(a, before), (b, after)] = pair
            && after.bytes.start < before.bytes.end
        {
            return Err(format!("the tensors {a:?} and {b:?} overlap"));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn header(tensors: u64, keys: u64) -> Vec<u8> {
        [&b"GGUF"[..], &3u32.to_le_bytes(), &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    }

    fn tensor(name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
        let mut bytes = text(name);
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes
    }

    /// A header with these tensors and `data` bytes behind it.
    fn file(tensors: &[Vec<u8>], data: usize) -> Vec<u8> {
        let mut bytes = header(tensors.len() as u64, 0);
        bytes.extend(tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    }

    #[track_caller]
    fn refused(bytes: &[u8], words: &str) {
        let error = parse(bytes).unwrap_err();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn tensors_lie_where_the_header_says() {
        let whole = file(&[tensor("a", &[4, 2], 0, 0), tensor("b", &[32], 8, 32)], 66);
        let contents = parse(&whole).unwrap();
        let (a, b) = (&contents.tensors["a"], &contents.tensors["b"]);
        assert_eq!((a.bytes.len(), b.bytes.len()), (32, 34));
        assert_eq!(b.bytes.end, whole.len());
        assert_eq!(b.stored, StoredAs::Q8_0);
        // Cut anywhere it is an error, and never a panic.
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "{length}");
        }
    }

    /// Whatever single byte changes, tensors lie inside the file or it is an error.
    #[test]
    fn changed_bytes_are_never_more_than_an_error() {
        let keys =
            [header(2, 1), text("k"), vec![9, 0, 0, 0, 8, 0, 0, 0, 1], vec![0; 7], text("v")];
        let mut whole = keys.concat();
        whole.extend([tensor("a", &[4, 2], 0, 0), tensor("b", &[32], 8, 32)].concat());
        whole.resize(whole.len().next_multiple_of(32) + 66, 0);
        assert!(parse(&whole).is_ok());
        for at in 0..whole.len() {
            for value in 0..=u8::MAX {
                let mut changed = whole.clone();
                changed[at] = value;
                if let Ok(contents) = parse(&changed) {
                    let inside = |place: &TensorPlace| place.bytes.end <= changed.len();
                    assert!(contents.tensors.values().all(inside), "{at}: {value}");
                }
            }
        }
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        refused(b"GGUX", "is not a GGUF file");
        refused(&[&b"GGUF"[..], &1u32.to_le_bytes(), &[0; 16]].concat(), "version 1");
        // Numbers of keys, tensors, elements and bytes beyond the file allocate nothing.
        refused(&header(u64::MAX, 0), "ends inside the name of a tensor");
        refused(&header(0, u64::MAX), "ends inside the name of a key");
        let key = |value: &[u8]| [&header(0, 1)[..], &text("k"), value].concat();
        let array = |element: u32, count: u64| {
            let kind = value_type::ARRAY.to_le_bytes();
            key(&[&kind[..], &element.to_le_bytes(), &count.to_le_bytes()].concat())
        };
        refused(&array(value_type::F64, u64::MAX), "ends inside k");
        refused(&array(value_type::STRING, u64::MAX), "ends inside k");
        refused(&array(99, 1), "type 99");
        refused(
            &key(&[&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()),
            "ends inside k",
        );
        refused(&key(&[&7u32.to_le_bytes()[..], &[2]].concat()), "expected 0 or 1");
        let mut deep = value_type::ARRAY.to_le_bytes().to_vec();
        for _ in 0..1000 {
            deep.extend(value_type::ARRAY.to_le_bytes());
            deep.extend(1u64.to_le_bytes());
        }
        refused(&key(&deep), "arrays inside each other");
        let twice = [text("k"), vec![0, 0, 0, 0, 1]].concat().repeat(2);
        refused(&[header(0, 2), twice].concat(), "\"k\" twice");

        refused(&file(&[tensor("a", &[4], 0, 0), tensor("a", &[4], 0, 32)], 48), "\"a\" twice");
        refused(&file(&[tensor("a", &[16], 0, 0), tensor("b", &[4], 0, 32)], 64), "overlap");
        refused(&file(&[tensor("a", &[16], 0, 0)], 60), "cut short");
        refused(&file(&[tensor("a", &[4], 0, u64::MAX - 31)], 64), "cut short");
        refused(&file(&[tensor("a", &[4], 0, 4)], 64), "multiple of 32");
        refused(&file(&[tensor("a", &[1 << 40, 1 << 40], 0, 0)], 64), "whole blocks");
        refused(&file(&[tensor("a", &[33], 8, 0)], 64), "whole blocks of 32");
        refused(&file(&[tensor("a", &[0], 0, 0)], 64), "whole blocks");
        refused(&file(&[tensor("a", &[32], 13, 0)], 64), "type 13");
        refused(&file(&[tensor("a", &[1; 5], 0, 0)], 64), "5 dimensions");
    }
}
