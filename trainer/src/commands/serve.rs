//! `altiplano serve`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use altiplano_data::terminal::write_line;
use altiplano_serve::admission::AdmissionLimits;
use altiplano_serve::app::AppOptions;
use altiplano_serve::route::{self, Membership};
use altiplano_serve::runtime::Runtime;
use altiplano_serve::server::{self, ServerOptions};
use clap::Args;

use super::engine_arguments::EngineArguments;
use super::sizes;
use super::threads::use_threads;
use crate::error::{Result, TrainerError};
use crate::serving;

/// Serve a model over HTTP in OpenAI's form, with a chat page.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct ServeArgs {
    #[command(flatten)]
    engine: EngineArguments,
    /// Address to listen on; 0.0.0.0 is all of this machine's.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Key that requests have to send as `Authorization: Bearer KEY`. Default: the environment
    /// variable ALTIPLANO_API_KEY, which other users of the machine cannot see.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Sequences that may wait beside those that are computed; more get status 429.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_num_queued_reqs: usize,
    /// Tokens of prompts that may be inside at a time; more get status 429.
    #[arg(long, value_name = "TOKENS", default_value_t = 1 << 20)]
    max_num_queued_tokens: usize,
    /// Largest body of a request.
    #[arg(long, value_name = "SIZE", default_value = "32MB", value_parser = sizes::bytes)]
    max_request_size: u64,
    /// Seconds that open requests may go on after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    shutdown_timeout: u64,
    /// Tokens of an event of a stream.
    #[arg(long, value_name = "TOKENS", default_value_t = 1)]
    stream_interval: usize,
    /// No line about load every ten seconds.
    #[arg(long)]
    disable_log_stats: bool,
    /// A router to register at, such as http://127.0.0.1:21001.
    #[arg(long, value_name = "URL")]
    router: Option<String>,
    /// The address at which that router reaches this server. Default: where it listens.
    #[arg(long, value_name = "URL", requires = "router")]
    worker_address: Option<String>,
    /// Seconds between heart-beats to the router.
    #[arg(long, value_name = "SECONDS", default_value_t = 45)]
    heart_beat: u64,
}

const EXAMPLE: &str = "\
Example:
  altiplano serve --checkpoint runs/quickstart --port 8000

Then, in another terminal:
  curl http://127.0.0.1:8000/v1/completions -d '{\"prompt\": \"The people\", \"max_tokens\": 32}'
and the chat page at http://127.0.0.1:8000/.

SIGTERM lets open requests end; a second one ends at once. Exit status: 0 after a signal, 1 when the
engine broke down.";

/// The key of the arguments or of the environment.
///
/// # Errors
/// [`TrainerError::Usage`] when it is empty: a server that is open to all is asked for by no key.
pub(super) fn api_key(argument: Option<String>) -> Result<Option<String>> {
    let key = argument.or_else(|| std::env::var("ALTIPLANO_API_KEY").ok());
    match key.as_deref() {
        Some("") => Err(TrainerError::Usage {
            message: "the key of --api-key or ALTIPLANO_API_KEY is empty; give one, or neither"
                .into(),
        }),
        _ => Ok(key),
    }
}

/// Runs the command.
pub fn run(args: ServeArgs) -> Result<()> {
    use_threads(args.engine.threads)?;
    let app = AppOptions {
        admission: AdmissionLimits {
            requests: args.engine.max_num_seqs.saturating_add(args.max_num_queued_reqs),
            tokens: args.max_num_queued_tokens,
        },
        max_logprobs: 0,
        seed: 0,
        stream_interval: args.stream_interval,
        return_tokens_as_token_ids: false,
        api_key: api_key(args.api_key)?,
        max_body_bytes: usize::try_from(args.max_request_size).unwrap_or(usize::MAX),
    };
    let key = app.api_key.clone();
    let app = serving::open(args.engine.options(app)?)?;
    let options = ServerOptions {
        address: SocketAddr::new(args.host, args.port),
        shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
        log_stats: !args.disable_log_stats,
    };
    let names = app.model.names.join(", ");
    let told = Arc::clone(&app);
    let ready = move |address: SocketAddr| {
        write_line(&format!("serving {names} at http://{address}/"));
        if let Some(router) = args.router {
            let worker = args.worker_address.unwrap_or_else(|| format!("http://{address}"));
            let every = Duration::from_secs(args.heart_beat.max(1));
            route::join(Membership { router, worker, key, every }, move || told.worker_status());
        }
    };
    Runtime::start()?.run(server::serve(app, options, ready))?;
    Ok(())
}
