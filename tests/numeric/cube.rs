//! The GPU kernels against the CPU's: on NVIDIA GPUs, and in f32 through WebGPU on whatever Vulkan
//! driver there is (Mesa's runs on the CPU).

use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::ops;
use altiplano_model::params::{Grads, Weights};
use altiplano_model::{ActivationCheckpointing, LlamaConfig, Precision, device};
use burn::tensor::{DType, Device, Tensor};

use super::op_checks::{self, Check, Place, Tolerance};
use super::{POLICIES, on_device, random, random_ids, relative_error, tiny_config, values};
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

/// Makes a test of every check of the table of ops, and of the bodies below.
macro_rules! every_op {
    ($($check:ident: $($op:ident)+;)+) => {
        $(fn $check(setting: &Setting) {
            let (name, ops) = (stringify!($check), &[$(stringify!($op)),+]);
            matches_the_cpu(&Check { name, ops, body: op_checks::$check }, setting);
        })+

        gpu_test!(
            $($check,)+
            sums_of_squares_are_exact_to_a_few_roundings,
            policies_agree_bit_for_bit_and_with_the_cpu,
            a_run_learns_as_on_the_cpu,
        );
    };
}
altiplano_model::op_table!(every_op);

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

fn matches_the_cpu(check: &Check, setting: &Setting) {
    let Setting { name, dtype, tolerance, .. } = *setting;
    let place = |device| Place { device, dtype, exact: false, thorough: name == "cuda" };
    let tolerance = Tolerance { active: tolerance, f32: tolerance };
    check.agree(&place(&setting.cpu), &place(&setting.gpu), &tolerance);
}

fn random_values(shape: [usize; 2], below: i32, seed: u64) -> Vec<i32> {
    random_ids(shape, below, seed, &Device::flex()).to_data().iter::<i32>().collect()
}

/// f32 squares summed with compensation are as good as in f64.
fn sums_of_squares_are_exact_to_a_few_roundings(setting: &Setting) {
    let x: Tensor<1> = random([1_300_003], 7, DType::F32, &setting.gpu);
    let exact: f64 = x.to_data().iter::<f64>().map(|x| x * x).sum();
    let sum = ops::totals(vec![ops::sum_of_squares(&x)])[0];
    assert!(((sum - exact) / exact).abs() < 1e-7, "{sum} is not {exact}");
}

/// Losses and all gradients of a batch.
fn gradients(
    config: &LlamaConfig,
    policy: ActivationCheckpointing,
    device: &Device,
    dtype: DType,
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
    let losses = model.loss_and_gradients(&batch, 1.0 / 38.0, &mut grads).unwrap();
    let mut numbers = values(&losses);
    for (_, grad) in grads.iter() {
        numbers.extend(grad.to_data().iter::<f64>());
    }
    numbers
}

fn policies_agree_bit_for_bit_and_with_the_cpu(setting: &Setting) {
    let Setting { cpu, gpu, dtype, .. } = setting;
    // Heads of 4, and heads of 64 for the tensor cores.
    let wide = LlamaConfig { dim: 128, n_heads: 2, n_kv_heads: Some(1), ..tiny_config() };
    for config in [tiny_config(), wide] {
        let kept = gradients(&config, POLICIES[0], gpu, *dtype);
        for policy in POLICIES {
            assert_eq!(gradients(&config, policy, gpu, *dtype), kept, "{policy:?}");
        }
        let expected = gradients(&config, POLICIES[0], cpu, *dtype);
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
