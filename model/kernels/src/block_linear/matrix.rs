//! A matrix in blocks, its rows 16 by 16 side by side.

use std::fmt;

use bytemuck::Zeroable;
use rayon::prelude::*;

use super::format::{BlockFormat, Format, panel_bytes, with_format};
use super::lanes::{LANES, Portable};
use crate::scratch::Line;

/// A matrix (rows, columns) in a format of blocks, laid out for products: see `format`.
///
/// It takes the memory of the rows as they are stored, up to 2% more in `q4_k`.
#[derive(Clone)]
pub struct BlockMatrix {
    format: BlockFormat,
    rows: usize,
    columns: usize,
    lines: Vec<Line>,
    panel_bytes: usize,
}

impl fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMatrix({:?}, {} × {})", self.format, self.rows, self.columns)
    }
}

impl BlockMatrix {
    /// The matrix whose row `n` is stored as `row(n)`.
    ///
    /// # Panics
    /// When a row is not whole blocks of `columns` elements.
    pub fn new<'a>(
        format: BlockFormat,
        [rows, columns]: [usize; 2],
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Self {
        with_format!(format, F => Self::laid_out::<F>(format, rows, columns, row))
    }

    fn laid_out<'a, F: Format>(
        format: BlockFormat,
        rows: usize,
        columns: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Self {
        assert!(columns.is_multiple_of(F::LEN), "BlockMatrix: rows are not whole blocks");
        let blocks = columns / F::LEN;
        let panel_bytes = panel_bytes::<F>(columns);
        let panel_lines = panel_bytes / 64;
        // Wide kernels take two panels at a time.
        let panels = rows.div_ceil(2 * LANES) * 2;
        let mut lines = vec![Line::zeroed(); panels * panel_lines];
        lines.par_chunks_exact_mut(panel_lines.max(1)).enumerate().for_each(|(panel, lines)| {
            let first = panel * LANES;
            let stored: Vec<&[u8]> =
                (first.min(rows)..(first + LANES).min(rows)).map(&row).collect();
            for row in &stored {
                assert_eq!(row.len(), blocks * F::BYTES, "BlockMatrix: bytes of a row");
            }
            write_panel::<F>(&stored, blocks, bytemuck::cast_slice_mut(lines));
        });
        Self { format, rows, columns, lines, panel_bytes }
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The format of its blocks.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// Bytes of memory that it takes.
    pub fn len_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// The bytes of 16 rows.
    pub(super) fn panel(&self, panel: usize) -> &[u8] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.lines);
        &bytes[panel * self.panel_bytes..][..self.panel_bytes]
    }

    /// Writes the elements of a row.
    ///
    /// # Panics
    /// When there is no such row, or `out` has another length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "BlockMatrix: a row to decode");
        with_format!(self.format, F => self.decode::<F>(row, out));
    }

    fn decode<F: Format>(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (self.panel(row / LANES), row % LANES);
        let (quants, scales) = panel.split_at(self.columns / F::LEN * F::QUANT_BYTES);
        let blocks = quants.chunks_exact(F::QUANT_BYTES).zip(scales.chunks_exact(F::SCALE_BYTES));
        for (out, (quants, scales)) in out.chunks_exact_mut(F::LEN).zip(blocks) {
            for (group, out) in out.chunks_exact_mut(F::GROUP).enumerate() {
                // SAFETY: plain Rust on the integers and scales of a block.
                let (scale, minimum) = unsafe {
                    let scale = F::scale::<Portable>(scales.as_ptr(), group)[lane];
                    let minimum = F::HAS_MINIMUM
                        .then(|| F::minimum::<Portable>(scales.as_ptr(), group)[lane]);
                    (scale, minimum)
                };
                for (step, out) in out.chunks_exact_mut(4).enumerate() {
                    // SAFETY: as above.
                    let four = unsafe { F::elements::<Portable>(quants.as_ptr(), group, step) };
                    for (out, element) in out.iter_mut().zip(&four[4 * lane..]) {
                        let value = scale * (i32::from(*element) - F::BIAS) as f32;
                        *out = minimum.map_or(value, |minimum| value - minimum);
                    }
                }
            }
        }
    }
}

/// Lays out up to 16 rows of `blocks` blocks. What is left of the panel stays zero.
fn write_panel<F: Format>(rows: &[&[u8]], blocks: usize, panel: &mut [u8]) {
    let words = F::QUANT_BYTES / (4 * LANES);
    let (quants, scales) = panel.split_at_mut(blocks * F::QUANT_BYTES);
    let blocks =
        quants.chunks_exact_mut(F::QUANT_BYTES).zip(scales.chunks_exact_mut(F::SCALE_BYTES));
    for (block, (quants, scales)) in blocks.enumerate() {
        let quants: &mut [u32] = bytemuck::cast_slice_mut(quants);
        for (r, row) in rows.iter().enumerate() {
            let stored = &row[block * F::BYTES..][..F::BYTES];
            for word in 0..words {
                quants[word * LANES + r] = F::quant_word(stored, word);
            }
            F::write_scales(stored, r, scales);
        }
    }
}
