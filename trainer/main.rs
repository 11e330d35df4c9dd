//! The altiplano binary: parses the command line, prints errors, chooses the exit status.

use std::process::ExitCode;

use altiplano_trainer::commands::{Cli, init_log};
use altiplano_trainer::error::TrainerError;
use clap::Parser;

fn main() -> ExitCode {
    report_panics_as_bugs();
    init_log();
    let cli = Cli::parse();
    match std::panic::catch_unwind(|| cli.run()) {
        Ok(Ok(outcome)) => ExitCode::from(outcome.exit_status()),
        // The reader of our output has seen enough.
        Ok(Err(error)) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            let status = if error.is_usage() { 2 } else { 1 };
            print_error(error);
            ExitCode::from(status)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints an error with everything that led to it; a cause that the line above quotes is left out.
fn print_error(error: TrainerError) {
    let error = anyhow::Error::from(error);
    let mut said = error.to_string();
    eprintln!("error: {said}");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            eprintln!("  because: {cause}");
            said = cause;
        }
    }
}

/// One line instead of a backtrace, unless one is asked for.
fn report_panics_as_bugs() {
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("error: internal error: {panic}; this is a bug of altiplano, please report it");
    }));
}
