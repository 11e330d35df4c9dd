//! `altiplano export` and `altiplano import`: what goes out comes back, in every format, and files
//! that are not what they say are refused with a word that helps.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use altiplano_model::quantize::StoredAs;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::harness::{Finished, SmallRun, copy_dir, run};

/// A run of two steps and a folder for what is made of it.
struct Exported {
    run: SmallRun,
}

impl Exported {
    fn new() -> Self {
        let run = SmallRun::new();
        run.train(&["steps=2", "validate.every=0"]).ok();
        Self { run }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.run.dir.path().join(name)
    }

    fn checkpoint(&self) -> PathBuf {
        self.run.checkpoint("small", 2)
    }

    fn export(&self, format: &str, options: &[&str], output: &str) -> Finished {
        let (checkpoint, output) = (self.checkpoint(), self.path(output));
        let common =
            ["export", "--json", "--checkpoint", text(&checkpoint), "--output", text(&output)];
        run([&common[..], &["--format", format], options].concat())
    }

    fn import(&self, format: &str, from: &str, options: &[&str], output: &str) -> Finished {
        let (from, output) = (self.path(from), self.path(output));
        let common = ["import", "--json", "--from", format, text(&from), "--output", text(&output)];
        run([&common[..], options].concat())
    }

    /// Names in the folder beside the run and its configuration.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.run.dir.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> =
            names.filter(|name| name != "runs" && name != "train.yaml").collect();
        names.sort();
        names
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Every tensor of a directory as f32.
fn tensors(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors")
            || path.ends_with("optimizer.safetensors")
        {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let stored = match tensor.dtype() {
                safetensors::Dtype::F32 => StoredAs::F32,
                safetensors::Dtype::F16 => StoredAs::F16,
                _ => StoredAs::Bf16,
            };
            let mut values = vec![0f32; tensor.data().len() / stored.block_bytes()];
            stored.decode(tensor.data(), &mut values);
            assert!(tensors.insert(name, values).is_none());
        }
    }
    tensors
}

fn greedy(dir: &Path) -> Value {
    let arguments = ["generate", "--checkpoint", text(dir), "--prompt", "The whale", "--json"];
    run([&arguments[..], &["--temperature", "0", "--max-tokens", "20"]].concat()).ok().json()
}

/// The weights are the same bits whichever way they went, the model is the same, and it continues a
/// text in the same way, tokenizer included.
#[test]
fn every_format_gives_the_same_weights_back() {
    let exported = Exported::new();
    let expected = tensors(&exported.checkpoint());
    let continued = greedy(&exported.checkpoint());
    let config = json(&exported.checkpoint().join("config.json"));
    exported.export("hf", &["--max-shard-size", "40kB"], "hf").ok();
    exported.export("gguf", &["--type", "f32"], "model.gguf").ok();
    exported.export("meta", &["--shards", "2"], "meta").ok();
    for (format, from) in [("hf", "hf"), ("gguf", "model.gguf"), ("meta", "meta")] {
        let options: &[&str] = if format == "meta" { &["--context", "64"] } else { &[] };
        let back = format!("back-{format}");
        let summary = exported.import(format, from, options, &back).ok().json();
        assert_eq!(summary["stored_as"], serde_json::json!({ "f32": expected.len() }));
        let back = exported.path(&back);
        assert!(tensors(&back) == expected, "{format}: other weights");
        let found = json(&back.join("config.json"));
        for key in [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "vocab_size",
            "rope_theta",
            "rope_parameters",
            "bos_token_id",
            "eos_token_id",
            "torch_dtype",
            "dtype",
        ] {
            assert_eq!(found[key], config[key], "{format}: {key}");
        }
        assert_eq!(greedy(&back), continued, "{format}");
    }
    // The directory in shards is one that any reader of Hugging Face's can follow.
    let index = json(&exported.path("hf/model.safetensors.index.json"));
    let files: std::collections::BTreeSet<&str> =
        index["weight_map"].as_object().unwrap().values().map(|v| v.as_str().unwrap()).collect();
    assert!(files.len() > 2, "{files:?}");
    for file in files {
        let length = fs::metadata(exported.path("hf").join(file)).unwrap().len();
        // The header comes on top; the embedding alone is larger than the limit.
        assert!(length < 40_000 + 4_000 || length < 52_000 + 4_000, "{file}: {length}");
    }
    assert_eq!(index["metadata"]["total_size"].as_u64().unwrap() as usize, {
        4 * expected.values().map(Vec::len).sum::<usize>()
    });
}

