//! The files that make a checkpoint a Hugging Face model directory.
//!
//! `config.json` carries both spellings in use: `torch_dtype` and top-level `rope_theta` for
//! transformers 4 and the servers that read the same keys, `dtype` and `rope_parameters` for
//! transformers 5.
//!
//! The tokenizer is there twice: as SentencePiece's model and as `tokenizer.json`, for readers that
//! know only that. Both give the same ids for every text.

use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use altiplano_model::config::LlamaConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{CheckpointFiles, read_file};
use crate::error::{Result, TrainerError};

/// SentencePiece model of the directory.
pub const TOKENIZER_FILE: &str = "tokenizer.model";
/// What transformers reads of a tokenizer beside its vocabulary.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
const CONFIG_FILE: &str = "config.json";

/// Ids of the tokens that stand for no text. The default is SentencePiece's own, as in LLaMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// Begin of text, `<s>`.
    pub bos: u32,
    /// End of text, `</s>`.
    pub eos: u32,
}

impl Default for SpecialTokens {
    fn default() -> Self {
        Self { bos: 1, eos: 2 }
    }
}

/// Whether the directory holds a model as Hugging Face's libraries expect it.
pub fn is_model(dir: &Path) -> bool {
    dir.join(CONFIG_FILE).exists()
}

/// Writes `config.json`, `generation_config.json` and, with a tokenizer, the bytes of its model, the
/// same as `tokenizer.json`, `tokenizer_config.json`, with the chat template if there is one, and
/// `special_tokens_map.json`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(
    files: &mut CheckpointFiles,
    model: &LlamaConfig,
    tokens: SpecialTokens,
    tokenizer: Option<&Tokenizer>,
    chat_template: Option<&str>,
) -> Result<()> {
    write_json(files, CONFIG_FILE, &config_json(model, tokens))?;
    write_json(
        files,
        "generation_config.json",
        &json!({
            "_from_model_config": true,
            "bos_token_id": tokens.bos,
            "eos_token_id": tokens.eos,
            "transformers_version": TRANSFORMERS_VERSION,
        }),
    )?;
    match tokenizer {
        Some(tokenizer) => write_tokenizer(files, model, tokenizer, chat_template),
        None => Ok(()),
    }
}

/// The part of [`write`] that is about text.
///
/// # Errors
/// When a file cannot be written.
pub fn write_tokenizer(
    files: &mut CheckpointFiles,
    model: &LlamaConfig,
    tokenizer: &Tokenizer,
    chat_template: Option<&str>,
) -> Result<()> {
    files.write_bytes(TOKENIZER_FILE, tokenizer.model())?;
    let json = tokenizer.tokenizer_json();
    // transformers 5 makes merges and a normalizer of its own for LlamaTokenizer and then differs where
    // spaces lead or repeat; this class takes tokenizer.json as it is.
    let class = match json {
        Some(_) => "PreTrainedTokenizerFast",
        None => "LlamaTokenizer",
    };
    if let Some(json) = json {
        files.write_bytes("tokenizer.json", json.as_bytes())?;
    }
    let name = |id: Option<u32>| Some(tokenizer.piece(id?)?.text.as_str());
    let marks = [
        ("bos_token", name(tokenizer.bos_id())),
        ("eos_token", name(tokenizer.eos_id())),
        ("unk_token", name(Some(tokenizer.unk_id()))),
    ];
    let mut config = json!({
        "tokenizer_class": class,
        "add_bos_token": tokenizer.bos_id().is_some(),
        "add_eos_token": false,
        "pad_token": null,
        "clean_up_tokenization_spaces": false,
        // `<s>` in a text is text.
        "split_special_tokens": true,
        // The ids of plain SentencePiece.
        "legacy": true,
        "model_max_length": model.max_seq_len,
        "sp_model_kwargs": {},
    });
    let mut map = json!({});
    for (key, name) in marks {
        config[key] = json!(name);
        if let Some(name) = name {
            map[key] = json!(name);
        }
    }
    if let Some(template) = chat_template {
        config["chat_template"] = json!(template);
    }
    write_json(files, TOKENIZER_CONFIG_FILE, &config)?;
    write_json(files, "special_tokens_map.json", &map)
}

/// The version whose keys are written.
const TRANSFORMERS_VERSION: &str = "4.46.0";

fn config_json(model: &LlamaConfig, tokens: SpecialTokens) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim(),
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.kv_heads(),
        "head_dim": model.head_dim(),
        "hidden_act": "silu",
        "max_position_embeddings": model.max_seq_len,
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_eps,
        "use_cache": true,
        "vocab_size": model.vocab_size,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos,
        "pad_token_id": null,
        "pretraining_tp": 1,
        "tie_word_embeddings": false,
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "rope_theta": model.rope_theta,
        "rope_scaling": null,
        "rope_parameters": { "rope_type": "default", "rope_theta": model.rope_theta },
        "torch_dtype": "float32",
        "dtype": "float32",
        "transformers_version": TRANSFORMERS_VERSION,
    })
}

fn write_json(files: &mut CheckpointFiles, name: &str, value: &Value) -> Result<()> {
    files.write_bytes(name, format!("{value:#}\n").as_bytes())
}

/// The keys of `config.json` that decide a model, in either spelling.
#[derive(Deserialize)]
struct HfConfig {
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_hidden_act")]
    hidden_act: String,
    max_position_embeddings: usize,
    initializer_range: Option<f64>,
    rms_norm_eps: f64,
    vocab_size: usize,
    bos_token_id: Option<u32>,
    eos_token_id: Option<OneOrMore>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<RopeParameters>,
}

