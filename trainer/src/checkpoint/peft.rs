//! Low-rank adapters as a directory of Hugging Face's PEFT library.
//!
//! ```text
//! adapter_config.json         rank, scale, which matrices, the model they belong to
//! adapter_model.safetensors   base_model.model.model.layers.<n>.self_attn.q_proj.lora_A.weight, …
//! ```

use std::path::{Path, PathBuf};

use altiplano_model::adapters::{AdapterShape, Adapters, Target};
use altiplano_model::config::LlamaConfig;
use altiplano_model::weights;
use burn::tensor::Device;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{CheckpointFiles, is_checkpoint, read_file, verify_files};
use crate::error::{Result, TrainerError};

/// The adapters, f32.
pub const ADAPTER_FILE: &str = "adapter_model.safetensors";
const CONFIG_FILE: &str = "adapter_config.json";

/// Largest rank: beyond the width of every model.
const LARGEST_RANK: usize = 1 << 16;

/// Whether the directory holds adapters as PEFT expects them.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(CONFIG_FILE).exists()
}

/// Writes `adapter_config.json` for adapters of the model in `base`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_config(files: &mut CheckpointFiles, shape: &AdapterShape, base: &Path) -> Result<()> {
    let targets: Vec<&str> = shape.targets.iter().map(|target| target.name()).collect();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.to_string_lossy(),
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "fan_in_fan_out": false,
        "bias": "none",
        "inference_mode": true,
        "modules_to_save": null,
    });
    files.write_bytes(CONFIG_FILE, format!("{config:#}\n").as_bytes())
}

/// The keys of `adapter_config.json` that decide what the adapters mean.
#[derive(Deserialize)]
struct PeftConfig {
    peft_type: String,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    target_modules: Vec<String>,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
}

/// Reads rank, scale and targets of the adapters in `dir`, and where the model they belong to lies. That of a
/// checkpoint must be as it was written.
///
/// # Errors
/// [`TrainerError::RunFile`] when the file is missing, not PEFT's or asks for something that this program does
/// not compute.
pub fn read_config(dir: &Path) -> Result<(AdapterShape, PathBuf)> {
    let path = dir.join(CONFIG_FILE);
    let unfit = |reason: String| TrainerError::RunFile { path: path.clone(), reason };
    let config: PeftConfig = serde_json::from_slice(&read_file(dir, CONFIG_FILE)?)
        .map_err(|error| unfit(format!("not the configuration of LoRA adapters: {error}")))?;
    let refuse = |key: &str, found: String, expected: &str| {
        Err(unfit(format!("{key}: found {found}, expected {expected}")))
    };
    if config.peft_type != "LORA" {
        return refuse("peft_type", config.peft_type, "LORA");
    }
    for (key, given) in [
        ("fan_in_fan_out", config.fan_in_fan_out),
        ("use_rslora", config.use_rslora),
        ("use_dora", config.use_dora),
        ("lora_bias", config.lora_bias),
    ] {
        if given {
            return refuse(key, "true".into(), "false");
        }
    }
    if let Some(bias) = config.bias.filter(|bias| bias != "none") {
        return refuse("bias", bias, "none");
    }
    if let Some(modules) = config.modules_to_save.filter(|modules| !modules.is_empty()) {
        return refuse("modules_to_save", modules.join(", "), "none");
    }
    for (key, pattern) in
        [("rank_pattern", &config.rank_pattern), ("alpha_pattern", &config.alpha_pattern)]
    {
        if pattern.as_ref().is_some_and(|pattern| !pattern.is_empty()) {
            return refuse(key, "some".into(), "none");
        }
    }
    if config.r == 0 || config.r > LARGEST_RANK {
        return refuse("r", config.r.to_string(), "1 to 65536");
    }
    if !config.lora_alpha.is_finite() {
        return refuse("lora_alpha", config.lora_alpha.to_string(), "a number");
    }
    let mut targets = Vec::new();
    for name in &config.target_modules {
        match Target::ALL.into_iter().find(|target| target.name() == name) {
            Some(target) => targets.push(target),
            None => {
                let known: Vec<&str> = Target::ALL.iter().map(|target| target.name()).collect();
                let expected = format!("some of {}", known.join(", "));
                return refuse("target_modules", format!("{name:?}"), &expected);
            }
        }
    }
    targets.sort_unstable();
    targets.dedup();
    let shape = AdapterShape { rank: config.r, alpha: config.lora_alpha, targets };
    let base = config.base_model_name_or_path.unwrap_or_default();
    Ok((shape, PathBuf::from(base)))
}

/// The adapters in `dir`, f32, for a model of this configuration. Those of a checkpoint must be as they were
/// written.
///
/// # Errors
/// When the file is missing, damaged, or its tensors are not those of the configuration.
pub fn load(
    dir: &Path,
    model: &LlamaConfig,
    shape: &AdapterShape,
    device: &Device,
) -> Result<Adapters> {
    if is_checkpoint(dir) {
        verify_files(dir, &[ADAPTER_FILE])?;
    }
    Ok(weights::load_adapters(&dir.join(ADAPTER_FILE), "", model, shape, device)?)
}

/// The directory of the model that the adapters in `dir` belong to.
///
/// # Errors
/// When `adapter_config.json` names none that is here.
pub fn base_of(dir: &Path, named: &Path) -> Result<PathBuf> {
    // As written, and as seen from the adapters.
    let places = [named.to_path_buf(), dir.join(named)];
    match places.into_iter().find(|place| !named.as_os_str().is_empty() && place.is_dir()) {
        Some(base) => super::find(&base),
        None => Err(TrainerError::RunFile {
            path: dir.join(CONFIG_FILE),
            reason: format!(
                "base_model_name_or_path: found {:?}, which is not a folder here; put the model there that \
                 the adapters were trained on, or, in a directory that is not a checkpoint, write its path",
                named.display().to_string()
            ),
        }),
    }
}
