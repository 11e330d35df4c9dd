//! Generating from weights in the format they are stored in, through the binary.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::harness::{Finished, SmallRun, altiplano, copy_dir, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn generate(model: &Path, options: &[&str]) -> Value {
    let arguments = ["generate", "--checkpoint", text(model), "--prompt", "The whale", "--json"];
    run([&arguments[..], &["--temperature", "0", "--max-tokens", "12"], options].concat())
        .ok()
        .json()
}

/// A run of two steps, and its exports.
struct Models {
    run: SmallRun,
}

impl Models {
    fn new() -> Self {
        let run = SmallRun::new();
        // Rows that are whole blocks of 32.
        run.train(&["steps=2", "validate.every=0", "model.hidden_dim=64"]).ok();
        Self { run }
    }

    fn checkpoint(&self) -> PathBuf {
        self.run.checkpoint("small", 2)
    }

    fn export(&self, output: &str, options: &[&str]) -> PathBuf {
        let output = self.run.dir.path().join(output);
        let checkpoint = self.checkpoint();
        let arguments =
            ["export", "--checkpoint", text(&checkpoint), "--output", text(&output), "--format"];
        run([&arguments[..], options].concat()).ok();
        output
    }
}

/// The same numbers give the same text, from whatever file, and quantizing at the start is quantizing
/// into a file.
#[test]
fn every_file_is_used_as_it_is() {
    let models = Models::new();
    let checkpoint = models.checkpoint();
    let full = generate(&checkpoint, &[]);
    assert_eq!(full["token_ids"].as_array().unwrap().len(), 12, "{full}");
    assert_eq!(generate(&models.export("f32.gguf", &["gguf", "--type", "f32"]), &[]), full);
    assert_eq!(generate(&checkpoint, &["--precision", "f32", "--threads", "1"]), full);

    let halves = generate(&models.export("bf16", &["hf", "--dtype", "bf16"]), &[]);
    assert_eq!(generate(&models.export("bf16.gguf", &["gguf", "--type", "bf16"]), &[]), halves);
    assert_eq!(generate(&checkpoint, &["--precision", "bf16"]), halves);

    for kind in ["q8_0", "q4_0"] {
        let gguf = models.export(&format!("{kind}.gguf"), &["gguf", "--type", kind]);
        let quantized = generate(&gguf, &[]);
        assert_eq!(generate(&checkpoint, &["--precision", kind]), quantized, "{kind}");
        generate(&gguf, &["--precision", "bf16"]);
    }
    for kind in ["f16", "q6_k", "q4_k_m"] {
        generate(&models.export(&format!("{kind}.gguf"), &["gguf", "--type", kind]), &[]);
    }
    let arguments = ["generate", "--checkpoint", text(&checkpoint), "--prompt", "x"];
    run([&arguments[..], &["--precision", "q5_1"]].concat()).fails(2, &["q5_1", "q8_0"]);
}

