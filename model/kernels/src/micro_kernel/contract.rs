//! What a micro-kernel is: its sizes, how its operands lie in memory, what it computes.

use crate::element::Element;
use bytemuck::Pod;

/// Rows of `A` that every micro-kernel but that of AMX takes.
pub(crate) const MR: usize = 12;

/// Rows of `A` that the micro-kernel of AMX takes: the most of all.
pub(crate) const MOST_ROWS: usize = 32;

/// Rows of a tile of AMX, and units in a row of it.
pub(crate) const TILE: usize = 16;

/// Columns of `B` that every micro-kernel takes.
pub(crate) const NR: usize = 32;

/// Rows and columns of a block of attention scores: a whole number of panels of 12 and of 32.
pub(crate) const SCORES: usize = 96;

/// How the operands of a micro-kernel lie in memory: where the unit of row `r` and step `s` of `A`
/// is, and whether a panel of `B` is cut into strips.
pub(crate) mod layout {
    use super::{MR, NR, SCORES};

    /// Both operands are packed panels: row `r` at `s * 12 + r`, column `j` at `s * 32 + j`. For AMX,
    /// rows of `A` lie in tiles of 16 rows by 16 steps ([`crate::packing`]).
    pub(crate) const PACKED: u8 = 0;
    /// `A` is the rows of a block of scores, the contraction runs over its columns; `B` is a packed
    /// panel.
    pub(crate) const SCORE_ROWS: u8 = 1;
    /// `A` is the columns of a block of scores, the contraction runs over its rows; `B` is a packed
    /// panel. For AMX, every 16 x 16 units of the block are transposed first, in place: see
    /// [`MicroKernel::turn_columns`](super::MicroKernel).
    pub(crate) const SCORE_COLUMNS: u8 = 2;
    /// `A` is a packed panel; `B` is packed as strips of
    /// [`MicroKernel::STRIP`](super::MicroKernel::STRIP) columns, one after the other.
    pub(crate) const STRIPS: u8 = 3;

    /// The place of the unit of `A` of row `r` and step `s`, the arguments in this order.
    #[inline(always)]
    pub(crate) fn units<const LAYOUT: u8, U>(
        a: *const U,
        depth: usize,
    ) -> impl Fn(usize, usize) -> *const U {
        let (row, step) = strides(LAYOUT, depth);
        move |r, s| a.wrapping_add(s * step + r * row)
    }

    /// As [`units`], for rows of a matrix that lie `row` bytes apart, their steps next to each other.
    /// Only every third row has its address in a register: the two rows after it are one and two
    /// times `row` further, which an instruction adds as part of its operand's address.
    #[inline(always)]
    pub(crate) fn in_place<U>(a: *const u8, row: usize) -> impl Fn(usize, usize) -> *const U {
        let firsts = [0, 3, 6, 9].map(|r| a.wrapping_add(r * row));
        move |r, s| firsts[r / 3].wrapping_add(s * size_of::<U>() + r % 3 * row).cast()
    }

    /// Distances of neighbouring rows and of neighbouring steps, in units of `depth` elements.
    /// Inlined, they are constants in the addresses of a micro-kernel's instructions.
    #[inline(always)]
    const fn strides(layout: u8, depth: usize) -> (usize, usize) {
        match layout {
            SCORE_ROWS => (SCORES / depth, 1),
            SCORE_COLUMNS => (1, SCORES),
            _ => (1, MR),
        }
    }

    /// The place of column `j`, a multiple of `strip`, at step `s` of the `steps` of a panel of `B`.
    #[inline(always)]
    pub(crate) fn columns<const LAYOUT: u8, U>(
        b: *const U,
        steps: usize,
        strip: usize,
    ) -> impl Fn(usize, usize) -> *const U {
        let (column, step) = if LAYOUT == STRIPS { (steps, strip) } else { (1, NR) };
        move |j, s| b.wrapping_add(j * column + s * step)
    }
}

/// f32 in a register of AVX-512.
pub(crate) const RUN: usize = 16;