/// Half precision and blocks lose what they must and no more; norms stay as they are.
#[test]
fn smaller_formats_stay_within_their_precision() {
    let exported = Exported::new();
    let expected = tensors(&exported.checkpoint());
    for (kind, bound, stored) in [
        ("f16", 5e-4, "f16"),
        ("bf16", 4e-3, "bf16"),
        ("q8_0", 0.01, "q8_0"),
        ("q6_k", 0.01, "q8_0"),
        ("q4_k_m", 0.08, "q5_0"),
        ("q4_0", 0.14, "q4_0"),
        ("q4_0_pure", 0.14, "q4_0"),
    ] {
        let file = format!("{kind}.gguf");
        let summary = exported.export("gguf", &["--type", kind], &file).ok().json();
        assert!(summary["stored_as"][stored].as_u64().unwrap() > 5, "{summary}");
        // Rows of 32 are no whole blocks of 256, rows of 48 none of 32.
        assert_eq!(summary["notes"].as_array().unwrap().is_empty(), !kind.starts_with('q'));
        exported.import("gguf", &file, &[], kind).ok();
        for (name, values) in tensors(&exported.path(kind)) {
            let before = &expected[&name];
            let square = |x: f32| f64::from(x).powi(2);
            let size: f64 = before.iter().map(|x| square(*x)).sum();
            let error: f64 = before.iter().zip(&values).map(|(a, b)| square(a - b)).sum();
            let error = (error / size).sqrt();
            assert!(error <= bound, "{kind}: {name}: {error}");
            assert!(!name.contains("norm") || error == 0.0, "{kind}: {name}: {error}");
        }
    }
    for dtype in ["bf16", "f16"] {
        for format in ["hf", "meta"] {
            let (to, back) = (format!("{format}-{dtype}"), format!("back-{format}-{dtype}"));
            exported.export(format, &["--dtype", dtype], &to).ok();
            exported.import(format, &to, &["--dtype", dtype], &back).ok();
            let again = format!("gguf-{dtype}");
            exported
                .import(
                    "gguf",
                    &format!("{dtype}.gguf"),
                    &["--dtype", dtype, "--overwrite"],
                    &again,
                )
                .ok();
            let (a, b) = (tensors(&exported.path(&back)), tensors(&exported.path(&again)));
            let matrices = |tensors: BTreeMap<String, Vec<f32>>| -> Vec<Vec<f32>> {
                tensors.into_values().collect()
            };
            assert!(matrices(a) == matrices(b), "{format} {dtype}");
        }
    }
    let config = json(&exported.path("hf-bf16/config.json"));
    assert_eq!(
        (&config["dtype"], &config["torch_dtype"]),
        (&"bfloat16".into(), &"bfloat16".into())
    );
}

/// The same model gives the same bytes, for any number of threads, and wherever it is written.
#[test]
fn exports_have_the_same_bytes_every_time() {
    let exported = Exported::new();
    let read = |name: &str| -> BTreeMap<String, Vec<u8>> {
        let path = exported.path(name);
        if path.is_file() {
            return [(String::new(), fs::read(path).unwrap())].into();
        }
        let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
        files
            .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
            .collect()
    };
    for (format, option, value) in
        [("hf", "--dtype", "bf16"), ("gguf", "--type", "q4_k_m"), ("meta", "--shards", "2")]
    {
        let end = if format == "gguf" { ".gguf" } else { "" };
        let outputs = ["one", "two"].map(|n| format!("{format}-{n}{end}"));
        exported.export(format, &[option, value, "--threads", "1"], &outputs[0]).ok();
        exported.export(format, &[option, value, "--threads", "3"], &outputs[1]).ok();
        assert!(!read(&outputs[0]).is_empty());
        assert!(
            read(&outputs[0])
                .into_iter()
                .map(|(name, bytes)| (name.replace("one", "two"), bytes))
                .eq(read(&outputs[1])),
            "{format}"
        );
    }
}

