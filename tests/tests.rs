//! All integration tests in one binary: the tensor libraries link once.

#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "tests say what they skip")]

mod altered_files;
mod bad_input;
mod batches;
mod commands;
#[cfg(feature = "cuda")]
mod cuda;
mod data;
mod devices;
mod every_command;
mod examples;
mod export_import;
mod harness;
mod inference;
mod interop;
mod limits;
mod module_order;
mod numeric;
mod readme;
mod reports;
mod resume;
mod run_changes;
mod sft;
#[cfg(unix)]
mod signals;
mod terminal;
mod training;
