//! The backward pass: one kernel for dq, by tiles of queries, and one for dk and dv, by tiles of keys, so
//! that every gradient is summed by one cube in a fixed order.

// What runs on a GPU has indices, not iterators, and nests conditions as its barriers need them.
#![allow(clippy::needless_range_loop, clippy::collapsible_if)]

use cubecl::prelude::*;

use super::tile::{
    Tile, add_products, add_transposed_products, dot_rows, first_tile_of_keys, load_first_visible,
    load_tile, store_sums, zero_sums,
};

/// δ = dout · o of every row: `delta` (B, H, T) of `dout`, `o` (B, T, H, D).
#[cube(launch_unchecked)]
pub fn row_products_kernel<F: Float>(
    dout: &[F],
    o: &[F],
    delta: &mut [f32],
    time: usize,
    heads: usize,
    #[comptime] head_dim: usize,
    #[define(F)] _dtype: ElemType,
) {
    let n = ABSOLUTE_POS;
    if n < delta.len() {
        let t = n % time;
        let head = n / time % heads;
        let batch = n / time / heads;
        let start = ((batch * time + t) * heads + head) * head_dim;
        let mut sum = 0.0f32;
        for d in 0..head_dim {
            sum += f32::cast_from(dout[start + d]) * f32::cast_from(o[start + d]);
        }
        delta[n] = sum;
    }
}

/// `dq` (B, T, H, D); the grid is that of the forward pass.
#[cube(launch_unchecked)]
pub fn query_gradient_kernel<F: Float>(
    dout: &[F],
    q: &[F],
    k: &[F],
    v: &[F],
    lse: &[f32],
    delta: &[f32],
    first_visible: &[i32],
    dq: &mut [F],
    time: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] bounded: bool,
    #[comptime] shape: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let side = comptime![shape.side];
    let threads = comptime![shape.threads];
    let score_pitch = comptime![shape.side + 1];
    let mut q_tile = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.head_dim + 1)]);
    let mut dout_tile = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.head_dim + 1)]);
    let mut kv_tile = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.head_dim + 1)]);
    let mut ds = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.side + 1)]);
    let mut row_lse = Shared::<[f32]>::new_slice(comptime![shape.side]);
    let mut row_delta = Shared::<[f32]>::new_slice(comptime![shape.side]);
    let mut row_first = Shared::<[u32]>::new_slice(comptime![shape.side]);

    let unit = UNIT_POS as usize;
    let head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let kv_head = head / (heads / kv_heads);
    let first_query = CUBE_POS_X as usize * side;
    let last_query = min(first_query + side, time) - 1;

    load_tile::<F>(q, &mut q_tile, batch, first_query, time, heads, head, shape);
    load_tile::<F>(dout, &mut dout_tile, batch, first_query, time, heads, head, shape);
    if unit < side {
        let t = min(first_query + unit, last_query);
        let n = (batch * heads + head) * time + t;
        row_lse[unit] = lse[n];
        row_delta[unit] = delta[n];
    }
    load_first_visible(first_visible, &mut row_first, batch, first_query, time, bounded, shape);
    sync_cube();

    let scores = comptime![shape.scores()];
    let mut sums = zero_sums(shape);
    let mut dp = Array::<f32>::new(scores);

    let mut key = first_tile_of_keys(&row_first, shape);
    while key <= last_query {
        sync_cube();
        load_tile::<F>(v, &mut kv_tile, batch, key, time, kv_heads, kv_head, shape);
        sync_cube();
        #[unroll]
        for i in 0..scores {
            let e = unit + i * threads;
            dp[i] = dot_rows(&dout_tile, e / side, &kv_tile, e % side, shape);
        }
        sync_cube();
        load_tile::<F>(k, &mut kv_tile, batch, key, time, kv_heads, kv_head, shape);
        sync_cube();
        #[unroll]
        for i in 0..scores {
            let e = unit + i * threads;
            let row = e / side;
            let col = e % side;
            let score = dot_rows(&q_tile, row, &kv_tile, col, shape) * scale;
            let j = key + col;
            let visible = j <= first_query + row && j >= row_first[row] as usize;
            let weight = select(visible, (score - row_lse[row]).exp(), 0.0f32);
            ds[row * score_pitch + col] = weight * (dp[i] - row_delta[row]);
        }
        sync_cube();
        add_products(&mut sums, &ds, &kv_tile, shape);
        key += side;
    }
    store_sums::<F>(&sums, scale, dq, batch, first_query, time, heads, head, shape);
}

