//! What each op is tried with. `kernels` holds the results on every device to those of the references
//! in f64, `cube` those on a GPU to the CPU's.
//!
//! A check tries the ops that stand behind its name in the table of ops, at shapes that are no multiple
//! of a tile. It names the op that computed each result, and one that it does not try fails it.

use std::collections::BTreeSet;

use altiplano_model::backend::AdamWStep;
use altiplano_model::config::rope_frequencies;
use altiplano_model::ops::{self, IGNORED_TARGET, RopeTable};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{random_ids, relative_error, uniform};

/// Where a check runs and what it computes in.
pub struct Place<'a> {
    pub device: &'a Device,
    /// What activations and matrix weights are rounded to.
    pub dtype: DType,
    /// Whether everything is computed in f64, which takes the references.
    pub exact: bool,
    /// Whether it has the time for long sequences.
    pub thorough: bool,
}

impl Place<'_> {
    /// Numbers from −scale to scale in the format under test.
    fn scaled<const D: usize>(&self, shape: [usize; D], seed: u64, scale: f64) -> Tensor<D> {
        self.rounded(shape, seed, scale, self.dtype)
    }

    /// Numbers from −1 to 1 in the format under test.
    fn active<const D: usize>(&self, shape: [usize; D], seed: u64) -> Tensor<D> {
        self.scaled(shape, seed, 1.0)
    }

    /// The same in f32: gains, master weights, accumulators.
    fn f32<const D: usize>(&self, shape: [usize; D], seed: u64) -> Tensor<D> {
        self.rounded(shape, seed, 1.0, DType::F32)
    }

    /// Multiples of 1/64 from −1 to 1, whose sums in bf16 are exact.
    fn sixty_fourths<const D: usize>(&self, shape: [usize; D], seed: u64) -> Tensor<D> {
        let values = uniform(shape.iter().product(), seed);
        let values = values.into_iter().map(|x| (x * 64.0).round() / 64.0).collect();
        self.tensor(values, shape, self.dtype)
    }

    fn rounded<const D: usize>(
        &self,
        shape: [usize; D],
        seed: u64,
        scale: f64,
        dtype: DType,
    ) -> Tensor<D> {
        let values = uniform(shape.iter().product(), seed);
        self.tensor(values.into_iter().map(|x| scale * x).collect(), shape, dtype)
    }

    /// `values` rounded to `dtype`, in it or in f64.
    fn tensor<const D: usize>(
        &self,
        values: Vec<f64>,
        shape: [usize; D],
        dtype: DType,
    ) -> Tensor<D> {
        let rounded = TensorData::new(values, shape).convert_dtype(dtype);
        let dtype = self.computed_in(dtype);
        Tensor::from_data(rounded.convert_dtype(dtype), (self.device, dtype))
    }

    fn computed_in(&self, dtype: DType) -> DType {
        if self.exact { DType::F64 } else { dtype }
    }

    fn ids(&self, values: &[i32], shape: [usize; 2]) -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), (self.device, DType::I32))
    }

    fn random_ids(&self, shape: [usize; 2], below: usize, seed: u64) -> Vec<i32> {
        let ids = random_ids(shape, below as i32, seed, &Device::flex());
        ids.to_data().iter::<i32>().collect()
    }
}

/// How a result is rounded.
#[derive(Clone, Copy, PartialEq)]
enum Rounded {
    /// As activations are.
    Active,
    /// To f32.
    F32,
    /// Not at all: a copy.
    Copied,
}

/// A result of an op.
struct Output {
    op: &'static str,
    what: String,
    rounded: Rounded,
    values: Vec<f64>,
}

/// The results of a check.
#[derive(Default)]
pub struct Outputs {
    all: Vec<Output>,
    /// Ops that need bf16, where that is not under test.
    left_out: Vec<&'static str>,
}

