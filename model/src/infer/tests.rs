//! The engine as a whole: many requests at a time give what each gives alone.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::{DType, Device};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::config::{ActivationCheckpointing, LlamaConfig};
use crate::error::{ModelError, Result};
use crate::llama::{Llama, TokenBatch};
use crate::params::Weights;

/// A model whose next token follows from all tokens before it, which it reads back from its cache: a
/// wrong block, a block written by two or a position left out change its answer or panic.
struct Fake {
    device: Device,
    /// From this many tokens on, logits are not numbers when the last token is 7.
    breaks_after: usize,
}

const FAKE_VOCABULARY: usize = 40;

impl Fake {
    fn new() -> Self {
        Self { device: Device::flex(), breaks_after: usize::MAX }
    }
}

#[derive(Debug)]
struct FakeCache {
    block_size: usize,
    /// Position and token that were written last.
    slots: Vec<Option<(usize, u32)>>,
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl EngineModel for Fake {
    type Cache = FakeCache;
    /// A hash of the tokens up to each row; none where it breaks.
    type Hidden = Vec<Option<u64>>;

    fn device(&self) -> &Device {
        &self.device
    }

    fn context(&self) -> usize {
        100
    }

    fn vocab_size(&self) -> usize {
        FAKE_VOCABULARY
    }

    fn new_cache(&self, blocks: usize, block_size: usize) -> Result<FakeCache> {
        Ok(FakeCache { block_size, slots: vec![None; blocks * block_size] })
    }

    fn copy_blocks(&self, cache: &mut FakeCache, copies: &[(BlockId, BlockId)]) {
        let size = cache.block_size;
        for (from, to) in copies {
            let from = *from as usize * size;
            cache.slots.copy_within(from..from + size, *to as usize * size);
        }
    }

    fn forward(&self, pass: &Pass, cache: &mut FakeCache) -> Result<Vec<Option<u64>>> {
        let slot = |blocks: &[BlockId], position: usize| {
            let size = cache.block_size;
            blocks[position / size] as usize * size + position % size
        };
        let rows = pass.sequences.iter().flat_map(|sequence| {
            let place = |row| (row, sequence.start + row - sequence.rows.start, &sequence.blocks);
            sequence.rows.clone().map(place)
        });
        let rows: Vec<_> = rows.collect();
        let slots: Vec<usize> = rows.iter().map(|(_, at, blocks)| slot(blocks, *at)).collect();
        for ((row, position, _), slot) in rows.iter().zip(&slots) {
            assert_eq!(pass.positions[*row] as usize, *position);
            cache.slots[*slot] = Some((*position, pass.ids[*row]));
        }
        let mut hidden = Vec::new();
        for (row, position, blocks) in rows {
            let mut hash = 1;
            for at in 0..=position {
                let size = cache.block_size;
                let slot = blocks[at / size] as usize * size + at % size;
                let (written, id) = cache.slots[slot].expect("a slot nobody wrote");
                assert_eq!(written, at, "a slot of another position");
                hash = mix(hash ^ u64::from(id) ^ ((at as u64) << 32));
            }
            let broken = position >= self.breaks_after && pass.ids[row] == 7;
            hidden.push((!broken).then_some(hash));
        }
        Ok(hidden)
    }

    fn logits(&self, hidden: &Vec<Option<u64>>, rows: &[usize]) -> Vec<f32> {
        let logit = |hash: u64, id: usize| (mix(hash ^ id as u64) % 1000) as f32 / 250.0;
        rows.iter()
            .flat_map(|row| {
                (0..FAKE_VOCABULARY)
                    .map(move |id| hidden[*row].map_or(f32::NAN, |hash| logit(hash, id)))
            })
            .collect()
    }

    fn why_not_finite(&self, _hidden: &Vec<Option<u64>>) -> String {
        "it broke".into()
    }
}

/// What a sequence brought, all steps together.
#[derive(Debug, Clone, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<ScoredToken>,
    prompt_logprobs: Option<Vec<ScoredToken>>,
    finish: Option<FinishReason>,
    error: Option<String>,
}

