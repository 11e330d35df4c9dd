//! The collectives as they go on: each is asked again and again to go as far as it can.
//!
//! All of them exchange directly with every other member. An all-gather sends this rank's part to
//! each; a reduce-scatter sends part j to member j and adds what comes for its own part in the order
//! of the members; an all-reduce is one after the other, or, below [`SMALL`] bytes, an all-gather of
//! the inputs and the sum of them all.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::bell::lock;
use crate::element::{Buffer, Element, Summand, ordered_sum};
use crate::pieces::{IN_FLIGHT, PIECE, Stream, Wire, staged_piece};
use crate::transport::{Outcome, Request};

/// Bytes below which an all-reduce gathers all inputs: one exchange instead of two.
pub(crate) const SMALL: usize = 4 << 10;

/// Above so many members, or below [`LIBRARY_BYTES`] in all, the library's own all-gather is used
/// where the parts are equal: it needs fewer messages than one to each member.
const LIBRARY_MEMBERS: usize = 16;
const LIBRARY_BYTES: usize = 64 << 10;

/// Most bytes of a part in the library's all-gather, so that its counts stay below 2³¹.
const LIBRARY_PART: usize = 1 << 30;

/// Where the result is put for the program.
pub(crate) type Results<T> = Arc<Mutex<Option<T>>>;

