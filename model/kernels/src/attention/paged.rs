//! Attention of new tokens of several sequences to keys and values that lie in pages of 16 tokens.
//!
//! A query gets the same bits whatever else is computed with it: alone or in a long prompt, in one
//! pass or in chunks, beside other sequences, on any number of threads. Keys are always taken in
//! groups of 96 from the first of the sequence on, and every sum has one order:
//!
//! - a score adds up its channels in order, in one f32 sum;
//! - a group's probabilities add up in 16 lanes, key j in lane j mod 16;
//! - a channel of the output adds up the values of a group in order, in one f32 sum from zero, which
//!   is then added to that of the groups before, rescaled to the new maximum.
//!
//! That is the order of [`super::forward`], whose blocks of queries serve for prompts: its products
//! add up in the order of the contraction. For few queries the same sums are computed from the pages
//! as they lie. Keys lie channel by channel in a page, so that 16 scores fill a register; values lie
//! token by token.

use super::forward::{QUERIES, QueryBlock, Sizes, softmax_row};
use super::{AttentionShape, Visibility, mask_row};
use crate::element::Element;
use crate::gemm::SharedPointer;
use crate::micro_kernel::{KernelTask, MicroKernel, NR, RUN, SCORES, with_f32_kernel};
use crate::scratch::Scratch;
use crate::simd::sum_lanes;
use rayon::prelude::*;
use std::ops::Range;

/// Tokens of a page.
pub const PAGE: usize = RUN;

/// Pages of a group of keys.
const GROUP: usize = SCORES / PAGE;

/// Queries of a kv head up to which they are computed without packing keys and values.
const FEW_QUERIES: usize = 8;

/// The heads of attention over pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedShape {
    /// Query heads, `H`, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads, `K`.
    pub kv_heads: usize,
    /// Channels per head, `D`.
    pub head_dim: usize,
}

impl PagedShape {
    /// Elements of a page of keys: (K, D, 16).
    pub fn key_page(self) -> usize {
        self.kv_heads * self.key_head()
    }

    /// Elements of a page of values: (K, 16, D), D padded to a multiple of 16.
    pub fn value_page(self) -> usize {
        self.kv_heads * self.value_head()
    }

    fn key_head(self) -> usize {
        self.head_dim * PAGE
    }

    fn value_head(self) -> usize {
        PAGE * self.width()
    }

    /// Channels of a value in its page.
    fn width(self) -> usize {
        self.head_dim.next_multiple_of(RUN)
    }
}

/// The rows of a pass that belong to one sequence: its tokens from position `start` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagedRows<'a> {
    /// Which rows.
    pub rows: Range<usize>,
    /// Tokens of the sequence before them.
    pub start: usize,
    /// The pages of the sequence, in order, at least up to its last row.
    pub pages: &'a [u32],
}

impl PagedRows<'_> {
    /// Tokens of the sequence up to the last row.
    fn keys(&self) -> usize {
        self.start + self.rows.len()
    }
}

