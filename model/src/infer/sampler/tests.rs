use rand::RngExt;

use super::*;

fn params(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> SamplingParams {
    SamplingParams { temperature, top_k, top_p, min_p, seed: 3, ..SamplingParams::default() }
}

fn sampler(params: SamplingParams) -> Sampler {
    Sampler::new(Arc::new(params), &[], None)
}

const VOCABULARY: Vocabulary<'static> = Vocabulary { eos: &[], limit: usize::MAX };

fn choose(sampler: &mut Sampler, logits: &[f32]) -> u32 {
    sampler.choose(&mut logits.to_vec(), VOCABULARY).unwrap().id
}

/// The ids that can be drawn, and which one is, by sorting everything.
fn reference(logits: &[f32], params: &SamplingParams, random: u64) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    let largest = logits[order[0]];
    let mut weights = logits.to_vec();
    softmax_weights(&mut weights, largest, 1.0 / params.temperature);
    if params.top_k > 0 {
        order.truncate(params.top_k);
    }
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    order.retain(|id| weights[*id] >= params.min_p && whole(weights[*id]) > 0);
    let total: u64 = order.iter().map(|id| whole(weights[*id])).sum();
    if params.top_p < 1.0 {
        let target = ((f64::from(params.top_p) * total as f64).ceil() as u64).max(1);
        let (mut kept, mut count) = (0, 0);
        while kept < target {
            kept += whole(weights[order[count]]);
            count += 1;
        }
        order.truncate(count);
    }
    order.sort_unstable();
    let total: u64 = order.iter().map(|id| whole(weights[*id])).sum();
    let mut left = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    let drawn = order.iter().find(|id| {
        let weight = whole(weights[**id]);
        let found = left < weight;
        left = left.saturating_sub(weight);
        found
    });
    (order.clone(), *drawn.unwrap())
}

/// The same token as by sorting, for flat and steep distributions, ties and every cut.
#[test]
fn draws_are_those_of_sorting_everything() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for case in 0..3000 {
        let len = [1, 2, 17, 300, 2000][case % 5];
        let spread = [0.0, 0.01, 1.0, 5.0, 40.0][case / 5 % 5];
        let steps = [3.0, 1e6][case / 25 % 2];
        let logits: Vec<f32> = (0..len)
            .map(|_| ((rng.random::<f32>() - 0.5) * steps).round() / steps * spread)
            .collect();
        let pick = |values: &[f32], n: u32| values[n as usize % values.len()];
        let params = params(
            pick(&[1.0, 0.7, 2.5, 0.01], rng.next_u32()),
            [0, 0, 1, 2, 40, 1999, 5000][rng.next_u32() as usize % 7],
            pick(&[1.0, 0.95, 0.5, 0.0, 1e-9, 0.999_999], rng.next_u32()),
            pick(&[0.0, 0.0, 0.1, 1.0], rng.next_u32()),
        );
        let mut sampler = sampler(params.clone());
        for draw in 0..3 {
            let (kept, expected) = reference(&logits, &params, random(3, 0, draw));
            let found = choose(&mut sampler, &logits) as usize;
            assert_eq!(found, expected, "case {case}: {params:?}, {} kept", kept.len());
        }
    }
}

#[test]
fn the_likeliest_are_those_of_sorting_everything() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for case in 0..500 {
        let len = [1, 63, 64, 65, 1000][case % 5];
        let values = [2, 50, 1_000_000][case / 5 % 3];
        let logits: Vec<f32> = (0..len).map(|_| (rng.next_u32() % values) as f32 - 5.0).collect();
        let count = [0, 1, 5, 64, 2000][case / 15 % 5];
        let mut found = select_likeliest(&logits, count);
        found.sort_by(likeliest_first);
        let mut all: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
        all.sort_by(likeliest_first);
        all.truncate(count);
        assert_eq!(found, all, "{count} of {len}");
    }
}

