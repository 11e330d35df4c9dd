//! The commands on real input: what they print and what follows from it.

use std::fs;

use crate::harness::{SmallRun, corpus, repository, run};

#[test]
fn data_cat_gives_the_text_back() {
    let documents = corpus().join("documents");
    let cat = run(["data", "cat", documents.join("speeches").to_str().unwrap()]).ok();
    let original = fs::read_to_string(
        repository("tests/fixtures/plain/speeches").join("1967_lyndon_b_johnson.txt"),
    )
    .unwrap();
    assert!(cat.stdout.contains(original.trim_end()), "the speech of 1967 is missing");
    let report = run(["data", "report", corpus().to_str().unwrap(), "--json"]).ok();
    assert!(report.json().is_object());
}

#[test]
fn data_run_and_tokenize_skip_what_is_done() {
    let config = corpus().join("data.yaml");
    let stamp = |file: &str| fs::metadata(corpus().join(file)).unwrap().modified().unwrap();
    let files = ["documents/books/train-00000.parquet", "tokens/books/train-00000.arrow"];
    let before = files.map(stamp);
    run(["data", "run", config.to_str().unwrap()]).ok();
    run(["tokenize", config.to_str().unwrap()]).ok();
    assert_eq!(before, files.map(stamp));
}

#[test]
fn encode_and_decode_are_inverse() {
    let model = corpus().join("tokenizer.model");
    let model = model.to_str().unwrap();
    let text = "In 1967 we saw  two spaces, a\ttab, naïve café 日本 and <s> as text.";
    let encoded = run(["tokenizer", "encode", "--model", model, "--json", text]).ok().json();
    let ids: Vec<String> =
        encoded["token_ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    assert!(!ids.contains(&"1".to_string()), "<s> in a text is text");
    let arguments: Vec<&str> = ["tokenizer", "decode", "--model", model]
        .into_iter()
        .chain(ids.iter().map(String::as_str))
        .collect();
    let decoded = run(arguments).ok();
    assert_eq!(decoded.stdout.trim_end_matches('\n'), text);
}

#[test]
fn generate_repeats_streams_and_stops() {
    let small = SmallRun::new();
    small.train(&["steps=60", "checkpoint.every=0", "validate.every=0"]).ok();
    let checkpoint = small.checkpoint("small", 60);
    let generate = |arguments: &[&str]| {
        let common =
            ["generate", "--checkpoint", checkpoint.to_str().unwrap(), "--prompt", "The whale"];
        run([&common[..], arguments].concat()).ok()
    };
    let json = generate(&["--json", "--max-tokens", "40", "--seed", "5"]).json();
    let text = json["text"].as_str().unwrap();
    assert_eq!(json["finish_reason"], "length");
    assert_eq!(json["token_ids"].as_array().unwrap().len(), 40);
    let streamed = generate(&["--max-tokens", "40", "--seed", "5"]);
    assert_eq!(streamed.stdout, format!("The whale{text}\n"));
    assert_ne!(generate(&["--json", "--max-tokens", "40", "--seed", "6"]).json()["text"], text);

    // Greedy text is the same whatever the seed; a stop string from its middle ends it there.
    let greedy = generate(&["--json", "--temperature", "0", "--max-tokens", "40"]).json();
    let again =
        generate(&["--json", "--temperature", "0", "--max-tokens", "40", "--seed", "9"]).json();
    assert_eq!(greedy, again);
    let whole = greedy["text"].as_str().unwrap();
    let (at, _) = whole.char_indices().nth(whole.chars().count() / 2).unwrap();
    let stop: String = whole[at..].chars().take(3).collect();
    let first = whole.find(&stop).unwrap();
    let stopped =
        generate(&["--json", "--temperature", "0", "--max-tokens", "40", "--stop", &stop]).json();
    assert_eq!(stopped["text"].as_str().unwrap(), &whole[..first]);
    assert_eq!(stopped["finish_reason"], "stop");

    // Prompts together give what each gives alone, in their order; samples differ.
    let file = checkpoint.join("prompts");
    fs::write(&file, "The sea\n\nThe whale\n").unwrap();
    let file = file.to_str().unwrap();
    let many = |arguments: &[&str]| {
        let common = ["generate", "--checkpoint", checkpoint.to_str().unwrap()];
        run([&common[..], arguments, &["--max-tokens", "40", "--seed", "5"]].concat()).ok()
    };
    let lines = many(&["--prompts", file, "--n", "2", "--logprobs", "3", "--json"]);
    let mut texts: Vec<serde_json::Value> =
        lines.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let place = |text: &serde_json::Value| {
        (text["prompt_index"].as_u64().unwrap(), text["index"].as_u64().unwrap())
    };
    texts.sort_by_key(place);
    let places: Vec<_> = texts.iter().map(place).collect();
    assert_eq!(places, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    assert_eq!(texts[2]["text"], text);
    assert_ne!(texts[3]["text"], text);
    let scored = texts[2]["logprobs"].as_array().unwrap();
    assert_eq!(scored.len(), 40);
    for (scored, id) in scored.iter().zip(texts[2]["token_ids"].as_array().unwrap()) {
        assert_eq!((&scored["id"], scored["top"].as_array().unwrap().len()), (id, 3));
        assert!(scored["logprob"].as_f64().unwrap() <= 0.0);
    }
    let printed = many(&["--prompts", file]).stdout;
    let expected = format!("--- prompt 1, text 0\nThe whale{text}\n");
    assert!(printed.starts_with("--- prompt 0, text 0\nThe sea"), "{printed}");
    assert!(printed.ends_with(&expected), "{printed}");
    fs::write(file, "The whale\n").unwrap();
    assert_eq!(many(&["--prompt-file", file]).stdout, streamed.stdout);

    // The model that generates is the model that was validated.
    let documents = corpus().join("documents/books/validation-00000.parquet");
    let eval = |precision: &str| {
        run([
            "eval",
            "--checkpoint",
            checkpoint.to_str().unwrap(),
            "--documents",
            documents.to_str().unwrap(),
            "--precision",
            precision,
            "--json",
        ])
        .ok()
        .json()["bits_per_byte"]
            .as_f64()
            .unwrap()
    };
    let (f32_bits, bf16_bits) = (eval("f32"), eval("bf16"));
    assert!((f32_bits - bf16_bits).abs() < 0.01 * f32_bits, "{f32_bits} and {bf16_bits}");
    assert!(f32_bits < 6.0, "{f32_bits}");
}

/// A checkpoint is a Hugging Face directory.
#[test]
fn checkpoint_files() {
    let small = SmallRun::new();
    small.train(&["steps=1"]).ok();
    let dir = small.checkpoint("small", 1);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(config["num_key_value_heads"], 2);
    let weights = fs::read(dir.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let tensor = tensors.tensor("model.layers.1.self_attn.k_proj.weight").unwrap();
    assert_eq!(tensor.shape(), [16, 32]);
    assert!(String::from_utf8_lossy(&weights[..2000]).contains(r#""format":"pt""#));
    for file in ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"] {
        assert!(dir.join(file).exists(), "{file}");
    }
    assert_eq!(
        fs::read(dir.join("tokenizer.model")).unwrap(),
        fs::read(corpus().join("tokenizer.model")).unwrap()
    );
}

/// The paper's largest run: 2048 devices of 80 GB, about 380 tokens/s each, 1.4T tokens in about
/// 21 days (LLaMA, section 2.4).
#[test]
fn estimate_of_the_papers_largest_run() {
    let config = repository("configs/train/llama_65b.yaml");
    let arguments =
        ["estimate", config.to_str().unwrap(), "--devices", "2048", "--device-memory", "80GB"];
    let json = run([&arguments[..], &["--json"]].concat()).ok().json();
    let number = |key: &str| json[key].as_f64().unwrap();
    assert!((number("tokens_per_second_per_device") - 380.0).abs() < 3.8);
    assert!((number("days") - 21.0).abs() < 0.21);
    assert!((number("parameters") - 65.2e9).abs() < 0.2e9);
    assert!(json["memory_bytes"]["total"].as_u64().unwrap() < 80_000_000_000);
    let text = run(arguments).ok().stdout;
    assert!(text.contains("380") && text.contains("21"), "{text}");
    run(["estimate", config.to_str().unwrap(), "--device-memory", "80GX"]).fails(2, &["80GX"]);
}

/// The same run out of its parts: what tensor ranks and copies exchange, and what computing hides of
/// it; the published rate within a tenth.
#[test]
fn estimate_of_layouts() {
    let config = repository("configs/train/llama_65b.yaml").display().to_string();
    let mut arguments =
        vec!["estimate", &config, "batch.micro_batch=4", "batch.grad_accum_steps=512"];
    arguments.extend(["--ranks", "2048", "--tensor", "8", "--json"]);
    let ran = run([&arguments[..], &["--layouts", "--scale", "1024..4096"]].concat()).ok();
    let json = ran.json();
    let rate = json["layout"]["seconds"]["tokens_per_second_per_rank"].as_f64().unwrap();
    assert!((rate / 380.0 - 1.0).abs() < 0.1, "{rate}");
    let layouts = json["layouts"].as_array().unwrap();
    assert!(layouts.contains(&json["layout"]));
    let best = layouts[0]["seconds"]["tokens_per_second_per_rank"].as_f64().unwrap();
    assert!(best >= rate && best < 1.02 * rate, "{best} after {rate}");
    assert_eq!(json["scale"].as_array().unwrap().len(), 3);
    assert!(ran.stdout.contains("fits of 76.0 GB"), "{}", ran.stdout);
    let small = repository("configs/train/quickstart.yaml").display().to_string();
    let four = ["batch.micro_batch=1", "batch.grad_accum_steps=4", "--ranks", "4"];
    let ran =
        run([&["estimate", small.as_str()][..], &four, &["--simulate", "--json"]].concat()).ok();
    let found = &ran.json()["simulation"];
    assert_eq!((&found["ranks"], found["step_seconds"].as_array().unwrap().len()), (&4.into(), 10));
    for (wrong, named) in [
        (&["--ranks", "6", "--tensor", "4"][..], "divisor of --ranks (6)"),
        (&["--ranks", "5", "--tensor", "5"], "model.n_heads"),
        (&["--ranks", "4", "--hardware", "b100"], "a100-80gb, h100-80gb"),
        (&["--ranks", "4", "--scale", "8"], "8..16384"),
        (&["--ranks", "4", "--devices", "4"], "cannot be used with"),
        (&["--layouts"], "--ranks"),
    ] {
        run([&["estimate", small.as_str()][..], wrong].concat()).fails(2, &[named]);
    }
}

#[test]
fn bench_prints_its_figures() {
    let small = SmallRun::new();
    let config = small.config();
    let config = config.to_str().unwrap();
    let json = run(["bench", "train", config, "--steps", "5", "--json"]).ok().json();
    for key in [
        "tokens_per_second",
        "step_seconds",
        "model_flops_per_second",
        "mfu",
        "peak_flops_per_second",
        "peak_memory_bytes",
        "threads",
    ] {
        assert!(json[key].as_f64().unwrap() > 0.0, "{key}: {json}");
    }
    assert!(json["mfu"].as_f64().unwrap() <= 1.0, "{json}");
    assert_eq!((json["precision"].as_str(), json["policy"].as_str()), (Some("bf16"), Some("none")));
    assert!(!small.run_dir("small").exists(), "bench leaves no run");
    run(["bench", "train", config, "--steps", "3"]).fails(2, &["--steps"]);
    let json = run(["bench", "attention", "--seq-len", "64", "--json"]).ok().json();
    assert!(json.as_object().unwrap().values().any(|value| value.as_f64().is_some()), "{json}");
}
