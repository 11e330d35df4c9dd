//! `altiplano serve`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use altiplano_data::terminal::write_line;
use altiplano_serve::admission::AdmissionLimits;
use altiplano_serve::api_key::ApiKey;
use altiplano_serve::app::AppOptions;
use altiplano_serve::route::{self, Membership};
use altiplano_serve::runtime::Runtime;
use altiplano_serve::server::{self, ServerOptions};
use clap::Args;
use clap::builder::RangedU64ValueParser;

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
    api_key: Option<ApiKey>,
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
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds(0))]
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
    /// The address at which that router reaches this server. Default: where it listens, which is one
    /// address unless --host is 0.0.0.0 or ::.
    #[arg(long, value_name = "URL", requires = "router")]
    worker_address: Option<String>,
    /// Seconds between heart-beats to the router.
    #[arg(long, value_name = "SECONDS", default_value_t = 45, value_parser = seconds(1))]
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

/// Seconds from `least` to a week.
pub(super) fn seconds(least: u64) -> RangedU64ValueParser {
    RangedU64ValueParser::new().range(least..=7 * 24 * 3600)
}

/// The key of the arguments or of the environment.
///
/// # Errors
/// [`TrainerError::Usage`] when it is empty, because a server that is open to all is asked for by no key,
/// or no header can carry it.
pub(super) fn api_key(argument: Option<ApiKey>) -> Result<Option<ApiKey>> {
    let of_environment = || std::env::var("ALTIPLANO_API_KEY").ok().map(ApiKey::from);
    let key = argument.or_else(of_environment);
    let refused = |what: &str| {
        let message = format!("the key of --api-key or ALTIPLANO_API_KEY {what}");
        Err(TrainerError::Usage { message })
    };
    match key.as_ref().map(ApiKey::text) {
        Some("") => refused("is empty; give one, or neither"),
        Some(text) if !text.bytes().all(|byte| byte.is_ascii_graphic()) => refused(
            "has characters that no header can carry; use letters, digits and signs of ASCII",
        ),
        _ => Ok(key),
    }
}

/// The address of this server for its router, where it is not the one it listens on.
///
/// # Errors
/// [`TrainerError::Usage`] when it listens on all addresses and says none.
fn worker_address(args: &ServeArgs) -> Result<Option<String>> {
    if args.router.is_some() && args.worker_address.is_none() && args.host.is_unspecified() {
        return Err(TrainerError::Usage {
            message: format!(
                "--router with --host {}: the router cannot reach this server there; give \
                 --worker-address http://NAME:PORT with a name or address of this machine",
                args.host
            ),
        });
    }
    Ok(args.worker_address.clone())
}

/// Runs the command.
pub fn run(args: ServeArgs) -> Result<()> {
    let worker_address = worker_address(&args)?;
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
            let worker = worker_address.unwrap_or_else(|| format!("http://{address}"));
            let every = Duration::from_secs(args.heart_beat);
            let status = move || told.check_ready().ok().map(|()| told.worker_status());
            route::join(Membership { router, worker, key, every }, status);
        }
    };
    Runtime::start()?.run(server::serve(app, options, ready))?;
    Ok(())
}
