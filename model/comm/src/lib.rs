//! Ranks that compute together: groups of them, and collectives over plain slices.
//!
//! A *rank* is a process that a launcher such as `mpirun` started, or a thread of a test. A
//! [`World`] is all ranks of a run, a [`Group`] some of them. Every rank of a group calls the same
//! operations in the same order; each `start_…` gives a [`Pending`] and goes on while the rank
//! computes.
//!
//! **Sums are ours and have one order.** A sum over a group is `((x₀ + x₁) + x₂) + …` in the order of
//! its ranks, element by element. So the same bits come out whatever library moves the bytes,
//! however the buffer is cut into pieces, and however the operations overlap.
//!
//! **No MPI is linked.** The library is opened at run time, and only when a launcher started the
//! process as one of several. One binary runs under Open MPI, under MPICH and its relatives, and
//! under any library with the standard ABI.
//!
//! A module uses only the modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | [`error`] | what can go wrong, with rank and host |
//! | [`grid`] | tensor ranks and data ranks: who is in which group |
//! | [`element`] | what a buffer is made of; sums in the order of the ranks |
//! | [`double_double`] | sums of squares that do not depend on how they are spread |
//! | `bell` | wakes a thread that has nothing to do |
//! | `transport` | what moves bytes between two ranks |
//! | `local` | ranks that are threads of one process |
//! | `call` | what a rank asks for, to be compared between ranks |
//! | `pieces` | a long buffer sent and received in pieces |
//! | `collectives` | all-gather, reduce-scatter, all-reduce, broadcast as they go on |
//! | `engine` | the thread that does all communication; its watch over time |
//! | [`group`] | the operations as a program calls them |
//! | [`mpi`] | the launcher's environment, the libraries and their three ABIs |
//! | [`world`] | the start and the end of a run on several ranks |
//! | [`check`] | tries and times every collective |

pub mod error;

pub mod grid;

pub mod element;

pub mod double_double;

mod bell;

mod transport;

mod local;

mod call;

mod pieces;

mod collectives;

mod engine;

pub mod group;

pub mod mpi;

pub mod world;

pub mod check;

pub use element::{Buffer, Element, Summand};
pub use error::{CommError, Result};
pub use grid::RankGrid;
pub use group::{Group, Pending, Rows, Traffic};
pub use world::{Options, World};
