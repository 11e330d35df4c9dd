//! The forward pass of inference: rows of several sequences share the matrix products, and each
//! attends to the cached keys and values of its own sequence.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::block_pool::BlockId;
use super::inference_model::InferenceModel;
use super::model::{EngineModel, Pass};
use super::paged_cache::PagedCache;
use crate::backend;
use crate::error::Result;

/// What a pass through all layers leaves.
#[derive(Debug)]
pub struct HiddenRows {
    /// Output of the last layer, (1, rows, C).
    x: Tensor<3>,
    /// The first layer after which a row was no number, where that is looked at: on the CPU.
    not_finite_after: Option<usize>,
}

impl EngineModel for InferenceModel {
    type Cache = PagedCache;
    type Hidden = HiddenRows;

    fn device(&self) -> &Device {
        self.device()
    }

    fn context(&self) -> usize {
        self.config().max_seq_len
    }

    fn vocab_size(&self) -> usize {
        self.config().vocab_size
    }

    fn new_cache(&self, blocks: usize, block_size: usize) -> Result<PagedCache> {
        PagedCache::new(self.config(), self.dtype(), self.device(), blocks, block_size)
    }

    fn copy_blocks(&self, cache: &mut PagedCache, copies: &[(BlockId, BlockId)]) {
        cache.copy_blocks(copies);
    }

    fn forward(&self, pass: &Pass, cache: &mut PagedCache) -> Result<HiddenRows> {
        let mut x = self.embed(&pass.ids)?;
        let rope = self.rope_rows(pass.positions.iter().map(|position| *position as usize));
        let mut not_finite_after = None;
        for (n, mut keys_values) in cache.layers(pass).enumerate() {
            x = self.layer_forward(n, x, &rope, &mut keys_values)?;
            if not_finite_after.is_none() && backend::is_finite(&x) == Some(false) {
                not_finite_after = Some(n);
            }
        }
        Ok(HiddenRows { x, not_finite_after })
    }

    fn logits(&self, hidden: &HiddenRows, rows: &[usize]) -> Vec<f32> {
        let count = rows.len();
        let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
        let rows: Tensor<1, Int> =
            Tensor::from_data(TensorData::new(rows, [count]), (self.device(), DType::I32));
        self.logits(&hidden.x.clone().select(1, rows))
    }

    fn why_not_finite(&self, hidden: &HiddenRows) -> String {
        self.not_finite(hidden.not_finite_after).to_string()
    }
}
