//! Output head and cross entropy in chunks of tokens: see [`crate::ops::head_cross_entropy_forward`]
//! for the formulas. The logits of a chunk are f32, and its gradient takes their place.

use tch::{Kind, Tensor};

use super::super::HEAD_CHUNK;
use super::product::{add_transposed_product, f32_product, for_f32_products};

/// Logits of a chunk (n, V), and what its loss and gradient share.
struct Chunk {
    logits: Tensor,
    /// Log-sum-exp of each row, (n, 1).
    lse: Tensor,
    /// Target of each row, 0 where ignored, (n, 1).
    target: Tensor,
    /// 1 where the target counts, 0 where it is ignored, (n, 1).
    counts: Tensor,
}

impl Chunk {
    fn new(rows: &Tensor, wide_weight: &Tensor, targets: &Tensor) -> Self {
        let logits = f32_product(rows, wide_weight);
        let targets = targets.unsqueeze(1);
        Self {
            lse: logits.logsumexp([1i64].as_slice(), true),
            target: targets.clamp_min(0),
            counts: targets.ge(0).to_kind(Kind::Float),
            logits,
        }
    }

    /// Losses (n) in nats, 0 where ignored.
    fn losses(&self) -> Tensor {
        let losses = &self.lse - self.logits.gather(1, &self.target, false);
        losses.masked_fill(&self.counts.eq(0.0), 0.0).squeeze_dim(1)
    }

    /// scale · (softmax − one-hot) where the target counts, in the storage of the logits, (n, V).
    fn into_gradient(mut self, scale: f64) -> Tensor {
        let weight = self.counts * scale;
        let _ = self.logits.g_sub_(&self.lse).exp_().g_mul_(&weight);
        let _ = self.logits.scatter_add_(1, &self.target, &weight.neg());
        self.logits
    }
}

/// (x as rows (N, C), targets as (N) of i64, first rows and sizes of the chunks).
fn chunks(x: &Tensor, targets: &Tensor) -> (Tensor, Tensor, impl Iterator<Item = (i64, i64)>) {
    let channels = x.size().last().copied().unwrap_or(0);
    let rows = x.reshape([-1, channels]);
    let count = rows.size()[0];
    let step = HEAD_CHUNK as i64;
    let starts = (0..count).step_by(HEAD_CHUNK).map(move |start| (start, step.min(count - start)));
    (rows, targets.reshape([-1]).to_kind(Kind::Int64), starts)
}

/// `x` (B, T, C), `weight` (V, C), `targets` (B, T): losses (B, T).
pub(super) fn forward(x: &Tensor, weight: &Tensor, targets: &Tensor) -> Tensor {
    let weight = for_f32_products(weight);
    let (rows, flat_targets, chunks) = chunks(x, targets);
    let losses: Vec<Tensor> = chunks
        .map(|(start, count)| {
            let rows = rows.narrow(0, start, count);
            Chunk::new(&rows, &weight, &flat_targets.narrow(0, start, count)).losses()
        })
        .collect();
    Tensor::cat(&losses, 0).view(targets.size().as_slice())
}

/// (losses (B, T), dx (B, T, C)) of `scale` · Σ losses; `dweight` (V, C) accumulates.
pub(super) fn backward(
    x: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    scale: f64,
    dweight: &mut Tensor,
) -> (Tensor, Tensor) {
    let wide_weight = for_f32_products(weight);
    let (rows, flat_targets, chunks) = chunks(x, targets);
    let mut losses = Vec::new();
    let dx = x.empty_like();
    let dx_rows = dx.view(rows.size().as_slice());
    for (start, count) in chunks {
        let rows = rows.narrow(0, start, count);
        let chunk = Chunk::new(&rows, &wide_weight, &flat_targets.narrow(0, start, count));
        losses.push(chunk.losses());
        let dlogits = chunk.into_gradient(scale);
        let narrow = dlogits.to_kind(x.kind());
        let _ = narrow.mm_out(&dx_rows.narrow(0, start, count), weight);
        if wide_weight.kind() == Kind::Float {
            add_transposed_product(dweight, &dlogits, &rows.to_kind(Kind::Float));
        } else {
            add_transposed_product(dweight, &narrow, &rows);
        }
    }
    (Tensor::cat(&losses, 0).view(targets.size().as_slice()), dx)
}
