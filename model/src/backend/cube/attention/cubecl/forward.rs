//! The forward pass: online softmax, log-sum-exp saved, tiles above the diagonal skipped.

// What runs on a GPU has indices, not iterators, and nests conditions as its barriers need them.
#![allow(clippy::needless_range_loop, clippy::collapsible_if)]

use cubecl::prelude::*;

use super::tile::{
    HIDDEN, Tile, add_products, dot_rows, first_tile_of_keys, load_first_visible, load_tile,
    store_sums, zero_sums,
};

/// `q` (B, Tq, H, D), `k`, `v` (B, Tk, K, D): `o` (B, Tq, H, D), `lse` (B, H, Tq). A cube computes
/// the tile of queries `CUBE_POS_X` of head `CUBE_POS_Y`, batch `CUBE_POS_Z`.
#[cube(launch_unchecked)]
pub fn forward_kernel<F: Float>(
    q: &[F],
    k: &[F],
    v: &[F],
    first_visible: &[i32],
    o: &mut [F],
    lse: &mut [f32],
    queries: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] bounded: bool,
    #[comptime] shape: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let side = comptime![shape.side];
    let threads = comptime![shape.threads];
    let head_dim = comptime![shape.head_dim];
    let score_pitch = comptime![shape.side + 1];
    let mut q_tile = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.head_dim + 1)]);
    let mut kv_tile = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.head_dim + 1)]);
    let mut p = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.side + 1)]);
    let mut row_max = Shared::<[f32]>::new_slice(comptime![shape.side]);
    let mut row_sum = Shared::<[f32]>::new_slice(comptime![shape.side]);
    let mut row_decay = Shared::<[f32]>::new_slice(comptime![shape.side]);
    let mut row_first = Shared::<[u32]>::new_slice(comptime![shape.side]);

    let unit = UNIT_POS as usize;
    let head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let kv_head = head / (heads / kv_heads);
    let first_query = CUBE_POS_X as usize * side;
    let offset = keys - queries;
    let last_query = min(first_query + side, queries) - 1;

    load_tile::<F>(q, &mut q_tile, batch, first_query, queries, heads, head, shape);
    load_first_visible(first_visible, &mut row_first, batch, first_query, queries, bounded, shape);
    if unit < side {
        row_max[unit] = HIDDEN;
        row_sum[unit] = 0.0f32;
    }
    sync_cube();

    let mut sums = zero_sums(shape);
    let mut key = first_tile_of_keys(&row_first, shape);
    while key <= last_query + offset {
        sync_cube();
        load_tile::<F>(k, &mut kv_tile, batch, key, keys, kv_heads, kv_head, shape);
        sync_cube();
        #[unroll]
        for i in 0..comptime![shape.scores()] {
            let e = unit + i * threads;
            let row = e / side;
            let col = e % side;
            let score = dot_rows(&q_tile, row, &kv_tile, col, shape) * scale;
            let j = key + col;
            let visible = j <= first_query + row + offset && j >= row_first[row] as usize;
            p[row * score_pitch + col] = select(visible, score, HIDDEN);
        }
        sync_cube();
        load_tile::<F>(v, &mut kv_tile, batch, key, keys, kv_heads, kv_head, shape);
        if unit < side {
            let start = unit * score_pitch;
            let old = row_max[unit];
            let mut largest = old;
            for col in 0..side {
                largest = max(largest, p[start + col]);
            }
            let mut sum = 0.0f32;
            for col in 0..side {
                let score = p[start + col];
                // A row that sees nothing yet has HIDDEN as its largest score.
                let weight = select(score > HIDDEN, (score - largest).exp(), 0.0f32);
                p[start + col] = weight;
                sum += weight;
            }
            let decay = (old - largest).exp();
            row_decay[unit] = decay;
            row_sum[unit] = row_sum[unit] * decay + sum;
            row_max[unit] = largest;
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime![shape.sums()] {
            let e = unit + i * threads;
            if e < comptime![shape.side * shape.head_dim] {
                sums[i] *= row_decay[e / head_dim];
            }
        }
        add_products(&mut sums, &p, &kv_tile, shape);
        key += side;
    }
    sync_cube();
    #[unroll]
    for i in 0..comptime![shape.sums()] {
        let e = unit + i * threads;
        if e < comptime![shape.side * shape.head_dim] {
            sums[i] /= row_sum[e / head_dim];
        }
    }
    store_sums::<F>(&sums, 1.0f32, o, batch, first_query, queries, heads, head, shape);
    if unit < side {
        let t = first_query + unit;
        if t < queries {
            lse[(batch * heads + head) * queries + t] = row_max[unit] + row_sum[unit].ln();
        }
    }
}
