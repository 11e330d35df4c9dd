//! Bytes between ranks through an MPI library of either width of handles.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::time::Duration;

use super::abi::{Constants, Functions, Handle};
use crate::bell::Bell;
use crate::transport::{Address, Channel, Failure, Outcome, Request, Transport, WORLD};

/// How long the thread tests again and again before it sleeps between tests, and how long it sleeps
/// then. Libraries do not go on by themselves: who does not test waits.
const SPIN: Duration = Duration::from_micros(50);

/// Room for texts of the library; no MPI writes more than 8192 bytes.
const TEXT: usize = 16 << 10;

/// MPI on the thread that called `initialise`.
pub(super) struct Mpi<H> {
    functions: Functions<H>,
    constants: Constants<H>,
    channels: HashMap<Channel, H>,
    requests: Vec<H>,
    free: Vec<usize>,
}

impl<H: Handle> Mpi<H> {
    pub fn new(functions: Functions<H>, constants: Constants<H>) -> Self {
        let channels = HashMap::from([(WORLD, constants.comm_world)]);
        Self { functions, constants, channels, requests: Vec::new(), free: Vec::new() }
    }

    /// First line of what the library calls itself.
    pub fn version(&self) -> String {
        // SAFETY: MPI allows this call at any time; the buffer is longer than any MPI writes.
        let text =
            self.text(|text, length| unsafe { (self.functions.get_library_version)(text, length) });
        let line = text.lines().next().unwrap_or_default();
        // "Open MPI v4.1.4, package: …", "MPICH Version:      4.0.2".
        let line = line.split(',').next().unwrap_or_default();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn text(&self, write: impl FnOnce(*mut i8, *mut c_int) -> c_int) -> String {
        let mut text = vec![0u8; TEXT];
        let mut length = 0;
        if write(text.as_mut_ptr().cast(), &mut length) != 0 {
            return String::new();
        }
        text.truncate(usize::try_from(length).unwrap_or(0));
        String::from_utf8_lossy(&text).trim_end_matches('\0').trim().to_string()
    }

    /// The library's words for an error.
    fn check(&self, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the buffer is longer than any MPI writes.
        let text = self
            .text(|text, length| unsafe { (self.functions.error_string)(status, text, length) });
        Err(match text.as_str() {
            "" => format!("error {status}"),
            text => text.to_string(),
        })
    }

    /// Starts MPI for this thread.
    pub fn initialise(&mut self) -> Result<(), String> {
        let mut provided = 0;
        let (nothing, no_arguments) = (std::ptr::null_mut(), std::ptr::null_mut());
        let funneled = self.constants.thread_funneled;
        // SAFETY: MPI allows null for the arguments; it is called once in the process.
        self.check(unsafe {
            (self.functions.init_thread)(nothing, no_arguments, funneled, &mut provided)
        })?;
        self.return_errors(self.constants.comm_world)
    }

    fn return_errors(&self, comm: H) -> Result<(), String> {
        let handler = self.constants.errors_return;
        // SAFETY: both are handles of the library.
        self.check(unsafe { (self.functions.comm_set_errhandler)(comm, handler) })
    }

    /// Rank and ranks of the world.
    pub fn world(&self) -> Result<(usize, usize), String> {
        self.rank_and_size(self.constants.comm_world)
    }

    fn rank_and_size(&self, comm: H) -> Result<(usize, usize), String> {
        let (mut rank, mut size) = (0, 0);
        // SAFETY: a communicator of the library, and places for the answers.
        self.check(unsafe { (self.functions.comm_rank)(comm, &mut rank) })?;
        // SAFETY: the same.
        self.check(unsafe { (self.functions.comm_size)(comm, &mut size) })?;
        match (usize::try_from(rank), usize::try_from(size)) {
            (Ok(rank), Ok(size)) => Ok((rank, size)),
            _ => Err(format!("rank {rank} of {size}")),
        }
    }

    /// Place among the ranks that share memory, and their number.
    pub fn on_host(&self) -> Result<(usize, usize), String> {
        let Constants { comm_world, comm_type_shared, info_null, .. } = self.constants;
        let mut host = comm_world;
        // SAFETY: handles of the library; the new one is written to `host`.
        self.check(unsafe {
            (self.functions.comm_split_type)(comm_world, comm_type_shared, 0, info_null, &mut host)
        })?;
        let found = self.rank_and_size(host);
        // SAFETY: the communicator was made above and has no messages.
        self.check(unsafe { (self.functions.comm_free)(&mut host) })?;
        found
    }

    fn channel(&self, channel: Channel) -> Outcome<H> {
        match self.channels.get(&channel) {
            Some(comm) => Ok(*comm),
            None => Err(Failure::Library("a message over a group that was not made".into())),
        }
    }

    fn keep(&mut self, request: H) -> Request {
        match self.free.pop() {
            Some(index) => {
                self.requests[index] = request;
                Request(index)
            }
            None => {
                self.requests.push(request);
                Request(self.requests.len() - 1)
            }
        }
    }

    fn outcome(&self, status: c_int) -> Outcome<()> {
        self.check(status).map_err(Failure::Library)
    }
}

/// A length or a rank as MPI takes it. Pieces are small and ranks few, so it fits.
fn int(value: usize) -> Outcome<c_int> {
    c_int::try_from(value).map_err(|_| Failure::Library(format!("{value} is too large for MPI")))
}

impl<H: Handle> Transport for Mpi<H> {
    unsafe fn send(&mut self, to: Address, bytes: *const [u8]) -> Outcome<Request> {
        let comm = self.channel(to.channel)?;
        let (length, member, tag) = (int(bytes.len())?, int(to.index)?, int(to.tag as usize)?);
        let Constants { byte, request_null: mut request, .. } = self.constants;
        // SAFETY: the caller keeps the bytes; the rest are handles of the library.
        let status = unsafe {
            (self.functions.isend)(bytes.cast(), length, byte, member, tag, comm, &mut request)
        };
        self.outcome(status)?;
        Ok(self.keep(request))
    }

