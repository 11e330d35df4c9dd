//! The tiles of the score matrix, and what the kernels do with them.

// What runs on a GPU has indices, not iterators.
#![allow(clippy::needless_range_loop)]

use cubecl::prelude::*;

/// Scores below this are masked.
pub const HIDDEN: f32 = -1.0e30;

/// How a cube cuts the score matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Queries, and keys, of a tile.
    pub side: usize,
    /// D.
    pub head_dim: usize,
    /// Threads of the cube; side² is a multiple of it.
    pub threads: usize,
}

impl Tile {
    /// The widest head whose tiles fit.
    pub const WIDEST_HEAD: usize = 320;

    /// The largest tile whose three operands and scores fit 32 KiB, the shared memory WebGPU
    /// implementations offer.
    pub fn new(head_dim: usize) -> Self {
        let side = [32, 16, 8]
            .into_iter()
            .find(|side| 4 * (3 * side * (head_dim + 1) + side * (side + 1) + 4 * side) <= 32_768)
            .unwrap_or(8);
        Self { side, head_dim, threads: (side * side).min(256) }
    }

    /// Scores of a tile that a thread computes: e = thread + i · threads is row e / side, column
    /// e % side.
    pub fn scores(&self) -> usize {
        self.side * self.side / self.threads
    }

    /// Elements of `side` rows of D that a thread sums, the last one perhaps past the end:
    /// e = thread + i · threads is row e / D, channel e % D.
    pub fn sums(&self) -> usize {
        (self.side * self.head_dim).div_ceil(self.threads)
    }
}

/// Rows `first..first + side` of head `head` of `source` (B, time, heads, D) into `tile`, whose
/// rows are D + 1 apart so that a column meets every bank. Rows past the end are zero.
#[cube]
pub fn load_tile<F: Float>(
    source: &[F],
    tile: &mut Shared<[f32]>,
    batch: usize,
    first: usize,
    time: usize,
    heads: usize,
    head: usize,
    #[comptime] shape: Tile,
) {
    let head_dim = comptime![shape.head_dim];
    let mut e = UNIT_POS as usize;
    while e < comptime![shape.side * shape.head_dim] {
        let row = e / head_dim;
        let d = e % head_dim;
        let t = first + row;
        let mut value = 0.0f32;
        if t < time {
            value = f32::cast_from(source[((batch * time + t) * heads + head) * head_dim + d]);
        }
        tile[row * comptime![shape.head_dim + 1] + d] = value;
        e += comptime![shape.threads];
    }
}

/// Row `a` of one tile times row `b` of another.
#[cube]
pub fn dot_rows(
    left: &Shared<[f32]>,
    a: usize,
    right: &Shared<[f32]>,
    b: usize,
    #[comptime] shape: Tile,
) -> f32 {
    let pitch = comptime![shape.head_dim + 1];
    let mut sum = 0.0f32;
    for d in 0..comptime![shape.head_dim] {
        sum += left[a * pitch + d] * right[b * pitch + d];
    }
    sum
}

/// The first key that each query `first..first + side` of a sequence sees, into `row_first`; 0 where
/// documents are not kept apart. A query past the end has that of the last one.
#[cube]
pub fn load_first_visible(
    first_visible: &[i32],
    row_first: &mut Shared<[u32]>,
    batch: usize,
    first: usize,
    queries: usize,
    #[comptime] bounded: bool,
    #[comptime] shape: Tile,
) {
    let unit = UNIT_POS as usize;
    if unit < comptime![shape.side] {
        let mut key = 0u32;
        if bounded {
            key = first_visible[batch * queries + min(first + unit, queries - 1)] as u32;
        }
        row_first[unit] = key;
    }
}

/// The first key of the first tile of keys that any query of the tile sees.
#[cube]
pub fn first_tile_of_keys(row_first: &Shared<[u32]>, #[comptime] shape: Tile) -> usize {
    let mut lowest = row_first[0];
    for row in 1..comptime![shape.side] {
        lowest = min(lowest, row_first[row]);
    }
    lowest as usize / comptime![shape.side] * comptime![shape.side]
}

/// This thread's sums of `side` rows of D, all zero.
#[cube]
pub fn zero_sums(#[comptime] shape: Tile) -> Array<f32> {
    let mut sums = Array::<f32>::new(comptime![shape.sums()]);
    #[unroll]
    for i in 0..comptime![shape.sums()] {
        sums[i] = 0.0f32;
    }
    sums
}

/// `sums[row, d] += Σ_col weights[row, col] · tile[col, d]`.
#[cube]
pub fn add_products(
    sums: &mut Array<f32>,
    weights: &Shared<[f32]>,
    tile: &Shared<[f32]>,
    #[comptime] shape: Tile,
) {
    let head_dim = comptime![shape.head_dim];
    let pitch = comptime![shape.head_dim + 1];
    let score_pitch = comptime![shape.side + 1];
    #[unroll]
    for i in 0..comptime![shape.sums()] {
        let e = UNIT_POS as usize + i * comptime![shape.threads];
        if e < comptime![shape.side * shape.head_dim] {
            let row = e / head_dim;
            let d = e % head_dim;
            let mut sum = sums[i];
            for col in 0..comptime![shape.side] {
                sum += weights[row * score_pitch + col] * tile[col * pitch + d];
            }
            sums[i] = sum;
        }
    }
}

/// `sums[col, d] += Σ_row weights[row, col] · tile[row, d]`.
#[cube]
pub fn add_transposed_products(
    sums: &mut Array<f32>,
    weights: &Shared<[f32]>,
    tile: &Shared<[f32]>,
    #[comptime] shape: Tile,
) {
    let head_dim = comptime![shape.head_dim];
    let pitch = comptime![shape.head_dim + 1];
    let score_pitch = comptime![shape.side + 1];
    #[unroll]
    for i in 0..comptime![shape.sums()] {
        let e = UNIT_POS as usize + i * comptime![shape.threads];
        if e < comptime![shape.side * shape.head_dim] {
            let col = e / head_dim;
            let d = e % head_dim;
            let mut sum = sums[i];
            for row in 0..comptime![shape.side] {
                sum += weights[row * score_pitch + col] * tile[row * pitch + d];
            }
            sums[i] = sum;
        }
    }
}

/// `sums · scale` into rows `first..first + side` of head `head` of `out` (B, time, heads, D), as
/// far as they exist.
#[cube]
pub fn store_sums<F: Float>(
    sums: &Array<f32>,
    scale: f32,
    out: &mut [F],
    batch: usize,
    first: usize,
    time: usize,
    heads: usize,
    head: usize,
    #[comptime] shape: Tile,
) {
    let head_dim = comptime![shape.head_dim];
    #[unroll]
    for i in 0..comptime![shape.sums()] {
        let e = UNIT_POS as usize + i * comptime![shape.threads];
        if e < comptime![shape.side * shape.head_dim] {
            let t = first + e / head_dim;
            if t < time {
                let to = ((batch * time + t) * heads + head) * head_dim + e % head_dim;
                out[to] = F::cast_from(sums[i] * scale);
            }
        }
    }
}
