//! The peak rate of a device, which `mfu` (model FLOP/s utilization, arXiv 2204.02311) is a share
//! of.
//!
//! - A GPU's peak is the dense rate its maker publishes, looked up by the name the driver gives
//!   (`published`). A GPU that is not in the table has none.
//! - A CPU's peak is the best rate of a matrix product measured here, on the threads and in the
//!   precision of the run (`product`). A moment may be slow, so the first runs on a machine measure,
//!   a tenth of a second each, and the best rate is kept in the user's cache folder (`cache`).

mod cache;
mod product;
mod published;

use altiplano_model::{Precision, device};
use burn::tensor::Device;

pub use product::{large_product_flops_per_second, short_product_flops_per_second};
pub use published::published_flops_per_second;

/// Measurements of a CPU after which the best of them is taken for its peak.
const ENOUGH_MEASUREMENTS: u32 = 5;

/// The peak rate of a device in one precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    flops_per_second: f64,
}

impl Peak {
    /// A peak of so many operations per second.
    pub fn new(flops_per_second: f64) -> Self {
        Self { flops_per_second }
    }

    /// The peak of `device`, which a configuration calls `name`: published for a GPU, for a CPU the
    /// best of what is measured and what was kept; none where it is not known.
    pub fn of(name: &str, device: &Device, precision: Precision) -> Option<Self> {
        if let Some(gpu) = device::gpu_name(name) {
            return published_flops_per_second(&gpu, precision).map(Self::new);
        }
        if !device::is_cpu(device) {
            return None;
        }
        let kept = cache::file().and_then(|file| cache::read(&file, &cache::key(name, precision)));
        let kept = kept.unwrap_or_default();
        if kept.measurements >= ENOUGH_MEASUREMENTS {
            return Some(Self::new(kept.flops_per_second));
        }
        let measured = short_product_flops_per_second(precision, device);
        Self::keep(name, device, precision, measured);
        Some(Self::new(measured.max(kept.flops_per_second)))
    }

    /// Keeps a rate of matrix products that was measured on `device`, which a configuration calls
    /// `name`, for later runs, if it is a CPU.
    pub fn keep(name: &str, device: &Device, precision: Precision, flops_per_second: f64) {
        if device::is_cpu(device)
            && let Some(file) = cache::file()
        {
            cache::add(&file, &cache::key(name, precision), flops_per_second);
        }
    }

    /// Operations per second.
    pub fn flops_per_second(self) -> f64 {
        self.flops_per_second
    }

    /// `flops_per_second` as a share of the peak. At most 1: a rate that was reached is within the
    /// device's peak, even if no product that was measured came up to it.
    pub fn mfu(self, flops_per_second: f64) -> f64 {
        flops_per_second / self.flops_per_second.max(flops_per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_never_above_one() {
        let peak = Peak::new(200.0);
        assert_eq!(peak.mfu(50.0), 0.25);
        assert_eq!(peak.mfu(200.0), 1.0);
        assert_eq!(peak.mfu(300.0), 1.0);
        assert_eq!(peak.mfu(0.0), 0.0);
    }

    #[test]
    fn a_cpu_has_a_peak_and_an_unknown_gpu_has_none() {
        let cpu = Device::flex();
        for precision in [Precision::F32, Precision::Bf16] {
            let peak = Peak::of("cpu", &cpu, precision).map_or(0.0, Peak::flops_per_second);
            assert!(peak > 1e8 && peak < 1e16, "{precision:?}: {peak}");
        }
        assert_eq!(device::gpu_name("cpu"), None);
        assert_eq!(published_flops_per_second("Some GPU", Precision::Bf16), None);
    }
}
