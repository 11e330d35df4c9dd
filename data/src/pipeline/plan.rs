//! The work of a source: groups of input files times stages, each with a key.
//!
//! A key is a hash of everything the result depends on: the steps' versions and options, the
//! files they read, and the inputs' names, sizes and times. Keys follow from the configuration
//! and the list of inputs alone, so every rank computes the same ones.

use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::batch::Clock;
use super::chain::{Chain, Global};
use super::holdout::{self, HoldoutConfig};
use super::layout::Layout;
use super::source_config::SourceConfig;
use super::stage::StageRecord;
use super::write_json;
use crate::atomic_file::scratch_folder;
use crate::dedup::{GroupFiles, Resources};
use crate::document::Split;
use crate::error::{DataError, Result};
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
}

/// Written when a decision is made.
#[derive(Serialize, Deserialize)]
struct Resolved {
    key: String,
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
        })
    }

    pub fn key(&self, stage: usize, group: usize) -> &str {
        &self.keys[stage][group]
    }

    pub fn last_stage(&self) -> usize {
        self.chain.stages.len() - 1
    }

    /// The record of an earlier run, if it did the same work and its files are still there.
    pub fn finished(&self, stage: usize, group: usize) -> Option<StageRecord> {
        let bytes = std::fs::read(self.layout.stats_file(stage, group)).ok()?;
        let record: StageRecord = serde_json::from_slice(&bytes).ok()?;
        let whole = |path: &Path, size: u64| {
            std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == size)
        };
        let files_are_whole = Split::ALL.iter().all(|&split| {
            let path = self.layout.document_file(split, group);
            record.outputs.of(split).is_none_or(|file| whole(&path, file.file_bytes))
        }) && record.stage_file.as_ref().is_none_or(|file| {
            whole(&self.layout.stage_file(stage, group), file.file_bytes)
                && self.layout.global_files(stage, group).notes.exists()
        });
        (record.key == self.key(stage, group) && files_are_whole).then_some(record)
    }

    /// Whether the decision before `stage` is made.
    pub fn is_resolved(&self, stage: usize) -> bool {
        if stage == 0 {
            return true;
        }
        std::fs::read(self.layout.resolved_file(stage - 1))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Resolved>(&bytes).ok())
            .is_some_and(|resolved| resolved.key == self.decision_keys[stage])
            && self
                .groups
                .iter()
                .all(|group| self.layout.global_files(stage - 1, group.number).decisions.exists())
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
        let files: Vec<GroupFiles> = self
            .groups
            .iter()
            .map(|group| self.layout.global_files(stage - 1, group.number))
            .collect();
        // No other work goes on in this process meanwhile; workers of the decision count.
        let clock = Clock::start_of_process();
        match opening {
            Global::Holdout => {
                holdout::resolve(self.layout.output(), &self.config.name, self.holdout, &files)?
            }
            Global::Step { step, .. } => {
                let spill = scratch_folder(&self.layout.work())?;
                let resources = Resources { memory_bytes, spill: spill.path().to_owned() };
                step.resolve(&files, &resources)?;
            }
        }
        let mut seconds = 0.0;
        clock.stop(&mut seconds);
        let _ = self.decision_seconds[stage].set(seconds);
        let resolved = Resolved { key: self.decision_keys[stage].clone() };
        write_json(&self.layout.resolved_file(stage - 1), &resolved)
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