/// `dk`, `dv` (B, T, K, D): a cube computes the tile of keys `CUBE_POS_X` of key head
/// `CUBE_POS_Y`, batch `CUBE_POS_Z`, over the query heads of the group in order.
#[cube(launch_unchecked)]
pub fn key_value_gradient_kernel<F: Float>(
    dout: &[F],
    q: &[F],
    k: &[F],
    v: &[F],
    lse: &[f32],
    delta: &[f32],
    first_visible: &[i32],
    dk: &mut [F],
    dv: &mut [F],
    time: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    #[comptime] bounded: bool,
    #[comptime] shape: Tile,
    #[define(F)] _dtype: ElemType,
) {
    let side = comptime![shape.side];
    let threads = comptime![shape.threads];
    let score_pitch = comptime![shape.side + 1];
    let mut k_tile = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.head_dim + 1)]);
    let mut v_tile = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.head_dim + 1)]);
    let mut query_tile = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.head_dim + 1)]);
    let mut p = Shared::<[f32]>::new_slice(comptime![shape.side * (shape.side + 1)]);

    let unit = UNIT_POS as usize;
    let kv_head = CUBE_POS_Y as usize;
    let batch = CUBE_POS_Z as usize;
    let group = heads / kv_heads;
    let first_key = CUBE_POS_X as usize * side;

    load_tile::<F>(k, &mut k_tile, batch, first_key, time, kv_heads, kv_head, shape);
    load_tile::<F>(v, &mut v_tile, batch, first_key, time, kv_heads, kv_head, shape);

    let scores = comptime![shape.scores()];
    let mut dk_sums = zero_sums(shape);
    let mut dv_sums = zero_sums(shape);
    let mut ds = Array::<f32>::new(scores);

    for member in 0..group {
        let head = kv_head * group + member;
        let mut query = first_key;
        while query < time {
            sync_cube();
            load_tile::<F>(q, &mut query_tile, batch, query, time, heads, head, shape);
            sync_cube();
            #[unroll]
            for i in 0..scores {
                let e = unit + i * threads;
                let row = e / side;
                let col = e % side;
                let t = query + row;
                let j = first_key + col;
                let mut weight = 0.0f32;
                if t < time && j <= t {
                    let mut visible = true;
                    if bounded {
                        visible = j as i32 >= first_visible[batch * time + t];
                    }
                    if visible {
                        let score = dot_rows(&query_tile, row, &k_tile, col, shape) * scale;
                        weight = (score - lse[(batch * heads + head) * time + t]).exp();
                    }
                }
                p[row * score_pitch + col] = weight;
            }
            sync_cube();
            load_tile::<F>(dout, &mut query_tile, batch, query, time, heads, head, shape);
            sync_cube();
            #[unroll]
            for i in 0..scores {
                let e = unit + i * threads;
                let row = e / side;
                let col = e % side;
                let t = min(query + row, time - 1);
                let dp = dot_rows(&query_tile, row, &v_tile, col, shape);
                let row_delta = delta[(batch * heads + head) * time + t];
                ds[i] = p[row * score_pitch + col] * (dp - row_delta);
            }
            add_transposed_products(&mut dv_sums, &p, &query_tile, shape);
            sync_cube();
            #[unroll]
            for i in 0..scores {
                let e = unit + i * threads;
                p[e / side * score_pitch + e % side] = ds[i];
            }
            load_tile::<F>(q, &mut query_tile, batch, query, time, heads, head, shape);
            sync_cube();
            add_transposed_products(&mut dk_sums, &p, &query_tile, shape);
            query += side;
        }
    }
    store_sums::<F>(&dk_sums, scale, dk, batch, first_key, time, kv_heads, kv_head, shape);
    store_sums::<F>(&dv_sums, 1.0f32, dv, batch, first_key, time, kv_heads, kv_head, shape);
}
