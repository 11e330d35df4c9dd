//! The innermost product of every matrix multiplication and of attention.
//!
//! A micro-kernel multiplies 12 rows of `A` by 32 columns of `B` over a run of the
//! contraction and keeps the 12 x 32 f32 sums in registers. With AVX-512 these are 24 of the
//! 32 registers; two hold a row of `B`, and the elements of `A` are broadcast from memory.
//!
//! The contraction advances in units. With AVX512-BF16 a unit is a pair of bf16 in a u32,
//! lower index in the lower half, because `vdpbf16ps` adds the products of a pair to an f32
//! sum; everywhere else a unit is one f32.
//!
//! AMX keeps 16 x 16 sums in each of eight registers called tiles and multiplies 16 rows of `A` by
//! 16 columns of `B` over 16 pairs in one instruction. Its micro-kernel takes 32 rows and 32
//! columns, in four tiles; two hold rows of `A`, two columns of `B`.

use crate::element::Element;
#[cfg(test)]
use crate::reference::level as cpu_level;
use crate::simd::CpuLevel;
#[cfg(not(test))]
use crate::simd::cpu_level;
use bytemuck::Pod;

/// Rows of `A` a micro-kernel takes that multiplies vectors.
pub(crate) const MR: usize = 12;

/// Rows of `A` the micro-kernel of AMX takes, more than any other.
pub(crate) const MOST_ROWS: usize = 32;

/// Rows of `A` or steps of the contraction in a tile of AMX.
pub(crate) const TILE: usize = 16;

/// Columns of `B` a micro-kernel takes.
pub(crate) const NR: usize = 32;

/// Rows and columns of a block of attention scores: whole panels of 12 and of 32.
pub(crate) const SCORES: usize = 96;

/// How the operands of a micro-kernel lie: where the unit of row `r` and step `s` of `A` is, and
/// whether a panel of `B` is cut into strips.
pub(crate) mod layout {
    use super::{MR, NR, SCORES};

    /// Packed panels: `s * 12 + r`, `s * 32 + j`. For AMX, steps of `A` come in blocks of 16, in
    /// each of which those of a row lie together.
    pub(crate) const PACKED: u8 = 0;
    /// Rows of a block of scores, contraction over its columns; a packed panel.
    pub(crate) const SCORE_ROWS: u8 = 1;
    /// Columns of a block of scores, contraction over its rows; a packed panel. For AMX, 16 x 16
    /// units are transposed in their place: see [`MicroKernel::turn_columns`](super::MicroKernel).
    pub(crate) const SCORE_COLUMNS: u8 = 2;
    /// A packed panel; strips of [`MicroKernel::STRIP`](super::MicroKernel::STRIP) columns, one after
    /// the other.
    pub(crate) const STRIPS: u8 = 3;

    /// The place of row `r`, step `s` (in this order) of the units of `A`.
    #[inline(always)]
    pub(super) fn units<const LAYOUT: u8, U>(
        a: *const U,
        depth: usize,
    ) -> impl Fn(usize, usize) -> *const U {
        let (row, step) = strides(LAYOUT, depth);
        move |r, s| a.wrapping_add(s * step + r * row)
    }

    /// The same for rows `row` bytes apart whose steps are neighbours. Every third row has an
    /// address of its own; the two after it are one and two rows further, which an instruction
    /// adds by itself.
    #[inline(always)]
    pub(super) fn in_place<U>(a: *const u8, row: usize) -> impl Fn(usize, usize) -> *const U {
        let firsts = [0, 3, 6, 9].map(|r| a.wrapping_add(r * row));
        move |r, s| firsts[r / 3].wrapping_add(s * size_of::<U>() + r % 3 * row).cast()
    }

    /// Distances of neighbouring rows and steps, in units of `depth` elements: constants of a
    /// micro-kernel's addresses, once inlined.
    #[inline(always)]
    const fn strides(layout: u8, depth: usize) -> (usize, usize) {
        match layout {
            SCORE_ROWS => (SCORES / depth, 1),
            SCORE_COLUMNS => (1, SCORES),
            _ => (1, MR),
        }
    }

    /// The place of column `j`, a multiple of `strip`, and step `s` of `steps` of `B`.
    #[inline(always)]
    pub(super) fn columns<const LAYOUT: u8, U>(
        b: *const U,
        steps: usize,
        strip: usize,
    ) -> impl Fn(usize, usize) -> *const U {
        let (column, step) = if LAYOUT == STRIPS { (steps, strip) } else { (1, NR) };
        move |j, s| b.wrapping_add(j * column + s * step)
    }
}

/// A run of lanes of f32, one register of AVX-512.
pub(crate) const RUN: usize = 16;

