//! Matrix products by cuBLASLt, which adds them to what is there where it is asked to.
//!
//! The library is column-major: a matrix stored by rows is its transpose stored by columns, so the
//! product C = A B by rows is asked for as Cᵀ = Bᵀ Aᵀ by columns.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use burn::tensor::DType;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::result::malloc_sync;

use super::context::{Context, Outcome, Stream};
use super::problem::Problem;

/// Scratch memory of the library, what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

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
}

// SAFETY: the library may be called from any thread; its scratch memory is used on one stream.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

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
        Ok(Self { handle, workspace, plans: Mutex::default() })
    }

    /// How it computes `problem` on the GPU of `context`; none where it does not.
    pub fn plan(&self, problem: Problem, context: Context) -> Option<Plan> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&problem) {
            return *plan;
        }
        // The heuristic asks the device of the current context.
        context.enter().ok()?;
        let plan = self.make_plan(problem).ok();
        plans.insert(problem, plan);
        plan
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
        // By columns the operands change places: the library's first is the right one.
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
    pub fn multiply(
        &self,
        stream: Stream,
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
                stream.0.cast(),
            )
        }
        .map_err(failed("cublasLtMatmul"))
    }
}
