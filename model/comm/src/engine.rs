//! The thread that does all communication of a rank, and its watch over time.
//!
//! It takes operations in the order in which the program gives them, starts each at once, and drives
//! all of them side by side: a large exchange of gradients does not stand before a small one of
//! activations. Only this thread calls the transport, so an MPI library needs no support of threads.
//!
//! An operation is late when the program *waits* for it, not while the program computes. A late one
//! is reported every [`REPORT_EVERY`] with the ranks whose messages are missing, and ends the run at
//! the timeout.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytemuck::Zeroable;

use crate::bell::{Bell, lock};
use crate::call::{Call, Operation};
use crate::collectives::Job;
use crate::error::{CommError, Mismatch, Peer, Result, list};
use crate::pieces::Wire;
use crate::transport::{Channel, Failure, Request, Transport};

/// Seconds after which a rank that is waited for is reported, and again.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Tags of collectives are below it, those of messages between two ranks from it on: MPI promises
/// that tags up to 2¹⁵ − 1 can be used.
pub(crate) const TAGS: u64 = 1 << 14;

/// How an operation ended, once it has.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    result: Mutex<Option<Result<()>>>,
    there: Condvar,
    /// When the program began to wait.
    waits_since: OnceLock<Instant>,
}

impl Ending {
    fn set(&self, result: Result<()>) {
        *lock(&self.result) = Some(result);
        self.there.notify_all();
    }

    /// Waits for the operation; how long is added to `waited`, in nanoseconds.
    pub fn wait(&self, waited: &AtomicU64) -> Result<()> {
        let mut result = lock(&self.result);
        if let Some(result) = &*result {
            return result.clone();
        }
        let start = *self.waits_since.get_or_init(Instant::now);
        loop {
            result = self.there.wait(result).unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Some(result) = &*result {
                let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                waited.fetch_add(nanoseconds, Ordering::Relaxed);
                return result.clone();
            }
        }
    }

    /// Whether it has ended.
    pub fn is_there(&self) -> bool {
        lock(&self.result).is_some()
    }
}

/// What all operations of one group have in common.
#[derive(Debug)]
pub(crate) struct Members {
    pub name: String,
    pub channel: Channel,
    /// World rank of each.
    pub ranks: Vec<usize>,
    /// Place of this rank among them.
    pub me: usize,
    /// Operations so far.
    pub operations: AtomicU64,
    /// Bytes sent so far.
    pub sent: AtomicU64,
    /// Messages to (true) and from (false) each member so far.
    pub messages: Mutex<HashMap<(bool, usize), u64>>,
}

impl Members {
    /// Number of the next message to or from a member.
    pub fn next_message(&self, sends: bool, member: usize) -> u64 {
        let mut messages = lock(&self.messages);
        let count = messages.entry((sends, member)).or_default();
        let number = *count;
        *count += 1;
        number
    }
}

/// An operation for the engine.
pub(crate) struct Submission {
    pub job: Box<dyn Job>,
    pub call: Call,
    pub tag: u32,
    pub members: Arc<Members>,
    /// What the buffers are, for messages; may be empty.
    pub of: Arc<str>,
    pub ending: Arc<Ending>,
}

enum Command {
    Run(Submission, String),
    Split {
        channel: Channel,
        color: usize,
        ending: Arc<Ending>,
    },
    Finish(Arc<Ending>),
    Abort(i32),
    /// The program has left without an end: the transport is not asked for one.
    Leave,
}

/// What the engine and the program both see.
pub(crate) struct Shared {
    pub rank: usize,
    pub ranks: usize,
    /// Name of every rank's host, once they know each other's.
    pub hosts: OnceLock<Vec<String>>,
    /// Nanoseconds that the program has waited.
    pub waited: AtomicU64,
    /// What the program is at, such as `step 120`.
    pub during: Mutex<String>,
    timeout: Mutex<Duration>,
    report: Box<dyn Fn(&str) + Send + Sync>,
    compares: bool,
}

impl Shared {
    /// The rank as messages name it.
    pub fn peer(&self, rank: usize) -> Peer {
        let host = self.hosts.get().and_then(|hosts| hosts.get(rank));
        Peer { rank, host: host.cloned().unwrap_or_default() }
    }
}

/// The program's side of the engine.
pub(crate) struct Engine {
    commands: Sender<Command>,
    bell: Arc<Bell>,
    pub shared: Arc<Shared>,
}