impl Outputs {
    fn push<const D: usize>(
        &mut self,
        op: &'static str,
        what: String,
        rounded: Rounded,
        x: &Tensor<D>,
    ) {
        let values = x.to_data().iter::<f64>().collect();
        self.all.push(Output { op, what, rounded, values });
    }

    /// `x` was computed by `op` in the format under test.
    fn active<const D: usize>(&mut self, op: &'static str, what: String, x: &Tensor<D>) {
        self.push(op, what, Rounded::Active, x);
    }

    /// `x` was computed by `op` in f32.
    fn f32<const D: usize>(&mut self, op: &'static str, what: String, x: &Tensor<D>) {
        self.push(op, what, Rounded::F32, x);
    }

    /// `x` was copied by `op`, or was not to be changed by it.
    fn copied<const D: usize>(&mut self, op: &'static str, what: String, x: &Tensor<D>) {
        self.push(op, what, Rounded::Copied, x);
    }
}

/// A check of the table.
pub struct Check {
    pub name: &'static str,
    /// Its ops, all of which it has to try.
    pub ops: &'static [&'static str],
    pub body: fn(&Place, &mut Outputs),
}

/// Relative errors that are tolerated in results.
pub struct Tolerance {
    /// Those in the format under test.
    pub active: f64,
    /// Those in f32.
    pub f32: f64,
}

impl Check {
    fn run(&self, place: &Place) -> Outputs {
        let mut outputs = Outputs::default();
        (self.body)(place, &mut outputs);
        let tried = outputs.all.iter().map(|output| output.op).chain(outputs.left_out.clone());
        let expected = BTreeSet::from_iter(self.ops.iter().copied());
        assert_eq!(BTreeSet::from_iter(tried), expected, "the ops that {} tries", self.name);
        outputs
    }

    /// What the ops compute at `place` is what they compute at `reference`, to `tolerance`.
    pub fn agree(&self, reference: &Place, place: &Place, tolerance: &Tolerance) {
        let (expected, found) = (self.run(reference), self.run(place));
        assert_eq!(expected.all.len(), found.all.len());
        for (expected, found) in expected.all.iter().zip(&found.all) {
            let Output { op, what, rounded, values } = found;
            let tolerated = match rounded {
                Rounded::Active => tolerance.active,
                Rounded::F32 => tolerance.f32,
                Rounded::Copied => 0.0,
            };
            let error = relative_error(values, &expected.values);
            assert!(
                error <= tolerated,
                "{what} of {op} in {:?}: relative error {error:e}, tolerated {tolerated:e}",
                place.dtype
            );
        }
    }
}

/// (batch, time, channels): none a multiple of a tile, rows of one element and rows longer than a
/// cube takes at once.
const SHAPES: [[usize; 3]; 5] = [[1, 1, 16], [1, 17, 48], [2, 65, 33], [3, 130, 96], [1, 3, 2100]];

pub fn linear(place: &Place, outputs: &mut Outputs) {
    for [b, t, c] in SHAPES {
        let out = if c > 1000 { 40 } else { c + 7 };
        let what = |name: &str| format!("{name} {b} {t} {c}");
        let x = place.active([b, t, c], 1);
        let weight = place.active([out, c], 2);
        let dy = place.active([b, t, out], 3);
        let mut dweight = place.f32([out, c], 4);
        let y = ops::linear_forward(&x, &weight);
        let dx = ops::linear_backward(&dy, &x, &weight, &mut dweight);
        outputs.active("linear_forward", what("y"), &y);
        outputs.active("linear_backward_input", what("dx"), &dx);
        outputs.active("linear_backward_weight", what("dweight"), &dweight);

        // The same added to what is there, which stays as it was for whoever else holds it.
        let stream = place.active([b, t, out], 5);
        let sum = ops::linear_residual_forward(stream.clone(), &x, &weight);
        outputs.active("linear_residual_forward", what("residual + y"), &sum);
        outputs.copied("linear_residual_forward", what("residual, still held"), &stream);
        let begun = place.active([b, t, c], 6);
        for (name, dx) in [("dx of a shared sum", begun.clone()), ("dx of a sum", begun)] {
            let mut again = place.f32([out, c], 4);
            let dx = ops::linear_backward_add(dx, &dy, &x, &weight, &mut again);
            outputs.active("linear_backward_input_add", what(name), &dx);
            outputs.active("linear_backward_weight", what("dweight again"), &again);
        }
    }
}

