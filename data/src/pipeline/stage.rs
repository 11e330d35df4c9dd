//! One stage of all tasks of this rank: those that are not finished are done in parallel.

use rayon::prelude::*;

use super::RunOptions;
use super::batch::Batch;
use super::plan::{SourcePlan, Task};
use super::read::{read_inputs, read_previous_stage};
use super::sink::Sink;
use super::stage_options::StageOptions;
use super::templates::set_templates;
use crate::error::Result;
use crate::progress::{Progress, Work};

/// Tasks of a stage: how many were done now, and how many before.
pub(super) struct TaskCounts {
    pub done: usize,
    pub skipped: usize,
}

/// Does one stage of `stages` of all tasks of this rank.
pub(super) fn run_stage(
    plans: &[&SourcePlan<'_>],
    stage: usize,
    stages: usize,
    options: &RunOptions,
) -> Result<TaskCounts> {
    let tasks: Vec<_> = plans
        .iter()
        .flat_map(|plan| plan.tasks.iter().map(move |task| (*plan, task)))
        .filter(|(_, task)| options.rank.does(task.number))
        .collect();
    // In parallel, since every file of a finished task is read and held against what was written.
    let all = tasks.len();
    let checksums = Work::count(all as u64, "groups of files");
    let checksums = Progress::new(options.progress, "checksums", checksums);
    let is_open = |(plan, task): &(&SourcePlan<'_>, &Task)| {
        let open = !plan.is_finished(stage, task.number);
        checksums.add(1);
        open
    };
    let open: Vec<_> = tasks.into_par_iter().filter(is_open).collect();
    drop(checksums);
    let skipped = all - open.len();
    for plan in plans {
        if open.iter().any(|(other, _)| std::ptr::eq(*other, *plan)) {
            set_templates(plan, stage, options)?;
        }
    }
    let bytes = |(plan, task): &(&SourcePlan<'_>, &Task)| match stage.checked_sub(1) {
        None => task.bytes(),
        Some(before) => {
            let record = plan.recorded(before, task.number);
            record.and_then(|record| record.stage_file).map_or(0, |file| file.text_bytes)
        }
    };
    let inputs = || open.iter().flat_map(|(_, task)| &task.inputs);
    // An input may be a folder: a paper, or a site.
    let name = if inputs().all(|input| input.is_file()) { "files" } else { "inputs" };
    let label = match stages {
        1 => "documents".to_owned(),
        _ => format!("stage {} of {stages}", stage + 1),
    };
    let work = Work::bytes(open.iter().map(bytes).sum()).of(inputs().count() as u64, name);
    let progress = Progress::new(options.progress, &label, work);
    let threads = rayon::current_num_threads();
    let stage_options = StageOptions {
        progress: &progress,
        memory_bytes: options.memory_bytes / threads as u64,
        samples_per_reason: options.dropped_samples,
        parallel: open.len() < threads,
    };
    open.par_iter()
        .map(|(plan, task)| run_task(plan, stage, task, &stage_options))
        .collect::<Result<()>>()?;
    progress.finish(&format!("{} groups of files done, {skipped} already finished", open.len()));
    Ok(TaskCounts { done: open.len(), skipped })
}

/// Does one stage of one task: reads its documents, sends them through the steps, and writes what
/// is left. The record is written last.
fn run_task(
    plan: &SourcePlan<'_>,
    stage: usize,
    task: &Task,
    options: &StageOptions<'_>,
) -> Result<()> {
    plan.invalidate(stage, task.number)?;
    let mut sink = Sink::create(plan, stage, task, options)?;
    let mut batch = Batch::default();
    if stage == 0 {
        read_inputs(plan, task, options, &mut batch, &mut sink)?;
    } else {
        read_previous_stage(plan, stage, task, options, &mut batch, &mut sink)?;
    }
    sink.process(&mut batch)?;
    sink.finish()
}