/// Panics unless all rows lie in `rows` and all pages in caches of these lengths.
fn check(op: &str, sequences: &[PagedRows<'_>], rows: usize, cache: [usize; 2], shape: PagedShape) {
    let PagedShape { heads, kv_heads, head_dim } = shape;
    assert!(
        kv_heads > 0 && head_dim > 0 && heads % kv_heads == 0,
        "{op}: {heads} heads are not a multiple of {kv_heads} kv heads"
    );
    let pages = (cache[0] / shape.key_page()).min(cache[1] / shape.value_page());
    for sequence in sequences {
        let needed = sequence.keys().div_ceil(PAGE);
        assert!(sequence.rows.end <= rows, "{op}: {:?} of {rows} rows", sequence.rows);
        assert!(sequence.pages.len() >= needed, "{op}: {needed} pages needed");
        assert!(
            sequence.pages[..needed].iter().all(|page| (*page as usize) < pages),
            "{op}: a page beyond the {pages} of the cache"
        );
    }
}

/// Writes keys and values `k`, `v` (M, K, D) of new tokens to the pages of their sequences.
pub fn paged_keys_values_write<E: Element>(
    cache: (&mut [E], &mut [E]),
    k: &[E],
    v: &[E],
    sequences: &[PagedRows<'_>],
    shape: PagedShape,
) {
    let PagedShape { kv_heads, head_dim, .. } = shape;
    let row = kv_heads * head_dim;
    assert_eq!(k.len(), v.len(), "paged_keys_values_write: k and v differ in length");
    let lengths = [cache.0.len(), cache.1.len()];
    check("paged_keys_values_write", sequences, k.len() / row, lengths, shape);
    let (all_k, all_v) = (SharedPointer::new(cache.0), SharedPointer::new(cache.1));
    let write_head = |head: usize| {
        for sequence in sequences {
            for (n, m) in sequence.rows.clone().enumerate() {
                let position = sequence.start + n;
                let (page, slot) = (sequence.pages[position / PAGE] as usize, position % PAGE);
                let from = m * row + head * head_dim;
                let to_k = page * shape.key_page() + head * shape.key_head() + slot;
                let to_v =
                    page * shape.value_page() + head * shape.value_head() + slot * shape.width();
                for d in 0..head_dim {
                    // SAFETY: inside the pages that were checked; this head is this task's own.
                    unsafe {
                        all_k.at(to_k + d * PAGE).write(k[from + d]);
                        all_v.at(to_v + d).write(v[from + d]);
                    }
                }
            }
        }
    };
    if k.len() < 16 * 1024 {
        (0..kv_heads).for_each(write_head);
    } else {
        (0..kv_heads).into_par_iter().for_each(write_head);
    }
}

/// Attention of queries `q` (M, H, D), each to the keys and values of its sequence up to its own:
/// `o` (M, H, D) and the log-sum-exp `lse` (H, M). Rows of no sequence are left as they are.
pub fn paged_attention_forward<E: Element>(
    o: &mut [E],
    lse: &mut [f32],
    q: &[E],
    cache: (&[E], &[E]),
    sequences: &[PagedRows<'_>],
    shape: PagedShape,
) {
    let op = "paged_attention_forward";
    let row = shape.heads * shape.head_dim;
    assert_eq!(o.len(), q.len(), "{op}: o and q differ in length");
    let rows = q.len() / row.max(1);
    assert_eq!(lse.len(), rows * shape.heads, "{op}: lse is not (H, M)");
    check(op, sequences, rows, [cache.0.len(), cache.1.len()], shape);
    // In f32 whatever the elements: the instructions that multiply pairs of bf16 sum in an order of
    // their own, which few queries could not follow.
    with_f32_kernel(Paged { o, lse, q, cache, sequences, shape });
}

struct Paged<'a, E> {
    o: &'a mut [E],
    lse: &'a mut [f32],
    q: &'a [E],
    cache: (&'a [E], &'a [E]),
    sequences: &'a [PagedRows<'a>],
    shape: PagedShape,
}

impl<E: Element> KernelTask for Paged<'_, E> {
    fn run<K: MicroKernel>(self) {
        let Self { o, lse, q, cache, sequences, shape } = self;
        let PagedShape { heads, kv_heads, head_dim } = shape;
        let rows = lse.len() / heads;
        let group = heads / kv_heads;
        let is_few = |sequence: &&PagedRows<'_>| sequence.rows.len() * group <= FEW_QUERIES;

        let few: Vec<&PagedRows<'_>> = sequences.iter().filter(is_few).collect();
        let (out, lse) = (SharedPointer::new(o), SharedPointer::new(lse));
        (0..few.len() * kv_heads).into_par_iter().for_each(|task| {
            let (sequence, kv_head) = (few[task / kv_heads], task % kv_heads);
            let queries = FewQueries { q, cache, sequence, kv_head, shape };
            // SAFETY: K runs on this CPU; the heads of these rows belong to this task.
            unsafe {
                K::vectorize(
                    #[inline(always)]
                    || queries.run::<K>(out, lse, rows),
                );
            }
        });

        let row = heads * head_dim;
        for sequence in sequences.iter().filter(|sequence| !is_few(sequence)) {
            let own = sequence.rows.start * row..sequence.rows.end * row;
            let mut own_lse = Scratch::new::<f32>(sequence.rows.len() * heads);
            let own_lse = own_lse.as_mut::<f32>();
            // SAFETY: `out` is not used elsewhere while this sequence is computed.
            let own_out = unsafe { std::slice::from_raw_parts_mut(out.at(own.start), own.len()) };
            many_queries::<K, E>(own_out, own_lse, &q[own], cache, sequence, shape);
            for (h, own) in own_lse.chunks_exact(sequence.rows.len()).enumerate() {
                for (m, x) in sequence.rows.clone().zip(own) {
                    // SAFETY: row m of head h, which no other task has.
                    unsafe { lse.at(h * rows + m).write(*x) };
                }
            }
        }
    }
}

