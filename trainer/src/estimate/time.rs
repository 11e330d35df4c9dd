//! The time of a step in a layout, from the rates of the hardware.
//!
//! With N tokens of a micro-batch, P parameters, P_l of one tensor rank, g micro-batches of a copy, e
//! bytes of an activation and w of a weight:
//!
//! ```text
//! products   [6 (P − V C) N / t + recomputed] / (peak · gemm),  recomputed = 2 (P − 2 V C) N / t + 2 L C T N / t
//!                                                                under `full`, else 0
//! attention  3.5 · 2 L T C N / t / (peak · attention)            forward 1, backward 2.5: scores again
//! memory     L N e [3 (10 C / s + (4 C + 3 F) / t) + (4 C / s + 3 F / t unless `none`)] / bandwidth
//!                                                                s = t with sequence, else 1
//! tensor     (c L + 6) [(t − 1)/t · N C e / β + α],              c = 10 with sequence, else 8;
//!                                                                3 or 2 more under `full`
//! micro      products + attention + memory + tensor
//! scatter    (d − 1)/d · 4 P_l / β + L α       gather   (d − 1)/d · w P_l / β + L α
//! ```
//!
//! Of a scatter, what does not fit under two thirds of a micro-batch (its backward pass) is seen, of
//! a gather what does not fit under the third, and a last layer's share of both always. A group
//! within a host exchanges at the host's rate, any other at the network's.

use serde::{Deserialize, Serialize};

use altiplano_model::config::ActivationCheckpointing;

use super::layout::{Layout, RankParameters};
use crate::config::{ConfigFile, Problem, Shard, TrainConfig};

/// Rates of a kind of hardware.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Peak rate of matrix products of a device, in operations per second.
    pub peak_flops_per_second: f64,
    /// Share of the peak that the products of a layer reach.
    pub gemm_share: f64,
    /// Share of the peak that attention reaches.
    pub attention_share: f64,
    /// Bytes per second of a device's memory.
    pub memory_bytes_per_second: f64,
    /// Bytes of a device's memory.
    pub memory_bytes: f64,
    /// Share of them that a run may use.
    pub usable_memory: f64,
    /// Devices of a host.
    pub devices_per_host: u64,
    /// Bytes per second of a device to the others of its host.
    pub host_bytes_per_second: f64,
    /// Seconds that an exchange within a host takes whatever its size.
    pub host_latency_seconds: f64,
    /// Bytes per second of a device to other hosts.
    pub network_bytes_per_second: f64,
    /// Seconds that an exchange between hosts takes whatever its size.
    pub network_latency_seconds: f64,
}

impl ConfigFile for Profile {
    fn check(&self) -> Result<(), Problem> {
        for (key, value) in [
            ("peak_flops_per_second", self.peak_flops_per_second),
            ("memory_bytes_per_second", self.memory_bytes_per_second),
            ("memory_bytes", self.memory_bytes),
            ("host_bytes_per_second", self.host_bytes_per_second),
            ("network_bytes_per_second", self.network_bytes_per_second),
            ("devices_per_host", self.devices_per_host as f64),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Problem::new(key, format!("found {value}, expected a number above 0")));
            }
        }
        for (key, value) in [
            ("gemm_share", self.gemm_share),
            ("attention_share", self.attention_share),
            ("usable_memory", self.usable_memory),
        ] {
            if !(value > 0.0 && value <= 1.0) {
                let expected = "expected a number above 0 and at most 1";
                return Err(Problem::new(key, format!("found {value}, {expected}")));
            }
        }
        for (key, value) in [
            ("host_latency_seconds", self.host_latency_seconds),
            ("network_latency_seconds", self.network_latency_seconds),
        ] {
            if !(0.0..1.0).contains(&value) {
                return Err(Problem::new(key, format!("found {value}, expected 0 to 1")));
            }
        }
        Ok(())
    }
}

impl Profile {
    /// Names of [`Profile::named`].
    pub const NAMES: [&'static str; 3] = ["a100-80gb", "h100-80gb", "h200-141gb"];

    /// Typical rates, by name. Those of an A100 are one set for all runs and were held against
    /// published ones; of the others peak, memory and links are the makers', the shares the A100's.
    pub fn named(name: &str) -> Option<Self> {
        let a100 = Self {
            peak_flops_per_second: 312e12,
            gemm_share: 0.65,
            attention_share: 0.40,
            memory_bytes_per_second: 1.55e12,
            memory_bytes: 80e9,
            usable_memory: 0.95,
            devices_per_host: 8,
            host_bytes_per_second: 235e9,
            host_latency_seconds: 12e-6,
            network_bytes_per_second: 20e9,
            network_latency_seconds: 25e-6,
        };
        let h100 = Self {
            peak_flops_per_second: 989e12,
            memory_bytes_per_second: 3.35e12,
            host_bytes_per_second: 360e9,
            network_bytes_per_second: 45e9,
            ..a100
        };
        match name {
            "a100-80gb" => Some(a100),
            "h100-80gb" => Some(h100),
            "h200-141gb" => {
                Some(Self { memory_bytes_per_second: 4.8e12, memory_bytes: 141e9, ..h100 })
            }
            _ => None,
        }
    }

    /// Bytes of a device that a run may use.
    pub fn usable_bytes(&self) -> f64 {
        self.memory_bytes * self.usable_memory
    }

    /// Rate and latency of a group of `ranks` whose members are `apart` ranks from each other.
    fn link(&self, ranks: u64, apart: u64) -> (f64, f64) {
        match ranks * apart <= self.devices_per_host {
            true => (self.host_bytes_per_second, self.host_latency_seconds),
            false => (self.network_bytes_per_second, self.network_latency_seconds),
        }
    }
}

/// The time of an exchange: of its bytes, and that of its size.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Exchange {
    pub bytes: f64,
    pub latency: f64,
}

