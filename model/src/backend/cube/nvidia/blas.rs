//! Matrix products by cuBLASLt, accumulating in place.
//!
//! The library is column-major: a matrix stored by rows is its transpose stored by columns, so the
//! product C = A B by rows is asked for as Cᵀ = Bᵀ Aᵀ by columns.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::result::malloc_sync;
use cudarc::driver::sys as driver;

use super::stream::{Gpu, Outcome};
use super::tuning::Tuning;
use crate::backend::cube::product::Operand;

/// Scratch memory of the library, what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// How products are computed: by default with the fastest of the library's algorithms.
static PRODUCTS: LazyLock<String> =
    LazyLock::new(|| std::env::var("ALTIPLANO_PRODUCTS").unwrap_or_default());

/// Set by `ALTIPLANO_PRODUCTS=cubek`, to compare the two and to get around a broken library.
static WITHOUT_LIBRARY: LazyLock<bool> = LazyLock::new(|| *PRODUCTS == "cubek");

/// Set by `ALTIPLANO_PRODUCTS=first`: with the library's first choice, untried.
static WITHOUT_TUNING: LazyLock<bool> = LazyLock::new(|| *PRODUCTS == "first");

/// A product the library was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    left_transposed: bool,
    right_transposed: bool,
    pub(super) input: DType,
    pub(super) output: DType,
}

impl Problem {
    pub(super) fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

/// How the library computes a problem.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) description: sys::cublasLtMatmulDesc_t,
    pub(super) left: sys::cublasLtMatrixLayout_t,
    pub(super) right: sys::cublasLtMatrixLayout_t,
    pub(super) out: sys::cublasLtMatrixLayout_t,
    pub(super) preference: sys::cublasLtMatmulPreference_t,
    /// The library's first choice.
    pub(super) algorithm: Algorithm,
}

pub(super) type Algorithm = sys::cublasLtMatmulAlgo_t;

// SAFETY: descriptors are plain memory that is written before it is shared.
unsafe impl Send for Plan {}

/// The library with its scratch memory and the plans made so far.
pub(super) struct Library {
    pub(super) handle: sys::cublasLtHandle_t,
    workspace: u64,
    /// None for a problem the library does not take.
    plans: Mutex<HashMap<Problem, Option<Plan>>>,
    tuning: Tuning,
}

fn failed(what: &str) -> impl Fn(result::CublasError) -> String {
    move |error| format!("{what}: {error}")
}

impl Library {
    /// Opens cuBLASLt in the current context.
    pub fn open() -> Outcome<Self> {
        // SAFETY: opens the library by its well-known names and closes it again.
        if !unsafe { sys::is_culib_present() } {
            return Err("cuBLASLt is not installed".to_string());
        }
        let handle = result::create_handle().map_err(failed("cublasLtCreate"))?;
        // SAFETY: a fresh allocation, kept for the process.
        let workspace = unsafe { malloc_sync(WORKSPACE_BYTES) }
            .map_err(|error| format!("cuBLASLt's scratch memory: {error:?}"))?;
        Ok(Self { handle, workspace, plans: Mutex::default(), tuning: Tuning::default() })
    }

