//! The work of a source: groups of input files times stages, each with a key.
//!
//! A key is a hash of everything the result depends on: the steps' versions and options, the
//! files they read, and the inputs' names, sizes and times. Keys follow from the configuration
//! and the list of inputs alone, so every rank computes the same ones.

use std::path::Path;
use std::sync::OnceLock;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::batch::Clock;
use super::chain::{Chain, Global};
use super::holdout::{self, HoldoutConfig};
use super::layout::Layout;
use super::rank::Rank;
use super::source_config::SourceConfig;
use super::stage::StageRecord;
use crate::atomic_file::remove_durably;
use crate::checksum::FileDigest;
use crate::dedup::{GroupFiles, Resources};
use crate::document::{RUN_AGAIN, Split};
use crate::error::{DataError, Result};
use crate::json_file::{read_json, write_json};
use crate::source::{Input, SourceOptions};

/// Consecutive input files of a source: the unit of work and of output files.
pub(super) struct Group {
    pub number: usize,
    /// Number of its first input in the source's list.
    pub first_input: u32,
    pub inputs: Vec<Input>,
}

impl Group {
    /// Groups `inputs` in order, closing a group when it reaches `bytes`.
    fn split(inputs: Vec<Input>, bytes: u64) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        let mut open = 0;
        for (index, input) in (0u32..).zip(inputs) {
            if groups.is_empty() || open >= bytes {
                let number = groups.len();
                groups.push(Self { number, first_input: index, inputs: Vec::new() });
                open = 0;
            }
            open += input.bytes;
            if let Some(group) = groups.last_mut() {
                group.inputs.push(input);
            }
        }
        groups
    }

    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|input| input.bytes).sum()
    }
}

/// A source, its steps, its groups and their keys.
pub(super) struct SourcePlan<'a> {
    pub config: &'a SourceConfig,
    pub kind: &'static str,
    pub reader: &'a dyn SourceOptions,
    pub holdout: &'a HoldoutConfig,
    pub chain: Chain,
    pub groups: Vec<Group>,
    pub layout: Layout,
    /// By stage, then by group.
    keys: Vec<Vec<String>>,
    /// By stage: the key of the decision before it; empty for the first.
    decision_keys: Vec<String>,
    /// By stage: the time of the decision before it, once it is made.
    decision_seconds: Vec<OnceLock<f64>>,
    /// By stage, then by group: the record, once all that it names was read and is as it was
    /// written.
    finished: Vec<Vec<OnceLock<StageRecord>>>,
    /// By stage: set once the decisions before it were read and are as they were written.
    resolved: Vec<OnceLock<()>>,
}

/// Written when a decision is made.
#[derive(Serialize, Deserialize)]
struct Resolved {
    key: String,
    /// The decision files, by group.
    decisions: Vec<FileDigest>,
}

impl<'a> SourcePlan<'a> {
    pub fn new(
        output: &Path,
        config: &'a SourceConfig,
        holdout: &'a HoldoutConfig,
        group_bytes: u64,
    ) -> Result<Self> {
        let (kind, reader) = config.kind()?;
        let groups = Group::split(reader.inputs(&config.kind_key(kind))?, group_bytes);
        let chain = Chain::build(config, holdout)?;
        let mut keys: Vec<Vec<String>> = Vec::new();
        let mut decision_keys = Vec::new();
        for stage in &chain.stages {
            let decision = keys.last().map_or(String::new(), |before| {
                hash(
                    std::iter::once(&stage.identity[..]).chain(before.iter().map(|k| k.as_bytes())),
                )
            });
            let of_group = |(number, group): (usize, &Group)| match keys.last() {
                None => first_key(&stage.identity, group),
                Some(before) => hash(
                    [&stage.identity[..], decision.as_bytes(), before[number].as_bytes()]
                        .into_iter(),
                ),
            };
            let of_stage = groups.iter().enumerate().map(of_group).collect();
            keys.push(of_stage);
            decision_keys.push(decision);
        }
        let layout = Layout::new(output, &config.name);
        let decision_seconds = vec![OnceLock::new(); chain.stages.len()];
        let finished = vec![vec![OnceLock::new(); groups.len()]; chain.stages.len()];
        let resolved = vec![OnceLock::new(); chain.stages.len()];
        Ok(Self {
            config,
            kind,
            reader,
            holdout,
            chain,
            groups,
            layout,
            keys,
            decision_keys,
            decision_seconds,
            finished,
            resolved,
        })
    }

    pub fn key(&self, stage: usize, group: usize) -> &str {
        &self.keys[stage][group]
    }

    pub fn last_stage(&self) -> usize {
        self.chain.stages.len() - 1
    }

    /// The record of a stage of a group, if the same work was done and all that it left is as it
    /// was written. Every file is read once in the life of a plan. What is altered is said.
    pub fn finished(&self, stage: usize, group: usize) -> Option<StageRecord> {
        let known = &self.finished[stage][group];
        if known.get().is_none() {
            let path = self.layout.stats_file(stage, group);
            match self.read_finished(&path, stage, group) {
                Ok(Some(record)) => drop(known.set(record)),
                Ok(None) => {}
                Err(error) => say_redo(&error, "the files of this group are made again"),
            }
        }
        known.get().cloned()
    }

