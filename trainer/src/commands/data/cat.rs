//! `altiplano data cat`: documents to standard output.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use altiplano_data::document::{Split, list_documents};
use altiplano_data::{DataError, sharegpt};
use clap::{Args, ValueEnum};

use crate::commands::threads::use_threads;
use crate::error::{Result, TrainerError};

/// Write documents to standard output.
#[derive(Debug, Args)]
#[command(after_help = CAT_EXAMPLE)]
pub(in crate::commands) struct CatArgs {
    /// Document files, or folders of them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// What is written of a document.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Only this side of the holdout.
    #[arg(long, value_enum)]
    split: Option<SplitName>,
    /// At most this many documents.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

const CAT_EXAMPLE: &str = "\
Examples:
  altiplano data cat runs/quickstart/data/documents --split validation | xz -9e | wc -c
  altiplano data cat runs/quickstart/data/documents/books --format jsonl --limit 3";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// The text, documents separated by one line feed.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// Conversations as `altiplano sft` reads them: an object with `id` and `conversations` a line.
    Sharegpt,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitName {
    Train,
    Validation,
}

pub(super) fn run(args: &CatArgs) -> Result<()> {
    use_threads(None)?;
    let split = args.split.map(|split| match split {
        SplitName::Train => Split::Train,
        SplitName::Validation => Split::Validation,
    });
    let mut files = Vec::new();
    for path in &args.paths {
        files.extend(list_documents(path, split)?);
    }
    let mut stdout = BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let mut written = 0;
    let limit = args.limit.unwrap_or(usize::MAX);
    for file in files {
        if written >= limit {
            break;
        }
        let path = file.path.clone();
        for document in file.reader()?.take(limit - written) {
            let document = document?;
            let line = match args.format {
                Format::Text if written == 0 => write!(stdout, "{}", document.text),
                Format::Text => write!(stdout, "\n{}", document.text),
                Format::Jsonl => serde_json::to_writer(&mut stdout, &document)
                    .map_err(std::io::Error::from)
                    .and_then(|()| writeln!(stdout)),
                Format::Sharegpt => {
                    let Some(record) = sharegpt::record(&document) else {
                        let reason =
                            format!("the text of document {} is not a conversation", document.id);
                        return Err(DataError::bad_file(&path, reason).into());
                    };
                    writeln!(stdout, "{record}")
                }
            };
            line.map_err(TrainerError::Output)?;
            written += 1;
        }
    }
    stdout.flush().map_err(TrainerError::Output)
}
