//! The kernels, in CubeCL: one source for CUDA C++ and, in tests, WGSL.
//!
//! Activations have the element type `F` (f32 or bf16); every sum and every transcendental is f32.
//! `N` is the number of elements a thread moves at once, 16 bytes. Sums run in an order that
//! depends only on the shapes: no atomics.

// What runs on a GPU has indices, not iterators, and nests conditions as its barriers need them.
#![allow(clippy::needless_range_loop, clippy::collapsible_if)]

pub(super) mod adamw;
pub(super) mod attention;
pub(super) mod attention_backward;
pub(super) mod cross_entropy;
pub(super) mod elementwise;
pub(super) mod embedding;
pub(super) mod reduction;
pub(super) mod rms_norm;
pub(super) mod rope;
