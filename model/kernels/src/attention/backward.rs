//! The backward pass: one task per sequence and kv head.
//!
//! A task goes over its heads, their blocks of keys, and for each the blocks of queries that
//! see them, always in this order, and sums in f32.

use super::{AttentionShape, Visibility, dot, mask_row};
use crate::element::Element;
use crate::exp::exp2;
use crate::gemm::SharedPointer;
use crate::micro_kernel::{KernelTask, MOST_ROWS, MicroKernel, NR, RUN, SCORES, layout};
use crate::packing::Operand;
use crate::scratch::{OnCacheLines, Scratch};
use rayon::prelude::*;

/// Where the gradients go; every task writes heads of its own.
pub(super) struct Gradients<E> {
    dq: SharedPointer<E>,
    dk: SharedPointer<E>,
    dv: SharedPointer<E>,
}

impl<E> Gradients<E> {
    pub(super) fn new(dq: &mut [E], dk: &mut [E], dv: &mut [E]) -> Self {
        Self { dq: SharedPointer::new(dq), dk: SharedPointer::new(dk), dv: SharedPointer::new(dv) }
    }
}

/// Inputs and outputs of the forward pass, and the gradient of its output.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a, E> {
    pub dout: &'a [E],
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    pub o: &'a [E],
    pub lse: &'a [f32],
}

pub(super) struct Backward<'a, E> {
    pub gradients: Gradients<E>,
    pub saved: Saved<'a, E>,
    pub visibility: Visibility<'a>,
    pub shape: AttentionShape,
}

impl<E: Element> KernelTask for Backward<'_, E> {
    fn run<K: MicroKernel>(self) {
        let this = &self;
        (0..self.shape.batch * self.shape.kv_heads).into_par_iter().for_each(|task| {
            let (b, kv_head) = (task / this.shape.kv_heads, task % this.shape.kv_heads);
            // SAFETY: K runs on this CPU; the heads of the group belong to this task.
            unsafe {
                K::vectorize(
                    #[inline(always)]
                    || this.kv_head::<K>(b, kv_head),
                )
            }
        });
    }
}

/// One head's rows of a (B, T, heads, D) tensor.
#[derive(Clone, Copy)]
struct HeadRows<'a, E> {
    data: &'a [E],
    stride: usize,
    rows: usize,
    head_dim: usize,
}

impl<'a, E: Element> HeadRows<'a, E> {
    #[inline(always)]
    fn new(data: &'a [E], start: usize, stride: usize, rows: usize, head_dim: usize) -> Self {
        Self { data: &data[start..], stride, rows, head_dim }
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &'a [E] {
        &self.data[i * self.stride..][..self.head_dim]
    }

    /// Packs the rows as rows of `A` or columns of `B`, contraction over channels.
    #[inline(always)]
    fn pack_rows<K: MicroKernel, const A: bool>(&self) -> Scratch {
        let Self { data, stride, rows, head_dim } = *self;
        let operand =
            Operand { data, lanes: rows, depth: head_dim, lane_stride: stride, depth_stride: 1 };
        let (steps, width) = (K::steps(head_dim), if A { K::ROWS } else { NR });
        let mut packed = Scratch::new::<K::Unit>(rows.next_multiple_of(SCORES) * steps);
        for (i, panel) in packed.as_mut::<K::Unit>().chunks_exact_mut(steps * width).enumerate() {
            if A {
                operand.pack_rows::<K>(panel, i * width, 0, head_dim);
            } else {
                operand.pack::<K, NR>(panel, i * width, 0, head_dim);
            }
        }
        packed
    }

    /// Packs the channels as lanes, contraction over rows, padded to whole score blocks.
    #[inline(always)]
    fn pack_channels<K: MicroKernel>(&self) -> Scratch {
        let Self { data, stride, rows, head_dim } = *self;
        let operand =
            Operand { data, lanes: head_dim, depth: rows, lane_stride: 1, depth_stride: stride };
        let steps = rows.next_multiple_of(SCORES) / K::DEPTH;
        let mut packed = Scratch::new::<K::Unit>(steps * head_dim.next_multiple_of(NR));
        for (i, panel) in packed.as_mut::<K::Unit>().chunks_exact_mut(steps * NR).enumerate() {
            operand.pack::<K, NR>(panel, i * NR, 0, rows);
        }
        packed
    }
}

