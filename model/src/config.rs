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
    /// Base of the rotary frequencies.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// ε of RMSNorm.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
    /// Standard deviation of the normal distribution the matrices start from.
    #[serde(default = "default_init_std")]
    pub init_std: f64,
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
        self.dim / self.n_heads
    }

    /// Width of the feed-forward, `F`: LLaMA's 2/3 · 4d rounded up to `multiple_of`.
    pub fn ffn_dim(&self) -> usize {
        self.hidden_dim
            .unwrap_or_else(|| (8 * self.dim / 3).div_ceil(self.multiple_of) * self.multiple_of)
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
        if !self.dim.is_multiple_of(self.n_heads) {
            return fail(
                "dim",
                self.dim.to_string(),
                &format!("a multiple of n_heads ({})", self.n_heads),
            );
        }
        if !self.head_dim().is_multiple_of(2) {
            return fail(
                "dim",
                self.dim.to_string(),
                "an even head width dim / n_heads (RoPE rotates pairs)",
            );
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
        if !(self.init_std.is_finite() && self.init_std >= 0.0) {
            return fail("init_std", self.init_std.to_string(), "zero or a positive number");
        }
        Ok(())
    }
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
