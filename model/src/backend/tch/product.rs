//! Matrix products whose result is f32 whatever the operands.
//!
//! cuBLAS writes f32 from bf16 operands. On the CPU libtorch has no such product: it would round
//! its f32 sums to bf16 on the way out.

use tch::{Device, Kind, Tensor};

/// Rows of a head's weight widened at once where only few logits are wanted: they stay in cache.
const WIDENED_ROWS: i64 = 1024;

/// `sum` (m, n) in f32 += `a` (k, m)ᵀ · `b` (k, n).
///
/// bf16 operands on the CPU: the product is rounded to bf16 once before it is added, as PyTorch's
/// autocast rounds each gradient of a weight.
pub(super) fn add_transposed_product(sum: &mut Tensor, a: &Tensor, b: &Tensor) {
    match (a.kind(), a.device()) {
        (Kind::Float, _) => {
            let _ = sum.addmm_(&a.tr(), b);
        }
        (_, Device::Cpu) => {
            let _ = sum.g_add_(&a.tr().mm(b));
        }
        _ => {
            let _ = sum.shallow_clone().addmm_dtype_out(sum, &a.tr(), b, Kind::Float);
        }
    }
}

/// A weight (n, k) that many rows are to be multiplied with, in the type that gives f32 products:
/// on the CPU a bf16 one is widened, once.
pub(super) fn for_f32_products(weight: &Tensor) -> Tensor {
    match weight.device() {
        Device::Cpu => weight.to_kind(Kind::Float),
        _ => weight.shallow_clone(),
    }
}

/// `rows` (m, k) · `weight` (n, k)ᵀ in f32, for a weight from [`for_f32_products`].
pub(super) fn f32_product(rows: &Tensor, weight: &Tensor) -> Tensor {
    match weight.kind() {
        Kind::Float => rows.to_kind(Kind::Float).mm(&weight.tr()),
        _ => rows.mm_dtype(&weight.tr(), Kind::Float),
    }
}

/// `rows` (m, k) · `weight` (n, k)ᵀ in f32 for few rows: the weight is never widened whole.
pub(super) fn f32_product_of_few_rows(rows: &Tensor, weight: &Tensor) -> Tensor {
    if weight.kind() == Kind::Float || weight.device() != Device::Cpu {
        return f32_product(rows, weight);
    }
    let count = weight.size()[0];
    let rows = rows.to_kind(Kind::Float);
    let parts: Vec<Tensor> = (0..count)
        .step_by(WIDENED_ROWS as usize)
        .map(|start| {
            let part = weight.narrow(0, start, WIDENED_ROWS.min(count - start));
            rows.mm(&part.to_kind(Kind::Float).tr())
        })
        .collect();
    Tensor::cat(&parts, 1)
}
