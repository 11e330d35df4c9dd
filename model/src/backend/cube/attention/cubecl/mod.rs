//! The op in CubeCL, for every runtime and head width: how it is launched. All products are f32 in
//! shared memory; the kernels for tensor cores are in CUDA C++.

mod backward;
mod forward;
mod tile;

use cubecl::{CubeCount, CubeDim};

use self::tile::Tile;
use super::{Backward, Forward, Inputs};
use crate::backend::cube::nvidia::before_other_work;
use crate::backend::cube::tensor::{element, elements, threads, units};

/// The widest head whose tiles fit.
pub(super) const WIDEST_HEAD: usize = Tile::WIDEST_HEAD;

/// The grid with a cube for every `side` rows of `time`, head and sequence.
fn grid(time: usize, side: usize, heads: usize, batch: usize) -> CubeCount {
    before_other_work();
    CubeCount::Static(time.div_ceil(side) as u32, heads as u32, batch as u32)
}

pub(super) fn forward(Forward { inputs, o, lse }: Forward) {
    let Inputs { q, k, v, first_visible, bounded, shape } = inputs;
    let tile = Tile::new(shape.head_dim);
    let (client, dtype) = (q.client.clone(), element(q.dtype));
    // SAFETY: a cube reads rows inside `q`, `k` and `v`, and writes the rows of its tile that
    // exist.
    unsafe {
        forward::forward_kernel::launch_unchecked(
            &client,
            grid(shape.queries, tile.side, shape.heads, shape.batch),
            CubeDim::new_1d(tile.threads as u32),
            q.into_buffer_arg(),
            k.into_buffer_arg(),
            v.into_buffer_arg(),
            first_visible.into_buffer_arg(),
            o.into_buffer_arg(),
            lse.into_buffer_arg(),
            shape.queries,
            shape.keys,
            shape.heads,
            shape.kv_heads,
            shape.scale(),
            bounded,
            tile,
            dtype,
        );
    }
}

pub(super) fn backward(call: Backward) {
    let Backward { inputs, dout, o, lse, delta, dq, dk, dv } = call;
    let Inputs { q, k, v, first_visible, bounded, shape } = inputs;
    let tile = Tile::new(shape.head_dim);
    let cube = CubeDim::new_1d(tile.threads as u32);
    let (client, dtype) = (q.client.clone(), element(q.dtype));
    // SAFETY: `delta` and `lse` have one entry a row of `q`; a cube reads rows inside its inputs
    // and writes the rows of its tile that exist.
    unsafe {
        backward::row_products_kernel::launch_unchecked(
            &client,
            units(elements(&delta)),
            threads(),
            dout.clone().into_buffer_arg(),
            o.into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            shape.queries,
            shape.heads,
            shape.head_dim,
            dtype,
        );
        backward::query_gradient_kernel::launch_unchecked(
            &client,
            grid(shape.queries, tile.side, shape.heads, shape.batch),
            cube,
            dout.clone().into_buffer_arg(),
            q.clone().into_buffer_arg(),
            k.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            lse.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            first_visible.clone().into_buffer_arg(),
            dq.into_buffer_arg(),
            shape.queries,
            shape.heads,
            shape.kv_heads,
            shape.scale(),
            bounded,
            tile,
            dtype,
        );
        backward::key_value_gradient_kernel::launch_unchecked(
            &client,
            grid(shape.queries, tile.side, shape.kv_heads, shape.batch),
            cube,
            dout.into_buffer_arg(),
            q.into_buffer_arg(),
            k.into_buffer_arg(),
            v.into_buffer_arg(),
            lse.into_buffer_arg(),
            delta.into_buffer_arg(),
            first_visible.into_buffer_arg(),
            dk.into_buffer_arg(),
            dv.into_buffer_arg(),
            shape.queries,
            shape.heads,
            shape.kv_heads,
            shape.scale(),
            bounded,
            tile,
            dtype,
        );
    }
}