    fn plan(&self, problem: Problem) -> Option<Plan> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        *plans.entry(problem).or_insert_with(|| self.make_plan(problem).ok())
    }

    /// The library's first choice. Without accumulation and with it is one plan: the layouts of C
    /// and D are the same.
    fn make_plan(&self, problem: Problem) -> Outcome<Plan> {
        let Problem { m, n, k, left_transposed, right_transposed, input, output } = problem;
        let type_of = |dtype| match dtype {
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            _ => sys::cudaDataType_t::CUDA_R_32F,
        };
        // Full f32 for f32 inputs, not TF32: `precision: f32` is the reference.
        let description = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        )
        .map_err(failed("cublasLtMatmulDescCreate"))?;
        let transpose = |attribute, transposed: bool| {
            // CUBLAS_OP_N is 0 and CUBLAS_OP_T is 1.
            let operation = i32::from(transposed);
            // SAFETY: the attribute is copied out of the local variable.
            unsafe {
                result::set_matmul_desc_attribute(
                    description,
                    attribute,
                    (&raw const operation).cast(),
                    size_of_val(&operation),
                )
            }
            .map_err(failed("cublasLtMatmulDescSetAttribute"))
        };
        // The library's first operand is our right one.
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        transpose(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, right_transposed)?;
        transpose(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, left_transposed)?;
        let layout = |dtype, rows: usize, columns: usize| {
            // Stored by rows, so by columns its width is the leading dimension.
            result::create_matrix_layout(
                type_of(dtype),
                columns as u64,
                rows as u64,
                columns as i64,
            )
            .map_err(failed("cublasLtMatrixLayoutCreate"))
        };
        let (left_rows, left_columns) = if left_transposed { (k, m) } else { (m, k) };
        let (right_rows, right_columns) = if right_transposed { (n, k) } else { (k, n) };
        let left = layout(input, left_rows, left_columns)?;
        let right = layout(input, right_rows, right_columns)?;
        let out = layout(output, m, n)?;
        let preference =
            result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        let bytes = WORKSPACE_BYTES;
        // SAFETY: the descriptors were made above; the attribute is copied out of the variable.
        let choice = unsafe {
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const bytes).cast(),
                size_of_val(&bytes),
            )
            .map_err(failed("cublasLtMatmulPreferenceSetAttribute"))?;
            let choice = result::get_matmul_algo_heuristic(
                self.handle,
                description,
                right,
                left,
                out,
                out,
                preference,
            );
            choice.map_err(failed("cublasLtMatmulAlgoGetHeuristic"))?
        };
        Ok(Plan { description, left, right, out, preference, algorithm: choice.algo })
    }

    /// out = beta · addend + left · right, on `stream`.
    pub(super) fn multiply(
        &self,
        stream: driver::CUstream,
        plan: &Plan,
        algorithm: &Algorithm,
        (left, right): (u64, u64),
        (addend, beta): (u64, f32),
        out: u64,
    ) -> Outcome<()> {
        let alpha = 1.0f32;
        // SAFETY: the plan's descriptors live as long as the process; the buffers hold the shapes
        // the plan was made for; the work is submitted to a live stream.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                right as *const c_void,
                plan.right,
                left as *const c_void,
                plan.left,
                addend as *const c_void,
                plan.out,
                out as *mut c_void,
                plan.out,
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cast(),
            )
        }
        .map_err(failed("cublasLtMatmul"))
    }
}

/// out (m, n) = addend + left (m, k) · right (k, n); `addend`, of the type of `out`, may be `out`.
/// False where the library does not compute it: no NVIDIA GPU, no library, a shape it refuses.
pub(in super::super) fn product(
    left: &Operand,
    right: &Operand,
    addend: Option<&CubeTensor>,
    out: &CubeTensor,
) -> bool {
    if *WITHOUT_LIBRARY {
        return false;
    }
    let Some(gpu) = Gpu::of(out) else { return false };
    let Some(library) = &gpu.products else { return false };
    let ((m, k), (_, n)) = (left.shape(), right.shape());
    let problem = Problem {
        m,
        n,
        k,
        left_transposed: left.transposed,
        right_transposed: right.transposed,
        input: left.tensor.dtype,
        output: out.dtype,
    };
    // Plans ask the device of the current context.
    if gpu.enter().is_err() {
        return false;
    }
    let Some(plan) = library.plan(problem) else { return false };
    let beta = if addend.is_some() { 1.0f32 } else { 0.0 };
    let tensors = [&left.tensor, &right.tensor, addend.unwrap_or(out), out];
    gpu.enqueue(tensors, move |gpu, [left, right, addend, out]| {
        let Some(library) = &gpu.products else { return Err("cuBLASLt is gone".to_string()) };
        // Whole: its single fields may not cross threads.
        let plan = plan;
        let algorithm = match *WITHOUT_TUNING {
            true => plan.algorithm,
            false => library.tuning.algorithm(gpu, library, problem, &plan),
        };
        library.multiply(gpu.stream, &plan, &algorithm, (left, right), (addend, beta), out)
    });
    true
}
