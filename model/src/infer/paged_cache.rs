//! Keys and values of all layers in blocks.
//!
//! On the CPU they lie in pages of 16 tokens in memory that the system hands out page by page when it
//! is first written, so blocks that were never used cost nothing; attention reads them there. On other
//! devices they lie in a tensor for each layer, and each sequence's are gathered before the dense
//! kernel attends to them.

use altiplano_kernels::{PAGE, PagedRows, PagedShape};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use memmap2::MmapMut;

use super::block_pool::BlockId;
use super::model::Pass;
use crate::backend::{has_kernels, paged_attention};
use crate::config::LlamaConfig;
use crate::device::is_flex;
use crate::error::{ModelError, Result};
use crate::layer::KeysValues;
use crate::ops::{causal_attention_forward, kv_cache_write};

/// Keys and values of every layer.
#[derive(Debug)]
pub struct PagedCache {
    block_size: usize,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Pages(Pages),
    /// Keys and values of each layer, (blocks · block size, K, D).
    Tensors(Vec<(Tensor<3>, Tensor<3>)>),
}

/// Pages in memory: for each layer all keys, then all values.
#[derive(Debug)]
struct Pages {
    memory: MmapMut,
    /// Bytes of a page of keys and of values.
    page: [usize; 2],
    /// Pages of a layer.
    pages: usize,
}

/// Bytes that keys and values of a block of `block_size` tokens take in all layers, for activations of
/// `dtype`.
pub fn bytes_per_block(config: &LlamaConfig, dtype: DType, block_size: usize) -> u128 {
    let shape = shape(config);
    let page = (shape.key_page() + shape.value_page()) * dtype.size();
    config.n_layers as u128 * block_size.div_ceil(PAGE) as u128 * page as u128
}

fn shape(config: &LlamaConfig) -> PagedShape {
    PagedShape { heads: config.n_heads, kv_heads: config.kv_heads(), head_dim: config.head_dim() }
}

impl PagedCache {
    /// Room for `blocks` blocks of `block_size` tokens of activations of `dtype`.
    ///
    /// # Errors
    /// [`ModelError::CacheMemory`] when the memory cannot be had, [`ModelError::EngineOption`] when
    /// blocks are not whole pages.
    pub fn new(
        config: &LlamaConfig,
        dtype: DType,
        device: &Device,
        blocks: usize,
        block_size: usize,
    ) -> Result<Self> {
        if !block_size.is_multiple_of(PAGE) || block_size == 0 {
            return Err(ModelError::EngineOption {
                option: "block_size",
                found: block_size.to_string(),
                expected: format!("a multiple of {PAGE}"),
            });
        }
        let storage = if is_flex(device) && has_kernels(device, dtype) {
            Storage::Pages(Pages::new(config, dtype, blocks, block_size)?)
        } else {
            let rows = [blocks * block_size, config.kv_heads(), config.head_dim()];
            let zeros = || Tensor::zeros(rows, (device, dtype));
            Storage::Tensors((0..config.n_layers).map(|_| (zeros(), zeros())).collect())
        };
        Ok(Self { block_size, storage })
    }

    /// Copies the content of blocks, from and to, in order.
    pub fn copy_blocks(&mut self, copies: &[(BlockId, BlockId)]) {
        for (from, to) in copies {
            let (from, to) = (*from as usize, *to as usize);
            match &mut self.storage {
                Storage::Pages(pages) => pages.copy(from, to, self.block_size / PAGE),
                Storage::Tensors(layers) => {
                    let size = self.block_size;
                    for all in layers.iter_mut().flat_map(|(k, v)| [k, v]) {
                        // Read out first: what is written in place may not be seen by a view.
                        let block = all.clone().narrow(0, from * size, size) * 1.0;
                        kv_cache_write(all, block, to * size);
                    }
                }
            }
        }
    }

    /// The keys and values of each layer, for one pass.
    pub(super) fn layers<'a>(&'a mut self, pass: &'a Pass) -> impl Iterator<Item = LayerPages<'a>> {
        let per_block = (self.block_size / PAGE) as u32;
        let pages: Vec<Vec<u32>> = pass
            .sequences
            .iter()
            .map(|sequence| {
                let pages_of = |block: &BlockId| block * per_block..(block + 1) * per_block;
                sequence.blocks.iter().flat_map(pages_of).collect()
            })
            .collect();
        let block_size = self.block_size;
        let layers: Vec<LayerStorage<'a>> = match &mut self.storage {
            Storage::Pages(pages) => pages.layers().collect(),
            Storage::Tensors(layers) => {
                layers.iter_mut().map(|(k, v)| LayerStorage::Tensors(k, v)).collect()
            }
        };
        let pages = std::sync::Arc::new(pages);
        layers.into_iter().map(move |storage| LayerPages {
            storage,
            pass,
            pages: pages.clone(),
            block_size,
        })
    }
}

