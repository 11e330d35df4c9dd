//! The files that make a checkpoint a Hugging Face model directory.
//!
//! `config.json` carries both spellings in use: `torch_dtype` and top-level `rope_theta` for
//! transformers 4 and the servers that read the same keys, `dtype` and `rope_parameters` for
//! transformers 5. Scaled rotary embeddings stand under `rope_scaling` and under `rope_parameters`.
//!
//! A SentencePiece tokenizer is there twice: as its model and as `tokenizer.json`, for readers that
//! know only that. Both give the same ids for every text. Tokenizers of other kinds are a
//! `tokenizer.json` alone.

use std::path::{Path, PathBuf};

use altiplano_data::Tokenizer;
use altiplano_model::config::{LlamaConfig, RopeScaling};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{CheckpointFiles, lists, read_file};
use crate::error::{Result, TrainerError};

/// SentencePiece model of the directory.
pub const TOKENIZER_FILE: &str = "tokenizer.model";
/// A tokenizer of another kind, where there is no SentencePiece model.
pub const TOKENIZER_JSON_FILE: &str = "tokenizer.json";
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

/// The tokenizer of a directory: its SentencePiece model, or else its `tokenizer.json`. None where
/// there is neither.
///
/// # Errors
/// As [`read_file`]; when the file is not a tokenizer.
pub fn read_tokenizer(dir: &Path) -> Result<Option<Tokenizer>> {
    for name in [TOKENIZER_FILE, TOKENIZER_JSON_FILE] {
        let path = dir.join(name);
        if path.exists() || lists(dir, name)? {
            return Ok(Some(Tokenizer::from_bytes(&path, &read_file(dir, name)?)?));
        }
    }
    Ok(None)
}

/// Writes `config.json`, `generation_config.json` and, with a tokenizer, the bytes of its file, for a
/// SentencePiece model the same as `tokenizer.json`, `tokenizer_config.json`, with the chat template
/// if there is one, and
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
    pad_token: PadToken,
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
        Some(tokenizer) => write_tokenizer(files, model, tokenizer, chat_template, pad_token),
        None => Ok(()),
    }
}

