//! Matrix products `C = A B` and `C += A B`, on all threads.
//!
//! The contraction is cut into blocks, rows and columns into slabs whose packed operands fit
//! a cache, and a slab of `C` into tiles. One task computes one tile over one block, so every
//! element of `C` has one order of summation: within a block in steps of the contraction, and
//! block after block.

use crate::element::Element;
use crate::micro_kernel::{KernelTask, MR, MicroKernel, NR, layout, with_micro_kernel};
use crate::packing::Operand;
use crate::scratch::Scratch;
use rayon::prelude::*;

/// Steps of the contraction in a block: a panel of `B` of this many steps and a few panels of
/// `A` fit a second-level cache.
const BLOCK_STEPS: usize = 1024;

/// Units in the packed slab of either operand (4 MiB).
const SLAB_UNITS: usize = 1 << 20;

/// Panels of rows and of columns in a tile.
const TILE_ROWS: usize = 8 * MR;
const TILE_COLUMNS: usize = 8 * NR;

/// Where a product goes.
pub(crate) enum Output<'a, E> {
    /// Rounded to elements, `=`.
    Assign(&'a mut [E]),
    /// f32, `=`.
    AssignF32(&'a mut [f32]),
    /// f32, `+=`.
    AddF32(&'a mut [f32]),
}

/// `C` (a.lanes, b.lanes), row-major, from `A` and `B` of one contraction.
pub(crate) fn gemm<E: Element>(c: Output<'_, E>, a: Operand<'_, E>, b: Operand<'_, E>) {
    with_micro_kernel::<E>(Product { c, a, b });
}

pub(crate) struct Product<'a, E> {
    pub c: Output<'a, E>,
    pub a: Operand<'a, E>,
    pub b: Operand<'a, E>,
}

impl<E: Element> KernelTask for Product<'_, E> {
    fn run<K: MicroKernel>(self) {
        let Product { c, a, b } = self;
        debug_assert_eq!(a.depth, b.depth);
        let (rows, columns) = (a.lanes, b.lanes);
        if rows == 0 || columns == 0 {
            return;
        }
        let block_depth = BLOCK_STEPS * K::DEPTH;
        let one_block = a.depth <= block_depth;
        let steps = a.depth.min(block_depth).div_ceil(K::DEPTH).max(1);
        let slab = |lanes: usize, tile: usize| {
            (SLAB_UNITS / steps / tile * tile).max(tile).min(lanes.next_multiple_of(tile))
        };
        let (slab_rows, slab_columns) = (slab(rows, TILE_ROWS), slab(columns, TILE_COLUMNS));
        let mut packed_a = Scratch::new::<K::Unit>(slab_rows * steps);
        let mut packed_b = Scratch::new::<K::Unit>(slab_columns * steps);
        let packed_a = packed_a.as_mut::<K::Unit>();
        let packed_b = packed_b.as_mut::<K::Unit>();
        let target = Target::<E>::new(c);
        // Rounded outputs of several blocks are summed in f32 first.
        let needs_sums = !one_block && matches!(target, Target::Round(_));
        let mut sums = Scratch::new::<f32>(if needs_sums { slab_rows * slab_columns } else { 0 });
        let sums = SharedPointer::new(sums.as_mut::<f32>());

        for column in (0..columns).step_by(slab_columns) {
            let width = slab_columns.min(columns - column);
            for row in (0..rows).step_by(slab_rows) {
                let height = slab_rows.min(rows - row);
                for start in (0..a.depth.max(1)).step_by(block_depth) {
                    let depth = block_depth.min(a.depth - start);
                    let steps = depth.div_ceil(K::DEPTH);
                    let keep_a = one_block && rows <= slab_rows && column > 0;
                    let keep_b = one_block && row > 0;
                    let a_panels = height.div_ceil(MR) * usize::from(!keep_a);
                    let b_panels = width.div_ceil(NR) * usize::from(!keep_b);
                    pack_both::<K, E>(
                        (&mut packed_a[..a_panels * MR * steps], &a, row),
                        (&mut packed_b[..b_panels * NR * steps], &b, column),
                        start,
                        depth,
                    );
                    let block = Block::<K> { a: packed_a, b: packed_b, steps };
                    let pass = Pass {
                        first: start == 0,
                        last: start + depth >= a.depth,
                        sums: needs_sums.then_some(sums),
                    };
                    let tile_columns = width.div_ceil(TILE_COLUMNS);
                    let tiles = height.div_ceil(TILE_ROWS) * tile_columns;
                    (0..tiles).into_par_iter().for_each(|tile| {
                        let tile = Tile {
                            row: tile / tile_columns * TILE_ROWS,
                            column: tile % tile_columns * TILE_COLUMNS,
                            slab_row: row,
                            slab_column: column,
                            slab_height: height,
                            slab_width: width,
                            c_row: columns,
                        };
                        // SAFETY: K runs on this CPU; each tile of C belongs to one task.
                        unsafe {
                            K::vectorize(
                                #[inline(always)]
                                || multiply_tile::<K, E>(&block, target, pass, tile),
                            )
                        }
                    });
                }
            }
        }
    }
}

