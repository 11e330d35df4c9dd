//! The forward pass: one task per sequence, head and block of queries.

use super::{AttentionShape, Visibility, mask_row};
use crate::element::Element;
use crate::exp::exp2;
use crate::gemm::SharedPointer;
use crate::micro_kernel::{KernelTask, MOST_ROWS, MicroKernel, NR, RUN, SCORES, layout};
use crate::packing::Operand;
use crate::scratch::{OnCacheLines, Scratch};
use crate::simd::{max_lanes, sum_lanes};
use rayon::prelude::*;

pub(super) struct Forward<'a, E> {
    pub o: &'a mut [E],
    pub lse: &'a mut [f32],
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    pub visibility: Visibility<'a>,
    pub shape: AttentionShape,
}

/// Queries of one task: each block of keys is loaded once for all of them.
pub(super) const QUERIES: usize = SCORES;

impl<E: Element> KernelTask for Forward<'_, E> {
    fn run<K: MicroKernel>(self) {
        let Self { o, lse, q, k, v, visibility, shape } = self;
        let AttentionShape { batch, queries, keys, heads, kv_heads, head_dim } = shape;
        let group = heads / kv_heads;

        // Keys and values of every kv head, packed once for all queries.
        let sizes = Sizes::new::<K>(shape);
        let mut packed = Scratch::new::<K::Unit>(batch * kv_heads * sizes.head);
        let packed = packed.as_mut::<K::Unit>();
        packed.par_chunks_mut(sizes.head).enumerate().for_each(|(head, packed)| {
            let first = (head / kv_heads * keys * kv_heads + head % kv_heads) * head_dim;
            let (packed_k, packed_v) = packed.split_at_mut(sizes.k);
            let stride = kv_heads * head_dim;
            // SAFETY: K runs on this CPU.
            unsafe {
                K::vectorize(
                    #[inline(always)]
                    || {
                        let k = Operand {
                            data: &k[first..],
                            lanes: keys,
                            depth: head_dim,
                            lane_stride: stride,
                            depth_stride: 1,
                        };
                        for (i, panel) in packed_k.chunks_exact_mut(sizes.k_panel).enumerate() {
                            k.pack::<K, NR>(panel, i * NR, 0, head_dim);
                        }
                        let v = Operand {
                            data: &v[first..],
                            lanes: head_dim,
                            depth: keys,
                            lane_stride: 1,
                            depth_stride: stride,
                        };
                        for (i, panel) in packed_v.chunks_exact_mut(sizes.v_panel).enumerate() {
                            v.pack::<K, NR>(panel, i * NR, 0, keys);
                        }
                    },
                );
            }
        });

        let blocks = queries.div_ceil(QUERIES);
        let out = SharedPointer::new(o);
        let lse = SharedPointer::new(lse);
        let packed = &*packed;
        (0..batch * heads * blocks).into_par_iter().for_each(|task| {
            let (b, h) = (task / blocks / heads, task / blocks % heads);
            // The last queries see most keys: largest tasks first.
            let first_query = (blocks - 1 - task % blocks) * QUERIES;
            let kv_head = b * kv_heads + h / group;
            let (k, v) = packed[kv_head * sizes.head..][..sizes.head].split_at(sizes.k);
            let block = QueryBlock::<K, E> {
                q,
                k,
                v,
                visibility,
                sizes,
                b,
                h,
                rows: first_query..(first_query + QUERIES).min(queries),
            };
            // SAFETY: K runs on this CPU; the rows of o and lse belong to this task.
            unsafe {
                K::vectorize(
                    #[inline(always)]
                    || block.run(out, lse),
                )
            }
        });
    }
}

/// Units of the packed operands of one kv head.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// A panel of 32 keys, contraction over channels.
    pub k_panel: usize,
    /// All keys.
    pub k: usize,
    /// A panel of 32 channels, contraction over keys, padded to whole score blocks.
    pub v_panel: usize,
    /// Keys and values.
    pub head: usize,
    /// Head dim padded to panels of 32.
    pub width: usize,
}

