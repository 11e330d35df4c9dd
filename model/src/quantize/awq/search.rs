//! What AWQ searches for each layer: what to divide the inputs of its matrices by, and where to cut the
//! largest weights.
//!
//! For a matrix `W` and its input `x`, `W x = (W diag(s)) (x / s)`. The division is folded into what makes
//! the input: the norm, the projection to values or `up_proj`. With `m` the mean of |x| of each input and
//! `w` that of the weights it meets, each over the largest of its group, `s = m^r / (w^(1−r) + 1e-4)`, and
//! the share `r` is the one of twenty for which what the module gives differs least.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::round_trip;
use crate::error::Result;
use crate::layer::{
    FeedForwardSaved, LayerContext, OwnKeysValues, attention_half, feed_forward_half,
};
use crate::ops::{linear_forward, linear_residual_forward, swiglu_forward};
use crate::params::LayerWeights;

/// Shares that are tried: 0, 1/20, …, 19/20.
const SHARES: usize = 20;
/// Cuts that are tried: none, 1/20, … below [`MOST_CUT`] of the largest weight of a group.
const CUTS: usize = 20;
const MOST_CUT: f32 = 0.5;
/// Tokens by which cuts are judged.
const CUT_TOKENS: usize = 512;

/// A layer whose matrices lose least when they are packed, and what the searches found.
#[derive(Debug)]
pub struct SearchedLayer {
    /// Scaled and cut, and the same function but for the cut.
    pub weights: LayerWeights,
    /// What the layer gives for each input, unchanged: the next layer's inputs.
    pub outputs: Vec<Tensor<3>>,
    /// The best share of each group of matrices.
    pub shares: Vec<f32>,
}

/// Features of a chunk of tokens on their way through the layer.
struct Features {
    x: Tensor<3>,
    attention_normed: Tensor<3>,
    attention_output: Tensor<3>,
    branch: Tensor<3>,
    normed: Tensor<3>,
    swiglu: Tensor<3>,
}

