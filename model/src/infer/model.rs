//! What the engine needs of a model: a pass over tokens of several sequences that keeps keys and
//! values in blocks.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Device;

use super::block_pool::BlockId;
use crate::error::Result;

/// The tokens of one pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// The token of each row.
    pub ids: Vec<u32>,
    /// Its place in its sequence.
    pub positions: Vec<u32>,
    /// Who has which rows, in order.
    pub sequences: Vec<PassSequence>,
}

/// The part of one sequence in a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassSequence {
    /// Its rows, next to each other in the order of their positions.
    pub rows: Range<usize>,
    /// The position of the first.
    pub start: usize,
    /// The blocks of the sequence, in order.
    pub blocks: Vec<BlockId>,
}

/// A model as the engine drives it.
pub trait EngineModel: Send + Sync {
    /// Keys and values of all blocks.
    type Cache: Send;
    /// What a pass leaves for each row, from which logits are made.
    type Hidden: Send + Sync;

    /// Where it computes.
    fn device(&self) -> &Device;

    /// Tokens of its context.
    fn context(&self) -> usize;

    /// Ids it knows, and logits of a row.
    fn vocab_size(&self) -> usize;

    /// Room for keys and values of `blocks` blocks of `block_size` tokens.
    ///
    /// # Errors
    /// When there is not so much memory, or the model has no blocks of this size.
    fn new_cache(&self, blocks: usize, block_size: usize) -> Result<Self::Cache>;

    /// Copies the content of blocks, from and to, one after the other.
    fn copy_blocks(&self, cache: &mut Self::Cache, copies: &[(BlockId, BlockId)]);

    /// Computes a pass: writes keys and values of its rows to their blocks and lets each row attend
    /// to its sequence up to itself.
    ///
    /// # Errors
    /// When the pass cannot be computed. The engine is then of no more use.
    fn forward(&self, pass: &Pass, cache: &mut Self::Cache) -> Result<Self::Hidden>;

    /// Logits of the tokens after some rows, a row after the other.
    fn logits(&self, hidden: &Self::Hidden, rows: &[usize]) -> Vec<f32>;

    /// Why logits of this pass are no numbers, for whoever runs the model.
    fn why_not_finite(&self, hidden: &Self::Hidden) -> String;
}

macro_rules! forward_to_target {
    ($($pointer:ty),*) => {$(
        impl<M: EngineModel> EngineModel for $pointer {
            type Cache = M::Cache;
            type Hidden = M::Hidden;

            fn device(&self) -> &Device {
                (**self).device()
            }

            fn context(&self) -> usize {
                (**self).context()
            }

            fn vocab_size(&self) -> usize {
                (**self).vocab_size()
            }

            fn new_cache(&self, blocks: usize, block_size: usize) -> Result<Self::Cache> {
                (**self).new_cache(blocks, block_size)
            }

            fn copy_blocks(&self, cache: &mut Self::Cache, copies: &[(BlockId, BlockId)]) {
                (**self).copy_blocks(cache, copies);
            }

            fn forward(&self, pass: &Pass, cache: &mut Self::Cache) -> Result<Self::Hidden> {
                (**self).forward(pass, cache)
            }

            fn logits(&self, hidden: &Self::Hidden, rows: &[usize]) -> Vec<f32> {
                (**self).logits(hidden, rows)
            }

            fn why_not_finite(&self, hidden: &Self::Hidden) -> String {
                (**self).why_not_finite(hidden)
            }
        }
    )*};
}

forward_to_target!(&M, Arc<M>);
