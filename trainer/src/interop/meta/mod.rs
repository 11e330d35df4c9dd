//! Meta's layout: `params.json`, `tokenizer.model` and the weights in `consolidated.NN.pth`, one file
//! for each device of a model-parallel group.
//!
//! | file | subject |
//! |---|---|
//! | `params` | `params.json` |
//! | `pickle` | reading a state dict without executing anything |
//! | `archive` | `.pth` files: ZIP archives with a state dict |
//! | `open` | a directory as a model |
//! | `write` | a model as a directory |
//!
//! Queries and keys have their rows in pairs. The files of a group are cut from the parameters by
//! rows or by columns, and put together again when they are read.

mod archive;
mod open;
mod params;
mod pickle;
mod write;

pub use open::open;
pub use pickle::{Tensor, read_state_dict};
pub use write::{MetaOptions, write};

const PARAMS_FILE: &str = "params.json";

/// Name of the weights of a device.
fn file_name(shard: usize) -> String {
    format!("consolidated.{shard:02}.pth")
}
