//! Matrix products `C = A B` and `C += A B`, on all threads.
//!
//! The contraction is cut into blocks, rows and columns into slabs whose packed operands fit
//! a cache, and a slab of `C` into tiles. One task computes one tile over one block, so every
//! element of `C` has one order of summation: within a block in steps of the contraction, and
//! block after block. While some threads still multiply, others already pack what the next block
//! or slab needs.

mod tile;

use crate::element::Element;
use crate::micro_kernel::{KernelTask, MicroKernel, NR, with_micro_kernel};
use crate::packing::{Operand, PackTask};
use crate::phases::run_phases;
use crate::scratch::Scratch;
use tile::{Block, Pass, Target, Tile, multiply_tile};

/// The length of a block of `steps` steps in steps: blocks are equal, since a short one reads and
/// writes `C` for little.
fn block_steps<K: MicroKernel>(steps: usize) -> usize {
    let blocks = (steps + K::BLOCK_STEPS / 2) / K::BLOCK_STEPS;
    steps.div_ceil(blocks.max(1)).max(1).next_multiple_of(K::STEPS)
}

/// Units in the packed slab of either operand (4 MiB).
const SLAB_UNITS: usize = 1 << 20;

/// Rows of a tile, in whole panels: a panel of `B` is used this often while it is near.
const fn tile_rows<K: MicroKernel>() -> usize {
    48usize.next_multiple_of(K::ROWS)
}

/// Columns of a tile, in whole panels: the more, the longer panels of `A` stay near and rows of `C`
/// are written in order.
const TILE_COLUMNS: std::ops::RangeInclusive<usize> = 2 * NR..=16 * NR;

/// Tiles for each thread, so that none waits long for the last tile of another.
const TILES_PER_THREAD: usize = 8;

/// The widest tile that leaves enough of them. What is added to what does not depend on it.
fn tile_columns<K: MicroKernel>(rows: usize, columns: usize, threads: usize) -> usize {
    let mut width = *TILE_COLUMNS.end();
    let tiles = |width| rows.div_ceil(tile_rows::<K>()) * columns.div_ceil(width);
    while width > *TILE_COLUMNS.start() && tiles(width) < TILES_PER_THREAD * threads {
        width /= 2;
    }
    width
}

