//! The whole model: policies, precisions, threads, cached decoding.

use altiplano_model::backend::AdamWStep;
use altiplano_model::infer::{
    Engine, EngineOptions, InferenceModel, Request, RequestId, SamplingParams, generate,
};
use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::param_ops::{AdamWState, adamw_step};
use altiplano_model::params::{Grads, Weights};
use altiplano_model::{ActivationCheckpointing, LlamaConfig, Precision};
use burn::tensor::{DType, Device, TensorData};

use super::{POLICIES, precisions, random_ids, relative_error, tiny_config, values};

super::device_test!(
    policies_agree_bit_for_bit,
    bf16_is_near_f32,
    accumulation_is_the_whole_batch,
    cached_decoding_is_the_full_forward,
    tied_is_untied_with_equal_matrices,
    tied_training_steps_the_matrix_once,
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
    let losses = model.loss_and_gradients(batch, 1.0 / (rows * time) as f64, &mut grads).unwrap();
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
        let losses = model.loss_and_gradients(&part, 1.0 / 160.0, &mut grads).unwrap();
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
    let ids: Vec<u32> = prompt.iter().map(|id| *id as u32).collect();
    let inference = InferenceModel::from_weights(model.config.clone(), &model.weights).unwrap();
    let greedy = |max_tokens| SamplingParams {
        temperature: 0.0,
        max_tokens,
        logprobs: Some(3),
        ..SamplingParams::default()
    };
    let mut cached = Vec::new();
    generate(&inference, &ids, greedy(60), &[], |id| {
        cached.push(id as i32);
        true
    })
    .unwrap();

    let mut text = prompt.clone();
    for expected in &cached {
        let tokens =
            TokenBatch::new(&text, &vec![0; text.len()], None, text.len(), 211, device).unwrap();
        let logits = values(&model.logits(&tokens).unwrap());
        let last = &logits[logits.len() - 211..];
        let best = (0..211).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(best as i32, *expected, "after {} tokens", text.len());
        text.push(*expected);
    }
    assert_eq!(cached.len(), 60);

    // A prompt in chunks, and beside others, gives the probabilities of one pass.
    let logprobs = |tokens_of_a_pass: usize, prompts: u64| {
        let mut options = EngineOptions::new(model.config.max_seq_len, 3);
        options.max_num_batched_tokens = tokens_of_a_pass;
        let mut engine = Engine::new(&inference, options).unwrap();
        for n in 0..prompts {
            let prompt: Vec<u32> = ids.iter().map(|id| (id + 5 * n as u32) % 211).collect();
            engine.add(Request::new(RequestId(n), prompt, greedy(4))).unwrap();
        }
        let mut logprobs = Vec::new();
        while engine.has_requests() {
            let outputs = engine.step().unwrap();
            engine.check_invariants().unwrap();
            let first = outputs.into_iter().filter(|output| output.request == RequestId(0));
            let top = first.filter_map(|output| output.logprobs).flat_map(|scored| scored.top);
            logprobs.extend(top.map(|token| f64::from(token.logprob)));
        }
        logprobs
    };
    let whole = logprobs(9, 1);
    assert_eq!(whole.len(), 12);
    for (tokens_of_a_pass, prompts) in [(4, 1), (64, 3), (5, 3)] {
        assert!(relative_error(&logprobs(tokens_of_a_pass, prompts), &whole) < 1e-5);
    }
}

/// A model whose output head is its embedding, and one that has the same matrix twice: the losses are
/// the same bits, and the gradient of the one matrix is the sum of the two.
fn tied_is_untied_with_equal_matrices(device: &Device) {
    for precision in precisions(device) {
        let tied_config = LlamaConfig { tie_word_embeddings: true, ..config() };
        let tied = Weights::init(&tied_config, 3, DType::F32, device);
        let untied = Weights { lm_head: Some(tied.embed_tokens.clone()), ..tied.clone() };
        let matrix = config().vocab_size * config().dim;
        assert_eq!(tied_config.parameter_count() + matrix, config().parameter_count());
        assert_eq!(tied.iter().len() + 1, untied.iter().len());

        let batch = batch(2, 70, device);
        let step_of = |config: LlamaConfig, weights: &Weights| {
            let weights = weights.compute_copy(precision);
            step(&Llama::new(config, weights, POLICIES[1]).unwrap(), &batch)
        };
        let (losses, mut grads) = step_of(tied_config.clone(), &tied);
        let (expected_losses, mut expected) = step_of(config(), &untied);
        assert_eq!(losses, expected_losses);
        let head: Vec<f64> = expected.pop().unwrap().iter().collect();
        let embedding: Vec<f64> = expected.remove(0).iter().collect();
        let sum: Vec<f64> = embedding.iter().zip(&head).map(|(x, y)| x + y).collect();
        let error = relative_error(&grads.remove(0).iter().collect::<Vec<_>>(), &sum);
        assert!(error < 1e-6, "{precision:?}: {error:e}");
        assert_eq!(grads, expected);
    }
}

/// AdamW moves the one matrix by the sum of both gradients, once, and embedding and head are the
/// same values after it.
fn tied_training_steps_the_matrix_once(device: &Device) {
    let config = LlamaConfig { tie_word_embeddings: true, ..config() };
    for precision in precisions(device) {
        let master_weights = Weights::init(&config, 3, DType::F32, device);
        let mut llama =
            Llama::new(config.clone(), master_weights.compute_copy(precision), POLICIES[1])
                .unwrap();
        let zeros = || Grads::zeros(&config, DType::F32, device);
        let mut state = AdamWState { master_weights, m: zeros(), v: zeros() };
        let before = values(&state.master_weights.embed_tokens);
        let mut grads = zeros();
        llama.loss_and_gradients(&batch(2, 70, device), 1.0 / 140.0, &mut grads).unwrap();
        let hyper = AdamWStep {
            lr: 0.5,
            beta1: 0.0,
            beta2: 0.0,
            eps: 0.0,
            weight_decay: 0.0,
            step: 1,
            grad_scale: 1.0,
        };
        adamw_step(&mut state, &mut llama.weights, &grads, &hyper);
        // Without memory a step is lr in the direction of the gradient's sign.
        let after = values(&state.master_weights.embed_tokens);
        for ((x, y), grad) in before.iter().zip(&after).zip(values(&grads.embed_tokens)) {
            if grad.abs() > 1e-12 {
                assert!((x - 0.5 * grad.signum() - y).abs() < 1e-5, "{x} {y} {grad}");
            }
        }
        assert!(state.master_weights.lm_head.is_none() && llama.weights.lm_head.is_none());
        let changed = values(&llama.losses(&batch(2, 70, device)).unwrap());
        assert!(changed.iter().all(|loss| loss.is_finite()));
    }
}
