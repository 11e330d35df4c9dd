//! What moves bytes between two ranks.

use std::time::Duration;

use crate::bell::Bell;
use crate::error::CommError;

/// What the members of one group send on, so that the messages of two groups are never mixed up.
pub(crate) type Channel = u64;

/// The channel of all ranks.
pub(crate) const WORLD: Channel = 0;

/// Where a message goes or comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub channel: Channel,
    /// Place of the other rank in the group.
    pub index: usize,
    /// Its rank in the world.
    pub rank: usize,
    /// Messages with one tag between two ranks of a channel arrive in the order they were sent in.
    pub tag: u32,
}

/// A message that is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request(pub usize);

/// What a transport can fail with; the engine adds the operation.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A rank of the world has ended.
    Gone(usize),
    /// The library's words.
    Library(String),
    /// Ranks called different operations, or what else has a message of its own.
    Comm(CommError),
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// Moves bytes between ranks. Used by the one thread that made it.
pub(crate) trait Transport {
    /// Starts to send.
    ///
    /// # Safety
    /// The bytes may be read until [`test`](Self::test) has returned true for the request, or
    /// [`forget_requests`](Self::forget_requests) has.
    unsafe fn send(&mut self, to: Address, bytes: *const [u8]) -> Outcome<Request>;

    /// Starts to receive a message of exactly this length.
    ///
    /// # Safety
    /// The bytes may be written, by nobody else, until [`test`](Self::test) has returned true for
    /// the request, or [`forget_requests`](Self::forget_requests) has; until then nobody reads them.
    unsafe fn receive(&mut self, from: Address, bytes: *mut [u8]) -> Outcome<Request>;

    /// The library's own all-gather of equal parts, where it has one: starts to send `own` and to
    /// receive everybody's to `whole`, in the order of the group. All members call it in one order.
    ///
    /// # Safety
    /// As for [`send`](Self::send) and [`receive`](Self::receive).
    unsafe fn all_gather(
        &mut self,
        _channel: Channel,
        _own: *const [u8],
        _whole: *mut [u8],
    ) -> Outcome<Option<Request>> {
        Ok(None)
    }

    /// Whether the message has been sent or received; after true the request does not exist.
    fn test(&mut self, request: Request) -> Outcome<bool>;

    /// Makes a channel for some ranks: those that give one `color`, which is the lowest of their
    /// ranks. All ranks of the world call it in the same order.
    fn split(&mut self, channel: Channel, color: usize) -> Outcome<()>;

    /// Returns when something may have changed, or the bell has rung since `seen`, or at `limit`.
    /// `idle_for` is how long nothing has.
    fn idle(&mut self, bell: &Bell, seen: u64, idle_for: Duration, limit: Duration);

    /// Gives up all requests after a failure. False where the memory they point to may still be
    /// read or written and must stay.
    fn forget_requests(&mut self) -> bool;

    /// Whether the calls of ranks are always compared.
    fn always_compares(&self) -> bool {
        false
    }

    /// The last call: all ranks are done.
    fn finish(&mut self) -> Outcome<()>;

    /// Ends all ranks of the run, where the transport can.
    fn abort(&mut self, status: i32);
}
