//! The thread that owns the engine: requests in, outputs out, times measured on the way.
//!
//! An output goes into a queue of its HTTP request that takes everything at once, so a slow reader
//! holds up nobody; it holds at most what `max_tokens` allows.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use altiplano_model::infer::{Request, RequestId, SequenceId, SequenceOutput};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::error::{ApiError, ServeError};
use crate::serving_metrics::ServingMetrics;
use crate::token_engine::{EngineEvent, EventKind, TokenEngine};

/// How long the thread waits for requests before it updates its numbers again.
const IDLE: Duration = Duration::from_millis(500);

/// What a waiting HTTP request hears.
#[derive(Debug)]
pub enum Delivery {
    /// A step brought something for its prompt number `prompt`.
    Output {
        /// Which of the prompts of the HTTP request.
        prompt: usize,
        /// What the step brought.
        output: SequenceOutput,
    },
    /// The engine never can answer.
    Refused(String),
    /// The server ends: what is there is all.
    Aborted,
    /// The engine broke down.
    Failed(String),
}

/// A way to hear of the outputs of some requests.
pub type Deliveries = UnboundedReceiver<Delivery>;

enum Command {
    Add { request: Box<Request>, prompt: usize, deliver: UnboundedSender<Delivery> },
    Abort(RequestId),
    AbortSequence(SequenceId),
    AbortAll,
    ResetPrefixCache(oneshot::Sender<()>),
}

/// The way to the engine for everybody else.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: Sender<Command>,
    next: Arc<AtomicU64>,
    /// Why the engine ended, once it has.
    ended: watch::Receiver<Option<String>>,
}

/// Starts the thread.
///
/// # Errors
/// [`ServeError::System`] when the system refuses it.
pub fn start(
    engine: impl TokenEngine + 'static,
    metrics: Arc<ServingMetrics>,
) -> Result<EngineHandle, ServeError> {
    let (commands, received) = channel();
    let (end, ended) = watch::channel(None);
    let stats = engine.stats();
    metrics.set_cache(&stats);
    metrics.set_engine(&stats);
    let run = move || {
        let mut thread = EngineThread { engine, metrics, open: HashMap::new(), commands: received };
        let ending = catch_unwind(AssertUnwindSafe(|| thread.run()));
        let reason = match ending {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => reason,
            Err(panic) => panic_message(panic.as_ref()),
        };
        let _ = end.send(Some(reason.clone()));
        thread.fail(&reason);
    };
    std::thread::Builder::new().name("engine".into()).spawn(run).map_err(|source| {
        ServeError::System { what: "cannot start the engine's thread", source }
    })?;
    Ok(EngineHandle { commands, next: Arc::default(), ended })
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it panicked".to_owned())
}

impl EngineHandle {
    /// Hands in the prompts of one HTTP request. The guard ends them when it is dropped.
    ///
    /// # Errors
    /// 500 when the engine has ended.
    pub fn submit(&self, requests: Vec<Request>) -> Result<(Deliveries, AbortGuard), ApiError> {
        let (deliver, deliveries) = unbounded_channel();
        let mut guard =
            AbortGuard(Aborter { commands: self.commands.clone(), requests: Vec::new() });
        for (prompt, mut request) in requests.into_iter().enumerate() {
            request.id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
            guard.0.requests.push(request.id);
            let request = Box::new(request);
            let command = Command::Add { request, prompt, deliver: deliver.clone() };
            self.commands.send(command).map_err(|_| self.failure())?;
        }
        Ok((deliveries, guard))
    }

    /// Ends everything that is open; what came so far is the answer.
    pub fn abort_all(&self) {
        let _ = self.commands.send(Command::AbortAll);
    }

    /// Forgets earlier prompts.
    ///
    /// # Errors
    /// 500 when the engine has ended.
    pub async fn reset_prefix_cache(&self) -> Result<(), ApiError> {
        let (done, is_done) = oneshot::channel();
        self.commands.send(Command::ResetPrefixCache(done)).map_err(|_| self.failure())?;
        is_done.await.map_err(|_| self.failure())
    }

    /// Why the engine ended, if it has.
    pub fn ended(&self) -> Option<String> {
        self.ended.borrow().clone()
    }

    /// Waits until the engine ends by a fault; the reason.
    pub async fn wait_for_end(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The thread went without a fault: there is nothing to wait for.
            Err(_) => std::future::pending().await,
        }
    }

    /// What a client hears of it.
    pub fn failure(&self) -> ApiError {
        ApiError::internal("the inference engine broke down; the server's log says why")
    }
}

/// A way to end the requests of one HTTP request early.
#[derive(Debug, Clone)]
pub struct Aborter {
    commands: Sender<Command>,
    requests: Vec<RequestId>,
}

impl Aborter {
    /// Ends one answer to a prompt, because it has what it needs.
    pub fn abort_sequence(&self, prompt: usize, index: usize) {
        if let Some(request) = self.requests.get(prompt) {
            let sequence = SequenceId { request: *request, index };
            let _ = self.commands.send(Command::AbortSequence(sequence));
        }
    }
}

/// Ends its requests when it is dropped: the client went away, or has all it wants.
#[derive(Debug)]
pub struct AbortGuard(Aborter);

impl AbortGuard {
    /// Ends single answers while the guard is elsewhere.
    pub fn aborter(&self) -> Aborter {
        self.0.clone()
    }
}

