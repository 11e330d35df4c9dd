//! The start and the end of a run on several ranks.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::bell::{Bell, lock};
use crate::engine::{Engine, Introduction, Members, Setup, Started};
use crate::error::{CommError, Result};
use crate::group::Group;
use crate::local::Seat;
use crate::mpi::{self, Launcher};
use crate::transport::WORLD;

/// Takes the lines of an operation that is late.
pub type Report = Arc<dyn Fn(&str) + Send + Sync>;

/// How ranks come together.
#[derive(Clone)]
pub struct Options {
    /// The MPI library; without it, it is searched for.
    pub library: Option<PathBuf>,
    /// How long a rank that does not answer is waited for before the run ends.
    pub timeout: Duration,
    /// Whether ranks compare what they call before every operation. Threads of one process always
    /// do.
    pub compare_calls: bool,
    /// Gets a line each minute while an operation is late.
    pub report: Report,
    /// Of ranks that are threads: bytes per second at which a rank's messages leave, to see what a
    /// slow network does.
    pub link_bytes_per_second: Option<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            library: None,
            timeout: Duration::from_secs(300),
            compare_calls: cfg!(debug_assertions),
            report: Arc::new(|_| ()),
            link_bytes_per_second: None,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("library", &self.library)
            .field("timeout", &self.timeout)
            .field("compare_calls", &self.compare_calls)
            .field("link_bytes_per_second", &self.link_bytes_per_second)
            .finish_non_exhaustive()
    }
}

/// All ranks of a run, seen from one of them.
///
/// [`finish`](Self::finish) ends it together with the others. Dropping it otherwise leaves at once:
/// the other ranks, or their launcher, notice.
pub struct World {
    engine: Option<Arc<Engine>>,
    everybody: Group,
    hosts: Vec<String>,
    description: String,
    on_host: (usize, usize),
    /// Groups made so far.
    splits: AtomicU64,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranks = (self.rank(), self.ranks());
        f.debug_struct("World")
            .field("rank", &ranks)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

impl World {
    /// A process alone: no thread is started and no library opened.
    pub fn single() -> Self {
        Self {
            engine: None,
            everybody: Group::new(None, members("world", WORLD, vec![0], 0)),
            hosts: vec![host_name()],
            description: "one process".into(),
            on_host: (0, 1),
            splits: AtomicU64::new(0),
        }
    }

    /// The ranks that a launcher started; [`single`](Self::single) without a launcher.
    ///
    /// # Errors
    /// The launcher's variables are odd; no library; a library of another launcher; a rank that does
    /// not start in time.
    pub fn start(options: &Options) -> Result<Self> {
        match Launcher::from_environment(|name| std::env::var(name).ok())? {
            Some(launcher) if launcher.ranks > 1 => Self::start_mpi(&launcher, options),
            _ => Ok(Self::single()),
        }
    }

    fn start_mpi(launcher: &Launcher, options: &Options) -> Result<Self> {
        let library = match &options.library {
            Some(path) => path.display().to_string(),
            None => "the MPI library".into(),
        };
        let (started_by, path) = (launcher.clone(), options.library.clone());
        let start = move || mpi::start(&started_by, path.as_deref());
        let (engine, introduction) = Engine::new(setup(options, Arc::default()), &library, start)?;
        Self::meet(engine, introduction)
    }

    /// Ranks that are to be threads of this process, one [`World`] for each.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn threads(ranks: usize, options: &Options) -> Result<Vec<Self>> {
        let bells: Vec<Arc<Bell>> = (0..ranks).map(|_| Arc::default()).collect();
        let mut engines = Vec::with_capacity(ranks);
        let seats = Seat::all(&bells, options.link_bytes_per_second);
        for (rank, (seat, bell)) in seats.into_iter().zip(bells).enumerate() {
            let started = move || {
                Ok(Started {
                    transport: Box::new(seat.take()),
                    rank,
                    ranks,
                    description: "threads of one process".into(),
                    on_host: (rank, ranks),
                })
            };
            engines.push(Engine::new(setup(options, bell), "threads", started)?);
        }
        // They are on one host, and this thread is alone: no exchange is needed to know.
        let worlds = engines.into_iter().map(|(engine, introduction)| {
            Self::new(engine, introduction, vec![host_name(); ranks])
        });
        Ok(worlds.collect())
    }

