//! Reads a state dict, which PyTorch stores as a pickle, without executing anything.
//!
//! A pickle is a program for a small stack machine that can import and call any Python function. This
//! reader knows the instructions that a dictionary of tensors is made of and the few names such a
//! dictionary uses. Everything else is an error. Nothing is called: a tensor becomes a description of
//! where its elements lie.

use std::collections::{BTreeMap, HashMap};

use altiplano_model::quantize::StoredAs;

/// Largest pickle that is read. That of the largest LLaMA has 100 kB.
const MAX_BYTES: usize = 1 << 20;

/// A tensor of a state dict: a view of the elements of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name of the storage in the archive.
    pub storage: String,
    /// How the elements are stored.
    pub stored: StoredAs,
    /// Elements of the storage.
    pub storage_count: u64,
    /// The first element of the tensor in the storage.
    pub offset: u64,
    /// Shape.
    pub shape: Vec<u64>,
    /// Elements between neighbours in each dimension.
    pub stride: Vec<u64>,
}

/// Place of a value among all values of the machine. Values hold places of others, not the others
/// themselves: so deep nesting, sharing and cycles cost nothing.
type Place = usize;

/// A value of the machine.
#[derive(Debug, Clone)]
enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(String),
    Tuple(Vec<Place>),
    List,
    /// A dictionary: keys and values.
    Dict(Vec<(Place, Place)>),
    Name(Name),
    /// `(storage, type, key, location, elements)`.
    Storage(StoredAs, String, u64),
    Tensor(Box<Tensor>),
}

/// What a state dict may name.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Name {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    StorageType(StoredAs),
}

impl Name {
    fn of(module: &str, name: &str) -> Result<Self, String> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "FloatStorage") => Self::StorageType(StoredAs::F32),
            ("torch", "HalfStorage") => Self::StorageType(StoredAs::F16),
            ("torch", "BFloat16Storage") => Self::StorageType(StoredAs::Bf16),
            _ => {
                return Err(format!(
                    "names {module}.{name}, expected tensors of float, half or bfloat16 and \
                     nothing else; nothing was executed"
                ));
            }
        })
    }
}

