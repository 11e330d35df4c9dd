//! CUDA C++ on an emulated block of the CPU, for tests: see `emulated.h`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use half::bf16;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// `source`, the path of a C++ file in the folder of the GPU backend, compiled for the CPU into `dir`
/// with the macros `defines`; none without a C++ compiler.
#[expect(clippy::print_stderr, reason = "tests say what they skip")]
pub(in super::super) fn compile(
    source: &str,
    defines: &[(&str, usize)],
    dir: &Path,
) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cube");
    let numbers = defines.iter().map(|(_, value)| format!("_{value}")).collect::<String>();
    let program = dir.join(format!("{}{numbers}", source.replace('/', "_")));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_string());
    let status = Command::new(compiler)
        .args(["-O1", "-std=c++17"])
        .args(defines.iter().map(|(name, value)| format!("-D{name}={value}")))
        .arg("-I")
        .arg(folder.join("nvidia"))
        .arg(folder.join(source))
        .arg("-o")
        .arg(&program)
        .status();
    let Ok(status) = status else {
        eprintln!("skipped: {source} on an emulated block (no C++ compiler)");
        return None;
    };
    assert!(status.success(), "{source} does not compile");
    Some(program)
}

/// What `program` writes for `input`.
pub(in super::super) fn run(program: &Path, input: Vec<u8>) -> Output {
    let mut child =
        Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    Output { bytes: output.stdout, read: 0 }
}

/// Bytes of tensors, one after the other.
pub(in super::super) struct Output {
    bytes: Vec<u8>,
    read: usize,
}

impl Output {
    /// The next `count` elements.
    pub(in super::super) fn take<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(
        &mut self,
        count: usize,
    ) -> Vec<T> {
        let bytes = &self.bytes[self.read..][..count * size_of::<T>()];
        self.read += bytes.len();
        bytemuck::pod_collect_to_vec(bytes)
    }
}

/// Numbers for tests, the same every time.
pub(in super::super) struct Numbers(ChaCha8Rng);

impl Numbers {
    pub(in super::super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// `count` numbers from −scale to scale.
    pub(in super::super) fn f32s(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| scale * self.0.random_range(-1.0..1.0f32)).collect()
    }

    /// The same, rounded.
    pub(in super::super) fn bf16s(&mut self, count: usize, scale: f32) -> Vec<bf16> {
        self.f32s(count, scale).into_iter().map(bf16::from_f32).collect()
    }
}

/// ‖x − y‖ / ‖y‖.
pub(in super::super) fn relative_error(x: &[f32], y: &[f32]) -> f64 {
    assert_eq!(x.len(), y.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut x.iter().zip(y).map(|(x, y)| f64::from(*x) - f64::from(*y)));
    difference / norm(&mut y.iter().map(|y| f64::from(*y)))
}
