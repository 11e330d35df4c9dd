//! `altiplano export --format awq`: packed directories come back, lose less than q4_0, and are refused
//! where they are not what they say.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::harness::{Finished, SmallRun, copy_dir, corpus, run};

/// A short run whose widths are whole groups of 32.
struct Trained {
    run: SmallRun,
}

impl Trained {
    fn new(steps: u64) -> Self {
        let run = SmallRun::new();
        let steps_override = format!("steps={steps}");
        run.train(&[&steps_override, "model.hidden_dim=64", "validate.every=0"]).ok();
        fs::rename(run.checkpoint("small", steps), run.dir.path().join("model")).unwrap();
        Self { run }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.run.dir.path().join(name)
    }

    fn export(&self, format: &str, options: &[&str], output: &str) -> Finished {
        let (model, output) = (self.path("model"), self.path(output));
        let common = ["export", "--checkpoint", text(&model), "--output", text(&output)];
        run([&common[..], &["--format", format], options].concat())
    }

    fn awq(&self, output: &str) -> Finished {
        let calibration = ["--calibration", text(corpus()), "--calibration-sequences", "24"];
        self.export("awq", &[&calibration[..], &["--group-size", "32"]].concat(), output)
    }

    fn import(&self, format: &str, from: &str, output: &str) -> Finished {
        let (from, output) = (self.path(from), self.path(output));
        run(["import", "--from", format, text(&from), "--output", text(&output)])
    }

    /// Nats per token of held-out documents.
    fn loss(&self, model: &str) -> f64 {
        let model = self.path(model);
        let scored =
            run(["eval", "--checkpoint", text(&model), "--documents", text(corpus()), "--json"]);
        scored.ok().json()["loss"].as_f64().unwrap()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_packed_model_comes_back_and_loses_less_than_q4_0() {
    let trained = Trained::new(60);
    trained.awq("awq").ok();
    let config = json_of(&trained.path("awq/config.json"));
    assert_eq!(
        config["quantization_config"],
        json!({ "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true,
                "version": "gemm", "modules_to_not_convert": null })
    );
    assert_eq!(config["torch_dtype"], "float16");
    let bytes = fs::read(trained.path("awq/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape("model.layers.1.mlp.down_proj.qweight"), [64, 4]);
    assert_eq!(shape("model.layers.1.mlp.down_proj.qzeros"), [2, 4]);
    assert_eq!(shape("model.layers.1.self_attn.k_proj.scales"), [1, 16]);
    assert_eq!(tensors.len(), 3 + 2 * (2 + 3 * 7));

    trained.import("hf", "awq", "plain").ok();
    trained.export("gguf", &["--type", "q4_0_pure"], "model.gguf").ok();
    trained.import("gguf", "model.gguf", "q4_0").ok();
    let [whole, awq, q4_0] = ["model", "plain", "q4_0"].map(|model| trained.loss(model));
    assert!(awq - whole < 0.03 * whole, "{whole} became {awq}");
    assert!(awq < q4_0, "awq {awq}, q4_0 {q4_0}, f32 {whole}");

    // The same model and text give the same bytes.
    trained.awq("again").ok();
    assert!(fs::read(trained.path("again/model.safetensors")).unwrap() == bytes);
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let trained = Trained::new(2);
    let calibration = ["--calibration", text(corpus())];
    trained.export("awq", &calibration, "awq").fails(2, &["--format awq", "dim is 32", "128"]);
    trained.export("awq", &["--group-size", "32"], "awq").fails(2, &["--calibration"]);
    trained.export("hf", &["--group-size", "32"], "hf").fails(2, &["--group-size", "awq"]);
    let short = trained.path("short.txt");
    fs::write(&short, "Two words.").unwrap();
    let options = ["--group-size", "32", "--calibration", text(&short)];
    trained.export("awq", &options, "awq").fails(2, &["--calibration", "64", "more text"]);
    assert!(!trained.path("awq").exists());
}

#[test]
fn packed_directories_that_do_not_fit_are_refused() {
    let trained = Trained::new(2);
    trained.awq("awq").ok();
    // The model computes with plain weights.
    let packed = trained.path("awq");
    run(["generate", "--checkpoint", text(&packed), "--prompt", "a"])
        .fails(1, &["config.json", "AWQ", "import --from hf"]);
    let fails = |change: &dyn Fn(&Path), words: &[&str]| {
        let broken = trained.path("broken");
        copy_dir(&packed, &broken);
        change(&broken);
        trained.import("hf", "broken", "out").fails(1, words);
        fs::remove_dir_all(&broken).unwrap();
        assert!(!trained.path("out").exists());
    };
    for (key, value, word) in [
        ("bits", json!(3), "expected 4"),
        ("quant_method", json!("gptq"), "gptq"),
        ("version", json!("gemv"), "gemv"),
        ("zero_point", json!(false), "zero_point"),
        ("group_size", json!(0), "group_size"),
        ("group_size", json!(-1), "group_size"),
        ("group_size", json!(24), "24"),
        ("group_size", json!(16), "qzeros"),
    ] {
        let change = |dir: &Path| {
            let mut config = json_of(&dir.join("config.json"));
            config["quantization_config"][key] = value.clone();
            fs::write(dir.join("config.json"), config.to_string()).unwrap();
        };
        fails(&change, &[word]);
    }
    let rename = |from: &'static str, to: &'static str| {
        move |dir: &Path| {
            let path = dir.join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            fs::write(path, bytes).unwrap();
        }
    };
    fails(&rename("0.mlp.up_proj.scales", "0.mlp.up_proj.skales"), &["up_proj.scales", "no such"]);
    fails(&rename("\"dtype\":\"I32\"", "\"dtype\":\"F32\""), &["q_proj.qweight", "F32", "I32"]);
    let cut = |dir: &Path| {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 9]).unwrap();
    };
    fails(&cut, &["model.safetensors"]);
}