impl<E: Element> Backward<'_, E> {
    /// # Safety
    ///
    /// No other task may have this kv head.
    #[inline(always)]
    unsafe fn kv_head<K: MicroKernel>(&self, b: usize, kv_head: usize) {
        let AttentionShape { keys, heads, kv_heads, head_dim, .. } = self.shape;
        let group = heads / kv_heads;
        let width = head_dim.next_multiple_of(NR);
        let padded = keys.next_multiple_of(SCORES);
        let kv_start = (b * keys * kv_heads + kv_head) * head_dim;
        let kv_stride = kv_heads * head_dim;
        let k = HeadRows::new(self.saved.k, kv_start, kv_stride, keys, head_dim);
        let v = HeadRows::new(self.saved.v, kv_start, kv_stride, keys, head_dim);
        let (k_rows, k_channels) = (k.pack_rows::<K, false>(), k.pack_channels::<K>());
        let v_rows = v.pack_rows::<K, false>();
        let mut sums = Scratch::new::<f32>(3 * padded * width);
        let sums = sums.as_mut::<f32>();
        let (dq, dkv) = sums.split_at_mut(padded * width);
        let (dk, dv) = dkv.split_at_mut(padded * width);
        dk.fill(0.0);
        dv.fill(0.0);
        let mut blocks = Scratch::new::<K::Unit>(3 * SCORES * SCORES / K::DEPTH);
        let blocks = blocks.as_mut::<K::Unit>();
        // Δ and lse in base 2, side by side; padding has an infinite lse and so p = 0.
        let mut rows = Scratch::new::<f32>(2 * padded);
        let (delta, lse2) = rows.as_mut::<f32>().split_at_mut(padded);

        for h in kv_head * group..(kv_head + 1) * group {
            let start = (b * keys * heads + h) * head_dim;
            let stride = heads * head_dim;
            let q = HeadRows::new(self.saved.q, start, stride, keys, head_dim);
            let o = HeadRows::new(self.saved.o, start, stride, keys, head_dim);
            let dout = HeadRows::new(self.saved.dout, start, stride, keys, head_dim);
            let lse = &self.saved.lse[(b * heads + h) * keys..][..keys];
            delta.fill(0.0);
            lse2.fill(f32::INFINITY);
            for i in 0..keys {
                delta[i] = dot(dout.row(i), o.row(i));
                lse2[i] = lse[i] * std::f32::consts::LOG2_E;
            }
            let (q_rows, q_channels) = (q.pack_rows::<K, true>(), q.pack_channels::<K>());
            let (dout_rows, dout_channels) =
                (dout.pack_rows::<K, true>(), dout.pack_channels::<K>());
            dq.fill(0.0);
            let operands = Operands::<K> {
                q: (q_rows.as_ref(), q_channels.as_ref()),
                dout: (dout_rows.as_ref(), dout_channels.as_ref()),
                k: (k_rows.as_ref(), k_channels.as_ref()),
                v: v_rows.as_ref(),
                delta,
                lse2,
                head_dim,
                keys,
                padded,
            };
            for key in (0..padded).step_by(SCORES) {
                for query in (key..padded).step_by(SCORES) {
                    let queries = query..(query + SCORES).min(keys);
                    if self.visibility.first_key(b, queries) >= key + SCORES {
                        continue;
                    }
                    // SAFETY: K runs on this CPU, and the sums cover the padded rows.
                    unsafe {
                        operands.scores(blocks, self.visibility, b, query, key);
                        operands.products(blocks, dq, dk, dv, query, key);
                    }
                }
            }
            // SAFETY: head h belongs to this task.
            unsafe { write_rows(self.gradients.dq.at(start), dq, stride, keys, head_dim) };
        }
        // SAFETY: the kv head belongs to this task.
        unsafe {
            write_rows(self.gradients.dk.at(kv_start), dk, kv_stride, keys, head_dim);
            write_rows(self.gradients.dv.at(kv_start), dv, kv_stride, keys, head_dim);
        }
    }
}

/// Packed operands of one head: rows as lanes, channels as lanes.
struct Operands<'a, K: MicroKernel> {
    q: (&'a [K::Unit], &'a [K::Unit]),
    dout: (&'a [K::Unit], &'a [K::Unit]),
    k: (&'a [K::Unit], &'a [K::Unit]),
    v: &'a [K::Unit],
    delta: &'a [f32],
    lse2: &'a [f32],
    head_dim: usize,
    keys: usize,
    padded: usize,
}

