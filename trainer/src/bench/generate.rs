//! Generation from a checkpoint: the prompts at once, then token by token.

use std::path::Path;
use std::time::Instant;

use altiplano_model::device::in_pool;
use altiplano_model::infer::{
    Engine, EngineOptions, InferenceModel, InferencePrecision, Request, RequestId, SamplingParams,
};
use serde::Serialize;

use super::median;
use crate::error::{Result, TrainerError};
use crate::metrics::peak_memory_bytes;
use crate::text_model::open_weights;

/// Length of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateBenchOptions {
    /// Sequences at a time, which share each pass over the weights.
    pub sequences: usize,
    /// Tokens of the prompt of each.
    pub prompt_tokens: usize,
    /// Tokens generated after it, at least 2.
    pub new_tokens: usize,
    /// Number format of the weights; none for that of the file.
    pub precision: Option<InferencePrecision>,
    /// Generations timed, after one that is not.
    pub repeats: usize,
}

/// Speed and memory of generation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerateBench {
    /// Tokens of all prompts over the time to the first tokens.
    pub prefill_tokens_per_second: f64,
    /// Tokens of all sequences after their first over their time.
    pub decode_tokens_per_second: f64,
    /// From the prompts to the first tokens chosen.
    pub seconds_to_first_token: f64,
    /// Most memory the process held.
    pub peak_memory_bytes: u64,
    /// Sequences at a time.
    pub sequences: usize,
    /// Tokens of the prompt of each.
    pub prompt_tokens: usize,
    /// Tokens generated after it.
    pub new_tokens: usize,
    /// Number format of the weights: `as stored`, or what was asked for.
    pub precision: String,
    /// From the path to the model.
    pub seconds_to_open: f64,
    /// Threads that compute.
    pub threads: usize,
    /// Parameters of the model.
    pub parameters: usize,
}

/// Measures generation with the model of `checkpoint`, taking the likeliest token each time and
/// stopping at none.
///
/// # Errors
/// When the checkpoint cannot be opened, or its context is too short for prompt and new tokens.
pub fn bench_generate(checkpoint: &Path, options: &GenerateBenchOptions) -> Result<GenerateBench> {
    let started = Instant::now();
    let (_, model) = open_weights(checkpoint, "cpu", options.precision)?;
    let seconds_to_open = started.elapsed().as_secs_f64();
    let bench = in_pool(model.device(), || measure(&model, options))?;
    Ok(GenerateBench { seconds_to_open, ..bench })
}

fn measure(model: &InferenceModel, options: &GenerateBenchOptions) -> Result<GenerateBench> {
    let GenerateBenchOptions { sequences, prompt_tokens, new_tokens, precision, repeats } =
        *options;
    let context = model.config().max_seq_len;
    let fits = prompt_tokens.checked_add(new_tokens).is_some_and(|length| length <= context);
    let most = EngineOptions::new(context, 1).max_num_seqs;
    if prompt_tokens == 0 || new_tokens < 2 || repeats == 0 || !fits {
        return Err(TrainerError::Usage {
            message: format!(
                "--prompt-tokens {prompt_tokens} --new-tokens {new_tokens} --repeats {repeats}: \
                 expected a prompt of at least 1, at least 2 new ones, together at most the \
                 context, {context}, and at least 1 repeat"
            ),
        });
    }
    if sequences == 0 || sequences > most {
        let message = format!("--sequences {sequences}: expected 1 to {most}");
        return Err(TrainerError::Usage { message });
    }
    // Any ids do: the time does not depend on them. No prompt begins as another.
    let vocabulary = model.config().vocab_size;
    let prompt = |sequence: usize| -> Vec<u32> {
        (0..prompt_tokens).map(|n| ((sequence + n * 7919) % vocabulary) as u32).collect()
    };
    let sampling = SamplingParams {
        temperature: 0.0,
        max_tokens: new_tokens,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let (mut first_token, mut decode) = (Vec::new(), Vec::new());
    for repeat in 0..=repeats {
        let started = Instant::now();
        let mut engine_options = EngineOptions::new(prompt_tokens + new_tokens, sequences);
        engine_options.max_num_batched_tokens = prompt_tokens * sequences;
        let mut engine = Engine::new(model, engine_options)?;
        for sequence in 0..sequences {
            let id = RequestId(sequence as u64);
            engine.add(Request::new(id, prompt(sequence), sampling.clone()))?;
        }
        // The whole prompts, and the first tokens.
        engine.step()?;
        let first_seconds = started.elapsed().as_secs_f64();
        while engine.has_requests() {
            engine.step()?;
        }
        if repeat > 0 {
            first_token.push(first_seconds);
            decode.push(started.elapsed().as_secs_f64() - first_seconds);
        }
    }
    Ok(GenerateBench {
        prefill_tokens_per_second: (sequences * prompt_tokens) as f64 / median(&first_token),
        decode_tokens_per_second: (sequences * (new_tokens - 1)) as f64 / median(&decode),
        seconds_to_first_token: median(&first_token),
        peak_memory_bytes: peak_memory_bytes(),
        sequences,
        prompt_tokens,
        new_tokens,
        precision: precision.map_or("as stored".into(), |precision| precision.to_string()),
        seconds_to_open: 0.0,
        threads: rayon::current_num_threads(),
        parameters: model.config().parameter_count(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use altiplano_model::config::LlamaConfig;
    use altiplano_model::device;
    use altiplano_model::params::Weights;
    use burn::tensor::DType;

    use super::*;

    fn model() -> InferenceModel {
        let yaml = "{dim: 32, n_layers: 1, n_heads: 2, vocab_size: 50, max_seq_len: 20}";
        let config: LlamaConfig = serde_yaml::from_str(yaml).unwrap();
        let weights = Weights::init(&config, 1, DType::F32, &device::select("cpu").unwrap());
        InferenceModel::in_memory(config, &weights, None).unwrap()
    }

    fn options(sequences: usize, prompt_tokens: usize, new_tokens: usize) -> GenerateBenchOptions {
        GenerateBenchOptions { sequences, prompt_tokens, new_tokens, precision: None, repeats: 3 }
    }

    #[test]
    fn a_small_model_is_measured() {
        for sequences in [1, 3] {
            let bench = measure(&model(), &options(sequences, 12, 8)).unwrap();
            assert!(bench.decode_tokens_per_second > 0.0);
            let prompts = bench.seconds_to_first_token * bench.prefill_tokens_per_second;
            assert!((prompts - 12.0 * sequences as f64).abs() < 0.1, "{prompts}");
        }
    }

    #[test]
    fn what_does_not_fit_the_context_is_said() {
        for (prompt_tokens, new_tokens) in [(13, 8), (0, 8), (4, 1), (usize::MAX, 8)] {
            let error = measure(&model(), &options(1, prompt_tokens, new_tokens)).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains("20"), "{error}");
        }
        for sequences in [0, 1000] {
            let error = measure(&model(), &options(sequences, 12, 8)).unwrap_err();
            assert!(error.to_string().contains("expected 1 to 128"), "{error}");
        }
    }
}