pub fn rms_norm(place: &Place, outputs: &mut Outputs) {
    // More rows than cubes share, and rows that several warps share, too.
    for [b, t, c] in SHAPES.into_iter().chain([[2, 700, 12], [2, 9, 2048], [1, 5, 4096]]) {
        let what = |name: &str| format!("{name} {b} {t} {c}");
        let weight = place.f32([c], 2);
        let dy = place.active([b, t, c], 3);
        let x = place.active([b, t, c], 1);
        let mut dweight = place.f32([c], 4);
        let (y, rstd) = ops::rms_norm_forward(&x, &weight, 1e-5);
        let dx = ops::rms_norm_backward(&dy, &x, &weight, &rstd, &mut dweight);
        outputs.active("rms_norm_forward", what("y"), &y);
        outputs.f32("rms_norm_forward", what("rstd"), &rstd);
        outputs.active("rms_norm_backward", what("dx"), &dx);
        outputs.f32("rms_norm_backward", what("dweight"), &dweight);

        // Their sum h is exact, so what follows from it may be held to f32's accuracy.
        let (x, branch) = (place.sixty_fourths([b, t, c], 5), place.sixty_fourths([b, t, c], 6));
        let (h, y, rstd) = ops::residual_rms_norm_forward(&x, &branch, &weight, 1e-5);
        outputs.copied("residual_rms_norm_forward", what("h"), &h);
        outputs.active("residual_rms_norm_forward", what("y of h"), &y);
        outputs.f32("residual_rms_norm_forward", what("rstd of h"), &rstd);
        let mut dweight = place.f32([c], 4);
        let dx = ops::residual_rms_norm_backward(branch, &dy, &h, &weight, &rstd, &mut dweight);
        outputs.active("residual_rms_norm_backward", what("stream + dx"), &dx);
        outputs.f32("residual_rms_norm_backward", what("dweight of h"), &dweight);
    }
}

pub fn rope(place: &Place, outputs: &mut Outputs) {
    for (b, t, h, d) in [(1, 1, 1, 2), (1, 1, 1, 8), (2, 17, 3, 16), (1, 65, 2, 6), (1, 65, 4, 48)]
    {
        let what = |name: &str| format!("{name} {b} {t} {h} {d}");
        let dtype = place.computed_in(DType::F32);
        let table = RopeTable::new(t + 5, &rope_frequencies(d, 10_000.0), dtype, place.device)
            .positions(5, t);
        let x = || place.active([b, t, h, d], 1);
        let held = x();
        let y = ops::rope_forward(held.clone(), &table);
        outputs.active("rope_forward", what("y of a shared x"), &y);
        outputs.copied("rope_forward", what("x, still held"), &held);
        outputs.active("rope_forward", what("y"), &ops::rope_forward(x(), &table));
        let dx = ops::rope_backward(held.clone(), &table);
        outputs.active("rope_backward", what("dx of a shared dy"), &dx);
        outputs.active("rope_backward", what("dx"), &ops::rope_backward(x(), &table));
    }
}

pub fn swiglu(place: &Place, outputs: &mut Outputs) {
    for shape in SHAPES {
        let what = |name: &str| format!("{name} {shape:?}");
        let gate = place.scaled(shape, 1, 8.0);
        let (up, dy) = (place.active(shape, 2), place.active(shape, 3));
        let (dgate, dup) = ops::swiglu_backward(&dy, &gate, &up);
        outputs.active("swiglu_forward", what("y"), &ops::swiglu_forward(&gate, &up));
        outputs.active("swiglu_backward", what("dgate"), &dgate);
        outputs.active("swiglu_backward", what("dup"), &dup);
    }
}