/// Packs panels of both operands in one parallel loop.
fn pack_both<K: MicroKernel, E: Element>(
    (packed_a, a, row): (&mut [K::Unit], &Operand<'_, E>, usize),
    (packed_b, b, column): (&mut [K::Unit], &Operand<'_, E>, usize),
    start: usize,
    depth: usize,
) {
    let steps = depth.div_ceil(K::DEPTH).max(1);
    let a_panels = packed_a.par_chunks_mut(MR * steps).enumerate().map(|(i, p)| (true, i, p));
    let b_panels = packed_b.par_chunks_mut(NR * steps).enumerate().map(|(i, p)| (false, i, p));
    a_panels.chain(b_panels).for_each(|(is_a, i, panel)| {
        // SAFETY: K runs on this CPU.
        unsafe {
            if is_a {
                K::vectorize(
                    #[inline(always)]
                    || a.pack::<K, MR>(panel, row + i * MR, start, depth),
                );
            } else {
                K::vectorize(
                    #[inline(always)]
                    || b.pack::<K, NR>(panel, column + i * NR, start, depth),
                );
            }
        }
    });
}

/// A pointer that tasks may share because each writes elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedPointer<T>(*mut T);

// SAFETY: whoever writes through it vouches for disjointness.
unsafe impl<T> Send for SharedPointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedPointer<T> {}

impl<T> SharedPointer<T> {
    /// To the elements of `x`, which must stay borrowed while the pointer is used.
    pub(crate) fn new(x: &mut [T]) -> Self {
        Self(x.as_mut_ptr())
    }

    /// To element `index`.
    ///
    /// # Safety
    ///
    /// It must be inside the slice.
    #[inline(always)]
    pub(crate) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: passed on.
        unsafe { self.0.add(index) }
    }
}

/// The output matrix, shared by tasks that write disjoint tiles.
#[derive(Clone, Copy)]
enum Target<E> {
    Round(SharedPointer<E>),
    Float { c: SharedPointer<f32>, add: bool },
}

impl<E: Element> Target<E> {
    fn new(c: Output<'_, E>) -> Self {
        let float = |c: &mut [f32], add| Self::Float { c: SharedPointer::new(c), add };
        match c {
            Output::Assign(c) if E::IS_BF16 => Self::Round(SharedPointer::new(c)),
            Output::Assign(c) => float(bytemuck::cast_slice_mut(c), false),
            Output::AssignF32(c) => float(c, false),
            Output::AddF32(c) => float(c, true),
        }
    }
}

/// The packed operands of one block.
struct Block<'a, K: MicroKernel> {
    a: &'a [K::Unit],
    b: &'a [K::Unit],
    steps: usize,
}

/// Which block of the contraction this is.
#[derive(Clone, Copy)]
struct Pass {
    first: bool,
    last: bool,
    /// Where blocks are summed before rounding, tile columns contiguous.
    sums: Option<SharedPointer<f32>>,
}

/// A tile and the slab it is in.
#[derive(Clone, Copy)]
struct Tile {
    /// First row and column within the slab.
    row: usize,
    column: usize,
    slab_row: usize,
    slab_column: usize,
    slab_height: usize,
    slab_width: usize,
    /// Distance of rows of C.
    c_row: usize,
}

