//! The GPU kernels against the CPU's: on NVIDIA GPUs, and in f32 through WebGPU on whatever Vulkan
//! driver there is (Mesa's runs on the CPU).

use altiplano_model::backend::AdamWStep;
use altiplano_model::config::rope_frequencies;
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::ops::{self, IGNORED_TARGET, RopeTable};
use altiplano_model::params::{Grads, Weights};
use altiplano_model::{ActivationCheckpointing, LlamaConfig, Precision, device};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{POLICIES, on_device, random_ids, relative_error, tiny_config, uniform, values};
use crate::harness::SmallRun;

/// Instantiates a body for every GPU runtime of this build: f32 through WebGPU, f32 and bf16 on
/// NVIDIA GPUs. One that is not there is skipped by name.
macro_rules! gpu_test {
    ($($name:ident),+ $(,)?) => {
        #[cfg(feature = "wgpu")]
        mod wgpu {
            $(#[test]
            fn $name() {
                super::on_gpu("wgpu", super::F32, super::$name);
            })+
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test]
            fn $name() {
                super::on_gpu("cuda", super::F32, super::$name);
                super::on_gpu("cuda", super::BF16, super::$name);
            })+
        }
    };
}

gpu_test!(
    linear,
    rms_norm,
    rope,
    swiglu_and_residual,
    embedding,
    head_and_cross_entropy,
    attention,
    attention_after_a_cache,
    adamw_and_norms,
    sums_of_squares_are_exact_to_a_few_roundings,
    policies_agree_bit_for_bit_and_with_the_cpu,
    a_run_learns_as_on_the_cpu,
);

/// A number format with the relative error its rounding allows.
type Format = (DType, f64);

const F32: Format = (DType::F32, 1e-5);
const BF16: Format = (DType::BF16, 1e-2);

/// A GPU, its reference and the format under test.
struct Setting {
    name: &'static str,
    cpu: Device,
    gpu: Device,
    dtype: DType,
    tolerance: f64,
}

/// Runs `body` on the GPU called `name`, where it is there.
fn on_gpu(name: &'static str, (dtype, tolerance): Format, body: fn(&Setting)) {
    on_device(name, |gpu| {
        let cpu = device::select("cpu").unwrap();
        body(&Setting { name, cpu, gpu: gpu.clone(), dtype, tolerance });
    });
}

/// (batch, time, channels): none a multiple of a tile, rows of one element and rows longer than a
/// cube takes at once.
const SHAPES: [[usize; 3]; 5] = [[1, 1, 16], [1, 17, 48], [2, 65, 33], [3, 130, 96], [1, 3, 2100]];

/// Numbers drawn alike on every device; an activation or a weight in the format under test.
fn tensor<const D: usize>(shape: [usize; D], seed: u64, (device, dtype): Place) -> Tensor<D> {
    let values = uniform(shape.iter().product(), seed);
    let data = TensorData::new(values, shape).convert_dtype(dtype);
    Tensor::from_data(data, (device, dtype))
}

/// The same in f32: gains, tables, accumulators.
fn f32_tensor<const D: usize>(shape: [usize; D], seed: u64, (device, _): Place) -> Tensor<D> {
    tensor(shape, seed, (device, DType::F32))
}

/// Where, and in which format.
type Place<'a> = (&'a Device, DType);

fn ids(values: &[i32], shape: [usize; 2], (device, _): Place) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, DType::I32))
}

fn random_values(shape: [usize; 2], below: i32, seed: u64) -> Vec<i32> {
    random_ids(shape, below, seed, &Device::flex()).to_data().iter::<i32>().collect()
}

