//! What the server counts, under vLLM's names and with its buckets, so that dashboards made for it work.

use std::time::Duration;

use crate::metrics::{Counter, Exposition, Family, Gauge, Histogram, Labels};
use crate::token_engine::EngineStats;

/// Seconds to the first token.
const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// Seconds between tokens.
const BETWEEN_TOKENS: [f64; 19] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
/// Seconds of a request or a part of it.
const REQUEST: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
/// Tokens of a step.
const STEP_TOKENS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
/// Seconds of an HTTP request.
const HTTP: [f64; 8] = [0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0];

/// 1, 2, 5, 10, 20, 50, … up to `most`.
fn one_two_five(most: usize) -> Vec<f64> {
    let decades = (0..).map(|exponent| 10f64.powi(exponent));
    let values = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * decade));
    values.take_while(|value| *value <= most.max(1) as f64).collect()
}

/// Everything that is counted.
#[derive(Debug)]
pub struct ServingMetrics {
    model_name: String,
    /// What the engine says of itself.
    running: Gauge,
    waiting: Gauge,
    waiting_capacity: Gauge,
    cache_usage: Gauge,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    cache_config: Family<Gauge>,
    /// Tokens of prompts that were taken in.
    pub prompt_tokens: Counter,
    /// Tokens that were generated.
    pub generation_tokens: Counter,
    /// Tokens of prompts that were found in the prefix cache.
    pub prompt_tokens_cached: Counter,
    /// Sequences that ended, by reason.
    pub finished: Family<Counter>,
    /// Requests that were turned away, by what was full.
    pub rejections: Family<Counter>,
    /// Sequences that ended because their logits were not finite.
    pub corrupted: Counter,
    /// Tokens of a step.
    pub iteration_tokens: Histogram,
    /// Tokens of a prompt.
    pub request_prompt_tokens: Histogram,
    /// Tokens of an answer.
    pub request_generation_tokens: Histogram,
    /// Most tokens that a request asked for.
    pub request_max_tokens: Histogram,
    /// Sequences that a request asked for.
    pub request_n: Histogram,
    /// From arrival to the first token.
    pub first_token: Histogram,
    /// From a token to the next.
    pub between_tokens: Histogram,
    /// Mean time of a token of a request after its first.
    pub time_per_token: Histogram,
    /// From arrival to the end.
    pub end_to_end: Histogram,
    /// From the engine's queue to the first step.
    pub queue_time: Histogram,
    /// From the first step to the first token.
    pub prefill_time: Histogram,
    /// From the first token to the last.
    pub decode_time: Histogram,
    /// From the first step to the last token.
    pub inference_time: Histogram,
    /// How often a request was preempted.
    pub request_preemptions: Histogram,
    /// HTTP requests by path, method and status.
    pub http_requests: Family<Counter>,
    /// Their time, by path.
    pub http_seconds: Family<Histogram>,
}

