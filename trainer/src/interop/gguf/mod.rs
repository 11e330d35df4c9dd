//! GGUF, the files of llama.cpp: a header of keys and values, names and shapes of tensors, and the
//! tensors, in floating point or quantized.
//!
//! | file | subject |
//! |---|---|
//! | `container` | the file as bytes: keys, values, places of tensors |
//! | `vocabulary` | the tokenizer as keys and values |
//! | `rope_scaling` | scaled rotary embeddings as keys, values and a tensor |
//! | `open` | a file as a model |
//! | `mix` | which tensor is quantized how |
//! | `write` | a model as a file |
//!
//! Queries and keys are in Meta's rotary layout.

mod container;
mod mix;
mod open;
mod rope_scaling;
mod vocabulary;
mod write;

pub use container::{Contents, TensorPlace, Value, parse};
pub use mix::FileType;
pub use open::open;
pub use write::{GgufOptions, file_name, write};

use std::fs::File;
use std::io::Read;
use std::path::Path;

use altiplano_model::quantize::StoredAs;

const MAGIC: &[u8; 4] = b"GGUF";

/// Whether a file begins as one of GGUF does; false where it cannot be read.
pub fn begins_file(path: &Path) -> bool {
    let mut bytes = [0; MAGIC.len()];
    File::open(path).is_ok_and(|mut file| file.read_exact(&mut bytes).is_ok()) && bytes == *MAGIC
}

/// The version written. Version 2 has the same layout.
const VERSION: u32 = 3;
/// Tensors begin at multiples of this unless the file says otherwise.
const ALIGNMENT: usize = 32;

/// Formats of tensors and their numbers in a file.
const TENSOR_TYPES: [(u32, StoredAs); 8] = [
    (0, StoredAs::F32),
    (1, StoredAs::F16),
    (2, StoredAs::Q4_0),
    (6, StoredAs::Q5_0),
    (8, StoredAs::Q8_0),
    (12, StoredAs::Q4K),
    (14, StoredAs::Q6K),
    (30, StoredAs::Bf16),
];

/// Keys that are read and written.
mod key {
    pub const ARCHITECTURE: &str = "general.architecture";
    pub const TYPE: &str = "general.type";
    pub const NAME: &str = "general.name";
    pub const SIZE_LABEL: &str = "general.size_label";
    pub const FILE_TYPE: &str = "general.file_type";
    pub const QUANTIZATION_VERSION: &str = "general.quantization_version";
    pub const ALIGNMENT: &str = "general.alignment";
    pub const SPLIT_COUNT: &str = "split.count";

    pub const CONTEXT_LENGTH: &str = "llama.context_length";
    pub const EMBEDDING_LENGTH: &str = "llama.embedding_length";
    pub const BLOCK_COUNT: &str = "llama.block_count";
    pub const FEED_FORWARD_LENGTH: &str = "llama.feed_forward_length";
    pub const VOCAB_SIZE: &str = "llama.vocab_size";
    pub const HEAD_COUNT: &str = "llama.attention.head_count";
    pub const HEAD_COUNT_KV: &str = "llama.attention.head_count_kv";
    pub const KEY_LENGTH: &str = "llama.attention.key_length";
    pub const VALUE_LENGTH: &str = "llama.attention.value_length";
    pub const RMS_EPSILON: &str = "llama.attention.layer_norm_rms_epsilon";
    pub const ROPE_DIMENSIONS: &str = "llama.rope.dimension_count";
    pub const ROPE_BASE: &str = "llama.rope.freq_base";
    pub const ROPE_SCALING_TYPE: &str = "llama.rope.scaling.type";
    pub const ROPE_SCALING_FACTOR: &str = "llama.rope.scaling.factor";
    pub const ROPE_SCALE_LINEAR: &str = "llama.rope.scale_linear";
    /// Read and written by this program alone: the tensor of factors does not say what it follows
    /// from.
    pub const LLAMA3_FACTOR: &str = "altiplano.rope_scaling.factor";
    pub const LLAMA3_LOW: &str = "altiplano.rope_scaling.low_freq_factor";
    pub const LLAMA3_HIGH: &str = "altiplano.rope_scaling.high_freq_factor";
    pub const LLAMA3_CONTEXT: &str = "altiplano.rope_scaling.original_max_position_embeddings";
    pub const EXPERT_COUNT: &str = "llama.expert_count";

    pub const TOKENIZER_MODEL: &str = "tokenizer.ggml.model";
    pub const TOKENIZER_PRE: &str = "tokenizer.ggml.pre";
    pub const TOKENS: &str = "tokenizer.ggml.tokens";
    pub const SCORES: &str = "tokenizer.ggml.scores";
    pub const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
    pub const BOS: &str = "tokenizer.ggml.bos_token_id";
    pub const EOS: &str = "tokenizer.ggml.eos_token_id";
    pub const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";
    pub const PADDING: &str = "tokenizer.ggml.padding_token_id";
    pub const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    pub const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    pub const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
    pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
}

/// The key of the chat template.
pub const CHAT_TEMPLATE_KEY: &str = key::CHAT_TEMPLATE;
