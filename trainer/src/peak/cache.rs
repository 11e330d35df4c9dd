//! Measured peaks that outlive the process: `altiplano/peak_flops.json` in the user's cache folder
//! (`XDG_CACHE_HOME`, or `.cache` in the home folder), a JSON object with an entry for each thing that
//! was measured. Nothing depends on it but `mfu`: a file that is missing, damaged or not writable only
//! means that products are timed again.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use altiplano_data::atomic_file::{remove_abandoned, write_atomically};
use altiplano_model::{Precision, device};
use serde::{Deserialize, Serialize};

/// Rates outside this range, in operations per second, are no measurements.
const PLAUSIBLE: std::ops::Range<f64> = 1e6..1e18;

/// What is kept of one processor in one precision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// The best rate, in operations per second.
    pub flops_per_second: f64,
    /// How often it was measured.
    pub measurements: u32,
}

type Peaks = BTreeMap<String, Measured>;

/// What a rate belongs to: processor, its instructions and threads, device, precision, and the
/// version and build of the kernels.
pub(super) fn key(device: &str, precision: Precision) -> String {
    let precision = match precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let (processor, features) = (processor(), device::cpu().detail);
    let build = if cfg!(debug_assertions) { " debug" } else { "" };
    let version = env!("CARGO_PKG_VERSION");
    format!("{processor}, {features}, {device}, {precision}, {version}{build}")
}

/// The model of the processor where the system tells, else its architecture.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let names = text.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = names.map(|(_, name)| name.trim().to_string()).next();
    name.unwrap_or_else(|| std::env::consts::ARCH.to_string())
}

/// The file; none for a user without a home, and none in unit tests.
pub(super) fn file() -> Option<PathBuf> {
    if cfg!(test) {
        return None;
    }
    file_for(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
}

fn file_for(cache: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let folder = cache.and_then(absolute).or_else(|| Some(home.and_then(absolute)?.join(".cache")));
    Some(folder?.join("altiplano").join("peak_flops.json"))
}

/// What is kept under `key`.
pub(super) fn read(file: &Path, key: &str) -> Option<Measured> {
    peaks(file).remove(key)
}

/// Adds a measurement under `key`.
pub(super) fn add(file: &Path, key: &str, rate: f64) {
    if !PLAUSIBLE.contains(&rate) {
        return;
    }
    let mut peaks = peaks(file);
    let measured = peaks.entry(key.to_string()).or_default();
    measured.flops_per_second = measured.flops_per_second.max(rate);
    measured.measurements = measured.measurements.saturating_add(1);
    let written =
        serde_json::to_vec_pretty(&peaks).map_err(|error| error.to_string()).and_then(|json| {
            // What a crash left of an earlier one goes first.
            let clean = file.parent().map_or(Ok(()), remove_abandoned);
            clean.and_then(|()| write_atomically(file, &json)).map_err(|error| error.to_string())
        });
    if let Err(reason) = written {
        tracing::debug!(reason, "the measured peak is not kept");
    }
}

fn peaks(file: &Path) -> Peaks {
    let bytes = std::fs::read(file).unwrap_or_default();
    let mut peaks: Peaks = serde_json::from_slice(&bytes).unwrap_or_default();
    peaks.retain(|_, measured| PLAUSIBLE.contains(&measured.flops_per_second));
    peaks
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_best_rate_is_kept_for_each_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("not yet/peak_flops.json");
        assert_eq!(read(&file, "a"), None);
        for (key, rate) in [("a", 2e9), ("b", 5e9), ("a", 3e9), ("a", 1e9), ("b", f64::NAN)] {
            add(&file, key, rate);
        }
        let kept = |flops_per_second, measurements| Measured { flops_per_second, measurements };
        assert_eq!(read(&file, "a"), Some(kept(3e9, 3)));
        assert_eq!(read(&file, "b"), Some(kept(5e9, 1)));
        let left = std::fs::read_dir(file.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing but the file");
    }

    #[test]
    fn a_damaged_file_is_measured_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peak_flops.json");
        let of_rate =
            |rate: &str| format!(r#"{{"a": {{"flops_per_second": {rate}, "measurements": 9}}}}"#);
        let texts = ["", "{", "[1]", r#"{"a": 2e9}"#].map(ToString::to_string);
        let rates = ["-1", "1e300", "null", "\"fast\""].map(of_rate);
        for text in texts.iter().chain(&rates) {
            std::fs::write(&file, text).unwrap();
            assert_eq!(read(&file, "a"), None, "{text}");
        }
        add(&file, "a", 2e9);
        assert_eq!(read(&file, "a").unwrap().measurements, 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "not a folder").unwrap();
        add(&file.join("peak_flops.json"), "a", 2e9);
        assert_eq!(read(&file.join("peak_flops.json"), "a"), None);
    }

    #[test]
    fn the_cache_folder_is_the_users() {
        let of = |cache: Option<&str>, home: Option<&str>| {
            file_for(cache.map(Into::into), home.map(Into::into))
                .map(|path| path.display().to_string())
        };
        let file = "altiplano/peak_flops.json";
        assert_eq!(of(Some("/c"), Some("/h")), Some(format!("/c/{file}")));
        assert_eq!(of(Some(""), Some("/h")), Some(format!("/h/.cache/{file}")));
        assert_eq!(of(None, Some("/h")), Some(format!("/h/.cache/{file}")));
        assert_eq!(of(None, None), None);
        assert_eq!(of(Some("relative"), Some("")), None);
    }

    #[test]
    fn a_key_says_what_was_measured() {
        let [f32_key, bf16_key] = [Precision::F32, Precision::Bf16].map(|p| key("cpu", p));
        assert!(f32_key.contains("thread") && f32_key.contains(", cpu, f32"), "{f32_key}");
        assert_ne!(f32_key, bf16_key);
    }
}
