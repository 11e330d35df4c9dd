//! Every kind of LLaMA that transformers writes: grouped-query attention, tied embeddings, heads of any
//! width, scaled rotary embeddings. Values made by `scripts/golden/make_llama_kinds.py`.

use std::fs;
use std::path::{Path, PathBuf};

use altiplano_model::llama::{Llama, TokenBatch};
use altiplano_model::{ActivationCheckpointing, weights};
use altiplano_trainer::checkpoint::hugging_face;
use burn::tensor::Device;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Finished, SmallRun, copy_dir, repository, run};

const KINDS: [&str; 4] = ["llama2", "llama3", "smollm", "wide_heads"];

/// A kind as a whole directory, with the tokenizer of its vocabulary, and room for what is made of it.
struct Kind {
    room: TempDir,
}

impl Kind {
    fn new(name: &str) -> Self {
        let room = tempfile::tempdir().unwrap();
        let dir = room.path().join("source");
        copy_dir(&golden(name), &dir);
        let tokenizer = repository("tests/golden/tokenizer");
        for file in ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(tokenizer.join(file), dir.join(file)).unwrap();
        }
        Self { room }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.room.path().join(name)
    }

    fn export(&self, format: &str, options: &[&str], output: &str) -> Finished {
        let (source, output) = (self.path("source"), self.path(output));
        let common = ["export", "--checkpoint", text(&source), "--output", text(&output)];
        run([&common[..], &["--format", format], options].concat())
    }

    fn import(&self, format: &str, from: &str, options: &[&str], output: &str) -> Finished {
        let (from, output) = (self.path(from), self.path(output));
        let common = ["import", "--from", format, text(&from), "--output", text(&output)];
        run([&common[..], options].concat())
    }

    /// Changes keys of the directory's config.json.
    fn configure(&self, changes: Value) {
        let path = self.path("source/config.json");
        let mut config = json_of(&path);
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(path, config.to_string()).unwrap();
    }
}

