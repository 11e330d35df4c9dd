//! The fastest of the algorithms cuBLASLt offers for a product, among those that give the bits of its
//! first choice: what a run computes does not depend on which was fastest.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::DType;
use cudarc::cublaslt::sys;
use cudarc::driver::result::{free_sync, malloc_sync, memset_d8_async};
use cudarc::driver::sys as driver_sys;

use super::blas::{Algorithm, Library, Plan};
use super::context::{Outcome, Stream, driver};
use super::kernel::Kernels;
use super::problem::Problem;
use super::source::{Source, arguments, cuda_source};

/// Set by `ALTIPLANO_PRODUCTS=first`: the library's first choice is taken untried.
static WITHOUT_TUNING: LazyLock<bool> =
    LazyLock::new(|| std::env::var("ALTIPLANO_PRODUCTS").is_ok_and(|kind| kind == "first"));

/// Threads of a block.
const THREADS: usize = 256;

fn source() -> Source<1> {
    Source::new("tuning", cuda_source!("blas_tuning.cu"), [("THREADS", THREADS)])
}

/// Algorithms tried.
const CANDIDATES: usize = 12;

/// Products smaller than this take the first choice: what could be won is less than it costs to try.
const SMALLEST_FLOPS: f64 = 2e10;

/// Problems tried in one process. Training has a few dozen; texts of all lengths would have no end.
const PROBLEMS: usize = 96;

/// How much faster than the first choice another has to be.
const GAIN: f64 = 0.98;

#[derive(Clone, Copy)]
struct Fastest(Algorithm);

// SAFETY: an algorithm is plain numbers.
unsafe impl Send for Fastest {}

/// The algorithms found so far.
#[derive(Default)]
pub(super) struct Tuning {
    fastest: Mutex<HashMap<Problem, Fastest>>,
}

/// Memory of a trial, freed with it.
struct Buffer(u64);

impl Buffer {
    fn new(bytes: usize) -> Outcome<Self> {
        // SAFETY: freed once, when it is dropped.
        unsafe { malloc_sync(bytes) }.map(Self).map_err(|error| driver("cuMemAlloc", error))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated above; `cuMemFree` waits for the work that uses it.
        let _ = unsafe { free_sync(self.0) };
    }
}

impl Tuning {
    /// The algorithm to compute `problem` with, tried out at its first use; the first choice where
    /// that fails.
    pub fn algorithm(
        &self,
        trial: Trial<'_>,
        library: &Library,
        problem: Problem,
        plan: &Plan,
    ) -> Algorithm {
        if *WITHOUT_TUNING {
            return plan.algorithm;
        }
        let even = |rows: usize, columns: usize| (rows * columns).is_multiple_of(2);
        let Problem { m, n, k, .. } = problem;
        if problem.flops() < SMALLEST_FLOPS || !(even(m, k) && even(k, n) && even(m, n)) {
            return plan.algorithm;
        }
        let mut fastest = self.fastest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = fastest.get(&problem) {
            return found.0;
        }
        if fastest.len() >= PROBLEMS {
            return plan.algorithm;
        }
        let tried = trial.fastest(library, problem, plan);
        let found = tried.ok().flatten().unwrap_or(plan.algorithm);
        fastest.insert(problem, Fastest(found));
        found
    }
}

/// What algorithms are tried with: the kernels that make operands and compare results, and the stream
/// they run on.
#[derive(Clone, Copy)]
pub(super) struct Trial<'a> {
    pub kernels: &'a Kernels,
    pub stream: Stream,
}

