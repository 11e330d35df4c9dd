//! Packing: operands of a product, copied into the order in which a micro-kernel reads them.
//!
//! The rows of `A` and the columns of `B` are called lanes here, because both are packed alike. A
//! panel holds the lanes that one call of a micro-kernel takes, 12 rows or 32 columns, with the
//! contraction outermost: the unit of lane `i` at step `s` is at `s * lanes + i`. Panels of rows for
//! AMX hold 32 rows in tiles of 16 rows by 16 steps, and in a tile the unit of row `i` at step `s` is
//! at `i * 16 + s`. Lanes and steps beyond the matrix are zero.
//!
//! The levels of a product, from slab to unit, are drawn in [`crate::gemm`].

use crate::element::Element;
use crate::micro_kernel::{MOST_ROWS, MR, MicroKernel, NR, RUN, TILE};
use bytemuck::Zeroable;
use std::ops::Range;

/// A matrix as a product sees it: lanes by contraction.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a, E> {
    /// The elements.
    pub data: &'a [E],
    /// Rows of `A` or columns of `B`.
    pub lanes: usize,
    /// Length of the contraction.
    pub depth: usize,
    /// Distance of neighbouring lanes in `data`, in elements.
    pub lane_stride: usize,
    /// Distance of neighbours along the contraction, in elements; this or `lane_stride` is 1.
    pub depth_stride: usize,
}

impl<'a, E: Element> Operand<'a, E> {
    /// A row-major matrix whose rows are the lanes.
    pub(crate) fn rows(data: &'a [E], lanes: usize, depth: usize) -> Self {
        Self { data, lanes, depth, lane_stride: depth, depth_stride: 1 }
    }

    /// A row-major matrix whose columns are the lanes.
    pub(crate) fn columns(data: &'a [E], depth: usize, lanes: usize) -> Self {
        Self { data, lanes, depth, lane_stride: 1, depth_stride: lanes }
    }

    /// Packs a panel of rows of `A`: the lanes from `lane` on, and of the contraction the `depth`
    /// elements from `start` on. `panel` has `K::steps(depth) * K::ROWS` units.
    #[inline(always)]
    pub(crate) fn pack_rows<K: MicroKernel>(
        &self,
        panel: &mut [K::Unit],
        lane: usize,
        start: usize,
        depth: usize,
    ) {
        if K::ROWS_IN_TILES {
            self.pack_tiles::<K>(panel, lane, start, depth);
        } else {
            self.pack::<K, MR>(panel, lane, start, depth);
        }
    }

    /// Packs a strip of columns of `B`, as [`Self::pack_rows`] packs rows.
    #[inline(always)]
    fn pack_strip<K: MicroKernel>(
        &self,
        panel: &mut [K::Unit],
        lane: usize,
        start: usize,
        depth: usize,
    ) {
        match K::STRIP {
            RUN => self.pack::<K, RUN>(panel, lane, start, depth),
            _ => self.pack::<K, NR>(panel, lane, start, depth),
        }
    }

    /// Packs `W` lanes from `lane` on, and of the contraction the `depth` elements from `start` on,
    /// the steps outermost. `panel` has `K::steps(depth) * W` units.
    #[inline(always)]
    pub(crate) fn pack<K: MicroKernel, const W: usize>(
        &self,
        panel: &mut [K::Unit],
        lane: usize,
        start: usize,
        depth: usize,
    ) {
        let lanes = self.lanes.saturating_sub(lane).min(W);
        if lanes == 0 || depth == 0 {
            return panel.fill(K::Unit::zeroed());
        }
        let whole = depth / K::DEPTH;
        let base = lane * self.lane_stride + start * self.depth_stride;
        let steps = &mut panel[..whole * W];
        // Whole panels are the common case: a constant number of lanes gives the compiler loops of
        // constant length.
        match (self.depth_stride == 1, lanes == W) {
            (true, true) => self.transpose::<K, W>(steps, base, W),
            (true, false) => self.transpose::<K, W>(steps, base, lanes),
            (false, true) => self.interleave::<K, W>(steps, base, W),
            (false, false) => self.interleave::<K, W>(steps, base, lanes),
        }
        // The last step, if the contraction ends inside it, and steps beyond the matrix.
        for (s, units) in panel.chunks_exact_mut(W).enumerate().skip(whole) {
            if s * K::DEPTH >= depth {
                units.fill(K::Unit::zeroed());
                continue;
            }
            for (i, unit) in units.iter_mut().enumerate() {
                *unit = self.unit::<K>(base, (i, lanes), (s * K::DEPTH, depth));
            }
        }
    }

    /// The unit of `lane` whose first element is `k` of the contraction; elements from `lanes` and
    /// from `depth` on are zero.
    #[inline(always)]
    fn unit<K: MicroKernel>(
        &self,
        base: usize,
        (lane, lanes): (usize, usize),
        (k, depth): (usize, usize),
    ) -> K::Unit {
        K::unit(|d| {
            if lane < lanes && k + d < depth {
                self.data[base + lane * self.lane_stride + (k + d) * self.depth_stride]
            } else {
                E::ZERO
            }
        })
    }

