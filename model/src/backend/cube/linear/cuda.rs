//! Products by the vendor's library.

use std::sync::{Arc, LazyLock};

use burn_cubecl::tensor::CubeTensor;

use super::Product;
use crate::backend::cube::nvidia::Gpu;

/// Set by `ALTIPLANO_PRODUCTS=cubek`, to compare the two and to get around a broken library.
static WITHOUT_LIBRARY: LazyLock<bool> =
    LazyLock::new(|| std::env::var("ALTIPLANO_PRODUCTS").is_ok_and(|kind| kind == "cubek"));

/// Whether the library computes products where it can.
pub(super) fn is_wanted() -> bool {
    !*WITHOUT_LIBRARY
}

/// out (m, n) = addend + left · right; `addend`, of the type of `out`, may be `out`.
pub(super) fn product(
    gpu: &Arc<Gpu>,
    call: &Product<'_>,
    addend: Option<&CubeTensor>,
    out: &CubeTensor,
) {
    let beta = if addend.is_some() { 1.0 } else { 0.0 };
    let tensors = [&call.left.tensor, &call.right.tensor, addend.unwrap_or(out), out];
    gpu.multiply(call.problem(), tensors, beta);
}
