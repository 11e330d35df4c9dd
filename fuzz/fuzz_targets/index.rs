//! The index of sharded weights and the headers of its shards: every tensor that is found lies in a file of the
//! folder, whole, and those that the index names are found.

#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use altiplano_model::weight_files::WeightFiles;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// Names that an index may give its shards.
const SHARDS: [&str; 2] = ["a.safetensors", "b.safetensors"];
/// The only tensor of the first shard: two numbers of four bytes.
const HEADER: &[u8] = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  "#;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

fn new_folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let shard = [&(HEADER.len() as u64).to_le_bytes()[..], HEADER, &[0; 8]].concat();
    fs::write(folder.path().join(SHARDS[0]), shard).expect("a file");
    folder
}

fn check(folder: &Path, data: &[u8]) {
    // The text of an index ends at the first zero byte; the second shard follows.
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    fs::write(folder.join("model.safetensors.index.json"), &data[..end]).expect("a file");
    let shard = data.get(end + 1..).unwrap_or_default();
    fs::write(folder.join(SHARDS[1]), shard).expect("a file");
    let Ok(files) = WeightFiles::open(folder) else { return };
    for name in files.names() {
        // Tensors of a shard that the index does not list are nowhere.
        let Some(tensor) = files.tensor(&name) else { continue };
        let inside = tensor.path.parent() == Some(folder);
        assert!(inside && SHARDS.iter().any(|shard| tensor.path.ends_with(shard)), "{tensor:?}");
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(tensor.bytes.len() * 8, elements * tensor.dtype.bitsize(), "{tensor:?}");
        assert!(tensor.bytes.len() <= data.len() + 8, "{tensor:?}");
    }
}

fuzz_target!(|data: &[u8]| {
    FOLDER.with(|folder| check(folder.get_or_init(new_folder).path(), data));
});