/// A product of [`MicroKernel::ROWS`] x 32 for one instruction set.
///
/// # Safety
///
/// `vectorize` may run only on a CPU that has the kernel's instructions, which [`with_micro_kernel`]
/// sees to; all else only inside `vectorize`, which also prepares the registers that products need.
pub(crate) unsafe trait MicroKernel: Copy + Send + Sync + 'static {
    /// One step of the contraction of one row or column.
    type Unit: Pod + Send + Sync;

    /// Elements in a unit.
    const DEPTH: usize;

    /// Rows of `A` the kernel takes.
    const ROWS: usize = MR;

    /// Steps the kernel takes at a time: packed panels are padded to whole multiples.
    const STEPS: usize = 1;

    /// Steps of the contraction in a block of a product, about: a panel of `B` of this many steps
    /// and a few panels of `A` fit a second-level cache.
    const BLOCK_STEPS: usize = 1024;

    /// The steps of `depth` elements.
    #[inline(always)]
    fn steps(depth: usize) -> usize {
        depth.div_ceil(Self::DEPTH).next_multiple_of(Self::STEPS)
    }

    /// Columns of `B` that lie together in a panel with [`layout::STRIPS`]: as many as the kernel
    /// takes at a time, so that it reads whole cache lines and no others.
    const STRIP: usize = NR;

    /// A unit of the elements `at(0)` to `at(DEPTH - 1)`.
    fn unit<E: Element>(at: impl Fn(usize) -> E) -> Self::Unit;

    /// `c[r][j] = Σ_s a[r][s] b[s][j]` over `steps` units, or `+=` if `add`. `A` and `B` lie as
    /// [`layout`] says; rows of `c` are `c_row` apart.
    ///
    /// # Safety
    ///
    /// All elements named above must be valid, and `c` must not be shared.
    unsafe fn multiply<const LAYOUT: u8>(
        steps: usize,
        a: *const Self::Unit,
        b: *const Self::Unit,
        c: *mut f32,
        c_row: usize,
        add: bool,
    );

    /// As [`Self::multiply`] with [`layout::STRIPS`], but for rows of `A` where they lie in their
    /// matrix, `a_row` bytes apart, steps next to each other.
    ///
    /// # Safety
    ///
    /// As [`Self::multiply`].
    unsafe fn multiply_rows(
        steps: usize,
        a: *const u8,
        a_row: usize,
        b: *const Self::Unit,
        c: *mut f32,
        c_row: usize,
        add: bool,
    );

    /// Asks for the sums that the next product will write or be added to, which may lie outside the
    /// matrix: they come from memory while this one is computed.
    #[inline(always)]
    fn fetch_ahead(_c: *const f32, _c_row: usize) {}

    /// Whether elements are the parts of units, without conversion.
    #[inline(always)]
    fn lie_as_units<E: Element>() -> bool {
        size_of::<E>() * Self::DEPTH == size_of::<Self::Unit>()
    }

    /// Whether [`Self::transpose_16`] takes rows of `E`.
    #[inline(always)]
    fn transposes<E: Element>() -> bool {
        Self::lie_as_units::<E>()
    }

    /// `to[s * to_step + i] = from[i][s]` for 16 units of `lanes` (at most 16) rows that are
    /// `row` elements apart, if [`Self::transposes`] says so.
    ///
    /// # Safety
    ///
    /// The units named above must be valid.
    #[inline(always)]
    unsafe fn transpose_16<E: Element>(
        to: *mut Self::Unit,
        to_step: usize,
        from: *const E,
        row: usize,
        lanes: usize,
    ) {
        for i in 0..lanes {
            for s in 0..16 {
                // SAFETY: unit s of row i.
                unsafe {
                    let from = from.add(i * row + s * Self::DEPTH);
                    to.add(s * to_step + i).write(Self::unit(|d| *from.add(d)));
                }
            }
        }
    }

    /// `to[i]` = the unit of lane `i` of one row of the matrix (`low`), or of two (`low` and
    /// `high`) where a unit is a pair, for elements that already lie as the parts of units.
    ///
    /// # Safety
    ///
    /// `lanes` elements of both rows must be readable, `lanes` units at `to` writable.
    #[inline(always)]
    unsafe fn interleave(to: *mut Self::Unit, low: *const u8, _high: *const u8, lanes: usize) {
        const { assert!(Self::DEPTH == 1, "pairs need an interleave of their own") };
        // SAFETY: units of one element are the row as it is.
        unsafe { to.cast::<u8>().copy_from_nonoverlapping(low, lanes * size_of::<Self::Unit>()) };
    }

    /// Rounds a run of a row of scores to the `16 / DEPTH` units at `to`.
    ///
    /// # Safety
    ///
    /// They must be writable.
    #[inline(always)]
    unsafe fn store_row(to: *mut Self::Unit, row: &[f32; RUN]) {
        for i in 0..RUN / Self::DEPTH {
            // SAFETY: unit i of the run.
            unsafe { to.add(i).write(Self::unit(|d| row[i * Self::DEPTH + d])) };
        }
    }

    /// Rounds a run of two neighbouring rows of scores to units along the rows: row `low` to
    /// `to`, row `high` to `to + SCORES` or into the same units.
    ///
    /// # Safety
    ///
    /// They must be writable.
    #[inline(always)]
    unsafe fn store_columns(to: *mut Self::Unit, low: &[f32; RUN], high: &[f32; RUN]) {
        for i in 0..RUN {
            // SAFETY: lane i of one or both rows.
            unsafe {
                if Self::DEPTH == 2 {
                    to.add(i).write(Self::unit(|d| if d == 0 { low[i] } else { high[i] }));
                } else {
                    to.add(i).write(Self::unit(|_| low[i]));
                    to.add(SCORES + i).write(Self::unit(|_| high[i]));
                }
            }
        }
    }

    /// Brings what [`Self::store_columns`] wrote of `ROWS` rows of a block of scores, `columns` wide,
    /// into the order of [`layout::SCORE_COLUMNS`].
    ///
    /// # Safety
    ///
    /// `units` are those rows, `SCORES` columns wide.
    #[inline(always)]
    unsafe fn turn_columns(_units: *mut Self::Unit, _columns: usize) {}

    /// Runs `f` compiled with the kernel's instructions, if `f` and what it calls are
    /// `#[inline(always)]`.
    ///
    /// # Safety
    ///
    /// The CPU must have them.
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R;
}