/// An operation under way.
pub(crate) trait Job: Send {
    /// Goes as far as it can. True when all is done.
    fn progress(&mut self, wire: &mut Wire<'_>) -> Outcome<bool>;

    /// Members whose messages have not come, or have not been taken.
    fn missing(&self) -> Vec<usize>;

    /// Hands the result over.
    fn complete(self: Box<Self>);
}

fn missing_of<'a>(streams: impl IntoIterator<Item = &'a Stream>) -> Vec<usize> {
    let open = streams.into_iter().filter(|stream| !stream.is_done());
    let mut missing: Vec<usize> = open.map(|stream| stream.member).collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

fn in_bytes<E>(range: &Range<usize>) -> Range<usize> {
    range.start * size_of::<E>()..range.end * size_of::<E>()
}

/// Everybody's part, from everybody.
struct Exchange {
    parts: Vec<Range<usize>>,
    streams: Option<(Vec<Stream>, Vec<Stream>)>,
    library: Option<(Request, Vec<u8>)>,
    first: bool,
}

impl Exchange {
    /// `parts` in bytes. `first`: nothing of the operation comes before it, so that all members are
    /// at it in the same order.
    fn new(parts: Vec<Range<usize>>, first: bool) -> Self {
        Self { parts, streams: None, library: None, first }
    }

    fn whole(&self) -> usize {
        self.parts.last().map_or(0, |last| last.end)
    }

    fn fits_library(&self, wire: &Wire<'_>) -> bool {
        let equal = self.parts.iter().all(|part| part.len() == self.parts[0].len());
        let (members, bytes) = (wire.members.len(), self.whole());
        self.first
            && equal
            && !wire.compares
            && bytes > 0
            && (members > LIBRARY_MEMBERS || bytes < LIBRARY_BYTES)
            && self.parts[0].len() <= LIBRARY_PART
    }

    /// # Safety
    /// All parts lie in the buffer that begins at `base`, which nobody else uses until this is done.
    unsafe fn progress(&mut self, wire: &mut Wire<'_>, base: *mut u8) -> Outcome<bool> {
        if let Some((request, _)) = &self.library {
            return wire.test(*request);
        }
        if self.streams.is_none() && self.fits_library(wire) {
            let own = &self.parts[wire.me];
            // SAFETY: the part lies in the buffer, which is not written yet. The library must not
            // read what it writes, so this rank's part is copied.
            let own =
                unsafe { std::slice::from_raw_parts(base.add(own.start), own.len()) }.to_vec();
            let whole = std::ptr::slice_from_raw_parts_mut(base, self.whole());
            // SAFETY: both stay until the request is done: the copy in `self`, the buffer by the
            // caller's promise.
            let request =
                unsafe { wire.transport.all_gather(wire.channel, &raw const *own, whole) }?;
            if let Some(request) = request {
                let bytes = own.len() * (wire.members.len() - 1);
                wire.sent.fetch_add(bytes as u64, std::sync::atomic::Ordering::Relaxed);
                wire.moved = true;
                self.library = Some((request, own));
                return Ok(false);
            }
        }
        let parts = &self.parts;
        let me = wire.me;
        let (sends, receives) = self.streams.get_or_insert_with(|| {
            let sends = wire.rounds().map(|(to, _)| Stream::new(to, parts[me].clone()));
            let receives = wire.rounds().map(|(_, from)| Stream::new(from, parts[from].clone()));
            (sends.collect(), receives.collect())
        });
        let mut done = true;
        for stream in receives.iter_mut() {
            // SAFETY: the caller's promise; parts of members do not overlap.
            done &= unsafe { stream.receive(wire, base, PIECE) }?;
        }
        for stream in sends.iter_mut() {
            // SAFETY: the caller's promise; this rank's own part is only read.
            done &= unsafe { stream.send(wire, base, PIECE) }?;
        }
        Ok(done)
    }

    fn missing(&self) -> Vec<usize> {
        match &self.streams {
            Some((sends, receives)) => missing_of(sends.iter().chain(receives)),
            // The library does not say.
            None => (0..self.parts.len()).collect(),
        }
    }
}

/// See [`crate::Group::start_all_gather`].
pub(crate) struct AllGather<E, B> {
    whole: B,
    exchange: Exchange,
    results: Results<B>,
    elements: std::marker::PhantomData<fn() -> E>,
}

impl<E: Element, B: Buffer<E>> AllGather<E, B> {
    /// `parts` in elements.
    pub fn new(whole: B, parts: &[Range<usize>], results: Results<B>) -> Self {
        let exchange = Exchange::new(parts.iter().map(in_bytes::<E>).collect(), true);
        Self { whole, exchange, results, elements: std::marker::PhantomData }
    }
}

impl<E: Element, B: Buffer<E>> Job for AllGather<E, B> {
    fn progress(&mut self, wire: &mut Wire<'_>) -> Outcome<bool> {
        let base = self.whole.as_mut_ptr().cast();
        // SAFETY: the group has checked that the parts fill the buffer, which this job owns.
        unsafe { self.exchange.progress(wire, base) }
    }

    fn missing(&self) -> Vec<usize> {
        self.exchange.missing()
    }

    fn complete(self: Box<Self>) {
        *lock(&self.results) = Some(self.whole);
    }
}

/// A piece of this rank's part that is awaited from all members.
struct Staged {
    /// Elements within the part.
    range: Range<usize>,
    /// From each other member: where in the staging memory it goes, and its message.
    awaited: Vec<(usize, Option<Request>)>,
    slot: usize,
}

/// The sum of everybody's values for this rank's part.
struct Reduction<E> {
    parts: Vec<Range<usize>>,
    add: bool,
    piece: usize,
    sends: Option<Vec<Stream>>,
    /// Elements of the own part from here on are not asked for yet.
    next: usize,
    staged: Vec<Staged>,
    /// Pieces in flight times members, of `piece` elements each; grows to what is needed.
    slots: Vec<Vec<E>>,
    free: Vec<usize>,
}

impl<E: Summand> Reduction<E> {
    fn new(parts: Vec<Range<usize>>, add: bool) -> Self {
        let piece = staged_piece(parts.len()) / size_of::<E>();
        Self {
            parts,
            add,
            piece,
            sends: None,
            next: 0,
            staged: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    fn ask_for_pieces(&mut self, wire: &mut Wire<'_>) -> Outcome<()> {
        let own = self.parts[wire.me].len();
        while self.next < own && self.staged.len() < IN_FLIGHT {
            let range = self.next..own.min(self.next + self.piece);
            let others = wire.members.len() - 1;
            let length = self.piece.min(own);
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots.push(vec![E::zeroed(); length * others]);
                self.slots.len() - 1
            });
            let base = self.slots[slot].as_mut_ptr();
            let mut awaited = Vec::with_capacity(others);
            for (i, (_, from)) in wire.rounds().enumerate() {
                // SAFETY: the slot has `length` elements for each other member.
                let memory = unsafe { base.add(i * length) }.cast::<u8>();
                let bytes = range.len() * size_of::<E>();
                let bytes = std::ptr::slice_from_raw_parts_mut(memory, bytes);
                // SAFETY: the slot is neither read nor moved before all its messages have come; a
                // vector's elements stay where they are when the vector moves.
                awaited.push((from, Some(unsafe { wire.receive(from, bytes) }?)));
            }
            self.next = range.end;
            self.staged.push(Staged { range, awaited, slot });
        }
        Ok(())
    }

    /// # Safety
    /// `input` begins a buffer that holds all parts and `part` one as long as this rank's own;
    /// nobody else uses them until this is done.
    unsafe fn progress(
        &mut self,
        wire: &mut Wire<'_>,
        input: *const E,
        part: *mut E,
    ) -> Outcome<bool> {
        self.ask_for_pieces(wire)?;
        let parts = &self.parts;
        let sends = self.sends.get_or_insert_with(|| {
            wire.rounds().map(|(to, _)| Stream::new(to, in_bytes::<E>(&parts[to]))).collect()
        });
        let mut sent = true;
        for stream in sends.iter_mut() {
            // SAFETY: the caller's promise; the input is only read.
            sent &= unsafe { stream.send(wire, input.cast(), self.piece * size_of::<E>()) }?;
        }
        let own = self.parts[wire.me].clone();
        let mut index = 0;
        while index < self.staged.len() {
            let staged = &mut self.staged[index];
            let mut here = true;
            for (_, request) in &mut staged.awaited {
                if let Some(message) = *request {
                    match wire.test(message)? {
                        true => *request = None,
                        false => here = false,
                    }
                }
            }
            if !here {
                index += 1;
                continue;
            }
            let staged = self.staged.remove(index);
            let (range, length) = (staged.range.clone(), self.piece.min(own.len()));
            // SAFETY: the range is within this rank's part of the input, which is only read.
            let mine = unsafe {
                std::slice::from_raw_parts(input.add(own.start + range.start), range.len())
            };
            let slot = &self.slots[staged.slot];
            let mut values = vec![mine; wire.members.len()];
            for (i, (from, _)) in staged.awaited.iter().enumerate() {
                values[*from] = &slot[i * length..i * length + range.len()];
            }
            // SAFETY: the range is within the part, which nobody else uses.
            let sum = unsafe { std::slice::from_raw_parts_mut(part.add(range.start), range.len()) };
            ordered_sum(sum, &values, self.add);
            self.free.push(staged.slot);
            self.ask_for_pieces(wire)?;
        }
        Ok(sent && self.staged.is_empty() && self.next == own.len())
    }

    fn missing(&self) -> Vec<usize> {
        let awaited = self.staged.iter().flat_map(|staged| &staged.awaited);
        let awaited = awaited.filter(|(_, request)| request.is_some()).map(|(from, _)| *from);
        let mut missing = missing_of(self.sends.iter().flatten());
        missing.extend(awaited);
        missing.sort_unstable();
        missing.dedup();
        missing
    }
}

/// See [`crate::Group::start_reduce_scatter`].
pub(crate) struct ReduceScatter<E, B, P> {
    input: B,
    part: P,
    reduction: Reduction<E>,
    results: Results<(B, P)>,
}

impl<E: Summand, B: Buffer<E>, P: Buffer<E>> ReduceScatter<E, B, P> {
    /// `parts` in elements; with `add`, what `part` holds comes first in the sum.
    pub fn new(
        input: B,
        part: P,
        parts: Vec<Range<usize>>,
        add: bool,
        results: Results<(B, P)>,
    ) -> Self {
        Self { input, part, reduction: Reduction::new(parts, add), results }
    }
}

impl<E: Summand, B: Buffer<E>, P: Buffer<E>> Job for ReduceScatter<E, B, P> {
    fn progress(&mut self, wire: &mut Wire<'_>) -> Outcome<bool> {
        let (input, part) = (self.input.as_ptr(), self.part.as_mut_ptr());
        // SAFETY: the group has checked both lengths; this job owns both buffers.
        unsafe { self.reduction.progress(wire, input, part) }
    }

    fn missing(&self) -> Vec<usize> {
        self.reduction.missing()
    }

    fn complete(self: Box<Self>) {
        *lock(&self.results) = Some((self.input, self.part));
    }
}

/// How far an all-reduce is.
enum AllReduceStage<E> {
    /// Everybody's inputs one after the other, and their exchange.
    Small(Vec<E>, Exchange),
    /// This rank's part of the sum.
    Sum(Vec<E>, Reduction<E>),
    /// The parts, to everybody.
    Gather(Exchange),
}

/// See [`crate::Group::start_all_reduce`].
pub(crate) struct AllReduce<E, B> {
    values: B,
    stage: AllReduceStage<E>,
    results: Results<B>,
}

impl<E: Summand, B: Buffer<E>> AllReduce<E, B> {
    /// `parts` in elements; `me` is this rank's place.
    pub fn new(values: B, parts: Vec<Range<usize>>, me: usize, results: Results<B>) -> Self {
        let length = values.len();
        let stage = if length * size_of::<E>() < SMALL {
            let mut all = vec![E::zeroed(); length * parts.len()];
            // SAFETY: a buffer has `len` elements at its pointer; nobody writes them here.
            let own = unsafe { std::slice::from_raw_parts(values.as_ptr(), length) };
            all[me * length..(me + 1) * length].copy_from_slice(own);
            let inputs = (0..parts.len()).map(|i| in_bytes::<E>(&(i * length..(i + 1) * length)));
            AllReduceStage::Small(all, Exchange::new(inputs.collect(), true))
        } else {
            let part = vec![E::zeroed(); parts[me].len()];
            AllReduceStage::Sum(part, Reduction::new(parts, false))
        };
        Self { values, stage, results }
    }
}

impl<E: Summand, B: Buffer<E>> Job for AllReduce<E, B> {
    fn progress(&mut self, wire: &mut Wire<'_>) -> Outcome<bool> {
        let values = self.values.as_mut_ptr();
        match &mut self.stage {
            AllReduceStage::Small(all, exchange) => {
                // SAFETY: `all` has room for the inputs of all members, and is this job's.
                let done = unsafe { exchange.progress(wire, all.as_mut_ptr().cast()) }?;
                if done {
                    let length = self.values.len();
                    let inputs: Vec<&[E]> = match length {
                        0 => Vec::new(),
                        length => all.chunks(length).collect(),
                    };
                    // SAFETY: the job owns its buffer, of this length, and no message is under way.
                    let sum = unsafe { std::slice::from_raw_parts_mut(values, length) };
                    ordered_sum(sum, &inputs, false);
                }
                Ok(done)
            }
            AllReduceStage::Sum(part, reduction) => {
                // SAFETY: the group has checked the parts; `part` is as long as this rank's.
                if !unsafe { reduction.progress(wire, values, part.as_mut_ptr()) }? {
                    return Ok(false);
                }
                let own = reduction.parts[wire.me].clone();
                // SAFETY: all has been sent, so nobody reads the buffer, and the part lies in it.
                let place =
                    unsafe { std::slice::from_raw_parts_mut(values.add(own.start), own.len()) };
                place.copy_from_slice(part);
                let parts = reduction.parts.iter().map(in_bytes::<E>).collect();
                self.stage = AllReduceStage::Gather(Exchange::new(parts, false));
                self.progress(wire)
            }
            // SAFETY: the group has checked the parts; the job owns its buffer.
            AllReduceStage::Gather(exchange) => unsafe { exchange.progress(wire, values.cast()) },
        }
    }

    fn missing(&self) -> Vec<usize> {
        match &self.stage {
            AllReduceStage::Small(_, exchange) | AllReduceStage::Gather(exchange) => {
                exchange.missing()
            }
            AllReduceStage::Sum(_, reduction) => reduction.missing(),
        }
    }

    fn complete(self: Box<Self>) {
        *lock(&self.results) = Some(self.values);
    }
}

/// One buffer from a member to others: a broadcast, or a message between two.
pub(crate) struct Distribution<E, B> {
    values: B,
    /// To each of them, or from the one.
    streams: Vec<Stream>,
    sends: bool,
    results: Results<B>,
    elements: std::marker::PhantomData<fn() -> E>,
}

impl<E: Element, B: Buffer<E>> Distribution<E, B> {
    /// Sends to the members.
    pub fn to(members: impl IntoIterator<Item = usize>, values: B, results: Results<B>) -> Self {
        Self::new(members, values, true, results)
    }

    /// Receives from the member.
    pub fn from(member: usize, values: B, results: Results<B>) -> Self {
        Self::new([member], values, false, results)
    }

    fn new(
        members: impl IntoIterator<Item = usize>,
        values: B,
        sends: bool,
        results: Results<B>,
    ) -> Self {
        let bytes = in_bytes::<E>(&(0..values.len()));
        let streams =
            members.into_iter().map(|member| Stream::new(member, bytes.clone())).collect();
        Self { values, streams, sends, results, elements: std::marker::PhantomData }
    }
}

impl<E: Element, B: Buffer<E>> Job for Distribution<E, B> {
    fn progress(&mut self, wire: &mut Wire<'_>) -> Outcome<bool> {
        let base = self.values.as_mut_ptr().cast::<u8>();
        let mut done = true;
        for stream in &mut self.streams {
            done &= match self.sends {
                // SAFETY: the stream is the whole buffer, which this job owns and only reads.
                true => unsafe { stream.send(wire, base, PIECE) }?,
                // SAFETY: the same; the one stream writes it alone.
                false => unsafe { stream.receive(wire, base, PIECE) }?,
            };
        }
        Ok(done)
    }

    fn missing(&self) -> Vec<usize> {
        missing_of(&self.streams)
    }

    fn complete(self: Box<Self>) {
        *lock(&self.results) = Some(self.values);
    }
}
