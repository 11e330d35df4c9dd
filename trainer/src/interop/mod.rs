//! Models of other programs: what `altiplano export` writes and `altiplano import` reads.
//!
//! | file | subject |
//! |---|---|
//! | `parameter` | the names of a parameter in each family of files, and its shape |
//! | `rows` | the rows of a parameter on disk, and their way into another file |
//! | `stored_model` | a model on disk, read parameter by parameter |
//! | `output` | a directory that appears whole or not at all |
//! | `safetensors_file` | safetensors, one file or shards |
//! | [`hugging_face`] | Hugging Face directories |
//! | [`gguf`] | the files of llama.cpp |
//! | [`meta`] | Meta's `consolidated.NN.pth` |
//!
//! Every format is opened as a [`StoredModel`], whose parameters are checked before anything is
//! written and stay where they are, and is written from one. So anything goes into anything, a few
//! megabytes at a time.

mod output;
mod parameter;
mod rows;
mod safetensors_file;
mod stored_model;

pub mod gguf;
pub mod hugging_face;
pub mod meta;

pub use parameter::{Parameter, Shape};
pub use rows::Rows;
pub use stored_model::{StoredModel, StoredWeights, Summary, TextSettings, WrittenFile};
