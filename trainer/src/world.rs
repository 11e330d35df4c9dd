//! The ranks of a run, seen from one: how they start, agree and end.
//!
//! A launcher such as `mpirun` starts a process for each rank; without one, `--ranks` makes ranks of
//! threads. Whatever all ranks must decide alike they decide from what all have exchanged: the end of
//! a run by a signal that only one of them got, a save that failed on one, a file that differs.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use altiplano_comm::mpi::Launcher;
use altiplano_comm::{CommError, Group, Options, RankGrid, Rows, World};
use altiplano_data::Share;
use altiplano_data::terminal::write_last_line;
use altiplano_model::device;
use serde_json::Value;

use crate::config::{Shard, TrainConfig, collect_differences};
use crate::error::{Result, TrainerError};
use crate::signals::{self, Signal};

/// How much longer ranks wait for each other around the first step, validations, samples and saves.
const PATIENCE: u32 = 5;
/// With more cores than this, one of a rank's is left to the thread that communicates.
const CORES_WITHOUT_SPARE: usize = 8;

/// The ranks of a run, seen from one of them.
#[derive(Debug)]
pub struct Ranks {
    world: World,
    data: Group,
    grid: RankGrid,
    timeout: Duration,
    sequence: bool,
    shard: Shard,
}

impl Ranks {
    /// A process alone: nothing below costs anything.
    pub fn single() -> Arc<Self> {
        let world = World::single();
        Arc::new(Self {
            data: world.everybody().clone(),
            grid: RankGrid::single(),
            world,
            timeout: Duration::from_secs(300),
            sequence: true,
            shard: Shard::Optimizer,
        })
    }

