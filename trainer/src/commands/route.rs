//! `altiplano route`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use altiplano_data::terminal::write_line;
use altiplano_serve::route::{self, Dispatch, RouterOptions};
use altiplano_serve::runtime::Runtime;
use clap::{Args, ValueEnum};

use super::serve::api_key;
use super::sizes;
use crate::error::Result;

/// One address in front of many servers: several models, several workers for each.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct RouteArgs {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 21001)]
    port: u16,
    /// Workers that do not register themselves, such as http://127.0.0.1:8001.
    #[arg(long, value_name = "URL", num_args = 1..)]
    workers: Vec<String>,
    /// How a worker is chosen.
    #[arg(long, value_enum, default_value_t = DispatchName::ShortestQueue)]
    dispatch: DispatchName,
    /// Seed of the lottery.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Seconds between heart-beats; a worker that is silent for two of them gets no request.
    #[arg(long, value_name = "SECONDS", default_value_t = 45)]
    heart_beat: u64,
    /// Key that clients and workers have to send; it is handed on to the workers. Default: the
    /// environment variable ALTIPLANO_API_KEY.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Largest body of a request.
    #[arg(long, value_name = "SIZE", default_value = "32MB", value_parser = sizes::bytes)]
    max_request_size: u64,
    /// Seconds that open requests may go on after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    shutdown_timeout: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DispatchName {
    /// The shortest queue for the worker's speed.
    #[value(name = "shortest_queue")]
    ShortestQueue,
    /// At random, in proportion to speed.
    Lottery,
}

const EXAMPLE: &str = "\
Example:
  altiplano route --port 21001

A server joins it by `--router`:
  altiplano serve --checkpoint runs/quickstart --port 8001 --router http://127.0.0.1:21001";

/// Runs the command.
pub fn run(args: RouteArgs) -> Result<()> {
    let options = RouterOptions {
        address: SocketAddr::new(args.host, args.port),
        workers: args.workers,
        dispatch: match args.dispatch {
            DispatchName::ShortestQueue => Dispatch::ShortestQueue,
            DispatchName::Lottery => Dispatch::Lottery,
        },
        seed: args.seed,
        heart_beat: Duration::from_secs(args.heart_beat.max(1)),
        api_key: api_key(args.api_key)?,
        max_body_bytes: usize::try_from(args.max_request_size).unwrap_or(usize::MAX),
        shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
    };
    let ready = |address: SocketAddr| write_line(&format!("routing at http://{address}/"));
    Runtime::start()?.run(route::serve(options, ready))?;
    Ok(())
}