/// How an engine is started.
pub(crate) struct Setup {
    pub bell: Arc<Bell>,
    pub timeout: Duration,
    pub compares: bool,
    pub report: Box<dyn Fn(&str) + Send + Sync>,
}

/// Rank and ranks of a transport, with what it is.
pub(crate) struct Started {
    pub transport: Box<dyn Transport>,
    pub rank: usize,
    pub ranks: usize,
    pub description: String,
    /// Place among the ranks of this host, and how many those are.
    pub on_host: (usize, usize),
}

/// What the program learns of the transport: its description, and the place on the host.
pub(crate) type Introduction = (String, (usize, usize));

impl Engine {
    /// Starts the thread, which makes its transport by `start`.
    ///
    /// # Errors
    /// What `start` fails with; no thread; no answer within the timeout, named by `library`.
    pub fn new(
        setup: Setup,
        library: &str,
        start: impl FnOnce() -> Result<Started> + Send + 'static,
    ) -> Result<(Self, Introduction)> {
        let (commands, receiver) = std::sync::mpsc::channel();
        let (introduce, introduced) = std::sync::mpsc::channel();
        let Setup { bell, timeout, compares, report } = setup;
        let its_bell = Arc::clone(&bell);
        let run = move || {
            let started = match start() {
                Ok(started) => started,
                Err(error) => return drop(introduce.send(Err(error))),
            };
            let Started { transport, rank, ranks, description, on_host } = started;
            let shared = Arc::new(Shared {
                rank,
                ranks,
                hosts: OnceLock::new(),
                waited: AtomicU64::new(0),
                during: Mutex::default(),
                timeout: Mutex::new(timeout),
                report,
                compares: compares || transport.always_compares(),
            });
            if introduce.send(Ok((Arc::clone(&shared), (description, on_host)))).is_ok() {
                Loop { transport, shared, bell: its_bell, active: Vec::new(), failed: None }
                    .run(&receiver);
            }
        };
        std::thread::Builder::new()
            .name("communication".into())
            .spawn(run)
            .map_err(|error| CommError::Thread { reason: error.to_string() })?;
        match introduced.recv_timeout(timeout) {
            Ok(introduced) => {
                let (shared, introduction) = introduced?;
                Ok((Self { commands, bell, shared }, introduction))
            }
            Err(_) => {
                Err(CommError::Start { library: library.to_string(), seconds: timeout.as_secs() })
            }
        }
    }

    /// Hands an operation over.
    pub fn run(&self, submission: Submission) {
        let during = lock(&self.shared.during).clone();
        let ending = Arc::clone(&submission.ending);
        self.command(Command::Run(submission, during), &ending);
    }

    /// Makes the channel of a group; see [`Transport::split`].
    pub fn split(&self, channel: Channel, color: usize) -> Result<()> {
        let ending = Arc::new(Ending::default());
        self.command(Command::Split { channel, color, ending: Arc::clone(&ending) }, &ending);
        ending.wait(&self.shared.waited)
    }

    /// Ends the exchange once all ranks are here.
    pub fn finish(&self) -> Result<()> {
        let ending = Arc::new(Ending::default());
        self.command(Command::Finish(Arc::clone(&ending)), &ending);
        ending.wait(&self.shared.waited)
    }

    /// Ends all ranks of the run, where the transport can.
    pub fn abort(&self, status: i32) {
        drop(self.commands.send(Command::Abort(status)));
        self.bell.ring();
    }

    /// Replaces the seconds after which a rank that does not answer ends the run.
    pub fn set_timeout(&self, timeout: Duration) {
        *lock(&self.shared.timeout) = timeout;
    }

    fn command(&self, command: Command, ending: &Ending) {
        if self.commands.send(command).is_err() {
            // The thread is there as long as this handle, unless a job of it panicked.
            ending.set(Err(CommError::Thread { reason: "it has ended".into() }));
        }
        self.bell.ring();
    }
}

impl Drop for Engine {
    /// Wakes the thread, which may have nothing to do, so that the other ranks see this one leave.
    fn drop(&mut self) {
        drop(self.commands.send(Command::Leave));
        self.bell.ring();
    }
}

/// The comparison of calls, before an operation.
struct Comparison {
    own: [u8; size_of::<Call>()],
    others: Vec<[u8; size_of::<Call>()]>,
    /// The member compared with, and the two messages.
    open: Vec<(usize, Option<Request>, Option<Request>)>,
    started: bool,
}