/// Reads the tensors of a state dict by name.
///
/// # Errors
/// The instruction or name that a state dict has no need of, or where the pickle ends too early.
pub fn read_state_dict(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("has {} bytes, expected at most {MAX_BYTES}", bytes.len()));
    }
    let mut machine = Machine::new(bytes);
    let top = machine.run()?;
    let Some(Value::Dict(entries)) = machine.values.get(top) else {
        return Err("is not a dictionary of tensors".into());
    };
    let mut tensors = BTreeMap::new();
    for &(key, value) in entries {
        let Value::Text(name) = machine.value(key)? else {
            return Err("has a key that is not a text".into());
        };
        let Value::Tensor(tensor) = machine.value(value)? else {
            return Err(format!("{name:?} is not a tensor"));
        };
        if tensors.insert(name.clone(), (**tensor).clone()).is_some() {
            return Err(format!("has the tensor {name:?} twice"));
        }
    }
    Ok(tensors)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Place>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Place>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let (values, stack, marks, memo) = Default::default();
        Self { bytes, at: 0, values, stack, marks, memo }
    }

    fn value(&self, place: Place) -> Result<&Value, String> {
        self.values.get(place).ok_or_else(|| "has no such value".into())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("ends at byte {}, inside a value", self.at))?;
        self.at += count;
        Ok(taken)
    }

    /// The next `N` bytes as an integer, the lowest first.
    fn integer<const N: usize>(&mut self) -> Result<u64, String> {
        Ok(self.take(N)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn text(&mut self, length: u64) -> Result<String, String> {
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "has a text that is not UTF-8".into())
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = self.text(length as u64)?;
        self.take(1)?;
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Place, String> {
        // What lies below a mark is out of reach until the mark is gone.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(format!("takes a value that is not there, before byte {}", self.at));
        }
        self.stack.pop().ok_or_else(String::new)
    }

    /// The values since the last mark.
    fn pop_to_mark(&mut self) -> Result<Vec<Place>, String> {
        let mark = self.marks.pop();
        let mark = mark.ok_or_else(|| format!("has no mark before byte {}", self.at))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let mut places = Vec::new();
        for _ in 0..count {
            places.push(self.pop()?);
        }
        places.reverse();
        self.push(Value::Tuple(places));
        Ok(())
    }

    fn run(&mut self) -> Result<Place, String> {
        loop {
            let begin = self.at;
            match self.integer::<1>()? as u8 {
                // Protocol and frames: their length is not needed.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' => self.push(Value::None),
                0x88 | 0x89 => self.push(Value::Bool),
                b'K' => {
                    let value = self.integer::<1>()?;
                    self.push(Value::Int(value as i64));
                }
                b'M' => {
                    let value = self.integer::<2>()?;
                    self.push(Value::Int(value as i64));
                }
                b'J' => {
                    let value = self.integer::<4>()? as u32;
                    self.push(Value::Int(i64::from(value.cast_signed())));
                }
                0x8A => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float);
                }
                b'X' => {
                    let length = self.integer::<4>()?;
                    let text = self.text(length)?;
                    self.push(Value::Text(text));
                }
                0x8C => {
                    let length = self.integer::<1>()?;
                    let text = self.text(length)?;
                    self.push(Value::Text(text));
                }
                b')' => self.push(Value::Tuple(Vec::new())),
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b't' => {
                    let places = self.pop_to_mark()?;
                    self.push(Value::Tuple(places));
                }
                b']' => self.push(Value::List),
                b'a' => drop(self.pop()?),
                b'e' => drop(self.pop_to_mark()?),
                b'}' => self.push(Value::Dict(Vec::new())),
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                b'q' => {
                    let key = self.integer::<1>()?;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.integer::<4>()?;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => {
                    let key = self.integer::<1>()?;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.integer::<4>()?;
                    self.recall(key)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Name(Name::of(&module, &name)?));
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let name = match (self.value(module)?, self.value(name)?) {
                        (Value::Text(module), Value::Text(name)) => Name::of(module, name)?,
                        _ => return Err("names something by values that are not texts".into()),
                    };
                    self.push(Value::Name(name));
                }
                b'Q' => self.storage()?,
                b'R' => self.call()?,
                // Attributes of the dictionary, such as the versions of modules.
                b'b' => drop(self.pop()?),
                other => {
                    return Err(format!(
                        "has the instruction {other:#04x} at byte {begin}, which no dictionary of \
                         tensors needs; nothing was executed"
                    ));
                }
            }
        }
    }

    /// An integer of up to eight bytes with a sign.
    fn long(&mut self) -> Result<(), String> {
        let length = self.integer::<1>()? as usize;
        if length > size_of::<i64>() {
            return Err(format!("has an integer of {length} bytes, expected at most 8"));
        }
        let bytes = self.take(length)?;
        let sign = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = [if sign { 0xFF } else { 0 }; size_of::<i64>()];
        all[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(all)));
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<(), String> {
        let top = self.stack.last().copied();
        let top = top.ok_or_else(|| format!("remembers nothing before byte {}", self.at))?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), String> {
        let place = self.memo.get(&key).copied();
        self.stack.push(place.ok_or_else(|| format!("recalls {key}, which it never stored"))?);
        Ok(())
    }

    /// Puts keys and values, in turn, into the dictionary on top of the stack.
    fn set_items(&mut self, items: &[Place]) -> Result<(), String> {
        let top = self.stack.last().copied();
        let dict = top.and_then(|top| self.values.get_mut(top));
        let Some(Value::Dict(entries)) = dict else {
            return Err("sets items of something that is not a dictionary".into());
        };
        for item in items.chunks(2) {
            let [key, value] = item else {
                return Err("sets a key without a value".into());
            };
            entries.push((*key, *value));
        }
        Ok(())
    }

    fn size(&self, place: Place) -> Result<u64, String> {
        match self.value(place)? {
            Value::Int(value) if *value >= 0 => Ok(*value as u64),
            other => Err(format!("{other:?} stands where a size is expected")),
        }
    }

    fn sizes(&self, place: Place) -> Result<Vec<u64>, String> {
        match self.value(place)? {
            Value::Tuple(places) if places.len() <= 8 => {
                places.iter().map(|place| self.size(*place)).collect()
            }
            _ => Err("has a tensor without a shape".into()),
        }
    }

    /// `("storage", type, key, location, elements)` becomes a storage.
    fn storage(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let Value::Tuple(places) = self.value(id)? else {
            return Err("refers to something that is not a storage".into());
        };
        let &[tag, kind, key, _, count] = &places[..] else {
            return Err(format!("refers to a storage by {} values, expected 5", places.len()));
        };
        let storage = match (self.value(tag)?, self.value(kind)?, self.value(key)?) {
            (Value::Text(tag), Value::Name(Name::StorageType(stored)), Value::Text(key))
                if tag == "storage" =>
            {
                Value::Storage(*stored, key.clone(), self.size(count)?)
            }
            _ => return Err("refers to something that is not a storage of numbers".into()),
        };
        self.push(storage);
        Ok(())
    }

    /// What PyTorch would call becomes a description.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Value::Name(name) = *self.value(function)? else {
            return Err("calls something that has no name".into());
        };
        let Value::Tuple(arguments) = self.value(arguments)?.clone() else {
            return Err("calls something without arguments".into());
        };
        let made = match (name, &arguments[..]) {
            (Name::OrderedDict, []) => Value::Dict(Vec::new()),
            (Name::RebuildTensor, &[storage, offset, shape, stride, ..]) => {
                let Value::Storage(stored, storage, storage_count) = self.value(storage)? else {
                    return Err("has a tensor without a storage".into());
                };
                Value::Tensor(Box::new(Tensor {
                    storage: storage.clone(),
                    stored: *stored,
                    storage_count: *storage_count,
                    offset: self.size(offset)?,
                    shape: self.sizes(shape)?,
                    stride: self.sizes(stride)?,
                }))
            }
            (Name::RebuildParameter, &[tensor, ..]) => {
                let tensor = self.value(tensor)?.clone();
                match tensor {
                    Value::Tensor(_) => tensor,
                    _ => return Err("has a parameter that is not a tensor".into()),
                }
            }
            _ => return Err(format!("calls {name:?} with {} values", arguments.len())),
        };
        self.push(made);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
    }

    /// Pushes a tensor of 2 × 3 halves.
    fn tensor() -> Vec<u8> {
        [
            &b"ctorch._utils\n_rebuild_tensor_v2\n(("[..],
            &text("storage"),
            b"ctorch\nHalfStorage\n",
            &text("7"),
            &text("cpu"),
            b"K\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR",
        ]
        .concat()
    }

    fn state_dict() -> Vec<u8> {
        let name = text("norm.weight");
        [&b"\x80\x02}q\x00("[..], &name, &tensor(), b"u."].concat()
    }

    #[track_caller]
    fn refused(bytes: &[u8], words: &str) {
        let error = read_state_dict(bytes).unwrap_err();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn a_state_dict_is_read() {
        let tensors = read_state_dict(&state_dict()).unwrap();
        let expected = Tensor {
            storage: "7".into(),
            stored: StoredAs::F16,
            storage_count: 6,
            offset: 0,
            shape: vec![2, 3],
            stride: vec![3, 1],
        };
        assert_eq!(tensors, [("norm.weight".to_string(), expected)].into());
        let whole = state_dict();
        for length in 0..whole.len() {
            assert!(read_state_dict(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn nothing_is_executed() {
        let call =
            |name: &str| [b"\x80\x02c", name.as_bytes(), b"(X\x02\x00\x00\x00lstR."].concat();
        for name in ["os\nsystem\n", "builtins\neval\n", "torch\nload\n", "torch._utils\nrebuild\n"]
        {
            let module = name.split('\n').next().unwrap();
            refused(&call(name), &format!("names {module}."));
        }
        // The same by the other instruction, and instructions that make objects.
        let stacked = [&b"\x80\x04"[..], &text("posix"), &text("system"), b"\x93."].concat();
        refused(&stacked, "names posix.system");
        for instruction in [b'i', b'o', 0x81, 0x92, 0x82, b'P', b'F', b'I', b'S', b'V', b'p', b'g']
        {
            refused(&[0x80, 2, instruction], "nothing was executed");
        }
    }

    #[test]
    fn a_pickle_that_makes_no_sense_is_refused() {
        refused(b"", "ends at byte 0");
        refused(b"K\x01.", "not a dictionary");
        refused(b"u.", "no mark");
        refused(b".", "not there");
        refused(b"K\x01(0.", "not there");
        refused(b"h\x05.", "never stored");
        refused(b"q\x05.", "remembers nothing");
        refused(b"}K\x01K\x02s.", "not a text");
        refused(b"}(K\x01u.", "without a value");
        refused(&[&b"}("[..], &text("a"), b"K\x01u."].concat(), "\"a\" is not a tensor");
        let twice = [&b"}("[..], &text("a"), &tensor(), &text("a"), &tensor(), b"u."].concat();
        refused(&twice, "\"a\" twice");
        refused(b"ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict with 1");
        refused(b"X\xff\xff\xff\xff.", "inside a value");
        refused(b"\x8a\x09123456789.", "expected at most 8");
        refused(b"K\x01Q.", "not a storage");
        let negative = tensor();
        let at = negative.windows(2).rposition(|pair| pair == b"K\x02").unwrap();
        let negative =
            [&b"}("[..], &text("a"), &negative[..at], b"\x8a\x01\xff", &negative[at + 2..], b"u."];
        refused(&negative.concat(), "where a size is expected");
    }

    /// Whatever single byte changes, it is a state dict or an error.
    #[test]
    fn changed_bytes_are_never_more_than_an_error() {
        let whole = state_dict();
        for at in 0..whole.len() {
            for value in 0..=u8::MAX {
                let mut changed = whole.clone();
                changed[at] = value;
                let _ = read_state_dict(&changed);
            }
        }
    }

    /// Deep nesting, sharing and cycles cost no more than their instructions.
    #[test]
    fn hostile_nesting_is_bounded() {
        let deep = [&b")"[..], &[0x85].repeat(1_000_000), b"."].concat();
        refused(&deep, "not a dictionary");
        let doubled = [&b")q\x00"[..], &b"h\x00h\x00\x86q\x00".repeat(100_000), b"."].concat();
        refused(&doubled, "not a dictionary");
        refused(&[&b"}q\x00"[..], &text("a"), b"h\x00s."].concat(), "\"a\" is not a tensor");
        refused(&vec![b'N'; MAX_BYTES + 1], "at most");
    }
}