impl Exchange {
    pub fn seconds(self) -> f64 {
        self.bytes + self.latency
    }
}

/// What the parts of a step take one by one, in seconds; [`StepTime`] puts them together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub products: f64,
    pub attention: f64,
    pub memory: f64,
    /// One exchange of activations between tensor ranks.
    pub tensor: Exchange,
    /// How many of them a micro-batch has.
    pub tensor_exchanges: f64,
    /// A reduce-scatter of all gradients between copies, and an all-gather of all weights.
    pub scatter: Exchange,
    pub gather: Exchange,
    pub optimizer: f64,
}

/// Bytes that AdamW reads and writes per parameter: gradient, master and both moments read, the
/// last three written, and the weight.
const ADAMW_BYTES: f64 = 30.0;

impl Parts {
    pub fn new(config: &TrainConfig, layout: &Layout, profile: &Profile) -> Self {
        let model = &config.model;
        let (t, d) = (layout.tensor as f64, layout.data as f64);
        let (c, f, v) = (model.dim as f64, model.ffn_dim() as f64, model.vocab_size as f64);
        let (layers, time) = (model.n_layers as f64, config.batch.seq_len as f64);
        let (n, e) = (layout.tokens(config) as f64, config.precision.bytes() as f64);
        let p = model.parameter_count() as f64;
        let parameters = RankParameters::new(model, layout.tensor);
        let p_l = (parameters.matrices() + parameters.gains) as f64;
        let full = layout.policy == ActivationCheckpointing::Full;
        let recomputed = match full {
            true => (2.0 * (p - 2.0 * v * c) + 2.0 * layers * c * time) * n / t,
            false => 0.0,
        };
        let s = if layout.sequence { t } else { 1.0 };
        let again = match layout.policy {
            ActivationCheckpointing::None => 0.0,
            _ => 4.0 * c / s + 3.0 * f / t,
        };
        let moved = layers * n * e * (3.0 * (10.0 * c / s + (4.0 * c + 3.0 * f) / t) + again);
        let (tensor_rate, tensor_latency) = profile.link(layout.tensor, 1);
        let (data_rate, data_latency) = profile.link(layout.data, layout.tensor);
        let per_layer = match (layout.sequence, full) {
            (true, false) => 10.0,
            (true, true) => 13.0,
            (false, false) => 8.0,
            (false, true) => 10.0,
        };
        let several = |ranks: f64, latency: f64| if ranks > 1.0 { latency } else { 0.0 };
        let between_copies = |bytes: f64| Exchange {
            bytes: (d - 1.0) / d * bytes / data_rate,
            latency: layers * several(d, data_latency),
        };
        Self {
            products: (6.0 * (p - v * c) * n / t + recomputed)
                / (profile.peak_flops_per_second * profile.gemm_share),
            attention: 3.5 * 2.0 * layers * time * c * n
                / t
                / (profile.peak_flops_per_second * profile.attention_share),
            memory: moved / profile.memory_bytes_per_second,
            tensor: Exchange {
                bytes: (t - 1.0) / t * n * c * e / tensor_rate,
                latency: several(t, tensor_latency),
            },
            tensor_exchanges: per_layer * layers + 6.0,
            scatter: between_copies(4.0 * p_l),
            gather: match layout.shard {
                // An all-reduce: the second half of it.
                Shard::None => between_copies(4.0 * p_l),
                _ => between_copies(e * p_l),
            },
            optimizer: match layout.shard {
                Shard::None => p_l,
                _ => p_l / d,
            } * ADAMW_BYTES
                / profile.memory_bytes_per_second,
        }
    }

    /// Computing of one micro-batch.
    pub fn computing(&self) -> f64 {
        self.products + self.attention + self.memory
    }

    /// One micro-batch with what its tensor ranks exchange.
    pub fn micro(&self) -> f64 {
        self.computing() + self.tensor_exchanges * self.tensor.seconds()
    }
}

