//! AdamW, Σ x² and zeroing over all parameters at once, by the kernels of `cuda.cu`: a few launches a
//! step, however many parameters there are.

use altiplano_kernels::AdamWStep;
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::backend::cube::nvidia::{Gpu, Source, arguments, cuda_source};
use crate::backend::cube::tensor::{accumulator, contiguous, elements, new};

/// Parameters of a table, which a launch of AdamW takes by value: a kernel's arguments have 4096 bytes.
const ADAMW_ENTRIES: usize = 64;

/// Tensors of a table of the other kernels.
const SPAN_ENTRIES: usize = 128;

/// Elements a block takes of one tensor.
pub(super) const BLOCK_ELEMENTS: usize = 8192;

/// Threads of a block.
const THREADS: usize = 128;

/// Bytes of shared memory of a kernel that sums: two floats a thread.
const SUM_BYTES: usize = 8 * THREADS;

pub(super) fn source() -> Source<4> {
    let defines = [
        ("ADAMW_ENTRIES", ADAMW_ENTRIES),
        ("SPAN_ENTRIES", SPAN_ENTRIES),
        ("BLOCK_ELEMENTS", BLOCK_ELEMENTS),
        ("THREADS", THREADS),
    ];
    Source::new("AdamW", cuda_source!("cuda.cu"), defines)
}

/// A parameter with what its AdamW step reads and writes, all f32 but the bf16 copy.
pub(crate) struct AdamWTensors {
    /// The parameter.
    pub param: CubeTensor,
    /// Its first moment.
    pub m: CubeTensor,
    /// Its second moment.
    pub v: CubeTensor,
    /// Its gradient.
    pub grad: CubeTensor,
    /// What becomes its copy in bf16.
    pub copy: Option<CubeTensor>,
    /// λ.
    pub weight_decay: f32,
}

