//! A server's life: it starts, serves, writes a line every ten seconds, and ends when it is asked to or
//! when the engine breaks down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::app::App;
use crate::error::{Result, ServeError};
use crate::http::routes;
use crate::listener::Listener;

/// Between two lines about load.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// How long answers may take to be written once nothing is computed any more.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a server ends.
#[derive(Debug, Clone, Copy)]
pub struct ServerOptions {
    /// Where it listens.
    pub address: SocketAddr,
    /// How long open requests may go on after a signal.
    pub shutdown_timeout: Duration,
    /// A line about load from time to time.
    pub log_stats: bool,
}

/// The signals that ask a process to end.
#[derive(Debug)]
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// From now on the signals end the process no more but are waited for.
    ///
    /// # Errors
    /// [`ServeError::System`] when the system refuses it.
    pub fn catch() -> Result<Self> {
        let failed = |source| ServeError::System { what: "cannot wait for signals", source };
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// Waits for one; its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Serves until a signal comes; `ready` hears of the address.
///
/// # Errors
/// When the address is taken, or the engine broke down.
pub async fn serve(
    app: Arc<App>,
    options: ServerOptions,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let mut signals = EndSignals::catch()?;
    let listener = Listener::bind(options.address).await?;
    let address = listener.address();
    let (end, ending) = watch::channel(false);
    let server = tokio::spawn(listener.serve(routes(Arc::clone(&app)), ending));
    let log = options.log_stats.then(|| tokio::spawn(log_load(Arc::clone(&app))));
    ready(address);
    let ended = tokio::select! {
        name = signals.next() => {
            tracing::info!("{name}: no new requests; {} are open", app.open_requests());
            app.drain();
            tokio::select! {
                () = drain(&app, options.shutdown_timeout) => Ok(()),
                name = signals.next() => {
                    tracing::info!("{name} again: ends at once");
                    return Ok(());
                }
                reason = app.engine.wait_for_end() => Err(ServeError::EngineEnded { reason }),
            }
        }
        reason = app.engine.wait_for_end() => Err(ServeError::EngineEnded { reason }),
    };
    if let Some(log) = log {
        log.abort();
    }
    // Answers that are made are still written.
    let _ = end.send(true);
    let _ = tokio::time::timeout(LAST_WORDS, server).await;
    ended
}

/// Waits until all is answered; after `most` what is there is the answer.
async fn drain(app: &App, most: Duration) {
    let begun = Instant::now();
    let mut aborted = false;
    while app.open_requests() > 0 {
        if !aborted && begun.elapsed() >= most {
            tracing::info!("{} requests end with what they have", app.open_requests());
            app.engine.abort_all();
            aborted = true;
        }
        if begun.elapsed() >= most + LAST_WORDS {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writes a line about load, unless nothing happens.
async fn log_load(app: Arc<App>) {
    let mut ticks = tokio::time::interval(LOG_EVERY);
    ticks.tick().await;
    let metrics = &app.metrics;
    let (mut prompt, mut generated) = (0, 0);
    let mut was_idle = true;
    loop {
        ticks.tick().await;
        let (prompt_now, generated_now) =
            (metrics.prompt_tokens.get(), metrics.generation_tokens.get());
        let (running, waiting, usage) = metrics.load();
        let idle = running + waiting == 0 && prompt_now == prompt && generated_now == generated;
        if !(idle && was_idle) {
            let rate = |now: u64, before: u64| (now - before) as f64 / LOG_EVERY.as_secs_f64();
            tracing::info!(
                "prompt {:.1} tokens/s, generation {:.1} tokens/s, running {running}, waiting {waiting}, \
                 cache {:.1}% in use, prefix cache hit rate {:.1}%",
                rate(prompt_now, prompt),
                rate(generated_now, generated),
                usage * 100.0,
                metrics.prefix_hit_rate() * 100.0,
            );
        }
        (prompt, generated, was_idle) = (prompt_now, generated_now, idle);
    }
}
