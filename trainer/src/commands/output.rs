//! Standard output of the commands.

use std::io::Write;

use serde::Serialize;

use crate::error::{Result, TrainerError};

/// Writes bytes to standard output and flushes it.
pub(super) fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(TrainerError::Output)
}

/// Writes one line to standard output.
pub(super) fn print_line(line: &str) -> Result<()> {
    print(format!("{line}\n").as_bytes())
}

/// Writes one JSON object as a line to standard output.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string(value)
        .map_err(|error| TrainerError::Output(std::io::Error::other(error)))?;
    print_line(&json)
}