/// All rows of one sequence: keys and values are packed once for all of them.
fn many_queries<K: MicroKernel, E: Element>(
    o: &mut [E],
    lse: &mut [f32],
    q: &[E],
    cache: (&[E], &[E]),
    sequence: &PagedRows<'_>,
    shape: PagedShape,
) {
    let PagedShape { heads, kv_heads, head_dim } = shape;
    let (queries, keys) = (sequence.rows.len(), sequence.keys());
    let dense = AttentionShape { batch: 1, queries, keys, heads, kv_heads, head_dim };
    let sizes = Sizes::new::<K>(dense);
    let mut packed = Scratch::new::<K::Unit>(kv_heads * sizes.head);
    let packed = packed.as_mut::<K::Unit>();
    packed.par_chunks_mut(sizes.head).enumerate().for_each(|(kv_head, packed)| {
        // SAFETY: K runs on this CPU.
        unsafe {
            K::vectorize(
                #[inline(always)]
                || pack_head::<K, E>(packed, sizes, cache, sequence, kv_head, shape),
            );
        }
    });
    let packed = &*packed;
    let visibility = Visibility { first_visible: None, shape: dense };
    let (out, lse) = (SharedPointer::new(o), SharedPointer::new(lse));
    let blocks = queries.div_ceil(QUERIES);
    (0..heads * blocks).into_par_iter().for_each(|task| {
        let h = task / blocks;
        // The last queries see most keys: largest tasks first.
        let first_query = (blocks - 1 - task % blocks) * QUERIES;
        let head = &packed[h / (heads / kv_heads) * sizes.head..][..sizes.head];
        let (k, v) = head.split_at(sizes.k);
        let rows = first_query..(first_query + QUERIES).min(queries);
        let block = QueryBlock::<K, E> { q, k, v, visibility, sizes, b: 0, h, rows };
        // SAFETY: K runs on this CPU; the rows of o and lse belong to this task.
        unsafe {
            K::vectorize(
                #[inline(always)]
                || block.run(out, lse),
            );
        }
    });
}

/// Packs the keys and values of one head as panels, zero beyond the last key: what else lies in the
/// last page belongs to nobody.
#[inline(always)]
fn pack_head<K: MicroKernel, E: Element>(
    packed: &mut [K::Unit],
    sizes: Sizes,
    cache: (&[E], &[E]),
    sequence: &PagedRows<'_>,
    kv_head: usize,
    shape: PagedShape,
) {
    const { assert!(NR == 2 * PAGE, "a panel of keys is two pages") };
    const { assert!(K::DEPTH == 1, "pages hold single numbers") };
    let keys = sequence.keys();
    let unit = |x: E| K::unit(|_| x);
    let (packed_k, packed_v) = packed.split_at_mut(sizes.k);
    for (n, panel) in packed_k.chunks_exact_mut(sizes.k_panel).enumerate() {
        for half in 0..2 {
            let first = n * NR + half * PAGE;
            let seen = keys.saturating_sub(first).min(PAGE);
            let page = sequence.pages.get(first / PAGE).filter(|_| seen > 0);
            let from = page.map(|page| {
                let start = *page as usize * shape.key_page() + kv_head * shape.key_head();
                &cache.0[start..start + shape.key_head()]
            });
            for (d, to) in panel.chunks_exact_mut(NR).enumerate() {
                let to = &mut to[half * PAGE..][..PAGE];
                match from {
                    Some(from) => {
                        let from = &from[d * PAGE..][..PAGE];
                        for (j, to) in to.iter_mut().enumerate() {
                            *to = unit(if j < seen { from[j] } else { E::ZERO });
                        }
                    }
                    None => to.fill(unit(E::ZERO)),
                }
            }
        }
    }
    for (n, panel) in packed_v.chunks_exact_mut(sizes.v_panel).enumerate() {
        let width = shape.head_dim.saturating_sub(n * NR).min(NR);
        for (j, to) in panel.chunks_exact_mut(NR).enumerate() {
            if j >= keys {
                to.fill(unit(E::ZERO));
                continue;
            }
            let page = sequence.pages[j / PAGE] as usize;
            let start = page * shape.value_page() + kv_head * shape.value_head();
            let from = &cache.1[start + j % PAGE * shape.width() + n * NR..][..width];
            for (to, from) in to.iter_mut().zip(from) {
                *to = unit(*from);
            }
            to[width..].fill(unit(E::ZERO));
        }
    }
}