/// A run stands for its newest checkpoint, and a directory for the file in it.
#[test]
fn runs_and_directories_are_found() {
    let exported = Exported::new();
    let run_dir = exported.run.run_dir("small");
    let output = exported.path("files");
    let arguments = ["export", "--checkpoint", text(&run_dir), "--output", text(&output)];
    let gguf = [&arguments[..], &["--format", "gguf", "--type", "q8_0"]].concat();
    run(gguf.clone()).ok();
    assert!(output.join("model-q8_0.gguf").is_file());
    run(gguf.clone()).fails(1, &["model-q8_0.gguf", "--overwrite"]);
    run([&gguf[..], &["--overwrite"]].concat()).ok();
    run([&arguments[..], &["--format", "hf"]].concat()).fails(1, &["files", "--overwrite"]);
    run([&arguments[..], &["--format", "hf", "--overwrite"]].concat())
        .fails(1, &["files", "other things than a model"]);
    run([&arguments[..], &["--format", "hf", "--type", "q8_0"]].concat())
        .fails(2, &["--type", "gguf"]);
    run([&arguments[..], &["--format", "meta", "--shards", "3"]].concat())
        .fails(2, &["--shards 3", "n_heads"]);
    run([&arguments[..], &["--format", "gguf", "--type", "q3"]].concat()).fails(2, &["q4_k_m"]);
    let into_run = ["export", "--format", "hf", "--overwrite", "--checkpoint"];
    let checkpoint = exported.checkpoint();
    run([&into_run[..], &[text(&checkpoint), "--output", text(&checkpoint)]].concat())
        .fails(1, &["checkpoint of a run"]);
    let nowhere = exported.path("nothing");
    run(["export", "--checkpoint", text(&nowhere), "--format", "hf", "--output", text(&output)])
        .fails(1, &["nothing"]);
    assert_eq!(exported.left(), ["files"]);
}

/// Damage of a Hugging Face directory is named, and nothing is written.
#[test]
fn hugging_face_directories_that_do_not_fit() {
    let exported = Exported::new();
    exported.export("hf", &["--max-shard-size", "40kB"], "hf").ok();
    let fails = |change: &dyn Fn(&Path), words: &[&str]| {
        let dir = exported.path("broken");
        copy_dir(&exported.path("hf"), &dir);
        change(&dir);
        exported.import("hf", "broken", &[], "out").fails(1, words);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(exported.left(), ["hf"]);
    };
    let config = |key: &'static str, value: Value| {
        move |dir: &Path| {
            let path = dir.join("config.json");
            let mut config = json(&path);
            config[key] = value.clone();
            fs::write(path, config.to_string()).unwrap();
        }
    };
    for (key, value) in [
        ("model_type", "gpt2".into()),
        ("attention_bias", true.into()),
        ("mlp_bias", true.into()),
        ("rope_scaling", serde_json::json!({ "rope_type": "yarn", "factor": 2.0 })),
    ] {
        fails(&config(key, value), &["config.json", key]);
    }
    fails(&config("vocab_size", 399.into()), &["tokenizer.model", "400", "399"]);
    fails(&config("vocab_size", 401.into()), &["embed_tokens", "[400, 32]", "[401, 32]"]);
    fails(&config("num_hidden_layers", 3.into()), &["model.layers.2", "no such tensor"]);
    fails(&config("num_hidden_layers", 1.into()), &["model.layers.1", "only the parameters"]);
    fails(&config("eos_token_id", 400.into()), &["config.json", "eos", "400"]);
    let index = "model.safetensors.index.json";
    fails(
        &|dir| {
            let text = fs::read_to_string(dir.join(index)).unwrap();
            fs::write(dir.join(index), text.replace("model-00001-of", "model-00009-of")).unwrap();
        },
        &["model-00009-of", "no such file"],
    );
    let shard = json(&exported.path("hf").join(index))["weight_map"]["lm_head.weight"].clone();
    let shard = shard.as_str().unwrap().to_string();
    fails(
        &|dir| {
            let bytes = fs::read(dir.join(&shard)).unwrap();
            fs::write(dir.join(&shard), &bytes[..bytes.len() - 1]).unwrap();
        },
        &[&shard, "not a whole safetensors file"],
    );
    fails(&|dir| fs::write(dir.join("config.json"), "[]").unwrap(), &["config.json"]);
}

/// Replaces the first `from` in a file by `to` of the same length.
fn patch(path: &Path, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    fs::write(path, bytes).unwrap();
}

/// A key of a GGUF file followed by the number of its type and its value.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [key.as_bytes(), &kind.to_le_bytes(), value].concat()
}

