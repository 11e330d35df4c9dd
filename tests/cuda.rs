//! `device: cuda` on a machine that lacks something: an error that says what, no panic.

use altiplano_model::backend::cube::cuda::probe;

use crate::harness::SmallRun;

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
