//! The report of a training, beside the model: `lid.json` beside `lid.bin`. Its `blake3` is the
//! hash of the model as it was written, which whoever opens the model holds it against.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checksum::FileDigest;
use crate::error::{DataError, Result};
use crate::json_file::{read_json, write_json};

/// What to do about a model that is not as it was written.
const TRAIN_AGAIN: &str = "train it again, or delete the .json beside the model if the model is \
                           another one that you put there";

/// Where the report of `model` lies.
pub(crate) fn report_path(model: &Path) -> PathBuf {
    model.with_extension("json")
}

/// Writes `report`, which has the hash of the model as its `blake3`.
///
/// # Errors
/// [`DataError::Io`].
pub(crate) fn write_report(model: &Path, report: &impl Serialize) -> Result<()> {
    write_json(&report_path(model), report).map(drop)
}

/// Holds `model` against the report beside it. There is none beside a model of other tools.
pub(super) fn check_report(model: &Path) -> Result<()> {
    let path = report_path(model);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes.map_err(DataError::io(&path))?,
    };
    // Other tools may have put a file of that name there.
    let ours = ["\"blake3\"", "\"checksum\""].iter().any(|key| {
        let key = key.as_bytes();
        bytes.windows(key.len()).any(|window| window == key)
    });
    if !ours {
        return Ok(());
    }
    let report: serde_json::Value = read_json(&path, TRAIN_AGAIN)?;
    let blake3 = report.get("blake3").and_then(|hash| hash.as_str()).unwrap_or_default();
    // The report does not tell the length.
    let bytes = std::fs::metadata(model).map_err(DataError::io(model))?.len();
    FileDigest { bytes, blake3: blake3.to_owned() }.verify(model, TRAIN_AGAIN)
}
