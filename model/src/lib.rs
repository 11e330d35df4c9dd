//! The LLaMA model: every op as a forward and backward pair written by hand, the layer, the whole
//! model, its weights and inference.
//!
//! A module uses only the modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | [`error`] | what can go wrong |
//! | [`config`] | shapes, precision, what a layer saves |
//! | [`backend`] | the fast ops of each backend behind one trait |
//! | [`device`] | where tensors live |
//! | [`ops`] | the op pairs: formulas, plain-tensor reference, choice of the fast one |
//! | [`param_tree`] | the parameters: a table with a row, a tree with a value for each |
//! | [`parallel`] | ranks that split every matrix: who holds what, and the op pairs that exchange |
//! | [`params`] | weights, gradients and moments as trees of tensors, starting values |
//! | [`pass_weights`] | the weights of a pass, held or brought part by part |
//! | [`param_ops`] | AdamW, norm and zeroing over all parameters at once |
//! | [`adapters`] | low-rank adapters of matrices: which, starting values, their AdamW |
//! | [`layer`] | forward and backward of one transformer layer |
//! | [`activation_checkpoint`] | what a layer saves between the two and how the rest is recomputed |
//! | [`llama`] | the whole model: loss and gradients |
//! | [`adapted`] | the gradients of adapters alone, of a model that stays |
//! | [`mapped_file`] | files mapped into memory |
//! | [`weight_files`] | safetensors files, one or in shards |
//! | [`weights`] | safetensors with Hugging Face names |
//! | [`quantize`] | how the elements of a row are stored: floating point, blocks of integers |
//! | [`infer`] | models for inference and the engine: paged keys and values, scheduler, sampler |
//!
//! Shapes are written with one legend: `B` batch, `T` time, `C` channels, `H` query heads,
//! `K` key and value heads, `D` head width, `F` feed-forward width, `V` vocabulary, `L` layers.
//!
//! Gradients are named `d` + name. Gradients of parameters accumulate (`+=`), so gradient
//! accumulation is free; gradients of activations are assigned.
//!
//! # One step
//!
//! The losses of one batch, and the gradients of their mean:
//!
//! ```
//! use altiplano_model::llama::{Llama, TokenBatch};
//! use altiplano_model::params::{Grads, Weights};
//! use altiplano_model::{ActivationCheckpointing, LlamaConfig};
//! use burn::tensor::{DType, Device};
//!
//! let config: LlamaConfig = serde_json::from_str(
//!     r#"{"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 100, "max_seq_len": 16}"#,
//! )?;
//! let device = Device::flex();
//! let weights = Weights::init(&config, 1, DType::F32, &device);
//! let model = Llama::new(config, weights, ActivationCheckpointing::Selective)?;
//!
//! let (inputs, targets) = ([1, 5, 9, 4], [5, 9, 4, 2]);
//! let batch = TokenBatch::new(&inputs, &targets, None, 4, 100, &device)?;
//! let mut grads = Grads::zeros(&model.config, DType::F32, &device);
//! let losses = model.loss_and_gradients(&batch, 1.0 / 4.0, &mut grads)?;
//! // Starting weights know nothing of the text: the loss is that of guessing, in nats.
//! let mean = losses.to_data().iter::<f32>().sum::<f32>() / 4.0;
//! assert!((mean - 100_f32.ln()).abs() < 0.2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(test)]
mod counting_allocator;

pub mod error;

pub mod config;

pub mod backend;

pub mod device;

pub mod ops;

pub mod param_tree;

pub mod parallel;

pub mod params;

pub mod pass_weights;

pub mod param_ops;

pub mod adapters;

pub mod layer;

pub mod activation_checkpoint;

pub mod llama;

pub mod adapted;

pub mod mapped_file;

pub mod weight_files;

pub mod weights;

pub mod quantize;

pub mod infer;

pub use altiplano_kernels::RowOrder;
pub use config::{ActivationCheckpointing, LlamaConfig, Precision};
pub use error::{ModelError, Result};
