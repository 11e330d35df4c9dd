//! `altiplano data import-lm`: an n-gram model of another tool, for the step `perplexity`.

use std::path::PathBuf;

use altiplano_data::ProgressMode;
use altiplano_data::document::{DocumentFile, list_documents};
use altiplano_data::ngram::{self, Cutoffs, ImportReport, TrainOptions};
use clap::Args;
use serde::Serialize;

use crate::commands::output::{print, print_json};
use crate::commands::sizes;
use crate::commands::threads::use_threads;
use crate::error::Result;

/// Put an n-gram model of another tool, KenLM's for example, into a folder of models for the step
/// `perplexity`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLE)]
pub(in crate::commands) struct ImportLmArgs {
    /// The n-grams: an ARPA file, which may end in .gz.
    arpa: PathBuf,
    /// The SentencePiece model whose pieces are the words of the ARPA file.
    #[arg(long, value_name = "FILE")]
    pieces: PathBuf,
    /// ISO 639 code of the language: the name of the model's files.
    #[arg(long, value_name = "CODE")]
    language: String,
    /// Folder of models.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Documents of the kind that will be sorted, files or folders: the cut-offs between head,
    /// middle and tail are computed from their perplexity. Without them the step needs `cutoffs`.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    sample: Vec<PathBuf>,
    /// Most memory for n-grams: a number of bytes, or one with K, M, G or T behind it. What does
    /// not fit goes to the disk.
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = sizes::memory)]
    mem: u64,
    /// Print the report as one JSON object on one line.
    #[arg(long)]
    json: bool,
}

const IMPORT_EXAMPLE: &str = "\
Example:
  altiplano data import-lm en.arpa.gz --pieces en.sp.model --language en --output models/ngrams";

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    imported: ImportReport,
    /// The cut-offs, if there was a sample with documents.
    cutoffs: Option<Cutoffs>,
}

pub(super) fn run(args: &ImportLmArgs) -> Result<()> {
    use_threads(None)?;
    let mut sample: Vec<DocumentFile> = Vec::new();
    for path in &args.sample {
        sample.extend(list_documents(path, None)?);
    }
    let imported = ngram::import(&args.arpa, &args.pieces, &args.output, &args.language, args.mem)?;
    let cutoffs = match sample.is_empty() {
        true => None,
        false => {
            let options = TrainOptions::new(&args.language, &args.output);
            ngram::compute_cutoffs(&options, &ngram::texts_of(&sample), ProgressMode::Auto)?
        }
    };
    if args.json {
        return print_json(&Report { imported, cutoffs });
    }
    let ImportReport { language, folder, ngrams } = imported;
    let counts: Vec<String> = ngrams.iter().map(u64::to_string).collect();
    let mut text = format!("{}: {language}, n-grams {}\n", folder.display(), counts.join(" "));
    if let Some(Cutoffs { head, middle }) = cutoffs {
        text += &format!("cut-offs: head up to {head}, middle up to {middle}\n");
    }
    print(text.as_bytes())
}