    /// The ranks of `world` in the layout of `config`, which fits.
    ///
    /// # Errors
    /// Settings, programs or processors differ between them, or they cannot meet.
    fn meet(world: World, config: &TrainConfig) -> Result<Arc<Self>> {
        let parallel = &config.parallel;
        let grid = RankGrid::new(parallel.tensor, parallel.data, world.ranks())?;
        let data = world.split("data", grid.data_group(world.rank()))?;
        let ranks = Self {
            data,
            grid,
            timeout: Duration::from_secs(parallel.timeout),
            sequence: parallel.sequence,
            shard: parallel.shard,
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
    pub fn set_during(&self, what: impl Into<String>, takes_long: bool) {
        if self.is_alone() {
            return;
        }
        self.world.set_during(what);
        let timeout = self.timeout;
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

    /// Holds the hashes of named things that all ranks have in common against those of the others.
    ///
    /// # Errors
    /// Two ranks differ; both are named with the first thing in which they do.
    pub fn compare(&self, what: &str, hashes: &[(String, blake3::Hash)]) -> Result<()> {
        let mut together = blake3::Hasher::new();
        for (name, hash) in hashes {
            together.update(name.as_bytes()).update(hash.as_bytes());
        }
        let together = together.finalize().to_hex();
        let all = self.gather_texts(what, &together)?;
        let Some(other) = all.iter().position(|other| *other != all[0]) else { return Ok(()) };
        let lines: Vec<String> =
            hashes.iter().map(|(name, hash)| format!("{name} {}", hash.to_hex())).collect();
        let all = self.gather_texts(what, &lines.join("\n"))?;
        let mut pairs = all[0].lines().zip(all[other].lines());
        let first = pairs.find(|(left, right)| left != right).map_or("", |(left, _)| left);
        let name = first.rsplit_once(' ').map_or(first, |(name, _)| name);
        self.differ(format!(
            "{what} are not equal any more: {} and {} differ in {name}; resume from the newest checkpoint \
             written before, and have the memory of both hosts checked",
            self.name_of(0),
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
        for (rank, other) in all.iter().enumerate() {
            let first: Value = serde_json::from_str(&all[0]).unwrap_or_default();
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
            if self.grid.tensor() > 1 && self.sequence { "sequence, " } else { "" },
            self.shard,
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

/// How a run on ranks ended in this process.
#[derive(Debug)]
pub struct Launched<T> {
    /// What it gave, on the first rank of this process.
    pub result: T,
    /// Whether this process has the rank that prints.
    pub is_first: bool,
}

/// Runs `body` on every rank: of the launcher that started this process, or on `threads` ranks as
/// threads, or alone.
///
/// # Errors
/// The layout does not fit the ranks, they cannot meet, or what `body` fails with.
pub fn launch<T: Send>(
    config: &TrainConfig,
    threads: Option<usize>,
    body: impl Fn(&Arc<Ranks>) -> Result<T> + Sync,
) -> Result<Launched<T>> {
    let launcher = launcher()?;
    match launcher {
        Some(launcher) => {
            if let Some(threads) = threads {
                let ranks = launcher.ranks;
                let message = format!(
                    "--ranks {threads}: {launcher} started {ranks} ranks, and those are taken; leave \
                     --ranks out"
                );
                return Err(said_once(&launcher, TrainerError::Usage { message }));
            }
            check_layout(config, launcher.ranks, Some(&launcher))
                .map_err(|error| said_once(&launcher, error))?;
            on_processes(config, &launcher, body)
        }
        None => {
            let ranks = threads.unwrap_or(1);
            check_layout(config, ranks, None)?;
            match ranks {
                1 => {
                    compute_threads(config.threads)?;
                    let result = body(&Ranks::single())?;
                    Ok(Launched { result, is_first: true })
                }
                _ => on_threads(config, ranks, body),
            }
        }
    }
}

/// The launcher that started this process as one of several ranks.
///
/// # Errors
/// Its variables are odd.
pub fn launcher() -> Result<Option<Launcher>> {
    let found = Launcher::from_environment(|name| std::env::var(name).ok())?;
    Ok(found.filter(|launcher| launcher.ranks > 1))
}

/// An error that every process of a launch finds: the first says it.
pub fn said_once(launcher: &Launcher, error: TrainerError) -> TrainerError {
    match launcher.rank {
        0 => error,
        _ => TrainerError::SaidByRankZero(Box::new(error)),
    }
}

/// Whether the layout of `config` fits so many ranks.
fn check_layout(config: &TrainConfig, ranks: usize, launcher: Option<&Launcher>) -> Result<()> {
    let parallel = &config.parallel;
    let wrong = |message: String| Err(TrainerError::Usage { message });
    let product = parallel.tensor.saturating_mul(parallel.data.unwrap_or(1));
    if ranks == 1 && product > 1 {
        return wrong(format!(
            "parallel.data: parallel.tensor {} x parallel.data {} = {product} ranks, but this process \
             is alone; start it as `mpirun -n {product} altiplano train …`, with --ranks {product} for \
             ranks that are threads, or with parallel.tensor=1 parallel.data=1",
            parallel.tensor,
            parallel.data.unwrap_or(1),
        ));
    }
    let grid = RankGrid::new(parallel.tensor, parallel.data, ranks).map_err(|error| {
        match (error, launcher) {
            (CommError::Layout { key, message }, Some(launcher)) => CommError::Layout {
                key,
                message: format!("{message} ({launcher} started {ranks} ranks)"),
            },
            (error, _) => error,
        }
    })?;
    config
        .check_copies(grid.data())
        .map_err(|problem| TrainerError::Usage { message: problem.to_string() })?;
    if grid.tensor() > 1 {
        return wrong(format!(
            "parallel.tensor: found {}, expected 1: this version splits no matrices in training",
            grid.tensor()
        ));
    }
    let exchanges = ranks > 1 || parallel.shard == Shard::Gradients;
    if exchanges && config.device != "cpu" {
        return wrong(format!(
            "device: found {:?} with {ranks} ranks and parallel.shard {}; expected cpu: cpu and cuda run \
             on several ranks, cuda not in this version",
            config.device, parallel.shard
        ));
    }
    Ok(())
}

/// Starts the threads of every parallel computation of this process; as many as there are cores by
/// default.
///
/// # Errors
/// The system refuses a thread.
pub(crate) fn compute_threads(threads: Option<usize>) -> Result<()> {
    // 0 stands for all cores.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0));
    pool.build_global()
        .map_err(|source| TrainerError::Threads { purpose: "compute", source: source.into() })
}

fn options(config: &TrainConfig) -> Options {
    Options {
        library: config.parallel.library.clone(),
        timeout: Duration::from_secs(config.parallel.timeout),
        report: Arc::new(write_last_line),
        ..Options::default()
    }
}

fn on_processes<T>(
    config: &TrainConfig,
    launcher: &Launcher,
    body: impl Fn(&Arc<Ranks>) -> Result<T>,
) -> Result<Launched<T>> {
    let world = World::start(&options(config)).map_err(|error| match error.is_usage() {
        true => said_once(launcher, error.into()),
        false => error.into(),
    })?;
    let is_first = world.rank() == 0;
    let started = Ranks::meet(world, config).and_then(|ranks| {
        compute_threads(Some(config.threads.map_or_else(|| ranks.threads_of_a_rank(), Ok)?))?;
        Ok(ranks)
    })?;
    let ended = body(&started);
    match ended {
        Ok(result) => {
            finish(started)?;
            Ok(Launched { result, is_first })
        }
        Err(error) if error.is_agreed() => {
            finish(started)?;
            Err(error)
        }
        Err(error) => {
            let rank = started.name_of(started.world.rank());
            *LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
            Err(TrainerError::AtRank { rank, source: Box::new(error) })
        }
    }
}

/// Ends together with the other ranks.
fn finish(ranks: Arc<Ranks>) -> Result<()> {
    ranks.set_during("the end", true);
    match Arc::into_inner(ranks) {
        Some(Ranks { world, data, .. }) => {
            drop(data);
            Ok(world.finish()?)
        }
        None => Ok(()),
    }
}

fn on_threads<T: Send>(
    config: &TrainConfig,
    count: usize,
    body: impl Fn(&Arc<Ranks>) -> Result<T> + Sync,
) -> Result<Launched<T>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = config.threads.unwrap_or((cores / count).max(1));
    let rank = |world: World| -> Result<T> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|source| TrainerError::Threads {
            purpose: "compute",
            source: source.into(),
        })?;
        let name = world.name_of(world.rank());
        let ended = pool.install(|| {
            let ranks = Ranks::meet(world, config)?;
            let ended = body(&ranks);
            match &ended {
                Ok(_) => finish(ranks)?,
                Err(error) if error.is_agreed() => finish(ranks)?,
                Err(_) => ranks.world.abort(1),
            }
            ended
        });
        ended.map_err(|error| match error.is_agreed() {
            true => error,
            false => TrainerError::AtRank { rank: name, source: Box::new(error) },
        })
    };
    let ended = World::run_threads(count, &options(config), rank)?;
    let mut errors = Vec::new();
    let mut first = None;
    for (rank, ended) in ended.into_iter().enumerate() {
        match ended {
            Ok(result) if rank == 0 => first = Some(result),
            Ok(_) => {}
            Err(error) => errors.push(error),
        }
    }
    // What a rank failed with comes before what the others say of the rank that is gone.
    errors.sort_by_key(|error| (error.is_said_elsewhere(), error.is_from_exchange()));
    match (errors.into_iter().next(), first) {
        (Some(error), _) => Err(error),
        (None, Some(result)) => Ok(Launched { result, is_first: true }),
        (None, None) => Err(TrainerError::Usage { message: "no rank was started".into() }),
    }
}

/// The ranks of a launch that this process left with an error that the others do not know.
static LEFT_BEHIND: Mutex<Option<Arc<Ranks>>> = Mutex::new(None);

/// Ends all ranks of the launch that this process left with an error, if it did: the last thing a
/// process does, after it has said why. Ends the process within five seconds or returns.
pub fn end_launch(status: i32) {
    let left = LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(ranks) = left {
        ranks.world.abort(status);
    }
}

impl Ranks {
    /// Threads that compute in a rank: the cores it may use, shared with the ranks that may use the
    /// same, less one for communication where there are many.
    fn threads_of_a_rank(&self) -> Result<usize> {
        let allowed = std::thread::available_parallelism().map_or(1, usize::from);
        let mask = affinity();
        let all = self.gather("the cores of the ranks", &mask)?;
        let (me, hosts) = (self.world.rank(), self.world.hosts());
        let sharing = all
            .chunks_exact(mask.len())
            .zip(hosts)
            .filter(|(other, host)| **other == mask && **host == hosts[me])
            .count();
        let cores = online_cores();
        let on_host = self.world.ranks_on_host();
        let reached = if sharing > 1 { allowed } else { allowed * on_host };
        if self.is_first() && reached < cores {
            tracing::warn!(
                "{on_host} ranks of this host use {reached} of its {cores} cores: the launcher binds them; \
                 start with --bind-to none (Open MPI), -bind-to none (MPICH) or --cpus-per-task (srun)"
            );
        }
        let threads = (allowed / sharing.max(1)).max(1);
        Ok(if threads > CORES_WITHOUT_SPARE { threads - 1 } else { threads })
    }
}

/// The cores this process may use, as bits.
fn affinity() -> [u64; 16] {
    let mut mask = [0u64; 16];
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the call writes at most the bytes it is told of, which the array has; on failure the
        // array stays as it is.
        unsafe {
            libc::sched_getaffinity(0, size_of_val(&mask), mask.as_mut_ptr().cast());
        }
    }
    mask
}

/// Cores of this machine.
fn online_cores() -> usize {
    // SAFETY: the call reads a number and has no other effect.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(cores).unwrap_or(1)
}

/// The hash of the state of a checkpoint, for ranks to compare; empty where there is none.
pub(crate) fn checkpoint_mark(checkpoint: Option<&Path>) -> Result<String> {
    let Some(dir) = checkpoint else { return Ok(String::new()) };
    let path = dir.join("DONE");
    let mark = std::fs::read_to_string(&path).map_err(TrainerError::io(&path))?;
    Ok(mark.trim().chars().take(16).collect())
}
