//! The rows of a parameter where they lie on disk, and their way from one file to another, a few
//! megabytes at a time.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use altiplano_data::progress::Progress;
use altiplano_model::RowOrder;
use altiplano_model::error::ModelError;
use altiplano_model::infer::StoredMatrix;
use altiplano_model::mapped_file::MappedBytes;
use altiplano_model::quantize::awq::PackedBytes;
use altiplano_model::quantize::{OutOfRange, StoredAs};
use rayon::prelude::*;

use super::parameter::Shape;
use crate::error::{Result, TrainerError};

/// Elements on their way at once.
const CHUNK_ELEMENTS: usize = 1 << 20;

/// In which order a head has its rows of queries and keys. Rotary embedding turns two of them
/// together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryLayout {
    /// Row i and row i + D/2 are turned together: Hugging Face, and here.
    Halves,
    /// Row 2i and row 2i + 1 are turned together: Meta, and GGUF of LLaMA.
    Pairs,
}

impl RotaryLayout {
    /// The row of the other layout that stands at `row` of this one, in heads of `head_dim` rows.
    fn row_of_other(self, row: usize, head_dim: usize) -> usize {
        let (head, place) = (row / head_dim, row % head_dim);
        let half = head_dim / 2;
        let there = match self {
            Self::Halves => 2 * (place % half) + place / half,
            Self::Pairs => place % 2 * half + place / 2,
        };
        head * head_dim + there
    }
}

/// Rows of queries or keys in heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// How they are stored.
    pub layout: RotaryLayout,
    /// Rows of a head.
    pub head_dim: usize,
}

/// Rows and columns of a parameter that lie together in a file.
#[derive(Debug, Clone)]
pub struct Piece<'a> {
    /// Row after row.
    pub bytes: MappedBytes<'a>,
    /// How the elements are stored.
    pub stored: StoredAs,
    /// Which rows of the parameter.
    pub rows: Range<usize>,
    /// Which columns of the parameter.
    pub columns: Range<usize>,
}

/// A parameter on disk, in one piece or more.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    /// Its name in the file, for messages.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// The order of its rows, if they are in heads.
    pub heads: Option<Heads>,
    /// Where it lies: all of it, without overlap.
    pub pieces: Vec<Piece<'a>>,
    /// Where it lies packed, which is all of it too.
    pub packed: Option<Packed<'a>>,
    /// What is added to it.
    pub low_rank: Option<LowRank>,
}

/// A parameter in AWQ's layout.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// Four bits an element, by inputs.
    pub qweight: MappedBytes<'a>,
    /// Four bits for the elements of a group.
    pub qzeros: MappedBytes<'a>,
    /// A scale for the elements of a group.
    pub scales: MappedBytes<'a>,
    /// Inputs of a group.
    pub group: usize,
}

/// A product s B A of two thin matrices.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// A, (r, in), row after row.
    pub a: Arc<[f32]>,
    /// B, (out, r), row after row.
    pub b: Arc<[f32]>,
    /// r.
    pub rank: usize,
    /// s.
    pub scale: f32,
}

impl LowRank {
    /// Adds row `row` of the product to `out`.
    fn add_row(&self, row: usize, out: &mut [f32]) {
        let factors = self.b.get(row * self.rank..(row + 1) * self.rank).unwrap_or_default();
        for (factor, a) in factors.iter().zip(self.a.chunks_exact(out.len().max(1))) {
            out.iter_mut().zip(a).for_each(|(out, a)| *out += self.scale * factor * a);
        }
    }
}

/// Part of a parameter that goes into one file, and how.
#[derive(Debug, Clone)]
pub struct Part {
    /// Which rows, in the layout they are written in.
    pub rows: Range<usize>,
    /// Which columns.
    pub columns: Range<usize>,
    /// The order in which rows in heads are written.
    pub layout: RotaryLayout,
    /// How elements are written.
    pub stored: StoredAs,
}

impl Part {
    /// All of a parameter.
    pub fn whole(shape: Shape, layout: RotaryLayout, stored: StoredAs) -> Self {
        Self { rows: 0..shape.rows, columns: 0..shape.columns, layout, stored }
    }

    /// Bytes it takes; none when its rows are not whole blocks, or longer than memory can be.
    pub fn bytes(&self) -> Option<usize> {
        self.stored.row_bytes(self.columns.len())?.checked_mul(self.rows.len())
    }
}

