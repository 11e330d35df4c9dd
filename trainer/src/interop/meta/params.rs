//! `params.json`: what Meta's reference code builds the model from.

use std::path::Path;

use altiplano_model::LlamaConfig;
use altiplano_model::config::RopeScaling;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::PARAMS_FILE;
use crate::checkpoint;
use crate::error::{Result, TrainerError};
use crate::interop::stored_model::file_error;

/// ε of RMSNorm where the file has none: the reference code's own default.
const DEFAULT_EPSILON: f64 = 1e-5;

/// Constants of LLaMA 3's scaled rotary embedding: those the reference code has, and the defaults of
/// those `params.json` may have.
const LOW_FREQ_FACTOR: f64 = 1.0;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const ORIGINAL_CONTEXT: usize = 8192;
const SCALE_FACTOR: f64 = 8.0;

/// The keys that are known. The width of the feed-forward follows from the tensors. A key that is
/// not known may change what the weights mean, so it is an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
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
    pub rope_scaling_factor: Option<f64>,
    pub rope_high_freq_factor: Option<f64>,
    /// What the width of the feed-forward is computed from: the tensors say it.
    #[serde(default, rename = "multiple_of")]
    pub _multiple_of: IgnoredAny,
    #[serde(default, rename = "ffn_dim_multiplier")]
    pub _ffn_dim_multiplier: IgnoredAny,
    /// Sizes of the reference code's buffers.
    #[serde(default, rename = "max_batch_size")]
    pub _max_batch_size: IgnoredAny,
    #[serde(default, rename = "max_seq_len")]
    pub _max_seq_len: IgnoredAny,
}

impl Params {
    /// Reads the file of a directory.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(PARAMS_FILE);
        let text = checkpoint::read_bounded(&path)?;
        serde_json::from_slice(&text)
            .map_err(|error| file_error(&path, format!("not the parameters of a LLaMA: {error}")))
    }

    fn rope_scaling(&self) -> Option<RopeScaling> {
        self.use_scaled_rope.then(|| RopeScaling::Llama3 {
            factor: self.rope_scaling_factor.unwrap_or(SCALE_FACTOR),
            low_freq_factor: LOW_FREQ_FACTOR,
            high_freq_factor: self.rope_high_freq_factor.unwrap_or(HIGH_FREQ_FACTOR),
            original_max_position_embeddings: ORIGINAL_CONTEXT,
        })
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
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: self.rope_scaling(),
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
///
/// # Errors
/// [`TrainerError::Usage`] when the layout has no words for the model.
pub(super) fn to_json(config: &LlamaConfig) -> Result<Value> {
    let refuse = |what: &str| {
        let message = format!("--format meta: {what}; hf and gguf can hold it");
        Err(TrainerError::Usage { message })
    };
    if config.attention_dim() != config.dim {
        let (heads, width) = (config.n_heads, config.head_dim());
        return refuse(&format!(
            "params.json has no head_dim, and {heads} heads of {width} are not dim, {}",
            config.dim
        ));
    }
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
    match config.rope_scaling {
        None => {}
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor: LOW_FREQ_FACTOR,
            high_freq_factor,
            original_max_position_embeddings: ORIGINAL_CONTEXT,
        }) => {
            params.insert("use_scaled_rope".into(), json!(true));
            if factor != SCALE_FACTOR {
                params.insert("rope_scaling_factor".into(), json!(factor));
            }
            if high_freq_factor != HIGH_FREQ_FACTOR {
                params.insert("rope_high_freq_factor".into(), json!(high_freq_factor));
            }
        }
        Some(RopeScaling::Linear { .. }) => {
            return refuse("the reference code has no linear scaling of the rotary embedding");
        }
        Some(RopeScaling::Llama3 { .. }) => {
            return refuse(
                "the reference code has llama3 scaling for an original context of 8192 and a \
                 low_freq_factor of 1 alone",
            );
        }
    }
    params.insert("vocab_size".into(), json!(config.vocab_size));
    Ok(Value::Object(params))
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
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
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