fn default_hidden_act() -> String {
    "silu".into()
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

/// Reads the shape of the model and its special tokens from the `config.json` of a directory. That
/// of a checkpoint must be as it was written.
///
/// # Errors
/// As [`read_file`]; [`TrainerError::RunFile`] when it is missing, not LLaMA's, or asks for something that this
/// program does not compute.
pub fn read(dir: &Path) -> Result<(LlamaConfig, SpecialTokens)> {
    let path = dir.join(CONFIG_FILE);
    let json = read_file(dir, CONFIG_FILE)?;
    let hf: HfConfig = serde_json::from_slice(&json).map_err(|error| {
        unfit(&path, format!("not the configuration of a LLaMA model: {error}"))
    })?;
    hf.check(&path)?;
    let rope_theta = hf.rope_parameters.and_then(|rope| rope.rope_theta).or(hf.rope_theta);
    let model = LlamaConfig {
        dim: hf.hidden_size,
        n_layers: hf.num_hidden_layers,
        n_heads: hf.num_attention_heads,
        n_kv_heads: hf.num_key_value_heads,
        hidden_dim: Some(hf.intermediate_size),
        multiple_of: 256,
        vocab_size: hf.vocab_size,
        max_seq_len: hf.max_position_embeddings,
        rope_theta: rope_theta.unwrap_or(10_000.0),
        norm_eps: hf.rms_norm_eps,
        init_std: hf.initializer_range.unwrap_or(0.02),
    };
    model.validate().map_err(|error| unfit(&path, error.to_string()))?;
    let default = SpecialTokens::default();
    let eos = hf.eos_token_id.and_then(|eos| match eos {
        OneOrMore::One(id) => Some(id),
        OneOrMore::More(ids) => ids.first().copied(),
    });
    let bos = hf.bos_token_id.unwrap_or(default.bos);
    Ok((model, SpecialTokens { bos, eos: eos.unwrap_or(default.eos) }))
}

fn unfit(path: &Path, reason: String) -> TrainerError {
    TrainerError::RunFile { path: PathBuf::from(path), reason }
}

impl HfConfig {
    fn check(&self, path: &Path) -> Result<()> {
        let refuse = |key: &str, found: &str, expected: &str| {
            Err(unfit(path, format!("{key}: found {found}, expected {expected}")))
        };
        if let Some(kind) = self.model_type.as_deref()
            && kind != "llama"
        {
            return refuse("model_type", kind, "llama");
        }
        if self.hidden_act != "silu" {
            return refuse("hidden_act", &self.hidden_act, "silu");
        }
        for (key, given) in [
            ("tie_word_embeddings", self.tie_word_embeddings),
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
        ] {
            if given {
                return refuse(key, "true", "false");
            }
        }
        if let Some(head_dim) = self.head_dim
            && head_dim.checked_mul(self.num_attention_heads) != Some(self.hidden_size)
        {
            return refuse("head_dim", &head_dim.to_string(), "hidden_size / num_attention_heads");
        }
        if let Some(scaling) = self.rope_scaling.as_ref().filter(|value| !value.is_null()) {
            return refuse("rope_scaling", &scaling.to_string(), "null");
        }
        let rope_type = self.rope_parameters.as_ref().and_then(|rope| rope.rope_type.as_deref());
        match rope_type {
            None | Some("default") => Ok(()),
            Some(other) => refuse("rope_parameters.rope_type", other, "default"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    fn model() -> LlamaConfig {
        LlamaConfig {
            dim: 4096,
            n_layers: 32,
            n_heads: 32,
            n_kv_heads: Some(8),
            hidden_dim: None,
            multiple_of: 256,
            vocab_size: 32000,
            max_seq_len: 2048,
            rope_theta: 500_000.0,
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    #[test]
    fn the_shape_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = SpecialTokens { bos: 5, eos: 6 };
        write(&mut CheckpointFiles::new(dir.path()), &model(), tokens, None, None).unwrap();
        assert!(is_model(dir.path()));
        assert_eq!(
            read(dir.path()).unwrap(),
            (LlamaConfig { hidden_dim: Some(11008), ..model() }, tokens)
        );
        let text = fs::read_to_string(dir.path().join("generation_config.json")).unwrap();
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_object());
    }

    #[test]
    fn both_spellings_are_written() {
        let config = config_json(&model(), SpecialTokens::default());
        assert_eq!(config["rope_theta"], config["rope_parameters"]["rope_theta"]);
        assert_eq!(config["torch_dtype"], "float32");
        assert_eq!(config["dtype"], "float32");
        assert_eq!(config["intermediate_size"], 11008);
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (key, value) in [
            ("model_type", json!("mistral")),
            ("hidden_act", json!("gelu")),
            ("tie_word_embeddings", json!(true)),
            ("attention_bias", json!(true)),
            ("head_dim", json!(64)),
            ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
            ("rope_parameters", json!({"rope_type": "llama3", "rope_theta": 1e4})),
            ("hidden_size", json!(0)),
            ("hidden_size", json!("wide")),
        ] {
            let mut config = config_json(&model(), SpecialTokens::default());
            config[key] = value;
            fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
            let error = read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("config.json"), "{key}: {error}");
        }
    }

    #[test]
    fn keys_that_older_writers_leave_out_have_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
            "vocab_size": 100, "eos_token_id": [7, 8]}"#;
        fs::write(dir.path().join(CONFIG_FILE), text).unwrap();
        let (model, tokens) = read(dir.path()).unwrap();
        assert_eq!((model.kv_heads(), model.rope_theta), (4, 10_000.0));
        assert_eq!(tokens, SpecialTokens { bos: 1, eos: 7 });
    }
}
