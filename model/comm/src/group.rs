//! The operations as a program calls them.
//!
//! `start_…` takes buffers by value and gives them back from [`Pending::wait`]. A pending operation
//! that is dropped is waited for. A group of one rank returns its argument: nothing is copied,
//! nothing allocated, and no thread is asked.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Pod;

use crate::bell::lock;
use crate::call::{Call, Operation};
use crate::collectives::{AllGather, AllReduce, Distribution, Job, ReduceScatter, Results};
use crate::element::{Buffer, Element, Summand};
use crate::engine::{Ending, Engine, Members, Submission, TAGS};
use crate::error::{CommError, Result};

/// A buffer as rows of equal width, which are spread over the ranks of a group: rank r of m has rows
/// ⌊r·n/m⌋ .. ⌊(r+1)·n/m⌋ of n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// Rows on all ranks together.
    pub count: usize,
    /// Elements of a row.
    pub width: usize,
}

impl Rows {
    /// Rows of one element.
    pub fn single(count: usize) -> Self {
        Self { count, width: 1 }
    }

    /// Elements that `rank` of `ranks` has.
    pub fn part(&self, rank: usize, ranks: usize) -> Range<usize> {
        let row = |rank: usize| (rank as u128 * self.count as u128 / ranks as u128) as usize;
        row(rank) * self.width..row(rank + 1) * self.width
    }

    fn elements(&self) -> usize {
        self.count * self.width
    }
}

/// What a group has exchanged so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Operations.
    pub operations: u64,
    /// Bytes that this rank has sent, comparisons of calls included.
    pub bytes: u64,
}

/// Some ranks of a [`World`](crate::World), in the order of their ranks there.
#[derive(Clone)]
pub struct Group {
    /// None in a group of one.
    engine: Option<Arc<Engine>>,
    members: Arc<Members>,
    of: Arc<str>,
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("members", &self.members).finish_non_exhaustive()
    }
}

/// An operation that may still go on.
#[must_use = "dropping it waits for the operation"]
pub struct Pending<T>(Stage<T>);

enum Stage<T> {
    Done(Option<T>),
    Running { engine: Arc<Engine>, ending: Arc<Ending>, results: Results<T> },
}

impl<T> std::fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("is_done", &self.is_done()).finish()
    }
}

impl<T> Pending<T> {
    /// Waits for the operation and gives its buffers back.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub fn wait(mut self) -> Result<T> {
        let (ending, results) = match &mut self.0 {
            Stage::Done(value) => match value.take() {
                Some(value) => return Ok(value),
                None => return Err(CommError::Thread { reason: "no result".into() }),
            },
            Stage::Running { engine, ending, results } => {
                (ending.wait(&engine.shared.waited), Arc::clone(results))
            }
        };
        ending?;
        let value = lock(&results).take();
        value.ok_or_else(|| CommError::Thread { reason: "no result".into() })
    }

    /// Whether [`wait`](Self::wait) returns at once.
    pub fn is_done(&self) -> bool {
        match &self.0 {
            Stage::Done(_) => true,
            Stage::Running { ending, .. } => ending.is_there(),
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let Stage::Running { engine, ending, .. } = &self.0 {
            // Whoever drops it does not want to know how it ended.
            drop(ending.wait(&engine.shared.waited));
        }
    }
}

impl Group {
    pub(crate) fn new(engine: Option<Arc<Engine>>, members: Members) -> Self {
        let engine = engine.filter(|_| members.ranks.len() > 1);
        Self { engine, members: Arc::new(members), of: "".into() }
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.members.name
    }

    /// This rank's place in the group.
    pub fn rank(&self) -> usize {
        self.members.me
    }

    /// Ranks in the group.
    pub fn ranks(&self) -> usize {
        self.members.ranks.len()
    }

    /// World rank of every member.
    pub fn members(&self) -> &[usize] {
        &self.members.ranks
    }