fn golden(name: &str) -> PathBuf {
    repository("tests/golden/llama_kinds").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The logits of transformers for a kind, and those of the model in `dir`, at the same positions.
fn logits(name: &str, dir: &Path) -> (Vec<f32>, Vec<f32>) {
    let bytes = fs::read(golden(name).join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let integers = |name: &str| -> Vec<i32> {
        let data = expected.tensor(name).unwrap().data();
        data.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let theirs = expected.tensor("logits").unwrap().data();
    let theirs =
        theirs.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();

    let (config, _) = hugging_face::read(dir).unwrap();
    let loaded = weights::load(dir, "", &config, &Device::flex()).unwrap();
    let vocab_size = config.vocab_size;
    let model = Llama::new(config, loaded, ActivationCheckpointing::Full).unwrap();
    let ids = integers("ids");
    let batch =
        TokenBatch::new(&ids, &vec![0; ids.len()], None, ids.len(), vocab_size, &Device::flex());
    let all: Vec<f32> = model.logits(&batch.unwrap()).unwrap().to_data().iter().collect();
    let rows = integers("positions").into_iter().map(|at| at as usize * vocab_size);
    (theirs, rows.flat_map(|at| all[at..at + vocab_size].to_vec()).collect())
}

#[track_caller]
fn assert_logits(name: &str, dir: &Path) {
    let (theirs, ours) = logits(name, dir);
    assert_eq!(theirs.len(), ours.len());
    let difference = theirs.iter().zip(&ours).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
    let largest = theirs.iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(difference < 1e-4 && largest > 1.0, "{name}: {difference} of {largest}");
}

fn greedy(dir: &Path) -> Value {
    let arguments = ["generate", "--checkpoint", text(dir), "--prompt", "The whale", "--json"];
    let options = ["--temperature", "0", "--max-tokens", "12", "--precision", "f32"];
    run([&arguments[..], &options].concat()).ok().json()
}

#[test]
fn logits_are_those_of_transformers() {
    for name in KINDS {
        assert_logits(name, &golden(name));
    }
}

/// What goes through each format has the same logits and continues a text in the same way; f32 holds
/// what bf16 held.
#[test]
fn every_kind_goes_through_every_format_that_can_hold_it() {
    for name in KINDS {
        let kind = Kind::new(name);
        let expected = greedy(&kind.path("source"));
        kind.import("hf", "source", &[], "imported").ok();
        assert_logits(name, &kind.path("imported"));
        assert_eq!(greedy(&kind.path("imported")), expected, "{name}");
        let source = hugging_face::read(&kind.path("source")).unwrap();
        assert_eq!(hugging_face::read(&kind.path("imported")).unwrap(), source);

        kind.export("gguf", &["--type", "f32"], "model.gguf").ok();
        kind.import("gguf", "model.gguf", &[], "from-gguf").ok();
        assert_logits(name, &kind.path("from-gguf"));
        assert_eq!(greedy(&kind.path("from-gguf")), expected, "{name}");
        // Tied stays tied and the scaling comes back.
        let from_gguf = hugging_face::read(&kind.path("from-gguf")).unwrap().0;
        assert_eq!(from_gguf.tie_word_embeddings, source.0.tie_word_embeddings);
        assert_eq!(from_gguf.rope_scaling, source.0.rope_scaling);
        assert_eq!(from_gguf.head_dim, source.0.head_dim);

        let meta = kind.export("meta", &[], "meta");
        match name {
            "llama2" | "smollm" => {
                meta.ok();
                kind.import("meta", "meta", &["--context", "64"], "from-meta").ok();
                assert_logits(name, &kind.path("from-meta"));
            }
            _ => {
                meta.fails(2, &["--format meta", "head_dim", "hf and gguf"]);
            }
        }
        assert!(!kind.path("meta").exists() || ["llama2", "smollm"].contains(&name));
    }
}

/// LLaMA 3.1's scaling has a word in Meta's files; other constants and the linear rule have none.
#[test]
fn scaling_goes_to_meta_where_the_reference_code_has_it() {
    let kind = Kind::new("llama2");
    let scaling = |context: usize| {
        json!({ "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": context })
    };
    kind.configure(json!({ "rope_parameters": scaling(8192) }));
    kind.export("meta", &[], "meta").ok();
    let params = json_of(&kind.path("meta/params.json"));
    assert_eq!(params["use_scaled_rope"], true);
    assert_eq!(params["rope_scaling_factor"], 32.0);
    kind.import("meta", "meta", &["--context", "64"], "back").ok();
    let source = hugging_face::read(&kind.path("source")).unwrap().0;
    let back = hugging_face::read(&kind.path("back")).unwrap().0;
    assert_eq!((back.rope_scaling, back.rope_theta), (source.rope_scaling, source.rope_theta));

    kind.configure(json!({ "rope_parameters": scaling(4096) }));
    kind.export("meta", &[], "other").fails(2, &["llama3", "8192", "hf and gguf"]);
    let linear = json!({ "rope_type": "linear", "rope_theta": 1e4, "factor": 2.0 });
    kind.configure(json!({ "rope_parameters": linear }));
    kind.export("meta", &[], "other").fails(2, &["linear", "hf and gguf"]);

    // A key that is not known may change what the weights mean.
    let path = kind.path("meta/params.json");
    let mut params = json_of(&path);
    params["moe"] = json!({ "num_experts": 8 });
    fs::write(&path, params.to_string()).unwrap();
    kind.import("meta", "meta", &[], "experts").fails(1, &["params.json", "moe"]);
}

/// A tied model is one matrix: a copy of it under the head's name is passed over, another matrix is
/// refused.
#[test]
fn a_head_beside_tied_embeddings_has_to_be_the_same() {
    let kind = Kind::new("smollm");
    let path = kind.path("source/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut all = tensors.tensors();
    let embedding = tensors.tensor("model.embed_tokens.weight").unwrap();
    all.push(("lm_head.weight".into(), embedding.clone()));
    let format = Some([("format".to_string(), "pt".to_string())].into());
    fs::write(&path, safetensors::serialize(all.clone(), format.clone()).unwrap()).unwrap();
    kind.import("hf", "source", &[], "imported").ok();
    let written = fs::read(kind.path("imported/model.safetensors")).unwrap();
    assert!(SafeTensors::deserialize(&written).unwrap().tensor("lm_head.weight").is_err());
    assert_logits("smollm", &kind.path("source"));

    let mut other = embedding.data().to_vec();
    other[0] ^= 1;
    let (dtype, shape) = (embedding.dtype(), embedding.shape().to_vec());
    let view = safetensors::tensor::TensorView::new(dtype, shape, &other).unwrap();
    all.pop();
    all.push(("lm_head.weight".into(), view));
    fs::write(&path, safetensors::serialize(all, format).unwrap()).unwrap();
    let words = ["model.safetensors", "lm_head.weight", "tie_word_embeddings"];
    kind.import("hf", "source", &[], "refused").fails(1, &words);
    let source = kind.path("source");
    let arguments = ["generate", "--checkpoint", text(&source), "--prompt", "a"];
    run(arguments).fails(1, &words);
}

/// Training with tied embeddings, wide heads and scaled frequencies: the checkpoint has the matrix
/// once, a resumed run is the run, and everything that reads a checkpoint reads this one.
#[test]
fn other_kinds_are_trained() {
    let small = SmallRun::new();
    let shape = [
        "precision=f32",
        "model.head_dim=12",
        "model.tie_word_embeddings=true",
        "model.rope_scaling={rope_type: linear, factor: 2.0}",
        "steps=4",
        "checkpoint.every=2",
        "validate.every=0",
    ];
    small.train(&shape).ok();
    let checkpoint = small.checkpoint("small", 4);
    let config = json_of(&checkpoint.join("config.json"));
    assert_eq!((&config["tie_word_embeddings"], &config["head_dim"]), (&json!(true), &json!(12)));
    assert_eq!(config["rope_parameters"]["rope_type"], "linear");
    let bytes = fs::read(checkpoint.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert!(tensors.tensor("lm_head.weight").is_err());
    assert_eq!(tensors.tensor("model.layers.0.self_attn.o_proj.weight").unwrap().shape(), [32, 48]);

    // The same from its middle on.
    let whole = (small.numbers("small"), small.tensors("small", 4));
    fs::remove_dir_all(&checkpoint).unwrap();
    small.resume("small", &[]).ok();
    assert!(small.tensors("small", 4) == whole.1);
    assert_eq!(small.numbers("small"), whole.0);

    // As the start of another run; an untied one is another model.
    let from = format!("init_from={}", checkpoint.display());
    let second = [&["name=second", from.as_str()], &shape[..]].concat();
    small.train(&second).ok();
    let untied = [&["name=third", from.as_str()], &shape[..2]].concat();
    small.train(&untied).fails(2, &["init_from", "model.tie_word_embeddings=true"]);
    greedy(&checkpoint);
}

/// Scaling in a GGUF file that is of another kind, or whose factors follow from nothing.
#[test]
fn other_scaling_in_gguf_is_refused() {
    let kind = Kind::new("wide_heads");
    kind.export("gguf", &["--type", "f32"], "linear.gguf").ok();
    let mut bytes = fs::read(kind.path("linear.gguf")).unwrap();
    let at = bytes.windows(6).position(|window| window == b"linear").unwrap();
    bytes[at..at + 6].copy_from_slice(b"dynami");
    fs::write(kind.path("linear.gguf"), bytes).unwrap();
    kind.import("gguf", "linear.gguf", &[], "out")
        .fails(1, &["linear.gguf", "llama.rope.scaling.type", "dynami"]);

    let kind = Kind::new("llama3");
    kind.export("gguf", &["--type", "f32"], "factors.gguf").ok();
    let whole = fs::read(kind.path("factors.gguf")).unwrap();
    // The tensor of factors is the last: 8 numbers, a multiple of the alignment.
    let at = whole.len() - 8 * size_of::<f32>();
    assert_eq!(whole[at..at + 4], 1f32.to_le_bytes());
    for number in [7f32, f32::NAN, 0.0, -1.0] {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        fs::write(kind.path("factors.gguf"), bytes).unwrap();
        kind.import("gguf", "factors.gguf", &[], "out")
            .fails(1, &["factors.gguf", "rope_freqs.weight", "llama3"]);
    }
    assert!(!kind.path("out").exists());
}

/// What the model does not compute is refused by the name of the key.
#[test]
fn other_architectures_are_refused_by_name() {
    let yarn = json!({ "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0 });
    for (changes, words) in [
        (json!({ "attention_bias": true }), "attention_bias"),
        (json!({ "mlp_bias": true }), "mlp_bias"),
        (json!({ "rope_parameters": yarn }), "rope_parameters.rope_type: found yarn"),
        (json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } }), "rope_scaling.rope_type"),
        (json!({ "model_type": "mixtral" }), "model_type"),
    ] {
        let kind = Kind::new("llama2");
        kind.configure(changes);
        kind.import("hf", "source", &[], "imported").fails(1, &["config.json", words]);
        assert!(!kind.path("imported").exists());
    }
}