/// Units of one block of scores.
const fn block_units(depth: usize) -> usize {
    SCORES * SCORES / depth
}

impl<K: MicroKernel> Operands<'_, K> {
    /// `p` and `ds / sqrt(D)` of a block of queries and a block of keys: `p` and `ds` in units
    /// along queries, then `ds` in units along keys.
    ///
    /// # Safety
    ///
    /// K must run on this CPU.
    #[inline(always)]
    unsafe fn scores(
        &self,
        blocks: &mut [K::Unit],
        visibility: Visibility<'_>,
        b: usize,
        query: usize,
        key: usize,
    ) {
        let steps = K::steps(self.head_dim);
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let factor = scale * std::f32::consts::LOG2_E;
        let units = block_units(K::DEPTH);
        let blocks = &mut blocks[..3 * units];
        let p_columns = blocks.as_mut_ptr();
        let mut s = OnCacheLines([0.0; MOST_ROWS * SCORES]);
        let mut dp = OnCacheLines([0.0; MOST_ROWS * SCORES]);
        for panel in (0..SCORES).step_by(K::ROWS) {
            let rows = query + panel;
            if rows >= self.keys {
                // Past the last query: the products stop before this panel.
                break;
            }
            let columns = columns_seen::<K>(rows, key);
            let a = &self.q.0[rows * steps..][..K::ROWS * steps];
            let da = &self.dout.0[rows * steps..][..K::ROWS * steps];
            for column in (0..columns).step_by(NR) {
                let k = &self.k.0[(key + column) * steps..][..NR * steps];
                let v = &self.v[(key + column) * steps..][..NR * steps];
                // SAFETY: panels of `steps` steps, and rows of 96.
                unsafe {
                    let (s, dp) = (s.0.as_mut_ptr().add(column), dp.0.as_mut_ptr().add(column));
                    K::multiply::<{ layout::PACKED }>(
                        steps,
                        a.as_ptr(),
                        k.as_ptr(),
                        s,
                        SCORES,
                        false,
                    );
                    K::multiply::<{ layout::PACKED }>(
                        steps,
                        da.as_ptr(),
                        v.as_ptr(),
                        dp,
                        SCORES,
                        false,
                    );
                }
            }
            for r in 0..K::ROWS {
                let i = (rows + r).min(self.keys - 1);
                let seen = visibility.keys(b, i);
                if seen.0 > key || seen.1 < key + columns {
                    mask_row(&mut s.0[r * SCORES..][..columns], key, seen);
                }
            }
            for r in (0..K::ROWS).step_by(2) {
                let (row, low) = (panel + r, rows + r);
                let shift = [self.lse2[low], self.lse2[low + 1]];
                let delta = [self.delta[low], self.delta[low + 1]];
                for run in (0..columns).step_by(RUN) {
                    let mut p = [[0.0f32; RUN]; 2];
                    let mut ds = [[0.0f32; RUN]; 2];
                    for side in 0..2 {
                        let at = (r + side) * SCORES + run;
                        let (s, dp) = (&s.0[at..][..RUN], &dp.0[at..][..RUN]);
                        for lane in 0..RUN {
                            p[side][lane] = exp2(s[lane].mul_add(factor, -shift[side]));
                            ds[side][lane] = p[side][lane] * (dp[lane] - delta[side]) * scale;
                        }
                    }
                    // SAFETY: two rows of each block.
                    unsafe {
                        let along_queries = row / K::DEPTH * SCORES + run;
                        K::store_columns(p_columns.add(along_queries), &p[0], &p[1]);
                        let ds_columns = p_columns.add(units);
                        K::store_columns(ds_columns.add(along_queries), &ds[0], &ds[1]);
                        // Units of one element lie the same both ways.
                        if K::DEPTH > 1 {
                            let along_keys = p_columns.add(2 * units);
                            let at = |row: usize| (row * SCORES + run) / K::DEPTH;
                            K::store_row(along_keys.add(at(row)), &ds[0]);
                            K::store_row(along_keys.add(at(row + 1)), &ds[1]);
                        }
                    }
                }
            }
            // SAFETY: this panel's rows of both blocks.
            unsafe {
                let along_queries = p_columns.add(panel / K::DEPTH * SCORES);
                K::turn_columns(along_queries, columns);
                K::turn_columns(along_queries.add(units), columns);
            }
        }
    }

    /// Adds the block's share to `dq`, `dk` and `dv`, rows padded to panels of 32 channels.
    ///
    /// # Safety
    ///
    /// K must run on this CPU, and the blocks must come from [`Self::scores`].
    #[inline(always)]
    unsafe fn products(
        &self,
        blocks: &[K::Unit],
        dq: &mut [f32],
        dk: &mut [f32],
        dv: &mut [f32],
        query: usize,
        key: usize,
    ) {
        let width = self.head_dim.next_multiple_of(NR);
        let units = block_units(K::DEPTH);
        let p = blocks[..units].as_ptr();
        let ds = blocks[units..2 * units].as_ptr();
        let ds_rows = if K::DEPTH > 1 { blocks[2 * units..].as_ptr() } else { ds };
        // Whole panels of queries; those past the last have p = 0 or were not computed.
        let panels = (self.keys - query).min(SCORES).div_ceil(K::ROWS) * K::ROWS;
        for channel in (0..width).step_by(NR) {
            let start = channel / NR * (self.padded / K::DEPTH) * NR;
            let q = &self.q.1[start..][..self.padded / K::DEPTH * NR];
            let dout = &self.dout.1[start..][..self.padded / K::DEPTH * NR];
            let k = &self.k.1[start..][..self.padded / K::DEPTH * NR];
            for panel in (0..SCORES).step_by(K::ROWS) {
                // On the diagonal, queries before the panel's first key see none of it.
                let first = if query == key { panel } else { 0 };
                if first >= panels {
                    break;
                }
                let steps = (panels - first) / K::DEPTH;
                let at = first / K::DEPTH * SCORES + panel;
                let (q, dout) = (
                    &q[(query + first) / K::DEPTH * NR..],
                    &dout[(query + first) / K::DEPTH * NR..],
                );
                let rows = (key + panel) * width + channel;
                let (dk, dv) = (&mut dk[rows..], &mut dv[rows..]);
                // SAFETY: `steps` steps of the blocks and of the panels; rows of the sums.
                unsafe {
                    let (dv, dk) = (dv.as_mut_ptr(), dk.as_mut_ptr());
                    K::multiply::<{ layout::SCORE_COLUMNS }>(
                        steps,
                        p.add(at),
                        dout.as_ptr(),
                        dv,
                        width,
                        true,
                    );
                    K::multiply::<{ layout::SCORE_COLUMNS }>(
                        steps,
                        ds.add(at),
                        q.as_ptr(),
                        dk,
                        width,
                        true,
                    );
                }
            }
            let k = &k[key / K::DEPTH * NR..];
            for panel in (0..panels).step_by(K::ROWS) {
                let steps = columns_seen::<K>(query + panel, key) / K::DEPTH;
                let dq = &mut dq[(query + panel) * width + channel..];
                // SAFETY: as above.
                unsafe {
                    let a = ds_rows.add(panel * SCORES / K::DEPTH);
                    K::multiply::<{ layout::SCORE_ROWS }>(
                        steps,
                        a,
                        k.as_ptr(),
                        dq.as_mut_ptr(),
                        width,
                        true,
                    );
                }
            }
        }
    }
}

/// Columns of the block at `key` that a panel of queries from `row` sees, in whole panels of 32.
#[inline(always)]
fn columns_seen<K: MicroKernel>(row: usize, key: usize) -> usize {
    (row + K::ROWS - key).min(SCORES).next_multiple_of(NR)
}

/// Rounds the rows of `sums` to rows `stride` apart at `to`.
///
/// # Safety
///
/// They must be writable and no one else's.
#[inline(always)]
unsafe fn write_rows<E: Element>(
    to: *mut E,
    sums: &[f32],
    stride: usize,
    rows: usize,
    head_dim: usize,
) {
    let width = head_dim.next_multiple_of(NR);
    for (i, sums) in sums.chunks_exact(width).take(rows).enumerate() {
        // SAFETY: row i.
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(i * stride), head_dim) };
        for (to, &x) in to.iter_mut().zip(sums) {
            *to = E::from_f32(x);
        }
    }
}
