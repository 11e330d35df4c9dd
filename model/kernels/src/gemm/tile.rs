//! One tile of a product over one block of the contraction.

use super::{Output, SharedPointer, tile_rows};
use crate::element::Element;
use crate::micro_kernel::{MOST_ROWS, MicroKernel, NR, RUN, layout};
use crate::scratch::OnCacheLines;

/// The output matrix, shared by tasks that write disjoint tiles.
#[derive(Clone, Copy)]
pub(super) enum Target<E> {
    Round { c: SharedPointer<E>, add: bool },
    Float { c: SharedPointer<f32>, add: bool },
}

impl<E: Element> Target<E> {
    pub(super) fn new(c: Output<'_, E>) -> Self {
        let float = |c: &mut [f32], add| Self::Float { c: SharedPointer::new(c), add };
        match c {
            Output::Assign(c) if E::IS_BF16 => Self::Round { c: SharedPointer::new(c), add: false },
            Output::Assign(c) => float(bytemuck::cast_slice_mut(c), false),
            Output::Add(c) if E::IS_BF16 => Self::Round { c: SharedPointer::new(c), add: true },
            Output::Add(c) => float(bytemuck::cast_slice_mut(c), true),
            Output::AssignF32(c) => float(c, false),
            Output::AddF32(c) => float(c, true),
        }
    }
}

/// The operands of one block of a slab.
pub(super) struct Block<'a, K: MicroKernel> {
    /// Where whole panels of rows are read in place: the bytes of `A` from the first row and step
    /// on, and the distance of its rows in bytes. `a` then holds the last rows only, which are fewer
    /// than a panel.
    pub(super) rows: Option<(&'a [u8], usize)>,
    pub(super) a: &'a [K::Unit],
    pub(super) b: &'a [K::Unit],
    pub(super) steps: usize,
}

impl<K: MicroKernel> Block<'_, K> {
    /// Multiplies the panel of rows that starts at `row`, of which `height` are inside `A`, with the
    /// panel of columns at `b`.
    ///
    /// # Safety
    ///
    /// K runs on this CPU, `b` holds a panel of this block, and its rows of 32 sums, `c_row` apart,
    /// are nobody else's.
    #[inline(always)]
    unsafe fn product(
        &self,
        row: usize,
        height: usize,
        b: *const K::Unit,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        match self.rows {
            Some((rows, stride)) if height == K::ROWS => {
                let end = (row + K::ROWS - 1) * stride + self.steps * size_of::<K::Unit>();
                assert!(end <= rows.len(), "an operand is shorter than its shape");
                // SAFETY: rows of `steps` steps, as checked; the rest is passed on.
                unsafe {
                    let a = rows.as_ptr().add(row * stride);
                    K::multiply_rows(self.steps, a, stride, b, c, c_row, add);
                }
            }
            rows => {
                let first = if rows.is_some() { 0 } else { row };
                let a = self.a[first * self.steps..][..K::ROWS * self.steps].as_ptr();
                // SAFETY: the panel of rows holds `steps` steps; the rest is passed on.
                unsafe { K::multiply::<{ layout::STRIPS }>(self.steps, a, b, c, c_row, add) };
            }
        }
    }
}

/// Which block of the contraction this is.
#[derive(Clone, Copy)]
pub(super) struct Pass {
    pub(super) first: bool,
    pub(super) last: bool,
    /// Where the blocks of the slab are summed before they are rounded, the sums of one call of a
    /// micro-kernel next to each other.
    pub(super) sums: Option<SharedPointer<f32>>,
}

/// A tile and the slab it is in.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// First row and column within the slab.
    pub(super) row: usize,
    pub(super) column: usize,
    /// Columns of a whole tile; the last one of a slab may have fewer.
    pub(super) columns: usize,
    pub(super) slab_row: usize,
    pub(super) slab_column: usize,
    pub(super) slab_height: usize,
    pub(super) slab_width: usize,
    /// Distance of the rows of C.
    pub(super) c_row: usize,
}