    /// Operations and bytes so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            operations: self.members.operations.load(Ordering::Relaxed),
            bytes: self.members.sent.load(Ordering::Relaxed),
        }
    }

    /// The same group, whose messages say what is exchanged: `of("layers 12-13")`.
    #[must_use]
    pub fn of(&self, what: impl Into<Arc<str>>) -> Self {
        Self { of: what.into(), ..self.clone() }
    }

    /// Starts to fill `whole` with everybody's rows; this rank's own stand in their place.
    ///
    /// # Errors
    /// The buffer does not have these rows.
    pub fn start_all_gather<E: Element, B: Buffer<E>>(
        &self,
        whole: B,
        rows: Rows,
    ) -> Result<Pending<B>> {
        let operation = Operation::AllGather;
        self.check_length(operation, "the buffer", whole.len(), rows.elements())?;
        let shape = [rows.count, rows.width];
        Ok(self.start(operation, E::NAME, shape, 0, whole, |whole, results| {
            Box::new(AllGather::new(whole, &self.parts(rows), results))
        }))
    }

    /// Starts to write this rank's rows of the sum over all ranks' `input` to `part`.
    ///
    /// # Errors
    /// A buffer does not have these rows.
    pub fn start_reduce_scatter<E: Summand, B: Buffer<E>, P: Buffer<E>>(
        &self,
        input: B,
        part: P,
        rows: Rows,
    ) -> Result<Pending<(B, P)>> {
        self.reduce(Operation::ReduceScatter, input, part, rows)
    }

    /// As [`start_reduce_scatter`](Self::start_reduce_scatter), with what `part` holds as the first
    /// summand: `((part + x₀) + x₁) + …`.
    ///
    /// # Errors
    /// A buffer does not have these rows.
    pub fn start_reduce_scatter_add<E: Summand, B: Buffer<E>, P: Buffer<E>>(
        &self,
        input: B,
        part: P,
        rows: Rows,
    ) -> Result<Pending<(B, P)>> {
        self.reduce(Operation::ReduceScatterAdd, input, part, rows)
    }

    fn reduce<E: Summand, B: Buffer<E>, P: Buffer<E>>(
        &self,
        operation: Operation,
        input: B,
        mut part: P,
        rows: Rows,
    ) -> Result<Pending<(B, P)>> {
        let own = rows.part(self.rank(), self.ranks());
        self.check_length(operation, "the input", input.len(), rows.elements())?;
        self.check_length(operation, "this rank's part", part.len(), own.len())?;
        let add = operation == Operation::ReduceScatterAdd;
        if self.engine.is_none() {
            let (length, values, sum) = (part.len(), input.as_ptr(), part.as_mut_ptr());
            // SAFETY: both have this length, as checked, and are owned here.
            let (values, sum) = unsafe {
                (
                    std::slice::from_raw_parts(values, length),
                    std::slice::from_raw_parts_mut(sum, length),
                )
            };
            crate::element::ordered_sum(sum, &[values], add);
        }
        let shape = [rows.count, rows.width];
        Ok(self.start(operation, E::NAME, shape, 0, (input, part), |(input, part), results| {
            Box::new(ReduceScatter::new(input, part, self.parts(rows), add, results))
        }))
    }

    /// Starts to replace `values` by their sum over all ranks.
    ///
    /// # Errors
    /// None on this rank; a different length on another is found while it goes on.
    pub fn start_all_reduce<E: Summand, B: Buffer<E>>(&self, values: B) -> Result<Pending<B>> {
        let rows = Rows::single(values.len());
        let shape = [rows.count, 1];
        Ok(self.start(Operation::AllReduce, E::NAME, shape, 0, values, |values, results| {
            Box::new(AllReduce::new(values, self.parts(rows), self.rank(), results))
        }))
    }

    /// Starts to replace `values` by those of the member `root`.
    ///
    /// # Errors
    /// There is no such member.
    pub fn start_broadcast<E: Element, B: Buffer<E>>(
        &self,
        values: B,
        root: usize,
    ) -> Result<Pending<B>> {
        let operation = Operation::Broadcast;
        self.check_member(operation, root)?;
        let (shape, others) = ([values.len(), 1], self.others(root));
        let sends = root == self.rank();
        Ok(self.start(operation, E::NAME, shape, root, values, |values, results| match sends {
            true => Box::new(Distribution::to(others, values, results)),
            false => Box::new(Distribution::from(root, values, results)),
        }))
    }

    /// Starts to send `values` to the member `to`, which receives as many.
    ///
    /// # Errors
    /// There is no such member, or it is this rank.
    pub fn start_send<E: Element, B: Buffer<E>>(&self, values: B, to: usize) -> Result<Pending<B>> {
        self.message(Operation::Send, values, to)
    }

    /// Starts to receive `values` from the member `from`. Messages of one member arrive in the order
    /// in which it starts to send them.
    ///
    /// # Errors
    /// There is no such member, or it is this rank.
    pub fn start_receive<E: Element, B: Buffer<E>>(
        &self,
        values: B,
        from: usize,
    ) -> Result<Pending<B>> {
        self.message(Operation::Receive, values, from)
    }

    fn message<E: Element, B: Buffer<E>>(
        &self,
        operation: Operation,
        values: B,
        other: usize,
    ) -> Result<Pending<B>> {
        self.check_member(operation, other)?;
        if other == self.rank() {
            return Err(self.argument(operation, "the other member is this rank itself".into()));
        }
        let shape = [values.len(), 1];
        Ok(self.start(
            operation,
            E::NAME,
            shape,
            other,
            values,
            |values, results| match operation {
                Operation::Send => Box::new(Distribution::to([other], values, results)),
                _ => Box::new(Distribution::from(other, values, results)),
            },
        ))
    }

    /// Every member's bytes, on each; they may differ in length.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.gather_records(&(bytes.len() as u64))?;
        let mut parts = Vec::with_capacity(lengths.len());
        let mut end = 0;
        for length in lengths {
            let start = end;
            end += length as usize;
            parts.push(start..end);
        }
        let mut whole = vec![0u8; end];
        whole[parts[self.rank()].clone()].copy_from_slice(bytes);
        let ranges = parts.clone();
        let whole =
            self.start(Operation::GatherBytes, u8::NAME, [end, 1], 0, whole, |whole, results| {
                Box::new(AllGather::<u8, _>::new(whole, &ranges, results))
            });
        let whole = whole.wait()?;
        Ok(parts.into_iter().map(|part| whole[part].to_vec()).collect())
    }

    /// Every member's record, on each.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn gather_records<T: Pod>(&self, record: &T) -> Result<Vec<T>> {
        let width = size_of::<T>();
        let rows = Rows { count: self.ranks(), width };
        let mut whole = vec![0u8; rows.elements()];
        whole[rows.part(self.rank(), self.ranks())].copy_from_slice(bytemuck::bytes_of(record));
        let whole = self.start_all_gather::<u8, _>(whole, rows)?.wait()?;
        Ok(whole.chunks_exact(width.max(1)).map(bytemuck::pod_read_unaligned).collect())
    }

    /// Waits until every member is here.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn barrier(&self) -> Result<()> {
        let rows = Rows::single(self.ranks());
        let whole = vec![0u8; rows.count];
        self.start(Operation::Barrier, u8::NAME, [0, 0], 0, whole, |whole, results| {
            Box::new(AllGather::<u8, _>::new(whole, &self.parts(rows), results))
        })
        .wait()
        .map(drop)
    }

    fn parts(&self, rows: Rows) -> Vec<Range<usize>> {
        (0..self.ranks()).map(|rank| rows.part(rank, self.ranks())).collect()
    }

    fn others(&self, member: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.ranks()).filter(move |other| *other != member)
    }

    fn start<T: Send + 'static>(
        &self,
        operation: Operation,
        element: &str,
        shape: [usize; 2],
        root: usize,
        buffers: T,
        job: impl FnOnce(T, Results<T>) -> Box<dyn Job>,
    ) -> Pending<T> {
        let Some(engine) = &self.engine else { return Pending(Stage::Done(Some(buffers))) };
        let collective = operation.is_collective();
        let number = match collective {
            true => self.members.operations.fetch_add(1, Ordering::Relaxed),
            // Both sides must come to the same tag, whatever else each of them does meanwhile.
            false => self.members.next_message(operation == Operation::Send, root),
        };
        let tag = number % TAGS + if collective { 0 } else { TAGS };
        let results = Results::default();
        let ending = Arc::new(Ending::default());
        engine.run(Submission {
            job: job(buffers, Arc::clone(&results)),
            call: Call::new(number, operation, element, shape, root),
            tag: tag as u32,
            members: Arc::clone(&self.members),
            of: Arc::clone(&self.of),
            ending: Arc::clone(&ending),
        });
        Pending(Stage::Running { engine: Arc::clone(engine), ending, results })
    }

    fn argument(&self, operation: Operation, reason: String) -> CommError {
        CommError::Argument {
            operation: operation.name(),
            group: self.members.name.clone(),
            reason,
        }
    }

    fn check_length(
        &self,
        operation: Operation,
        what: &str,
        found: usize,
        expected: usize,
    ) -> Result<()> {
        match found == expected {
            true => Ok(()),
            false => {
                let reason = format!("{what} has {found} elements, expected {expected}");
                Err(self.argument(operation, reason))
            }
        }
    }

    fn check_member(&self, operation: Operation, member: usize) -> Result<()> {
        match member < self.ranks() {
            true => Ok(()),
            false => {
                let reason = format!("found member {member}, expected less than {}", self.ranks());
                Err(self.argument(operation, reason))
            }
        }
    }
}