/// Runs `op` on the CPU and the GPU; every output agrees to the tolerance of its norm.
#[track_caller]
fn agree(what: &str, setting: &Setting, op: impl Fn(Place) -> Vec<(&'static str, Vec<f64>)>) {
    let Setting { name: gpu_name, dtype, tolerance, .. } = *setting;
    let [cpu, gpu] = [&setting.cpu, &setting.gpu].map(|device| op((device, dtype)));
    for ((name, expected), (_, found)) in cpu.iter().zip(&gpu) {
        let error = relative_error(found, expected);
        assert!(
            error <= tolerance,
            "{what} on {gpu_name} in {dtype:?}: {name} differs by {error:e}"
        );
    }
}

fn linear(setting: &Setting) {
    for [b, t, c] in SHAPES {
        let outputs = if c > 1000 { 40 } else { c + 7 };
        agree(&format!("linear {b} {t} {c}"), setting, |place| {
            let x = tensor([b, t, c], 1, place);
            let weight = tensor([outputs, c], 2, place);
            let dy = tensor([b, t, outputs], 3, place);
            let mut dweight = f32_tensor([outputs, c], 4, place);
            let y = ops::linear_forward(&x, &weight);
            let dx = ops::linear_backward(&dy, &x, &weight, &mut dweight);
            let logits = ops::head_logits(&x, &weight);
            vec![
                ("y", values(&y)),
                ("dx", values(&dx)),
                ("dweight", values(&dweight)),
                ("logits", values(&logits)),
            ]
        });
    }
}

fn rms_norm(setting: &Setting) {
    // More rows than cubes share, and rows that several warps share, too.
    for [b, t, c] in SHAPES.into_iter().chain([[2, 700, 12], [2, 9, 2048], [1, 5, 4096]]) {
        agree(&format!("rms_norm {b} {t} {c}"), setting, |place| {
            let x = tensor([b, t, c], 1, place);
            let weight = f32_tensor([c], 2, place);
            let dy = tensor([b, t, c], 3, place);
            let mut dweight = f32_tensor([c], 4, place);
            let (y, rstd) = ops::rms_norm_forward(&x, &weight, 1e-5);
            let dx = ops::rms_norm_backward(&dy, &x, &weight, &rstd, &mut dweight);
            vec![
                ("y", values(&y)),
                ("rstd", values(&rstd)),
                ("dx", values(&dx)),
                ("dweight", values(&dweight)),
            ]
        });
    }
}

fn rope(setting: &Setting) {
    for (b, t, h, d) in [(1, 1, 1, 8), (2, 17, 3, 16), (1, 65, 2, 6)] {
        agree(&format!("rope {b} {t} {h} {d}"), setting, |place| {
            let frequencies = rope_frequencies(d, 10_000.0);
            let table = RopeTable::new(t + 5, &frequencies, DType::F32, place.0).positions(3, t);
            let x = tensor([b, t, h, d], 1, place);
            let kept = x.clone();
            let shared = ops::rope_forward(x, &table);
            let alone = ops::rope_backward(tensor([b, t, h, d], 1, place), &table);
            vec![
                ("y", values(&shared)),
                ("dx", values(&alone)),
                ("x, which is still held", values(&kept)),
            ]
        });
    }
}

fn swiglu_and_residual(setting: &Setting) {
    for shape in SHAPES {
        agree(&format!("swiglu {shape:?}"), setting, |place| {
            let gate = tensor(shape, 1, place) * 4.0;
            let up = tensor(shape, 2, place);
            let dy = tensor(shape, 3, place);
            let (dgate, dup) = ops::swiglu_backward(&dy, &gate, &up);
            let kept = gate.clone();
            let sum = ops::residual_forward(gate.clone(), &up);
            let in_place = ops::residual_forward(tensor(shape, 5, place), &up);
            vec![
                ("y", values(&ops::swiglu_forward(&gate, &up))),
                ("dgate", values(&dgate)),
                ("dup", values(&dup)),
                ("sum", values(&sum)),
                ("sum in place", values(&in_place)),
                ("the stream, which is still held", values(&kept)),
            ]
        });
    }
}

fn embedding(setting: &Setting) {
    for (b, t, v, c) in [(1, 1, 3, 4), (3, 40, 31, 24), (2, 150, 5, 33), (4, 700, 900, 24)] {
        let tokens = random_values([b, t], v as i32, 2);
        agree(&format!("embedding {b} {t} {v} {c}"), setting, |place| {
            let weight = tensor([v, c], 1, place);
            let tokens = ids(&tokens, [b, t], place);
            let dy = tensor([b, t, c], 3, place);
            let mut dweight = f32_tensor([v, c], 4, place);
            ops::embedding_backward(&dy, &tokens, &mut dweight);
            vec![
                ("y", values(&ops::embedding_forward(&weight, &tokens))),
                ("dweight", values(&dweight)),
            ]
        });
    }
}

fn head_and_cross_entropy(setting: &Setting) {
    // The last two have more tokens than one chunk of logits.
    for (b, t, c, v) in
        [(1, 1, 16, 5), (2, 19, 24, 67), (3, 130, 32, 301), (3, 700, 8, 11), (3, 700, 8, 24)]
    {
        let mut targets = random_values([b, t], v as i32, 3);
        targets.iter_mut().step_by(5).skip(1).for_each(|id| *id = IGNORED_TARGET);
        agree(&format!("head {b} {t} {c} {v}"), setting, |place| {
            let x = tensor([b, t, c], 1, place);
            let weight = tensor([v, c], 2, place);
            let targets = ids(&targets, [b, t], place);
            let mut dweight = f32_tensor([v, c], 4, place);
            let losses = ops::head_cross_entropy_forward(&x, &weight, &targets);
            let (again, dx) =
                ops::head_cross_entropy_backward(&x, &weight, &targets, 0.37, &mut dweight);
            assert_eq!(values(&losses), values(&again));
            vec![("losses", values(&losses)), ("dx", values(&dx)), ("dweight", values(&dweight))]
        });
    }
}

fn attention(setting: &Setting) {
    // A driver on the CPU takes seconds to compile a kernel, and a kernel is one shape.
    let mut cases = vec![
        ([1, 1, 2, 2, 16], false),
        ([2, 17, 4, 2, 48], true),
        ([1, 40, 2, 1, 33], false),
        ([1, 70, 3, 1, 64], true),
        ([1, 18, 1, 1, 128], false),
    ];
    if setting.name == "cuda" {
        cases.extend([
            ([1, 65, 6, 1, 64], false),
            ([2, 300, 8, 2, 64], true),
            ([2, 257, 4, 4, 128], false),
            ([1, 513, 4, 1, 128], true),
            ([1, 20, 1, 1, 200], true),
        ]);
    }
    for ([b, t, h, k, d], bounded) in cases {
        let first: Vec<i32> = (0..b * t).map(|n| ((n % t) / 13 * 13) as i32).collect();
        agree(&format!("attention {b} {t} {h} {k} {d} {bounded}"), setting, |place| {
            let q = tensor([b, t, h, d], 1, place) * 3.0;
            let key = tensor([b, t, k, d], 2, place);
            let value = tensor([b, t, k, d], 3, place);
            let dout = tensor([b, t, h, d], 4, place);
            let first = bounded.then(|| ids(&first, [b, t], place));
            let first = first.as_ref();
            let (o, lse) = ops::causal_attention_forward(&q, &key, &value, first);
            let (dq, dk, dv) =
                ops::causal_attention_backward(&dout, &q, &key, &value, &o, &lse, first);
            let mut outputs = vec![("o", values(&o)), ("lse", values(&lse)), ("dv", values(&dv))];
            // A single token attends to itself alone: its score has no gradient.
            if t > 1 {
                outputs.extend([("dq", values(&dq)), ("dk", values(&dk))]);
            }
            outputs
        });
    }
}

fn attention_after_a_cache(setting: &Setting) {
    for queries in [1, 5, 33, 69] {
        agree(&format!("{queries} queries"), setting, |place| {
            let q = tensor([1, queries, 4, 32], 1, place);
            let key = tensor([1, 70, 2, 32], 2, place);
            let value = tensor([1, 70, 2, 32], 3, place);
            let (o, lse) = ops::causal_attention_forward(&q, &key, &value, None);
            let mut cache = tensor([9, 2, 6], 4, place);
            ops::kv_cache_write(&mut cache, tensor([3, 2, 6], 5, place), 5);
            vec![("o", values(&o)), ("lse", values(&lse)), ("cache", values(&cache))]
        });
    }
}

fn adamw_and_norms(setting: &Setting) {
    for shape in [[37, 29], [64, 64], [1, 3]] {
        agree(&format!("adamw {shape:?}"), setting, |place| {
            let mut param = f32_tensor(shape, 1, place);
            let mut copy = (param.clone() * 1.0).cast(place.1);
            let copied = place.1 == DType::BF16;
            let mut m = param.zeros_like();
            let mut v = param.zeros_like();
            for step in 1..=5 {
                let grad = f32_tensor(shape, 10 + step, place);
                let hyper = AdamWStep {
                    lr: 1e-2,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    step,
                    grad_scale: 0.7,
                };
                let copy = copied.then_some(&mut copy);
                ops::adamw_step(&mut param, &mut m, &mut v, &grad, copy, &hyper);
            }
            if copied {
                assert_eq!(values(&copy), values(&param.clone().cast(DType::BF16)));
            }
            let norms = ops::totals(vec![ops::sum_of_squares(&param), ops::sum_of_squares(&m)]);
            let mut zeroed = m.clone() * 1.0;
            ops::fill_zero(&mut zeroed);
            vec![
                ("param", values(&param)),
                ("m", values(&m)),
                ("v", values(&v)),
                ("norms", norms),
                ("zeroed", values(&zeroed)),
            ]
        });
    }
}

/// f32 squares summed with compensation are as good as in f64.
fn sums_of_squares_are_exact_to_a_few_roundings(setting: &Setting) {
    let count = 1_300_003;
    let x: Tensor<1> = f32_tensor([count], 7, (&setting.gpu, DType::F32));
    let exact: f64 = x.to_data().iter::<f64>().map(|x| x * x).sum();
    let sum = ops::totals(vec![ops::sum_of_squares(&x)])[0];
    assert!(((sum - exact) / exact).abs() < 1e-7, "{sum} is not {exact}");
}

/// Losses and all gradients of a batch.
fn gradients(
    config: &LlamaConfig,
    policy: ActivationCheckpointing,
    (device, dtype): Place,
) -> Vec<f64> {
    let precision = if dtype == DType::BF16 { Precision::Bf16 } else { Precision::F32 };
    let (b, t) = (2, 19);
    let tokens = random_values([b, t], config.vocab_size as i32, 5);
    let targets = random_values([b, t], config.vocab_size as i32, 6);
    let batch = TokenBatch::new(&tokens, &targets, None, t, config.vocab_size, device).unwrap();
    // Drawn on the host, so all devices start alike.
    let weights = Weights::init(config, 3, DType::F32, device).compute_copy(precision);
    let model = Llama::new(config.clone(), weights, policy).unwrap();
    let mut grads = Grads::zeros(config, DType::F32, device);
    let losses = model.loss_and_gradients(&batch, 1.0 / 38.0, &mut grads);
    let mut numbers = values(&losses);
    for (_, grad) in grads.iter() {
        numbers.extend(grad.to_data().iter::<f64>());
    }
    numbers
}

fn policies_agree_bit_for_bit_and_with_the_cpu(setting: &Setting) {
    let gpu = (&setting.gpu, setting.dtype);
    // Heads of 4, and heads of 64 for the tensor cores.
    let wide = LlamaConfig { dim: 128, n_heads: 2, n_kv_heads: Some(1), ..tiny_config() };
    for config in [tiny_config(), wide] {
        let kept = gradients(&config, POLICIES[0], gpu);
        for policy in POLICIES {
            assert_eq!(gradients(&config, policy, gpu), kept, "{policy:?}");
        }
        let expected = gradients(&config, POLICIES[0], (&setting.cpu, setting.dtype));
        let error = relative_error(&kept, &expected);
        // Roundings add up over the layers.
        assert!(error < 3.0 * setting.tolerance, "{error:e}");
    }
}

fn a_run_learns_as_on_the_cpu(setting: &Setting) {
    let small = SmallRun::new();
    let (precision, tolerance) =
        if setting.dtype == DType::BF16 { ("bf16", 2e-2) } else { ("f32", 1e-3) };
    let precision = format!("precision={precision}");
    for device in ["cpu", setting.name] {
        let (name, device) = (format!("name={device}"), format!("device={device}"));
        small.train(&[&name, &device, &precision, "steps=20"]).ok();
    }
    let number = |line: &serde_json::Value, key: &str| line[key].as_f64().unwrap();
    let (cpu, gpu) = (small.metrics("cpu"), small.metrics(setting.name));
    assert_eq!(cpu.len(), gpu.len());
    for (cpu, gpu) in cpu.iter().zip(&gpu) {
        for key in ["loss", "grad_norm"] {
            let (expected, found) = (number(cpu, key), number(gpu, key));
            let error = ((found - expected) / expected).abs();
            assert!(error < tolerance, "step {}: {key} {found}, CPU {expected}", cpu["step"]);
        }
    }
    assert!(number(&gpu[19], "loss") < number(&gpu[0], "loss") - 0.5);
}