/// # Safety
///
/// The tile must lie inside the slab, and no other task may write it.
#[inline(always)]
unsafe fn multiply_tile<K: MicroKernel, E: Element>(
    block: &Block<'_, K>,
    target: Target<E>,
    pass: Pass,
    tile: Tile,
) {
    let mut edge = [0.0f32; MR * NR];
    let edge = edge.as_mut_ptr();
    let bottom = (tile.row + TILE_ROWS).min(tile.slab_height);
    let right = (tile.column + TILE_COLUMNS).min(tile.slab_width);
    for column in (tile.column..right).step_by(NR) {
        let width = NR.min(tile.slab_width - column);
        let b = block.b[column * block.steps..][..NR * block.steps].as_ptr();
        for row in (tile.row..bottom).step_by(MR) {
            let height = MR.min(tile.slab_height - row);
            let a = block.a[row * block.steps..][..MR * block.steps].as_ptr();
            let at = (tile.slab_row + row) * tile.c_row + tile.slab_column + column;
            // SAFETY: the panels hold `steps` steps; rows and columns are inside C, and C's
            // tile is this task's own.
            unsafe {
                match target {
                    Target::Round(c) => {
                        // The 12 x 32 sums are contiguous here.
                        let panels = tile.slab_width.div_ceil(NR);
                        let panel = (row / MR * panels + column / NR) * MR * NR;
                        let sums = match pass.sums {
                            Some(sums) => sums.at(panel),
                            None => edge,
                        };
                        K::multiply::<{ layout::PACKED }>(block.steps, a, b, sums, NR, !pass.first);
                        if pass.last {
                            round_tile(c.at(at), tile.c_row, sums, height, width);
                        }
                    }
                    Target::Float { c, add } => {
                        let (c, add) = (c.at(at), add || !pass.first);
                        if height == MR && width == NR {
                            K::multiply::<{ layout::PACKED }>(
                                block.steps,
                                a,
                                b,
                                c,
                                tile.c_row,
                                add,
                            );
                        } else {
                            K::multiply::<{ layout::PACKED }>(block.steps, a, b, edge, NR, false);
                            copy_tile(c, tile.c_row, edge, height, width, add);
                        }
                    }
                }
            }
        }
    }
}

/// Writes the valid part of a tile, rounded.
///
/// # Safety
///
/// `height` rows of `width` elements must be writable at `c`.
#[inline(always)]
unsafe fn round_tile<E: Element>(
    c: *mut E,
    c_row: usize,
    sums: *const f32,
    height: usize,
    width: usize,
) {
    for r in 0..height {
        // SAFETY: row r of the tile.
        unsafe {
            let c = c.add(r * c_row);
            let sums = &*sums.add(r * NR).cast::<[f32; NR]>();
            if width == NR {
                let c = &mut *c.cast::<[E; NR]>();
                for (c, &sum) in c.iter_mut().zip(sums) {
                    *c = E::from_f32(sum);
                }
            } else {
                for (j, &sum) in sums[..width].iter().enumerate() {
                    c.add(j).write(E::from_f32(sum));
                }
            }
        }
    }
}

/// Writes or adds the valid part of a tile.
///
/// # Safety
///
/// `height` rows of `width` elements must be writable at `c`.
#[inline(always)]
unsafe fn copy_tile(
    c: *mut f32,
    c_row: usize,
    sums: *const f32,
    height: usize,
    width: usize,
    add: bool,
) {
    for r in 0..height {
        for j in 0..width {
            // SAFETY: inside the valid part.
            unsafe {
                let c = c.add(r * c_row + j);
                let sum = *sums.add(r * NR + j);
                *c = if add { *c + sum } else { sum };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro_kernel::with_micro_kernel_at;
    use crate::reference::{assert_close, random, to_f64};
    use crate::simd::{CpuLevel, cpu_level};
    use half::bf16;

    /// Every instruction set this CPU has computes the same product.
    fn every_level<E: Element>() {
        let (m, n, k) = (29, 70, 35);
        let (a, b) = (random::<E>(m * k, 1.0, 1), random::<E>(k * n, 1.0, 2));
        let (a64, b64) = (to_f64(&a), to_f64(&b));
        let want: Vec<f64> = (0..m * n)
            .map(|i| (0..k).map(|k| a64[i / n * 35 + k] * b64[k * n + i % n]).sum())
            .collect();
        let levels = [CpuLevel::Portable, CpuLevel::Avx2, CpuLevel::Avx512, CpuLevel::Avx512Bf16];
        for level in levels.into_iter().filter(|&level| level <= cpu_level()) {
            let mut c = vec![f32::NAN; m * n];
            let product = Product {
                c: Output::AssignF32(&mut c),
                a: Operand::rows(&a, m, k),
                b: Operand::columns(&b, k, n),
            };
            with_micro_kernel_at(level, E::IS_BF16, product);
            assert_close(&format!("{level:?}"), &c, &want, 1e-5);
        }
    }

    #[test]
    fn every_level_f32() {
        every_level::<f32>();
    }

    #[test]
    fn every_level_bf16() {
        every_level::<bf16>();
    }
}
