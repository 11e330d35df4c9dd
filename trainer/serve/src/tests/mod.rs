//! The server through HTTP on loopback, with an engine that says a fixed text.

#![allow(clippy::unwrap_used)]

mod client;
mod fake_engine;
mod faults;
mod requests;
pub mod server;
