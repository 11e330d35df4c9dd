//! Exchanges of tensors between ranks: the collectives of `altiplano-comm` over tensors on the CPU.
//!
//! An exchange is started and gives a [`Pending`]; the rank computes on and waits where it needs
//! the result. An error of the start is met there too. A group of one rank returns its argument.

use std::ops::Range;

use altiplano_comm::{CommError, Rows};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Tensor};
use half::bf16;

use crate::backend::ExchangeBuffer;
use crate::error::Result;

/// Some ranks that exchange tensors.
#[derive(Debug, Clone)]
pub enum Group {
    /// One rank.
    Single,
    /// Ranks whose tensors are on the CPU.
    Host(altiplano_comm::Group),
}

/// The ranks that hold a part of every matrix of one copy of the model.
#[derive(Debug, Clone)]
pub struct TensorGroup {
    group: Group,
    sequence: bool,
    overlap: bool,
}

/// A result that may still be on its way. Dropping it waits for the exchange.
pub struct Pending<T>(Stage<T>);

enum Stage<T> {
    Done(Result<T>),
    Running(Box<dyn FnOnce() -> Result<T> + Send>),
}

impl<T> std::fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stage = match &self.0 {
            Stage::Done(Ok(_)) => "done",
            Stage::Done(Err(_)) => "failed",
            Stage::Running(_) => "running",
        };
        f.debug_tuple("Pending").field(&stage).finish()
    }
}

impl<T: 'static> Pending<T> {
    /// A result that is there.
    pub fn done(value: T) -> Self {
        Self(Stage::Done(Ok(value)))
    }

    /// What `start` starts: a function that waits for it.
    fn started<W>(start: impl FnOnce() -> Result<W>) -> Self
    where
        W: FnOnce() -> Result<T> + Send + 'static,
    {
        match start() {
            Ok(wait) => Self(Stage::Running(Box::new(wait))),
            Err(error) => Self(Stage::Done(Err(error))),
        }
    }

    /// The result, when it is there.
    ///
    /// # Errors
    /// A rank ended, did not answer in time, or called something else.
    pub fn wait(self) -> Result<T> {
        match self.0 {
            Stage::Done(result) => result,
            Stage::Running(wait) => wait(),
        }
    }

    /// What `change` makes of the result.
    #[must_use]
    pub fn map<U: 'static>(self, change: impl FnOnce(T) -> U + Send + 'static) -> Pending<U> {
        Pending(match self.0 {
            Stage::Done(result) => Stage::Done(result.map(change)),
            Stage::Running(wait) => Stage::Running(Box::new(|| wait().map(change))),
        })
    }
}

/// Runs `$body` with `$e` the element type of `$dtype`; activations and gradients are nothing else.
macro_rules! with_summand {
    ($dtype:expr, $e:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $e = f32;
                $body
            }
            DType::BF16 => {
                type $e = bf16;
                $body
            }
            DType::F64 => {
                type $e = f64;
                $body
            }
            other => panic!("ranks exchange no {other:?}"),
        }
    };
}

impl Group {
    /// This rank's place in the group.
    pub fn rank(&self) -> usize {
        match self {
            Self::Single => 0,
            Self::Host(group) => group.rank(),
        }
    }

    /// Ranks in the group.
    pub fn ranks(&self) -> usize {
        match self {
            Self::Single => 1,
            Self::Host(group) => group.ranks(),
        }
    }

    /// The rows of this rank, of `rows` over all ranks.
    pub fn own_rows(&self, rows: usize) -> Range<usize> {
        Rows::single(rows).part(self.rank(), self.ranks())
    }

    /// (1, own rows, C) on each to (1, `rows`, C) on each, in the order of the ranks.
    pub fn start_all_gather(&self, x: Tensor<3>, rows: usize) -> Pending<Tensor<3>> {
        let Self::Host(group) = self else { return Pending::done(x) };
        Pending::started(|| {
            let width = x.dims()[2];
            let spread = Rows { count: rows, width };
            let start = spread.part(group.rank(), group.ranks()).start;
            let (dtype, x) = (x.dtype(), self.on_host(x, "all-gather")?);
            with_summand!(dtype, E => {
                let mut whole = ExchangeBuffer::<E>::new(&[1, rows, width], dtype);
                whole.write(start, x);
                let pending = group.start_all_gather::<E, _>(whole, spread)?;
                Ok(boxed(move || Ok(of_host(pending.wait()?.into_tensor()))))
            })
        })
    }