/// The few rows of one sequence and the heads of one kv head.
struct FewQueries<'a, E> {
    q: &'a [E],
    cache: (&'a [E], &'a [E]),
    sequence: &'a PagedRows<'a>,
    kv_head: usize,
    shape: PagedShape,
}

/// What is known of a query after some groups of keys, besides its output so far.
#[derive(Clone, Copy)]
struct QueryState {
    max: f32,
    sum: [f32; RUN],
}

impl<E: Element> FewQueries<'_, E> {
    /// # Safety
    ///
    /// These rows of `out` and `lse` must be no one else's.
    #[inline(always)]
    unsafe fn run<K: MicroKernel>(
        &self,
        out: SharedPointer<E>,
        lse: SharedPointer<f32>,
        rows: usize,
    ) {
        let PagedShape { heads, kv_heads, head_dim } = self.shape;
        let (group, width) = (heads / kv_heads, self.shape.width());
        let PagedRows { rows: own, start, pages } = self.sequence;
        let queries = own.len() * group;
        // Row and head of a query.
        let place = |query: usize| (query / group, self.kv_head * group + query % group);

        let mut scratch = Scratch::new::<f32>(queries * (head_dim + width));
        let (q, outputs) = scratch.as_mut::<f32>().split_at_mut(queries * head_dim);
        for (query, q) in q.chunks_exact_mut(head_dim).enumerate() {
            let (i, h) = place(query);
            let from = &self.q[((own.start + i) * heads + h) * head_dim..][..head_dim];
            for (q, x) in q.iter_mut().zip(from) {
                *q = x.to_f32();
            }
        }
        outputs.fill(0.0);
        let nothing = QueryState { max: f32::NEG_INFINITY, sum: [0.0; RUN] };
        let mut states = [nothing; FEW_QUERIES];
        let scale = 1.0 / (head_dim as f32).sqrt();
        let factor = scale * std::f32::consts::LOG2_E;

        for first in (0..self.sequence.keys()).step_by(SCORES) {
            let pages = &pages[first / PAGE..];
            for (query, state) in states.iter_mut().enumerate().take(queries) {
                // One past the last key that this query sees.
                let end = start + place(query).0 + 1;
                if end <= first {
                    continue;
                }
                let seen = (end - first).min(SCORES);
                let pages = &pages[..seen.div_ceil(PAGE)];
                let mut scores = [0.0f32; SCORES];
                let scores = &mut scores[..pages.len() * PAGE];
                self.scores::<K>(scores, &q[query * head_dim..][..head_dim], pages);
                if seen < scores.len() {
                    mask_row(scores, 0, (0, seen));
                }
                let mut p = [0.0f32; SCORES];
                let output = &mut outputs[query * width..][..width];
                // SAFETY: a unit is an f32, and there are as many as scores.
                let rescale = unsafe {
                    let p = p.as_mut_ptr().cast();
                    softmax_row::<K>(p, scores, &mut state.max, &mut state.sum, factor)
                };
                if rescale != 1.0 {
                    for x in &mut *output {
                        *x *= rescale;
                    }
                }
                self.add_values::<K>(output, &p[..seen], pages);
            }
        }

        for (query, state) in states.iter().enumerate().take(queries) {
            let (i, h) = place(query);
            let sum = sum_lanes(state.sum);
            let normalize = 1.0 / sum;
            // SAFETY: this row and head are the task's own.
            unsafe {
                lse.at(h * rows + own.start + i).write(state.max * scale + sum.ln());
                let out = out.at(((own.start + i) * heads + h) * head_dim);
                let out = std::slice::from_raw_parts_mut(out, head_dim);
                for (out, x) in out.iter_mut().zip(&outputs[query * width..]) {
                    *out = E::from_f32(x * normalize);
                }
            }
        }
    }

    /// `scores_j = ⟨q, k_j⟩` for the keys of some pages.
    #[inline(always)]
    fn scores<K: MicroKernel>(&self, scores: &mut [f32], q: &[f32], pages: &[u32]) {
        let size = self.shape.key_head();
        let key = |page: u32| {
            let start = page as usize * self.shape.key_page() + self.kv_head * size;
            &self.cache.0[start..start + size]
        };
        let mut groups = pages.chunks_exact(GROUP);
        for (scores, pages) in scores.chunks_mut(SCORES).zip(&mut groups) {
            let pages: [&[E]; GROUP] = std::array::from_fn(|n| key(pages[n]));
            scores_of_pages::<K, E, GROUP>(scores, q, pages);
        }
        let rest = groups.remainder();
        let done = pages.len() - rest.len();
        for (scores, page) in scores[done * PAGE..].chunks_mut(PAGE).zip(rest) {
            scores_of_pages::<K, E, 1>(scores, q, [key(*page)]);
        }
    }

    /// `output += Σ_j p_j v_j` over the values of some pages.
    #[inline(always)]
    fn add_values<K: MicroKernel>(&self, output: &mut [f32], p: &[f32], pages: &[u32]) {
        let size = self.shape.value_head();
        let value = |page: u32| {
            let start = page as usize * self.shape.value_page() + self.kv_head * size;
            &self.cache.1[start..start + size]
        };
        let mut channel = 0;
        while channel + 4 * RUN <= output.len() {
            let sums = values_of_pages::<K, E, 4>(p, pages, value, output.len(), channel);
            add(&mut output[channel..], &sums);
            channel += 4 * RUN;
        }
        while channel < output.len() {
            let sums = values_of_pages::<K, E, 1>(p, pages, value, output.len(), channel);
            add(&mut output[channel..], &sums);
            channel += RUN;
        }
    }
}

