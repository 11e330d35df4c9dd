//! The ranks of a run, seen from one: how they meet, agree and end.
//!
//! Whatever all ranks must decide alike they decide from what all have exchanged: the end of
//! a run by a signal that only one of them got, a save that failed on one, a file that differs.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use altiplano_comm::{Group, RankGrid, Rows, World};
use altiplano_data::Share;
use altiplano_model::device;
use altiplano_model::parallel::{TensorGroup, TensorRank};
use serde_json::Value;

use crate::config::{ParallelConfig, TrainConfig, collect_differences};
use crate::error::{Result, TrainerError};
use crate::signals::{self, Signal};

/// How much longer ranks wait for each other around the first step, validations, samples and saves.
const PATIENCE: u32 = 5;

/// The ranks of a run, seen from one of them.
#[derive(Debug)]
pub struct Ranks {
    world: World,
    data: Group,
    tensor: Group,
    kv: Group,
    place: TensorRank,
    grid: RankGrid,
    /// How the run is spread over them.
    parallel: ParallelConfig,
}

impl Ranks {
    /// A process alone: nothing below costs anything.
    pub fn single() -> Arc<Self> {
        let world = World::single();
        Arc::new(Self {
            data: world.everybody().clone(),
            tensor: world.everybody().clone(),
            kv: world.everybody().clone(),
            place: TensorRank::ONLY,
            grid: RankGrid::single(),
            parallel: ParallelConfig::default(),
            world,
        })
    }

    /// The ranks of `world` in the layout of `config`, which fits.
    ///
    /// # Errors
    /// Settings, programs or processors differ between them, or they cannot meet.
    pub(crate) fn meet(world: World, config: &TrainConfig) -> Result<Arc<Self>> {
        let parallel = &config.parallel;
        let grid = RankGrid::new(parallel.tensor, parallel.data, world.ranks())?;
        let rank = world.rank();
        let data = world.split("data", grid.data_group(rank))?;
        let tensor = world.split("tensor", grid.tensor_group(rank))?;
        let kv = world.split("kv", grid.kv_group(rank, config.model.kv_heads()))?;
        let ranks = Self {
            data,
            tensor,
            kv,
            place: TensorRank::new(grid.tensor_rank(rank), grid.tensor(), &config.model)?,
            grid,
            parallel: parallel.clone(),
            world,
        };
        ranks.agree_on_settings(config)?;
        Ok(Arc::new(ranks))
    }

    /// Whether there is one rank only.
    pub fn is_alone(&self) -> bool {
        self.world.ranks() == 1
    }

    /// Whether this rank is the one that prints, logs and writes.
    pub fn is_first(&self) -> bool {
        self.world.rank() == 0
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.world.rank()
    }

    /// All ranks.
    pub fn count(&self) -> usize {
        self.world.ranks()
    }

    /// How they are arranged.
    pub fn grid(&self) -> RankGrid {
        self.grid
    }

    /// The ranks with the same part of the model, which exchange gradients and weights.
    pub fn data_group(&self) -> &Group {
        &self.data
    }

    /// The ranks that hold a part of every matrix of the same copy, which exchange activations.
    pub fn tensor_group(&self) -> TensorGroup {
        let ParallelConfig { sequence, overlap, .. } = self.parallel;
        TensorGroup::new(self.tensor.of("activations"), sequence, overlap)
    }

    /// The same, for what is no tensor.
    pub fn tensor_ranks(&self) -> &Group {
        &self.tensor
    }

    /// The ranks of a copy that hold the same head of keys and values.
    pub fn kv_group(&self) -> &Group {
        &self.kv
    }

    /// Which part of every matrix this rank holds.
    pub fn place(&self) -> TensorRank {
        self.place
    }

    /// Which batches this rank reads.
    pub fn share(&self) -> Share {
        Share { index: self.grid.data_rank(self.world.rank()), of: self.grid.data() }
    }

    /// The name of a rank in messages: `rank 3 (host b)`.
    pub fn name_of(&self, rank: usize) -> String {
        self.world.name_of(rank)
    }

    /// Seconds that this rank has waited for others so far.
    pub fn waited_seconds(&self) -> f64 {
        self.world.waited().as_secs_f64()
    }

    /// Says what the ranks are at, for messages, and whether some of them may take longer for it than
    /// for a step.
    pub fn set_during(&self, what: impl Display, takes_long: bool) {
        if self.is_alone() {
            return;
        }
        self.world.set_during(what.to_string());
        let timeout = Duration::from_secs(self.parallel.timeout);
        self.world.set_timeout(if takes_long { timeout * PATIENCE } else { timeout });
    }