/// Searches a layer, given its f32 weights and its inputs (B, T, C) in chunks.
///
/// # Errors
/// Of the layer's forward pass; none on one rank.
pub fn search_layer(
    weights: &LayerWeights,
    inputs: Vec<Tensor<3>>,
    context: &LayerContext,
    group: usize,
) -> Result<SearchedLayer> {
    let passed: Vec<(Features, Tensor<3>)> = inputs
        .into_iter()
        .map(|x| {
            let (branch, saved) = attention_half(weights, x.clone(), context, &mut OwnKeysValues)?;
            let feed_forward = feed_forward_half(weights, &x, &branch, context)?;
            let FeedForwardSaved { h, normed, swiglu, .. } = feed_forward;
            let output = linear_residual_forward(h, &swiglu, &weights.down_proj);
            let attention_normed = saved.normed;
            let attention_output = saved.o.flatten(2, 3);
            let features =
                Features { x, attention_normed, attention_output, branch, normed, swiglu };
            Ok((features, output))
        })
        .collect::<Result<_>>()?;
    let (features, outputs): (Vec<Features>, Vec<Tensor<3>>) = passed.into_iter().unzip();

    let mut found = weights.clone();
    let mut shares = Vec::new();
    let mut searched =
        |inputs: Vec<&Tensor<3>>, matrices: &[&Tensor<2>], loss: &Loss| -> Result<_> {
            let (share, scales) = best_scales(&inputs, matrices, group, loss)?;
            shares.push(share);
            Ok(scales)
        };

    let attention = |tried: &[Tensor<2>]| {
        let mut changed = weights.clone();
        [changed.q_proj, changed.k_proj, changed.v_proj] = three(tried);
        sum(features.iter().map(|f| {
            let x = f.x.clone();
            let branch = attention_half(&changed, x, context, &mut OwnKeysValues)?.0;
            Ok(squares(branch - f.branch.clone()))
        }))
    };
    let normed = features.iter().map(|f| &f.attention_normed).collect();
    let qkv = [&weights.q_proj, &weights.k_proj, &weights.v_proj];
    let of_attention = searched(normed, &qkv, &attention)?;

    // Where heads share keys and values, an output meets several inputs and cannot be divided for
    // each.
    let grouped = weights.v_proj.dims()[0] != weights.o_proj.dims()[1];
    let mut search_output = || {
        let loss = |tried: &[Tensor<2>]| {
            sum(features.iter().map(|f| {
                let branch = linear_forward(&f.attention_output, &tried[0]);
                Ok(squares(branch - f.branch.clone()))
            }))
        };
        let inputs = features.iter().map(|f| &f.attention_output).collect();
        searched(inputs, &[&weights.o_proj], &loss)
    };
    let of_output = if grouped { None } else { Some(search_output()?) };

    let feed_forward_outputs: Vec<Tensor<3>> =
        features.iter().map(|f| linear_forward(&f.swiglu, &weights.down_proj)).collect();
    let feed_forward = |tried: &[Tensor<2>]| {
        sum(features.iter().zip(&feed_forward_outputs).map(|(f, expected)| {
            let normed = &f.normed;
            let gate = linear_forward(normed, &tried[0]);
            let up = linear_forward(normed, &tried[1]);
            let swiglu = swiglu_forward(&gate, &up);
            Ok(squares(linear_forward(&swiglu, &weights.down_proj) - expected.clone()))
        }))
    };
    let normed = features.iter().map(|f| &f.normed).collect();
    let of_feed_forward = searched(normed, &[&weights.gate_proj, &weights.up_proj], &feed_forward)?;

    let down = |tried: &[Tensor<2>]| {
        sum(features.iter().zip(&feed_forward_outputs).map(|(f, expected)| {
            Ok(squares(linear_forward(&f.swiglu, &tried[0]) - expected.clone()))
        }))
    };
    let inputs = features.iter().map(|f| &f.swiglu).collect();
    let of_down = searched(inputs, &[&weights.down_proj], &down)?;

    // The divisions go into what makes the inputs.
    found.input_layernorm = divided(&found.input_layernorm, &of_attention);
    for matrix in [&mut found.q_proj, &mut found.k_proj, &mut found.v_proj] {
        *matrix = columns_times(matrix, &of_attention);
    }
    if let Some(scales) = &of_output {
        found.v_proj = rows_divided(&found.v_proj, scales);
        found.o_proj = columns_times(&found.o_proj, scales);
    }
    let gain = &mut found.post_attention_layernorm;
    *gain = divided(gain, &of_feed_forward);
    for matrix in [&mut found.gate_proj, &mut found.up_proj] {
        *matrix = columns_times(matrix, &of_feed_forward);
    }
    found.up_proj = rows_divided(&found.up_proj, &of_down);
    found.down_proj = columns_times(&found.down_proj, &of_down);

    // Queries and keys are not cut: their products would change with both.
    let cut = |matrix: &mut Tensor<2>, inputs: Vec<&Tensor<3>>, scales: Option<&Vec<f32>>| {
        *matrix = with_cuts(matrix, &sampled(&inputs, scales), group);
    };
    let normed = || features.iter().map(|f| &f.attention_normed).collect();
    cut(&mut found.v_proj, normed(), Some(&of_attention));
    let inputs = features.iter().map(|f| &f.attention_output).collect();
    cut(&mut found.o_proj, inputs, of_output.as_ref());
    let normed = || features.iter().map(|f| &f.normed).collect();
    cut(&mut found.gate_proj, normed(), Some(&of_feed_forward));
    cut(&mut found.up_proj, normed(), Some(&of_feed_forward));
    let inputs = features.iter().map(|f| &f.swiglu).collect();
    cut(&mut found.down_proj, inputs, Some(&of_down));
    Ok(SearchedLayer { weights: found, outputs, shares })
}

/// How much what a module gives differs with these matrices.
type Loss<'a> = dyn Fn(&[Tensor<2>]) -> Result<f64> + 'a;

fn three(matrices: &[Tensor<2>]) -> [Tensor<2>; 3] {
    [matrices[0].clone(), matrices[1].clone(), matrices[2].clone()]
}