    fn read_finished(
        &self,
        path: &Path,
        stage: usize,
        group: usize,
    ) -> Result<Option<StageRecord>> {
        let record = match StageRecord::read(&self.layout, path) {
            Err(missing) if missing.is_not_found() => return Ok(None),
            record => record?,
        };
        if record.key != self.key(stage, group) {
            return Ok(None);
        }
        for split in Split::ALL {
            if let Some(file) = record.outputs.of(split) {
                file.digest().verify(&self.layout.document_file(split, group), RUN_AGAIN)?;
            }
        }
        if let Some(file) = &record.stage_file {
            file.digest().verify(&self.layout.stage_file(stage, group), RUN_AGAIN)?;
        }
        if let Some(notes) = &record.notes {
            notes.verify(&self.layout.global_files(stage, group).notes, RUN_AGAIN)?;
        }
        record.dropped.verify(&self.layout.dropped_file(stage, group), RUN_AGAIN)?;
        Ok(Some(record))
    }

    /// Takes back that a stage of a group is finished, and that the source is: called before the
    /// first of its files is replaced, so that a crash does not leave new files with the word of
    /// old ones.
    pub fn invalidate(&self, stage: usize, group: usize) -> Result<()> {
        remove_durably(&self.layout.manifest())?;
        remove_durably(&self.layout.stats_file(stage, group))
    }

    /// Whether the decision before `stage` is made and is as it was written, for the groups of
    /// `rank`. What is altered is said.
    pub fn is_resolved(&self, stage: usize, rank: Rank) -> bool {
        if stage == 0 || self.resolved[stage].get().is_some() {
            return true;
        }
        match self.read_resolved(stage, rank) {
            Ok(resolved) => {
                if resolved {
                    let _ = self.resolved[stage].set(());
                }
                resolved
            }
            Err(error) => {
                say_redo(&error, "the decision is made again");
                false
            }
        }
    }

    fn read_resolved(&self, stage: usize, rank: Rank) -> Result<bool> {
        let resolved: Resolved = match read_json(&self.layout.resolved_file(stage - 1), RUN_AGAIN) {
            Err(missing) if missing.is_not_found() => return Ok(false),
            resolved => resolved?,
        };
        if resolved.key != self.decision_keys[stage]
            || resolved.decisions.len() != self.groups.len()
        {
            return Ok(false);
        }
        let own = self.groups.par_iter().zip(&resolved.decisions);
        own.filter(|(group, _)| rank.does(group.number)).try_for_each(|(group, digest)| {
            let files = self.layout.global_files(stage - 1, group.number);
            digest.verify(&files.decisions, RUN_AGAIN)
        })?;
        Ok(true)
    }

    /// Time the processor spent on the decision before `stage`, if it was made by this process;
    /// it counts for the first group.
    pub fn decision_seconds(&self, stage: usize, group: usize) -> f64 {
        let seconds = self.decision_seconds[stage].get().filter(|_| group == 0);
        seconds.copied().unwrap_or(0.0)
    }

    /// Makes the decision before `stage`, for which the stage before it must be finished.
    pub fn resolve(&self, stage: usize, memory_bytes: u64) -> Result<()> {
        let Some(opening) = &self.chain.stages[stage].opening else {
            return Ok(());
        };
        // Reads the notes of all groups and holds them against what was written.
        let files: Vec<GroupFiles> = self
            .groups
            .par_iter()
            .map(|group| match self.finished(stage - 1, group.number) {
                Some(_) => Ok(self.layout.global_files(stage - 1, group.number)),
                None => Err(self.unfinished(stage - 1, group.number)),
            })
            .collect::<Result<_>>()?;
        // A crash must not leave new decisions with the word of old ones.
        let resolved_file = self.layout.resolved_file(stage - 1);
        remove_durably(&resolved_file)?;
        // No other work goes on in this process meanwhile; workers of the decision count.
        let clock = Clock::start_of_process();
        let decisions = match opening {
            Global::Holdout => {
                holdout::resolve(self.layout.output(), &self.config.name, self.holdout, &files)?
            }
            Global::Step { step, .. } => {
                let spill = super::stage::scratch_folder(&self.layout.work())?;
                let resources = Resources { memory_bytes, spill: spill.path().to_owned() };
                step.resolve(&files, &resources)?
            }
        };
        let mut seconds = 0.0;
        clock.stop(&mut seconds);
        let _ = self.decision_seconds[stage].set(seconds);
        let resolved = Resolved { key: self.decision_keys[stage].clone(), decisions };
        write_json(&resolved_file, &resolved).map(drop)
    }

    /// The error for work that another rank has not done.
    pub fn unfinished(&self, stage: usize, group: usize) -> DataError {
        DataError::bad_file(
            self.layout.stats_file(stage, group),
            format!(
                "stage {stage} of group {group} of source {:?} is not finished; run `altiplano data \
                 run` for every rank first",
                self.config.name
            ),
        )
    }
}

/// Says that something is not as it was written and what is done about it.
fn say_redo(error: &DataError, consequence: &str) {
    tracing::warn!("{}; {consequence}", error.without_remedy());
}

fn first_key(identity: &[u8], group: &Group) -> String {
    let mut inputs = Vec::new();
    for input in &group.inputs {
        inputs.extend_from_slice(&(input.name.len() as u64).to_le_bytes());
        inputs.extend_from_slice(input.name.as_bytes());
        inputs.extend_from_slice(&input.bytes.to_le_bytes());
        inputs.extend_from_slice(&input.modified_nanos.to_le_bytes());
    }
    inputs.extend_from_slice(&group.first_input.to_le_bytes());
    hash([identity, &inputs].into_iter())
}

fn hash<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex().to_string()
}