#[test]
fn zero_temperature_takes_the_first_maximum() {
    assert_eq!(choose(&mut sampler(params(0.0, 0, 1.0, 0.0)), &[0.0, 2.0, 2.0, -1.0]), 1);
}

#[test]
fn frequencies_follow_the_softmax() {
    let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
    let mut sampler = sampler(params(1.0, 0, 1.0, 0.0));
    let mut counts = [0usize; 3];
    for _ in 0..20_000 {
        counts[choose(&mut sampler, &logits) as usize] += 1;
    }
    for (count, p) in counts.iter().zip([0.5, 0.3, 0.2]) {
        let share = *count as f64 / 20_000.0;
        assert!((share - p).abs() < 0.015, "{share} for {p}");
    }
}

#[test]
fn cuts_keep_what_they_say() {
    let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
    let drawn = |params: SamplingParams| {
        let mut sampler = sampler(params);
        let mut seen = [false; 4];
        (0..2000).for_each(|_| seen[choose(&mut sampler, &logits) as usize] = true);
        seen
    };
    assert_eq!(drawn(params(1.0, 2, 1.0, 0.0)), [true, true, false, false]);
    assert_eq!(drawn(params(1.0, 0, 0.79, 0.0)), [true, true, false, false]);
    assert_eq!(drawn(params(1.0, 0, 0.81, 0.0)), [true, true, true, false]);
    assert_eq!(drawn(params(1.0, 0, 0.0, 0.0)), [true, false, false, false]);
    assert_eq!(drawn(params(1.0, 0, 1.0, 0.25)), [true, true, true, false]);
    // Top-p counts the probability that top-k leaves: 0.5 of 0.8 is less than 0.63.
    assert_eq!(drawn(params(1.0, 2, 0.62, 0.0)), [true, false, false, false]);
    assert_eq!(drawn(params(1.0, 2, 0.63, 0.0)), [true, true, false, false]);
}

#[test]
fn a_draw_depends_on_seed_sequence_and_place_alone() {
    let logits = [0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4];
    let draws =
        |sampler: &mut Sampler| -> Vec<u32> { (0..50).map(|_| choose(sampler, &logits)).collect() };
    let plain = params(1.0, 0, 1.0, 0.0);
    let first = draws(&mut sampler(plain.clone()));
    assert_eq!(draws(&mut sampler(plain.clone())), first);
    assert_ne!(draws(&mut sampler(SamplingParams { seed: 4, ..plain.clone() })), first);
    assert_ne!(draws(&mut sampler(plain.clone()).fork(1)), first);
    // Draws in between with other logits change nothing that follows.
    let mut other = sampler(plain);
    let mixed: Vec<u32> =
        (0..50).map(|n| choose(&mut other, if n % 2 == 0 { &logits } else { &[0.0; 3] })).collect();
    let even = |x: &[u32]| x.iter().copied().step_by(2).collect::<Vec<_>>();
    assert_eq!(even(&mixed), even(&first));
}

#[test]
fn what_may_not_be_chosen_is_not() {
    let greedy = params(0.0, 0, 1.0, 0.0);
    let logits = [1.0, 5.0, 4.0, 3.0];
    let vocabulary = Vocabulary { eos: &[1], limit: 4 };
    let chosen = |params: SamplingParams, vocabulary| -> Result<Vec<u32>, NoChoice> {
        let mut sampler = sampler(params);
        (0..3).map(|_| Ok(sampler.choose(&mut logits.to_vec(), vocabulary)?.id)).collect()
    };
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = greedy.clone();
        change(&mut params);
        chosen(params, vocabulary).unwrap()
    };
    assert_eq!(with(|_| {}), [1, 1, 1]);
    assert_eq!(with(|x| x.allowed_token_ids = Some(vec![3, 0, 99])), [3, 3, 3]);
    assert_eq!(with(|x| x.logit_bias = vec![(3, 2.5), (77, 9.0)]), [3, 3, 3]);
    assert_eq!(with(|x| x.min_tokens = 2), [2, 2, 1]);
    assert_eq!(with(|x| (x.min_tokens, x.stop_token_ids) = (1, vec![2])), [3, 1, 1]);
    assert_eq!(chosen(greedy.clone(), Vocabulary { eos: &[], limit: 1 }).unwrap(), [0, 0, 0]);
    let nothing = SamplingParams { allowed_token_ids: Some(vec![9]), ..greedy };
    assert!(matches!(chosen(nothing, vocabulary), Err(NoChoice::Refused(_))));
}