impl Drop for AbortGuard {
    fn drop(&mut self) {
        for id in &self.0.requests {
            let _ = self.0.commands.send(Command::Abort(*id));
        }
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

/// A request the engine works on.
struct Open {
    prompt: usize,
    deliver: UnboundedSender<Delivery>,
    /// Of each sequence, whether it has ended.
    ended: Vec<bool>,
    times: Times,
}

impl Open {
    /// Sequences that have not ended.
    fn left(&self) -> usize {
        self.ended.iter().filter(|ended| !**ended).count()
    }
}

/// When things happened to a request.
struct Times {
    queued: Instant,
    scheduled: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    preemptions: u32,
}

struct EngineThread<E> {
    engine: E,
    metrics: Arc<ServingMetrics>,
    open: HashMap<RequestId, Open>,
    commands: Receiver<Command>,
}

impl<E: TokenEngine> EngineThread<E> {
    /// Works until nobody can send requests any more.
    fn run(&mut self) -> Result<(), String> {
        loop {
            if !self.engine.has_requests() {
                match self.commands.recv_timeout(IDLE) {
                    Ok(command) => self.obey(command),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
            }
            while let Ok(command) = self.commands.try_recv() {
                self.obey(command);
            }
            if self.engine.has_requests() {
                let outputs = self.engine.step()?;
                let stats = self.engine.stats();
                self.note_events();
                self.metrics.iteration_tokens.observe(stats.step_tokens as f64);
                self.metrics.set_engine(&stats);
                let now = Instant::now();
                outputs.into_iter().for_each(|output| self.deliver(output, now));
            } else {
                self.note_events();
                self.metrics.set_engine(&self.engine.stats());
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Add { request, prompt, deliver } => {
                let (id, ended) = (request.id, vec![false; request.n]);
                let times = Times {
                    queued: Instant::now(),
                    scheduled: None,
                    first_token: None,
                    last_token: None,
                    preemptions: 0,
                };
                match self.engine.add(*request) {
                    Ok(()) => {
                        self.open.insert(id, Open { prompt, deliver, ended, times });
                    }
                    Err(reason) => {
                        let _ = deliver.send(Delivery::Refused(reason));
                    }
                }
            }
            Command::Abort(id) => {
                if let Some(open) = self.open.remove(&id) {
                    self.engine.abort(id);
                    // Its client went away: nobody else counts the end of these.
                    self.metrics.finished.with(&["abort"]).add(open.left() as u64);
                }
            }
            Command::AbortSequence(sequence) => {
                if self.end_sequence(sequence) {
                    self.engine.abort_sequence(sequence);
                }
            }
            Command::AbortAll => {
                for (id, open) in self.open.drain() {
                    self.engine.abort(id);
                    let _ = open.deliver.send(Delivery::Aborted);
                }
            }
            Command::ResetPrefixCache(done) => {
                self.engine.reset_prefix_cache();
                let _ = done.send(());
            }
        }
    }

    fn note_events(&mut self) {
        for EngineEvent { request, kind, at } in self.engine.take_events() {
            let Some(open) = self.open.get_mut(&request) else { continue };
            match kind {
                EventKind::Queued => open.times.queued = at,
                EventKind::Scheduled => {
                    if open.times.scheduled.is_none() {
                        open.times.scheduled = Some(at);
                    }
                }
                EventKind::Preempted => open.times.preemptions += 1,
            }
        }
    }

    fn deliver(&mut self, output: SequenceOutput, now: Instant) {
        let id = output.request;
        let Some(open) = self.open.get_mut(&id) else { return };
        if output.token.is_some() {
            open.times.first_token.get_or_insert(now);
            open.times.last_token = Some(now);
        }
        if open.ended.get(output.index).copied().unwrap_or(true) {
            return;
        }
        let ended = output.finish_reason.is_some();
        let sequence = SequenceId { request: id, index: output.index };
        // A client that went away says so by a command of its own.
        let _ = open.deliver.send(Delivery::Output { prompt: open.prompt, output });
        if ended {
            self.end_sequence(sequence);
        }
    }

    /// Takes down the end of a sequence; false when it has ended before.
    fn end_sequence(&mut self, sequence: SequenceId) -> bool {
        let Some(open) = self.open.get_mut(&sequence.request) else { return false };
        let Some(ended) = open.ended.get_mut(sequence.index) else { return false };
        if std::mem::replace(ended, true) {
            return false;
        }
        if open.left() == 0
            && let Some(open) = self.open.remove(&sequence.request)
        {
            self.observe(&open.times);
        }
        true
    }

    fn observe(&self, times: &Times) {
        let Some(scheduled) = times.scheduled else { return };
        let seconds = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64();
        self.metrics.queue_time.observe(seconds(times.queued, scheduled));
        self.metrics.request_preemptions.observe(times.preemptions.into());
        if let (Some(first), Some(last)) = (times.first_token, times.last_token) {
            self.metrics.prefill_time.observe(seconds(scheduled, first));
            self.metrics.decode_time.observe(seconds(first, last));
            self.metrics.inference_time.observe(seconds(scheduled, last));
        }
    }

    /// Tells everybody who waits, and who comes while this is said.
    fn fail(&mut self, reason: &str) {
        for (_, open) in self.open.drain() {
            let _ = open.deliver.send(Delivery::Failed(reason.to_owned()));
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Add { deliver, .. } = command {
                let _ = deliver.send(Delivery::Failed(reason.to_owned()));
            }
        }
    }
}
