//! Matrix products `C = A B` and `C += A B`, on all threads.
//!
//! `A` is (M, K), `B` is (K, N), and the sum over K is called the contraction. A product is cut at
//! these levels, from the whole to what one register holds:
//!
//! ```text
//!               contraction K                          columns N
//!          ┌─────────┬─────────┐        ┌──────────────────────────┬─────────┐
//!          │ block 0 │ block 1 │        │ slab                     │ slab    │
//!          │         │         │        │ ┌──────────┬──────────┐  │         │
//!   rows M │ A       │         │        │ │ tile     │ tile     │  │         │
//!          │ ═══════ │         │        │ │ ┌──┐     │          │  │         │
//!          │ a panel │         │        │ │ └──┘ one micro-kernel│  │         │
//!          │ of rows │         │        │ ├──────────┼──────────┤  │         │
//!          │         │         │        │ │ tile     │ tile     │  │  C      │
//!          ├─────────┼─────────┤        ├──────────────────────────┼─────────┤
//!          │         │         │        │ slab                     │ slab    │
//!          └─────────┴─────────┘        └──────────────────────────┴─────────┘
//! ```
//!
//! | level | what it is | size |
//! |---|---|---|
//! | slab | rows and columns of `C` whose operands are packed at once | so many that a packed operand has at most 2²⁰ units, 4 MiB |
//! | block | a part of the contraction; slabs are multiplied block by block | about 512 or 1024 steps ([`MicroKernel::BLOCK_STEPS`]), all blocks equal |
//! | tile | the part of a slab that one task multiplies | 48 rows (AMX: 64), 64 to 512 columns |
//! | panel | the rows of `A` or columns of `B` that one call of a micro-kernel takes, packed | 12 rows (AMX: 32), 32 columns, the steps of a block |
//! | strip | the columns of a panel of `B` that lie together in memory | 16 or 32 ([`MicroKernel::STRIP`]) |
//! | step | one place of the contraction | one f32 or a pair of bf16 |
//! | unit | one row or column at one step | 4 bytes |
//!
//! One task multiplies one tile over one block, so every element of `C` has one order of summation
//! whatever the number of threads: step after step within a block, and block after block. While
//! some threads still multiply, others already pack the operands of the next block or slab.

mod tile;

use crate::element::Element;
use crate::micro_kernel::{KernelTask, MicroKernel, NR, with_micro_kernel};
use crate::packing::{Operand, PackTask};
use crate::phases::run_phases;
use crate::scratch::Scratch;
use tile::{Block, Pass, Target, Tile, multiply_tile};

/// Steps of a block where the contraction has `steps`. All blocks are equal: each reads and writes
/// the sums in `C` once, which a short block would do for few products.
fn block_steps<K: MicroKernel>(steps: usize) -> usize {
    let blocks = (steps + K::BLOCK_STEPS / 2) / K::BLOCK_STEPS;
    steps.div_ceil(blocks.max(1)).max(1).next_multiple_of(K::STEPS)
}

/// Most units of the packed rows or columns of a slab: 4 MiB, which a last-level cache holds.
const SLAB_UNITS: usize = 1 << 20;

/// Rows of a tile, a whole number of panels. Each panel of `B` is multiplied with all of them while
/// it is in the second-level cache.
const fn tile_rows<K: MicroKernel>() -> usize {
    48usize.next_multiple_of(K::ROWS)
}

/// Columns of a tile, a whole number of panels. Wider tiles use the panels of `A` more often while
/// they are in a cache, and write longer pieces of the rows of `C`.
const TILE_COLUMNS: std::ops::RangeInclusive<usize> = 2 * NR..=16 * NR;

/// Fewest tiles for each thread, so that no thread waits long for the last tile of another.
const TILES_PER_THREAD: usize = 8;

