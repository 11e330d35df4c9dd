//! The weights a run starts from: drawn from its seed, or those of a Hugging Face directory.

use std::path::Path;

use altiplano_data::Tokenizer;
use altiplano_model::config::LlamaConfig;
use altiplano_model::parallel::TensorRank;
use altiplano_model::params::Weights;
use altiplano_model::weights;
use burn::tensor::{DType, Device};

use crate::checkpoint::{self, hugging_face};
use crate::config::TrainConfig;
use crate::error::{Result, TrainerError};

/// The f32 weights of step 0 of a run, the part that the tensor rank `place` holds, with lines for the user about where they come from.
///
/// # Errors
/// When `init_from` is neither a Hugging Face directory of a LLaMA nor a run, is damaged, or holds a model or a
/// tokenizer that is not the run's.
pub fn starting_weights(
    config: &TrainConfig,
    place: &TensorRank,
    device: &Device,
) -> Result<(Weights, Vec<String>)> {
    let Some(given) = &config.init_from else {
        let (model, seed) = (&config.model, config.seed);
        return Ok((Weights::init_part(model, place, seed, DType::F32, device), Vec::new()));
    };
    let dir = checkpoint::find(given)?;
    if checkpoint::is_checkpoint(&dir) {
        checkpoint::verify_files(&dir, &[checkpoint::MODEL_FILE])?;
    }
    let (model, _) = hugging_face::read(&dir)?;
    check_model(&dir, &model, &config.model)?;
    check_tokenizer(&dir, config.tokenizer.as_deref())?;
    let mut lines = vec![format!("starts from the weights of {}", dir.display())];
    if model.rope_theta != config.model.rope_theta {
        lines.push(format!(
            "note: those were trained with rope_theta {}, this run has {}",
            model.rope_theta, config.model.rope_theta
        ));
    }
    if model.rope_scaling != config.model.rope_scaling {
        let text = |model: &LlamaConfig| match &model.rope_scaling {
            Some(scaling) => serde_json::to_string(scaling).unwrap_or_default(),
            None => "null".into(),
        };
        lines.push(format!(
            "note: those were trained with rope_scaling {}, this run has {}",
            text(&model),
            text(&config.model)
        ));
    }
    // The weights of a directory from elsewhere may be in several files.
    Ok((weights::load_part(&dir, "", &config.model, place, device)?, lines))
}

/// Holds what decides the meaning of weights to the run's. The longest context is no part of it, and
/// another base of the rotary embedding is how models are taught longer ones.
fn check_model(dir: &Path, found: &LlamaConfig, expected: &LlamaConfig) -> Result<()> {
    let values = |model: &LlamaConfig| {
        [
            ("dim", model.dim.to_string()),
            ("n_layers", model.n_layers.to_string()),
            ("n_heads", model.n_heads.to_string()),
            ("n_kv_heads", model.kv_heads().to_string()),
            ("head_dim", model.head_dim().to_string()),
            ("hidden_dim", model.ffn_dim().to_string()),
            ("vocab_size", model.vocab_size.to_string()),
            ("tie_word_embeddings", model.tie_word_embeddings.to_string()),
            ("norm_eps", format!("{:e}", model.norm_eps)),
        ]
    };
    let pairs = values(found).into_iter().zip(values(expected));
    let other: Vec<_> = pairs.filter(|(found, expected)| found != expected).collect();
    if other.is_empty() {
        return Ok(());
    }
    let text = |f: fn(&str, &str, &str) -> String| -> String {
        let each = other.iter().map(|((key, found), (_, expected))| f(key, found, expected));
        each.collect::<Vec<_>>().join(" ")
    };
    let differ =
        text(|key, found, expected| format!("{key} is {found} there and {expected} here;"));
    let set = text(|key, found, _| format!("model.{key}={found}"));
    Err(TrainerError::Config {
        place: format!("init_from: {}", dir.display()),
        message: format!("holds another model: {differ} to train that one: {set}"),
    })
}

/// Refuses weights whose token ids are those of another tokenizer.
fn check_tokenizer(dir: &Path, tokenizer: Option<&Path>) -> Result<()> {
    let Some(ours) = tokenizer else { return Ok(()) };
    let Some(theirs) = hugging_face::read_tokenizer(dir)? else { return Ok(()) };
    let ours_fingerprint = Tokenizer::open(ours)?.fingerprint().to_owned();
    // A model that is there in both forms may have been tokenized with either.
    let json = dir.join(hugging_face::TOKENIZER_JSON_FILE);
    let same_json = json.is_file()
        && altiplano_data::tokenizer::is_json(ours)
        && Tokenizer::open(&json)?.fingerprint() == ours_fingerprint;
    if theirs.fingerprint() == ours_fingerprint || same_json {
        return Ok(());
    }
    Err(TrainerError::Config {
        place: format!("init_from: {}", dir.display()),
        message: format!(
            "its {} is another one than {}, so its weights do not know the run's token ids: \
             tokenize with the one of the weights and give it as `tokenizer`",
            theirs.path().file_name().unwrap_or_default().display(),
            ours.display()
        ),
    })
}