#[test]
fn gguf_files_that_do_not_fit() {
    let exported = Exported::new();
    exported.export("gguf", &["--type", "q8_0"], "model.gguf").ok();
    let whole = fs::read(exported.path("model.gguf")).unwrap();
    let broken = exported.path("broken.gguf");
    let refused = |words: &[&str]| {
        let words = [&["broken.gguf"], words].concat();
        exported.import("gguf", "broken.gguf", &[], "out").fails(1, &words);
        fs::remove_file(&broken).unwrap();
        assert_eq!(exported.left(), ["model.gguf"]);
    };
    let fails = |from: &[u8], to: &[u8], words: &[&str]| {
        fs::write(&broken, &whole).unwrap();
        patch(&broken, from, to);
        refused(words);
    };
    for length in [0, 3, 20, 1000, whole.len() / 2, whole.len() - 40] {
        fs::write(&broken, &whole[..length]).unwrap();
        refused(&[]);
    }
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let architecture = |name| entry("general.architecture", 8, &string(name));
    fails(&architecture("llama"), &architecture("gemma"), &["general.architecture", "gemma"]);
    let model = |name| entry("tokenizer.ggml.model", 8, &string(name));
    fails(&model("llama"), &model("gpt-2"), &["tokenizer.ggml.model", "gpt-2"]);
    let number = |key, value: u32| entry(key, 4, &value.to_le_bytes());
    for (key, from, to, words) in [
        ("llama.block_count", 2, 3, &["blk.2.attn_norm.weight", "no such tensor"][..]),
        ("llama.block_count", 2, 1, &["blk.1.", "only the parameters"]),
        ("llama.feed_forward_length", 48, 64, &["blk.0.ffn_gate.weight", "[32, 48]", "[32, 64]"]),
        ("llama.attention.head_count_kv", 2, 3, &["n_kv_heads", "3"]),
        ("llama.attention.key_length", 8, 16, &["llama.attention.value_length", "8", "16"]),
        ("llama.attention.key_length", 8, 7, &["head_dim", "7", "even"]),
        ("llama.vocab_size", 400, 401, &["llama.vocab_size", "401", "400"]),
        ("tokenizer.ggml.eos_token_id", 2, 400, &["tokenizer.ggml.eos_token_id", "400"]),
    ] {
        fails(&number(key, from), &number(key, to), words);
    }
    fails(b"blk.1.ffn_up.weight", b"blk.9.ffn_up.weight", &["blk.1.ffn_up.weight", "no such"]);
    // A key that means experts, where another was.
    fails(b"general.size_label", b"llama.expert_count", &["llama.expert_count"]);
}

