//! Operations per token, and what they say about time.
//!
//! A weight of a matrix product costs one multiplication and one addition per token forward and
//! twice that backward: 6N operations per token for N parameters (Kaplan et al. 2020). Causal
//! attention adds 2 · 2 · T/2 · C per layer forward, three times that with the backward pass:
//! 6 · L · H·D · T. The share of the peak that is usually quoted (6N-MFU) leaves attention out:
//!
//! ```text
//! mfu = 6N · tokens/s / peak      tokens/s = mfu · peak / 6N
//! ```

use altiplano_model::LlamaConfig;
use serde::Serialize;

use super::Hardware;

/// Operations per token of the forward and backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FlopsPerToken {
    /// 6N.
    pub six_n: f64,
    /// 6 · L · H·D · T, the causal half of attention.
    pub attention: f64,
    /// Their sum.
    pub total: f64,
}

impl FlopsPerToken {
    /// Of `model` at context `seq_len`.
    pub fn new(model: &LlamaConfig, seq_len: usize) -> Self {
        let six_n = 6.0 * model.parameter_count() as f64;
        let width = (model.n_layers * model.attention_dim()) as f64;
        let attention = 6.0 * width * seq_len as f64;
        Self { six_n, attention, total: six_n + attention }
    }
}

/// The share of `peak` operations per second that `tokens_per_second` means for `parameters`.
pub fn six_n_mfu(parameters: f64, tokens_per_second: f64, peak: f64) -> f64 {
    6.0 * parameters * tokens_per_second / peak
}

/// Tokens per second of one device: the inverse of [`six_n_mfu`].
pub fn tokens_per_second(parameters: f64, mfu: f64, peak: f64) -> f64 {
    mfu * peak / (6.0 * parameters)
}

/// Days for `tokens` at `tokens_per_second` on all devices together.
pub fn days(tokens: f64, tokens_per_second: f64) -> f64 {
    tokens / tokens_per_second / 86_400.0
}

/// What a paper reports of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PaperFigures {
    /// Where it is reported.
    pub source: &'static str,
    /// Parameters of the model.
    pub parameters: f64,
    /// Devices.
    pub devices: u64,
    /// Memory of one, in bytes.
    pub device_memory_bytes: u64,
    /// Peak rate of one in bf16, in operations per second.
    pub peak_flops_per_second: f64,
    /// Tokens per second of one.
    pub tokens_per_second_per_device: f64,
    /// Tokens of the run.
    pub tokens: f64,
    /// Days it took.
    pub days: f64,
    /// [`six_n_mfu`] of these figures.
    pub mfu: f64,
}

/// LLaMA 65B: "around 380 tokens/sec/GPU on 2048 A100 GPU with 80GB of RAM", 1.4T tokens in
/// "approximately 21 days". At the 312 TFLOP/s of an A100 that is a 6N-MFU of 0.476.
pub const LLAMA_65B: PaperFigures = PaperFigures {
    source: "LLaMA, arXiv 2302.13971, section 2.4",
    parameters: 65.2e9,
    devices: 2048,
    device_memory_bytes: 80_000_000_000,
    peak_flops_per_second: 312e12,
    tokens_per_second_per_device: 380.0,
    tokens: 1.4e12,
    days: 21.0,
    mfu: 0.476,
};

impl PaperFigures {
    /// Whether a model of so many parameters on `hardware` is the run that is reported.
    pub fn is_of(&self, parameters: u64, hardware: &Hardware) -> bool {
        let close = |a: f64, b: f64| (a / b - 1.0).abs() < 0.01;
        close(parameters as f64, self.parameters)
            && hardware.devices == self.devices
            // An A100's 80 GB are 80 GiB.
            && (hardware.device_memory_bytes as f64 / self.device_memory_bytes as f64 - 1.0).abs()
                < 0.08
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_rate_is_the_published_share_of_the_peak() {
        let PaperFigures { parameters, peak_flops_per_second: peak, .. } = LLAMA_65B;
        // 6 · 65.2e9 · 380 = 148.7 TFLOP/s of 312.
        let mfu = six_n_mfu(parameters, LLAMA_65B.tokens_per_second_per_device, peak);
        assert!((mfu - LLAMA_65B.mfu).abs() < 0.001, "{mfu}");
        let rate = tokens_per_second(parameters, LLAMA_65B.mfu, peak);
        assert!((rate - LLAMA_65B.tokens_per_second_per_device).abs() < 1.0, "{rate}");
    }

    #[test]
    fn the_published_rate_gives_the_published_days() {
        let all = LLAMA_65B.tokens_per_second_per_device * LLAMA_65B.devices as f64;
        let found = days(LLAMA_65B.tokens, all);
        assert!((found - LLAMA_65B.days).abs() < 0.5, "{found}");
    }

    #[test]
    fn operations_are_those_of_the_model_and_its_embedding() {
        let yaml = "{dim: 512, n_layers: 8, n_heads: 8, hidden_dim: 1376, vocab_size: 32000, \
                    max_seq_len: 512}";
        let model: LlamaConfig = match serde_yaml::from_str(yaml) {
            Ok(model) => model,
            Err(error) => panic!("{error}"),
        };
        let flops = FlopsPerToken::new(&model, 512);
        assert_eq!(flops.six_n, 6.0 * 58_073_600.0);
        assert_eq!(flops.attention, 6.0 * 8.0 * 512.0 * 512.0);
        // Looking up an embedding multiplies nothing; 6N counts it all the same.
        let embedding = 6.0 * 32000.0 * 512.0;
        assert_eq!(flops.total, model.train_flops_per_token(512) + embedding);
    }
}