// The structs of the same names in cuda.cu, field by field.

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct AdamWEntry {
    param: u64,
    m: u64,
    v: u64,
    grad: u64,
    copy: u64,
    count: i64,
    keep: f32,
    first_block: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct AdamWTable {
    entries: [AdamWEntry; ADAMW_ENTRIES],
    count: i32,
    rate: f32,
    root_correction: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    grad_scale: f32,
    padding: i32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Span {
    x: u64,
    count: i64,
    first_block: i32,
    padding: i32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct SpanTable {
    entries: [Span; SPAN_ENTRIES],
    count: i32,
    blocks: i32,
}

/// The first block of each tensor, and the number of blocks.
pub(super) fn blocks(counts: impl Iterator<Item = usize>) -> (Vec<i32>, usize) {
    let mut next = 0;
    let firsts = counts
        .map(|count| {
            let first = next;
            next += count.div_ceil(BLOCK_ELEMENTS);
            first as i32
        })
        .collect();
    (firsts, next)
}

impl SpanTable {
    /// At most [`SPAN_ENTRIES`] tensors by address and number of elements.
    fn new(tensors: &[(u64, usize)]) -> Self {
        let (firsts, blocks) = blocks(tensors.iter().map(|(_, count)| *count));
        let mut entries = [Span::default(); SPAN_ENTRIES];
        for ((entry, &(x, count)), first_block) in entries.iter_mut().zip(tensors).zip(firsts) {
            *entry = Span { x, count: count as i64, first_block, padding: 0 };
        }
        Self { entries, count: tensors.len() as i32, blocks: blocks as i32 }
    }
}

/// Whether [`adamw`], [`sums_of_squares`] and [`zero`] run on the device of `tensor`.
pub(crate) fn runs_on(tensor: &CubeTensor) -> bool {
    Gpu::of(tensor).is_some()
}

/// One step on all of `tensors` in place; their weight decay counts, not that of `hyper`.
///
/// # Panics
/// Where it does not run.
pub(crate) fn adamw(tensors: Vec<AdamWTensors>, hyper: &AdamWStep) -> Vec<AdamWTensors> {
    let op = "adamw over all parameters";
    let tensors: Vec<AdamWTensors> = tensors
        .into_iter()
        .map(|t| AdamWTensors {
            param: accumulator(t.param, op),
            m: accumulator(t.m, op),
            v: accumulator(t.v, op),
            grad: contiguous(t.grad),
            copy: t.copy.map(|copy| accumulator(copy, op)),
            weight_decay: t.weight_decay,
        })
        .collect();
    for tensors in tensors.chunks(ADAMW_ENTRIES) {
        let Some(gpu) = Gpu::of(&tensors[0].param) else { panic!("{op}: not a GPU it runs on") };
        let kernel = gpu.kernel(&source(), "adamw", 0);
        let (firsts, grid) = blocks(tensors.iter().map(|t| elements(&t.param)));
        let factors = hyper.factors();
        let sizes: Vec<(usize, bool, f32)> = tensors
            .iter()
            .map(|t| {
                let keep = AdamWStep { weight_decay: t.weight_decay, ..*hyper }.factors().keep;
                (elements(&t.param), t.copy.is_some(), keep)
            })
            .collect();
        let all: Vec<&CubeTensor> = tensors
            .iter()
            .flat_map(|t| [Some(&t.param), Some(&t.m), Some(&t.v), Some(&t.grad), t.copy.as_ref()])
            .flatten()
            .collect();
        gpu.enqueue_all(&all, move |stream, addresses| {
            let mut addresses = addresses.iter().copied();
            let mut next = || addresses.next().unwrap_or_default();
            let mut entries = [AdamWEntry::default(); ADAMW_ENTRIES];
            let tensors = sizes.iter().zip(&firsts);
            for (entry, (&(count, has_copy, keep), &first_block)) in entries.iter_mut().zip(tensors)
            {
                *entry = AdamWEntry {
                    param: next(),
                    m: next(),
                    v: next(),
                    grad: next(),
                    copy: if has_copy { next() } else { 0 },
                    count: count as i64,
                    keep,
                    first_block,
                };
            }
            let table = AdamWTable {
                entries,
                count: sizes.len() as i32,
                rate: factors.rate,
                root_correction: factors.root_correction,
                beta1: factors.beta1,
                beta2: factors.beta2,
                eps: factors.eps,
                grad_scale: factors.grad_scale,
                padding: 0,
            };
            kernel.launch(stream, (grid, 1, 1), THREADS, arguments![table])
        });
    }
    tensors
}

/// Σ x² of each of `tensors`, f32, as sum and rounding error: (n, 2).
///
/// # Panics
/// Where it does not run.
pub(crate) fn sums_of_squares(tensors: Vec<CubeTensor>) -> CubeTensor {
    let tensors: Vec<CubeTensor> = tensors.into_iter().map(contiguous).collect();
    let totals = new(&tensors[0], &[tensors.len(), 2], DType::F32);
    for (chunk, tensors) in tensors.chunks(SPAN_ENTRIES).enumerate() {
        let Some(gpu) = Gpu::of(&tensors[0]) else {
            panic!("sums of squares: not a GPU it runs on")
        };
        let [squares, sums] =
            ["sum_of_squares", "sum_partials"].map(|name| gpu.kernel(&source(), name, SUM_BYTES));
        let counts: Vec<usize> = tensors.iter().map(elements).collect();
        let (_, grid) = blocks(counts.iter().copied());
        let partial = new(&tensors[0], &[grid, 2], DType::F32);
        let mut all: Vec<&CubeTensor> = vec![&totals, &partial];
        all.extend(tensors);
        gpu.enqueue_all(&all, move |stream, addresses| {
            let spans: Vec<(u64, usize)> =
                addresses[2..].iter().copied().zip(counts.iter().copied()).collect();
            let table = SpanTable::new(&spans);
            // 8 bytes of sum and rounding error each.
            let totals = addresses[0] + (chunk * SPAN_ENTRIES * 8) as u64;
            let partial = addresses[1];
            squares.launch(stream, (grid, 1, 1), THREADS, arguments![table, partial])?;
            sums.launch(stream, (spans.len(), 1, 1), THREADS, arguments![table, partial, totals])
        });
    }
    totals
}

/// Sets every element of `tensors`, f32, to zero, in place.
///
/// # Panics
/// Where it does not run.
pub(crate) fn zero(tensors: Vec<CubeTensor>) -> Vec<CubeTensor> {
    let op = "zeroing of all accumulators";
    let tensors: Vec<CubeTensor> = tensors.into_iter().map(|x| accumulator(x, op)).collect();
    for tensors in tensors.chunks(SPAN_ENTRIES) {
        let Some(gpu) = Gpu::of(&tensors[0]) else { panic!("{op}: not a GPU it runs on") };
        let kernel = gpu.kernel(&source(), "zero", 0);
        let counts: Vec<usize> = tensors.iter().map(elements).collect();
        let (_, grid) = blocks(counts.iter().copied());
        let all: Vec<&CubeTensor> = tensors.iter().collect();
        gpu.enqueue_all(&all, move |stream, addresses| {
            let spans: Vec<(u64, usize)> =
                addresses.iter().copied().zip(counts.iter().copied()).collect();
            let table = SpanTable::new(&spans);
            kernel.launch(stream, (grid, 1, 1), THREADS, arguments![table])
        });
    }
    tensors
}
