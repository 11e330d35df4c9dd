//! The safetensors files of a model: one file, or shards that an index lists.
//!
//! Files are memory-mapped, and their headers are checked against their lengths before a tensor is
//! looked at. An index is held against the shards it names: each tensor lies in the shard that the
//! index says and in no other.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::config::LlamaConfig;
use crate::error::{ModelError, Result};
use crate::mapped_file::{MappedBytes, MappedFile};

/// The weights in one file.
const SINGLE_FILE: &str = "model.safetensors";
/// Most bytes of a header, and how many more each layer has: nine tensors of two AdamW moments,
/// about 130 bytes each, and room for tensors that are not read.
const HEADER_BYTES: u64 = 64 << 10;
const HEADER_BYTES_PER_LAYER: u64 = 8 << 10;
/// Bytes before the header of a safetensors file, which say how long it is.
const LENGTH_BYTES: usize = size_of::<u64>();

/// The tensors of a model where they lie on disk.
#[derive(Debug)]
pub struct WeightFiles {
    /// The file or the index: where a tensor that is nowhere should have been.
    path: PathBuf,
    shards: Vec<Shard>,
    /// The shard of each tensor.
    shard_of: HashMap<String, usize>,
}

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: MappedFile,
    header_bytes: usize,
    metadata: Metadata,
}

/// A tensor as it is stored.
#[derive(Debug, Clone, Copy)]
pub struct StoredTensor<'a> {
    /// The file it lies in.
    pub path: &'a Path,
    /// Number format of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its elements, row by row, little-endian.
    pub bytes: MappedBytes<'a>,
}

/// The name of the list of shards of the file `name`.
pub fn index_name(name: &str) -> String {
    format!("{name}.index.json")
}

/// The name of shard `number`, from 0, of the `count` of the file `name`: the name itself where there is one.
pub fn shard_name(name: &str, number: usize, count: usize) -> String {
    match (count, name.rsplit_once('.')) {
        (1, _) => name.to_owned(),
        (_, Some((stem, kind))) => format!("{stem}-{:05}-of-{count:05}.{kind}", number + 1),
        (_, None) => format!("{name}-{:05}-of-{count:05}", number + 1),
    }
}