/// Rewrites the tensors of a directory in f32.
fn rewrite(dir: &Path, mut change: impl FnMut(&str, &mut Vec<usize>, &mut Vec<f32>)) {
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let changed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let mut shape = tensor.shape().to_vec();
            let floats = tensor.data().chunks_exact(4);
            let mut values: Vec<f32> =
                floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            change(&name, &mut shape, &mut values);
            (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views = changed.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn edit_json(path: &Path, key: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    json[key] = value;
    fs::write(path, json.to_string()).unwrap();
}

/// Ids beyond the tokenizer's are not chosen, whatever their logits; end tokens are those of
/// `generation_config.json`; what is no number ends with the name of its tensor.
#[test]
fn vocabularies_end_tokens_and_numbers() {
    let models = Models::new();
    let hf = models.export("hf", &["hf", "--dtype", "f32"]);
    let expected = generate(&hf, &[]);
    let ids: Vec<u64> =
        expected["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();

    let padded = models.run.dir.path().join("padded");
    copy_dir(&hf, &padded);
    rewrite(&padded, |name, shape, values| {
        if shape[0] == 400 {
            // One of the two is likelier than everything else.
            let width = shape[1];
            for factor in [1000.0, -1000.0] {
                let row = values[ids[0] as usize * width..][..width].to_vec();
                values.extend(row.iter().map(|x| factor * x));
            }
            shape[0] = 402;
        }
        assert!(!name.is_empty());
    });
    edit_json(&padded.join("config.json"), "vocab_size", json!(402));
    assert_eq!(generate(&padded, &[]), expected);

    let ended = models.run.dir.path().join("ended");
    copy_dir(&hf, &ended);
    let first = ids.iter().position(|id| *id == ids[3]).unwrap();
    edit_json(&ended.join("generation_config.json"), "eos_token_id", json!([399, ids[3]]));
    let found = generate(&ended, &[]);
    assert_eq!(found["finish_reason"], "stop");
    assert_eq!(found["token_ids"].as_array().unwrap().len(), first, "{found}");

    let broken = models.run.dir.path().join("broken");
    copy_dir(&hf, &broken);
    rewrite(&broken, |name, _, values| {
        if name == "model.layers.1.mlp.down_proj.weight" {
            values[77] = f32::NAN;
        }
    });
    let arguments = ["generate", "--checkpoint", text(&broken), "--prompt", "The whale"];
    let bad = "model.layers.1.mlp.down_proj.weight";
    run(arguments).fails(1, &[bad, "not finite"]);
    // Whatever else reads the weights says so too.
    let dir = models.run.dir.path();
    let (document, output) = (dir.join("document.txt"), dir.join("refused"));
    fs::write(&document, "The whale").unwrap();
    run(["eval", "--checkpoint", text(&broken), "--documents", text(&document)])
        .fails(1, &[bad, "not finite"]);
    for format in ["hf", "gguf", "meta"] {
        run([
            "export",
            "--checkpoint",
            text(&broken),
            "--output",
            text(&output),
            "--format",
            format,
        ])
        .fails(1, &["down_proj", "NaN", "finite numbers"]);
    }
    run(["import", "--from", "hf", text(&broken), "--output", text(&output)])
        .fails(1, &[bad, "NaN", "finite numbers"]);
    let input = dir.join("in.jsonl");
    let line = json!({"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "The whale"}});
    fs::write(&input, line.to_string()).unwrap();
    let output = dir.join("out.jsonl");
    let arguments = ["batch", "run", "--checkpoint", text(&broken), "--input", text(&input)];
    run([&arguments[..], &["--output", text(&output)]].concat())
        .fails(1, &["in.jsonl: 1 of 1 lines failed", "line 1", bad]);
    let answer: Value = serde_json::from_str(&fs::read_to_string(output).unwrap()).unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains(bad), "{answer}");
}

/// A prompt that is given twice gets two texts, the same ones every time, and the first is that of the
/// prompt alone.
#[test]
fn a_prompt_given_again_draws_anew() {
    let models = Models::new();
    let file = models.run.dir.path().join("prompts.txt");
    fs::write(&file, "The whale\nCall me\nThe whale\nThe whale\n").unwrap();
    let checkpoint = models.checkpoint();
    let texts = |prompts: &[&str]| -> Vec<Value> {
        let arguments = ["generate", "--checkpoint", text(&checkpoint), "--seed", "3", "--json"];
        let finished = run([&arguments[..], &["--max-tokens", "16"], prompts].concat()).ok();
        let mut lines: Vec<Value> =
            finished.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.sort_by_key(|line| line["prompt_index"].as_u64());
        lines.into_iter().map(|line| line["token_ids"].clone()).collect()
    };
    let many = texts(&["--prompts", text(&file)]);
    assert_eq!(many, texts(&["--prompts", text(&file)]));
    assert!(many[0] != many[2] && many[2] != many[3] && many[0] != many[3], "{many:?}");
    assert_eq!(many[0], texts(&["--prompt", "The whale"])[0]);
    assert_eq!(many[1], texts(&["--prompt", "Call me"])[0]);
    run(["generate", "--checkpoint", text(&checkpoint), "--prompts", "/dev/zero"])
        .fails(1, &["/dev/zero", "more than"]);
}

/// The template of a model goes into a GGUF file, one of several too, and is found there.
#[test]
fn a_chat_template_travels_in_a_gguf_file() {
    use std::process::Stdio;

    let models = Models::new();
    let hf = models.export("hf", &["hf"]);
    let list = json!([{"name": "rag", "template": "no"},
                      {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }} said"}]);
    edit_json(&hf.join("tokenizer_config.json"), "chat_template", list);
    let gguf = models.run.dir.path().join("chat.gguf");
    run([
        "export",
        "--checkpoint",
        text(&hf),
        "--output",
        text(&gguf),
        "--format",
        "gguf",
        "--type",
        "f32",
    ])
    .ok();
    let input = models.run.dir.path().join("question.txt");
    fs::write(&input, "The whale\n").unwrap();
    let chat = |model: &Path| -> Finished {
        let mut command = altiplano();
        command.args(["generate", "--chat", "--temperature", "0", "--max-tokens", "8", "--json"]);
        command.arg("--checkpoint").arg(model);
        let stdin: Stdio = fs::File::open(&input).unwrap().into();
        command.stdin(stdin).output().unwrap().into()
    };
    let said = chat(&gguf).ok().json()["text"].clone();
    assert_eq!(chat(&hf).ok().json()["text"], said);
    let plain = models.export("plain.gguf", &["gguf", "--type", "f32"]);
    chat(&plain).fails(1, &["plain.gguf", "no chat_template", "--template"]);
    // The server finds it where `generate` does.
    let lines = models.run.dir.path().join("in.jsonl");
    let body = json!({"messages": [{"role": "user", "content": "The whale"}], "max_tokens": 8,
                      "temperature": 0});
    let line = json!({"custom_id": "a", "url": "/v1/chat/completions", "body": body});
    fs::write(&lines, line.to_string()).unwrap();
    let output = models.run.dir.path().join("out.jsonl");
    let arguments = ["batch", "run", "--checkpoint", text(&gguf), "--input", text(&lines)];
    run([&arguments[..], &["--output", text(&output)]].concat()).ok();
    let answer: Value = serde_json::from_str(&fs::read_to_string(output).unwrap()).unwrap();
    assert_eq!(answer["response"]["body"]["choices"][0]["message"]["content"], said);
}

/// A large model takes the memory of its file: its weights are mapped, and no copy is made.
#[cfg(target_os = "linux")]
#[test]
fn memory_stays_near_the_size_of_the_file() {
    use std::io::Write;

    let dir = tempfile::tempdir().unwrap();
    let (dim, hidden, layers, vocabulary) = (1024usize, 4096usize, 9usize, 2000usize);
    let config = json!({
        "model_type": "llama", "hidden_size": dim, "intermediate_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 4,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "vocab_size": vocabulary,
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    // A file of zeros that takes no room on the disk.
    let mut header = serde_json::Map::new();
    let mut end = 0;
    let mut add = |name: String, shape: &[usize]| {
        let begin = end;
        end += 2 * shape.iter().product::<usize>();
        let tensor = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] });
        header.insert(format!("{name}.weight"), tensor);
    };
    add("model.embed_tokens".into(), &[vocabulary, dim]);
    for n in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![dim]),
            ("self_attn.q_proj", vec![dim, dim]),
            ("self_attn.k_proj", vec![dim / 4, dim]),
            ("self_attn.v_proj", vec![dim / 4, dim]),
            ("self_attn.o_proj", vec![dim, dim]),
            ("post_attention_layernorm", vec![dim]),
            ("mlp.gate_proj", vec![hidden, dim]),
            ("mlp.up_proj", vec![hidden, dim]),
            ("mlp.down_proj", vec![dim, hidden]),
        ] {
            add(format!("model.layers.{n}.{name}"), &shape);
        }
    }
    add("model.norm".into(), &[dim]);
    add("lm_head".into(), &[vocabulary, dim]);
    let header = Value::Object(header).to_string();
    let mut file = fs::File::create(dir.path().join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let bytes = (8 + header.len() + end) as u64;
    file.set_len(bytes).unwrap();
    assert!(bytes > 270_000_000);

    let bench = run(["bench", "generate", "--checkpoint", text(dir.path()), "--json"]
        .into_iter()
        .chain(["--prompt-tokens", "8", "--new-tokens", "3", "--repeats", "1"]))
    .ok()
    .json();
    let peak = bench["peak_memory_bytes"].as_u64().unwrap();
    assert!(peak < bytes + bytes / 10 + 60_000_000, "{peak} bytes for a file of {bytes}");
}
