//! Dense and product-quantised matrices of a fastText model.
//!
//! Product quantisation (Jégou et al. 2011): a row is cut into parts of `part` columns, each
//! stored as the number of one of 256 centroids; the row's norm may be quantised apart.

use super::reader::ModelReader;
use crate::error::Result;

/// Centroids of a part.
const CENTROIDS: usize = 256;
/// Most columns.
const MAX_COLUMNS: i64 = 1 << 16;
/// Most values of a quantised matrix that is kept dense, which is several times faster.
const MAX_EXPANDED: usize = 1 << 24;

/// A matrix of `rows` × `columns`.
#[derive(Debug)]
pub(super) struct Matrix {
    pub rows: usize,
    pub columns: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Dense(Vec<f32>),
    Quantised { codes: Vec<u8>, centroids: Quantiser, norms: Option<(Vec<u8>, Quantiser)> },
}

/// Centroids of each part, one part after the other; the last part may be narrower.
#[derive(Debug)]
struct Quantiser {
    columns: usize,
    parts: usize,
    part: usize,
    centroids: Vec<f32>,
}

impl Matrix {
    /// Reads a dense matrix.
    pub fn read_dense(reader: &mut ModelReader, what: &str) -> Result<Self> {
        let (rows, columns) = Self::read_shape(reader, what)?;
        let length = reader.count(rows as i64, 4 * columns as u64, what)? * columns;
        let values = Values::Dense(reader.floats(length, what)?);
        Ok(Self { rows, columns, values })
    }

    /// Reads a quantised matrix.
    pub fn read_quantised(reader: &mut ModelReader, what: &str) -> Result<Self> {
        let with_norms = reader.bool("the norm's flag")?;
        let (rows, columns) = Self::read_shape(reader, what)?;
        let length = i64::from(reader.i32("the number of codes")?);
        let length = reader.count(length, 1, "the number of codes")?;
        let codes = reader.bytes(length, "the codes")?;
        let centroids = Quantiser::read(reader)?;
        if centroids.columns != columns || rows.checked_mul(centroids.parts) != Some(length) {
            return Err(reader.bad(format!(
                "{what} of {rows} × {columns} has {length} codes of {} parts for {} columns",
                centroids.parts, centroids.columns
            )));
        }
        let norms = if with_norms {
            let codes = reader.bytes(rows, "the codes of the norms")?;
            let centroids = Quantiser::read(reader)?;
            if centroids.columns != 1 {
                return Err(reader.bad("the norms are no column"));
            }
            Some((codes, centroids))
        } else {
            None
        };
        let matrix = Self { rows, columns, values: Values::Quantised { codes, centroids, norms } };
        Ok(if rows * columns <= MAX_EXPANDED { matrix.expanded() } else { matrix })
    }

    /// The same matrix with its values written out: 64 MiB at most.
    fn expanded(&self) -> Self {
        let mut values = vec![0.0; self.rows * self.columns];
        for (row, values) in values.chunks_mut(self.columns).enumerate() {
            self.add_row(row, values);
        }
        Self { rows: self.rows, columns: self.columns, values: Values::Dense(values) }
    }

    fn read_shape(reader: &mut ModelReader, what: &str) -> Result<(usize, usize)> {
        let rows = reader.i64(what)?;
        let columns = reader.i64(what)?;
        if !(1..=MAX_COLUMNS).contains(&columns) {
            return Err(reader.bad(format!("{what} has {columns} columns")));
        }
        Ok((reader.count(rows, 1, what)?, columns as usize))
    }

    /// Adds the rows `rows`, in their order, to `sum`, of `columns` values.
    pub fn add_rows(&self, rows: &[usize], sum: &mut [f32]) {
        // The width of the published language models.
        const WIDTH: usize = 16;
        if let (Values::Dense(values), Ok(sum)) =
            (&self.values, <&mut [f32; WIDTH]>::try_from(&mut *sum))
        {
            let (values, _) = values.as_chunks::<WIDTH>();
            let mut total = *sum;
            for &row in rows {
                for (total, value) in total.iter_mut().zip(&values[row]) {
                    *total += value;
                }
            }
            *sum = total;
            return;
        }
        for &row in rows {
            self.add_row(row, sum);
        }
    }

    fn add_row(&self, row: usize, sum: &mut [f32]) {
        match &self.values {
            Values::Dense(values) => {
                let row = &values[row * self.columns..(row + 1) * self.columns];
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum += value;
                }
            }
            Values::Quantised { codes, centroids, norms } => {
                let norm = norm(norms, row);
                let codes = &codes[row * centroids.parts..(row + 1) * centroids.parts];
                let parts = sum.chunks_mut(centroids.part).zip(codes);
                for (index, (sum, &code)) in parts.enumerate() {
                    for (sum, value) in sum.iter_mut().zip(centroids.get(index, code)) {
                        *sum += norm * value;
                    }
                }
            }
        }
    }

    /// The inner product of row `row` and `vector`.
    pub fn dot(&self, row: usize, vector: &[f32]) -> f32 {
        let product = |values: &[f32], vector: &[f32]| -> f32 {
            values.iter().zip(vector).map(|(value, other)| value * other).sum()
        };
        match &self.values {
            Values::Dense(values) => {
                product(&values[row * self.columns..(row + 1) * self.columns], vector)
            }
            Values::Quantised { codes, centroids, norms } => {
                let codes = &codes[row * centroids.parts..(row + 1) * centroids.parts];
                let parts = vector.chunks(centroids.part).zip(codes).enumerate();
                let sum: f32 = parts
                    .map(|(index, (vector, &code))| product(centroids.get(index, code), vector))
                    .sum();
                sum * norm(norms, row)
            }
        }
    }
}

fn norm(norms: &Option<(Vec<u8>, Quantiser)>, row: usize) -> f32 {
    norms.as_ref().map_or(1.0, |(codes, centroids)| centroids.get(0, codes[row])[0])
}

impl Quantiser {
    fn read(reader: &mut ModelReader) -> Result<Self> {
        let mut size = |what| reader.i32(what).map(i64::from);
        let columns = size("the quantiser's columns")?;
        let parts = size("the quantiser's parts")?;
        let part = size("the width of a part")?;
        let last = size("the width of the last part")?;
        let sound = (1..=MAX_COLUMNS).contains(&columns)
            && (1..=columns).contains(&part)
            && parts == (columns + part - 1) / part
            && last == columns - (parts - 1) * part;
        if !sound {
            return Err(reader
                .bad(format!("{columns} columns in {parts} parts of {part}, the last of {last}")));
        }
        let centroids = reader.floats(columns as usize * CENTROIDS, "the centroids")?;
        let (columns, parts, part) = (columns as usize, parts as usize, part as usize);
        Ok(Self { columns, parts, part, centroids })
    }

    #[inline]
    fn get(&self, index: usize, code: u8) -> &[f32] {
        let start = index * CENTROIDS * self.part;
        let width = self.part.min(self.columns - index * self.part);
        let start = start + usize::from(code) * width;
        &self.centroids[start..start + width]
    }
}