fn sum(values: impl Iterator<Item = Result<f64>>) -> Result<f64> {
    values.sum()
}

/// Σ x².
fn squares(x: Tensor<3>) -> f64 {
    let values = host(&x);
    let part = |chunk: &[f32]| chunk.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    // Parts of fixed size, so that the sum does not depend on the threads.
    let parts: Vec<f64> = values.par_chunks(1 << 16).map(part).collect();
    parts.iter().sum()
}

fn host<const D: usize>(x: &Tensor<D>) -> Vec<f32> {
    x.to_data().iter::<f32>().collect()
}

/// Values of `like`'s shape on its device.
fn tensor<const D: usize>(values: Vec<f32>, like: &Tensor<D>) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, like.dims()), (&like.device(), like.dtype()))
}

/// The share and the scales for which `loss` is least.
fn best_scales(
    inputs: &[&Tensor<3>],
    matrices: &[&Tensor<2>],
    group: usize,
    loss: &Loss,
) -> Result<(f32, Vec<f32>)> {
    let activations = mean_magnitudes(inputs);
    let weights: Vec<Vec<f32>> = matrices.iter().map(|matrix| host(matrix)).collect();
    let importance = relative_magnitudes(&weights, activations.len(), group);
    let mut best = (f64::INFINITY, 0.0, vec![1.0; activations.len()]);
    for n in 0..SHARES {
        let share = n as f32 / SHARES as f32;
        let scales = scales_of(&activations, &importance, share);
        let tried: Vec<Tensor<2>> = weights
            .iter()
            .zip(matrices)
            .map(|(weights, matrix)| {
                let mut tried = weights.clone();
                tried.par_chunks_mut(scales.len()).for_each(|row| {
                    row.iter_mut().zip(&scales).for_each(|(w, s)| *w *= s);
                    row.chunks_mut(group).for_each(round_trip);
                    row.iter_mut().zip(&scales).for_each(|(w, s)| *w /= s);
                });
                tensor(tried, matrix)
            })
            .collect();
        let found = loss(&tried)?;
        if found < best.0 {
            best = (found, share, scales);
        }
    }
    Ok((best.1, best.2))
}

/// `m^r / (w^(1−r) + 1e-4)`, with its largest and smallest as far from 1 as each other.
fn scales_of(activations: &[f32], importance: &[f32], share: f32) -> Vec<f32> {
    let scale = |(m, w): (&f32, &f32)| (m.powf(share) / (w.powf(1.0 - share) + 1e-4)).max(1e-4);
    let mut scales: Vec<f32> = activations.iter().zip(importance).map(scale).collect();
    let most = scales.iter().copied().fold(0f32, f32::max);
    let least = scales.iter().copied().fold(f32::INFINITY, f32::min);
    let middle = (most * least).sqrt();
    for scale in &mut scales {
        *scale /= middle;
        if !(scale.is_finite() && *scale > 0.0) {
            *scale = 1.0;
        }
    }
    scales
}

/// Mean of |x| of every channel.
fn mean_magnitudes(inputs: &[&Tensor<3>]) -> Vec<f32> {
    let width = inputs.first().map_or(0, |x| x.dims()[2]);
    let (mut sums, mut tokens) = (vec![0f64; width], 0usize);
    for x in inputs {
        for token in host(x).chunks(width.max(1)) {
            sums.iter_mut().zip(token).for_each(|(sum, x)| *sum += f64::from(x.abs()));
            tokens += 1;
        }
    }
    sums.iter().map(|sum| (sum / tokens.max(1) as f64) as f32).collect()
}

/// Mean of |w| of every input over all rows, each over the largest of its group.
fn relative_magnitudes(matrices: &[Vec<f32>], inputs: usize, group: usize) -> Vec<f32> {
    let (mut sums, mut rows) = (vec![0f64; inputs], 0usize);
    for row in matrices.iter().flat_map(|matrix| matrix.chunks(inputs.max(1))) {
        for (sums, weights) in sums.chunks_mut(group).zip(row.chunks(group)) {
            let most = weights.iter().fold(0f32, |most, w| most.max(w.abs()));
            for (sum, w) in sums.iter_mut().zip(weights) {
                *sum += f64::from(w.abs() / (most + 1e-6));
            }
        }
        rows += 1;
    }
    sums.iter().map(|sum| (sum / rows.max(1) as f64) as f32).collect()
}

