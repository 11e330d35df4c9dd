//! `altiplano generate --chat`: a conversation in the terminal.
//!
//! A line is a message. On a terminal Ctrl-C ends an answer and Ctrl-D the program; from a pipe every line is
//! answered, and the end of the input is the end.

use std::io::{BufRead, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use altiplano_data::terminal::write_line;
use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::output::{print, print_json};
use crate::chat_session::{ChatSession, WithoutLeadIn, template_of};
use crate::error::{Result, TrainerError};
use crate::text_generation::{GenerationOptions, generate_from_ids};
use crate::text_model::TextModel;

/// Longest line of input in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// How a conversation is held.
pub(super) struct ChatOptions<'a> {
    /// The chat template, where it is not the model's own.
    pub template: Option<&'a str>,
    /// What the model is told before.
    pub system: Option<&'a str>,
    /// One JSON object for every answer.
    pub json: bool,
}

/// Answers what comes on standard input, each answer by `generation` with a seed of its own.
pub(super) fn converse(
    trained: &TextModel,
    mut generation: GenerationOptions,
    options: &ChatOptions<'_>,
) -> Result<()> {
    let template = template_of(&trained.path, trained.template.as_ref(), options.template)?;
    let context = trained.model.config().max_seq_len;
    let tokenizer = &trained.tokenizer;
    let mut session = ChatSession::new(
        template,
        tokenizer,
        options.system,
        context,
        generation.sampling.max_tokens,
    );
    let stdin = std::io::stdin();
    let interactive = stdin.is_terminal() && !options.json;
    let stopped = Arc::new(AtomicBool::new(false));
    if interactive {
        flag::register(SIGINT, Arc::clone(&stopped)).map_err(|error| TrainerError::RunFile {
            path: "signal handlers".into(),
            reason: format!("cannot be installed: {error}"),
        })?;
        write_line("A line is a message. Ctrl-C ends an answer, Ctrl-D the conversation.");
    }
    let mut said_that_full = false;
    let mut input = stdin.lock();
    loop {
        if interactive {
            print(b"> ")?;
        }
        let Some(message) = read_message(&mut input)? else {
            return if interactive { print(b"\n") } else { Ok(()) };
        };
        if message.trim().is_empty() {
            continue;
        }
        let prompt = match session.ask(&message) {
            Ok(prompt) => prompt,
            // The next line may be shorter.
            Err(error @ TrainerError::Usage { .. }) if interactive => {
                write_line(&error.to_string());
                continue;
            }
            Err(error) => return Err(error),
        };
        if prompt.dropped > 0 && !said_that_full {
            said_that_full = true;
            write_line(&format!(
                "note: the conversation is longer than the context of {context} tokens; its oldest \
                 messages are left out from now on"
            ));
        }
        stopped.store(false, Ordering::Relaxed);
        let mut streamed = Ok(());
        let mut said = WithoutLeadIn::new(session.lead_in());
        let on_text = |piece: &str| {
            let piece = said.push(piece);
            if !options.json && streamed.is_ok() && !piece.is_empty() {
                streamed = print(piece.as_bytes());
            }
            streamed.is_ok() && !stopped.load(Ordering::Relaxed)
        };
        let mut answer =
            generate_from_ids(&trained.model, tokenizer, prompt.ids, &generation, on_text)?;
        generation.sampling.seed = generation.sampling.seed.wrapping_add(1);
        streamed?;
        if let Some(text) = answer.text.strip_prefix(session.lead_in()) {
            answer.text = text.to_owned();
        }
        if options.json {
            print_json(&answer)?
        } else {
            print(b"\n")?
        }
        session.answered(&answer.text);
    }
}

/// The next line without its end; none at the end of the input.
fn read_message(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    let read = input.take(LONGEST_LINE).read_until(b'\n', &mut line);
    let fail = |message: String| TrainerError::Usage { message };
    read.map_err(|error| fail(format!("standard input: {error}")))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.len() as u64 == LONGEST_LINE && line.last() != Some(&b'\n') {
        return Err(fail(format!("a line of more than {LONGEST_LINE} bytes on standard input")));
    }
    let text = String::from_utf8(line)
        .map_err(|error| fail(format!("a line on standard input is not UTF-8: {error}")))?;
    Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
}
