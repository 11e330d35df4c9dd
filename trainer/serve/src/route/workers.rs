//! The workers a router knows: what they serve, how busy they are, when they were last heard of.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::sync::watch;

/// How a worker is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dispatch {
    /// The one with the shortest queue for its speed.
    #[default]
    ShortestQueue,
    /// At random, in proportion to speed.
    Lottery,
}

/// Requests by which the queue of the worker that knows a prompt may be longer than the shortest.
const AFFINITY_SLACK: f64 = 4.0;

/// A worker.
#[derive(Debug)]
struct Worker {
    models: Vec<String>,
    speed: f64,
    /// Requests it had of others than this router, when it was last heard of.
    others: usize,
    /// Requests of this router that it has.
    in_flight: usize,
    last_heard: Instant,
    /// It failed since it last answered a question.
    failed: bool,
    /// It says when it lives; otherwise it is asked.
    sends_heart_beats: bool,
    /// How often it was lost. Who waits for its answers hears of it, also when it is forgotten.
    losses: watch::Sender<u64>,
}

impl Worker {
    /// A worker that nothing is known of, and that gets nothing before it has answered.
    fn unknown() -> Self {
        Self {
            models: Vec::new(),
            speed: 1.0,
            others: 0,
            in_flight: 0,
            last_heard: Instant::now(),
            failed: true,
            sends_heart_beats: false,
            losses: watch::Sender::new(0),
        }
    }

    /// Takes over what it says of itself.
    fn set_status(&mut self, status: WorkerStatus) {
        self.models = status.model_names;
        self.speed = status.speed;
        self.others = status.queue_length.saturating_sub(self.in_flight);
        self.last_heard = Instant::now();
        self.failed = false;
    }
}

/// What a worker says of itself, in FastChat's fields.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerStatus {
    /// Names of its models.
    pub model_names: Vec<String>,
    /// Its speed relative to others.
    pub speed: f64,
    /// Requests it has.
    pub queue_length: usize,
}

impl WorkerStatus {
    /// Reads `{"model_names", "speed", "queue_length"}`.
    pub fn of_json(value: &Value) -> Option<Self> {
        let names = value.get("model_names")?.as_array()?;
        let model_names =
            names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?;
        let speed = value.get("speed").and_then(Value::as_f64).unwrap_or(1.0);
        let queue_length = value.get("queue_length").and_then(Value::as_u64).unwrap_or(0) as usize;
        let speed = if speed.is_finite() && speed > 0.0 { speed } else { 1.0 };
        Some(Self { model_names, speed, queue_length })
    }
}

/// All workers.
#[derive(Debug)]
pub struct Workers {
    list: Mutex<BTreeMap<String, Worker>>,
    dispatch: Dispatch,
    /// A worker that is silent for longer gets no request.
    expiry: Duration,
    lottery: Mutex<ChaCha8Rng>,
}

/// A request that a worker has; it is counted until this is dropped.
#[derive(Debug)]
pub struct Assigned {
    /// The worker's address.
    pub address: String,
    workers: Arc<Workers>,
    losses: watch::Receiver<u64>,
}

impl Assigned {
    /// The worker broke off.
    pub fn fail(&self) {
        self.workers.fail(&self.address);
    }

    /// Waits until the worker is lost: it does not answer questions any more.
    pub async fn lost(&mut self) {
        // An error says that the worker was forgotten.
        let _ = self.losses.changed().await;
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        if let Some(worker) = self.workers.lock().get_mut(&self.address) {
            worker.in_flight = worker.in_flight.saturating_sub(1);
        }
    }
}

/// Most workers.
const MOST_WORKERS: usize = 4096;