fn divided(gain: &Tensor<1>, scales: &[f32]) -> Tensor<1> {
    let values = host(gain).iter().zip(scales).map(|(x, s)| x / s).collect();
    tensor(values, gain)
}

fn columns_times(matrix: &Tensor<2>, scales: &[f32]) -> Tensor<2> {
    let mut values = host(matrix);
    for row in values.chunks_mut(scales.len()) {
        row.iter_mut().zip(scales).for_each(|(w, s)| *w *= s);
    }
    tensor(values, matrix)
}

fn rows_divided(matrix: &Tensor<2>, scales: &[f32]) -> Tensor<2> {
    let mut values = host(matrix);
    let width = values.len() / scales.len().max(1);
    for (row, s) in values.chunks_mut(width.max(1)).zip(scales) {
        row.iter_mut().for_each(|w| *w /= s);
    }
    tensor(values, matrix)
}

/// The inputs of up to [`CUT_TOKENS`] tokens, evenly from all, divided by the scales.
fn sampled(inputs: &[&Tensor<3>], scales: Option<&Vec<f32>>) -> Vec<Vec<f32>> {
    let tokens = |x: &Tensor<3>| x.dims()[0] * x.dims()[1];
    let all: usize = inputs.iter().map(|x| tokens(x)).sum();
    let step = all.div_ceil(CUT_TOKENS).max(1);
    let mut rows = Vec::new();
    let mut at = 0;
    for x in inputs {
        let width = x.dims()[2];
        for token in host(x).chunks(width.max(1)) {
            if at % step == 0 {
                let mut row = token.to_vec();
                if let Some(scales) = scales {
                    row.iter_mut().zip(scales).for_each(|(x, s)| *x /= s);
                }
                rows.push(row);
            }
            at += 1;
        }
    }
    rows
}

/// The matrix with the weights of each row's groups cut where what they add to the output, over these
/// inputs, then differs least once they are packed.
fn with_cuts(matrix: &Tensor<2>, inputs: &[Vec<f32>], group: usize) -> Tensor<2> {
    let mut values = host(matrix);
    let width = matrix.dims()[1];
    // Σ x xᵀ of each group: an error e of the weights is eᵀ (Σ x xᵀ) e in the output.
    let products: Vec<Vec<f32>> = (0..width / group)
        .into_par_iter()
        .map(|n| {
            let mut product = vec![0f32; group * group];
            for token in inputs {
                let x = &token[n * group..(n + 1) * group];
                for (row, a) in product.chunks_mut(group).zip(x) {
                    row.iter_mut().zip(x).for_each(|(sum, b)| *sum += a * b);
                }
            }
            product
        })
        .collect();
    values.par_chunks_mut(width).for_each(|row| {
        for (weights, product) in row.chunks_mut(group).zip(&products) {
            cut_group(weights, product);
        }
    });
    tensor(values, matrix)
}

fn cut_group(weights: &mut [f32], product: &[f32]) {
    let most = weights.iter().fold(0f32, |most, w| most.max(w.abs()));
    let mut best = (f64::INFINITY, most);
    for n in 0..(MOST_CUT * CUTS as f32) as usize {
        let bound = most * (1.0 - n as f32 / CUTS as f32);
        let mut tried: Vec<f32> = weights.iter().map(|w| w.clamp(-bound, bound)).collect();
        round_trip(&mut tried);
        tried.iter_mut().zip(weights.iter()).for_each(|(tried, w)| *tried -= w);
        let rows = product.chunks(weights.len()).zip(&tried);
        let error: f64 = rows
            .map(|(row, e)| f64::from(e * row.iter().zip(&tried).map(|(p, e)| p * e).sum::<f32>()))
            .sum();
        if error < best.0 {
            best = (error, bound);
        }
    }
    weights.iter_mut().for_each(|w| *w = w.clamp(-best.1, best.1));
}
