//! `altiplano serve`, `batch` and `route` through the binary, on loopback, with a small trained model.

mod answers;
mod batch;
mod browser;
#[path = "../../trainer/serve/src/tests/client.rs"]
mod client;
mod faults;
mod paced_worker;
mod page;
mod route;
mod server;