struct Active {
    submission: Submission,
    during: String,
    comparison: Option<Box<Comparison>>,
    reported: u32,
}

impl Active {
    /// `step 120: all-gather of layers 3-4 over the data group`.
    fn describe(&self) -> String {
        let Submission { call, of, members, .. } = &self.submission;
        let during = match self.during.as_str() {
            "" => String::new(),
            during => format!("{during}: "),
        };
        let name = call.operation().map_or("operation", Operation::name);
        let of = match &**of {
            "" => String::new(),
            of => format!(" of {of}"),
        };
        format!("{during}{name}{of} over the {} group", members.name)
    }

    fn missing(&self, shared: &Shared) -> Vec<Peer> {
        let mut missing: Vec<usize> = match &self.comparison {
            Some(comparison) => comparison.open.iter().map(|(member, ..)| *member).collect(),
            None => self.submission.job.missing(),
        };
        missing.sort_unstable();
        missing.dedup();
        let members = &self.submission.members;
        let others = missing.into_iter().filter(|member| *member != members.me);
        others.map(|member| shared.peer(members.ranks[member])).collect()
    }
}

struct Loop {
    transport: Box<dyn Transport>,
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    active: Vec<Active>,
    failed: Option<CommError>,
}

impl Loop {
    fn run(&mut self, commands: &Receiver<Command>) {
        let mut finish = None;
        let mut last_move = Instant::now();
        let mut last_tick = Instant::now();
        loop {
            let seen = self.bell.rings();
            let mut moved = false;
            loop {
                match commands.try_recv() {
                    Ok(Command::Run(submission, during)) => {
                        moved = true;
                        self.add(submission, during);
                    }
                    Ok(Command::Split { channel, color, ending }) => {
                        let result = self.failed.clone().map_or(Ok(()), Err);
                        ending.set(result.and_then(|()| self.split(channel, color)));
                    }
                    Ok(Command::Finish(ending)) => finish = Some(ending),
                    Ok(Command::Abort(status)) => return self.transport.abort(status),
                    Err(TryRecvError::Empty) => break,
                    Ok(Command::Leave) | Err(TryRecvError::Disconnected) => return,
                }
            }
            moved |= self.progress_all();
            if self.active.is_empty()
                && let Some(ending) = finish.take()
            {
                let result = self.failed.clone().map_or(Ok(()), Err);
                let shared = Arc::clone(&self.shared);
                let result = result.and_then(|()| {
                    let finished = self.transport.finish();
                    finished
                        .map_err(|failure| explain(failure, &shared, "the end of the run".into()))
                });
                return ending.set(result);
            }
            if moved {
                last_move = Instant::now();
            } else if self.active.is_empty() {
                self.bell.wait(seen, Duration::from_secs(3600));
            } else {
                self.transport.idle(&self.bell, seen, last_move.elapsed(), TICK);
            }
            if last_tick.elapsed() >= TICK {
                last_tick = Instant::now();
                self.look_at_the_clock();
            }
        }
    }

    fn add(&mut self, submission: Submission, during: String) {
        if let Some(error) = &self.failed {
            submission.ending.set(Err(error.clone()));
            return;
        }
        let collective = submission.call.operation().is_some_and(Operation::is_collective);
        let comparison = (self.shared.compares && collective).then(|| {
            let mut own = [0; size_of::<Call>()];
            own.copy_from_slice(bytemuck::bytes_of(&submission.call));
            let others = vec![[0; size_of::<Call>()]; submission.members.ranks.len()];
            Box::new(Comparison { own, others, open: Vec::new(), started: false })
        });
        self.active.push(Active { submission, during, comparison, reported: 0 });
    }

    /// Drives every operation as far as it goes; whether anything moved.
    fn progress_all(&mut self) -> bool {
        let mut moved = false;
        let mut index = 0;
        while index < self.active.len() {
            let active = &mut self.active[index];
            let members = Arc::clone(&active.submission.members);
            let mut wire = Wire {
                transport: &mut *self.transport,
                channel: members.channel,
                tag: active.submission.tag,
                members: &members.ranks,
                me: members.me,
                sent: &members.sent,
                compares: self.shared.compares,
                moved: false,
            };
            let result = progress(active, &mut wire, &self.shared);
            moved |= wire.moved;
            match result {
                Ok(false) => index += 1,
                Ok(true) => {
                    let Active { submission, .. } = self.active.remove(index);
                    submission.job.complete();
                    submission.ending.set(Ok(()));
                    moved = true;
                }
                Err(failure) => {
                    let during = active.describe();
                    self.fail(explain(failure, &self.shared, during));
                    return true;
                }
            }
        }
        moved
    }

