//! The altiplano binary: parses the command line, prints errors, chooses the exit status.

use std::io::Write;
use std::process::ExitCode;

use altiplano_data::decoder_panic;
use altiplano_data::terminal::write_last_line;
use altiplano_trainer::commands::{Cli, init_log};
use altiplano_trainer::error::TrainerError;
use altiplano_trainer::{fatal_signals, launch};
use clap::Parser;

fn main() -> ExitCode {
    report_panics_as_bugs();
    fatal_signals::install();
    init_log();
    let ended = std::panic::catch_unwind(|| match Cli::try_parse() {
        Ok(cli) => cli.run().map(|outcome| ExitCode::from(outcome.exit_status())),
        Err(answer) => print_answer(&answer),
    });
    match ended {
        Ok(Ok(status)) => status,
        // The reader of our output has seen enough.
        Ok(Err(error)) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            let status = if error.is_usage() { 2 } else { 1 };
            let said = !error.is_said_elsewhere();
            if said {
                print_error(error);
            }
            launch::end_launch(status.into(), said);
            ExitCode::from(status)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Prints what clap answers in place of a command: the help that was asked for to standard output,
/// what is wrong with the arguments to standard error.
fn print_answer(answer: &clap::Error) -> Result<ExitCode, TrainerError> {
    let printed = answer.print().and_then(|()| std::io::stdout().flush());
    if !answer.use_stderr() {
        printed.map_err(TrainerError::Output)?;
    }
    Ok(ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(2)))
}

/// Prints an error with everything that led to it; a cause that the line above quotes is left out.
fn print_error(error: TrainerError) {
    let error = anyhow::Error::from(error);
    let mut said = error.to_string();
    write_last_line(&format!("error: {said}"));
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            write_last_line(&format!("  because: {cause}"));
            said = cause;
        }
    }
}

/// One line instead of a backtrace, unless one is asked for; nothing for what becomes an error.
fn report_panics_as_bugs() {
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        if decoder_panic::is_caught() {
            return;
        }
        let said = panic.to_string();
        // Libraries start threads of their own and know no other way to say that it failed.
        let refused = ["failed to spawn thread", "ThreadPoolBuildError"];
        write_last_line(&if refused.iter().any(|words| said.contains(words)) {
            "error: the system refuses to start another thread; raise the limit on processes and \
             threads (`ulimit -u`, or `pids.max` of the control group), or end other programs"
                .to_owned()
        } else {
            format!("error: internal error: {said}; this is a bug of altiplano, please report it")
        });
    }));
}
