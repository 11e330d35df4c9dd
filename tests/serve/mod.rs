//! `altiplano serve`, `batch` and `route` through the binary, on loopback, with a small trained model.

mod answers;
mod batch;
mod faults;
mod page;
mod route;
mod server;
