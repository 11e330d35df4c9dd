//! `device: cuda` on a machine without a GPU: an error that says what is missing, no panic; and, on
//! stand-ins for the libraries, the order of the work a GPU would get.

use std::fs;
use std::process::Command;

use altiplano_model::backend::cube::nvidia::probe;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Finished, SmallRun, altiplano, repository};

#[test]
fn without_a_driver_training_says_what_to_install() {
    let found = probe();
    let Some(first) = found.fatal().next() else {
        eprintln!("skipped: CUDA without a driver (this machine has all it needs)");
        return;
    };
    let run = SmallRun::new();
    run.train(&["device=cuda"]).fails(2, &["cuda", &first.to_string()]);
    run.train(&["device=cuda:x"]).fails(2, &["cuda:N"]);
    assert!(!run.run_dir("small").exists(), "nothing is written");
}

/// A driver, NVRTC and cuBLASLt that compute nothing and watch the order of the work they are given:
/// see `tests/stand_ins`.
struct StandIns {
    dir: TempDir,
}

impl StandIns {
    /// None without a C compiler.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_string());
        for (source, library, needed) in [
            ("cuda", "cuda", None),
            ("cublaslt", "cublasLt", Some("-lcuda")),
            ("nvrtc", "nvrtc", None),
        ] {
            let status = Command::new(&compiler)
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .arg(dir.path().join(format!("lib{library}.so")))
                .arg(repository(&format!("tests/stand_ins/{source}.c")))
                .arg(format!("-L{}", dir.path().display()))
                .args(needed)
                .arg("-lpthread")
                .status();
            let Ok(status) = status else {
                eprintln!("skipped: CUDA on stand-ins for its libraries (no C compiler)");
                return None;
            };
            assert!(status.success(), "{source}.c does not compile");
        }
        fs::create_dir(dir.path().join("include")).unwrap();
        fs::write(dir.path().join("include/cuda_bf16.h"), "").unwrap();
        Some(Self { dir })
    }

    /// Runs `command` on them; what the driver counted.
    fn watch(&self, mut command: Command) -> Value {
        let report = self.dir.path().join("report.json");
        let _ = fs::remove_file(&report);
        command
            .env("LD_LIBRARY_PATH", self.dir.path())
            .env("CUDA_PATH", self.dir.path())
            .env("STAND_IN_REPORT", &report);
        let finished: Finished = command.output().unwrap().into();
        let finished = finished.ok();
        assert!(!finished.stderr.contains("failed"), "{}", finished.stderr);
        serde_json::from_str(&fs::read_to_string(report).unwrap()).unwrap()
    }
}

/// Some steps of a small model, the first of them to warm up.
fn bench_steps(steps: u64, overrides: &[&str]) -> Command {
    let mut command = altiplano();
    command
        .args(["bench", "train"])
        .arg(repository("configs/train/debug.yaml"))
        .args(["device=cuda", "model.dim=256", "batch.grad_accum_steps=3"])
        .args(overrides)
        .args(["--steps", &(steps - 1).to_string(), "--warmup", "1"]);
    command
}

/// Six steps of a small model.
fn bench(overrides: &[&str]) -> Command {
    bench_steps(6, overrides)
}

/// Whatever is computed on the two streams, each piece is ordered after all before it; and the
/// streams wait for each other a few times a pass, not at every op.
#[test]
fn every_piece_of_work_comes_after_those_before_it() {
    let Some(stand_ins) = StandIns::new() else { return };
    let number = |counted: &Value, key: &str| counted[key].as_u64().unwrap();
    for policy in ["none", "selective", "full"] {
        for precision in ["bf16", "f32"] {
            let overrides = [
                format!("precision={precision}"),
                format!("activation_checkpointing={policy}"),
                format!("document_mask={}", policy == "full"),
            ];
            let overrides = overrides.each_ref().map(String::as_str);
            let counted = stand_ins.watch(bench(&overrides));
            assert_eq!(number(&counted, "unordered"), 0, "{policy} {precision}: {counted}");
            assert!(number(&counted, "launches") > 400, "{counted}");
            if precision == "bf16" {
                // 3 passes and an optimizer step more, whatever the start of a run takes.
                let longer = stand_ins.watch(bench_steps(7, &overrides));
                let waits = number(&longer, "waits") - number(&counted, "waits");
                assert!(waits < 3 * 6 + 10, "{policy}: {counted}, then {longer}");
            }
        }
    }
    // The watch sees what it is there to see.
    let mut forgetful = bench(&["precision=bf16"]);
    forgetful.env("STAND_IN_FORGETS", "1");
    assert!(number(&stand_ins.watch(forgetful), "unordered") > 0);
}

/// Products large enough to be tried with several algorithms, a run with validation and checkpoints,
/// generation from them.
#[test]
fn runs_and_generation_are_ordered() {
    let Some(stand_ins) = StandIns::new() else { return };
    // More tokens than the head takes at once, and no multiple of that.
    let large = ["model.vocab_size=32000", "batch.seq_len=512", "model.max_seq_len=512"];
    let run = SmallRun::new();
    let mut generate = altiplano();
    generate
        .args(["generate", "--device", "cuda", "--prompt", "The whale", "--max-tokens", "5"])
        .arg("--checkpoint")
        .arg(run.checkpoint("small", 20));
    let watch = |command: Command| {
        let what = format!("{command:?}");
        let counted = stand_ins.watch(command);
        assert_eq!(counted["unordered"], 0, "{what}: {counted}");
        assert!(counted["launches"].as_u64() > Some(100), "{what}: {counted}");
    };
    watch(bench(&[&large[..], &["precision=bf16", "batch.micro_batch=5"]].concat()));
    watch(run.train_command(&["device=cuda", "steps=20"]));
    watch(generate);
    fs::remove_dir_all(run.checkpoint("small", 20)).unwrap();
    watch(run.resume_command("small", &[]));
    assert!(run.checkpoint("small", 20).is_dir());
}