type Answers = BTreeMap<(u64, usize), Answer>;

fn take(answers: &mut Answers, outputs: Vec<SequenceOutput>) {
    for output in outputs {
        let answer = answers.entry((output.request.0, output.index)).or_default();
        assert_eq!(answer.finish, None, "{:?} goes on after its end", output);
        answer.tokens.extend(output.token);
        answer.logprobs.extend(output.logprobs);
        answer.prompt_logprobs = answer.prompt_logprobs.take().or(output.prompt_logprobs);
        (answer.finish, answer.error) = (output.finish_reason, output.error);
    }
}

/// Steps until nothing is left, with a look at every step.
fn run<M: EngineModel>(engine: &mut Engine<M>, answers: &mut Answers) {
    let mut idle = 0;
    while engine.has_requests() {
        let outputs = engine.step().unwrap();
        engine.check_invariants().unwrap();
        let stats = engine.stats();
        let options = engine.options();
        assert!(stats.step_tokens <= options.max_num_batched_tokens);
        assert!(stats.running <= options.max_num_seqs);
        assert!(stats.slots_unused <= stats.running * (options.block_size - 1));
        idle = if stats.step_tokens == 0 { idle + 1 } else { 0 };
        assert!(idle < 2, "nothing is computed for two steps: {stats:?}");
        take(answers, outputs);
    }
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.blocks_used), (0, 0, 0));
}

fn requests(count: u64, seed: u64, vocabulary: u32, longest: usize) -> Vec<Request> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let shared: Vec<u32> = (0..longest).map(|_| rng.next_u32() % vocabulary).collect();
    (0..count)
        .map(|id| {
            let mut below = |n: usize| rng.next_u32() as usize % n;
            // Many prompts begin alike.
            let common = [0, 0, longest / 3, longest / 2][below(4)];
            let own = 1 + below(longest / 2);
            let mut prompt = shared[..common].to_vec();
            prompt.extend((0..own).map(|_| below(vocabulary as usize) as u32));
            let sampling = SamplingParams {
                temperature: [0.0, 0.7, 1.0][below(3)],
                top_k: [0, 5][below(2)],
                top_p: [1.0, 0.9][below(2)],
                repetition_penalty: [1.0, 1.2][below(2)],
                frequency_penalty: [0.0, 0.3][below(2)],
                seed: below(1000) as u64,
                max_tokens: below(longest / 2),
                min_tokens: below(4),
                ignore_eos: below(3) == 0,
                logprobs: [None, Some(2)][below(2)],
                prompt_logprobs: [None, None, None, Some(1)][below(4)],
                ..SamplingParams::default()
            };
            let mut request = Request::new(RequestId(id), prompt, sampling);
            request.n = [1, 1, 1, 2, 5][below(5)];
            request.priority = below(3) as i64;
            request.cache_salt = [None, None, Some("salt".to_string())][below(3)].clone();
            request
        })
        .collect()
}

fn copy(request: &Request) -> Request {
    Request {
        cache_salt: request.cache_salt.clone(),
        constraint: request.constraint.as_ref().map(|constraint| constraint.fork()),
        prompt: request.prompt.clone(),
        sampling: request.sampling.clone(),
        ..*request
    }
}

/// Each request with an engine of its own.
fn alone<M: EngineModel>(model: &M, options: &EngineOptions, requests: &[Request]) -> Answers {
    let mut answers = Answers::new();
    for request in requests {
        let mut engine = Engine::new(model, options.clone()).unwrap();
        engine.add(copy(request)).unwrap();
        run(&mut engine, &mut answers);
    }
    answers
}