impl ServingMetrics {
    /// Nothing counted yet for a model of this name and context.
    pub fn new(model_name: &str, max_model_len: usize) -> Self {
        let tokens = one_two_five(max_model_len);
        let metrics = Self {
            model_name: model_name.to_owned(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            waiting_capacity: Gauge::default(),
            cache_usage: Gauge::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            preemptions: Counter::default(),
            cache_config: Family::new(&["block_size", "num_gpu_blocks"], Gauge::default),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            prompt_tokens_cached: Counter::default(),
            finished: Family::new(&["finished_reason"], Counter::default),
            rejections: Family::new(&["reason"], Counter::default),
            corrupted: Counter::default(),
            iteration_tokens: Histogram::new(&STEP_TOKENS),
            request_prompt_tokens: Histogram::new(&tokens),
            request_generation_tokens: Histogram::new(&tokens),
            request_max_tokens: Histogram::new(&tokens),
            request_n: Histogram::new(&[1.0, 2.0, 5.0, 10.0, 20.0]),
            first_token: Histogram::new(&FIRST_TOKEN),
            between_tokens: Histogram::new(&BETWEEN_TOKENS),
            time_per_token: Histogram::new(&BETWEEN_TOKENS),
            end_to_end: Histogram::new(&REQUEST),
            queue_time: Histogram::new(&REQUEST),
            prefill_time: Histogram::new(&REQUEST),
            decode_time: Histogram::new(&REQUEST),
            inference_time: Histogram::new(&REQUEST),
            request_preemptions: Histogram::new(&[0.0, 1.0, 2.0, 5.0, 10.0]),
            http_requests: Family::new(&["handler", "method", "status"], Counter::default),
            http_seconds: Family::new(&["handler"], || Histogram::new(&HTTP)),
        };
        for reason in ["stop", "length", "abort", "error"] {
            metrics.finished.with(&[reason]);
        }
        for reason in ["requests", "tokens"] {
            metrics.rejections.with(&[reason]);
        }
        metrics
    }

    /// Takes over the shape of the engine's cache, once.
    pub fn set_cache(&self, stats: &EngineStats) {
        let shape = [stats.block_size.to_string(), stats.total_blocks.to_string()];
        self.cache_config.with(&[&shape[0], &shape[1]]).set(1.0);
    }

    /// Takes over what the engine says of itself.
    pub fn set_engine(&self, stats: &EngineStats) {
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        self.waiting_capacity.set(stats.waiting as f64);
        self.cache_usage.set(stats.cache_usage());
        self.prefix_queries.set(stats.prefix_cache_queries);
        self.prefix_hits.set(stats.prefix_cache_hits);
        self.preemptions.set(stats.preemptions);
    }

    /// Sequences that run, that wait, and the share of the cache in use.
    pub fn load(&self) -> (usize, usize, f64) {
        (self.running.get() as usize, self.waiting.get() as usize, self.cache_usage.get())
    }

    /// The share of looked-up prompt tokens that the prefix cache had.
    pub fn prefix_hit_rate(&self) -> f64 {
        self.prefix_hits.get() as f64 / self.prefix_queries.get().max(1) as f64
    }

    /// Counts an HTTP request.
    pub fn http(&self, handler: &str, method: &str, status: u16, took: Duration) {
        self.http_requests.with(&[handler, method, &status.to_string()]).add(1);
        self.http_seconds.with(&[handler]).observe(took.as_secs_f64());
    }

    /// The text for Prometheus.
    pub fn text(&self) -> String {
        let mut out = Exposition::default();
        let model = Labels(vec![("model_name", self.model_name.as_str()), ("engine", "0")]);
        let gauges = [
            ("vllm:num_requests_running", "Sequences in the batch.", &self.running),
            ("vllm:num_requests_waiting", "Sequences that wait.", &self.waiting),
            (
                "vllm:kv_cache_usage_perc",
                "Share of the key/value blocks in use, 0 to 1.",
                &self.cache_usage,
            ),
        ];
        for (name, help, gauge) in gauges {
            out.metric(name, help, gauge, &model);
        }
        let mut reason = model.clone();
        reason.0.push(("reason", "capacity"));
        let by_reason = "vllm:num_requests_waiting_by_reason";
        out.metric(by_reason, "Sequences that wait, by reason.", &self.waiting_capacity, &reason);
        out.family("vllm:cache_config_info", "Shape of the cache.", &self.cache_config, &model);
        let counters = [
            (
                "vllm:prefix_cache_queries_total",
                "Prompt tokens looked up in the prefix cache.",
                &self.prefix_queries,
            ),
            (
                "vllm:prefix_cache_hits_total",
                "Prompt tokens found in the prefix cache.",
                &self.prefix_hits,
            ),
            (
                "vllm:num_preemptions_total",
                "Sequences put back to be recomputed.",
                &self.preemptions,
            ),
            ("vllm:prompt_tokens_total", "Tokens of prompts.", &self.prompt_tokens),
            (
                "vllm:prompt_tokens_cached_total",
                "Tokens of prompts that were not computed again.",
                &self.prompt_tokens_cached,
            ),
            ("vllm:generation_tokens_total", "Tokens generated.", &self.generation_tokens),
            (
                "vllm:corrupted_requests_total",
                "Sequences whose logits were not finite.",
                &self.corrupted,
            ),
        ];
        for (name, help, counter) in counters {
            out.metric(name, help, counter, &model);
        }
        out.family(
            "vllm:request_success_total",
            "Sequences that ended, by reason.",
            &self.finished,
            &model,
        );
        out.family(
            "vllm:admission_rejections_total",
            "Requests turned away.",
            &self.rejections,
            &model,
        );
        let histograms = [
            ("vllm:iteration_tokens_total", "Tokens of a step.", &self.iteration_tokens),
            ("vllm:request_prompt_tokens", "Tokens of a prompt.", &self.request_prompt_tokens),
            (
                "vllm:request_generation_tokens",
                "Tokens of an answer.",
                &self.request_generation_tokens,
            ),
            (
                "vllm:request_max_num_generation_tokens",
                "Most tokens a request could get.",
                &self.request_max_tokens,
            ),
            ("vllm:request_params_max_tokens", "max_tokens of requests.", &self.request_max_tokens),
            ("vllm:request_params_n", "n of requests.", &self.request_n),
            (
                "vllm:time_to_first_token_seconds",
                "From arrival to the first token.",
                &self.first_token,
            ),
            ("vllm:inter_token_latency_seconds", "From a token to the next.", &self.between_tokens),
            (
                "vllm:time_per_output_token_seconds",
                "The older name of inter_token_latency_seconds.",
                &self.between_tokens,
            ),
            (
                "vllm:request_time_per_output_token_seconds",
                "Mean time of a token after the first.",
                &self.time_per_token,
            ),
            ("vllm:e2e_request_latency_seconds", "From arrival to the end.", &self.end_to_end),
            ("vllm:request_queue_time_seconds", "In the engine's queue.", &self.queue_time),
            (
                "vllm:request_inference_time_seconds",
                "From the first step to the last token.",
                &self.inference_time,
            ),
            (
                "vllm:request_prefill_time_seconds",
                "From the first step to the first token.",
                &self.prefill_time,
            ),
            (
                "vllm:request_decode_time_seconds",
                "From the first token to the last.",
                &self.decode_time,
            ),
            (
                "vllm:request_num_preemptions",
                "How often a request was preempted.",
                &self.request_preemptions,
            ),
        ];
        for (name, help, histogram) in histograms {
            out.metric(name, help, histogram, &model);
        }
        let none = Labels::default();
        out.family("http_requests_total", "HTTP requests.", &self.http_requests, &none);
        out.family(
            "http_request_duration_seconds",
            "Time of HTTP requests.",
            &self.http_seconds,
            &none,
        );
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_of_tokens_follow_the_context() {
        assert_eq!(one_two_five(30), [1.0, 2.0, 5.0, 10.0, 20.0]);
        let text = ServingMetrics::new("m", 64).text();
        assert!(text.contains(
            "vllm:request_prompt_tokens_bucket{model_name=\"m\",engine=\"0\",le=\"50.0\"} 0"
        ));
        assert!(text.contains(
            "vllm:request_success_total{model_name=\"m\",engine=\"0\",finished_reason=\"stop\"} 0"
        ));
    }
}
