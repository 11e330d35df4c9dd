//! All integration tests in one binary: the tensor libraries link once.

#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "tests say what they skip")]

mod bad_input;
mod commands;
#[cfg(feature = "cuda")]
mod cuda;
mod data;
mod devices;
mod harness;
mod numeric;
mod readme;
mod resume;
mod run_changes;
#[cfg(unix)]
mod signals;
mod training;