    unsafe fn receive(&mut self, from: Address, bytes: *mut [u8]) -> Outcome<Request> {
        let comm = self.channel(from.channel)?;
        let (length, member, tag) = (int(bytes.len())?, int(from.index)?, int(from.tag as usize)?);
        let Constants { byte, request_null: mut request, .. } = self.constants;
        // SAFETY: the caller keeps the bytes; the rest are handles of the library.
        let status = unsafe {
            (self.functions.irecv)(bytes.cast(), length, byte, member, tag, comm, &mut request)
        };
        self.outcome(status)?;
        Ok(self.keep(request))
    }

    unsafe fn all_gather(
        &mut self,
        channel: Channel,
        own: *const [u8],
        whole: *mut [u8],
    ) -> Outcome<Option<Request>> {
        let (comm, length) = (self.channel(channel)?, int(own.len())?);
        let Constants { byte, request_null: mut request, .. } = self.constants;
        let (own, whole): (*const c_void, *mut c_void) = (own.cast(), whole.cast());
        // SAFETY: the caller keeps both; `whole` has room for the part of every member.
        let status = unsafe {
            (self.functions.iallgather)(own, length, byte, whole, length, byte, comm, &mut request)
        };
        self.outcome(status)?;
        Ok(Some(self.keep(request)))
    }

    fn test(&mut self, Request(index): Request) -> Outcome<bool> {
        let mut done = 0;
        let ignore = self.constants.status_ignore;
        // SAFETY: a request of the library that has not ended; no status is asked for.
        let status = unsafe { (self.functions.test)(&mut self.requests[index], &mut done, ignore) };
        self.outcome(status)?;
        if done != 0 {
            self.requests[index] = self.constants.request_null;
            self.free.push(index);
        }
        Ok(done != 0)
    }

    fn split(&mut self, channel: Channel, color: usize) -> Outcome<()> {
        let mut comm = self.constants.comm_world;
        let color = int(color)?;
        // SAFETY: handles of the library; the key 0 keeps the order of the world's ranks.
        let status =
            unsafe { (self.functions.comm_split)(self.constants.comm_world, color, 0, &mut comm) };
        self.outcome(status)?;
        self.return_errors(comm).map_err(Failure::Library)?;
        self.channels.insert(channel, comm);
        Ok(())
    }

    fn idle(&mut self, _bell: &Bell, _seen: u64, idle_for: Duration, _limit: Duration) {
        match idle_for < SPIN {
            true => std::thread::yield_now(),
            false => std::thread::sleep(SPIN),
        }
    }

    fn forget_requests(&mut self) -> bool {
        let free = self.requests.len() == self.free.len();
        self.requests.clear();
        self.free.clear();
        free
    }

    fn finish(&mut self) -> Outcome<()> {
        // SAFETY: the thread that started MPI; no request is open.
        let status = unsafe { (self.functions.finalize)() };
        self.outcome(status)
    }

    fn abort(&mut self, status: i32) {
        // SAFETY: MPI allows it at any time between start and end.
        unsafe { (self.functions.abort)(self.constants.comm_world, status) };
    }
}