#[test]
fn penalties_count_prompt_and_answer() {
    let logits = [4.0, 3.0, 2.9, -1.0];
    let chosen = |change: fn(&mut SamplingParams)| -> Vec<u32> {
        let mut params = params(0.0, 0, 1.0, 0.0);
        change(&mut params);
        let mut sampler = Sampler::new(Arc::new(params), &[0], None);
        (0..4).map(|_| choose(&mut sampler, &logits)).collect()
    };
    // Token 0 stands in the prompt, which only the repetition penalty counts.
    assert_eq!(chosen(|x| x.repetition_penalty = 1.35), [1, 0, 0, 0]);
    assert_eq!(chosen(|x| x.presence_penalty = 1.05), [0, 1, 0, 0]);
    assert_eq!(chosen(|x| x.frequency_penalty = 0.6), [0, 0, 1, 2]);
    assert_eq!(chosen(|_| {}), [0, 0, 0, 0]);
}

#[test]
fn logprobs_are_those_of_the_model() {
    let logits = [1.0f32, 3.0, 2.0, 3.0];
    let mut params = params(0.3, 1, 0.5, 0.0);
    params.logprobs = Some(3);
    params.logit_bias = vec![(2, 50.0)];
    let choice = sampler(params).choose(&mut logits.to_vec(), VOCABULARY).unwrap();
    let total = logits.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    let scored = choice.logprobs.unwrap();
    assert_eq!((choice.id, scored.token.id, scored.token.rank), (2, 2, 3));
    let top: Vec<(u32, usize)> = scored.top.iter().map(|x| (x.id, x.rank)).collect();
    assert_eq!(top, [(1, 1), (3, 2), (2, 3)]);
    for token in scored.top.iter().chain([&scored.token]) {
        let expected = f64::from(logits[token.id as usize]) - total;
        assert!((f64::from(token.logprob) - expected).abs() < 1e-6, "{token:?}");
    }
}

#[test]
fn logits_that_are_no_numbers_give_no_token() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut sampler = sampler(params(1.0, 0, 1.0, 0.0));
        let choice = sampler.choose(&mut [0.0, 1.0, bad, 0.0], VOCABULARY);
        assert_eq!(choice, Err(NoChoice::NotFinite));
    }
}

/// Microseconds of a choice from 32000 logits. A step of a 110M model takes about 10 milliseconds.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "the measurement's result")]
fn measure_a_choice() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (name, spread) in [("flat", 0.5), ("steep", 12.0)] {
        let logits: Vec<f32> = (0..32_000)
            .map(|_| (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * spread)
            .collect();
        let all = [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 40, 1.0), (1.0, 0, 0.9), (1.0, 40, 0.9)];
        for (temperature, top_k, top_p) in all {
            let mut sampler = sampler(params(temperature, top_k, top_p, 0.0));
            let mut copies = vec![logits.clone(); 200];
            let started = std::time::Instant::now();
            for copy in &mut copies {
                sampler.choose(copy, VOCABULARY).unwrap();
            }
            let microseconds = started.elapsed().as_secs_f64() * 1e6 / 200.0;
            println!(
                "{name}, temperature {temperature}, top-k {top_k}, top-p {top_p}: {microseconds:.0} us"
            );
        }
    }
}
