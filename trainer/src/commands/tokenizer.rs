//! `altiplano tokenizer`: train a tokenizer, encode and decode with it.

use std::io::Read;
use std::path::PathBuf;

use altiplano_data::{ProgressMode, Tokenizer};
use clap::{Args, Subcommand};

use super::output::{print, print_json, print_line};
use super::threads::use_threads;
use crate::config::{DataConfig, load};
use crate::error::{Result, TrainerError};

#[derive(Debug, Subcommand)]
pub(super) enum TokenizerCommand {
    Train(TrainArgs),
    Encode(EncodeArgs),
    Decode(DecodeArgs),
}

/// Train a SentencePiece BPE model on the documents of a data configuration, held-out ones excepted.
#[derive(Debug, Args)]
#[command(after_help = TRAIN_EXAMPLE)]
pub(super) struct TrainArgs {
    /// Data configuration.
    config: PathBuf,
    /// Values that replace those of the configuration.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

const TRAIN_EXAMPLE: &str = "\
Example:
  altiplano tokenizer train configs/data/quickstart.yaml tokenizer.vocab_size=8000";

/// Print the token ids of a text.
#[derive(Debug, Args)]
#[command(after_help = ENCODE_EXAMPLE)]
pub(super) struct EncodeArgs {
    /// The SentencePiece model, or a tokenizer.json.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// The text; standard input when it is missing.
    text: Option<String>,
    /// Print one JSON object with `token_ids` and `pieces`.
    #[arg(long)]
    json: bool,
}

const ENCODE_EXAMPLE: &str = "\
Examples:
  altiplano tokenizer encode --model runs/quickstart/data/tokenizer.model \"We the people\"
  altiplano tokenizer encode --model runs/quickstart/data/tokenizer.model --json < README.md";

/// Print the text of token ids.
#[derive(Debug, Args)]
#[command(after_help = DECODE_EXAMPLE)]
pub(super) struct DecodeArgs {
    /// The SentencePiece model, or a tokenizer.json.
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// The ids; standard input, separated by white space, when there are none.
    ids: Vec<u32>,
    /// Print one JSON object with `text`.
    #[arg(long)]
    json: bool,
}

const DECODE_EXAMPLE: &str = "\
Example:
  altiplano tokenizer decode --model runs/quickstart/data/tokenizer.model 450 2305 1987";

pub(super) fn run(command: TokenizerCommand) -> Result<()> {
    match command {
        TokenizerCommand::Train(args) => train(&args),
        TokenizerCommand::Encode(args) => encode(args),
        TokenizerCommand::Decode(args) => decode(args),
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    let config: DataConfig = load(&args.config, &args.overrides)?;
    use_threads(None)?;
    let report = config.train_tokenizer(ProgressMode::Auto)?;
    if args.json {
        return print_json(&report);
    }
    print_line(&format!(
        "{}: {} pieces from {:.1} MB of {} documents",
        report.model.display(),
        report.vocab_size,
        report.sample_bytes as f64 / 1e6,
        report.documents
    ))
}

fn encode(args: EncodeArgs) -> Result<()> {
    let tokenizer = Tokenizer::open(&args.model)?;
    let text = match args.text {
        Some(text) => text,
        None => read_stdin()?,
    };
    let ids = tokenizer.encode(&text)?;
    if args.json {
        let piece = |&id: &u32| tokenizer.piece(id).map_or("", |piece| &piece.text);
        let pieces: Vec<&str> = ids.iter().map(piece).collect();
        return print_json(&serde_json::json!({ "token_ids": ids, "pieces": pieces }));
    }
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    print_line(&ids.join(" "))
}

fn decode(args: DecodeArgs) -> Result<()> {
    let tokenizer = Tokenizer::open(&args.model)?;
    let ids = if args.ids.is_empty() { parse_ids(&read_stdin()?)? } else { args.ids };
    let text = tokenizer.decode(&ids)?;
    if args.json {
        return print_json(&serde_json::json!({ "text": text }));
    }
    print(text.as_bytes())?;
    if text.ends_with('\n') { Ok(()) } else { print(b"\n") }
}

fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let id = |word: &str| {
        word.parse().map_err(|_| TrainerError::Usage {
            message: format!("{word:?} is no token id: expected a number from 0"),
        })
    };
    text.split_whitespace().map(id).collect()
}

fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).map_err(TrainerError::io("standard input"))?;
    String::from_utf8(bytes).map_err(|error| TrainerError::RunFile {
        path: "standard input".into(),
        reason: format!("not UTF-8: {error}"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_separated_by_any_white_space() {
        assert_eq!(parse_ids(" 1 22\n333\t4 ").unwrap(), [1, 22, 333, 4]);
        assert!(parse_ids("").unwrap().is_empty());
        for wrong in ["1 x", "-1", "4294967296"] {
            assert!(parse_ids(wrong).unwrap_err().is_usage(), "{wrong}");
        }
    }
}
