//! `altiplano data apply`: one step over JSON lines.

use std::io::{BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};

use altiplano_data::pipeline::{Applied, StepConfig, apply_step, unreadable};
use altiplano_data::step::{Step, StepCounts};
use altiplano_data::terminal;
use clap::Args;
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::commands::threads::use_threads;
use crate::config::{load_step, nearest};
use crate::error::{Result, TrainerError};

/// Lines that go through the step together, and bytes after which there are no more of them.
const BATCH_LINES: usize = 256;
const BATCH_BYTES: usize = 16 << 20;
/// Longest line: more is an error, not a reason to hold it in memory.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// Send JSON lines from standard input through one step to standard output.
///
/// Every line is an object with `text` and, if it has one, `id`; all other fields are kept. A list
/// `conversations`, as ShareGPT has it, may stand for the text. A dropped document leaves a JSON line with its id and reason on standard error.
#[derive(Debug, Args)]
#[command(after_help = APPLY_EXAMPLE)]
pub(in crate::commands) struct ApplyArgs {
    /// The step, by its name in `steps` of a data configuration.
    step: String,
    /// YAML file with the step's options, as they stand below its name in a data configuration.
    /// Default: every option at its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const APPLY_EXAMPLE: &str = "\
Examples:
  echo '{\"id\": \"a\", \"text\": \"Read More…\"}' | altiplano data apply ccnet_hash
  altiplano data apply sharegpt_clean < tests/fixtures/sft/web_chats.jsonl";

pub(super) fn run(args: &ApplyArgs) -> Result<()> {
    use_threads(None)?;
    let step = build(&args.step, args.config.as_deref())?;
    let mut stdin = std::io::stdin().lock();
    let mut stdout = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let mut first = 1;
    loop {
        let lines = read_lines(&mut stdin)?;
        if lines.is_empty() {
            return stdout.flush().map_err(TrainerError::Output);
        }
        let done: Vec<_> = lines
            .par_iter()
            .enumerate()
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .map(|(index, line)| apply(&args.step, &*step, line, first + index))
            .collect();
        first += lines.len();
        for result in done {
            match result {
                Applied::Kept(objects) => {
                    for object in objects {
                        serde_json::to_writer(&mut stdout, &object)
                            .map_err(std::io::Error::from)
                            .and_then(|()| stdout.write_all(b"\n"))
                            .map_err(TrainerError::Output)?;
                    }
                }
                Applied::Dropped(dropped) => {
                    let line = serde_json::to_string(&dropped).unwrap_or_default();
                    terminal::write_line(&line);
                }
            }
        }
    }
}

fn build(name: &str, config: Option<&Path>) -> Result<Box<dyn Step>> {
    if !StepConfig::DOCUMENT_STEPS.contains(&name) {
        let near = nearest(name, StepConfig::DOCUMENT_STEPS.iter().copied());
        let hint = near.map_or(".".into(), |near| format!("; did you mean {near:?}?"));
        let known = StepConfig::DOCUMENT_STEPS.join(", ");
        let message = format!("{name:?} is no step over single documents{hint} Known: {known}");
        return Err(TrainerError::Usage { message });
    }
    Ok(load_step(name, config)?.build_document_step("step")?)
}

fn apply(name: &str, step: &dyn Step, line: &[u8], number: usize) -> Applied {
    let id = || format!("line {number}");
    let object: Map<String, Value> = match serde_json::from_slice(line) {
        Ok(object) => object,
        Err(error) => return unreadable(id(), &error, line.len()),
    };
    let mut counts = StepCounts::default();
    apply_step(name, step, object, id, &mut counts)
}

fn read_lines(stdin: &mut impl BufRead) -> Result<Vec<Vec<u8>>> {
    let io = |source| TrainerError::Io { path: "standard input".into(), source };
    let (mut lines, mut bytes) = (Vec::new(), 0);
    while lines.len() < BATCH_LINES && bytes < BATCH_BYTES {
        let mut line = Vec::new();
        let mut bounded = std::io::Read::take(&mut *stdin, MAX_LINE_BYTES);
        if bounded.read_until(b'\n', &mut line).map_err(io)? == 0 {
            break;
        }
        if line.len() as u64 == MAX_LINE_BYTES && !line.ends_with(b"\n") {
            let message = format!("standard input: a line of more than {MAX_LINE_BYTES} bytes");
            return Err(TrainerError::Usage { message });
        }
        bytes += line.len();
        lines.push(line);
    }
    Ok(lines)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn few_long_lines_are_in_memory_together() {
        let lines = |length: usize| {
            let line = "x".repeat(length - 1) + "\n";
            let text = line.repeat(3 * BATCH_BYTES / length);
            let mut rest = text.as_bytes();
            let mut sizes = Vec::new();
            loop {
                match read_lines(&mut rest).unwrap().len() {
                    0 => return sizes,
                    count => sizes.push(count),
                }
            }
        };
        assert_eq!(lines(BATCH_BYTES / 4), [4, 4, 4]);
        assert_eq!(lines(BATCH_BYTES / 4 + 1), [4, 4, 3]);
        assert_eq!(lines(BATCH_BYTES / 1024)[..2], [256, 256]);
    }
}