/// Whether `file` is a shard of the file `name` or the list of them.
pub fn is_part_of(file: &str, name: &str) -> bool {
    let (stem, kind) = name.rsplit_once('.').unwrap_or((name, ""));
    let numbers = file.strip_prefix(stem).and_then(|rest| rest.strip_suffix(kind));
    let numbers =
        numbers.and_then(|rest| rest.strip_prefix('-')?.trim_end_matches('.').split_once("-of-"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    file == index_name(name)
        || numbers.is_some_and(|(number, count)| is_number(number) && is_number(count))
}

/// The text of the list of shards: of each file its tensors with their bytes.
pub fn index_json<'a>(files: impl Iterator<Item = (&'a str, Vec<(&'a str, usize)>)>) -> String {
    let (mut total, mut weight_map) = (0, BTreeMap::new());
    for (file, tensors) in files {
        for (tensor, bytes) in tensors {
            total += bytes;
            weight_map.insert(tensor, file);
        }
    }
    let index =
        serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    format!("{index:#}\n")
}

impl WeightFiles {
    /// Opens a safetensors file, or the weights of a Hugging Face directory: `model.safetensors`,
    /// or else the shards of `model.safetensors.index.json`. A file in shards is opened by the name that it
    /// would have as one.
    ///
    /// # Errors
    /// [`ModelError::Io`] when a file cannot be opened; [`ModelError::WeightFile`] when the directory
    /// has no weights, a file is no safetensors file or is cut short, the index names a shard that is
    /// not there or lies outside the directory, or a tensor is listed or stored twice;
    /// [`ModelError::WeightTensor`] when a tensor is not in the shard that the index names.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_limited(path, u64::MAX)
    }

    /// As [`WeightFiles::open`], for a model of this configuration: a header is refused that no file of
    /// such a model has. Read, it takes several times its bytes of memory, and the safetensors crate
    /// allows 100 MB of it.
    ///
    /// # Errors
    /// As [`WeightFiles::open`].
    pub fn open_for(path: &Path, config: &LlamaConfig) -> Result<Self> {
        Self::open_limited(path, HEADER_BYTES + HEADER_BYTES_PER_LAYER * config.n_layers as u64)
    }

    fn open_limited(path: &Path, most_header: u64) -> Result<Self> {
        let is_dir = path.is_dir();
        let single = if is_dir { path.join(SINGLE_FILE) } else { path.to_path_buf() };
        let name = single.file_name().unwrap_or_default().to_string_lossy();
        let index = single.with_file_name(index_name(&name));
        if single.exists() {
            Self::open_single(&single, most_header)
        } else if index.exists() {
            let dir = index.parent().unwrap_or(Path::new("")).to_path_buf();
            Self::open_index(&dir, &index, most_header)
        } else if !is_dir {
            // Its error says that it is not there.
            Self::open_single(&single, most_header)
        } else {
            let pickled = path.join("pytorch_model.bin").exists()
                || path.join("pytorch_model.bin.index.json").exists();
            let advice = match pickled {
                true => {
                    "; pytorch_model.bin can run code when it is read: convert it to safetensors"
                }
                false => "",
            };
            Err(unfit(
                path,
                format!("no {SINGLE_FILE} and no {} in it{advice}", index_name(SINGLE_FILE)),
            ))
        }
    }

    fn open_single(path: &Path, most_header: u64) -> Result<Self> {
        let shard = Shard::open(path, most_header)?;
        let shard_of = shard.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { path: path.to_path_buf(), shards: vec![shard], shard_of })
    }

    fn open_index(dir: &Path, path: &Path, most_header: u64) -> Result<Self> {
        // It says less of each tensor than a header does.
        check_length(path, "is", fs::metadata(path).map_err(io_error(path))?.len(), most_header)?;
        let text = fs::read_to_string(path).map_err(io_error(path))?;
        let Index { weight_map: WeightMap(weight_map) } = serde_json::from_str(&text)
            .map_err(|error| unfit(path, format!("not an index of safetensors files: {error}")))?;
        let mut shards: Vec<Shard> = Vec::new();
        let mut known: HashMap<&str, usize> = HashMap::new();
        for (tensor, file) in &weight_map {
            if known.contains_key(file.as_str()) {
                continue;
            }
            // The index may come from anywhere: it names files beside it and nothing else.
            let mut parts = Path::new(file).components();
            let is_name =
                matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
            if !is_name || file.contains(['/', '\\']) {
                return Err(unfit(
                    path,
                    format!(
                        "tensor {tensor:?} is said to be in {file:?}, expected the name of a file \
                         in the same directory"
                    ),
                ));
            }
            let shard = dir.join(file);
            if !shard.exists() {
                return Err(unfit(
                    &shard,
                    format!("no such file, but {} names it; fetch the model again", path.display()),
                ));
            }
            known.insert(file, shards.len());
            shards.push(Shard::open(&shard, most_header)?);
        }
        let shard_of: HashMap<String, usize> = weight_map
            .iter()
            .filter_map(|(tensor, file)| Some((tensor.clone(), *known.get(file.as_str())?)))
            .collect();
        check_places(&shards, &shard_of, path)?;
        Ok(Self { path: path.to_path_buf(), shards, shard_of })
    }

    /// The file, or the index of several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors of the files, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.shards.iter().flat_map(|shard| shard.metadata.offset_keys()).collect();
        names.sort();
        names
    }

    /// The tensor of this name, if there is one.
    pub fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        self.shards.get(*self.shard_of.get(name)?)?.tensor(name)
    }
}

/// Refuses what would take several times its length of memory to read and no such model has.
fn check_length(path: &Path, what: &str, length: u64, most: u64) -> Result<()> {
    if length <= most {
        return Ok(());
    }
    Err(unfit(
        path,
        format!("{what} {length} bytes, expected at most {most} for a model of this depth"),
    ))
}

