//! `params.json`: what Meta's reference code builds the model from.

use std::fs;
use std::path::Path;

use altiplano_model::LlamaConfig;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::PARAMS_FILE;
use crate::error::{Result, TrainerError};
use crate::interop::stored_model::file_error;

/// ε of RMSNorm where the file has none: the reference code's own default.
const DEFAULT_EPSILON: f64 = 1e-5;

/// The keys that are read. The width of the feed-forward follows from the tensors.
#[derive(Debug, Deserialize)]
pub(super) struct Params {
    pub dim: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: Option<usize>,
    pub norm_eps: Option<f64>,
    /// −1 where the tokenizer says it.
    pub vocab_size: Option<i64>,
    pub rope_theta: Option<f64>,
    #[serde(default)]
    pub use_scaled_rope: bool,
}

impl Params {
    /// Reads the file of a directory.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(PARAMS_FILE);
        let text = fs::read(&path).map_err(TrainerError::io(&path))?;
        let params: Self = serde_json::from_slice(&text).map_err(|error| {
            file_error(&path, format!("not the parameters of a LLaMA: {error}"))
        })?;
        if params.use_scaled_rope {
            let reason = "use_scaled_rope: found true, expected false: rope scaling is not read";
            return Err(file_error(&path, reason));
        }
        Ok(params)
    }

    /// The configuration, with what the file does not say.
    pub(super) fn config(
        &self,
        dir: &Path,
        hidden_dim: usize,
        vocab_size: usize,
        max_seq_len: usize,
    ) -> Result<LlamaConfig> {
        let config = LlamaConfig {
            dim: self.dim,
            n_layers: self.n_layers,
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads.or(Some(self.n_heads)),
            hidden_dim: Some(hidden_dim),
            multiple_of: 256,
            vocab_size,
            max_seq_len,
            rope_theta: self.rope_theta.unwrap_or(10_000.0),
            norm_eps: self.norm_eps.unwrap_or(DEFAULT_EPSILON),
            init_std: 0.02,
        };
        let path = dir.join(PARAMS_FILE);
        config.validate().map_err(|error| file_error(&path, error.to_string()))?;
        Ok(config)
    }
}

/// The file's content for a configuration. Keys that the first reference code does not know are
/// written only where they are needed.
pub(super) fn to_json(config: &LlamaConfig) -> Value {
    let mut params = Map::new();
    params.insert("dim".into(), json!(config.dim));
    let (multiple_of, multiplier) = feed_forward_rule(config);
    params.insert("multiple_of".into(), json!(multiple_of));
    if let Some(multiplier) = multiplier {
        params.insert("ffn_dim_multiplier".into(), json!(multiplier));
    }
    params.insert("n_heads".into(), json!(config.n_heads));
    if config.kv_heads() != config.n_heads {
        params.insert("n_kv_heads".into(), json!(config.kv_heads()));
    }
    params.insert("n_layers".into(), json!(config.n_layers));
    params.insert("norm_eps".into(), json!(config.norm_eps));
    if config.rope_theta != 10_000.0 {
        params.insert("rope_theta".into(), json!(config.rope_theta));
    }
    params.insert("vocab_size".into(), json!(config.vocab_size));
    Value::Object(params)
}

/// `multiple_of` and, if need be, `ffn_dim_multiplier`, from which the reference code computes the
/// width of the feed-forward: 2/3 · 4d, times the multiplier, rounded up to the multiple.
fn feed_forward_rule(config: &LlamaConfig) -> (usize, Option<f64>) {
    let (width, plain) = (config.ffn_dim(), 8 * config.dim / 3);
    let rounded = |multiple: &usize| plain.div_ceil(*multiple) * multiple == width;
    let usual = [256, config.multiple_of, 1024, 512, 128, 64, 32, 16, 8, 4, 2, 1];
    match usual.into_iter().find(rounded) {
        Some(multiple) => (multiple, None),
        // The width itself is a multiple that everything below it is rounded up to.
        None if width >= plain => (width, None),
        // The half keeps the product from being rounded down below the width.
        None => (1, Some((width as f64 + 0.5) / plain as f64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reference code's rule.
    fn width(dim: usize, multiple: usize, multiplier: Option<f64>) -> usize {
        let plain = 8 * dim / 3;
        let scaled = multiplier.map_or(plain, |m| (m * plain as f64) as usize);
        scaled.div_ceil(multiple) * multiple
    }

    #[test]
    fn any_width_follows_from_the_rule() {
        let config = |dim: usize, hidden: usize| LlamaConfig {
            dim,
            n_layers: 1,
            n_heads: 1,
            n_kv_heads: None,
            hidden_dim: Some(hidden),
            multiple_of: 256,
            vocab_size: 10,
            max_seq_len: 10,
            rope_theta: 10_000.0,
            norm_eps: 1e-6,
            init_std: 0.02,
        };
        for (dim, hidden) in [(4096, 11008), (5120, 13824), (32, 48), (32, 88), (64, 1000), (96, 7)]
        {
            let (multiple, multiplier) = feed_forward_rule(&config(dim, hidden));
            assert_eq!(width(dim, multiple, multiplier), hidden, "{dim} {hidden}");
        }
        assert_eq!(feed_forward_rule(&config(4096, 11008)), (256, None));
    }
}
