//! Model and run choices that decide shapes, precision and what a layer saves.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// Shape and constants of a LLaMA model (arXiv 2302.13971, section 2.2 and table 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaConfig {
    /// Width of the residual stream, `C`.
    pub dim: usize,
    /// Number of transformer layers, `L`.
    pub n_layers: usize,
    /// Number of query heads, `H`.
    pub n_heads: usize,
    /// Number of key and value heads, `K`; `n_heads` when absent (no grouping, as in LLaMA 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_heads: Option<usize>,
    /// Width of one head, `D`; `dim / n_heads` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Width of the feed-forward, `F`; when absent 2/3 · 4 · dim rounded up to `multiple_of`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_dim: Option<usize>,
    /// What the default feed-forward width is rounded up to.
    #[serde(default = "default_multiple_of")]
    pub multiple_of: usize,
    /// Vocabulary size, `V`.
    pub vocab_size: usize,
    /// Longest sequence the model is trained on and serves, in tokens.
    pub max_seq_len: usize,
    /// Whether the output head is the token embedding: one matrix with two uses.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tie_word_embeddings: bool,
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// What the rotary frequencies are scaled by, for contexts longer than a model first knew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// ε of RMSNorm.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// Standard deviation of the normal distribution the matrices start from.
    #[serde(default = "default_init_std")]
    pub init_std: f64,
}

/// How the rotary frequencies are scaled, by transformers' names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// Every frequency is divided by `factor`: positions are `factor` times as close (arXiv
    /// 2306.15595).
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// LLaMA 3.1's: frequencies that turn less than `low_freq_factor` times in the original context
    /// are divided by `factor`, those that turn more than `high_freq_factor` times stay, and those
    /// between go from one to the other.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Turns up to which a frequency is low.
        low_freq_factor: f64,
        /// Turns from which a frequency stays.
        high_freq_factor: f64,
        /// Tokens of the context the model was first trained on.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// What a frequency, in radians a token, is divided by.
    pub fn divisor(&self, frequency: f64) -> f64 {
        match *self {
            Self::Linear { factor } => factor,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: context,
            } => {
                let turns = context as f64 * frequency / std::f64::consts::TAU;
                if turns > high {
                    1.0
                } else if turns < low {
                    factor
                } else {
                    let smooth = (turns - low) / (high - low);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            }
        }
    }

    /// The first field that does not fit: name, what was found, what is expected.
    fn misfit(&self) -> Option<(&'static str, String, String)> {
        let positive = |field, value: f64| {
            let fits = value.is_finite() && value > 0.0;
            (!fits).then(|| (field, value.to_string(), "a positive number".to_string()))
        };
        match *self {
            Self::Linear { factor } => positive("rope_scaling.factor", factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: context,
            } => positive("rope_scaling.factor", factor)
                .or_else(|| positive("rope_scaling.low_freq_factor", low))
                .or_else(|| positive("rope_scaling.high_freq_factor", high))
                .or_else(|| {
                    (high <= low).then(|| {
                        let expected = format!("more than low_freq_factor ({low})");
                        ("rope_scaling.high_freq_factor", high.to_string(), expected)
                    })
                })
                .or_else(|| {
                    (context == 0).then(|| {
                        let field = "rope_scaling.original_max_position_embeddings";
                        (field, "0".to_string(), "a positive integer".to_string())
                    })
                }),
        }
    }
}

fn default_multiple_of() -> usize {
    256
}

fn default_rope_theta() -> f64 {
    10_000.0
}

fn default_norm_eps() -> f64 {
    1e-6
}

fn default_init_std() -> f64 {
    0.02
}