/// Every tensor lies where the index says, and nowhere else.
fn check_places(shards: &[Shard], shard_of: &HashMap<String, usize>, index: &Path) -> Result<()> {
    let index = index.file_name().unwrap_or_default().display();
    for (number, shard) in shards.iter().enumerate() {
        for tensor in shard.metadata.offset_keys() {
            let Some(&listed) = shard_of.get(&tensor) else { continue };
            if listed != number {
                let other = shards.get(listed).map(|other| other.path.display().to_string());
                return Err(unfit(
                    &shard.path,
                    format!(
                        "holds tensor {tensor:?}, which {index} places in {}",
                        other.unwrap_or_default()
                    ),
                ));
            }
        }
    }
    // Sorted, so that the same tensor is named every time.
    let missing = shard_of
        .iter()
        .filter_map(|(tensor, &number)| Some((tensor, shards.get(number)?)))
        .filter(|(tensor, shard)| shard.metadata.info(tensor).is_none())
        .min_by_key(|(tensor, _)| *tensor);
    match missing {
        None => Ok(()),
        Some((tensor, shard)) => Err(ModelError::WeightTensor {
            path: shard.path.clone(),
            tensor: tensor.clone(),
            found: "no such tensor".into(),
            expected: format!("the tensor that {index} places here"),
        }),
    }
}

impl Shard {
    fn open(path: &Path, most_header: u64) -> Result<Self> {
        let map = MappedFile::open(path)?;
        if let Some(length) = map.first_chunk() {
            check_length(path, "has a header of", u64::from_le_bytes(*length), most_header)?;
        }
        let (header_bytes, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|error| unfit(path, format!("is not a whole safetensors file: {error}")))?;
        Ok(Self { path: path.to_path_buf(), map, header_bytes, metadata })
    }

    fn tensor(&self, name: &str) -> Option<StoredTensor<'_>> {
        let info = self.metadata.info(name)?;
        let (begin, end) = info.data_offsets;
        let data = LENGTH_BYTES.checked_add(self.header_bytes)?;
        let bytes = self.map.part(data.checked_add(begin)?..data.checked_add(end)?)?;
        Some(StoredTensor { path: &self.path, dtype: info.dtype, shape: &info.shape, bytes })
    }
}