pub fn residual(place: &Place, outputs: &mut Outputs) {
    for shape in SHAPES {
        let what = |name: &str| format!("{name} {shape:?}");
        let held = place.active(shape, 1);
        let branch = place.active(shape, 2);
        let sum = ops::residual_forward(held.clone(), &branch);
        outputs.active("residual_forward", what("sum"), &sum);
        outputs.copied("residual_forward", what("the stream, still held"), &held);
        let sum = ops::residual_forward(place.active(shape, 3), &branch);
        outputs.active("residual_forward", what("sum in place"), &sum);
    }
}

pub fn embedding(place: &Place, outputs: &mut Outputs) {
    for (b, t, v, c) in [(1, 1, 3, 4), (3, 40, 31, 24), (2, 150, 5, 33), (4, 700, 900, 24)] {
        let what = |name: &str| format!("{name} {b} {t} {v} {c}");
        let weight = place.active([v, c], 1);
        let ids = place.ids(&place.random_ids([b, t], v, 2), [b, t]);
        let dy = place.active([b, t, c], 3);
        let mut dweight = place.f32([v, c], 4);
        ops::embedding_backward(&dy, &ids, &mut dweight);
        outputs.copied("embedding_forward", what("y"), &ops::embedding_forward(&weight, &ids));
        outputs.active("embedding_backward", what("dweight"), &dweight);
    }
}

pub fn head(place: &Place, outputs: &mut Outputs) {
    // The last two have more tokens than one chunk of logits.
    for (b, t, c, v) in
        [(1, 1, 16, 5), (2, 19, 24, 67), (3, 130, 32, 301), (3, 700, 8, 11), (3, 700, 8, 24)]
    {
        let what = |name: &str| format!("{name} {b} {t} {c} {v}");
        let x = place.active([b, t, c], 1);
        let weight = place.active([v, c], 2);
        let mut targets = place.random_ids([b, t], v, 3);
        targets.iter_mut().step_by(5).skip(1).for_each(|id| *id = IGNORED_TARGET);
        let tokens = place.ids(&targets, [b, t]);
        let mut dweight = place.f32([v, c], 4);
        let losses = ops::head_cross_entropy_forward(&x, &weight, &tokens);
        let (again, dx) =
            ops::head_cross_entropy_backward(&x, &weight, &tokens, 0.37, &mut dweight);
        assert_eq!(super::values(&losses), super::values(&again), "{}", what("losses of both"));
        for (loss, target) in super::values(&losses).into_iter().zip(targets) {
            assert_eq!(loss == 0.0, target < 0, "loss {loss} of target {target}");
        }
        outputs.f32("head_cross_entropy_forward", what("losses"), &losses);
        outputs.active("head_cross_entropy_backward", what("dx"), &dx);
        outputs.active("head_cross_entropy_backward", what("dweight"), &dweight);
        outputs.f32("head_logits", what("logits"), &ops::head_logits(&x, &weight));
    }
}