impl Workers {
    /// None yet.
    pub fn new(dispatch: Dispatch, expiry: Duration, seed: u64) -> Arc<Self> {
        let lottery = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        Arc::new(Self { list: Mutex::default(), dispatch, expiry, lottery })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Worker>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Knows of a worker that was named and has said nothing yet.
    pub fn expect(&self, address: &str) {
        self.lock().entry(address.to_owned()).or_insert_with(Worker::unknown);
    }

    /// Takes a worker in, or up again. False when there are too many.
    pub fn register(&self, address: &str, status: WorkerStatus, sends_heart_beats: bool) -> bool {
        let mut list = self.lock();
        if !list.contains_key(address) && list.len() >= MOST_WORKERS {
            return false;
        }
        let worker = list.entry(address.to_owned()).or_insert_with(Worker::unknown);
        if worker.failed {
            tracing::info!(worker = address, "a worker is there");
        }
        worker.sends_heart_beats |= sends_heart_beats;
        worker.set_status(status);
        true
    }

    /// A worker answered a question; one that was forgotten meanwhile has to register.
    pub fn answered(&self, address: &str, status: WorkerStatus) {
        if let Some(worker) = self.lock().get_mut(address) {
            if worker.failed {
                tracing::info!(worker = address, "a worker is there");
            }
            worker.set_status(status);
        }
    }

    /// Hears of a worker; false when it is not known and has to register. One that failed gets nothing
    /// before it has answered a question, because its heart-beats may arrive where requests do not.
    pub fn heart_beat(&self, address: &str, queue_length: usize) -> bool {
        let mut list = self.lock();
        let Some(worker) = list.get_mut(address) else { return false };
        worker.others = queue_length.saturating_sub(worker.in_flight);
        worker.last_heard = Instant::now();
        true
    }

    /// A worker failed a request or says that it is not ready: it gets nothing until it has answered a
    /// question. What it is answering may still end well.
    pub fn fail(&self, address: &str) {
        if let Some(worker) = self.lock().get_mut(address)
            && !std::mem::replace(&mut worker.failed, true)
        {
            tracing::warn!(worker = address, "a worker failed");
        }
    }

    /// A worker does not answer questions: nobody waits for its answers any more.
    pub fn lose(&self, address: &str) {
        if let Some(worker) = self.lock().get_mut(address) {
            if !std::mem::replace(&mut worker.failed, true) || worker.in_flight > 0 {
                tracing::warn!(worker = address, "a worker does not answer");
            }
            worker.losses.send_modify(|losses| *losses += 1);
        }
    }

    /// The workers to be asked how they are: those that do not say so themselves, that failed, whose
    /// heart-beat is late by `heart_beat`, and those somebody waits for.
    pub fn to_ask(&self, heart_beat: Duration) -> Vec<String> {
        let is_asked = |worker: &Worker| {
            !worker.sends_heart_beats
                || worker.failed
                || worker.in_flight > 0
                || worker.last_heard.elapsed() > heart_beat
        };
        let list = self.lock();
        let asked = list.iter().filter(|(_, worker)| is_asked(worker));
        asked.map(|(address, _)| address.clone()).collect()
    }

    /// Forgets workers that registered themselves and have been silent for too long.
    pub fn expire(&self) {
        self.lock().retain(|address, worker| {
            let stays = !worker.sends_heart_beats || worker.last_heard.elapsed() <= self.expiry;
            if !stays {
                tracing::warn!(worker = address, "a worker has been silent for too long");
            }
            stays
        });
    }

    fn is_up(&self, worker: &Worker) -> bool {
        !worker.failed && worker.last_heard.elapsed() <= self.expiry
    }

    /// Names of the models of workers that are up.
    pub fn models(&self) -> Vec<String> {
        let list = self.lock();
        let mut names: Vec<String> = list
            .values()
            .filter(|worker| self.is_up(worker))
            .flat_map(|worker| worker.models.clone())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The addresses of workers that are up, and those of all.
    pub fn addresses(&self) -> (Vec<String>, Vec<String>) {
        let list = self.lock();
        let up = list.iter().filter(|(_, worker)| self.is_up(worker));
        (up.map(|(address, _)| address.clone()).collect(), list.keys().cloned().collect())
    }

    /// Names of the models when a request has to name one: some worker that is up serves none of the
    /// models of another. Empty when every worker may take a request that names none.
    pub fn choice_of_models(&self) -> Vec<String> {
        let list = self.lock();
        let mut up = list.values().filter(|worker| self.is_up(worker));
        let Some(first) = up.next() else { return Vec::new() };
        let mut shared = first.models.clone();
        up.for_each(|worker| shared.retain(|name| worker.models.contains(name)));
        drop(list);
        if shared.is_empty() { self.models() } else { Vec::new() }
    }

    /// Requests that workers have, and the sum of their speeds: what a router says of itself as a worker.
    pub fn status(&self) -> Value {
        let names = self.models();
        let list = self.lock();
        let up = || list.values().filter(|worker| self.is_up(worker));
        let queue: usize = up().map(|worker| worker.in_flight + worker.others).sum();
        json!({
            "model_names": names,
            "speed": up().map(|worker| worker.speed).sum::<f64>(),
            "queue_length": queue,
        })
    }

    /// Whether a worker that is up serves a model.
    pub fn serves(&self, model: &str) -> bool {
        self.lock()
            .values()
            .any(|worker| self.is_up(worker) && worker.models.iter().any(|name| name == model))
    }

    /// Chooses a worker for a model, none of `tried`. Requests with one `prefix` go to one worker as
    /// long as its queue is not much longer than the shortest.
    pub fn assign(
        self: &Arc<Self>,
        model: Option<&str>,
        prefix: &[u8],
        tried: &[String],
    ) -> Option<Assigned> {
        let mut list = self.lock();
        let serves = |worker: &Worker| {
            model.is_none_or(|model| worker.models.iter().any(|name| name == model))
        };
        let mut candidates: Vec<(String, f64, f64)> = list
            .iter()
            .filter(|(address, worker)| {
                self.is_up(worker) && serves(worker) && !tried.contains(address)
            })
            .map(|(address, worker)| {
                let queue = (worker.in_flight + worker.others) as f64 / worker.speed;
                (address.clone(), queue, worker.speed)
            })
            .collect();
        let shortest = candidates.iter().map(|(_, queue, _)| *queue).min_by(f64::total_cmp)?;
        let address = match self.dispatch {
            Dispatch::ShortestQueue => {
                // The same worker has the highest hash as long as it is there.
                let affinity = |address: &str| {
                    let mut hasher = blake3::Hasher::new();
                    hasher.update(address.as_bytes()).update(&[0]).update(prefix);
                    *hasher.finalize().as_bytes()
                };
                candidates.sort_by_cached_key(|(address, ..)| std::cmp::Reverse(affinity(address)));
                let slack = if prefix.is_empty() { 0.0 } else { AFFINITY_SLACK };
                candidates.into_iter().find(|(_, queue, _)| *queue <= shortest + slack)?.0
            }
            Dispatch::Lottery => {
                let total: f64 = candidates.iter().map(|(_, _, speed)| speed).sum();
                let mut lottery = self.lottery.lock().unwrap_or_else(PoisonError::into_inner);
                let mut ticket = lottery.random::<f64>() * total;
                let won = candidates.iter().position(|(_, _, speed)| {
                    ticket -= speed;
                    ticket < 0.0
                });
                candidates.swap_remove(won.unwrap_or(0)).0
            }
        };
        let worker = list.get_mut(&address)?;
        worker.in_flight += 1;
        let losses = worker.losses.subscribe();
        Some(Assigned { address, workers: Arc::clone(self), losses })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn workers(dispatch: Dispatch) -> Arc<Workers> {
        let workers = Workers::new(dispatch, Duration::from_secs(90), 7);
        for (address, speed) in [("a", 1.0), ("b", 3.0)] {
            let model_names = vec!["m".to_owned(), address.to_owned()];
            workers.register(address, WorkerStatus { model_names, speed, queue_length: 0 }, true);
        }
        workers
    }

    #[test]
    fn the_shortest_queue_for_its_speed_is_chosen_and_counted_at_once() {
        let workers = workers(Dispatch::ShortestQueue);
        let held: Vec<Assigned> =
            (0..8).map(|_| workers.assign(Some("m"), b"", &[]).unwrap()).collect();
        let of_b = held.iter().filter(|assigned| assigned.address == "b").count();
        assert_eq!(of_b, 6);
        drop(held);
        assert_eq!(workers.status()["queue_length"], 0);
        assert_eq!(workers.assign(Some("a"), b"", &[]).unwrap().address, "a");
        assert!(workers.assign(Some("x"), b"", &[]).is_none());
        assert!(workers.assign(Some("a"), b"", &["a".to_owned()]).is_none());
    }

    #[test]
    fn one_prefix_stays_with_one_worker_until_its_queue_is_long() {
        let workers = workers(Dispatch::ShortestQueue);
        let first = workers.assign(Some("m"), b"shared", &[]).unwrap();
        let again = workers.assign(Some("m"), b"shared", &[]).unwrap();
        assert_eq!(first.address, again.address);
        let held: Vec<Assigned> =
            (0..40).map(|_| workers.assign(Some("m"), b"shared", &[]).unwrap()).collect();
        assert!(held.iter().any(|assigned| assigned.address != first.address));
    }

    #[test]
    fn the_lottery_follows_speed_and_its_seed() {
        let draw = || -> Vec<String> {
            let workers = workers(Dispatch::Lottery);
            (0..400).map(|_| workers.assign(Some("m"), b"", &[]).unwrap().address.clone()).collect()
        };
        let drawn = draw();
        assert_eq!(drawn, draw());
        let of_b = drawn.iter().filter(|address| *address == "b").count();
        assert!((250..350).contains(&of_b), "{of_b}");
    }

    #[test]
    fn a_worker_that_fails_gets_nothing_until_it_has_answered() {
        let workers = workers(Dispatch::ShortestQueue);
        workers.fail("a");
        assert_eq!(workers.models(), ["b", "m"]);
        assert!(workers.assign(Some("a"), b"", &[]).is_none());
        // Heart-beats do not say that requests arrive.
        assert!(workers.heart_beat("a", 0));
        assert!(workers.assign(Some("a"), b"", &[]).is_none());
        assert_eq!(workers.to_ask(Duration::from_secs(45)), ["a"]);
        let status = || WorkerStatus {
            model_names: vec!["m".into(), "a".into()],
            speed: 1.0,
            queue_length: 0,
        };
        workers.answered("a", status());
        assert!(workers.assign(Some("a"), b"", &[]).is_some());
        assert_eq!(workers.to_ask(Duration::from_secs(45)), Vec::<String>::new());
        assert!(!workers.heart_beat("unknown", 0));
        workers.answered("unknown", status());
        assert_eq!(workers.addresses().1, ["a", "b"]);
    }

    #[test]
    fn who_waits_for_a_worker_hears_that_it_is_lost_or_forgotten() {
        use futures_util::FutureExt;
        let workers = workers(Dispatch::ShortestQueue);
        let mut waiting = workers.assign(Some("a"), b"", &[]).unwrap();
        assert_eq!(workers.to_ask(Duration::from_secs(45)), ["a"]);
        // One request failed: another may still end well.
        workers.fail("a");
        assert!(waiting.lost().now_or_never().is_none());
        workers.lose("a");
        assert!(waiting.lost().now_or_never().is_some());
        let mut waiting = workers.assign(Some("b"), b"", &[]).unwrap();
        assert!(waiting.lost().now_or_never().is_none());
        workers.lock().remove("b");
        assert!(waiting.lost().now_or_never().is_some());
    }

    #[test]
    fn a_model_has_to_be_named_where_workers_have_none_in_common() {
        let workers = workers(Dispatch::ShortestQueue);
        assert_eq!(workers.choice_of_models(), Vec::<String>::new());
        let status = WorkerStatus { model_names: vec!["x".into()], speed: 1.0, queue_length: 0 };
        workers.register("c", status, true);
        assert_eq!(workers.choice_of_models(), ["a", "b", "m", "x"]);
        workers.fail("c");
        assert_eq!(workers.choice_of_models(), Vec::<String>::new());
    }

    #[test]
    fn a_worker_that_is_silent_is_forgotten() {
        let silent = Workers::new(Dispatch::ShortestQueue, Duration::ZERO, 0);
        let status = WorkerStatus { model_names: vec!["m".into()], speed: 1.0, queue_length: 0 };
        silent.register("a", status, true);
        std::thread::sleep(Duration::from_millis(2));
        assert!(silent.assign(Some("m"), b"", &[]).is_none());
        silent.expire();
        assert_eq!(silent.addresses().1.len(), 0);
    }
}