/// Columns of the widest tiles of which there are [`TILES_PER_THREAD`]. The results do not depend on
/// the width: it changes which thread computes a sum, not its order.
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
    /// `=`, rounded to elements.
    Assign(&'a mut [E]),
    /// `+=`, added in f32 to the elements and rounded once.
    Add(&'a mut [E]),
    /// `=`, in f32.
    AssignF32(&'a mut [f32]),
    /// `+=`, in f32.
    AddF32(&'a mut [f32]),
}

/// Computes `C` (rows of `a`, columns of `b`), row-major.
pub(crate) fn gemm<E: Element>(c: Output<'_, E>, a: Operand<'_, E>, b: Operand<'_, E>) {
    with_micro_kernel::<E>(Product { c, a, b });
}

pub(crate) struct Product<'a, E> {
    pub c: Output<'a, E>,
    pub a: Operand<'a, E>,
    pub b: Operand<'a, E>,
}

/// One block of one slab of `C`: what all threads multiply in one phase, each its tiles.
#[derive(Clone, Copy, Debug)]
struct SlabBlock {
    row: usize,
    height: usize,
    column: usize,
    width: usize,
    start: usize,
    depth: usize,
    a: Packed,
    b: Packed,
}

/// Where the packed operand of a [`SlabBlock`] is.
#[derive(Clone, Copy, Debug)]
struct Packed {
    /// Which of the operand's two buffers.
    buffer: usize,
    /// Whether it is packed for this block; otherwise it is still there from the block before.
    is_new: bool,
}

impl Packed {
    /// The place after `last`: the same buffer if it holds the operand already, the other one, which
    /// `last` does not read, if the operand has to be packed.
    fn after(last: Option<Self>, holds_it: bool) -> Self {
        let last = last.map_or(1, |last| last.buffer);
        Self { buffer: if holds_it { last } else { 1 - last }, is_new: !holds_it }
    }
}

/// All blocks of a product in the order they are multiplied: slab after slab along the rows, then
/// along the columns, and in each slab block after block.
fn slab_blocks(
    [rows, columns, depth]: [usize; 3],
    [slab_rows, slab_columns, block]: [usize; 3],
) -> Vec<SlabBlock> {
    let mut all: Vec<SlabBlock> = Vec::new();
    for column in (0..columns).step_by(slab_columns) {
        for row in (0..rows).step_by(slab_rows) {
            // A contraction of length 0 has one empty block: `C` is set to zero.
            for start in (0..depth.max(1)).step_by(block) {
                let last = all.last();
                let holds_a = last.is_some_and(|l| (l.row, l.start) == (row, start));
                let holds_b = last.is_some_and(|l| (l.column, l.start) == (column, start));
                all.push(SlabBlock {
                    row,
                    height: slab_rows.min(rows - row),
                    column,
                    width: slab_columns.min(columns - column),
                    start,
                    depth: block.min(depth - start),
                    a: Packed::after(last.map(|last| last.a), holds_a),
                    b: Packed::after(last.map(|last| last.b), holds_b),
                });
            }
        }
    }
    all
}

impl<E: Element> KernelTask for Product<'_, E> {
    fn run<K: MicroKernel>(self) {
        let Product { c, a, b } = self;
        debug_assert_eq!(a.depth, b.depth);
        let (rows, columns) = (a.lanes, b.lanes);
        if rows == 0 || columns == 0 {
            return;
        }
        let steps = block_steps::<K>(a.depth.div_ceil(K::DEPTH));
        let slab = |lanes: usize, tile: usize| {
            (SLAB_UNITS / steps / tile * tile).max(tile).min(lanes.next_multiple_of(tile))
        };
        let tile_columns = tile_columns::<K>(rows, columns, rayon::current_num_threads());
        let (slab_rows, slab_columns) = (slab(rows, tile_rows::<K>()), slab(columns, tile_columns));
        let work =
            slab_blocks([rows, columns, a.depth], [slab_rows, slab_columns, steps * K::DEPTH]);

        let buffers = |packed: fn(&SlabBlock) -> Packed| {
            1 + work.iter().map(|of| packed(of).buffer).max().unwrap_or(0)
        };
        // Of rows that are read in place at most a part of a panel is packed.
        let in_place = a.reads_in_place::<K>();
        let a_size = steps * if in_place { K::ROWS } else { slab_rows };
        let b_size = steps * slab_columns;
        let mut packed_a = Scratch::new::<K::Unit>(a_size * buffers(|of| of.a));
        let mut packed_b = Scratch::new::<K::Unit>(b_size * buffers(|of| of.b));
        let target = Target::<E>::new(c);
        // Where the output is rounded, the blocks of a slab are summed here in f32 first.
        let needs_sums = a.depth > steps * K::DEPTH && matches!(target, Target::Round { .. });
        let mut sums = Scratch::new::<f32>(if needs_sums { slab_rows * slab_columns } else { 0 });

        let job = Job::<K, E> {
            a,
            b,
            target,
            work: &work,
            tile_columns,
            in_place,
            packed_a: SharedPointer::new(packed_a.as_mut::<K::Unit>()),
            a_size,
            packed_b: SharedPointer::new(packed_b.as_mut::<K::Unit>()),
            b_size,
            sums: needs_sums.then(|| SharedPointer::new(sums.as_mut::<f32>())),
        };
        run_phases(&job.tasks(), |phase, task| job.run(phase, task));
    }
}

/// A product that is cut up, with the buffers of its packed operands. Phase p packs the operands of
/// `work[p]` and multiplies `work[p - 1]`.
struct Job<'a, K: MicroKernel, E> {
    a: Operand<'a, E>,
    b: Operand<'a, E>,
    target: Target<E>,
    work: &'a [SlabBlock],
    tile_columns: usize,
    /// Whether `K` reads rows of `A` in place. Then only the last rows of a slab are packed, if they
    /// are fewer than a panel.
    in_place: bool,
    packed_a: SharedPointer<K::Unit>,
    /// Units of one of the buffers of `packed_a`.
    a_size: usize,
    packed_b: SharedPointer<K::Unit>,
    b_size: usize,
    sums: Option<SharedPointer<f32>>,
}