impl Trial<'_> {
    /// None where the first choice is as good as any, or there is no memory to try.
    fn fastest(
        self,
        library: &Library,
        problem: Problem,
        plan: &Plan,
    ) -> Outcome<Option<Algorithm>> {
        let candidates = candidates(library, plan);
        if candidates.len() < 2 {
            return Ok(None);
        }
        let fill_random = self.kernels.get(&source(), "fill_random", 0)?;
        let compare = self.kernels.get(&source(), "compare", 0)?;
        let Problem { m, n, k, input, output, .. } = problem;
        let words = |rows: usize, columns: usize, dtype: DType| rows * columns * dtype.size() / 4;
        let (left_words, right_words) = (words(m, k, input), words(k, n, input));
        let out_words = words(m, n, output);
        let buffer = |words: usize| Buffer::new(4 * words);
        let (Ok(left), Ok(right), Ok(expected), Ok(found), Ok(differ)) = (
            buffer(left_words),
            buffer(right_words),
            buffer(out_words),
            buffer(out_words),
            buffer(1),
        ) else {
            return Ok(None);
        };
        let grid = |words: usize| (words.div_ceil(THREADS), 1, 1);
        let halves = i32::from(input == DType::BF16);
        for (operand, words, seed) in [(&left, left_words, 1u32), (&right, right_words, 2)] {
            let (address, count) = (operand.0, words as i64);
            let arguments = arguments![address, count, halves, seed];
            fill_random.launch(self.stream, grid(words), THREADS, arguments)?;
        }
        let run = |algorithm: &Algorithm, out: &Buffer| {
            let operands = (left.0, right.0);
            library.multiply(self.stream, plan, algorithm, operands, (out.0, 0.0), out.0)
        };
        let seconds = |algorithm: &Algorithm, out: &Buffer| -> Outcome<f64> {
            let mut best = Duration::MAX;
            for _ in 0..3 {
                self.stream.synchronize()?;
                let start = Instant::now();
                for _ in 0..4 {
                    run(algorithm, out)?;
                }
                self.stream.synchronize()?;
                best = best.min(start.elapsed());
            }
            Ok(best.as_secs_f64())
        };
        run(&plan.algorithm, &expected)?;
        let mut best = (GAIN * seconds(&plan.algorithm, &expected)?, None);
        for algorithm in &candidates {
            // An algorithm that the library offers and then refuses is left out.
            if run(algorithm, &found).is_err() {
                continue;
            }
            let different = {
                // SAFETY: the buffer holds the one number.
                unsafe { memset_d8_async(differ.0, 0, 4, self.stream.0) }
                    .map_err(|error| driver("cuMemsetD8Async", error))?;
                let (a, b, count, flag) = (expected.0, found.0, out_words as i64, differ.0);
                let arguments = arguments![a, b, count, flag];
                compare.launch(self.stream, grid(out_words), THREADS, arguments)?;
                read_flag(self.stream, &differ)?
            };
            if different {
                continue;
            }
            let time = seconds(algorithm, &found)?;
            if time < best.0 {
                best = (time, Some(*algorithm));
            }
        }
        self.stream.synchronize()?;
        Ok(best.1)
    }
}

fn read_flag(stream: Stream, flag: &Buffer) -> Outcome<bool> {
    stream.synchronize()?;
    let mut value = 0i32;
    // SAFETY: both are four bytes.
    unsafe { driver_sys::cuMemcpyDtoH_v2((&raw mut value).cast(), flag.0, 4).result() }
        .map_err(|error| driver("cuMemcpyDtoH", error))?;
    Ok(value != 0)
}

/// What the library offers, its first choice first.
fn candidates(library: &Library, plan: &Plan) -> Vec<Algorithm> {
    let mut results: [MaybeUninit<sys::cublasLtMatmulHeuristicResult_t>; CANDIDATES] =
        [const { MaybeUninit::uninit() }; CANDIDATES];
    let mut count = 0;
    // SAFETY: the plan's descriptors live as long as the process; as many results fit as are asked
    // for, and the first `count` are written.
    let results = unsafe {
        let status = sys::cublasLtMatmulAlgoGetHeuristic(
            library.handle,
            plan.description,
            plan.right,
            plan.left,
            plan.out,
            plan.out,
            plan.preference,
            CANDIDATES as i32,
            results.as_mut_ptr().cast(),
            &mut count,
        );
        if status.result().is_err() {
            return Vec::new();
        }
        let count = (count.max(0) as usize).min(CANDIDATES);
        results[..count].iter().map(|result| result.assume_init()).collect::<Vec<_>>()
    };
    let usable = results.into_iter().filter(|result| result.state.result().is_ok());
    usable.map(|result| result.algo).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cube::nvidia::assert_compiles;

    #[test]
    fn the_kernels_compile() {
        assert_compiles(&[source()], &[(8, 0), (9, 0)]);
    }
}