/// All requests with one engine, joining over many steps.
fn together<M: EngineModel>(
    model: &M,
    options: &EngineOptions,
    requests: &[Request],
    seed: u64,
) -> (Answers, EngineStats) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut engine = Engine::new(model, options.clone()).unwrap();
    let mut answers = Answers::new();
    for request in requests {
        engine.add(copy(request)).unwrap();
        if rng.next_u32().is_multiple_of(3) {
            let outputs = engine.step().unwrap();
            engine.check_invariants().unwrap();
            take(&mut answers, outputs);
        }
    }
    run(&mut engine, &mut answers);
    (answers, engine.stats())
}

fn fake_options(block_size: usize, blocks: usize) -> EngineOptions {
    EngineOptions {
        block_size,
        num_blocks: blocks,
        max_num_seqs: 8,
        max_num_batched_tokens: 24,
        eos_token_ids: vec![3, 11],
        vocab_limit: Some(38),
        ..EngineOptions::new(100, 1)
    }
}

/// Whatever the pool, the budget, the policy and the neighbours.
#[test]
fn any_way_of_running_gives_the_same_answers() {
    let fake = Fake::new();
    let requests = requests(120, 1, FAKE_VOCABULARY as u32, 40);
    let expected = alone(&fake, &fake_options(4, 25), &requests);
    assert_eq!(expected.len(), requests.iter().map(|request| request.n).sum::<usize>());
    assert!(expected.values().all(|answer| answer.finish.is_some() && answer.error.is_none()));
    let mut preemptions = 0;
    let mut hits = 0;
    for case in 0..24 {
        let (block_size, blocks) =
            [(4, 25), (4, 40), (16, 7), (1, 90), (5, 200), (3, 34)][case % 6];
        let mut options = fake_options(block_size, blocks);
        options.max_num_batched_tokens = [24, 5, 1, 300][case / 6];
        options.max_num_seqs = [8, 2, 30, 1][case % 4];
        options.long_prefill_token_threshold = [0, 7][case % 2];
        options.enable_prefix_caching = case % 5 != 4;
        options.enable_chunked_prefill = options.max_num_batched_tokens < 100 || case % 2 == 0;
        options.policy = [SchedulingPolicy::Fcfs, SchedulingPolicy::Priority][case / 3 % 2];
        let (answers, stats) = together(&fake, &options, &requests, case as u64);
        preemptions += stats.preemptions;
        hits += stats.prefix_hits;
        assert_eq!(stats.prefix_queries > 0, options.enable_prefix_caching);
        for (id, answer) in &answers {
            assert_eq!(answer, &expected[id], "{id:?} with {options:?}");
        }
        assert_eq!(answers.len(), expected.len());
    }
    assert!(preemptions > 100 && hits > 100, "{preemptions} preemptions, {hits} hits");
}

/// Aborted requests free their blocks at once, end once, and change nothing for the others.
#[test]
fn requests_can_end_at_any_step() {
    let fake = Fake::new();
    let requests = requests(150, 2, FAKE_VOCABULARY as u32, 40);
    let expected = alone(&fake, &fake_options(4, 25), &requests);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut engine = Engine::new(&fake, fake_options(4, 30)).unwrap();
    let (mut answers, mut aborted) = (Answers::new(), Vec::new());
    for request in &requests {
        engine.add(copy(request)).unwrap();
        if rng.next_u32().is_multiple_of(2) {
            let id = RequestId(rng.random_range(0..=request.id.0));
            let used = engine.stats().blocks_used;
            engine.abort(id);
            engine.check_invariants().unwrap();
            assert!(engine.stats().blocks_used <= used);
            aborted.push(id.0);
            engine.abort(RequestId(u64::MAX));
            // A sample alone; the others of its request go on.
            let one = SequenceId { request: RequestId(id.0 / 2), index: 1 };
            engine.abort_sequence(one);
            aborted.push(one.request.0);
            take(&mut answers, engine.step().unwrap());
            engine.check_invariants().unwrap();
        }
    }
    run(&mut engine, &mut answers);
    let mut ends: HashMap<_, usize> = HashMap::new();
    for (id, answer) in &answers {
        if answer.finish == Some(FinishReason::Abort) {
            assert!(aborted.contains(&id.0));
            assert!(expected[id].tokens.starts_with(&answer.tokens));
        } else {
            assert_eq!(answer, &expected[id]);
        }
        *ends.entry(answer.finish == Some(FinishReason::Abort)).or_default() += 1;
    }
    assert_eq!(answers.len(), expected.len());
    assert!(ends[&true] > 10 && ends[&false] > 100, "{ends:?}");
}