#[test]
fn meta_directories_that_do_not_fit() {
    let exported = Exported::new();
    exported.export("meta", &["--shards", "2"], "meta").ok();
    let fails = |change: &dyn Fn(&Path), words: &[&str]| {
        let dir = exported.path("broken");
        copy_dir(&exported.path("meta"), &dir);
        change(&dir);
        exported.import("meta", "broken", &[], "out").fails(1, words);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(exported.left(), ["meta"]);
    };
    let first = |dir: &Path| dir.join("consolidated.00.pth");
    // A pickle that would run a command when Python reads it.
    fails(
        &|dir| patch(&first(dir), b"collections\nOrderedDict", b"subprocess\ncheck_output"),
        &["consolidated.00.pth", "subprocess.check_output", "nothing was executed"],
    );
    fails(
        &|dir| patch(&first(dir), b"FloatStorage", b"DoublStorage"),
        &["consolidated.00.pth", "torch.DoublStorage"],
    );
    fails(
        &|dir| patch(&first(dir), b"layers.1.attention.wq", b"layers.7.attention.wq"),
        &["consolidated.00.pth", "layers.1.attention.wq.weight", "no such tensor"],
    );
    fails(
        &|dir| fs::rename(first(dir), dir.join("consolidated.02.pth")).unwrap(),
        &["consolidated.00.pth", "missing", "consolidated.01.pth"],
    );
    fails(
        &|dir| fs::remove_file(dir.join("consolidated.01.pth")).unwrap(),
        &["consolidated.00.pth", "tok_embeddings.weight", "[400, 16]"],
    );
    fails(
        &|dir| fs::copy(first(dir), dir.join("consolidated.02.pth")).map(drop).unwrap(),
        &["a multiple of 3"],
    );
    for share in [0, 1, 2] {
        fails(
            &|dir| {
                let bytes = fs::read(first(dir)).unwrap();
                fs::write(first(dir), &bytes[..bytes.len() * share / 3]).unwrap();
            },
            &["consolidated.00.pth", "not a ZIP archive"],
        );
    }
    // Norms are the same in every file.
    fails(
        &|dir| {
            let one = 1f32.to_le_bytes().repeat(8);
            let mut bytes = fs::read(first(dir)).unwrap();
            let at = bytes.windows(one.len()).position(|window| window == one);
            // After two steps norm gains are no longer ones, so any aligned change will do.
            let at = at.unwrap_or_else(|| norm_bytes(&bytes, &exported));
            bytes[at] ^= 1;
            fs::write(first(dir), bytes).unwrap();
        },
        &["consolidated.01.pth", "norm", "other values"],
    );
    let params = |key: &'static str, value: Value| {
        move |dir: &Path| {
            let path = dir.join("params.json");
            let mut params = json(&path);
            params[key] = value.clone();
            fs::write(path, params.to_string()).unwrap();
        }
    };
    fails(&params("use_scaled_rope", "yes".into()), &["params.json", "yes"]);
    fails(&params("rope_scaling_factor", "8".into()), &["params.json", "\"8\""]);
    fails(&params("dim", 64.into()), &["consolidated.00.pth", "tok_embeddings", "[400, 32]"]);
    fails(&params("n_heads", "four".into()), &["params.json"]);
    fails(&params("vocab_size", 300.into()), &["300"]);
    // The tokenizer may say the size of the vocabulary.
    let dir = exported.path("sized");
    copy_dir(&exported.path("meta"), &dir);
    params("vocab_size", (-1).into())(&dir);
    exported.import("meta", "sized", &[], "out").ok();
    assert_eq!(json(&exported.path("out/config.json"))["vocab_size"], 400);
}

/// Where the first norm gain of the checkpoint lies in the bytes of an archive.
fn norm_bytes(bytes: &[u8], exported: &Exported) -> usize {
    let norm = &tensors(&exported.checkpoint())["model.layers.0.input_layernorm.weight"];
    let norm: Vec<u8> = norm.iter().flat_map(|x| x.to_le_bytes()).collect();
    bytes.windows(norm.len()).position(|window| window == norm).unwrap()
}

/// A vocabulary larger than its tokenizer is filled up in GGUF, and the tokenizer comes back alone.
#[test]
fn a_vocabulary_larger_than_its_tokenizer() {
    let run_ = SmallRun::new();
    run_.train(&["steps=1", "validate.every=0", "model.vocab_size=416"]).ok();
    let exported = Exported { run: run_ };
    let checkpoint = exported.run.checkpoint("small", 1);
    let gguf = exported.path("model.gguf");
    let arguments = ["export", "--format", "gguf", "--type", "f32", "--output", text(&gguf)];
    run([&arguments[..], &["--checkpoint", text(&checkpoint)]].concat()).ok();
    let bytes = fs::read(&gguf).unwrap();
    assert!(bytes.windows(8).any(|window| window == b"[PAD415]"));
    exported.import("gguf", "model.gguf", &[], "back").ok();
    assert_eq!(json(&exported.path("back/config.json"))["vocab_size"], 416);
    assert!(tensors(&exported.path("back")) == tensors(&checkpoint));
    assert_eq!(greedy(&exported.path("back")), greedy(&checkpoint));
}

/// A full disk leaves nothing behind.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing() {
    let exported = Exported::new();
    let checkpoint = exported.checkpoint();
    for (format, output) in [("hf", "out"), ("meta", "out"), ("gguf", "out.gguf")] {
        let output = exported.path(output);
        let export = crate::harness::altiplano();
        // The limit on the size of a file stands for the end of the disk.
        let script = "trap '' XFSZ; ulimit -f 40; exec \"$0\" \"$@\"";
        let finished = std::process::Command::new("bash")
            .args(["-c", script])
            .arg(export.get_program())
            .args(["export", "--checkpoint", text(&checkpoint), "--format", format])
            .args(["--output", text(&output)])
            .output()
            .unwrap();
        Finished::from(finished).fails(1, &["out"]);
        assert_eq!(exported.left(), [""; 0], "{format}");
    }
}
