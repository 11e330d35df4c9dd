//! Choosing the next token: temperature, then top-k, then top-p (llama.cpp's and Hugging Face's
//! order of the two cuts).

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens up to the one that brings their probability to `top_p`;
    /// 1 keeps all.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 0, top_p: 0.95, seed: 0 }
    }
}

/// Draws token ids from logits.
#[derive(Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the start of its seed's stream.
    pub fn new(config: SamplerConfig) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(config.seed);
        Self { config, rng }
    }

    /// The next token for `logits` (V). Equal logits are won by the smallest id.
    pub fn sample(&mut self, logits: &[f32]) -> usize {
        if self.config.temperature <= 0.0 {
            return argmax(logits);
        }
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_unstable_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        if self.config.top_k > 0 {
            order.truncate(self.config.top_k);
        }
        let Some(&best) = order.first() else { return 0 };
        let probabilities: Vec<f64> = order
            .iter()
            .map(|id| f64::from((logits[*id] - logits[best]) / self.config.temperature).exp())
            .collect();
        let total: f64 = probabilities.iter().sum();
        let mut kept = 0.0;
        let mut count = 0;
        for p in &probabilities {
            kept += p;
            count += 1;
            if kept >= f64::from(self.config.top_p) * total {
                break;
            }
        }
        let mut draw = self.rng.random::<f64>() * kept;
        for (id, p) in order.iter().zip(&probabilities).take(count) {
            draw -= p;
            if draw < 0.0 {
                return *id;
            }
        }
        order[count - 1]
    }
}

/// Index of the largest value, the smallest index among equals.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_k: usize, top_p: f32) -> Sampler {
        Sampler::new(SamplerConfig { temperature, top_k, top_p, seed: 3 })
    }

    #[test]
    fn zero_temperature_takes_the_first_maximum() {
        assert_eq!(sampler(0.0, 0, 1.0).sample(&[0.0, 2.0, 2.0, -1.0]), 1);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let mut sampler = sampler(1.0, 0, 1.0);
        let mut counts = [0usize; 3];
        for _ in 0..20_000 {
            counts[sampler.sample(&logits)] += 1;
        }
        for (count, p) in counts.iter().zip([0.5, 0.3, 0.2]) {
            let share = *count as f64 / 20_000.0;
            assert!((share - p).abs() < 0.015, "{share} for {p}");
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let drawn = |mut sampler: Sampler| {
            let mut seen = [false; 4];
            (0..2000).for_each(|_| seen[sampler.sample(&logits)] = true);
            seen
        };
        assert_eq!(drawn(sampler(1.0, 2, 1.0)), [true, true, false, false]);
        assert_eq!(drawn(sampler(1.0, 0, 0.79)), [true, true, false, false]);
        assert_eq!(drawn(sampler(1.0, 0, 0.81)), [true, true, true, false]);
        assert_eq!(drawn(sampler(1.0, 0, 0.0)), [true, false, false, false]);
    }

    #[test]
    fn same_seed_same_draws() {
        let logits = [0.1, 0.2, 0.3, 0.4];
        let draws =
            |mut sampler: Sampler| (0..50).map(|_| sampler.sample(&logits)).collect::<Vec<_>>();
        assert_eq!(draws(sampler(1.0, 0, 1.0)), draws(sampler(1.0, 0, 1.0)));
    }
}
