//! All integration tests in one binary: the tensor libraries link once.

#![allow(clippy::unwrap_used)]

mod numeric;
