//! The end of a source: files of earlier configurations are deleted, the manifest is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::plan::SourcePlan;
use super::record::StageRecord;
use super::unique_ids::ids_in_several;
use crate::atomic_file::remove_durably;
use crate::document::{DocumentFileSummary, DocumentManifest, ManifestInput, ManifestStep, Split};
use crate::error::{DataError, Result};
use crate::storage::stored_in;

/// Checks the holdout, deletes files of tasks that do not exist any more, writes the manifest and gives
/// its checksum.
pub(super) fn finish_source(plan: &SourcePlan<'_>) -> Result<String> {
    let last = plan.last_stage();
    let records: Vec<StageRecord> = plan
        .tasks
        .iter()
        .map(|task| {
            plan.recorded(last, task.number).ok_or_else(|| plan.unfinished(last, task.number))
        })
        .collect::<Result<_>>()?;
    let files: Vec<&DocumentFileSummary> =
        records.iter().flat_map(|record| record.outputs.files()).collect();
    let documents = |split: Split| -> u64 {
        let outputs = records.iter().filter_map(|record| record.outputs.of(split));
        outputs.map(|file| file.documents).fold(0, u64::saturating_add)
    };
    let text_bytes = files.iter().map(|file| file.text_bytes).fold(0, u64::saturating_add);
    let (train, validation) = (documents(Split::Train), documents(Split::Validation));
    if train + validation == 0 {
        let path = plan.layout.output().to_owned();
        return Err(DataError::NothingLeft { name: plan.config.name.clone(), path });
    }
    if train == 0 || (plan.holdout.is_some() && validation == 0) {
        let (name, all) = (&plan.config.name, train + validation);
        return Err(plan.holdout.impossible(name, all, text_bytes, validation));
    }
    let ids: Vec<_> = plan.tasks.iter().map(|task| plan.layout.ids_file(task.number)).collect();
    let shared = ids_in_several(&ids)?;
    if shared > 0 {
        tracing::warn!(
            "source {:?}: {shared} ids are in several groups of input files; `altiplano data \
             explain` names the first document of such an id",
            plan.config.name
        );
    }
    let manifest = DocumentManifest {
        source: plan.config.name.clone(),
        kind: plan.kind.to_owned(),
        version: plan.reader.version(),
        steps: plan
            .chain
            .steps()
            .into_iter()
            .map(|(step, version)| ManifestStep { step: step.to_owned(), version })
            .collect(),
        documents: train + validation,
        text_bytes,
        files: files.iter().copied().cloned().collect(),
        inputs: plan
            .tasks
            .iter()
            .flat_map(|task| &task.inputs)
            .map(|input| ManifestInput { name: input.name.clone(), bytes: input.bytes })
            .collect(),
    };
    let folder = plan.layout.documents();
    let before = DocumentManifest::read(&folder);
    if let Err(error @ (DataError::Altered { .. } | DataError::BadFile { .. })) = &before {
        tracing::warn!("{}; it is written again", error.without_remedy());
    }
    if !before.is_ok_and(|before| before == manifest) {
        // A crash must not leave the word of files that are gone.
        remove_durably(&DocumentManifest::path(&folder))?;
    }
    remove_stale(plan, &files)?;
    Ok(manifest.write(&folder)?.checksum)
}

/// Deletes what earlier configurations left.
fn remove_stale(plan: &SourcePlan<'_>, files: &[&DocumentFileSummary]) -> Result<()> {
    let layout = &plan.layout;
    let mut known: BTreeSet<_> =
        files.iter().map(|file| layout.documents().join(&file.file)).collect();
    known.insert(layout.manifest());
    for stage in 0..plan.chain.stages.len() {
        known.insert(layout.decided_file(stage));
        for task in &plan.tasks {
            known.insert(layout.stats_file(stage, task.number));
            known.insert(layout.dropped_file(stage, task.number));
            known.insert(layout.stage_file(stage, task.number));
            known.insert(layout.ids_file(task.number));
            let global = layout.global_files(stage, task.number);
            known.extend([global.signatures, global.decisions]);
        }
    }
    if plan.uses_templates() {
        let inputs = plan.tasks.iter().map(|task| task.inputs.len()).sum();
        known.extend((0..inputs).flat_map(|input| layout.template_files(input)));
    }
    for folder in [layout.documents(), layout.stats(), layout.dropped(), layout.work()] {
        if folder.exists() {
            remove_unknown(&folder, &known)?;
        }
        for path in stored_in(&folder).iter().filter(|path| !known.contains(*path)) {
            remove_durably(path)?;
        }
    }
    Ok(())
}

fn remove_unknown(folder: &Path, known: &BTreeSet<std::path::PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
        let path = entry.map_err(DataError::io(folder))?.path();
        if path.is_file() && !known.contains(&path) {
            remove_durably(&path)?;
        }
    }
    Ok(())
}
