//! `.pth` files: ZIP archives, stored without compression, with a pickled state dict and a file for
//! each storage.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Write};
use std::ops::Range;
use std::path::Path;

use altiplano_data::progress::Progress;
use altiplano_model::mapped_file::{MappedBytes, MappedFile};
use altiplano_model::quantize::StoredAs;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::pickle;
use crate::error::{Result, TrainerError};
use crate::interop::rows::{Part, Rows};
use crate::interop::stored_model::{file_error, tensor_error};

/// Storages begin at multiples of this, as PyTorch writes them.
const ALIGNMENT: u16 = 64;
/// Most entries of an archive that is read. That of the largest LLaMA has about 900.
const MAX_ENTRIES: usize = 1 << 20;
/// Sizes from here on need the larger fields of the format.
const LARGE: usize = 1 << 31;

/// An archive that was read: its tensors and where they lie.
#[derive(Debug)]
pub struct Archive {
    file: MappedFile,
    tensors: BTreeMap<String, (StoredTensor, Range<usize>)>,
}

/// A tensor of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
    /// How the elements are stored.
    pub stored: StoredAs,
}

impl Archive {
    /// Opens an archive and checks that every tensor lies inside it.
    ///
    /// # Errors
    /// What is not as PyTorch writes it; anything in the pickle that is not a tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let tensors = read(&file).map_err(|reason| file_error(path, reason))?;
        Ok(Self { file, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor and its bytes; none when there is no such tensor.
    pub fn tensor(&self, name: &str) -> Option<(&StoredTensor, MappedBytes<'_>)> {
        let (tensor, range) = self.tensors.get(name)?;
        Some((tensor, self.file.part(range.clone())?))
    }
}

fn read(
    bytes: &[u8],
) -> std::result::Result<BTreeMap<String, (StoredTensor, Range<usize>)>, String> {
    let broken = |error: zip::result::ZipError| {
        format!("is not a ZIP archive as torch.save writes it: {error}")
    };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    if archive.len() > MAX_ENTRIES {
        return Err(format!("has {} entries, expected at most {MAX_ENTRIES}", archive.len()));
    }
    let mut storages = BTreeMap::new();
    let mut state_dict = None;
    for n in 0..archive.len() {
        let entry = archive.by_index_raw(n).map_err(broken)?;
        // Names begin with that of the archive, whatever it is.
        let name = entry.name().map_err(broken)?;
        let name = name.split_once('/').map_or("", |(_, name)| name);
        let size = usize::try_from(entry.size()).unwrap_or(usize::MAX);
        let stored = entry.compression() == CompressionMethod::Stored;
        if entry.encrypted() || !stored || entry.compressed_size() != entry.size() {
            return Err(format!("{name:?} is compressed or encrypted, expected it stored"));
        }
        let begin = entry.data_start().and_then(|begin| usize::try_from(begin).ok());
        let end = begin.and_then(|begin| begin.checked_add(size));
        let range =
            begin.zip(end).and_then(|(begin, end)| Some((begin..end, bytes.get(begin..end)?)));
        let Some((range, content)) = range else {
            return Err(format!("{name:?} goes beyond the file"));
        };
        if name == "data.pkl" {
            state_dict = Some(content);
        } else if name == "byteorder" && content != b"little" {
            return Err("its numbers are not little-endian".into());
        } else if let Some(key) = name.strip_prefix("data/") {
            storages.insert(key.to_string(), range);
        }
    }
    let state_dict = state_dict.ok_or("has no data.pkl, which torch.save writes")?;
    let tensors = pickle::read_state_dict(state_dict).map_err(|e| format!("data.pkl: {e}"))?;
    let place = |(name, tensor)| match locate(&tensor, &storages) {
        Ok(place) => Ok((name, place)),
        Err(reason) => Err(format!("tensor {name:?}: {reason}")),
    };
    tensors.into_iter().map(place).collect()
}

/// Where the elements of a tensor lie in the file.
fn locate(
    tensor: &pickle::Tensor,
    storages: &BTreeMap<String, Range<usize>>,
) -> std::result::Result<(StoredTensor, Range<usize>), String> {
    let storage = storages.get(&tensor.storage);
    let storage = storage.ok_or_else(|| format!("its storage {:?} is missing", tensor.storage))?;
    let size = tensor.stored.block_bytes() as u64;
    if tensor.storage_count.checked_mul(size) != Some(storage.len() as u64) {
        return Err(format!(
            "its storage has {} bytes, expected {} elements of {size}",
            storage.len(),
            tensor.storage_count
        ));
    }
    // Rows follow each other: no transposed or spread view.
    let mut count = 1u64;
    for (length, stride) in tensor.shape.iter().zip(&tensor.stride).rev() {
        if *stride != count && *length != 1 {
            return Err(format!("strides {:?}, expected rows in order", tensor.stride));
        }
        count = count.checked_mul(*length).ok_or("its shape is too large")?;
    }
    let end = tensor.offset.checked_add(count).filter(|end| *end <= tensor.storage_count);
    let whole = tensor.shape.len() == tensor.stride.len();
    let Some(end) = end.filter(|_| whole) else {
        return Err(format!(
            "{count} elements from {} on, its storage has {}",
            tensor.offset, tensor.storage_count
        ));
    };
    // Both are bounded by the bytes of the storage.
    let place = |element: u64| storage.start + (element * size) as usize;
    let shape = tensor.shape.iter().map(|n| *n as usize).collect();
    Ok((StoredTensor { shape, stored: tensor.stored }, place(tensor.offset)..place(end)))
}

/// A tensor on its way into an archive.
pub(super) struct NewTensor<'a> {
    pub name: String,
    pub rows: Rows<'a>,
    pub part: Part,
}

/// Writes an archive that `torch.load` reads, with the tensors in this order.
pub(super) fn write(path: &Path, tensors: &[NewTensor<'_>], progress: &Progress) -> Result<()> {
    let archive = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |error: zip::result::ZipError| TrainerError::Io {
        path: path.to_path_buf(),
        source: error.into(),
    };
    let file = File::create(path).map_err(TrainerError::io(path))?;
    let mut zip = ZipWriter::new(file);
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(zip::DateTime::default())
        .unix_permissions(0o644)
        .with_alignment(ALIGNMENT);
    let small = |zip: &mut ZipWriter<File>, name: &str, bytes: &[u8]| {
        zip.start_file(format!("{archive}/{name}"), options).map_err(failed)?;
        zip.write_all(bytes).map_err(TrainerError::io(path))
    };
    small(&mut zip, "data.pkl", &state_dict(tensors))?;
    small(&mut zip, "byteorder", b"little")?;
    for (key, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.part.bytes().unwrap_or(usize::MAX);
        let options = options.large_file(bytes >= LARGE);
        zip.start_file(format!("{archive}/data/{key}"), options).map_err(failed)?;
        tensor.rows.write(&tensor.part, &mut zip, path, progress)?;
    }
    small(&mut zip, "version", b"3\n")?;
    let file = zip.finish().map_err(failed)?;
    file.sync_all().map_err(TrainerError::io(path))
}

/// The pickle of a dictionary of tensors, each the whole of a storage of its own.
fn state_dict(tensors: &[NewTensor<'_>]) -> Vec<u8> {
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (key, tensor) in tensors.iter().enumerate() {
        let (rows, columns) = (tensor.part.rows.len(), tensor.part.columns.len());
        let storage: &[u8] = match tensor.part.stored {
            StoredAs::F16 => b"HalfStorage",
            StoredAs::Bf16 => b"BFloat16Storage",
            _ => b"FloatStorage",
        };
        push_text(&mut out, &tensor.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        push_text(&mut out, "storage");
        out.extend(b"ctorch\n");
        out.extend(storage);
        out.push(b'\n');
        push_text(&mut out, &key.to_string());
        push_text(&mut out, "cpu");
        push_integer(&mut out, rows * columns);
        out.extend(b"tQ");
        push_integer(&mut out, 0);
        if tensor.rows.shape.is_vector {
            push_integer(&mut out, columns);
            out.push(0x85);
            push_integer(&mut out, 1);
            out.push(0x85);
        } else {
            push_integer(&mut out, rows);
            push_integer(&mut out, columns);
            out.push(0x86);
            push_integer(&mut out, columns);
            push_integer(&mut out, 1);
            out.push(0x86);
        }
        // No gradient is wanted, and there are no hooks.
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn push_integer(out: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(value) => {
            out.push(b'J');
            out.extend(value.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8A, 8]);
            out.extend((value as u64).to_le_bytes());
        }
    }
}

/// The error of a tensor of an archive.
pub(super) fn unfit(
    archive: &Archive,
    name: &str,
    found: String,
    expected: String,
) -> TrainerError {
    tensor_error(archive.path(), name, found, expected)
}
