//! All integration tests in one binary: the tensor libraries link once.

#![allow(clippy::unwrap_used)]
#![allow(clippy::print_stderr, reason = "tests say what they skip")]

mod altered_files;
mod api_stand_in;
mod awq;
mod bad_input;
mod batches;
mod comm_check;
mod commands;
#[cfg(feature = "cuda")]
mod cuda;
mod data;
mod devices;
#[cfg(target_os = "linux")]
mod eval_tasks;
mod every_command;
mod examples;
mod export_import;
mod harness;
mod inference;
mod interop;
mod judge;
mod limits;
mod llama_kinds;
mod module_order;
mod numeric;
#[cfg(unix)]
mod parallel;
mod readme;
mod reports;
mod resume;
mod run_changes;
mod self_instruct;
#[cfg(unix)]
mod serve;
mod sft;
#[cfg(unix)]
mod signals;
mod storage_server;
mod terminal;
mod tokenizer_json;
mod training;
