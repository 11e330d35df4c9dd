//! The whole model: policies, precisions, threads, cached decoding.

use altiplano_model::infer::{
    Choosable, InferenceModel, KvCache, Sampler, SamplerConfig, generate,
};
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::params::{Grads, Weights};
use altiplano_model::{ActivationCheckpointing, LlamaConfig, Precision};
use burn::tensor::{DType, Device, TensorData};

use super::{POLICIES, precisions, random_ids, relative_error, tiny_config, values};

super::device_test!(
    policies_agree_bit_for_bit,
    bf16_is_near_f32,
    accumulation_is_the_whole_batch,
    cached_decoding_is_the_full_forward,
);

fn config() -> LlamaConfig {
    LlamaConfig { dim: 48, vocab_size: 211, max_seq_len: 96, ..tiny_config() }
}

fn model(policy: ActivationCheckpointing, precision: Precision, device: &Device) -> Llama {
    let master_weights = Weights::init(&config(), 3, DType::F32, device);
    Llama::new(config(), master_weights.compute_copy(precision), policy).unwrap()
}

fn batch(rows: usize, time: usize, device: &Device) -> TokenBatch {
    TokenBatch {
        inputs: random_ids([rows, time], 211, 1, device),
        targets: random_ids([rows, time], 211, 2, device),
        first_visible: None,
    }
}

/// Losses and all gradients, as raw data.
fn step(model: &Llama, batch: &TokenBatch) -> (Vec<f64>, Vec<TensorData>) {
    let mut grads = Grads::zeros(&model.config, DType::F32, model.device());
    let [rows, time] = batch.inputs.dims();
    let losses = model.loss_and_gradients(batch, 1.0 / (rows * time) as f64, &mut grads);
    (values(&losses), grads.iter().map(|(_, grad)| grad.to_data()).collect())
}

fn policies_agree_bit_for_bit(device: &Device) {
    for precision in precisions(device) {
        let batch = batch(2, 70, device);
        let [none, selective, full] =
            POLICIES.map(|policy| step(&model(policy, precision, device), &batch));
        assert_eq!(none, selective);
        assert_eq!(none, full);
    }
}

/// bf16 rounds every activation to 8 bits; losses and gradients stay within what that explains.
fn bf16_is_near_f32(device: &Device) {
    if !device.supports_dtype(DType::BF16) {
        return;
    }
    let batch = batch(2, 70, device);
    let (losses, grads) = step(&model(POLICIES[0], Precision::F32, device), &batch);
    let (losses16, grads16) = step(&model(POLICIES[0], Precision::Bf16, device), &batch);
    let error = relative_error(&losses16, &losses);
    assert!(error < 5e-3 && error > 0.0, "losses: {error:e}");
    for (x, y) in grads16.iter().zip(&grads) {
        let (x, y): (Vec<f64>, Vec<f64>) = (x.iter().collect(), y.iter().collect());
        let error = relative_error(&x, &y);
        assert!(error < 6e-2, "gradient of {} elements: {error:e}", x.len());
    }
}

fn accumulation_is_the_whole_batch(device: &Device) {
    let model = model(POLICIES[1], Precision::F32, device);
    let whole = batch(8, 20, device);
    let (losses, gradients) = step(&model, &whole);
    let mut grads = Grads::zeros(&model.config, DType::F32, device);
    let mut split_losses = Vec::new();
    for start in [0, 2, 4, 6] {
        let part = TokenBatch {
            inputs: whole.inputs.clone().narrow(0, start, 2),
            targets: whole.targets.clone().narrow(0, start, 2),
            first_visible: None,
        };
        let losses = model.loss_and_gradients(&part, 1.0 / 160.0, &mut grads);
        split_losses.extend(values(&losses));
    }
    assert!(relative_error(&split_losses, &losses) < 1e-6);
    for ((param, split), whole) in grads.iter().zip(&gradients) {
        let split: Vec<f64> = split.to_data().iter().collect();
        let error = relative_error(&split, &whole.iter().collect::<Vec<_>>());
        assert!(error < 1e-5, "{param}: {error:e}");
    }
}

fn cached_decoding_is_the_full_forward(device: &Device) {
    let model = model(POLICIES[0], Precision::F32, device);
    let prompt: Vec<i32> = random_ids([1, 9], 211, 4, device).to_data().iter().collect();
    let mut sampler = Sampler::new(SamplerConfig { temperature: 0.0, ..Default::default() });
    let mut cached = Vec::new();
    let inference = InferenceModel::from_weights(model.config.clone(), &model.weights).unwrap();
    let ids: Vec<u32> = prompt.iter().map(|id| *id as u32).collect();
    let choosable = Choosable { vocab_size: usize::MAX, end_tokens: &[] };
    generate(&inference, &ids, 60, choosable, &mut sampler, |id| {
        cached.push(id as i32);
        true
    })
    .unwrap();

    let mut text = prompt.clone();
    for expected in &cached {
        let tokens =
            TokenBatch::new(&text, &vec![0; text.len()], None, text.len(), 211, device).unwrap();
        let logits = values(&model.logits(&tokens));
        let last = &logits[logits.len() - 211..];
        let best = (0..211).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(best as i32, *expected, "after {} tokens", text.len());
        text.push(*expected);
    }
    assert_eq!(cached.len(), 60);

    // Chunked prefill gives the logits of one prefill.
    let mut whole = KvCache::new(&inference, 9);
    let mut chunked = KvCache::new(&inference, 9);
    let logits = inference.forward_cached(&ids, &mut whole).unwrap();
    inference.forward_cached(&ids[..4], &mut chunked).unwrap();
    let last = inference.forward_cached(&ids[4..], &mut chunked).unwrap();
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    assert!(relative_error(&wide(&last), &wide(&logits)) < 1e-5);
    let full = inference.forward_cached(&[1], &mut whole).unwrap_err().to_string();
    assert!(full.contains("10 tokens") && full.contains('9'), "{full}");
}
