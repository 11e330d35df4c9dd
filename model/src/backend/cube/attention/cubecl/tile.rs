//! The tiles of the score matrix, and what the kernels do with them.

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
