//! Matrices of weights in the format they are stored in, mapped or in memory; blocks of small integers in
//! the layout of their kernels.

use altiplano_kernels::{BlockFormat, BlockMatrix, RowOrder, StoredWeight, WeightFormat};
use burn::tensor::{DType, Tensor, TensorData};
use half::bf16;
use rayon::prelude::*;

use crate::backend;
use crate::error::{ModelError, Result};
use crate::mapped_file::SharedBytes;
use crate::ops::LinearWeight;
use crate::quantize::{OutOfRange, StoredAs};

/// A matrix (out, in) on the CPU, in the format it is stored in.
#[derive(Debug, Clone)]
pub struct StoredMatrix {
    layout: Layout,
    stored: StoredAs,
    rows: usize,
    columns: usize,
}

/// How the elements lie in memory.
#[derive(Debug, Clone)]
enum Layout {
    /// Row after row.
    Rows { bytes: MatrixBytes, row_bytes: usize, order: RowOrder },
    /// Several rows side by side.
    Blocks(BlockMatrix),
}

#[derive(Debug, Clone)]
enum MatrixBytes {
    Mapped(SharedBytes),
    Owned(Vec<u8>),
}

impl MatrixBytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// The row of a matrix in `order` that is output `row` of a pass.
fn stored_row(order: RowOrder, row: usize) -> usize {
    match order {
        RowOrder::AsStored => row,
        RowOrder::PairsToHalves { head_dim } => {
            let (place, half) = (row % head_dim, head_dim / 2);
            row - place + 2 * (place % half) + place / half
        }
    }
}

impl StoredMatrix {
    /// A matrix (rows, columns) that lies in a mapped file, its rows in `order`; none when it has
    /// another length.
    pub fn mapped(
        bytes: SharedBytes,
        stored: StoredAs,
        [rows, columns]: [usize; 2],
        order: RowOrder,
    ) -> Option<Self> {
        let row_bytes = stored.row_bytes(columns)?;
        (row_bytes.checked_mul(rows)? == bytes.len()).then_some(())?;
        let layout = Layout::Rows { bytes: MatrixBytes::Mapped(bytes), row_bytes, order };
        Some(Self { layout, stored, rows, columns })
    }

    /// A copy of a matrix in memory, in its own number format.
    pub fn of_tensor(matrix: &Tensor<2>) -> Self {
        let [rows, columns] = matrix.dims();
        let data = matrix.to_data();
        let (data, stored) = match data.dtype() {
            DType::BF16 => (data, StoredAs::Bf16),
            DType::F16 => (data, StoredAs::F16),
            _ => (data.convert_dtype(DType::F32), StoredAs::F32),
        };
        Self::in_memory(data.as_bytes().to_vec(), stored, [rows, columns])
    }

    /// A matrix whose rows lie in memory in the order of the outputs.
    fn in_memory(bytes: Vec<u8>, stored: StoredAs, [rows, columns]: [usize; 2]) -> Self {
        let row_bytes = bytes.len().checked_div(rows).unwrap_or(0);
        let bytes = MatrixBytes::Owned(bytes);
        let layout = Layout::Rows { bytes, row_bytes, order: RowOrder::AsStored };
        Self { layout, stored, rows, columns }
    }

    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// How its elements are stored.
    pub fn stored_as(&self) -> StoredAs {
        self.stored
    }

    /// Bytes of all elements.
    pub fn len_bytes(&self) -> usize {
        match &self.layout {
            Layout::Rows { bytes, .. } => bytes.get().len(),
            Layout::Blocks(blocks) => blocks.len_bytes(),
        }
    }

    /// Gives the pages of a mapped matrix back, which come from the file again when they are read.
    pub(super) fn release(&self) {
        if let Layout::Rows { bytes: MatrixBytes::Mapped(bytes), .. } = &self.layout {
            bytes.release();
        }
    }