impl Rows<'_> {
    /// The stored row that stands at `row` in `layout`.
    fn stored_row(&self, row: usize, layout: RotaryLayout) -> usize {
        match self.heads {
            Some(heads) if heads.layout != layout => layout.row_of_other(row, heads.head_dim),
            _ => row,
        }
    }

    /// The elements of a norm gain.
    pub fn to_vector(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.columns];
        self.read(0, RotaryLayout::Halves, &mut values);
        values
    }

    /// The matrix, used where it lies, its rows given in the layout of `RotaryLayout::Halves`.
    ///
    /// # Errors
    /// [`ModelError::WeightTensor`] when it is in several pieces, or its bytes are not those of its shape.
    pub fn to_matrix(&self) -> Result<StoredMatrix> {
        let Shape { rows, columns, .. } = self.shape;
        let order = match self.heads {
            Some(Heads { layout: RotaryLayout::Pairs, head_dim }) => {
                RowOrder::PairsToHalves { head_dim }
            }
            _ => RowOrder::AsStored,
        };
        let matrix = match &self.pieces[..] {
            // What is added to it lies nowhere.
            [piece] if self.low_rank.is_none() => {
                StoredMatrix::mapped(piece.bytes.shared(), piece.stored, [rows, columns], order)
            }
            _ => None,
        };
        matrix.ok_or_else(|| {
            let found = format!("{} pieces of other lengths", self.pieces.len());
            self.unfit(found, "all of the matrix in one piece".into())
        })
    }

    /// Reads the row that stands at `row` in `layout` into `out`, which has a place for every column.
    fn read(&self, row: usize, layout: RotaryLayout, out: &mut [f32]) {
        let row = self.stored_row(row, layout);
        if let Some(Packed { qweight, qzeros, scales, group }) = &self.packed {
            let (inputs, outputs) = (self.shape.columns, self.shape.rows);
            let stored = PackedBytes { inputs, outputs, group: *group, qweight, qzeros, scales };
            return stored.read_row(row, out);
        }
        for piece in self.pieces.iter().filter(|piece| piece.rows.contains(&row)) {
            let Some(length) = piece.stored.row_bytes(piece.columns.len()) else { continue };
            let begin = (row - piece.rows.start) * length;
            let bytes = piece.bytes.get(begin..begin + length);
            if let (Some(bytes), Some(out)) = (bytes, out.get_mut(piece.columns.clone())) {
                piece.stored.decode(bytes, out);
            }
        }
        if let Some(low_rank) = &self.low_rank {
            low_rank.add_row(row, out);
        }
    }

    /// Writes a part of the parameter. Memory is bounded whatever its size.
    ///
    /// # Errors
    /// When `out` cannot be written, whose file is `path`; [`ModelError::WeightTensor`] when a value
    /// is not finite or does not fit the format.
    pub fn write(
        &self,
        part: &Part,
        out: &mut dyn Write,
        path: &Path,
        progress: &Progress,
    ) -> Result<()> {
        let (columns, width) = (part.columns.clone(), part.columns.len());
        let Some(row_bytes) = part.stored.row_bytes(width) else {
            return Err(self.unfit(
                format!("rows of {width} elements"),
                format!("whole blocks of {} for {}", part.stored.block_len(), part.stored.name()),
            ));
        };
        let rows_at_once = (CHUNK_ELEMENTS / self.shape.columns.max(1)).max(1);
        let mut buffer = vec![0u8; rows_at_once.min(part.rows.len()) * row_bytes];
        let mut first = part.rows.start;
        while first < part.rows.end {
            let count = rows_at_once.min(part.rows.end - first);
            let chunk = &mut buffer[..count * row_bytes];
            chunk
                .par_chunks_mut(row_bytes)
                .enumerate()
                .try_for_each_init(
                    || vec![0f32; self.shape.columns],
                    |row, (n, bytes)| {
                        self.read(first + n, part.layout, row);
                        let row = &row[columns.clone()];
                        match row.iter().find(|value| !value.is_finite()) {
                            Some(value) => Err(OutOfRange(*value)),
                            None => part.stored.encode(row, bytes),
                        }
                    },
                )
                .map_err(|OutOfRange(value)| {
                    let expected = match value.is_finite() {
                        true => format!("numbers that {} holds; f32 holds all", part.stored.name()),
                        false => {
                            "finite numbers: the file is damaged, or its training diverged; use \
                                  another checkpoint"
                                .into()
                        }
                    };
                    self.unfit(format!("the value {value}"), expected)
                })?;
            out.write_all(chunk).map_err(TrainerError::io(path))?;
            progress.add(chunk.len() as u64);
            // What was read is not needed again: pages of the file do not pile up.
            self.pieces.iter().for_each(|piece| piece.bytes.release());
            first += count;
        }
        Ok(())
    }

    fn unfit(&self, found: String, expected: String) -> TrainerError {
        let path = self.pieces.first().map(|piece| piece.bytes.path().to_path_buf());
        let path = path.unwrap_or_default();
        ModelError::WeightTensor { path, tensor: self.name.clone(), found, expected }.into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use altiplano_data::progress::{ProgressMode, Work};
    use altiplano_model::mapped_file::MappedFile;

    #[test]
    fn the_layouts_undo_each_other() {
        for head_dim in [2, 8, 64, 128] {
            for row in 0..3 * head_dim {
                let [halves, pairs] = [RotaryLayout::Halves, RotaryLayout::Pairs];
                let there = halves.row_of_other(row, head_dim);
                assert_eq!(pairs.row_of_other(there, head_dim), row);
                assert_eq!(there / head_dim, row / head_dim);
            }
        }
        // The first rows of a head in halves are the even ones in pairs.
        let order: Vec<_> = (0..8).map(|row| RotaryLayout::Halves.row_of_other(row, 8)).collect();
        assert_eq!(order, [0, 2, 4, 6, 1, 3, 5, 7]);
    }

    /// Scores of turned queries and keys are the same in both layouts, each turned in its own way.
    #[test]
    fn attention_scores_agree_in_both_layouts() {
        let head_dim = 8;
        let vector = |seed: f32| (0..head_dim).map(|n| (seed * (n + 1) as f32).sin()).collect();
        let (q, k): (Vec<f32>, Vec<f32>) = (vector(0.7), vector(1.3));
        let turn = |x: &[f32], position: f32, pairs: bool| {
            let half = head_dim / 2;
            let mut out = vec![0f32; head_dim];
            for i in 0..half {
                let angle = position * 10_000f32.powf(-(i as f32) / half as f32);
                let (a, b) = if pairs { (2 * i, 2 * i + 1) } else { (i, i + half) };
                out[a] = x[a] * angle.cos() - x[b] * angle.sin();
                out[b] = x[a] * angle.sin() + x[b] * angle.cos();
            }
            out
        };
        let to_pairs = |x: &[f32]| -> Vec<f32> {
            (0..head_dim).map(|row| x[RotaryLayout::Pairs.row_of_other(row, head_dim)]).collect()
        };
        let dot = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).map(|(a, b)| a * b).sum::<f32>();
        let halves = dot(turn(&q, 5.0, false), turn(&k, 2.0, false));
        let pairs = dot(turn(&to_pairs(&q), 5.0, true), turn(&to_pairs(&k), 2.0, true));
        assert!((halves - pairs).abs() < 1e-6, "{halves} and {pairs}");
    }

    /// Pieces by columns and by rows come together, and are written in any layout and format.
    #[test]
    fn pieces_are_one_parameter() {
        let folder = tempfile::tempdir().unwrap();
        // 8 rows of 4: element = 10 · row + column. Rows 0 to 3 in two pieces of 2 columns.
        let value = |row: usize, column: usize| (10 * row + column) as f32;
        let file = |name: &str, rows: Range<usize>, columns: Range<usize>| {
            let bytes: Vec<u8> = rows
                .flat_map(|row| columns.clone().map(move |column| value(row, column)))
                .flat_map(f32::to_le_bytes)
                .collect();
            std::fs::write(folder.path().join(name), bytes).unwrap();
            MappedFile::open(&folder.path().join(name)).unwrap()
        };
        let files = [("a", 0..4, 0..2), ("b", 0..4, 2..4), ("c", 4..8, 0..4)];
        let maps = files.clone().map(|(name, rows, columns)| file(name, rows, columns));
        let pieces = files.iter().zip(&maps).map(|((_, rows, columns), map)| Piece {
            bytes: map.part(0..map.len()).unwrap(),
            stored: StoredAs::F32,
            rows: rows.clone(),
            columns: columns.clone(),
        });
        let rows = Rows {
            name: "x".into(),
            shape: Shape { rows: 8, columns: 4, is_vector: false },
            heads: Some(Heads { layout: RotaryLayout::Pairs, head_dim: 4 }),
            pieces: pieces.collect(),
            packed: None,
            low_rank: None,
        };
        let write = |part: Part| {
            let progress = Progress::new(ProgressMode::Hidden, "x", Work::bytes(0));
            let mut out = Vec::new();
            rows.write(&part, &mut out, Path::new("out"), &progress).unwrap();
            assert_eq!(Some(out.len()), part.bytes());
            let mut values = vec![0f32; out.len() / part.stored.block_bytes()];
            part.stored.decode(&out, &mut values);
            values
        };
        let as_stored = write(Part::whole(rows.shape, RotaryLayout::Pairs, StoredAs::F32));
        let expected: Vec<f32> =
            (0..8).flat_map(|row| (0..4).map(move |column| value(row, column))).collect();
        assert_eq!(as_stored, expected);
        let halves = write(Part::whole(rows.shape, RotaryLayout::Halves, StoredAs::Bf16));
        let firsts: Vec<f32> = halves.iter().step_by(4).copied().collect();
        assert_eq!(firsts, [0.0, 20.0, 10.0, 30.0, 40.0, 60.0, 50.0, 70.0]);
        let part =
            Part { rows: 2..6, columns: 1..3, layout: RotaryLayout::Pairs, stored: StoredAs::F32 };
        assert_eq!(write(part), [21.0, 22.0, 31.0, 32.0, 41.0, 42.0, 51.0, 52.0]);
    }
}