impl Pages {
    fn new(config: &LlamaConfig, dtype: DType, blocks: usize, block_size: usize) -> Result<Self> {
        let shape = shape(config);
        let page = [shape.key_page(), shape.value_page()].map(|page| page * dtype.size());
        let bytes = bytes_per_block(config, dtype, block_size) * blocks as u128;
        let failed = |reason: String| ModelError::CacheMemory { bytes, reason };
        let len = usize::try_from(bytes).map_err(|error| failed(error.to_string()))?;
        // Pages number as u32 in the kernel.
        let pages = blocks * (block_size / PAGE);
        u32::try_from(pages).map_err(|error| failed(error.to_string()))?;
        let memory = MmapMut::map_anon(len).map_err(|error| failed(error.to_string()))?;
        Ok(Self { memory, page, pages })
    }

    fn layers(&mut self) -> impl Iterator<Item = LayerStorage<'_>> {
        let [key, value] = self.page;
        let pages = self.pages;
        self.memory.chunks_exact_mut(pages * (key + value)).map(move |layer| {
            let (keys, values) = layer.split_at_mut(pages * key);
            LayerStorage::Pages(keys, values)
        })
    }

    fn copy(&mut self, from: usize, to: usize, per_block: usize) {
        let [key, value] = self.page;
        for layer in self.layers() {
            let LayerStorage::Pages(keys, values) = layer else { continue };
            for (all, page) in [(keys, key), (values, value)] {
                let block = per_block * page;
                all.copy_within(from * block..(from + 1) * block, to * block);
            }
        }
    }
}

enum LayerStorage<'a> {
    Pages(&'a mut [u8], &'a mut [u8]),
    Tensors(&'a mut Tensor<3>, &'a mut Tensor<3>),
}

/// The keys and values of one layer during a pass.
pub(super) struct LayerPages<'a> {
    storage: LayerStorage<'a>,
    pass: &'a Pass,
    /// The pages of each sequence.
    pages: std::sync::Arc<Vec<Vec<u32>>>,
    block_size: usize,
}

impl KeysValues for LayerPages<'_> {
    fn attend(
        &mut self,
        q: &Tensor<4>,
        k: &Tensor<4>,
        v: &Tensor<4>,
        _first_visible: Option<&Tensor<2, Int>>,
    ) -> (Tensor<4>, Tensor<3>) {
        match &mut self.storage {
            LayerStorage::Pages(keys, values) => {
                let sequences: Vec<PagedRows<'_>> = self
                    .pass
                    .sequences
                    .iter()
                    .zip(&*self.pages)
                    .map(|(sequence, pages)| PagedRows {
                        rows: sequence.rows.clone(),
                        start: sequence.start,
                        pages,
                    })
                    .collect();
                paged_attention(q, k, v, (keys, values), &sequences)
            }
            LayerStorage::Tensors(keys, values) => {
                attend_gathered(q, [k, v], [keys, values], self.pass, self.block_size)
            }
        }
    }
}

/// Attention sequence by sequence, to copies of their keys and values.
fn attend_gathered(
    q: &Tensor<4>,
    new: [&Tensor<4>; 2],
    cache: [&mut Tensor<3>; 2],
    pass: &Pass,
    block_size: usize,
) -> (Tensor<4>, Tensor<3>) {
    let (mut outputs, mut lses) = (Vec::new(), Vec::new());
    let [all_k, all_v] = cache;
    for sequence in &pass.sequences {
        let (rows, start) = (&sequence.rows, sequence.start);
        let slot = |position: usize| {
            sequence.blocks[position / block_size] as usize * block_size + position % block_size
        };
        let end = start + rows.len();
        // Rows that go to one block go there together.
        let mut position = start;
        while position < end {
            let next = end.min((position / block_size + 1) * block_size);
            for (all, new) in [(&mut *all_k, new[0]), (&mut *all_v, new[1])] {
                let first = rows.start + position - start;
                let part = new.clone().narrow(1, first, next - position).squeeze_dim(0);
                kv_cache_write(all, part, slot(position));
            }
            position = next;
        }
        let slots: Vec<i32> = (0..end).map(|position| slot(position) as i32).collect();
        let slots: Tensor<1, Int> =
            Tensor::from_data(TensorData::new(slots, [end]), (&q.device(), DType::I32));
        let [k, v] = [&*all_k, &*all_v]
            .map(|all| all.clone().select(0, slots.clone()).unsqueeze_dim::<4>(0));
        let q = q.clone().narrow(1, rows.start, rows.len());
        let (o, lse) = causal_attention_forward(&q, &k, &v, None);
        outputs.push(o);
        lses.push(lse);
    }
    (Tensor::cat(outputs, 1), Tensor::cat(lses, 2))
}