    /// Nothing goes on after an error: every operation ends with it.
    fn fail(&mut self, error: CommError) {
        let free = self.transport.forget_requests();
        for active in self.active.drain(..) {
            active.submission.ending.set(Err(error.clone()));
            if !free {
                // The library may still read and write the buffers of messages under way.
                std::mem::forget((active.submission.job, active.comparison));
            }
        }
        self.failed = Some(error);
    }

    fn split(&mut self, channel: Channel, color: usize) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        self.transport
            .split(channel, color)
            .map_err(|failure| explain(failure, &shared, "the making of a group".into()))
    }

    fn look_at_the_clock(&mut self) {
        let timeout = *lock(&self.shared.timeout);
        let mut late = None;
        for active in &mut self.active {
            let Some(since) = active.submission.ending.waits_since.get() else { continue };
            let waited = since.elapsed();
            if waited >= timeout {
                late = Some(CommError::Timeout {
                    during: format!(
                        "{}: {}",
                        self.shared.peer(self.shared.rank),
                        active.describe()
                    ),
                    seconds: timeout.as_secs(),
                    missing: active.missing(&self.shared),
                });
                break;
            }
            if waited >= REPORT_EVERY * (active.reported + 1) {
                active.reported += 1;
                (self.shared.report)(&format!(
                    "{}: {} waits {} s for {}; ranks that print no such line are the ones to look at",
                    self.shared.peer(self.shared.rank),
                    active.describe(),
                    waited.as_secs(),
                    list(&active.missing(&self.shared))
                ));
            }
        }
        if let Some(error) = late {
            self.fail(error);
        }
    }
}

/// One operation: first the comparison of the calls, then its job.
fn progress(
    active: &mut Active,
    wire: &mut Wire<'_>,
    shared: &Shared,
) -> std::result::Result<bool, Failure> {
    if let Some(comparison) = &mut active.comparison {
        if !compare(comparison, wire, &active.submission, shared)? {
            return Ok(false);
        }
        active.comparison = None;
    }
    active.submission.job.progress(wire)
}

fn compare(
    comparison: &mut Comparison,
    wire: &mut Wire<'_>,
    submission: &Submission,
    shared: &Shared,
) -> std::result::Result<bool, Failure> {
    if !comparison.started {
        comparison.started = true;
        let own = &raw const comparison.own;
        let others = comparison.others.as_mut_ptr();
        for (to, from) in wire.rounds() {
            // SAFETY: `from` is a member, and there is an entry for each.
            let theirs = unsafe { others.add(from) };
            let theirs = std::ptr::slice_from_raw_parts_mut(theirs.cast(), size_of::<Call>());
            // SAFETY: the box and the vector stay until all messages have come and gone, or the
            // transport has given them up; an entry is read after its message has come.
            let receive = unsafe { wire.receive(from, theirs) }?;
            // SAFETY: the same; the own call is only read.
            let send = unsafe { wire.send(to, own) }?;
            comparison.open.push((to, Some(send), None));
            comparison.open.push((from, None, Some(receive)));
        }
    }
    let mut open = Vec::new();
    for (member, send, receive) in std::mem::take(&mut comparison.open) {
        let request = send.or(receive);
        if !request.map_or(Ok(true), |request| wire.test(request))? {
            open.push((member, send, receive));
            continue;
        }
        if receive.is_some() {
            let mut theirs = Call::zeroed();
            bytemuck::bytes_of_mut(&mut theirs).copy_from_slice(&comparison.others[member]);
            if theirs != submission.call {
                return Err(Failure::Comm(CommError::Mismatch(Box::new(Mismatch {
                    group: submission.members.name.clone(),
                    number: submission.call.number,
                    rank: shared.peer(shared.rank),
                    call: submission.call.describe(),
                    other: shared.peer(submission.members.ranks[member]),
                    other_call: theirs.describe(),
                }))));
            }
        }
    }
    comparison.open = open;
    Ok(comparison.open.is_empty())
}

fn explain(failure: Failure, shared: &Shared, during: String) -> CommError {
    match failure {
        Failure::Gone(rank) => CommError::Gone { during, peer: shared.peer(rank) },
        Failure::Library(message) => CommError::Mpi { during, message },
        Failure::Comm(error) => error,
    }
}