impl<K: MicroKernel, E: Element> Job<'_, K, E> {
    /// The number of tasks of each phase: first those that pack, then those that multiply.
    fn tasks(&self) -> Vec<usize> {
        let count = |pack: Option<PackTask>| pack.map_or(0, |pack| pack.tasks);
        let packs = |of| count(self.pack_a(of)) + count(self.pack_b(of));
        let tiles = |of: &SlabBlock| of.height.div_ceil(tile_rows::<K>()) * self.tiles_across(of);
        (0..=self.work.len())
            .map(|phase| {
                let last = phase.checked_sub(1).map(|last| &self.work[last]);
                self.work.get(phase).map_or(0, packs) + last.map_or(0, tiles)
            })
            .collect()
    }

    fn tiles_across(&self, of: &SlabBlock) -> usize {
        of.width.div_ceil(self.tile_columns)
    }

    fn pack_a(&self, of: &SlabBlock) -> Option<PackTask> {
        let SlabBlock { row, height, start, depth, .. } = *of;
        let unpacked = if self.in_place { height / K::ROWS * K::ROWS } else { 0 };
        of.a.is_new.then(|| {
            PackTask::all::<K, true>(&self.a, row + unpacked, height - unpacked, start, depth)
        })
    }

    fn pack_b(&self, of: &SlabBlock) -> Option<PackTask> {
        let SlabBlock { column, width, start, depth, .. } = *of;
        let width = width.next_multiple_of(NR);
        of.b.is_new.then(|| PackTask::all::<K, false>(&self.b, column, width, start, depth))
    }

    /// Does one task of a phase.
    fn run(&self, phase: usize, task: usize) {
        let task = match self.work.get(phase) {
            Some(next) => self.pack(next, task),
            None => Some(task),
        };
        if let Some(tile) = task {
            self.multiply(&self.work[phase - 1], tile);
        }
    }

    /// Does task `task` of those that pack for `of`, or returns its number among the tasks after them.
    fn pack(&self, of: &SlabBlock, task: usize) -> Option<usize> {
        // SAFETY: K runs on this CPU; each buffer has room for its slab, and this task's part of it
        // is nobody else's.
        unsafe {
            let to = self.packed_a.offset(of.a.buffer * self.a_size);
            let task = pack_or_pass::<K, E, true>(self.pack_a(of), &self.a, to, task)?;
            let to = self.packed_b.offset(of.b.buffer * self.b_size);
            pack_or_pass::<K, E, false>(self.pack_b(of), &self.b, to, task)
        }
    }

    /// Multiplies tile number `tile` of `of`.
    fn multiply(&self, of: &SlabBlock, tile: usize) {
        let (a, steps) = (&self.a, K::steps(of.depth));
        // SAFETY: inside the buffers. An earlier phase packed these panels, and no task of this one
        // writes them.
        let packed = |from: SharedPointer<K::Unit>, start: usize, lanes: usize| unsafe {
            std::slice::from_raw_parts(from.at(start).cast_const(), lanes * steps)
        };
        let a_rows = if self.in_place { of.height % K::ROWS } else { of.height };
        let a_rows = a_rows.next_multiple_of(K::ROWS);
        let block = Block::<K> {
            rows: self.in_place.then(|| {
                let rows = &a.data[of.row * a.lane_stride + of.start..];
                (bytemuck::cast_slice(rows), a.lane_stride * size_of::<E>())
            }),
            a: packed(self.packed_a, of.a.buffer * self.a_size, a_rows),
            b: packed(self.packed_b, of.b.buffer * self.b_size, of.width.next_multiple_of(NR)),
            steps,
        };
        let pass =
            Pass { first: of.start == 0, last: of.start + of.depth >= a.depth, sums: self.sums };
        let across = self.tiles_across(of);
        let tile = Tile {
            row: tile / across * tile_rows::<K>(),
            column: tile % across * self.tile_columns,
            columns: self.tile_columns,
            slab_row: of.row,
            slab_column: of.column,
            slab_height: of.height,
            slab_width: of.width,
            c_row: self.b.lanes,
        };
        // SAFETY: K runs on this CPU; each tile of C belongs to one task.
        unsafe {
            K::vectorize(
                #[inline(always)]
                || multiply_tile::<K, E>(&block, self.target, pass, tile),
            )
        }
    }
}

