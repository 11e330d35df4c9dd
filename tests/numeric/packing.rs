//! Examples that share a row compute what each computes in a row of its own.

use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::param_tree::Leaf;
use altiplano_model::params::{Grads, Weights};
use altiplano_model::{ActivationCheckpointing, LlamaConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{relative_error, tiny_config, uniform, values};

const LENGTHS: [usize; 3] = [5, 3, 4];

/// Rows of examples, by number.
fn batch(config: &LlamaConfig, rows: &[&[usize]], time: usize, device: &Device) -> TokenBatch {
    let tokens = |example: usize, seed: u64| -> Vec<i32> {
        let draws = uniform(LENGTHS[example], seed + 10 * example as u64);
        draws.iter().map(|x| (x.abs() * 1e6) as i32 % config.vocab_size as i32).collect()
    };
    let count = rows.len();
    let (mut inputs, mut targets) = (vec![0; count * time], vec![-100; count * time]);
    // Padding sees itself alone.
    let mut first: Vec<i32> = (0..count * time).map(|place| (place % time) as i32).collect();
    for (row, examples) in rows.iter().enumerate() {
        let mut at = 0;
        for &example in *examples {
            let length = LENGTHS[example];
            let places = row * time + at..row * time + at + length;
            inputs[places.clone()].copy_from_slice(&tokens(example, 1));
            targets[places.clone()].copy_from_slice(&tokens(example, 2));
            first[places].fill(at as i32);
            at += length;
        }
    }
    let tensor = |values: Vec<i32>| -> Tensor<2, Int> {
        Tensor::from_data(TensorData::new(values, [count, time]), (device, DType::I32))
    };
    TokenBatch {
        inputs: tensor(inputs),
        targets: tensor(targets),
        first_visible: Some(tensor(first)),
    }
}

#[test]
fn a_shared_row_is_as_good_as_rows_of_their_own() {
    let (config, device) = (tiny_config(), Device::flex());
    for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 1e-5)] {
        let weights = Weights::init(&config, 3, dtype, &device);
        let model = Llama::new(config.clone(), weights, ActivationCheckpointing::None).unwrap();
        let run = |rows: &[&[usize]], time: usize| {
            let mut grads = Grads::zeros(&config, dtype, &device);
            let tokens = batch(&config, rows, time, &device);
            let losses = values(&model.loss_and_gradients(&tokens, 0.1, &mut grads).unwrap());
            // The loss of each example.
            let mut by_example = [0.0; LENGTHS.len()];
            for (row, examples) in rows.iter().enumerate() {
                let mut at = row * time;
                for &example in *examples {
                    by_example[example] = losses[at..at + LENGTHS[example]].iter().sum();
                    at += LENGTHS[example];
                }
            }
            (by_example, grads)
        };
        let (packed, packed_grads) = run(&[&[1, 0, 2]], 12);
        assert!(packed.iter().all(|loss| *loss > 0.0), "{packed:?}");
        for (rows, time) in
            [(&[&[0][..], &[1], &[2]][..], 5), (&[&[2][..], &[0, 1]], 9), (&[&[2, 1, 0]], 16)]
        {
            let (losses, grads) = run(rows, time);
            assert!(relative_error(&packed, &losses) < tolerance, "{packed:?} {losses:?}");
            for ((param, one), (_, other)) in packed_grads.iter().zip(grads.iter()) {
                let error = match (one, other) {
                    (Leaf::Vector(one), Leaf::Vector(other)) => {
                        relative_error(&values(one), &values(other))
                    }
                    (Leaf::Matrix(one), Leaf::Matrix(other)) => {
                        relative_error(&values(one), &values(other))
                    }
                    _ => f64::INFINITY,
                };
                assert!(error < tolerance, "{param}: {error}");
            }
        }
    }
}
