//! Micro-kernels: the innermost loop of every matrix product and of attention, one for each
//! instruction set.
//!
//! A micro-kernel multiplies 12 rows of `A` by 32 columns of `B` over any number of steps of the
//! contraction and keeps the 12 x 32 f32 sums in registers. With AVX-512 the sums take 24 of the 32
//! registers; two more hold the 32 columns of `B` at one step, and each element of `A` is broadcast
//! from memory.
//!
//! A unit is one row or column at one step, 4 bytes. With AVX512-BF16 and AMX it is a pair of bf16
//! in a u32, the lower index in the lower half, because their instructions add both products of a
//! pair to an f32 sum. Everywhere else it is one f32.
//!
//! AMX has eight registers called tiles. One instruction multiplies a tile of 16 rows of `A` by a
//! tile of 16 columns of `B` over 16 units each and adds to a tile of 16 x 16 sums. Its micro-kernel
//! takes 32 rows and 32 columns: four tiles of sums, two of rows, two of columns.
//!
//! A file of the folder uses only those before it: `contract` says what a micro-kernel is, `portable`,
//! `x86` and `amx` are the micro-kernels, and the choice between them is here.

mod contract;

mod portable;

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
mod amx;

use crate::element::Element;
use crate::simd::CpuLevel;
#[cfg(not(test))]
use crate::simd::cpu_level;
#[cfg(test)]
use crate::test_support::level as cpu_level;

pub(crate) use contract::{MOST_ROWS, MR, MicroKernel, NR, RUN, SCORES, TILE, layout};
pub(crate) use portable::PortableF32;

/// Work that any micro-kernel can do.
pub(crate) trait KernelTask {
    /// Does the work with `K`.
    fn run<K: MicroKernel>(self);
}

/// Runs `task` with the best micro-kernel this CPU has for products of `E`.
pub(crate) fn with_micro_kernel<E: Element>(task: impl KernelTask) {
    #[cfg(target_arch = "x86_64")]
    match (cpu_level(), E::IS_BF16) {
        (CpuLevel::Amx, true) => return task.run::<amx::Amx>(),
        (CpuLevel::Avx512Bf16, true) => return task.run::<x86::Avx512Bf16>(),
        _ => {}
    }
    with_f32_kernel(task);
}

/// Runs `task` with the best micro-kernel this CPU has whose units are single f32. It adds up in the
/// order of the contraction, whatever the elements were.
pub(crate) fn with_f32_kernel(task: impl KernelTask) {
    let level = cpu_level();
    #[cfg(target_arch = "x86_64")]
    match level {
        CpuLevel::Avx512 | CpuLevel::Avx512Bf16 | CpuLevel::Amx => {
            return task.run::<x86::Avx512F32>();
        }
        CpuLevel::Avx2 => return task.run::<x86::Avx2F32>(),
        CpuLevel::Portable => {}
    }
    let _ = level;
    task.run::<PortableF32>();
}
