//! `altiplano data run` and `data merge`: raw text to documents, on one machine or by rank.

use std::path::PathBuf;

use altiplano_data::ProgressMode;
use altiplano_data::pipeline::{Rank, RunOptions, RunReport};
use clap::Args;

use crate::commands::output::{print, print_json};
use crate::commands::sizes;
use crate::commands::threads::use_threads;
use crate::config::{DataConfig, load};
use crate::error::Result;

/// Turn raw text into documents; what is finished is skipped.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLE)]
pub(in crate::commands) struct RunArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Do only every N-th group of files, beginning with this one, up to the next decision over
    /// all documents. Default: from SLURM_ARRAY_TASK_ID, or 0.
    #[arg(long, value_name = "R", requires = "world_size")]
    rank: Option<usize>,
    /// How many ranks share the work. Default: from SLURM_ARRAY_TASK_COUNT, or 1.
    #[arg(long, value_name = "N", requires = "rank")]
    world_size: Option<usize>,
}

const RUN_EXAMPLE: &str = "\
Examples:
  altiplano data run configs/data/quickstart.yaml --source books
  altiplano data run configs/data/common_crawl.yaml --rank 0 --world-size 4 --mem 8G

With several ranks, run all of them, then `altiplano data merge`, and again until merge says that
nothing is waiting. The files are the same as with one rank.";

/// Make the decisions that need every rank's part, and finish what needs no other.
#[derive(Debug, Args)]
#[command(after_help = MERGE_EXAMPLE)]
pub(in crate::commands) struct MergeArgs {
    #[command(flatten)]
    job: JobArgs,
}

const MERGE_EXAMPLE: &str = "\
Example:
  altiplano data merge configs/data/common_crawl.yaml --mem 64G";

#[derive(Debug, Args)]
struct JobArgs {
    /// Data configuration.
    config: PathBuf,
    /// Values that replace those of the configuration.
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Only this source.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Most memory for decisions over all documents, such as deduplication: a number of bytes, or
    /// one with K, M, G or T behind it. What does not fit goes to the disk.
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = sizes::memory)]
    mem: u64,
    /// Dropped documents whose text is kept in the drop log, per reason and group of files.
    #[arg(long, value_name = "N", default_value_t = 20)]
    sample_dropped: u64,
    /// Threads that compute. Default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// Print the report as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RunArgs) -> Result<()> {
    let rank = match (args.rank, args.world_size) {
        (Some(rank), Some(world_size)) => Rank::new(rank, world_size)?,
        _ => Rank::from_slurm(|name| std::env::var(name).ok())?.unwrap_or_default(),
    };
    let (config, options) = args.job.prepare(rank)?;
    args.job.print(&config.run_pipeline(&options)?)
}

pub(super) fn merge(args: &MergeArgs) -> Result<()> {
    let (config, options) = args.job.prepare(Rank::default())?;
    let report = config.merge_pipeline(&options)?;
    args.job.print(&report)?;
    if report.waiting.is_empty() && !args.job.json {
        print(b"nothing is waiting: every source is finished\n")?;
    }
    Ok(())
}

impl JobArgs {
    fn prepare(&self, rank: Rank) -> Result<(DataConfig, RunOptions)> {
        use_threads(self.threads)?;
        let config: DataConfig = load(&self.config, &self.overrides)?;
        crate::commands::check_source(&config, self.source.as_deref())?;
        let options = RunOptions {
            only: self.source.clone(),
            progress: ProgressMode::Auto,
            rank,
            memory_bytes: self.mem,
            dropped_samples: self.sample_dropped,
        };
        Ok((config, options))
    }

    fn print(&self, report: &RunReport) -> Result<()> {
        if self.json {
            return print_json(report);
        }
        let mut text = report.waterfall.as_ref().map(ToString::to_string).unwrap_or_default();
        for (source, hash) in &report.manifests {
            text += &format!("manifest {source}: blake3 {hash}\n");
        }
        if !report.waiting.is_empty() {
            text += &format!(
                "waiting: {}; when every rank is done, run `altiplano data merge`, then every rank \
                 again until nothing is waiting\n",
                report.waiting.join(", ")
            );
        }
        print(text.as_bytes())
    }
}