    /// Packs 32 lanes, or the fewer that are left, as tiles of 16 lanes by 16 steps.
    #[inline(always)]
    fn pack_tiles<K: MicroKernel>(
        &self,
        panel: &mut [K::Unit],
        lane: usize,
        start: usize,
        depth: usize,
    ) {
        let base = lane * self.lane_stride + start * self.depth_stride;
        for (i, tile) in panel.chunks_exact_mut(TILE * TILE).enumerate() {
            let (block, half) = (i / (MOST_ROWS / TILE), i % (MOST_ROWS / TILE));
            let first = block * TILE * K::DEPTH;
            let depth = depth.saturating_sub(first).min(TILE * K::DEPTH);
            let lanes = self.lanes.saturating_sub(lane + half * TILE).min(TILE);
            let base = base + half * TILE * self.lane_stride + first * self.depth_stride;
            if (lanes, depth) == (TILE, TILE * K::DEPTH) {
                self.pack_tile::<K>(tile, base, TILE, TILE * K::DEPTH);
            } else {
                self.pack_tile::<K>(tile, base, lanes, depth);
            }
        }
    }

    /// Packs one tile: at most 16 steps of at most 16 lanes, whose first element is at `base`.
    #[inline(always)]
    fn pack_tile<K: MicroKernel>(
        &self,
        tile: &mut [K::Unit],
        base: usize,
        lanes: usize,
        depth: usize,
    ) {
        if lanes == 0 || depth == 0 {
            return tile.fill(K::Unit::zeroed());
        }
        if !K::lie_as_units::<E>() || !depth.is_multiple_of(K::DEPTH) {
            for (i, unit) in tile.iter_mut().enumerate() {
                *unit = self.unit::<K>(base, (i / TILE, lanes), (i % TILE * K::DEPTH, depth));
            }
            return;
        }
        let steps = depth / K::DEPTH;
        if self.depth_stride == 1 {
            if lanes < TILE || steps < TILE {
                tile.fill(K::Unit::zeroed());
            }
            for (lane, units) in tile.chunks_exact_mut(TILE).enumerate().take(lanes) {
                let row = &self.data[base + lane * self.lane_stride..][..depth];
                let units: &mut [u8] = bytemuck::cast_slice_mut(&mut units[..steps]);
                units.copy_from_slice(bytemuck::cast_slice(row));
            }
            return;
        }
        let mut by_step = [K::Unit::zeroed(); TILE * TILE];
        self.interleave::<K, TILE>(&mut by_step[..steps * TILE], base, lanes);
        // SAFETY: 16 rows of 16 units, both.
        unsafe {
            let from = by_step.as_ptr().cast::<E>();
            K::transpose_16(tile.as_mut_ptr(), TILE, from, TILE * K::DEPTH, TILE);
        }
    }

    /// Packs whole steps of `lanes` lanes that are neighbours in memory (`lane_stride` 1).
    #[inline(always)]
    fn interleave<K: MicroKernel, const W: usize>(
        &self,
        panel: &mut [K::Unit],
        base: usize,
        lanes: usize,
    ) {
        for (s, out) in panel.chunks_exact_mut(W).enumerate() {
            let row = |d: usize| {
                let first = base + (s * K::DEPTH + d) * self.depth_stride;
                &self.data[first..first + lanes]
            };
            let rows = [row(0), row(K::DEPTH - 1)];
            if K::lie_as_units::<E>() {
                let [low, high] = rows.map(|row| row.as_ptr().cast());
                let out = out.as_mut_ptr();
                // SAFETY: both rows and `out` have that many lanes.
                unsafe { K::interleave(out, low, high, lanes) };
            } else {
                for (i, out) in out[..lanes].iter_mut().enumerate() {
                    *out = K::unit(|d| rows[d][i]);
                }
            }
            out[lanes..].fill(K::Unit::zeroed());
        }
    }

    /// Whether `K` reads the rows of this `A` in place instead of packed: their steps are units that
    /// lie next to each other, the contraction is whole steps, and the addresses suit `K`.
    pub(crate) fn reads_in_place<K: MicroKernel>(&self) -> bool {
        K::lie_as_units::<E>()
            && self.depth_stride == 1
            && self.depth.is_multiple_of(K::DEPTH * K::STEPS)
            && K::reads_rows_in_place(self.data.as_ptr().addr(), self.lane_stride * size_of::<E>())
    }

