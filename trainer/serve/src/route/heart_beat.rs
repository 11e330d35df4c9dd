//! Heart-beats: a server tells its router that it lives; a router asks workers that do not.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::Router;
use super::client::HttpClient;
use super::workers::WorkerStatus;

/// A worker that joins a router.
#[derive(Debug, Clone)]
pub struct Membership {
    /// The router's address.
    pub router: String,
    /// The address at which the router reaches the worker.
    pub worker: String,
    /// The key of both.
    pub key: Option<String>,
    /// Time between heart-beats.
    pub every: Duration,
}

/// Tells a router of this worker from now on: registers it, and again where it was forgotten. `status`
/// is what FastChat's workers say of themselves.
pub fn join(membership: Membership, status: impl Fn() -> Value + Send + 'static) {
    tokio::spawn(tell(membership, status));
}

async fn tell(membership: Membership, status: impl Fn() -> Value) {
    let Membership { router, worker, key, every } = membership;
    let client = HttpClient::new(key.as_deref());
    let mut known = false;
    let mut complained = false;
    loop {
        let now = status();
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
                    tracing::warn!(router, reason, "the router does not answer");
                }
                known = false;
            }
        }
        tokio::time::sleep(every).await;
    }
}

/// Asks workers that were named on the command line and those that failed, every `every`, for ever.
pub async fn ask(router: Arc<Router>, every: Duration) {
    loop {
        let (up, all) = router.workers.addresses();
        for address in &router.options.workers {
            ask_one(&router, address).await;
        }
        for address in all.iter().filter(|address| !up.contains(address)) {
            if !router.options.workers.contains(address) {
                ask_one(&router, address).await;
            }
        }
        router.workers.expire();
        tokio::time::sleep(every).await;
    }
}

/// Asks a worker how it is; true when it answered. One that is no server of ours is asked for its models.
pub async fn ask_one(router: &Router, address: &str) -> bool {
    let status = match router.client.post_json(address, "/worker_get_status", &json!({})).await {
        Ok(answer) => WorkerStatus::of_json(&answer),
        Err(_) => {
            let models = router.client.get_text(address, "/v1/models", &HeaderMap::new()).await;
            let models = models.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
            models.and_then(|models| {
                let names = models.get("data")?.as_array()?.iter();
                let model_names =
                    names.filter_map(|card| card.get("id")?.as_str().map(str::to_owned)).collect();
                Some(WorkerStatus { model_names, speed: 1.0, queue_length: 0 })
            })
        }
    };
    match status {
        Some(status) => router.workers.register(address, status, false),
        None => {
            router.workers.fail(address);
            false
        }
    }
}