/// The part of [`write()`] that is about text.
///
/// # Errors
/// When a file cannot be written.
pub fn write_tokenizer(
    files: &mut CheckpointFiles,
    model: &LlamaConfig,
    tokenizer: &Tokenizer,
    chat_template: Option<&str>,
    pad_token: PadToken,
) -> Result<()> {
    let pad = match pad_token {
        PadToken::None => None,
        PadToken::Added => Some(tokenizer.vocab_size()),
    };
    if let Some(id) = pad {
        write_json(files, "added_tokens.json", &json!({ PAD_TOKEN: id }))?;
    }
    if tokenizer.is_sentencepiece() {
        files.write_bytes(TOKENIZER_FILE, tokenizer.model())?;
    }
    let json = tokenizer.tokenizer_json();
    // transformers 5 makes merges and a normalizer of its own for LlamaTokenizer and then differs where
    // spaces lead or repeat; this class takes tokenizer.json as it is.
    let class = match json {
        Some(_) => "PreTrainedTokenizerFast",
        None => "LlamaTokenizer",
    };
    if let Some(json) = json {
        files.write_bytes(TOKENIZER_JSON_FILE, json.as_bytes())?;
    }
    let name = |id: Option<u32>| Some(tokenizer.piece(id?)?.text.as_str());
    let marks = [
        ("bos_token", name(tokenizer.bos_id())),
        ("eos_token", name(tokenizer.eos_id())),
        ("unk_token", name(tokenizer.unk_id())),
    ];
    if !tokenizer.is_sentencepiece() {
        return write_names(files, model, &marks, chat_template, pad);
    }
    let mut config = json!({
        "tokenizer_class": class,
        "add_bos_token": tokenizer.bos_id().is_some(),
        "add_eos_token": false,
        "pad_token": null,
        "clean_up_tokenization_spaces": false,
        // `<s>` in a text is text, unless a template writes its marks that way: other programs render it to
        // text before they encode.
        "split_special_tokens": chat_template.is_none(),
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
    if let Some(id) = pad {
        add_pad_token(&mut config, id);
        map["pad_token"] = json!(PAD_TOKEN);
    }
    if let Some(template) = chat_template {
        config["chat_template"] = json!(template);
    }
    write_json(files, TOKENIZER_CONFIG_FILE, &config)?;
    write_json(files, "special_tokens_map.json", &map)
}

/// The text of the token that fills rows up in other programs.
const PAD_TOKEN: &str = "[PAD]";

/// Whether the model knows a token behind those of its tokenizer that fills rows up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadToken {
    /// It does not.
    None,
    /// `[PAD]`, whose id is the size of the tokenizer.
    Added,
}

fn add_pad_token(config: &mut Value, id: usize) {
    config["pad_token"] = json!(PAD_TOKEN);
    config["added_tokens_decoder"] = json!({
        id.to_string(): {
            "content": PAD_TOKEN,
            "lstrip": false,
            "normalized": false,
            "rstrip": false,
            "single_word": false,
            "special": true,
        }
    });
}

/// The settings of a tokenizer that is a `tokenizer.json` alone, which has all but the names of its
/// marks.
fn write_names(
    files: &mut CheckpointFiles,
    model: &LlamaConfig,
    marks: &[(&str, Option<&str>)],
    chat_template: Option<&str>,
    pad: Option<usize>,
) -> Result<()> {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": false,
        "model_max_length": model.max_seq_len,
    });
    for (key, name) in marks {
        if let Some(name) = name {
            config[*key] = json!(name);
        }
    }
    if let Some(id) = pad {
        add_pad_token(&mut config, id);
    }
    if let Some(template) = chat_template {
        config["chat_template"] = json!(template);
    }
    write_json(files, TOKENIZER_CONFIG_FILE, &config)
}

/// The version whose keys are written.
const TRANSFORMERS_VERSION: &str = "4.46.0";

fn config_json(model: &LlamaConfig, tokens: SpecialTokens) -> Value {
    let scaling = json!(model.rope_scaling);
    let mut rope_parameters = json!({ "rope_type": "default" });
    if scaling.is_object() {
        rope_parameters.clone_from(&scaling);
    }
    rope_parameters["rope_theta"] = json!(model.rope_theta);
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
        "tie_word_embeddings": model.tie_word_embeddings,
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "rope_theta": model.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": rope_parameters,
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
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<RopeParameters>,
    partial_rotary_factor: Option<f64>,
    quantization_config: Option<Quantization>,
}

/// How the matrices are packed.
#[derive(Deserialize)]
struct Quantization {
    quant_method: Option<String>,
    bits: Option<u64>,
    group_size: Option<i64>,
    zero_point: Option<bool>,
    version: Option<String>,
}

impl Quantization {
    /// The group of AWQ in the layout that is read.
    fn awq_group(&self, path: &Path) -> Result<usize> {
        let refuse = |key: &str, found: &dyn std::fmt::Debug, expected: &str| {
            let key = format!("quantization_config.{key}");
            Err(unfit(path, format!("{key}: found {found:?}, expected {expected}")))
        };
        if self.quant_method.as_deref() != Some("awq") {
            return refuse("quant_method", &self.quant_method, "awq, or no quantization_config");
        }
        if self.bits != Some(4) {
            return refuse("bits", &self.bits, "4");
        }
        if self.zero_point == Some(false) {
            return refuse("zero_point", &self.zero_point, "true");
        }
        if !self.version.as_ref().is_none_or(|version| version.eq_ignore_ascii_case("gemm")) {
            return refuse("version", &self.version, "gemm");
        }
        match self.group_size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) if size > 0 => Ok(size),
            _ => refuse("group_size", &self.group_size, "a positive integer"),
        }
    }
}

fn default_hidden_act() -> String {
    "silu".into()
}