/// Work that is generic over the micro-kernel.
pub(crate) trait KernelTask {
    /// Does the work with `K`.
    fn run<K: MicroKernel>(self);
}

/// Runs `task` with the best micro-kernel this CPU has for products of `E`.
pub(crate) fn with_micro_kernel<E: Element>(task: impl KernelTask) {
    let level = cpu_level();
    #[cfg(target_arch = "x86_64")]
    match (level, E::IS_BF16) {
        (CpuLevel::Amx, true) => return task.run::<amx::Amx>(),
        (CpuLevel::Avx512Bf16, true) => return task.run::<x86::Avx512Bf16>(),
        (CpuLevel::Avx512 | CpuLevel::Avx512Bf16 | CpuLevel::Amx, _) => {
            return task.run::<x86::Avx512F32>();
        }
        (CpuLevel::Avx2, _) => return task.run::<x86::Avx2F32>(),
        (CpuLevel::Portable, _) => {}
    }
    let _ = level;
    task.run::<PortableF32>();
}

/// Plain Rust, for any CPU.
#[derive(Clone, Copy)]
pub(crate) struct PortableF32;

/// A fused multiply-add would be a library call on a CPU without the instruction.
#[inline(always)]
fn plain(a: f32, b: f32, sum: f32) -> f32 {
    sum + a * b
}

/// Rows and columns the plain loop keeps in registers: 12 of the 16 registers of AVX2.
const SUB_ROWS: usize = 6;
const SUB_COLUMNS: usize = 16;

/// `multiply` in plain Rust, a part of the tile at a time; strips are as wide as a part.
///
/// # Safety
///
/// As [`MicroKernel::multiply`].
#[inline(always)]
unsafe fn multiply_plain<const LAYOUT: u8>(
    steps: usize,
    a: impl Fn(usize, usize) -> *const f32,
    b: *const f32,
    c: *mut f32,
    c_row: usize,
    add: bool,
    multiply_add: impl Fn(f32, f32, f32) -> f32,
) {
    let b = layout::columns::<LAYOUT, _>(b, steps, SUB_COLUMNS);
    for column in (0..NR).step_by(SUB_COLUMNS) {
        for row in (0..MR).step_by(SUB_ROWS) {
            let mut sums = [[0.0f32; SUB_COLUMNS]; SUB_ROWS];
            for s in 0..steps {
                // SAFETY: inside the ranges the caller vouches for.
                unsafe {
                    let b = b(column, s).cast::<[f32; SUB_COLUMNS]>().read();
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = a(row + r, s).read_unaligned();
                        for (sum, &b) in sums.iter_mut().zip(&b) {
                            *sum = multiply_add(a, b, *sum);
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                // SAFETY: inside the ranges the caller vouches for.
                unsafe {
                    let c = c.add((row + r) * c_row + column).cast::<[f32; SUB_COLUMNS]>();
                    let mut out = if add { c.read() } else { [0.0; SUB_COLUMNS] };
                    for (out, &sum) in out.iter_mut().zip(sums) {
                        *out += sum;
                    }
                    c.write(out);
                }
            }
        }
    }
}

// SAFETY: needs nothing of the CPU.
unsafe impl MicroKernel for PortableF32 {
    type Unit = f32;
    const DEPTH: usize = 1;
    const STRIP: usize = SUB_COLUMNS;

    #[inline(always)]
    fn unit<E: Element>(at: impl Fn(usize) -> E) -> f32 {
        at(0).to_f32()
    }

    unsafe fn multiply<const LAYOUT: u8>(
        steps: usize,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe {
            let a = layout::units::<LAYOUT, _>(a, 1);
            multiply_plain::<LAYOUT>(steps, a, b, c, c_row, add, plain);
        }
    }

    unsafe fn multiply_rows(
        steps: usize,
        a: *const u8,
        a_row: usize,
        b: *const f32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe {
            let a = layout::in_place(a, a_row);
            multiply_plain::<{ layout::STRIPS }>(steps, a, b, c, c_row, add, plain);
        }
    }

    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::tiles_are_permitted;
