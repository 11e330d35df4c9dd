//! `altiplano tokenizer`: train a tokenizer, encode and decode with it.

use std::io::Read;
use std::path::PathBuf;

use altiplano_data::{ProgressMode, StreamEncoder, Tokenizer};
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
    if args.json {
        let text = match args.text {
            Some(text) => text,
            None => read_stdin()?,
        };
        let ids = tokenizer.encode(&text)?;
        let piece = |&id: &u32| tokenizer.piece(id).map_or("", |piece| &piece.text);
        let pieces: Vec<&str> = ids.iter().map(piece).collect();
        return print_json(&serde_json::json!({ "token_ids": ids, "pieces": pieces }));
    }
    let mut encoder = StreamEncoder::new(&tokenizer);
    let mut line = IdLine::default();
    let mut ids = Vec::new();
    match args.text {
        Some(text) => encoder.push(&text, &mut ids)?,
        None => read_text(std::io::stdin().lock(), |text| {
            encoder.push(text, &mut ids)?;
            line.print(&mut ids)
        })?,
    }
    encoder.finish(&mut ids)?;
    line.print(&mut ids)?;
    print(b"\n")
}

/// Token ids on one line of standard output, printed as they come.
#[derive(Default)]
struct IdLine {
    begun: bool,
}

impl IdLine {
    /// Prints and empties `ids`.
    fn print(&mut self, ids: &mut Vec<u32>) -> Result<()> {
        let mut text = String::with_capacity(6 * ids.len());
        for id in ids.drain(..) {
            if self.begun {
                text.push(' ');
            }
            self.begun = true;
            text.push_str(&id.to_string());
        }
        if text.is_empty() { Ok(()) } else { print(text.as_bytes()) }
    }
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

/// Bytes of standard input read at once.
const CHUNK: usize = 64 << 10;

fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let id = |word: &str| {
        word.parse().map_err(|_| TrainerError::Usage {
            message: format!("{word:?} is no token id: expected a number from 0"),
        })
    };
    text.split_whitespace().map(id).collect()
}

/// All of standard input.
fn read_stdin() -> Result<String> {
    let mut all = String::new();
    read_text(std::io::stdin().lock(), |text| {
        all.push_str(text);
        Ok(())
    })?;
    Ok(all)
}

/// Hands the text of `input`, which is standard input, to `sink` as it is read.
fn read_text(mut input: impl Read, mut sink: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let mut bytes = vec![0; CHUNK];
    // Bytes at the front of `bytes` that are the beginning of a character.
    let mut begun = 0;
    let mut offset = 0_u64;
    loop {
        let read = match input.read(&mut bytes[begun..]) {
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(TrainerError::io("standard input")(error)),
        };
        let filled = begun + read;
        let (valid, wrong) = match std::str::from_utf8(&bytes[..filled]) {
            Ok(text) => (text.len(), false),
            Err(error) => (error.valid_up_to(), error.error_len().is_some()),
        };
        if let Ok(text) = std::str::from_utf8(&bytes[..valid]) {
            sink(text)?;
        }
        offset += valid as u64;
        if wrong || read == 0 && valid < filled {
            return Err(TrainerError::RunFile {
                path: "standard input".into(),
                reason: format!("not UTF-8 at byte {offset}"),
            });
        }
        if read == 0 {
            return Ok(());
        }
        bytes.copy_within(valid..filled, 0);
        begun = filled - valid;
    }
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

    /// Gives a byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.len().min(buffer.len()).min(1);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn text_is_read_whatever_its_bytes_are_cut_into() {
        let read = |bytes: &[u8]| {
            let mut all = String::new();
            read_text(Slow(bytes), |text| {
                all.push_str(text);
                Ok(())
            })
            .map(|()| all)
            .map_err(|error| error.to_string())
        };
        let text = "naïve 日本 👩";
        assert_eq!(read(text.as_bytes()).unwrap(), text);
        assert_eq!(read(b"").unwrap(), "");
        assert!(read(b"abc\xff").unwrap_err().contains("at byte 3"));
        assert!(read(b"abc\xe6\x97").unwrap_err().contains("at byte 3"));
    }
}