impl Sizes {
    pub(super) fn new<K: MicroKernel>(shape: AttentionShape) -> Self {
        let keys = shape.keys.next_multiple_of(SCORES);
        let width = shape.head_dim.next_multiple_of(NR);
        let k_panel = K::steps(shape.head_dim) * NR;
        let v_panel = keys / K::DEPTH * NR;
        let k = keys / NR * k_panel;
        Self { k_panel, k, v_panel, head: k + width / NR * v_panel, width }
    }
}

/// A block of queries of one head.
pub(super) struct QueryBlock<'a, K: MicroKernel, E> {
    pub q: &'a [E],
    /// Packed keys of the kv head.
    pub k: &'a [K::Unit],
    /// Packed values of the kv head.
    pub v: &'a [K::Unit],
    pub visibility: Visibility<'a>,
    pub sizes: Sizes,
    pub b: usize,
    pub h: usize,
    pub rows: std::ops::Range<usize>,
}

/// Running maximum and sum of each row; the sum in lanes, added up once at the end.
struct Softmax {
    max: [f32; QUERIES],
    sum: [[f32; RUN]; QUERIES],
}

impl<K: MicroKernel, E: Element> QueryBlock<'_, K, E> {
    /// # Safety
    ///
    /// The block's rows of `out` and `lse` must be no one else's.
    #[inline(always)]
    pub(super) unsafe fn run(&self, out: SharedPointer<E>, lse: SharedPointer<f32>) {
        let shape = self.visibility.shape;
        let AttentionShape { queries, heads, head_dim, .. } = shape;
        let Sizes { k_panel, v_panel, width, .. } = self.sizes;
        let panels = self.rows.len().div_ceil(K::ROWS);
        let steps = K::steps(head_dim);

        let row_stride = heads * head_dim;
        let mut packed_q = Scratch::new::<K::Unit>(panels * K::ROWS * steps);
        let packed_q = packed_q.as_mut::<K::Unit>();
        let q = Operand {
            data: &self.q[self.element(self.rows.start)..],
            lanes: self.rows.len(),
            depth: head_dim,
            lane_stride: row_stride,
            depth_stride: 1,
        };
        for (i, panel) in packed_q.chunks_exact_mut(K::ROWS * steps).enumerate() {
            q.pack_rows::<K>(panel, i * K::ROWS, 0, head_dim);
        }
        let mut sums = Scratch::new::<f32>(panels * K::ROWS * width);
        let sums = sums.as_mut::<f32>();
        sums.fill(0.0);
        let mut probabilities = Scratch::new::<K::Unit>(K::ROWS * SCORES / K::DEPTH);
        let probabilities = probabilities.as_mut::<K::Unit>().as_mut_ptr();
        let mut scores = OnCacheLines([0.0; MOST_ROWS * SCORES]);
        let mut softmax = Softmax { max: [f32::NEG_INFINITY; QUERIES], sum: [[0.0; RUN]; QUERIES] };
        // Powers of two are cheaper than powers of e.
        let factor = shape.scale() * std::f32::consts::LOG2_E;

        let first_key = self.visibility.first_key(self.b, self.rows.clone()) / SCORES * SCORES;
        let end_key = self.visibility.keys(self.b, self.rows.end - 1).1;
        for start in (first_key..end_key).step_by(SCORES) {
            for panel in 0..panels {
                let rows = self.rows.start + panel * K::ROWS
                    ..self.rows.end.min(self.rows.start + (panel + 1) * K::ROWS);
                let end = self.visibility.keys(self.b, rows.end - 1).1;
                if end <= start || self.visibility.first_key(self.b, rows.clone()) >= start + SCORES
                {
                    continue;
                }
                // Columns that any row sees, in whole panels.
                let columns = (end - start).min(SCORES).next_multiple_of(NR);
                let a = packed_q[panel * K::ROWS * steps..][..K::ROWS * steps].as_ptr();
                for column in (0..columns).step_by(NR) {
                    let b = self.k[(start + column) / NR * k_panel..][..k_panel].as_ptr();
                    // SAFETY: both panels hold `steps` steps, scores the rows of 96.
                    unsafe {
                        let c = scores.0.as_mut_ptr().add(column);
                        K::multiply::<{ layout::PACKED }>(steps, a, b, c, SCORES, false);
                    }
                }
                let sums = &mut sums[panel * K::ROWS * width..][..K::ROWS * width];
                for r in 0..K::ROWS {
                    let row = &mut scores.0[r * SCORES..][..columns];
                    // Rows past the last query see nothing and stay zero.
                    let seen = if r < rows.len() {
                        self.visibility.keys(self.b, rows.start + r)
                    } else {
                        (0, 0)
                    };
                    if seen.0 > start || seen.1 < start + columns {
                        mask_row(row, start, seen);
                    }
                    // SAFETY: row r of the probabilities.
                    unsafe {
                        let p = probabilities.add(r * SCORES / K::DEPTH);
                        let (max, sum) = (
                            &mut softmax.max[panel * K::ROWS + r],
                            &mut softmax.sum[panel * K::ROWS + r],
                        );
                        let rescale = softmax_row::<K>(p, row, max, sum, factor);
                        if rescale != 1.0 {
                            for x in &mut sums[r * width..][..width] {
                                *x *= rescale;
                            }
                        }
                    }
                }
                for column in (0..width).step_by(NR) {
                    let b = &self.v[column / NR * v_panel + start / K::DEPTH * NR..];
                    let b = b[..columns / K::DEPTH * NR].as_ptr();
                    // SAFETY: the probabilities hold the rows, the panel `columns` keys.
                    unsafe {
                        let c = sums.as_mut_ptr().add(column);
                        let steps = columns / K::DEPTH;
                        K::multiply::<{ layout::SCORE_ROWS }>(
                            steps,
                            probabilities,
                            b,
                            c,
                            width,
                            true,
                        );
                    }
                }
            }
        }

        for (row, i) in self.rows.clone().enumerate() {
            let (max, sum) = (softmax.max[row], sum_lanes(softmax.sum[row]));
            let normalize = 1.0 / sum;
            // SAFETY: this row is the block's own.
            unsafe {
                lse.at((self.b * heads + self.h) * queries + i)
                    .write(max * shape.scale() + sum.ln());
                let out = std::slice::from_raw_parts_mut(out.at(self.element(i)), head_dim);
                for (out, &x) in out.iter_mut().zip(&sums[row * width..][..head_dim]) {
                    *out = E::from_f32(x * normalize);
                }
            }
        }
    }

    /// Where query `i` of this head starts in `q` and `o`.
    #[inline(always)]
    fn element(&self, i: usize) -> usize {
        let AttentionShape { queries, heads, head_dim, .. } = self.visibility.shape;
        ((self.b * queries + i) * heads + self.h) * head_dim
    }
}

