//! The header of a Parquet page: a Thrift structure in the compact protocol, of which a few
//! numbers are read.

use std::io::Read;

/// Deepest nesting of a header that is followed; Parquet has three levels.
const DEEPEST: usize = 8;

/// How values are written, by the number Parquet gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Encoding(pub i64);

impl Encoding {
    pub const DELTA_LENGTH_BYTE_ARRAY: Self = Self(6);
    pub const DELTA_BYTE_ARRAY: Self = Self(7);
}

/// What is read of a header.
#[derive(Debug)]
pub(super) struct PageHeader {
    /// Its own length in bytes.
    pub length: u64,
    /// Length of the page, decompressed.
    pub uncompressed: u64,
    /// Length of the page in the file.
    pub compressed: u64,
    pub is_dictionary: bool,
    /// Values of the page, nulls included.
    pub values: u64,
    pub encoding: Encoding,
    /// Bytes in front of the page that are never compressed.
    pub level_bytes: u64,
    pub is_compressed: bool,
}

type Checked<T> = Result<T, String>;

impl PageHeader {
    /// Reads the header at the beginning of `input`, which holds it and its page in `most` bytes.
    pub fn read(input: impl Read, most: u64) -> Checked<Self> {
        let mut header = Self {
            length: 0,
            uncompressed: 0,
            compressed: 0,
            is_dictionary: false,
            values: 0,
            encoding: Encoding::default(),
            level_bytes: 0,
            is_compressed: true,
        };
        let mut input = Compact { input: input.take(most), read: 0 };
        let mut sizes = [None; 2];
        input.fields(0, DEEPEST, &mut |parent, field, value| {
            let count = || u64::try_from(value).map_err(|_| format!("a length of {value}"));
            match (parent, field) {
                (0, 1) => header.is_dictionary = value == 2,
                (0, 2) => sizes[0] = Some(count()?),
                (0, 3) => sizes[1] = Some(count()?),
                (5 | 7 | 8, 1) => header.values = count()?,
                (5 | 7, 2) | (8, 4) => header.encoding = Encoding(value),
                (8, 5 | 6) => header.level_bytes += count()?,
                (8, 7) => header.is_compressed = value != 0,
                _ => {}
            }
            Ok(())
        })?;
        header.length = input.read;
        let [Some(uncompressed), Some(compressed)] = sizes else {
            return Err("no length of the page".into());
        };
        (header.uncompressed, header.compressed) = (uncompressed, compressed);
        if compressed > most.saturating_sub(header.length) {
            return Err(format!(
                "{compressed} bytes, beyond the end of the column; fetch it again"
            ));
        }
        Ok(header)
    }
}

/// Hears of a number: the field of the header it stands in (0: the header itself), its own field,
/// and the number.
type OnNumber<'a> = &'a mut dyn FnMut(i16, i16, i64) -> Checked<()>;

/// Thrift's compact protocol.
struct Compact<R> {
    input: R,
    read: u64,
}

impl<R: Read> Compact<R> {
    fn byte(&mut self) -> Checked<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(|error| error.to_string())?;
        self.read += 1;
        Ok(byte[0])
    }

    fn unsigned(&mut self) -> Checked<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number of more than 64 bits".into())
    }

    fn signed(&mut self) -> Checked<i64> {
        let value = self.unsigned()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip(&mut self, bytes: u64) -> Checked<()> {
        let skipped = std::io::copy(&mut self.input.by_ref().take(bytes), &mut std::io::sink());
        if !skipped.is_ok_and(|skipped| skipped == bytes) {
            return Err("it ends too early".into());
        }
        self.read += bytes;
        Ok(())
    }

    /// Reads the fields of a structure.
    fn fields(&mut self, parent: i16, depth: usize, found: OnNumber<'_>) -> Checked<()> {
        let mut field = 0i16;
        loop {
            let head = self.byte()?;
            let kind = head & 0x0f;
            if kind == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => i16::try_from(self.signed()?).map_err(|_| "a field without a number")?,
                more => field.checked_add(i16::from(more)).ok_or("too many fields")?,
            };
            match kind {
                1 | 2 => found(parent, field, i64::from(kind == 1))?,
                3 => found(parent, field, i64::from(self.byte()? as i8))?,
                4..=6 => {
                    let value = self.signed()?;
                    found(parent, field, value)?;
                }
                // Only what stands directly in the header has a meaning here.
                12 if depth == DEEPEST => self.fields(field, depth - 1, &mut *found)?,
                _ => self.value(kind, depth)?,
            }
        }
    }

    /// Skips a value.
    fn value(&mut self, kind: u8, depth: usize) -> Checked<()> {
        let depth = depth.checked_sub(1).ok_or("nested too deep")?;
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.unsigned().map(|_| ()),
            7 => self.skip(8),
            8 => {
                let length = self.unsigned()?;
                self.skip(length)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => self.unsigned()?,
                    count => u64::from(count),
                };
                (0..count).try_for_each(|_| self.value(head & 0x0f, depth))
            }
            11 => {
                let count = self.unsigned()?;
                let kinds = if count == 0 { 0 } else { self.byte()? };
                (0..count).try_for_each(|_| {
                    self.value(kinds >> 4, depth).and_then(|()| self.value(kinds & 0x0f, depth))
                })
            }
            12 => self.fields(-1, depth, &mut |_, _, _| Ok(())),
            _ => Err(format!("a value of type {kind}")),
        }
    }
}