/// `rope_scaling` of transformers 4 or `rope_parameters` of transformers 5.
#[derive(Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    /// What older writers call it.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    partial_rotary_factor: Option<f64>,
}

impl RopeParameters {
    /// The scaling they ask for. `key` is where they stand, for messages.
    fn scaling(&self, path: &Path, key: &str) -> Result<Option<RopeScaling>> {
        let missing = |name: &str| {
            let reason = format!("{key}.{name}: missing; the other keys of {key} ask for it");
            unfit(path, reason)
        };
        let number = |name: &str, value: Option<f64>| value.ok_or_else(|| missing(name));
        let factor = || number("factor", self.factor);
        match self.rope_type.as_deref().or(self.r#type.as_deref()) {
            None | Some("default") => Ok(None),
            Some("linear") => Ok(Some(RopeScaling::Linear { factor: factor()? })),
            Some("llama3") => Ok(Some(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: number("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: number("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: self
                    .original_max_position_embeddings
                    .ok_or_else(|| missing("original_max_position_embeddings"))?,
            })),
            Some(other) => Err(unfit(
                path,
                format!("{key}.rope_type: found {other}, expected default, linear or llama3"),
            )),
        }
    }
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
    let (model, tokens, awq_group) = read_packed(dir)?;
    match awq_group {
        None => Ok((model, tokens)),
        Some(_) => Err(unfit(
            &dir.join(CONFIG_FILE),
            "quantization_config: the weights are packed by AWQ; `altiplano import --from hf` makes a \
             directory of plain ones",
        )),
    }
}