#[test]
fn samples_share_their_prompt_and_differ() {
    let fake = Fake::new();
    let options = EngineOptions { eos_token_ids: vec![], ..fake_options(4, 200) };
    let mut engine = Engine::new(&fake, options).unwrap();
    let sampling = SamplingParams { max_tokens: 8, ..SamplingParams::default() };
    let mut request = Request::new(RequestId(1), vec![5; 18], sampling);
    request.n = 6;
    engine.add(request).unwrap();
    let first = engine.step().unwrap();
    assert_eq!(first.iter().map(|output| output.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    // Five blocks of the prompt, for all of them.
    assert_eq!(engine.stats().blocks_used, 5);
    let mut answers = Answers::new();
    take(&mut answers, first);
    take(&mut answers, engine.step().unwrap());
    // Four stay shared; each has a copy of the last, which is partly full.
    assert_eq!(engine.stats().blocks_used, 4 + 6);
    run(&mut engine, &mut answers);
    let tokens: Vec<_> = answers.values().map(|answer| &answer.tokens).collect();
    assert!(tokens.iter().all(|tokens| tokens.len() == 8));
    assert!((1..6).all(|n| !tokens[..n].contains(&tokens[n])), "{tokens:?}");
    assert_eq!(engine.stats().prompt_tokens, 18);
    assert_eq!(engine.stats().generation_tokens, 48);
}

#[test]
fn a_prefix_is_computed_once() {
    let fake = Fake::new();
    let mut engine = Engine::new(&fake, fake_options(4, 60)).unwrap();
    let sampling = SamplingParams { max_tokens: 1, ..SamplingParams::default() };
    let ask = |engine: &mut Engine<&Fake>, id: u64, prompt: &[u32], salt: Option<&str>| {
        let mut request = Request::new(RequestId(id), prompt, sampling.clone());
        request.cache_salt = salt.map(str::to_string);
        engine.add(request).unwrap();
        let output = engine.step().unwrap().remove(0);
        (output.cached_tokens, engine.stats().step_tokens)
    };
    let prompt: Vec<u32> = (0..20).collect();
    assert_eq!(ask(&mut engine, 1, &prompt, None), (0, 20));
    // All blocks are there, but the last token has to be computed: its block is not taken.
    assert_eq!(ask(&mut engine, 2, &prompt, None), (16, 4));
    assert_eq!(ask(&mut engine, 3, &[&prompt[..], &[1, 2]].concat(), None), (20, 2));
    assert_eq!(ask(&mut engine, 4, &[&prompt[..6], &[1, 2]].concat(), None), (4, 4));
    assert_eq!(ask(&mut engine, 5, &prompt, Some("other")), (0, 20));
    engine.reset_prefix_cache();
    assert_eq!(engine.stats().blocks_cached, 0);
    assert_eq!(ask(&mut engine, 6, &prompt, None), (0, 20));
    assert_eq!(ask(&mut engine, 7, &prompt, None), (16, 4));
}

#[test]
fn the_order_is_that_of_the_policy() {
    let fake = Fake::new();
    for (policy, expected) in
        [(SchedulingPolicy::Fcfs, [0, 1, 2, 3]), (SchedulingPolicy::Priority, [3, 1, 0, 2])]
    {
        let options = EngineOptions { policy, max_num_seqs: 1, ..fake_options(4, 20) };
        let mut engine = Engine::new(&fake, options).unwrap();
        for (id, priority) in [(0, 5), (1, 0), (2, 5), (3, -1)] {
            let sampling = SamplingParams { max_tokens: 2, ..SamplingParams::default() };
            let mut request = Request::new(RequestId(id), [1, 2], sampling);
            request.priority = priority;
            engine.add(request).unwrap();
        }
        let mut ended = Vec::new();
        while engine.has_requests() {
            let outputs = engine.step().unwrap();
            let last = outputs.iter().filter(|output| output.finish_reason.is_some());
            ended.extend(last.map(|output| output.request.0));
        }
        assert_eq!(ended, expected, "{policy}");
        let queued = |event: &EngineEvent| event.kind == EngineEventKind::Queued;
        let events = engine.take_events();
        assert_eq!(events.iter().filter(|event| queued(event)).count(), 4);
        assert_eq!(events.len(), 8);
        assert!(engine.take_events().is_empty());
    }
}

#[test]
fn texts_end_where_they_should() {
    let fake = Fake::new();
    let answer = |sampling: SamplingParams, eos: Vec<u32>| {
        let options = EngineOptions { eos_token_ids: eos, ..fake_options(4, 25) };
        let mut answers = Answers::new();
        let mut engine = Engine::new(&fake, options).unwrap();
        engine.add(Request::new(RequestId(0), [1, 2, 3], sampling)).unwrap();
        run(&mut engine, &mut answers);
        answers.remove(&(0, 0)).unwrap()
    };
    let greedy = SamplingParams { temperature: 0.0, max_tokens: 9, ..SamplingParams::default() };
    let free = answer(greedy.clone(), vec![]);
    assert_eq!((free.tokens.len(), free.finish), (9, Some(FinishReason::Length)));
    let third = free.tokens[2];
    let place = free.tokens.iter().position(|id| *id == third).unwrap() + 1;

    let ended = answer(greedy.clone(), vec![third]);
    assert_eq!(
        (&ended.tokens[..], ended.finish),
        (&free.tokens[..place], Some(FinishReason::Stop))
    );
    let ignoring = SamplingParams { ignore_eos: true, ..greedy.clone() };
    assert_eq!(answer(ignoring, vec![third]).tokens, free.tokens);
    let stopping = SamplingParams { stop_token_ids: vec![third], ..greedy.clone() };
    assert_eq!(answer(stopping, vec![]).finish, Some(FinishReason::StopToken(third)));
    let later = SamplingParams { min_tokens: place, ..greedy.clone() };
    assert_ne!(answer(later, vec![third]).tokens[place - 1], third);
    // 3 of 100 tokens are the prompt's.
    let full = SamplingParams { max_tokens: 1000, ..greedy.clone() };
    assert_eq!(answer(full, vec![]).tokens.len(), 97);
    let nothing = SamplingParams { max_tokens: 0, ..greedy };
    assert_eq!(answer(nothing, vec![]).finish, Some(FinishReason::Length));
}

#[test]
fn what_is_no_number_ends_its_own_text_alone() {
    let fake = Fake { breaks_after: 10, ..Fake::new() };
    let requests = requests(60, 4, FAKE_VOCABULARY as u32, 40);
    let (answers, _) = together(&fake, &fake_options(4, 40), &requests, 1);
    let expected = alone(&Fake::new(), &fake_options(4, 40), &requests);
    let mut broken = 0;
    for (id, answer) in &answers {
        if answer.finish == Some(FinishReason::Error) {
            assert!(answer.error.as_deref() == Some("it broke"), "{answer:?}");
            assert!(expected[id].tokens.starts_with(&answer.tokens));
            broken += 1;
        } else {
            assert_eq!(answer.tokens, expected[id].tokens);
        }
    }
    assert!(broken > 5 && broken < answers.len() / 2, "{broken} of {}", answers.len());
}

#[test]
fn what_cannot_be_answered_is_refused() {
    let fake = Fake::new();
    let mut engine = Engine::new(&fake, fake_options(4, 10)).unwrap();
    let request = |change: fn(&mut Request)| {
        let mut request = Request::new(RequestId(0), [1, 2, 3], SamplingParams::default());
        change(&mut request);
        request
    };
    let mut refused = |change: fn(&mut Request), expected: &[&str]| {
        let error = engine.add(request(change)).unwrap_err().to_string();
        for expected in expected {
            assert!(error.contains(expected), "{error}");
        }
        assert!(!engine.has_requests());
    };
    refused(|x| x.prompt = [].into(), &["prompt", "no tokens"]);
    refused(|x| x.prompt = [1, 40].into(), &["token id 40", "40"]);
    refused(|x| x.n = 0, &["n:", "0", "at least 1"]);
    refused(|x| x.prompt = vec![1; 100].into(), &["100 tokens", "100", "shorten"]);
    refused(|x| x.sampling.max_tokens = 50, &["52 tokens", "13 blocks", "10"]);
    refused(|x| x.sampling.temperature = f32::NAN, &["temperature", "NaN"]);
    refused(|x| x.sampling.top_p = 1.5, &["top_p", "1.5", "0 to 1"]);
    refused(|x| x.sampling.min_p = -0.5, &["min_p", "-0.5"]);
    refused(|x| x.sampling.repetition_penalty = 0.0, &["repetition_penalty", "0"]);
    refused(|x| x.sampling.presence_penalty = f32::INFINITY, &["presence_penalty", "inf"]);
    refused(|x| x.sampling.logit_bias = vec![(40, 1.0)], &["logit_bias", "40"]);
    refused(|x| x.sampling.allowed_token_ids = Some(vec![]), &["allowed_token_ids", "no ids"]);
    engine.add(request(|_| {})).unwrap();
    let error = engine.add(request(|_| {})).unwrap_err().to_string();
    assert!(error.contains("id") && error.contains("not in use"), "{error}");

    let wrong = |change: fn(&mut EngineOptions), expected: &[&str]| {
        let mut options = fake_options(4, 10);
        change(&mut options);
        let error = Engine::new(&fake, options).unwrap_err().to_string();
        assert!(expected.iter().all(|expected| error.contains(expected)), "{error}");
    };
    wrong(|x| x.max_model_len = 101, &["max_model_len", "101", "100"]);
    wrong(|x| x.num_blocks = 0, &["num_blocks", "0"]);
    wrong(|x| x.enable_chunked_prefill = false, &["max_num_batched_tokens", "24", "100"]);
}

/// A grammar: every token is larger than the one before it.
#[derive(Clone)]
struct Rising {
    last: u32,
}

impl TokenConstraint for Rising {
    fn mask(&mut self, logits: &mut [f32]) -> std::result::Result<(), String> {
        logits[..=self.last as usize].fill(f32::NEG_INFINITY);
        Ok(())
    }

    fn accept(&mut self, id: u32) -> std::result::Result<(), String> {
        self.last = id;
        if id > 30 { Err("too high".into()) } else { Ok(()) }
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

#[test]
fn a_grammar_is_followed_by_every_sample() {
    let fake = Fake::new();
    let sampling = SamplingParams { max_tokens: 20, ..SamplingParams::default() };
    let mut request = Request::new(RequestId(0), [1, 2, 3], sampling);
    request.n = 4;
    request.constraint = Some(Box::new(Rising { last: 0 }));
    let (answers, _) = together(&fake, &fake_options(4, 30), &[request], 1);
    for answer in answers.values() {
        assert!(answer.tokens.is_sorted_by(|a, b| a < b), "{answer:?}");
        assert!(answer.finish == Some(FinishReason::Stop) || answer.error.is_some(), "{answer:?}");
    }
    assert!(answers.values().any(|answer| answer.tokens.len() > 2));
}

fn llama_config() -> LlamaConfig {
    let yaml = serde_json::json!({
        "dim": 48, "n_layers": 2, "n_heads": 6, "n_kv_heads": 2, "hidden_dim": 100,
        "vocab_size": 211, "max_seq_len": 200, "init_std": 0.2
    });
    serde_json::from_value(yaml).unwrap()
}

/// A model that trains and the same that generates.
fn llama(precision: Option<InferencePrecision>) -> (Llama, InferenceModel) {
    let weights = Weights::init(&llama_config(), 3, DType::F32, &Device::flex());
    let model = InferenceModel::in_memory(llama_config(), &weights, precision).unwrap();
    (Llama::new(llama_config(), weights, ActivationCheckpointing::None).unwrap(), model)
}

/// A model's answers, with the bits of all probabilities, alone and in any company.
fn same_bits_in_any_company(precision: InferencePrecision) {
    let (_, model) = llama(Some(precision));
    let requests = requests(100, 6, 211, 90);
    let large = EngineOptions { eos_token_ids: vec![2], ..EngineOptions::new(200, 3) };
    let expected = alone(&model, &large, &requests);
    for case in 0..5 {
        let mut options = large.clone();
        options.max_num_seqs = [32, 32, 5, 40, 3][case];
        options.num_blocks = [400, 14, 20, 400, 15][case];
        options.max_num_batched_tokens = [512, 512, 33, 4000, 7][case];
        options.enable_prefix_caching = [true, true, true, false, false][case];
        options.enable_chunked_prefill = case != 3;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1 + case % 2).build().unwrap();
        let (own, model): (Vec<Request>, _) = (requests.iter().map(copy).collect(), &model);
        let settings = options.clone();
        let (answers, stats) = pool.install(move || together(model, &settings, &own, case as u64));
        assert_eq!(stats.preemptions > 0, [false, true, true, false, true][case], "{stats:?}");
        assert_eq!(answers.len(), expected.len());
        for (id, answer) in answers {
            let differs = format!("{id:?} with {options:?}: {:?}", answer.tokens);
            assert_eq!(answer.tokens, expected[&id].tokens, "{differs}");
            assert!(answer == expected[&id], "{differs}");
        }
    }
}

#[test]
fn f32_same_bits_in_any_company() {
    same_bits_in_any_company(InferencePrecision::F32);
}

#[test]
fn bf16_same_bits_in_any_company() {
    same_bits_in_any_company(InferencePrecision::Bf16);
}

/// The ids that follow from whole forward passes of training, token by token.
#[test]
fn greedy_answers_are_those_of_the_whole_forward() {
    let (trained, model) = llama(None);
    let greedy = SamplingParams { temperature: 0.0, max_tokens: 60, ..SamplingParams::default() };
    let mut text: Vec<i32> = vec![5, 9, 100, 3, 77];
    let prompt: Vec<u32> = text.iter().map(|id| *id as u32).collect();
    let mut generated = Vec::new();
    let reason = generate(&model, &prompt, greedy, &[], |id| {
        generated.push(id as i32);
        true
    });
    assert_eq!(reason.unwrap(), FinishReason::Length);
    for expected in &generated {
        let targets = vec![0; text.len()];
        let batch = TokenBatch::new(&text, &targets, None, text.len(), 211, trained.device());
        let logits: Vec<f32> = trained.logits(&batch.unwrap()).unwrap().to_data().iter().collect();
        let last = &logits[logits.len() - 211..];
        let best = (0..211).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        assert_eq!(best as i32, *expected, "after {} tokens", text.len());
        text.push(*expected);
    }
    assert_eq!(generated.len(), 60);
}

/// What a prompt's tokens are given is what the loss says.
#[test]
fn prompt_logprobs_are_the_losses() {
    let (trained, model) = llama(None);
    let prompt: Vec<u32> = (0..150).map(|n| n * 37 % 211).collect();
    let sampling =
        SamplingParams { max_tokens: 0, prompt_logprobs: Some(3), ..SamplingParams::default() };
    let mut options = EngineOptions::new(200, 1);
    options.max_num_batched_tokens = 40;
    let mut engine = Engine::new(&model, options).unwrap();
    engine.add(Request::new(RequestId(0), prompt.clone(), sampling)).unwrap();
    let mut answers = Answers::new();
    run(&mut engine, &mut answers);
    let answer = &answers[&(0, 0)];
    assert_eq!((answer.tokens.len(), answer.finish), (0, Some(FinishReason::Length)));
    let scored = answer.prompt_logprobs.as_ref().unwrap();

    let ids: Vec<i32> = prompt.iter().map(|id| *id as i32).collect();
    let batch = TokenBatch::new(&ids[..149], &ids[1..], None, 149, 211, trained.device());
    let losses: Vec<f32> = trained.losses(&batch.unwrap()).unwrap().to_data().iter().collect();
    assert_eq!(scored.len(), 149);
    for ((scored, loss), id) in scored.iter().zip(&losses).zip(&prompt[1..]) {
        assert_eq!((scored.token.id, scored.top.len()), (*id, 3));
        assert!((scored.token.logprob + loss).abs() < 1e-4, "{scored:?}, loss {loss}");
        if scored.token.rank <= 3 {
            assert_eq!(scored.top[scored.token.rank - 1], scored.token);
        }
    }
}

/// The end of a prompt is scored alike with and without what precedes it in the cache, and a prompt that
/// is one token longer than the context is scored to its end.
#[test]
fn the_end_of_a_prompt_is_scored_behind_a_cached_beginning() {
    let (_, model) = llama(None);
    let context: Vec<u32> = (0..160).map(|n| n * 37 % 211).collect();
    let scored = |cached: bool, start: usize, prompt: &[u32]| {
        let sampling = SamplingParams {
            max_tokens: 0,
            prompt_logprobs: Some(0),
            prompt_logprobs_start: start,
            ..SamplingParams::default()
        };
        let mut options = EngineOptions::new(200, 2);
        options.max_num_batched_tokens = 48;
        let mut engine = Engine::new(&model, options).unwrap();
        if cached {
            engine.add(Request::new(RequestId(0), context.clone(), sampling.clone())).unwrap();
            run(&mut engine, &mut Answers::new());
        }
        engine.add(Request::new(RequestId(1), prompt, sampling)).unwrap();
        let mut answers = Answers::new();
        run(&mut engine, &mut answers);
        engine.check_invariants().unwrap();
        let hits = engine.stats().prefix_hits;
        (answers[&(1, 0)].prompt_logprobs.clone().unwrap(), hits)
    };
    let longest: Vec<u32> = context.iter().copied().chain((0..41).map(|n| n * 5 % 211)).collect();
    assert_eq!(longest.len(), 201);
    for (length, start) in [(161, 160), (170, 150), (201, 160), (201, 1), (164, 0)] {
        let prompt = &longest[..length];
        let (whole, _) = scored(false, 0, prompt);
        assert_eq!(whole.len(), length - 1);
        let (end, hits) = scored(true, start, prompt);
        assert_eq!(end, whole[start.max(1) - 1..], "{length} from {start}");
        assert_eq!(hits, start.saturating_sub(1) as u64 / 16 * 16, "{length} from {start}");
    }
    let mut engine = Engine::new(&model, EngineOptions::new(200, 2)).unwrap();
    let sampling = SamplingParams { max_tokens: 0, prompt_logprobs: Some(0), ..Default::default() };
    let request = Request::new(RequestId(0), vec![1; 202], sampling);
    let error = engine.add(request).unwrap_err();
    assert!(matches!(error, ModelError::PromptTooLong { found: 202, limit: 200 }), "{error}");
}

#[test]
fn a_cache_that_no_machine_has_is_refused() {
    let (_, model) = llama(None);
    let options = EngineOptions { num_blocks: 4_000_000_000, ..EngineOptions::new(200, 1) };
    let error = Engine::new(&model, options).unwrap_err();
    assert!(matches!(error, ModelError::CacheMemory { .. }), "{error}");
    let options = EngineOptions { block_size: 8, ..EngineOptions::new(200, 1) };
    let error = Engine::new(&model, options).unwrap_err().to_string();
    assert!(error.contains("block_size") && error.contains("16"), "{error}");
}