    /// Packs whole steps of `lanes` lanes that are contiguous along the contraction (`depth_stride`
    /// 1): unit by unit, or, where the micro-kernel transposes such elements, 16 lanes by 16 steps at
    /// a time. The last 16 steps may overlap those before and are then written twice.
    #[inline(always)]
    fn transpose<K: MicroKernel, const W: usize>(
        &self,
        panel: &mut [K::Unit],
        base: usize,
        lanes: usize,
    ) {
        const BLOCK: usize = 16;
        let steps = panel.len() / W;
        if lanes < W {
            panel.fill(K::Unit::zeroed());
        }
        if !K::transposes::<E>() || steps < BLOCK {
            for i in 0..lanes {
                let source = &self.data[base + i * self.lane_stride..][..steps * K::DEPTH];
                for s in 0..steps {
                    panel[s * W + i] = K::unit(|d| source[s * K::DEPTH + d]);
                }
            }
            return;
        }
        let last = base + (lanes - 1) * self.lane_stride + steps * K::DEPTH - 1;
        assert!(last < self.data.len(), "a packed operand is shorter than its shape");
        for s in (0..steps).step_by(BLOCK) {
            let s = s.min(steps - BLOCK);
            for lane in (0..lanes).step_by(BLOCK) {
                let first = base + lane * self.lane_stride + s * K::DEPTH;
                // SAFETY: 16 steps of at most 16 lanes, inside the panel and, as checked above,
                // inside the matrix.
                unsafe {
                    let from = self.data.as_ptr().add(first);
                    let to = panel.as_mut_ptr().add(s * W + lane);
                    K::transpose_16(to, W, from, self.lane_stride, (lanes - lane).min(BLOCK));
                }
            }
        }
    }
}

/// The packing of all panels of a block of a slab, cut into tasks that may run at once.
///
/// A task reads the matrix in order. Where neighbours along the contraction are neighbours in
/// memory, it packs whole panels; where neighbouring lanes are, a row of the matrix runs through all
/// panels, and a task packs a few steps of each.
#[derive(Clone, Copy)]
pub(crate) struct PackTask {
    /// How many tasks there are.
    pub tasks: usize,
    lane: usize,
    panels: usize,
    start: usize,
    depth: usize,
}

/// Panels of one task.
const PANELS: usize = 4;

/// Steps of one task.
const STEPS: usize = 16;

/// Steps that such a task packs into one panel before it turns to the next; a micro-kernel that takes
/// more steps at a time ([`MicroKernel::STEPS`]) gets that many.
const STEPS_IN_TURN: usize = 4;

impl PackTask {
    /// Lanes of a panel of rows of `A`, or of a strip of `B`, which is packed as a panel of its own.
    const fn width<K: MicroKernel>(a: bool) -> usize {
        if a { K::ROWS } else { K::STRIP }
    }

    /// The packing of `lanes` lanes of `A` or `B` from `lane` on, and of the contraction the `depth`
    /// elements from `start` on.
    pub(crate) fn all<K: MicroKernel, const A: bool>(
        operand: &Operand<'_, impl Element>,
        lane: usize,
        lanes: usize,
        start: usize,
        depth: usize,
    ) -> Self {
        let panels = lanes.div_ceil(Self::width::<K>(A));
        let tasks = match operand.depth_stride {
            1 => panels.div_ceil(PANELS),
            _ => K::steps(depth).div_ceil(STEPS),
        };
        Self { tasks, lane, panels, start, depth }
    }

    /// Does task `task` of `operand` into the panels at `to`.
    ///
    /// # Safety
    ///
    /// `to` has room for all panels; no other thread may use this task's part.
    #[inline(always)]
    pub(crate) unsafe fn run<K: MicroKernel, E: Element, const A: bool>(
        &self,
        operand: &Operand<'_, E>,
        to: *mut K::Unit,
        task: usize,
    ) {
        let steps = K::steps(self.depth);
        // SAFETY: each call writes steps of one panel, which belong to this task.
        unsafe {
            if operand.depth_stride == 1 {
                for panel in task * PANELS..(task * PANELS + PANELS).min(self.panels) {
                    self.part::<K, E, A>(operand, to, panel, 0..steps);
                }
                return;
            }
            let end = (task * STEPS + STEPS).min(steps);
            let in_turn = STEPS_IN_TURN.max(K::STEPS);
            for first in (task * STEPS..end).step_by(in_turn) {
                for panel in 0..self.panels {
                    self.part::<K, E, A>(operand, to, panel, first..(first + in_turn).min(end));
                }
            }
        }
    }

    /// Packs some steps of one panel. Always inlined into the caller, which is compiled with the
    /// instructions of `K`.
    ///
    /// # Safety
    ///
    /// As [`Self::run`].
    #[inline(always)]
    unsafe fn part<K: MicroKernel, E: Element, const A: bool>(
        &self,
        operand: &Operand<'_, E>,
        to: *mut K::Unit,
        panel: usize,
        steps: Range<usize>,
    ) {
        let width = Self::width::<K>(A);
        let first = panel * K::steps(self.depth) + steps.start;
        // SAFETY: passed on.
        let to =
            unsafe { std::slice::from_raw_parts_mut(to.add(first * width), steps.len() * width) };
        let start = steps.start * K::DEPTH;
        let depth = self.depth.saturating_sub(start).min(steps.len() * K::DEPTH);
        let (lane, start) = (self.lane + panel * width, self.start + start);
        if A {
            operand.pack_rows::<K>(to, lane, start, depth);
        } else {
            operand.pack_strip::<K>(to, lane, start, depth);
        }
    }
}