    /// (1, rows, C) on each to (1, own rows, C): those of the sum over ranks.
    pub fn start_reduce_scatter(&self, x: Tensor<3>) -> Pending<Tensor<3>> {
        let Self::Host(group) = self else { return Pending::done(x) };
        Pending::started(|| {
            let [_, rows, width] = x.dims();
            let spread = Rows { count: rows, width };
            let own = self.own_rows(rows).len();
            let (dtype, x) = (x.dtype(), self.on_host(x, "reduce-scatter")?);
            with_summand!(dtype, E => {
                let part = ExchangeBuffer::<E>::new(&[1, own, width], dtype);
                let whole = ExchangeBuffer::<E>::of(x);
                let pending = group.start_reduce_scatter::<E, _, _>(whole, part, spread)?;
                Ok(boxed(move || Ok(of_host(pending.wait()?.1.into_tensor()))))
            })
        })
    }

    /// The sum over ranks, on each.
    pub fn start_all_reduce<const D: usize>(&self, x: Tensor<D>) -> Pending<Tensor<D>> {
        let Self::Host(group) = self else { return Pending::done(x) };
        Pending::started(|| {
            let (dtype, x) = (x.dtype(), self.on_host(x, "all-reduce")?);
            with_summand!(dtype, E => {
                let pending = group.start_all_reduce::<E, _>(ExchangeBuffer::<E>::of(x))?;
                Ok(boxed(move || Ok(of_host(pending.wait()?.into_tensor()))))
            })
        })
    }

    /// The storage of a tensor, which this group exchanges on the CPU alone.
    fn on_host<const D: usize>(&self, x: Tensor<D>, operation: &'static str) -> Result<FlexTensor> {
        let device = x.device();
        let wrong = || CommError::Argument {
            operation,
            group: match self {
                Self::Single => String::new(),
                Self::Host(group) => group.name().to_string(),
            },
            reason: format!("the tensor is on {device:?}, expected the CPU"),
        };
        Ok(x.try_into_primitive::<Flex>().map_err(|_| wrong())?)
    }
}

/// What waits for an exchange.
type Wait<T> = Box<dyn FnOnce() -> Result<T> + Send>;

fn boxed<T>(wait: impl FnOnce() -> Result<T> + Send + 'static) -> Wait<T> {
    Box::new(wait)
}

fn of_host<const D: usize>(x: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(x)
}

/// The group of a process that computes alone.
static ONE_RANK: TensorGroup = TensorGroup { group: Group::Single, sequence: false, overlap: true };

impl Default for TensorGroup {
    fn default() -> Self {
        ONE_RANK.clone()
    }
}

impl TensorGroup {
    /// The ranks of `group`, which split every matrix; with `sequence`, norms and the residual
    /// stream by tokens too. Without `overlap` every exchange is waited for where it starts, with
    /// the same bits.
    pub fn new(group: altiplano_comm::Group, sequence: bool, overlap: bool) -> Self {
        let group = if group.ranks() == 1 { Group::Single } else { Group::Host(group) };
        Self { group, sequence, overlap }
    }

    /// A process that computes alone.
    pub fn one_rank() -> &'static Self {
        &ONE_RANK
    }

    /// The ranks.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// Whether there is one rank alone.
    pub fn is_single(&self) -> bool {
        matches!(self.group, Group::Single)
    }

    /// The words of a vocabulary whose rows this rank holds.
    pub fn words(&self, vocab_size: usize) -> Range<usize> {
        self.group.own_rows(vocab_size)
    }

    /// Whether norms and the residual stream are split by tokens.
    pub fn splits_tokens(&self) -> bool {
        self.sequence && !self.is_single()
    }

    /// The exchange that `start` starts, over by now unless it may go on meanwhile.
    pub(super) fn exchange<T: 'static>(
        &self,
        start: impl FnOnce(&Group) -> Pending<T>,
    ) -> Pending<T> {
        let pending = start(&self.group);
        if self.overlap { pending } else { Pending(Stage::Done(pending.wait())) }
    }
}