/// As [`read`], also of a directory whose matrices are packed by AWQ, with the inputs that share a
/// scale.
///
/// # Errors
/// As [`read`].
pub fn read_packed(dir: &Path) -> Result<(LlamaConfig, SpecialTokens, Option<usize>)> {
    let path = dir.join(CONFIG_FILE);
    let json = read_file(dir, CONFIG_FILE)?;
    let hf: HfConfig = serde_json::from_slice(&json).map_err(|error| {
        unfit(&path, format!("not the configuration of a LLaMA model: {error}"))
    })?;
    hf.check(&path)?;
    let rope_scaling = hf.scaling(&path)?;
    // In the order of transformers 5, which takes `rope_scaling` for an older `rope_parameters`.
    let theta = |rope: &Option<RopeParameters>| rope.as_ref()?.rope_theta;
    let rope_theta = theta(&hf.rope_scaling).or(theta(&hf.rope_parameters));
    let model = LlamaConfig {
        dim: hf.hidden_size,
        n_layers: hf.num_hidden_layers,
        n_heads: hf.num_attention_heads,
        n_kv_heads: hf.num_key_value_heads,
        head_dim: hf.other_head_dim(),
        hidden_dim: Some(hf.intermediate_size),
        multiple_of: 256,
        vocab_size: hf.vocab_size,
        max_seq_len: hf.max_position_embeddings,
        rope_theta: rope_theta.or(hf.rope_theta).unwrap_or(10_000.0),
        tie_word_embeddings: hf.tie_word_embeddings,
        rope_scaling,
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
    let packing = hf.quantization_config.map(|packing| packing.awq_group(&path)).transpose()?;
    Ok((model, SpecialTokens { bos, eos: eos.unwrap_or(default.eos) }, packing))
}

fn unfit(path: &Path, reason: impl Into<String>) -> TrainerError {
    TrainerError::RunFile { path: PathBuf::from(path), reason: reason.into() }
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
        for (key, given) in [("attention_bias", self.attention_bias), ("mlp_bias", self.mlp_bias)] {
            if given {
                return refuse(key, "true", "false");
            }
        }
        let of_rope = |rope: &Option<RopeParameters>| rope.as_ref()?.partial_rotary_factor;
        for (key, factor) in [
            ("partial_rotary_factor", self.partial_rotary_factor),
            ("rope_scaling.partial_rotary_factor", of_rope(&self.rope_scaling)),
            ("rope_parameters.partial_rotary_factor", of_rope(&self.rope_parameters)),
        ] {
            if let Some(factor) = factor.filter(|factor| *factor != 1.0) {
                return refuse(key, &factor.to_string(), "1: all of a head is rotated");
            }
        }
        Ok(())
    }

    /// The width of a head, where it is not what follows from the other sizes.
    fn other_head_dim(&self) -> Option<usize> {
        let follows = |head_dim: &usize| {
            head_dim.checked_mul(self.num_attention_heads) == Some(self.hidden_size)
        };
        self.head_dim.filter(|head_dim| !follows(head_dim))
    }

    /// The scaling of the rotary embedding, under either key. transformers 5 reads `rope_scaling`
    /// first and transformers 4 knows no other, so the two may not contradict each other.
    fn scaling(&self, path: &Path) -> Result<Option<RopeScaling>> {
        let of = |rope: &Option<RopeParameters>, key: &str| {
            rope.as_ref().map(|rope| rope.scaling(path, key)).transpose()
        };
        let old = of(&self.rope_scaling, "rope_scaling")?;
        let new = of(&self.rope_parameters, "rope_parameters")?;
        match (old, new) {
            (Some(old), Some(new)) if old != new => Err(unfit(
                path,
                "rope_scaling and rope_parameters: found two scalings, expected the same one",
            )),
            (old, new) => Ok(old.or(new).flatten()),
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
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    #[test]
    fn the_shape_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = SpecialTokens { bos: 5, eos: 6 };
        write(&mut CheckpointFiles::new(dir.path()), &model(), tokens, None, None, PadToken::None)
            .unwrap();
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
            ("attention_bias", json!(true)),
            ("mlp_bias", json!(true)),
            ("head_dim", json!(63)),
            ("head_dim", json!(0)),
            ("partial_rotary_factor", json!(0.5)),
            ("rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
            ("rope_scaling", json!({"rope_type": "longrope", "long_factor": [1.0]})),
            ("rope_scaling", json!({"rope_type": "linear"})),
            ("rope_scaling", json!({"rope_type": "linear", "factor": 0.0})),
            // The other key says that there is none.
            ("rope_scaling", json!({"rope_type": "linear", "factor": 2.0})),
            ("rope_parameters", json!({"rope_type": "llama3", "rope_theta": 1e4})),
            ("rope_parameters", json!({"rope_type": "default", "partial_rotary_factor": 0.25})),
            ("hidden_size", json!(0)),
            ("hidden_size", json!("wide")),
        ] {
            let mut config = config_json(&model(), SpecialTokens::default());
            config[key] = value;
            fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
            let error = read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("config.json"), "{key}: {error}");
            let named = ["hidden_size", "head_dim"].contains(&key) || error.contains(key);
            assert!(named, "{key}: {error}");
        }
    }

    /// Tied matrices, heads of another width and scaled frequencies come back, from the keys of
    /// either version of transformers.
    #[test]
    fn other_kinds_of_llama_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let llama3 = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        for scaling in [RopeScaling::Linear { factor: 2.5 }, llama3] {
            let model = LlamaConfig {
                hidden_dim: Some(11008),
                head_dim: Some(64),
                tie_word_embeddings: true,
                rope_scaling: Some(scaling),
                ..model()
            };
            let whole = config_json(&model, SpecialTokens::default());
            for without in ["rope_scaling", "rope_parameters", "neither"] {
                let mut config = whole.clone();
                config.as_object_mut().unwrap().remove(without);
                fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
                assert_eq!(read(dir.path()).unwrap().0, model, "without {without}");
            }
        }
        // What older writers call it.
        let mut config = config_json(&model(), SpecialTokens::default());
        config["rope_scaling"] = json!({"type": "linear", "factor": 4});
        config["rope_parameters"] = Value::Null;
        fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
        let read = read(dir.path()).unwrap().0;
        assert_eq!(read.rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
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