/// Does task `task` of `pack`, or returns its number among the tasks after those of `pack`.
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

/// A pointer that tasks share, each writing elements that no other task touches.
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
    use crate::test_support::{assert_close, at_every_level, random, to_f64};
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

    /// Rows of an odd contraction are packed and those of an even one are read in place; AMX reads
    /// them in place only if they are whole tiles on cache lines.
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

    /// Every block finds its operands packed, in a buffer that nothing writes while the block before
    /// is still multiplied; together the blocks are the whole product, those of a slab in order.
    #[test]
    fn blocks_cover_the_product_and_never_overwrite_what_is_read() {
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
            for of in slab_blocks(shape, slab) {
                let (a, b) = ((of.row, of.start), (of.column, of.start));
                for (Packed { buffer, is_new }, held, operand, read) in
                    [(of.a, &mut held_a, a, read.0), (of.b, &mut held_b, b, read.1)]
                {
                    if is_new {
                        assert_ne!(Some(buffer), read, "{shape:?} {slab:?} {of:?}");
                        held[buffer] = Some(operand);
                    }
                    assert_eq!(held[buffer], Some(operand), "{shape:?} {slab:?} {of:?}");
                }
                read = (Some(of.a.buffer), Some(of.b.buffer));
                for row in of.row..of.row + of.height {
                    for column in of.column..of.column + of.width {
                        let sums = &mut covered[(row * columns + column) * depth.max(1)..];
                        let end = of.start + of.depth.max(1);
                        assert!(sums[..of.start].iter().all(|&n| n == 1), "blocks out of order");
                        sums[of.start..end].iter_mut().for_each(|n| *n += 1);
                    }
                }
            }
            assert!(covered.iter().all(|&n| n == 1), "{shape:?} {slab:?}");
        }
    }
}