    /// Writes the elements of a row, counted as a pass counts its outputs.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        match &self.layout {
            Layout::Rows { bytes, row_bytes, order } => {
                let start = stored_row(*order, row) * row_bytes;
                self.stored.decode(&bytes.get()[start..][..*row_bytes], out);
            }
            Layout::Blocks(blocks) => blocks.decode_row(row, out),
        }
    }

    /// The same matrix in the layout of the products of its blocks, in memory, where its format has
    /// such. The pages of the file that it lay in are given back.
    pub(super) fn laid_out_for_products(self) -> Self {
        let format = match self.stored {
            StoredAs::Q8_0 => BlockFormat::Q8_0,
            StoredAs::Q5_0 => BlockFormat::Q5_0,
            StoredAs::Q4_0 => BlockFormat::Q4_0,
            StoredAs::Q4K => BlockFormat::Q4K,
            StoredAs::Q6K => BlockFormat::Q6K,
            StoredAs::F32 | StoredAs::F16 | StoredAs::Bf16 => return self,
        };
        let Layout::Rows { bytes, row_bytes, order } = &self.layout else { return self };
        let blocks = BlockMatrix::new(format, self.shape(), |row| {
            &bytes.get()[stored_row(*order, row) * row_bytes..][..*row_bytes]
        });
        self.release();
        Self { layout: Layout::Blocks(blocks), ..self }
    }

    /// The same matrix in memory in another format, its rows in the order of the outputs. A row that
    /// is not whole blocks of the format stays what it is.
    ///
    /// # Errors
    /// A value that the format cannot hold.
    pub fn converted(&self, stored: StoredAs) -> std::result::Result<Self, OutOfRange> {
        let Some(row_bytes) = stored.row_bytes(self.columns).filter(|_| stored != self.stored)
        else {
            return Ok(self.clone());
        };
        let mut bytes = vec![0; self.rows * row_bytes];
        bytes.par_chunks_exact_mut(row_bytes.max(1)).enumerate().try_for_each_init(
            || vec![0.0; self.columns],
            |values, (row, bytes)| {
                self.decode_row(row, values);
                stored.encode(values, bytes)
            },
        )?;
        Ok(Self::in_memory(bytes, stored, self.shape()))
    }

    /// All elements as a tensor of the CPU's.
    pub fn to_data(&self) -> TensorData {
        let mut values = vec![0.0; self.rows * self.columns];
        values
            .par_chunks_exact_mut(self.columns.max(1))
            .enumerate()
            .for_each(|(row, values)| self.decode_row(row, values));
        TensorData::new(values, [self.rows, self.columns])
    }

    /// Rows as activations of `dtype`, f32 or bf16: (1, rows, columns).
    pub(crate) fn rows_as(&self, rows: &[u32], dtype: DType) -> TensorData {
        let mut values = vec![0.0f32; rows.len() * self.columns];
        for (row, values) in rows.iter().zip(values.chunks_exact_mut(self.columns.max(1))) {
            self.decode_row(*row as usize, values);
        }
        let shape = [1, rows.len(), self.columns];
        match dtype {
            DType::BF16 => {
                let values: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
                TensorData::new(values, shape)
            }
            _ => TensorData::new(values, shape),
        }
    }

    /// Whether every element is finite.
    pub fn is_finite(&self) -> bool {
        (0..self.rows).into_par_iter().all(|row| {
            let mut values = vec![0.0; self.columns];
            self.decode_row(row, &mut values);
            values.iter().all(|value| value.is_finite())
        })
    }

    /// `x` (B, T, in) · `self`ᵀ in `dtype`, f32 or bf16: (B, T, out).
    pub(crate) fn product(&self, x: &Tensor<3>, dtype: DType) -> Tensor<3> {
        let y = match &self.layout {
            Layout::Blocks(blocks) => backend::block_linear(x, blocks, dtype),
            Layout::Rows { bytes, order, .. } => {
                let format = match self.stored {
                    StoredAs::F32 => WeightFormat::F32,
                    StoredAs::F16 => WeightFormat::F16,
                    StoredAs::Bf16 => WeightFormat::Bf16,
                    // Of such matrices a model multiplies only those that it has laid out.
                    _ => return self.clone().laid_out_for_products().product(x, dtype),
                };
                let weight = StoredWeight { bytes: bytes.get(), format, order: *order };
                backend::stored_linear(x, weight, self.rows, dtype)
            }
        };
        y.expect("a stored matrix belongs to a model on the CPU")
    }
}

impl LinearWeight for StoredMatrix {
    fn forward(&self, x: &Tensor<3>) -> Tensor<3> {
        self.product(x, x.dtype())
    }
}

/// The error of a matrix that cannot be converted.
pub(super) fn out_of_range(
    place: String,
    stored: StoredAs,
    OutOfRange(value): OutOfRange,
) -> ModelError {
    let found = format!("holds the value {value}, which {} cannot hold", stored.name());
    ModelError::NotFinite { place, found }
}

/// A tensor of a parameter that is not a matrix.
pub(super) fn finite_vector(vector: &Tensor<1>) -> bool {
    vector.to_data().iter::<f64>().all(f64::is_finite)
}

/// Ids inside a vocabulary.
pub(super) fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        Some(id) => Err(ModelError::TokenId { id: i64::from(*id), vocab_size }),
        None => Ok(()),
    }
}
