//! Heart-beats: a server tells its router that it lives; a router asks workers that do not, and those
//! that somebody waits for.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::Router;
use super::client::{ANSWER_TIME, HttpClient, NoAnswer};
use super::workers::WorkerStatus;
use crate::api_key::ApiKey;

/// A worker that joins a router.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The router's address.
    pub router: String,
    /// The address at which the router reaches the worker.
    pub worker: String,
    /// The key of both.
    pub key: Option<ApiKey>,
    /// Time between heart-beats.
    pub every: Duration,
}

/// Tells a router of this worker from now on: registers it, and again where it was forgotten. `status`
/// is what FastChat's workers say of themselves; none while the worker takes no requests, of which the
/// router is told nothing then.
pub fn join(membership: Membership, status: impl Fn() -> Option<Value> + Send + 'static) {
    tokio::spawn(tell(membership, status));
}

async fn tell(membership: Membership, status: impl Fn() -> Option<Value>) {
    let Membership { router, worker, key, every } = membership;
    let client = HttpClient::new(key.as_ref().map(ApiKey::text), ANSWER_TIME);
    let mut known = false;
    let mut complained = false;
    loop {
        let Some(now) = status() else {
            tokio::time::sleep(every).await;
            continue;
        };
        let told = match known {
            true => {
                let beat = json!({"worker_name": worker, "queue_length": now["queue_length"]});
                client.post_json(&router, "/receive_heart_beat", &beat).await
            }
            false => {
                let registration = json!({"worker_name": worker, "check_heart_beat": true, "worker_status": now, "multimodal": false});
                client.post_json(&router, "/register_worker", &registration).await
            }
        };
        match told {
            Ok(answer) => {
                let forgotten = known && answer.get("exist") == Some(&json!(false));
                known = !forgotten;
                complained = false;
                if forgotten {
                    continue;
                }
            }
            Err(reason) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::warn!(router, %reason, "the router does not take this worker");
                }
                known = false;
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Workers that are asked at a time.
const ASKED_AT_A_TIME: usize = 256;

/// Asks workers how they are, for ever: every `every` those of [`Workers::to_ask`](super::workers::Workers::to_ask).
/// One that takes long holds up nobody.
pub async fn ask(router: Arc<Router>, every: Duration) {
    let room = Arc::new(Semaphore::new(ASKED_AT_A_TIME));
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = JoinSet::new();
    let mut open = HashSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                router.workers.expire();
                for address in router.workers.to_ask(router.options.heart_beat) {
                    if open.insert(address.clone()) {
                        let (router, room) = (Arc::clone(&router), Arc::clone(&room));
                        asked.spawn(async move {
                            let _room = room.acquire().await;
                            ask_one(&router, &address).await;
                            address
                        });
                    }
                }
            }
            Some(done) = asked.join_next() => {
                if let Ok(address) = done {
                    open.remove(&address);
                }
            }
        }
    }
}

/// Asks workers how they are, all at once.
pub async fn ask_all(router: &Router, addresses: &[String]) -> Vec<Asked> {
    join_all(addresses.iter().map(|address| ask_one(router, address))).await
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The worker said what it serves.
    Answered,
    /// It takes no requests now.
    NotReady,
    /// It did not answer, or something else.
    Lost,
    /// It is this router.
    Itself,
}

/// Asks a known worker how it is.
pub async fn ask_one(router: &Router, address: &str) -> Asked {
    match status_of(router, address).await {
        Ok(status) if router.is_itself(&status) => {
            router.workers.fail(address);
            tracing::warn!(worker = address, "this router cannot be its own worker");
            Asked::Itself
        }
        Ok(status) => match WorkerStatus::of_json(&status) {
            Some(status) => {
                router.workers.answered(address, status);
                Asked::Answered
            }
            None => {
                router.workers.lose(address);
                Asked::Lost
            }
        },
        Err(NoAnswer::Status(_)) => {
            router.workers.fail(address);
            Asked::NotReady
        }
        Err(NoAnswer::Broken(reason)) => {
            tracing::debug!(worker = address, reason, "no answer");
            router.workers.lose(address);
            Asked::Lost
        }
    }
}

/// What a worker says of itself. One that does not know the question is no server of ours, and is asked
/// for its models.
pub async fn status_of(router: &Router, address: &str) -> Result<Value, NoAnswer> {
    let unknown = |status: &StatusCode| {
        let statuses =
            [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_IMPLEMENTED];
        statuses.contains(status)
    };
    match router.client.post_json(address, "/worker_get_status", &json!({})).await {
        Err(NoAnswer::Status(status)) if unknown(&status) => {}
        answered => return answered,
    }
    let text = router.client.get_text(address, "/v1/models").await?;
    let models: Value =
        serde_json::from_str(&text).map_err(|error| NoAnswer::Broken(error.to_string()))?;
    let cards = models.get("data").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = cards.filter_map(|card| card.get("id")?.as_str()).collect();
    Ok(json!({"model_names": names, "speed": 1, "queue_length": 0}))
}
