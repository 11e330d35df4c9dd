//! A long buffer sent and received in pieces, a few of them in flight.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::transport::{Address, Channel, Outcome, Request, Transport};

/// Most bytes of a piece: counts stay far below the 2³¹ of MPI, and a sum starts early.
pub(crate) const PIECE: usize = 4 << 20;

/// Pieces in flight to or from a rank.
pub(crate) const IN_FLIGHT: usize = 8;

/// Most bytes that wait to be summed, over all ranks.
const STAGED: usize = 256 << 20;

/// The least that a piece shrinks to where there are many ranks.
const LEAST_PIECE: usize = 64 << 10;

/// Bytes of a piece that goes through staging memory, among `ranks` ranks: a multiple of every
/// element's size, equal on all ranks.
pub(crate) fn staged_piece(ranks: usize) -> usize {
    let share = STAGED / (IN_FLIGHT * ranks.saturating_sub(1).max(1));
    share.clamp(LEAST_PIECE, PIECE) / LEAST_PIECE * LEAST_PIECE
}

/// The transport as one operation of one group sees it: ranks are members.
pub(crate) struct Wire<'a> {
    pub transport: &'a mut dyn Transport,
    pub channel: Channel,
    pub tag: u32,
    /// World rank of each member.
    pub members: &'a [usize],
    /// Place of this rank among them.
    pub me: usize,
    /// Bytes sent by the group so far.
    pub sent: &'a AtomicU64,
    /// Whether ranks compare their calls, and so may be in different operations.
    pub compares: bool,
    /// Set when a message has come or gone.
    pub moved: bool,
}

impl Wire<'_> {
    fn address(&self, index: usize) -> Address {
        Address { channel: self.channel, index, rank: self.members[index], tag: self.tag }
    }

    /// As [`Transport::send`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn send(&mut self, member: usize, bytes: *const [u8]) -> Outcome<Request> {
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.moved = true;
        let address = self.address(member);
        // SAFETY: the caller's promise.
        unsafe { self.transport.send(address, bytes) }
    }

    /// As [`Transport::receive`].
    ///
    /// # Safety
    /// As there.
    pub unsafe fn receive(&mut self, member: usize, bytes: *mut [u8]) -> Outcome<Request> {
        self.moved = true;
        let address = self.address(member);
        // SAFETY: the caller's promise.
        unsafe { self.transport.receive(address, bytes) }
    }

    /// As [`Transport::test`].
    pub fn test(&mut self, request: Request) -> Outcome<bool> {
        let done = self.transport.test(request)?;
        self.moved |= done;
        Ok(done)
    }

    /// The other members in the order in which this one exchanges with them, as (to send to, to
    /// receive from): in round i every member sends to the i-th after it, so that none is sent to
    /// by all at once.
    pub fn rounds(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (m, me) = (self.members.len(), self.me);
        (1..m).map(move |i| ((me + i) % m, (me + m - i) % m))
    }
}

/// A range of bytes on its way to, or from, one member.
#[derive(Debug)]
pub(crate) struct Stream {
    pub member: usize,
    left: Range<usize>,
    in_flight: VecDeque<Request>,
}

impl Stream {
    /// Nothing is started yet.
    pub fn new(member: usize, bytes: Range<usize>) -> Self {
        Self { member, left: bytes, in_flight: VecDeque::new() }
    }

    fn finish_oldest(&mut self, wire: &mut Wire<'_>) -> Outcome<()> {
        while let Some(oldest) = self.in_flight.front() {
            if !wire.test(*oldest)? {
                break;
            }
            self.in_flight.pop_front();
        }
        Ok(())
    }

    fn next_piece(&mut self, piece: usize) -> Option<Range<usize>> {
        if self.in_flight.len() == IN_FLIGHT || self.left.is_empty() {
            return None;
        }
        let start = self.left.start;
        self.left.start = self.left.end.min(start + piece);
        Some(start..self.left.start)
    }

    /// Whether all of it has come or gone.
    pub fn is_done(&self) -> bool {
        self.left.is_empty() && self.in_flight.is_empty()
    }

    /// Sends on, from the buffer that begins at `base`.
    ///
    /// # Safety
    /// The bytes of the stream lie in that buffer and are not written until the stream is done.
    pub unsafe fn send(
        &mut self,
        wire: &mut Wire<'_>,
        base: *const u8,
        piece: usize,
    ) -> Outcome<bool> {
        self.finish_oldest(wire)?;
        while let Some(range) = self.next_piece(piece) {
            // SAFETY: the range is part of the buffer, by the caller's promise.
            let bytes = unsafe { base.add(range.start) };
            let bytes = std::ptr::slice_from_raw_parts(bytes, range.len());
            // SAFETY: the caller's promise.
            self.in_flight.push_back(unsafe { wire.send(self.member, bytes) }?);
        }
        self.finish_oldest(wire)?;
        Ok(self.is_done())
    }

    /// Receives on, to the buffer that begins at `base`.
    ///
    /// # Safety
    /// The bytes of the stream lie in that buffer and are neither read nor written by others until
    /// the stream is done.
    pub unsafe fn receive(
        &mut self,
        wire: &mut Wire<'_>,
        base: *mut u8,
        piece: usize,
    ) -> Outcome<bool> {
        self.finish_oldest(wire)?;
        while let Some(range) = self.next_piece(piece) {
            // SAFETY: the range is part of the buffer, by the caller's promise.
            let bytes = unsafe { base.add(range.start) };
            let bytes = std::ptr::slice_from_raw_parts_mut(bytes, range.len());
            // SAFETY: the caller's promise.
            self.in_flight.push_back(unsafe { wire.receive(self.member, bytes) }?);
        }
        self.finish_oldest(wire)?;
        Ok(self.is_done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_stays_bounded() {
        assert_eq!(staged_piece(1), PIECE);
        assert_eq!(staged_piece(8), PIECE);
        for ranks in [2, 3, 9, 17, 100, 256, 512] {
            let piece = staged_piece(ranks);
            assert!(piece.is_multiple_of(16) && (LEAST_PIECE..=PIECE).contains(&piece));
            assert!(IN_FLIGHT * piece * (ranks - 1) <= STAGED.max(IN_FLIGHT * LEAST_PIECE * ranks));
        }
    }
}