/// Multiplies [`MicroKernel::ROWS`] rows of `A` by 32 columns of `B`, with the instructions of one
/// kind of CPU.
///
/// # Safety
///
/// `vectorize` may be called only on a CPU that has these instructions: [`with_micro_kernel`](super::with_micro_kernel) chooses
/// the kernel by the CPU. All other functions may be called only inside `vectorize`, which also
/// prepares the registers they need.
pub(crate) unsafe trait MicroKernel: Copy + Send + Sync + 'static {
    /// One row or column at one step of the contraction.
    type Unit: Pod + Send + Sync;

    /// Elements of the contraction in a unit.
    const DEPTH: usize;

    /// Rows of `A` that the kernel takes.
    const ROWS: usize = MR;

    /// Whether products are added to sums with one rounding, by the instruction for it.
    const FUSED: bool = true;

    /// Whether packed rows of `A` lie in tiles of 16 rows by 16 steps.
    const ROWS_IN_TILES: bool = false;

    /// Steps that the kernel takes at a time: packed panels are padded to a multiple of them.
    const STEPS: usize = 1;

    /// About how many steps a block of a product has: a panel of `B` of this many steps and a few
    /// panels of `A` fit the second-level cache.
    const BLOCK_STEPS: usize = 1024;

    /// Steps of a packed panel over `depth` elements of the contraction.
    #[inline(always)]
    fn steps(depth: usize) -> usize {
        depth.div_ceil(Self::DEPTH).next_multiple_of(Self::STEPS)
    }

    /// Columns of `B` that lie together in a panel with [`layout::STRIPS`]: as many as the kernel
    /// takes at a time, so that it reads whole cache lines, each once.
    const STRIP: usize = NR;

    /// Whether the kernel reads rows of `A` fast where they lie in their matrix, the first at
    /// `address` and the others `stride` bytes apart; otherwise they are better packed.
    fn reads_rows_in_place(address: usize, stride: usize) -> bool;

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

    /// As [`Self::multiply`] with [`layout::STRIPS`], but reads rows of `A` in place: `a_row` bytes
    /// apart, the steps of a row next to each other.
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

    /// Prefetches the sums at `c` that the next call writes or adds to, so that they come from memory
    /// while this call computes. The address may lie outside the matrix.
    #[inline(always)]
    fn fetch_ahead(_c: *const f32, _c_row: usize) {}

    /// Whether the elements in memory are units already, without conversion.
    #[inline(always)]
    fn lie_as_units<E: Element>() -> bool {
        size_of::<E>() * Self::DEPTH == size_of::<Self::Unit>()
    }

    /// Whether [`Self::transpose_16`] is faster for elements `E` than unit by unit.
    #[inline(always)]
    fn transposes<E: Element>() -> bool {
        Self::lie_as_units::<E>()
    }

    /// `to[s * to_step + i] = from[i][s]` for 16 units of `lanes` (at most 16) rows that are `row`
    /// elements apart.
    ///
    /// # Safety
    ///
    /// [`Self::transposes`] must hold for `E`, and the units named above must be valid.
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

    /// Writes to `to[i]` the unit of lane `i` at one step, from one row of the matrix (`low`), or from
    /// two (`low` and `high`) where a unit is a pair. [`Self::lie_as_units`] holds for the elements.
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

    /// Rounds 16 neighbours in a row of scores to the `16 / DEPTH` units at `to`.
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

    /// Rounds 16 neighbours in each of two neighbouring rows of scores to units whose contraction runs
    /// over the rows: where a unit is a pair, both rows share the 16 units at `to`; otherwise row
    /// `low` goes to `to` and row `high` to `to + SCORES`.
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

    /// Brings the units that [`Self::store_columns`] wrote for `ROWS` rows of a block of scores,
    /// `columns` wide, into the order of [`layout::SCORE_COLUMNS`].
    ///
    /// # Safety
    ///
    /// `units` are those rows, `SCORES` columns wide.
    #[inline(always)]
    unsafe fn turn_columns(_units: *mut Self::Unit, _columns: usize) {}

    /// Runs `f`. What is inlined into it, `f` and all that it calls with `#[inline(always)]`, is
    /// compiled with the kernel's instructions.
    ///
    /// # Safety
    ///
    /// The CPU must have them.
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R;
}