/// `sum + a b`, rounded as the micro-kernel's products are.
#[inline(always)]
fn multiply_add<K: MicroKernel>(a: f32, b: f32, sum: f32) -> f32 {
    if K::FUSED { a.mul_add(b, sum) } else { sum + a * b }
}

#[inline(always)]
fn scores_of_pages<K: MicroKernel, E: Element, const N: usize>(
    scores: &mut [f32],
    q: &[f32],
    pages: [&[E]; N],
) {
    let mut sums = [[0.0f32; PAGE]; N];
    for (d, &q) in q.iter().enumerate() {
        for (sums, page) in sums.iter_mut().zip(&pages) {
            let keys = &page[d * PAGE..d * PAGE + PAGE];
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = multiply_add::<K>(q, key.to_f32(), *sum);
            }
        }
    }
    for (scores, sums) in scores.chunks_exact_mut(PAGE).zip(&sums) {
        scores.copy_from_slice(sums);
    }
}

/// `Σ_j p_j v_j` of `N` runs of channels from `channel` on.
#[inline(always)]
fn values_of_pages<'a, K: MicroKernel, E: Element, const N: usize>(
    p: &[f32],
    pages: &[u32],
    value: impl Fn(u32) -> &'a [E],
    width: usize,
    channel: usize,
) -> [[f32; RUN]; N] {
    let mut sums = [[0.0f32; RUN]; N];
    for (p, page) in p.chunks(PAGE).zip(pages) {
        let page = value(*page);
        for (j, &p) in p.iter().enumerate() {
            let values = &page[j * width + channel..][..N * RUN];
            for (sums, values) in sums.iter_mut().zip(values.chunks_exact(RUN)) {
                for (sum, x) in sums.iter_mut().zip(values) {
                    *sum = multiply_add::<K>(p, x.to_f32(), *sum);
                }
            }
        }
    }
    sums
}

#[inline(always)]
fn add<const N: usize>(output: &mut [f32], sums: &[[f32; RUN]; N]) {
    for (output, sums) in output.chunks_exact_mut(RUN).zip(sums) {
        for (x, sum) in output.iter_mut().zip(sums) {
            *x += sum;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
