//! Operands of a product, rearranged for the micro-kernel.
//!
//! A panel holds a few rows of `A` (12) or columns of `B` (32), called lanes here, with the
//! contraction outermost: unit `s` of lane `i` is at `s * width + i`. Rows of `A` for AMX, 32 of
//! them, lie in blocks of 16 steps, unit `s` of such a block at `i * 16 + s`. Lanes and contraction
//! beyond the matrix are zero.

use crate::element::Element;
use crate::micro_kernel::{MOST_ROWS, MR, MicroKernel, NR, RUN, TILE};
use bytemuck::Zeroable;
use std::ops::Range;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A matrix seen as lanes (rows of `A`, columns of `B`) by contraction.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a, E> {
    /// The elements.
    pub data: &'a [E],
    /// Rows of `A` or columns of `B`.
    pub lanes: usize,
    /// Length of the contraction.
    pub depth: usize,
    /// Distance of neighbouring lanes in `data`.
    pub lane_stride: usize,
    /// Distance of neighbours along the contraction; this or `lane_stride` is 1.
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

    /// Packs the lanes from `lane` on and the `depth` elements from `start` of the contraction as the
    /// rows of `A` that `K` takes.
    /// `panel` has `K::steps(depth) * K::ROWS` units.
    #[inline(always)]
    pub(crate) fn pack_rows<K: MicroKernel>(
        &self,
        panel: &mut [K::Unit],
        lane: usize,
        start: usize,
        depth: usize,
    ) {
        match K::ROWS {
            MOST_ROWS => self.pack_tiles::<K>(panel, lane, start, depth),
            _ => self.pack::<K, MR>(panel, lane, start, depth),
        }
    }

    /// As [`Self::pack_rows`], as a strip of columns of `B`.
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

    /// Packs lanes `lane..lane + W` and the `depth` elements from `start` of the contraction.
    /// `panel` has `K::steps(depth) * W` units.
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
        // Calls with lengths that the compiler knows are compiled for them.
        match (self.depth_stride == 1, lanes == W) {
            (true, true) => self.transpose::<K, W>(steps, base, W),
            (true, false) => self.transpose::<K, W>(steps, base, lanes),
            (false, true) => self.interleave::<K, W>(steps, base, W),
            (false, false) => self.interleave::<K, W>(steps, base, lanes),
        }
        // A last step that is not whole, and those beyond the matrix.
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

    /// The unit of `lane` from element `k` of the contraction on, zero from `lanes` and `depth` on.
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

    /// Packs 32 lanes, or those that are left, in blocks of 16 steps.
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

    /// Packs at most 16 steps of at most 16 lanes, whose first element is at `base`.
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

    /// Packs whole steps of `lanes` lanes that are neighbours in memory.
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

    /// Whether a micro-kernel can read rows of `A` as they lie: whole units next to each other along
    /// the contraction. 12 rows must not be whole pages apart, or they push each other out of the
    /// first-level cache; the 6 that a kernel of narrower strips takes at a time do not. Tiles are
    /// slow to load unless their rows lie on cache lines.
    pub(crate) fn reads_in_place<K: MicroKernel>(&self) -> bool {
        let stride = self.lane_stride * size_of::<E>();
        let well_placed = match (K::ROWS, K::STRIP) {
            (MOST_ROWS, _) => {
                stride.is_multiple_of(LINE) && self.data.as_ptr().addr().is_multiple_of(LINE)
            }
            (_, NR) => !stride.is_multiple_of(2048),
            _ => true,
        };
        K::lie_as_units::<E>()
            && self.depth_stride == 1
            && self.depth.is_multiple_of(K::DEPTH * K::STEPS)
            && well_placed
    }

    /// Packs whole steps of `lanes` lanes that are contiguous along the contraction: as 16 x 16 blocks
    /// of units where the micro-kernel transposes such elements, the last of which may overlap the one
    /// before; one by one elsewhere.
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

/// The panels of a slab, packed in tasks that may run at once.
///
/// Where neighbours along the contraction are neighbours in memory, a task packs whole panels;
/// where lanes are, a row of the matrix runs through all panels, and a task packs a few steps of
/// each, so that it reads the matrix in order.
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

/// Steps of one task, and how many of them a panel takes in turn, unless it takes them in blocks.
const STEPS: usize = 16;
const STEPS_IN_TURN: usize = 4;

impl PackTask {
    /// The lanes of a panel: of rows of `A`, or of a strip of `B`.
    const fn width<K: MicroKernel>(a: bool) -> usize {
        if a { K::ROWS } else { K::STRIP }
    }

    /// Panels of `A` or `B` for `lanes` lanes from `lane` on and `depth` elements from `start` on.
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
        // SAFETY: steps of one panel each, of this task.
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

    /// Packs some steps of one panel. Inlined, or it would lack the instructions of `K`.
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
