//! The templates that the dumps of a source define, indexed before the first of its pages is expanded.
//!
//! Each dump has a file of its own below `work/`, kept while the dump is the same. Several ranks share the
//! work: each begins at another dump and does what no other has finished. Two that do the same write the
//! same bytes.

use std::path::PathBuf;
use std::sync::Arc;

use super::RunOptions;
use super::plan::SourcePlan;
use crate::atomic_file::scratch_folder;
use crate::document::RUN_AGAIN;
use crate::error::Result;
use crate::json_file::{read_json, write_json};
use crate::progress::{Progress, Work};
use crate::source::{Input, ReadContext, TemplateFile, TemplateIndex, WikipediaSource};

/// Gives the steps of `stage` the templates of the source, if they use them.
pub(super) fn set_templates(
    plan: &SourcePlan<'_>,
    stage: usize,
    options: &RunOptions,
) -> Result<()> {
    let stage = &plan.chain.stages[stage];
    let Some(source) = plan.config.wikipedia.as_ref().filter(|_| stage.wants_templates()) else {
        return Ok(());
    };
    let inputs: Vec<&Input> = plan.tasks.iter().flat_map(|task| &task.inputs).collect();
    let mut files: Vec<Option<(PathBuf, TemplateFile)>> =
        (0..inputs.len()).map(|number| finished(plan, source, number, inputs[number])).collect();
    let missing = || files.iter().zip(&inputs).filter(|(file, _)| file.is_none());
    let bytes = missing().map(|(_, input)| input.bytes).sum();
    let work = Work::bytes(bytes).of(missing().count() as u64, "files");
    let progress = Progress::new(options.progress, "templates", work);
    for number in options.rank.order(inputs.len()) {
        let input = inputs[number];
        if files[number].is_some() {
            continue;
        }
        // Another rank may have finished it since.
        files[number] = finished(plan, source, number, input);
        if files[number].is_none() {
            files[number] = Some(index(plan, source, number, input, options, &progress)?);
        }
        progress.item_done();
    }
    let files: Vec<_> = files.into_iter().flatten().collect();
    let index = Arc::new(TemplateIndex::open(&files)?);
    progress.finish(&format!("{} templates known to source {}", index.len(), plan.config.name));
    for step in stage.steps.iter().filter(|step| step.step.wants_templates()) {
        step.step.set_templates(&index);
    }
    Ok(())
}

/// The file of the templates of an input, if it is there for this very input.
fn finished(
    plan: &SourcePlan<'_>,
    source: &WikipediaSource,
    number: usize,
    input: &Input,
) -> Option<(PathBuf, TemplateFile)> {
    let [path, description] = plan.layout.template_files(number);
    let file: TemplateFile = read_json(&description, RUN_AGAIN).ok()?;
    let same = file.key == source.template_key(input);
    let whole = same && file.digest.verify(&path, RUN_AGAIN).is_ok();
    whole.then_some((path, file))
}

fn index(
    plan: &SourcePlan<'_>,
    source: &WikipediaSource,
    number: usize,
    input: &Input,
    options: &RunOptions,
    progress: &Progress,
) -> Result<(PathBuf, TemplateFile)> {
    let [path, description] = plan.layout.template_files(number);
    let scratch = scratch_folder(&plan.layout.work())?;
    let context = ReadContext {
        source: &plan.config.name,
        input,
        scratch: scratch.path(),
        memory_bytes: options.memory_bytes,
        bytes_read: &|bytes| progress.add(bytes),
    };
    let file = source.index_templates(&context, &path)?;
    if file.too_long > 0 {
        tracing::warn!("{}: {} templates are too long to be known", input.name, file.too_long);
    }
    write_json(&description, &file)?;
    Ok((path, file))
}