/// Writes `exp(score - max)` of a row, updates its maximum and sum, and returns the factor
/// for what was summed before.
///
/// # Safety
///
/// `scores.len() / K::DEPTH` units must be writable at `p`.
#[inline(always)]
pub(super) unsafe fn softmax_row<K: MicroKernel>(
    p: *mut K::Unit,
    scores: &[f32],
    max: &mut f32,
    sum: &mut [f32; RUN],
    factor: f32,
) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; RUN];
    for run in scores.chunks_exact(RUN) {
        for (lane, &x) in lanes.iter_mut().zip(run) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let old = *max;
    let block = max_lanes(lanes);
    *max = if block > old { block } else { old };
    // A row that has seen nothing yet has no maximum; zero keeps infinities from meeting.
    let shift = if *max == f32::NEG_INFINITY { 0.0 } else { *max * factor };
    let rescale = if *max == old { 1.0 } else { exp2(old * factor - shift) };
    let mut total = sum.map(|x| x * rescale);
    for (i, run) in scores.chunks_exact(RUN).enumerate() {
        let mut out = [0.0; RUN];
        for (out, &x) in out.iter_mut().zip(run) {
            *out = exp2(x.mul_add(factor, -shift));
        }
        for (total, &x) in total.iter_mut().zip(&out) {
            *total += x;
        }
        // SAFETY: run i of the row.
        unsafe { K::store_row(p.add(i * RUN / K::DEPTH), &out) };
    }
    *sum = total;
    rescale
}