/// Seconds of an optimizer step, by part; the parts add up to `step`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepTime {
    /// Products and attention.
    pub products_and_attention: f64,
    /// Ops that are bound by memory.
    pub memory: f64,
    /// Exchanges of tensor ranks.
    pub tensor: f64,
    /// Exchanges of copies that computing does not hide.
    pub data: f64,
    /// AdamW.
    pub optimizer: f64,
    /// All of them.
    pub step: f64,
    /// What of `tensor` and of all exchanges of copies, hidden ones too, does not depend on sizes.
    pub latency: f64,
    /// Tokens per second of one rank.
    pub tokens_per_second_per_rank: f64,
}

impl StepTime {
    /// Of `config` in this layout, which has passed [`Layout::check`].
    pub fn new(config: &TrainConfig, layout: &Layout, profile: &Profile) -> Self {
        let parts = Parts::new(config, layout, profile);
        let g = layout.micro_batches(config) as f64;
        let layers = config.model.n_layers as f64;
        let micro = parts.micro();
        let (scatter, gather) = (parts.scatter.seconds(), parts.gather.seconds());
        // What is seen of `exchange` under a `share` of a micro-batch; the last layer's is always.
        let seen = |exchange: f64, share: f64| match layout.overlap {
            true => (exchange - share * micro * (1.0 - 1.0 / layers)).max(0.0) + exchange / layers,
            false => exchange,
        };
        let (scatters, gathers) = match layout.shard {
            Shard::None | Shard::Optimizer => (1.0, 1.0),
            Shard::Gradients => (g, 1.0),
            Shard::Parameters => (g, 2.0 * g),
        };
        let data = match layout.shard {
            Shard::Parameters => g * seen(scatter + 2.0 * gather, 1.0),
            _ => scatters * seen(scatter, 2.0 / 3.0) + seen(gather, 1.0 / 3.0),
        };
        let tensor = g * parts.tensor_exchanges * parts.tensor.seconds();
        let step = g * micro + data + parts.optimizer;
        let tokens = layout.data as f64 * g * layout.tokens(config) as f64;
        Self {
            products_and_attention: g * (parts.products + parts.attention),
            memory: g * parts.memory,
            tensor,
            data,
            optimizer: parts.optimizer,
            step,
            latency: g * parts.tensor_exchanges * parts.tensor.latency
                + scatters * parts.scatter.latency
                + gathers * parts.gather.latency,
            tokens_per_second_per_rank: tokens / step / layout.ranks() as f64,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::layout::tests::{config, eight_by};
    use super::*;

    fn a100() -> Profile {
        Profile::named("a100-80gb").unwrap()
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found / expected - 1.0).abs() < tolerance, "{found} for {expected}");
    }

    /// 380 tokens per second and device are published.
    #[test]
    fn the_papers_run_out_of_its_parts() {
        let config = config("llama_65b.yaml");
        for (micro_batch, tensor, data, step, rate) in [
            (1, 0.88, 1.84, 6.96, 294.0),
            (2, 0.84, 1.22, 6.30, 325.0),
            (4, 0.83, 0.03, 5.09, 403.0),
        ] {
            let found = StepTime::new(&config, &eight_by(256, micro_batch), &a100());
            close(found.products_and_attention, 4.09, 0.01);
            close(found.memory, 0.14, 0.05);
            close(found.tensor, tensor, 0.02);
            assert!((found.data - data).abs() < 0.03, "{} for {data}", found.data);
            close(found.step, step, 0.01);
            close(found.tokens_per_second_per_rank, rate, 0.01);
            let parts = [
                found.products_and_attention,
                found.memory,
                found.tensor,
                found.data,
                found.optimizer,
            ];
            close(parts.iter().sum(), found.step, 1e-12);
        }
        let best = StepTime::new(&config, &eight_by(256, 4), &a100());
        close(best.tokens_per_second_per_rank, 380.0, 0.10);
        let serial = Layout { overlap: false, ..eight_by(256, 4) };
        let serial = StepTime::new(&config, &serial, &a100());
        close(serial.data, 2.44, 0.01);
        close(serial.tokens_per_second_per_rank, 273.0, 0.02);
    }

    #[test]
    fn one_rank_exchanges_nothing() {
        let config = config("quickstart.yaml");
        let layout = Layout { tensor: 1, ..eight_by(1, 1) };
        let found = StepTime::new(&config, &layout, &a100());
        assert_eq!((found.tensor, found.data, found.latency), (0.0, 0.0, 0.0));
    }

    #[test]
    fn recomputing_takes_time_and_slower_hardware_too() {
        let config = config("llama_65b.yaml");
        let full = Layout { policy: ActivationCheckpointing::Full, ..eight_by(256, 4) };
        let [selective, full] =
            [eight_by(256, 4), full].map(|layout| StepTime::new(&config, &layout, &a100()));
        assert!(full.products_and_attention > 1.2 * selective.products_and_attention);
        assert!(full.tensor > 1.2 * selective.tensor);
        let slow = Profile { network_bytes_per_second: 5e9, ..a100() };
        assert!(StepTime::new(&config, &eight_by(256, 4), &slow).data > 5.0);
        for name in Profile::NAMES {
            assert!(Profile::named(name).unwrap().check().is_ok());
        }
        assert!(Profile { gemm_share: 1.5, ..a100() }.check().is_err());
    }
}