    /// Runs `rank` on as many threads, each with its [`World`], and gives their results in the order
    /// of the ranks.
    ///
    /// # Errors
    /// The system refuses a thread.
    ///
    /// # Panics
    /// When a rank does, after all have ended.
    pub fn run_threads<T: Send>(
        ranks: usize,
        options: &Options,
        rank: impl Fn(Self) -> T + Sync,
    ) -> Result<Vec<T>> {
        let worlds = Self::threads(ranks, options)?;
        let rank = &rank;
        let ended = std::thread::scope(|scope| {
            let threads: Vec<_> =
                worlds.into_iter().map(|world| scope.spawn(move || rank(world))).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        let results = ended.into_iter().map(|ended| match ended {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        Ok(results.collect())
    }

    fn meet(engine: Engine, introduction: Introduction) -> Result<Self> {
        let world = Self::new(engine, introduction, Vec::new());
        let hosts = world.everybody.gather_bytes(host_name().as_bytes())?;
        let hosts: Vec<String> =
            hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        if let Some(engine) = &world.engine {
            // Set once, here.
            drop(engine.shared.hosts.set(hosts.clone()));
        }
        Ok(Self { hosts, ..world })
    }

    fn new(engine: Engine, (description, on_host): Introduction, hosts: Vec<String>) -> Self {
        let (rank, ranks) = (engine.shared.rank, engine.shared.ranks);
        if !hosts.is_empty() {
            drop(engine.shared.hosts.set(hosts.clone()));
        }
        let engine = Some(Arc::new(engine));
        let members = members("world", WORLD, (0..ranks).collect(), rank);
        Self {
            everybody: Group::new(engine.clone(), members),
            engine,
            hosts,
            description,
            on_host,
            splits: AtomicU64::new(0),
        }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.everybody.rank()
    }

    /// All ranks.
    pub fn ranks(&self) -> usize {
        self.everybody.ranks()
    }

    /// Name of every rank's host.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// How many hosts the ranks are on, by name.
    pub fn host_count(&self) -> usize {
        let names: std::collections::HashSet<&String> = self.hosts.iter().collect();
        names.len()
    }

    /// Place of this rank among those that share its host's memory.
    pub fn rank_on_host(&self) -> usize {
        self.on_host.0
    }

    /// Ranks that share this host's memory.
    pub fn ranks_on_host(&self) -> usize {
        self.on_host.1
    }

    /// What moves the bytes: `Open MPI v4.1.4 (libmpi.so.40)`.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// `rank 3 (host b)`, as messages name a rank.
    pub fn name_of(&self, rank: usize) -> String {
        let host = self.hosts.get(rank).cloned().unwrap_or_default();
        crate::error::Peer { rank, host }.to_string()
    }

    /// The group of all ranks.
    pub fn everybody(&self) -> &Group {
        &self.everybody
    }

    /// Makes a group of the world ranks `members`, which include this one. All ranks of the world
    /// call this in the same order, each with the group it belongs to; groups of one call do not
    /// overlap.
    ///
    /// # Errors
    /// This rank is not among them, or as [`Pending::wait`](crate::Pending::wait).
    pub fn split(&self, name: &str, mut ranks: Vec<usize>) -> Result<Group> {
        ranks.sort_unstable();
        ranks.dedup();
        let number = self.splits.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(me) = ranks.iter().position(|rank| *rank == self.rank()) else {
            return Err(CommError::Argument {
                operation: "the making",
                group: name.to_string(),
                reason: format!("rank {} is not among its members {ranks:?}", self.rank()),
            });
        };
        let color = ranks[0];
        let channel = number << 32 | color as u64;
        if let Some(engine) = &self.engine {
            // Whoever is missing is named here; within the library the wait would have no end.
            self.everybody.of(format!("the {name} groups")).barrier()?;
            engine.split(channel, color)?;
        }
        Ok(Group::new(self.engine.clone(), members(name, channel, ranks, me)))
    }

    /// What the program is at, for messages: `step 120`.
    pub fn set_during(&self, what: impl Into<String>) {
        if let Some(engine) = &self.engine {
            *lock(&engine.shared.during) = what.into();
        }
    }

    /// How long a rank that does not answer is waited for from now on.
    pub fn set_timeout(&self, timeout: Duration) {
        if let Some(engine) = &self.engine {
            engine.set_timeout(timeout);
        }
    }

    /// How long the program has waited for communication so far.
    pub fn waited(&self) -> Duration {
        let nanoseconds =
            self.engine.as_ref().map_or(0, |engine| engine.shared.waited.load(Ordering::Relaxed));
        Duration::from_nanos(nanoseconds)
    }

    /// Ends the run together with all other ranks.
    ///
    /// # Errors
    /// As [`Pending::wait`](crate::Pending::wait).
    pub fn finish(self) -> Result<()> {
        let Some(engine) = &self.engine else { return Ok(()) };
        self.everybody.of("the end of the run").barrier()?;
        engine.finish()
    }

    /// Ends all ranks of the run with this exit status, where the launcher can. The process ends
    /// here within five seconds or goes on; then it exits by itself.
    pub fn abort(&self, status: i32) {
        if let Some(engine) = &self.engine {
            engine.abort(status);
        }
    }
}

fn setup(options: &Options, bell: Arc<Bell>) -> Setup {
    let report = Arc::clone(&options.report);
    Setup {
        bell,
        timeout: options.timeout,
        compares: options.compare_calls,
        report: Box::new(move |line| report(line)),
    }
}

fn members(name: &str, channel: u64, ranks: Vec<usize>, me: usize) -> Members {
    Members {
        name: name.to_string(),
        channel,
        ranks,
        me,
        operations: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        messages: Mutex::new(HashMap::new()),
    }
}

/// Name of this machine; empty where the system does not say.
fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer is as long as stated; its last byte stays 0.
    let status = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    let length = name.iter().position(|byte| *byte == 0).unwrap_or(0);
    match status {
        0 => String::from_utf8_lossy(&name[..length]).into_owned(),
        _ => String::new(),
    }
}
