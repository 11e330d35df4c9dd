//! How long work takes where a device computes.

use std::time::Instant;

use altiplano_model::device::in_pool;
use burn::tensor::Device;

/// Seconds that `work` takes, and what it returns.
pub fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let result = work();
    (started.elapsed().as_secs_f64(), result)
}

/// [`timed`] where `device` computes, until it has done the work.
pub fn timed_on<T: Send>(device: &Device, work: impl FnOnce() -> T + Send) -> (f64, T) {
    let wait = || device.sync().unwrap_or_else(|error| panic!("{device:?}: {error}"));
    in_pool(device, || {
        wait();
        timed(|| {
            let result = work();
            wait();
            result
        })
    })
}