/// Where a product goes.
pub(crate) enum Output<'a, E> {
    /// Rounded to elements, `=`.
    Assign(&'a mut [E]),
    /// Added to elements and rounded, `+=`.
    Add(&'a mut [E]),
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

/// A block of the contraction of one slab of `C`.
#[derive(Clone, Copy, Debug)]
struct Step {
    row: usize,
    height: usize,
    column: usize,
    width: usize,
    start: usize,
    depth: usize,
    /// Which of two buffers holds the packed operands, and whether they are packed for this step
    /// or still lie there from the one before.
    a: (usize, bool),
    b: (usize, bool),
}

/// The steps of a product: slabs of columns, in each the slabs of rows, in each the blocks.
fn steps(
    [rows, columns, depth]: [usize; 3],
    [slab_rows, slab_columns, block]: [usize; 3],
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for column in (0..columns).step_by(slab_columns) {
        for row in (0..rows).step_by(slab_rows) {
            // A product over nothing is zero, and has to be written.
            for start in (0..depth.max(1)).step_by(block) {
                let last = steps.last();
                // A buffer that is packed anew is the one the step before does not use.
                let buffer = |buffer: (usize, bool), kept: bool| {
                    if kept { (buffer.0, false) } else { (1 - buffer.0, true) }
                };
                let kept_a = last.is_some_and(|l| (l.row, l.start) == (row, start));
                let kept_b = last.is_some_and(|l| (l.column, l.start) == (column, start));
                steps.push(Step {
                    row,
                    height: slab_rows.min(rows - row),
                    column,
                    width: slab_columns.min(columns - column),
                    start,
                    depth: block.min(depth - start),
                    a: buffer(last.map_or((1, true), |l| l.a), kept_a),
                    b: buffer(last.map_or((1, true), |l| l.b), kept_b),
                });
            }
        }
    }
    steps
}

impl<E: Element> KernelTask for Product<'_, E> {
    fn run<K: MicroKernel>(self) {
        let Product { c, a, b } = self;
        debug_assert_eq!(a.depth, b.depth);
        let (rows, columns) = (a.lanes, b.lanes);
        if rows == 0 || columns == 0 {
            return;
        }
        let deepest = block_steps::<K>(a.depth.div_ceil(K::DEPTH));
        let block_depth = deepest * K::DEPTH;
        let slab = |lanes: usize, tile: usize| {
            (SLAB_UNITS / deepest / tile * tile).max(tile).min(lanes.next_multiple_of(tile))
        };
        let tile_rows = tile_rows::<K>();
        let tile_columns = tile_columns::<K>(rows, columns, rayon::current_num_threads());
        let (slab_rows, slab_columns) = (slab(rows, tile_rows), slab(columns, tile_columns));
        let steps = steps([rows, columns, a.depth], [slab_rows, slab_columns, block_depth]);

        let buffers = |uses: fn(&Step) -> (usize, bool)| {
            1 + steps.iter().map(|step| uses(step).0).max().unwrap_or(0)
        };
        let (a_size, b_size) = (slab_rows * deepest, slab_columns * deepest);
        let a_size = if a.reads_in_place::<K>() { K::ROWS * deepest } else { a_size };
        let mut packed_a = Scratch::new::<K::Unit>(a_size * buffers(|step| step.a));
        let mut packed_b = Scratch::new::<K::Unit>(b_size * buffers(|step| step.b));
        let packed_a = SharedPointer::new(packed_a.as_mut::<K::Unit>());
        let packed_b = SharedPointer::new(packed_b.as_mut::<K::Unit>());
        let target = Target::<E>::new(c);
        // Rounded outputs of several blocks are summed in f32 first.
        let needs_sums = a.depth > block_depth && matches!(target, Target::Round { .. });
        let mut sums = Scratch::new::<f32>(if needs_sums { slab_rows * slab_columns } else { 0 });
        let sums = SharedPointer::new(sums.as_mut::<f32>());

        // Rows that a micro-kernel reads as they lie are not packed, but for the last few, which
        // are fewer than a panel.
        let in_place = a.reads_in_place::<K>();
        let pack_a = |step: &Step| {
            let Step { row, height, start, depth, .. } = *step;
            let unpacked = if in_place { height / K::ROWS * K::ROWS } else { 0 };
            step.a.1.then(|| {
                PackTask::all::<K, true>(&a, row + unpacked, height - unpacked, start, depth)
            })
        };
        let pack_b = |step: &Step| {
            let Step { column, width, start, depth, .. } = *step;
            let width = width.next_multiple_of(NR);
            step.b.1.then(|| PackTask::all::<K, false>(&b, column, width, start, depth))
        };
        let tiles = |step: &Step| {
            let across = step.width.div_ceil(tile_columns);
            (step.height.div_ceil(tile_rows) * across, across)
        };
        let count = |pack: Option<PackTask>| pack.map_or(0, |pack| pack.tasks);
        // Phase p packs for step p and multiplies step p - 1.
        let tasks: Vec<usize> = (0..=steps.len())
            .map(|p| {
                let packs = steps.get(p).map_or(0, |s| count(pack_a(s)) + count(pack_b(s)));
                packs + if p > 0 { tiles(&steps[p - 1]).0 } else { 0 }
            })
            .collect();
        run_phases(&tasks, |phase, mut task| {
            if let Some(step) = steps.get(phase) {
                // SAFETY: K runs on this CPU; each buffer has room for its slab, and this task's
                // part of it is nobody else's.
                let rest = unsafe {
                    let to = packed_a.offset(step.a.0 * a_size);
                    pack_or_pass::<K, E, true>(pack_a(step), &a, to, task).and_then(|task| {
                        let to = packed_b.offset(step.b.0 * b_size);
                        pack_or_pass::<K, E, false>(pack_b(step), &b, to, task)
                    })
                };
                let Some(rest) = rest else { return };
                task = rest;
            }
            let step = &steps[phase - 1];
            let count = K::steps(step.depth);
            // SAFETY: an earlier phase packed these panels, and no task of this one writes them.
            let packed = |from: SharedPointer<K::Unit>, lanes: usize, width: usize| unsafe {
                std::slice::from_raw_parts(from.at(0), lanes.next_multiple_of(width) * count)
            };
            // SAFETY: inside the buffers.
            let (from_a, from_b) =
                unsafe { (packed_a.offset(step.a.0 * a_size), packed_b.offset(step.b.0 * b_size)) };
            let a_rows = if in_place { step.height % K::ROWS } else { step.height };
            let block = Block::<K> {
                rows: in_place.then(|| {
                    let rows = &a.data[step.row * a.lane_stride + step.start..];
                    (bytemuck::cast_slice(rows), a.lane_stride * size_of::<E>())
                }),
                a: packed(from_a, a_rows, K::ROWS),
                b: packed(from_b, step.width, NR),
                steps: count,
            };
            let pass = Pass {
                first: step.start == 0,
                last: step.start + step.depth >= a.depth,
                sums: needs_sums.then_some(sums),
            };
            let across = tiles(step).1;
            let tile = Tile {
                row: task / across * tile_rows,
                column: task % across * tile_columns,
                columns: tile_columns,
                slab_row: step.row,
                slab_column: step.column,
                slab_height: step.height,
                slab_width: step.width,
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

/// Does task `task` of `pack`, or gives its number among the tasks that follow those.
///
/// # Safety
///
/// K runs on this CPU; as [`PackTask::run`].
unsafe fn pack_or_pass<K: MicroKernel, E: Element, const A: bool>(
    pack: Option<PackTask>,
    operand: &Operand<'_, E>,
    to: SharedPointer<K::Unit>,
    task: usize,
) -> Option<usize> {
    let Some(pack) = pack else { return Some(task) };
    if task >= pack.tasks {
        return Some(task - pack.tasks);
    }
    // SAFETY: passed on.
    unsafe {
        K::vectorize(
            #[inline(always)]
            || pack.run::<K, E, A>(operand, to.at(0), task),
        );
    }
    None
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

    /// The same from element `index` on.
    ///
    /// # Safety
    ///
    /// It must be inside the slice.
    pub(crate) unsafe fn offset(self, index: usize) -> Self {
        // SAFETY: passed on.
        unsafe { Self(self.0.add(index)) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::micro_kernel::PortableF32;
    use crate::reference::{assert_close, at_every_level, random, to_f64};
    use half::bf16;

    fn agrees_with_reference<E: Element>(m: usize, n: usize, k: usize) {
        let (a, b) = (random::<E>(m * k, 1.0, 1), random::<E>(k * n, 1.0, 2));
        let (a64, b64, depth) = (to_f64(&a), to_f64(&b), k);
        let want: Vec<f64> = (0..m * n)
            .map(|i| (0..k).map(|k| a64[i / n * depth + k] * b64[k * n + i % n]).sum())
            .collect();
        at_every_level(|| {
            let mut c = vec![f32::NAN; m * n];
            let (a, b) = (Operand::rows(&a, m, k), Operand::columns(&b, k, n));
            gemm(Output::AssignF32(&mut c), a, b);
            assert_close("product", &c, &want, 1e-5);
        });
    }

    /// An odd contraction is packed, rows of an even one are read in place, by AMX if they are whole
    /// tiles that lie on cache lines.
    #[test]
    fn packed_rows_and_rows_in_place_agree_with_reference() {
        for (m, n, k) in [(29, 70, 35), (29, 70, 36), (75, 70, 96), (75, 70, 352)] {
            agrees_with_reference::<f32>(m, n, k);
            agrees_with_reference::<bf16>(m, n, k);
        }
    }

    #[test]
    fn blocks_are_equal_and_about_as_long_as_they_should_be() {
        let longest = PortableF32::BLOCK_STEPS;
        for steps in [0, 1, 700, 1024, 1376, 1535, 1536, 1792, 2048, 4099, 32000] {
            let block = block_steps::<PortableF32>(steps);
            let blocks = steps.div_ceil(block);
            assert!(block * blocks < steps + blocks.max(1), "{steps} steps in blocks of {block}");
            assert!(block < longest * 3 / 2 && block * 2 > steps.min(longest), "{block}");
        }
    }

    #[test]
    fn tiles_are_narrower_where_threads_would_wait() {
        assert_eq!(tile_columns::<PortableF32>(2048, 1376, 2), 512);
        assert_eq!(tile_columns::<PortableF32>(512, 512, 2), 256);
        assert_eq!(tile_columns::<PortableF32>(96, 64, 64), 64);
    }

    /// Every step finds its operands packed, in a buffer that nothing writes while the step before
    /// still multiplies; together the steps are the whole product, blocks of a slab in order.
    #[test]
    fn steps_cover_the_product_and_never_overwrite_what_is_read() {
        for (shape, slab) in [
            ([7, 9, 5], [7, 9, 5]),
            ([7, 9, 5], [3, 4, 2]),
            ([7, 9, 5], [3, 9, 8]),
            ([7, 9, 5], [7, 2, 5]),
            ([7, 9, 0], [7, 9, 5]),
        ] {
            let [rows, columns, depth] = shape;
            let mut covered = vec![0; rows * columns * depth.max(1)];
            // What the two buffers of either operand hold.
            let (mut held_a, mut held_b) = ([None; 2], [None; 2]);
            let mut read = (None, None);
            for step in steps(shape, slab) {
                let (a, b) = ((step.row, step.start), (step.column, step.start));
                for ((buffer, packed), held, operand, read) in
                    [(step.a, &mut held_a, a, read.0), (step.b, &mut held_b, b, read.1)]
                {
                    if packed {
                        assert_ne!(Some(buffer), read, "{shape:?} {slab:?} {step:?}");
                        held[buffer] = Some(operand);
                    }
                    assert_eq!(held[buffer], Some(operand), "{shape:?} {slab:?} {step:?}");
                }
                read = (Some(step.a.0), Some(step.b.0));
                for row in step.row..step.row + step.height {
                    for column in step.column..step.column + step.width {
                        let of = &mut covered[(row * columns + column) * depth.max(1)..];
                        let end = step.start + step.depth.max(1);
                        assert!(of[..step.start].iter().all(|&n| n == 1), "blocks out of order");
                        of[step.start..end].iter_mut().for_each(|n| *n += 1);
                    }
                }
            }
            assert!(covered.iter().all(|&n| n == 1), "{shape:?} {slab:?}");
        }
    }
}