    /// Every rank's numbers, in the order of the ranks; all have as many.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub fn gather(&self, what: &str, own: &[u64]) -> Result<Vec<u64>> {
        if self.is_alone() {
            return Ok(own.to_vec());
        }
        let group = self.world.everybody().of(what);
        let rows = Rows { count: group.ranks(), width: own.len() };
        let mut whole = vec![0u64; rows.count * rows.width];
        whole[rows.part(group.rank(), group.ranks())].copy_from_slice(own);
        Ok(group.start_all_gather::<u64, _>(whole, rows)?.wait()?)
    }

    /// Every rank's text, in the order of the ranks.
    ///
    /// # Errors
    /// As [`Ranks::gather`].
    pub fn gather_texts(&self, what: &str, own: &str) -> Result<Vec<String>> {
        let texts = self.world.everybody().of(what).gather_bytes(own.as_bytes())?;
        Ok(texts.into_iter().map(|text| String::from_utf8_lossy(&text).into_owned()).collect())
    }

    /// What the first rank finds, on all ranks; the others do not look. `what` is for messages.
    ///
    /// # Errors
    /// What the first rank fails with.
    pub fn first_finds(&self, what: &str, find: impl FnOnce() -> Result<String>) -> Result<String> {
        if self.is_alone() {
            return find();
        }
        let found = if self.is_first() { find() } else { Ok(String::new()) };
        let found = self.agree(what, found)?;
        let mut all = self.gather_texts(what, &found)?;
        Ok(if all.is_empty() { found } else { all.swap_remove(0) })
    }

    /// Goes on only if `result` is good on every rank. Otherwise all ranks fail alike, and the first
    /// one says why, with the name of the rank that failed unless all did.
    ///
    /// # Errors
    /// That of the first rank that failed.
    pub fn agree<T>(&self, what: &str, result: Result<T>) -> Result<T> {
        if self.is_alone() {
            return result;
        }
        let told = result.as_ref().err().map_or(String::new(), |error| {
            let status = if error.is_usage() { "2" } else { "1" };
            status.to_owned() + &error.with_causes()
        });
        // An exchange that failed has nobody to agree with.
        if let Err(error) = &result
            && error.is_from_exchange()
        {
            return result;
        }
        let all = self.gather_texts(what, &told)?;
        let Some(failed) = all.iter().position(|told| !told.is_empty()) else { return result };
        let (status, message) = all[failed].split_at(1);
        let everywhere = all.iter().all(|told| *told == all[failed]);
        let error = match result {
            Err(error) if self.world.rank() == failed && everywhere => error,
            Err(error) if self.world.rank() == failed => {
                TrainerError::AtRank { rank: self.name_of(failed), source: Box::new(error) }
            }
            _ => TrainerError::OnRank {
                rank: self.name_of(failed),
                message: message.to_owned(),
                usage: status == "2",
            },
        };
        Err(self.agreed(error))
    }

    /// Holds a fact that all ranks must find alike against what the others find.
    ///
    /// # Errors
    /// Two ranks differ; both are named with what they found.
    pub fn agree_on(&self, what: &str, found: &str) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let all = self.gather_texts(what, found)?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(other) => self.differ(format!(
                "{what} differs between ranks: {} on {}, {} on {}",
                all[0],
                self.name_of(0),
                all[other],
                self.name_of(other)
            )),
        }
    }

    fn differ(&self, message: String) -> Result<()> {
        Err(self.agreed(TrainerError::Usage { message }))
    }

    /// An error that all ranks have found in what they exchanged: the first says it.
    pub fn agreed(&self, error: TrainerError) -> TrainerError {
        match (self.is_alone(), self.is_first()) {
            (true, _) => error,
            (_, true) => TrainerError::Agreed(Box::new(error)),
            (_, false) => TrainerError::SaidByRankZero(Box::new(error)),
        }
    }

    /// ` on rank 3 (host b)`; nothing where there is one rank.
    pub fn suffix(&self, rank: usize) -> String {
        if self.is_alone() { String::new() } else { format!(" on {}", self.name_of(rank)) }
    }

    /// Holds the hashes of named things that ranks have in common against each other: those of every rank
    /// against those of the rank that `holder` names for it.
    ///
    /// # Errors
    /// Two ranks differ; both are named with the first thing in which they do.
    pub fn compare(
        &self,
        what: &str,
        hashes: &[(String, [u8; 32])],
        holder: impl Fn(usize) -> usize,
    ) -> Result<()> {
        let mut together = blake3::Hasher::new();
        for (name, hash) in hashes {
            together.update(name.as_bytes()).update(hash);
        }
        let together = together.finalize().to_hex();
        let all = self.gather_texts(what, &together)?;
        let differs = |rank: &usize| all[*rank] != all[holder(*rank)];
        let Some(other) = (0..all.len()).find(differs) else { return Ok(()) };
        let first = holder(other);
        let lines: Vec<String> = hashes
            .iter()
            .map(|(name, hash)| format!("{name} {}", blake3::Hash::from(*hash)))
            .collect();
        let all = self.gather_texts(what, &lines.join("\n"))?;
        let mut pairs = all[first].lines().zip(all[other].lines());
        let line = pairs.find(|(left, right)| left != right).map_or("", |(left, _)| left);
        let name = line.rsplit_once(' ').map_or(line, |(name, _)| name);
        self.differ(format!(
            "{what} are not equal any more: {} and {} differ in {name}; resume from the newest checkpoint \
             written before, and have the memory of both hosts checked",
            self.name_of(first),
            self.name_of(other)
        ))
    }

    fn agree_on_settings(&self, config: &TrainConfig) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        self.set_during("the start", true);
        self.agree_on("the version of altiplano", env!("CARGO_PKG_VERSION"))?;
        let own = comparable(config);
        let all = self.gather_texts("the configuration", &own.to_string())?;
        let first: Value = serde_json::from_str(&all[0]).unwrap_or_default();
        for (rank, other) in all.iter().enumerate().skip(1) {
            let other: Value = serde_json::from_str(other).unwrap_or_default();
            if let Some(change) = collect_differences(&first, &other).first() {
                return self.differ(format!(
                    "the configuration differs between ranks: {} is {} on {}, {} on {}",
                    change.key,
                    change.from,
                    self.name_of(0),
                    change.to,
                    self.name_of(rank)
                ));
            }
        }
        if config.device == "cpu" {
            // Norm gains are updated on every rank, and other instructions round differently.
            self.agree_on("the instructions of the CPU", device::cpu_instructions())?;
        }
        Ok(())
    }

    /// The signal that asks the run to end, if one has come to any rank: all ranks get the same answer
    /// and the end is after the same step.
    ///
    /// # Errors
    /// As [`Ranks::gather`].
    pub fn signal(&self) -> Result<Option<Signal>> {
        let own = signals::pending().map_or(0, Signal::number);
        let all = self.gather("signals", &[u64::from(own)])?;
        Ok(first_signal(all.into_iter()))
    }

    /// Ends together with the other ranks.
    ///
    /// # Errors
    /// As [`Ranks::gather`].
    pub(crate) fn finish(self: Arc<Self>) -> Result<()> {
        self.set_during("the end", true);
        match Arc::into_inner(self) {
            Some(Self { world, data, tensor, kv, .. }) => {
                drop((data, tensor, kv));
                Ok(world.finish()?)
            }
            None => Ok(()),
        }
    }

    /// The ranks as they exchange.
    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// One line about the layout: `8 ranks: tensor 2 x data 4, …`.
    pub fn summary(&self) -> Option<String> {
        if self.is_alone() {
            return None;
        }
        let hosts = self.world.host_count();
        let threads = rayon::current_num_threads();
        Some(format!(
            "{} ranks: tensor {} x data {}, {}shard {}; {hosts} {}; {}; {threads} {} a rank",
            self.count(),
            self.grid.tensor(),
            self.grid.data(),
            if self.grid.tensor() > 1 && self.parallel.sequence { "sequence, " } else { "" },
            self.parallel.shard,
            if hosts == 1 { "host" } else { "hosts" },
            self.world.description(),
            if threads == 1 { "thread" } else { "threads" },
        ))
    }
}

/// The first signal among the numbers that ranks tell; 0 stands for none.
pub(crate) fn first_signal(mut numbers: impl Iterator<Item = u64>) -> Option<Signal> {
    let number = numbers.find(|number| *number > 0)?;
    i32::try_from(number).ok().map(Signal::from_number)
}

/// The settings that all ranks must have in common: all but paths, which hosts may have in different
/// places, and what decides speed alone.
fn comparable(config: &TrainConfig) -> Value {
    let mut config = config.clone();
    config.output.clear();
    config.tokenizer = config.tokenizer.map(|_| Default::default());
    config.init_from = config.init_from.map(|_| Default::default());
    config.threads = None;
    config.readers = 1;
    config.parallel.library = None;
    for source in &mut config.data.sources {
        source.path.clear();
    }
    // A configuration is plain data: it always has a JSON form.
    serde_json::to_value(config).unwrap_or_default()
}