pub fn attention(place: &Place, outputs: &mut Outputs) {
    // A driver on the CPU takes seconds to compile a kernel, and a kernel is one head width.
    let mut cases = vec![
        ([1, 1, 2, 2, 16], false),
        ([2, 17, 4, 2, 48], true),
        ([1, 40, 2, 1, 33], false),
        ([1, 70, 3, 1, 64], true),
        ([1, 18, 1, 1, 128], false),
    ];
    if place.thorough {
        cases.extend([
            ([1, 65, 6, 1, 64], false),
            ([2, 300, 8, 2, 64], true),
            ([2, 257, 4, 4, 128], false),
            ([1, 513, 4, 1, 128], true),
            ([1, 20, 1, 1, 200], true),
        ]);
    }
    for ([b, t, h, k, d], bounded) in cases {
        let what = |name: &str| format!("{name} {b} {t} {h} {k} {d} {bounded}");
        let first: Vec<i32> = (0..b * t).map(|n| ((n % t) / 13 * 13) as i32).collect();
        let q = place.scaled([b, t, h, d], 1, 3.0);
        let key = place.active([b, t, k, d], 2);
        let value = place.active([b, t, k, d], 3);
        let dout = place.active([b, t, h, d], 4);
        let first = bounded.then(|| place.ids(&first, [b, t]));
        let first = first.as_ref();
        let (o, lse) = ops::causal_attention_forward(&q, &key, &value, first);
        let (dq, dk, dv) = ops::causal_attention_backward(&dout, &q, &key, &value, &o, &lse, first);
        outputs.active("causal_attention_forward", what("o"), &o);
        outputs.active("causal_attention_forward", what("lse"), &lse);
        outputs.active("causal_attention_backward", what("dv"), &dv);
        // A single token attends to itself alone: its score has no gradient.
        if t > 1 {
            outputs.active("causal_attention_backward", what("dq"), &dq);
            outputs.active("causal_attention_backward", what("dk"), &dk);
        }
    }
    // After a cache there are more keys than queries.
    for queries in [1, 5, 33, 69] {
        let q = place.active([1, queries, 4, 32], 1);
        let (key, value) = (place.active([1, 70, 2, 32], 2), place.active([1, 70, 2, 32], 3));
        let (o, lse) = ops::causal_attention_forward(&q, &key, &value, None);
        outputs.active("causal_attention_forward", format!("o of {queries} queries"), &o);
        outputs.active("causal_attention_forward", format!("lse of {queries} queries"), &lse);
    }
}

pub fn adamw(place: &Place, outputs: &mut Outputs) {
    let with_copy = place.dtype == DType::BF16;
    if !with_copy {
        outputs.left_out.push("adamw_step_with_copy");
    }
    for shape in [[37, 29], [64, 64], [1, 3]] {
        let start = place.f32(shape, 1);
        for copies in if with_copy { &[false, true][..] } else { &[false] } {
            let op = if *copies { "adamw_step_with_copy" } else { "adamw_step" };
            let what = |name: &str| format!("{name} {shape:?}");
            let mut param = start.clone() * 1.0;
            let mut copy = start.clone().cast(place.computed_in(DType::BF16));
            let (mut m, mut v) = (param.zeros_like(), param.zeros_like());
            for step in 1..=5 {
                let grad = place.f32(shape, 10 + step);
                let hyper = AdamWStep {
                    lr: 1e-2,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    step,
                    grad_scale: 0.7,
                };
                let copy = copies.then_some(&mut copy);
                ops::adamw_step(&mut param, &mut m, &mut v, &grad, copy, &hyper);
            }
            if *copies {
                let rounded = param.clone().cast(copy.dtype());
                assert_eq!(super::values(&copy), super::values(&rounded), "{}", what("copy"));
                outputs.active(op, what("copy"), &copy);
            }
            outputs.f32(op, what("param"), &param);
            outputs.f32(op, what("m"), &m);
            outputs.f32(op, what("v"), &v);
            let norms = ops::totals(vec![ops::sum_of_squares(&param), ops::sum_of_squares(&m)]);
            let norms: Tensor<1> =
                Tensor::from_data(TensorData::from(&norms[..]), (&Device::flex(), DType::F64));
            outputs.f32("sum_of_squares", what("norms"), &norms);
            ops::fill_zero(&mut m);
            outputs.copied("fill_zero", what("zeroed"), &m);
        }
    }
}

pub fn kv_cache(place: &Place, outputs: &mut Outputs) {
    let mut cache = place.active([9, 2, 6], 4);
    ops::kv_cache_write(&mut cache, place.active([3, 2, 6], 5), 5);
    outputs.copied("kv_cache_write", "cache".to_string(), &cache);
}