/// What is read of `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The file of each tensor. A tensor that is listed twice is an error.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut entries: A,
            ) -> std::result::Result<WeightMap, A::Error> {
                let mut map = BTreeMap::new();
                while let Some((tensor, file)) = entries.next_entry::<String, String>()? {
                    if map.contains_key(&tensor) {
                        return Err(A::Error::custom(format_args!("tensor {tensor:?} twice")));
                    }
                    map.insert(tensor, file);
                }
                Ok(WeightMap(map))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> ModelError {
    move |source| ModelError::Io { path: path.to_path_buf(), source }
}

fn unfit(path: &Path, reason: String) -> ModelError {
    ModelError::WeightFile { path: path.to_path_buf(), reason }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const INDEX_FILE: &str = "model.safetensors.index.json";
    use safetensors::tensor::TensorView;

    /// A file of tensors of two f32 each.
    fn write(path: &Path, tensors: &[(&str, [f32; 2])]) {
        let bytes: Vec<Vec<u8>> = tensors
            .iter()
            .map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        let views = tensors.iter().zip(&bytes).map(|((name, _), bytes)| {
            (*name, TensorView::new(Dtype::F32, vec![2], bytes).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// Two shards with their index.
    fn sharded() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write(
            &dir.path().join("model-00001-of-00002.safetensors"),
            &[("a", [1.0, 2.0]), ("b", [3.0, 4.0])],
        );
        write(&dir.path().join("model-00002-of-00002.safetensors"), &[("c", [5.0, 6.0])]);
        index(
            &dir,
            r#""a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors",
               "c": "model-00002-of-00002.safetensors""#,
        );
        dir
    }

    fn index(dir: &tempfile::TempDir, weight_map: &str) {
        let text =
            format!(r#"{{"metadata": {{"total_size": 24}}, "weight_map": {{{weight_map}}}}}"#);
        fs::write(dir.path().join(INDEX_FILE), text).unwrap();
    }

    fn error(dir: &tempfile::TempDir) -> String {
        WeightFiles::open(dir.path()).unwrap_err().to_string()
    }

    #[track_caller]
    fn says(error: &str, words: &[&str]) {
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }

    #[test]
    fn shards_have_names_of_their_file() {
        let name = "optimizer.safetensors";
        assert_eq!(shard_name(name, 0, 1), name);
        assert_eq!(shard_name(name, 2, 12), "optimizer-00003-of-00012.safetensors");
        for (file, expected) in [
            ("optimizer-00003-of-00012.safetensors", true),
            ("optimizer.safetensors.index.json", true),
            ("optimizer.safetensors", false),
            ("optimizer-of-.safetensors", false),
            ("optimizer-a-of-b.safetensors", false),
            ("optimizer-1-of-2.bin", false),
            ("model-00001-of-00002.safetensors", false),
        ] {
            assert_eq!(is_part_of(file, name), expected, "{file}");
        }
    }

    #[test]
    fn shards_are_one_model() {
        let dir = sharded();
        let files = WeightFiles::open(dir.path()).unwrap();
        for (name, first) in [("a", 1.0f32), ("b", 3.0), ("c", 5.0)] {
            let tensor = files.tensor(name).unwrap();
            assert_eq!((tensor.dtype, tensor.shape), (Dtype::F32, &[2][..]));
            assert_eq!(tensor.bytes[..4], first.to_le_bytes());
        }
        assert!(files.tensor("c").unwrap().path.ends_with("model-00002-of-00002.safetensors"));
        assert!(files.tensor("d").is_none());
        assert!(files.path().ends_with(INDEX_FILE));

        // One file is taken before the shards, as transformers does.
        write(&dir.path().join(SINGLE_FILE), &[("a", [9.0, 9.0])]);
        let files = WeightFiles::open(dir.path()).unwrap();
        assert_eq!(files.tensor("a").unwrap().bytes[..4], 9.0f32.to_le_bytes());
    }

    #[test]
    fn an_index_is_held_against_its_shards() {
        let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        let dir = sharded();
        index(&dir, &format!(r#""a": "{one}", "c": "model-00003-of-00003.safetensors""#));
        says(&error(&dir), &["model-00003-of-00003.safetensors", "no such file", INDEX_FILE]);
        index(&dir, &format!(r#""a": "{one}", "c": "{two}", "zz": "{two}""#));
        says(&error(&dir), &[two, "\"zz\"", "no such tensor"]);
        index(&dir, &format!(r#""a": "{one}", "b": "{two}", "c": "{two}""#));
        says(&error(&dir), &[one, "\"b\"", two]);
        index(&dir, &format!(r#""a": "{one}", "a": "{one}""#));
        says(&error(&dir), &[INDEX_FILE, "\"a\" twice"]);

        // The same tensor in two shards.
        let dir = sharded();
        write(&dir.path().join(two), &[("a", [1.0, 2.0]), ("c", [5.0, 6.0])]);
        says(&error(&dir), &[two, "\"a\"", one]);

        let dir = sharded();
        fs::write(dir.path().join(two), b"short").unwrap();
        says(&error(&dir), &[two, "not a whole safetensors file"]);
        fs::write(dir.path().join(INDEX_FILE), "{}").unwrap();
        says(&error(&dir), &[INDEX_FILE, "weight_map"]);
    }

    #[test]
    fn an_index_leads_nowhere_else() {
        let dir = sharded();
        let outside = dir.path().join("model-00001-of-00002.safetensors");
        for name in
            ["../x", "/etc/passwd", "sub/x", ".", "..", "", r"..\\x", outside.to_str().unwrap()]
        {
            index(&dir, &format!(r#""a": "{name}""#));
            says(&error(&dir), &[INDEX_FILE, "the name of a file in the same directory"]);
        }
    }

    #[test]
    fn a_directory_without_weights_says_what_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        says(&error(&dir), &[SINGLE_FILE, INDEX_FILE]);
        fs::write(dir.path().join("pytorch_model.bin"), b"").unwrap();
        says(&error(&dir), &["safetensors", "pytorch_model.bin"]);
        let absent = WeightFiles::open(&dir.path().join("none")).unwrap_err().to_string();
        says(&absent, &["none"]);
    }
}