impl LlamaConfig {
    /// Number of key and value heads, `K`.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Width of one head, `D`.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.dim / self.n_heads)
    }

    /// Width of the queries of all heads, H·D: the input of the attention's output projection.
    pub fn attention_dim(&self) -> usize {
        self.n_heads * self.head_dim()
    }

    /// Angle in radians that each pair of a head turns by from one position to the next, (D/2).
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let mut frequencies = rope_frequencies(self.head_dim(), self.rope_theta);
        if let Some(scaling) = self.rope_scaling {
            frequencies.iter_mut().for_each(|f| *f /= scaling.divisor(*f));
        }
        frequencies
    }

    /// Width of the feed-forward, `F`: LLaMA's 2/3 · 4d rounded up to `multiple_of`.
    pub fn ffn_dim(&self) -> usize {
        self.hidden_dim.unwrap_or_else(|| {
            // 0 is refused by `validate`, which asks for this width too.
            let multiple = self.multiple_of.max(1);
            (8 * self.dim / 3).div_ceil(multiple) * multiple
        })
    }

    /// Checks that the sizes fit together.
    ///
    /// # Errors
    /// [`ModelError::Config`] names the field, what was found and what is expected.
    pub fn validate(&self) -> Result<()> {
        let fail = |field: &'static str, found: String, expected: &str| {
            Err(ModelError::Config { field, found, expected: expected.to_string() })
        };
        for (field, value) in [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("multiple_of", self.multiple_of),
            ("vocab_size", self.vocab_size),
            ("max_seq_len", self.max_seq_len),
            ("n_kv_heads", self.kv_heads()),
            ("hidden_dim", self.ffn_dim()),
        ] {
            if value == 0 {
                return fail(field, "0".into(), "a positive integer");
            }
            // Products of two sizes stay far from overflow below this.
            if value > 1 << 24 {
                return fail(field, value.to_string(), "at most 16777216");
            }
        }
        match self.head_dim {
            None if !self.dim.is_multiple_of(self.n_heads) => {
                return fail(
                    "dim",
                    self.dim.to_string(),
                    &format!("a multiple of n_heads ({})", self.n_heads),
                );
            }
            None if !self.head_dim().is_multiple_of(2) => {
                return fail(
                    "dim",
                    self.dim.to_string(),
                    "an even head width dim / n_heads (RoPE rotates pairs)",
                );
            }
            Some(head_dim) if head_dim == 0 || !head_dim.is_multiple_of(2) => {
                let expected = "a positive even number (RoPE rotates pairs)";
                return fail("head_dim", head_dim.to_string(), expected);
            }
            Some(head_dim) if head_dim.checked_mul(self.n_heads).is_none_or(|n| n > 1 << 24) => {
                let expected = format!("at most 16777216 / n_heads ({})", self.n_heads);
                return fail("head_dim", head_dim.to_string(), &expected);
            }
            _ => {}
        }
        if !self.n_heads.is_multiple_of(self.kv_heads()) {
            return fail(
                "n_kv_heads",
                self.kv_heads().to_string(),
                &format!("a divisor of n_heads ({})", self.n_heads),
            );
        }
        for (field, value) in [("rope_theta", self.rope_theta), ("norm_eps", self.norm_eps)] {
            if !(value.is_finite() && value > 0.0) {
                return fail(field, value.to_string(), "a positive number");
            }
        }
        if let Some((field, found, expected)) = self.rope_scaling.and_then(|s| s.misfit()) {
            return fail(field, found, &expected);
        }
        if !(self.init_std.is_finite() && self.init_std >= 0.0) {
            return fail("init_std", self.init_std.to_string(), "zero or a positive number");
        }
        Ok(())
    }
}

/// θ^(−2i/D) of the D/2 pairs of a head.
pub fn rope_frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    let frequency = |i: usize| theta.powf(-2.0 * i as f64 / head_dim as f64);
    (0..head_dim / 2).map(frequency).collect()
}

/// Number format of weights and activations in matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Everything in f32: the reference.
    F32,
    /// bf16 weights and activations, f32 accumulation, master weights, moments and reductions.
    Bf16,
}

impl Precision {
    /// Bytes of one activation or compute weight.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("{text:?} is not a number format; expected bf16 or f32")),
        }
    }
}

/// What a layer saves between its forward and its backward pass. The gradients do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationCheckpointing {
    /// Save everything the backward pass reads.
    None,
    /// Save the outputs of the linear layers, queries and keys already rotated by RoPE, and of the
    /// attention; recompute norms and SwiGLU (LLaMA section 2.4).
    Selective,
    /// Save the input of the layer only; run its forward pass again.
    Full,
}

impl fmt::Display for ActivationCheckpointing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Selective => "selective",
            Self::Full => "full",
        })
    }
}
