//! For the tests: random inputs, conversion to f64, comparisons, and products with the micro-kernels of
//! lesser CPUs.

use crate::element::Element;
use crate::simd::{CpuLevel, cpu_level};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cell::Cell;

thread_local! {
    /// The level of CPU that products started on this thread take this one for.
    static LEVEL: Cell<Option<CpuLevel>> = const { Cell::new(None) };
}

/// The level of products that this thread starts.
pub(crate) fn level() -> CpuLevel {
    LEVEL.get().unwrap_or_else(cpu_level)
}

/// Runs `f` with the products of every level this CPU has.
#[expect(clippy::print_stdout, reason = "shown only when the test fails")]
pub(crate) fn at_every_level(f: impl Fn()) {
    use CpuLevel::{Amx, Avx2, Avx512, Avx512Bf16, Portable};
    let levels = [Portable, Avx2, Avx512, Avx512Bf16, Amx];
    for level in levels.into_iter().filter(|&level| level <= cpu_level()) {
        println!("products of {level:?}");
        LEVEL.set(Some(level));
        f();
    }
    LEVEL.set(None);
}

/// `len` elements, uniform in [-scale, scale].
pub(crate) fn random<E: Element>(len: usize, scale: f32, seed: u64) -> Vec<E> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| E::from_f32(scale * (2.0 * rng.random::<f32>() - 1.0))).collect()
}

/// The same numbers in f64.
pub(crate) fn to_f64<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// Panics unless every element of `got` is within `tolerance` of `want`, relative to the
/// root mean square of `want`.
pub(crate) fn assert_close<E: Element>(what: &str, got: &[E], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: lengths differ");
    let mean_square = want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64;
    let scale = mean_square.sqrt().max(1e-12);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got.to_f32()) - want).abs() / scale;
        // Not `error > tolerance`, which a NaN would pass.
        assert!(error <= tolerance, "{what}[{i}]: {got:?}, want {want}, error {error:e}");
    }
}

/// The tolerance of one rounding to `E` and a short f32 sum.
pub(crate) fn tolerance<E: Element>() -> f64 {
    if E::IS_BF16 { 2e-2 } else { 1e-5 }
}

/// Runs `f` in rayon pools of several sizes and demands equal results.
pub(crate) fn assert_same_for_any_threads<R: PartialEq + Send>(f: impl Fn() -> R + Sync) {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(&f)
    };
    let want = run(1);
    for threads in [2, 3, 7] {
        assert!(run(threads) == want, "other bits with {threads} threads than with 1");
    }
}

/// The bits of floats, to compare NaN and signed zero too.
pub(crate) fn bits<E: Element>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}
