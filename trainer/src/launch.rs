//! How the ranks of a run start and end: as processes of a launcher, or as threads.
//!
//! A launcher such as `mpirun` starts a process for each rank; without one, `--ranks` makes ranks of
//! threads. A layout that does not fit them is an error before anything is opened.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use altiplano_comm::mpi::Launcher;
use altiplano_comm::{CommError, Options, RankGrid, World};
use altiplano_data::terminal::write_last_line;

use crate::config::TrainConfig;
use crate::error::{Result, TrainerError};
use crate::world::Ranks;

/// With more cores than this, one of a rank's is left to the thread that communicates.
const CORES_WITHOUT_SPARE: usize = 8;

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
    let exchanges = ranks > 1 || parallel.shard.splits_gradients();
    if exchanges && config.device != "cpu" {
        return wrong(format!(
            "device: found {:?} with {ranks} ranks and parallel.shard {}; expected cpu: several ranks, and \
             what copies split on one, compute on CPUs",
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
        link_bytes_per_second: config.parallel.link_bytes_per_second.map(|rate| rate as f64),
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
        // Every rank takes part in the exchange, also one that is told its threads.
        let threads = threads_of_a_rank(&ranks)?;
        compute_threads(Some(config.threads.unwrap_or(threads)))?;
        Ok(ranks)
    })?;
    let ended = body(&started);
    match ended {
        Ok(result) => {
            started.finish()?;
            Ok(Launched { result, is_first })
        }
        Err(error) if error.is_agreed() => {
            started.finish()?;
            Err(error)
        }
        Err(error) => {
            let rank = started.name_of(started.world().rank());
            *LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
            Err(TrainerError::AtRank { rank, source: Box::new(error) })
        }
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
                Ok(_) => ranks.finish()?,
                Err(error) if error.is_agreed() => ranks.finish()?,
                Err(_) => ranks.world().abort(1),
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

/// The last thing a process does that ends with an error, which it `said` or another rank says. Among the
/// processes of a launcher: sees to it that the words are heard, and ends the ranks that do not know
/// of it. Ends the process within a few seconds or returns.
pub fn end_launch(status: i32, said: bool) {
    /// Launchers end all ranks when the first has ended with an error, so that one has to be the one that
    /// says why.
    const UNTIL_SAID: Duration = Duration::from_secs(3);
    if launcher().is_ok_and(|launcher| launcher.is_some()) {
        match said {
            true => wait_until_read(libc::STDERR_FILENO),
            false => std::thread::sleep(UNTIL_SAID),
        }
    }
    let left = LEFT_BEHIND.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(ranks) = left {
        ranks.world().abort(status);
        // The library ends the process meanwhile.
        std::thread::sleep(Duration::from_secs(5));
    }
}

/// Waits until the launcher has read what this process wrote to the pipe or terminal `fd`, for two
/// seconds at most: Open MPI drops what is unread when it ends the ranks.
fn wait_until_read(fd: libc::c_int) {
    const MOST: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(10);
    /// The launcher prints what it has read in a thread or process of its own.
    const UNTIL_PRINTED: Duration = Duration::from_millis(200);
    let began = Instant::now();
    // SAFETY: the call looks at the descriptor and has no other effect.
    let is_terminal = unsafe { libc::isatty(fd) } == 1;
    // What has not left a terminal, or is unread of a pipe.
    let request = if is_terminal { libc::TIOCOUTQ } else { libc::FIONREAD };
    let unread = || {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes one `int`; a descriptor that does not know it leaves it as it is.
        unsafe { libc::ioctl(fd, request, &raw mut bytes) };
        bytes > 0
    };
    while unread() && began.elapsed() < MOST {
        std::thread::sleep(PAUSE);
    }
    std::thread::sleep(UNTIL_PRINTED);
}

/// Threads that compute in a rank: the cores it may use, shared with the ranks that may use the same,
/// less one for communication where there are many.
fn threads_of_a_rank(ranks: &Ranks) -> Result<usize> {
    let world = ranks.world();
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let mask = affinity();
    let all = ranks.gather("the cores of the ranks", &mask)?;
    let (me, hosts) = (world.rank(), world.hosts());
    let sharing = all
        .chunks_exact(mask.len())
        .zip(hosts)
        .filter(|(other, host)| **other == mask && **host == hosts[me])
        .count();
    let cores = online_cores();
    let on_host = world.ranks_on_host();
    let reached = if sharing > 1 { allowed } else { allowed * on_host };
    if ranks.is_first() && reached < cores {
        tracing::warn!(
            "{on_host} ranks of this host use {reached} of its {cores} cores: the launcher binds them; \
             start with --bind-to none (Open MPI), -bind-to none (MPICH) or --cpus-per-task (srun)"
        );
    }
    let threads = (allowed / sharing.max(1)).max(1);
    Ok(if threads > CORES_WITHOUT_SPARE { threads - 1 } else { threads })
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
