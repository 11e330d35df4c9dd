//! The forward pass that continues a sequence: new tokens attend to the cached keys and values of
//! those before them.

use crate::error::{ModelError, Result};
use crate::infer::{InferenceModel, KvCache};

impl InferenceModel {
    /// Appends `ids` to the sequence in `cache`; the f32 logits (V) of the token after the last.
    ///
    /// # Errors
    /// [`ModelError::TokenId`] for an id outside the vocabulary, [`ModelError::PromptTooLong`] when
    /// the cache is full, [`ModelError::NotFinite`] when logits are no numbers.
    pub fn forward_cached(&self, ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        let (start, time) = (cache.len(), ids.len());
        let mut x = self.embed(ids)?;
        if start + time > cache.capacity() || time == 0 {
            return Err(ModelError::PromptTooLong { found: start + time, limit: cache.capacity() });
        }
        let rope = self.rope_rows(start..start + time);
        for (n, mut keys_values) in cache.layers().enumerate() {
            x = self.layer_forward(n, x, &rope, &mut keys_values)?;
        }
        cache.advance(time);
        self.logits(&x.narrow(1, time - 1, 1))
    }
}