/// Multiplies one tile over one block, panel of columns by panel of columns, and in each panel of
/// rows by panel of rows.
///
/// # Safety
///
/// The tile must lie inside the slab, and no other task may write it.
#[inline(always)]
pub(super) unsafe fn multiply_tile<K: MicroKernel, E: Element>(
    block: &Block<'_, K>,
    target: Target<E>,
    pass: Pass,
    tile: Tile,
) {
    let mut edge = OnCacheLines([0.0; MOST_ROWS * NR]);
    let edge = edge.0.as_mut_ptr();
    let bottom = (tile.row + tile_rows::<K>()).min(tile.slab_height);
    let right = (tile.column + tile.columns).min(tile.slab_width);
    for column in (tile.column..right).step_by(NR) {
        let width = NR.min(tile.slab_width - column);
        let b = block.b[column * block.steps..][..NR * block.steps].as_ptr();
        for row in (tile.row..bottom).step_by(K::ROWS) {
            let height = K::ROWS.min(tile.slab_height - row);
            let at = (tile.slab_row + row) * tile.c_row + tile.slab_column + column;
            // SAFETY: rows and columns are inside C, and C's tile is this task's own.
            unsafe {
                match target {
                    Target::Round { c, add } => {
                        // The 32 sums of each row lie together here, not in the rows of C.
                        let panels = tile.slab_width.div_ceil(NR);
                        let panel = (row / K::ROWS * panels + column / NR) * K::ROWS * NR;
                        let sums = match pass.sums {
                            Some(sums) => sums.at(panel),
                            None => edge,
                        };
                        block.product(row, height, b, sums, NR, !pass.first);
                        if pass.last {
                            round_tile::<K, E>(c.at(at), tile.c_row, sums, height, width, add);
                        }
                    }
                    Target::Float { c, add } => {
                        let (c, add) = (c.at(at), add || !pass.first);
                        if pass.first {
                            // The next sums are those of the panel below, or of the first panel
                            // of the next columns.
                            let next = if row + K::ROWS < bottom {
                                c.wrapping_add(K::ROWS * tile.c_row)
                            } else {
                                c.wrapping_sub((row - tile.row) * tile.c_row).wrapping_add(NR)
                            };
                            K::fetch_ahead(next, tile.c_row);
                        }
                        if height == K::ROWS && width == NR {
                            block.product(row, height, b, c, tile.c_row, add);
                        } else {
                            block.product(row, height, b, edge, NR, false);
                            copy_tile(c, tile.c_row, edge, height, width, add);
                        }
                    }
                }
            }
        }
    }
}

/// Writes the `height` x `width` sums of one micro-kernel that are inside `C`, rounded; with `add`,
/// adds them to what is there.
///
/// # Safety
///
/// `height` rows of `width` elements must be writable at `c`.
#[inline(always)]
unsafe fn round_tile<K: MicroKernel, E: Element>(
    c: *mut E,
    c_row: usize,
    sums: *const f32,
    height: usize,
    width: usize,
    add: bool,
) {
    for r in 0..height {
        // SAFETY: row r of the tile.
        unsafe {
            let c = c.add(r * c_row);
            let sums = &*sums.add(r * NR).cast::<[[f32; RUN]; NR / RUN]>();
            if width == NR {
                for (i, sums) in sums.iter().enumerate() {
                    let c = c.add(i * RUN).cast::<[E; RUN]>();
                    let mut sums = *sums;
                    if add {
                        for (sum, &c) in sums.iter_mut().zip(&*c) {
                            *sum += c.to_f32();
                        }
                    }
                    if K::lie_as_units::<E>() {
                        K::store_row(c.cast(), &sums);
                    } else {
                        c.write(sums.map(E::from_f32));
                    }
                }
            } else {
                for (j, &sum) in sums.as_flattened()[..width].iter().enumerate() {
                    let c = c.add(j);
                    let before = if add { (*c).to_f32() } else { 0.0 };
                    c.write(E::from_f32(before + sum));
                }
            }
        }
    }
}

/// As [`round_tile`], in f32.
///
/// # Safety
///
/// `height` rows of `width` elements must be writable at `c`.
#[inline(always)]
unsafe fn copy_tile(
    c: *mut f32,
    c_row: usize,
    sums: *const f32,
    height: usize,
    width: usize,
    add: bool,
) {
    for r in 0..height {
        for j in 0..width {
            // SAFETY: inside `height` rows of `width` sums.
            unsafe {
                let c = c.add(r * c_row + j);
                let sum = *sums.add(r * NR + j);
                *c = if add { *c + sum } else { sum };
            }
        }
    }
}
