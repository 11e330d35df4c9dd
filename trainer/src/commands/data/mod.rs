//! `altiplano data`: raw text to documents, and a look at what came of it.

mod apply;
mod batches;
mod cat;
mod explain;
mod import_lm;
mod report;
mod run;
mod train;

use clap::Subcommand;

use crate::error::Result;

#[derive(Debug, Subcommand)]
pub(super) enum DataCommand {
    Run(run::RunArgs),
    Merge(run::MergeArgs),
    Report(report::ReportArgs),
    Explain(explain::ExplainArgs),
    Apply(apply::ApplyArgs),
    Cat(cat::CatArgs),
    Batches(batches::BatchesArgs),
    TrainLid(train::TrainLidArgs),
    TrainLm(train::TrainLmArgs),
    ImportLm(import_lm::ImportLmArgs),
    TrainClassifier(train::TrainClassifierArgs),
}

pub(super) fn run(command: DataCommand) -> Result<()> {
    match command {
        DataCommand::Run(args) => run::run(&args),
        DataCommand::Merge(args) => run::merge(&args),
        DataCommand::Report(args) => report::run(&args),
        DataCommand::Explain(args) => explain::run(&args),
        DataCommand::Apply(args) => apply::run(&args),
        DataCommand::Cat(args) => cat::run(&args),
        DataCommand::Batches(args) => batches::run(&args),
        DataCommand::TrainLid(args) => train::train_lid(&args),
        DataCommand::TrainLm(args) => train::train_lm(&args),
        DataCommand::ImportLm(args) => import_lm::run(&args),
        DataCommand::TrainClassifier(args) => train::train_classifier(&args),
    }
}
