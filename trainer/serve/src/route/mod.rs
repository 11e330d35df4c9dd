//! A router in front of any number of servers: one address, several models, several workers for each.
//!
//! Workers register and send heart-beats on the paths and with the fields of FastChat's controller, or
//! they are named on the command line and asked. Requests go to the worker with the shortest queue, or
//! by lottery; those that share the beginning of a prompt meet at one worker, whose prefix cache has it.

mod client;
mod heart_beat;
mod merged_metrics;
mod relay;
mod workers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router as Paths};
use serde_json::{Value, json};
use tokio::sync::watch;

pub use heart_beat::{Membership, join};
pub use workers::Dispatch;

use self::client::HttpClient;
use self::merged_metrics::merge;
use self::relay::{Incoming, relay};
use self::workers::{WorkerStatus, Workers};
use crate::error::{ApiError, ApiResult, Result};
use crate::http::{method_label, read_body, read_json, sends_key};
use crate::listener::Listener;
use crate::metrics::{Counter, Exposition, Family, Gauge, Histogram, Labels};
use crate::page;
use crate::server::{EndSignals, Ended};

/// How a router works.
#[derive(Debug, Clone)]
pub struct RouterOptions {
    /// Where it listens.
    pub address: SocketAddr,
    /// Workers that do not register themselves.
    pub workers: Vec<String>,
    /// How workers are chosen.
    pub dispatch: Dispatch,
    /// The seed of the lottery.
    pub seed: u64,
    /// Time between heart-beats; a worker that is silent for two of them gets no request.
    pub heart_beat: Duration,
    /// The key that clients send; workers get it too.
    pub api_key: Option<String>,
    /// Largest body in bytes.
    pub max_body_bytes: usize,
    /// How long open requests may go on after a signal.
    pub shutdown_timeout: Duration,
}

/// What a router counts.
#[derive(Debug)]
struct RouterMetrics {
    requests: Family<Counter>,
    retries: Counter,
    http: Family<Counter>,
    seconds: Histogram,
}

/// A router's state.
#[derive(Debug)]
pub struct Router {
    options: RouterOptions,
    workers: Arc<Workers>,
    client: HttpClient,
    metrics: RouterMetrics,
    api_key: Option<blake3::Hash>,
    draining: AtomicBool,
}

/// Routes until a signal comes; `ready` hears of the address.
///
/// # Errors
/// When the address is taken.
pub async fn serve(options: RouterOptions, ready: impl FnOnce(SocketAddr)) -> Result<Ended> {
    let mut signals = EndSignals::catch()?;
    let listener = Listener::bind(options.address).await?;
    let address = listener.address();
    let router = Router::new(options);
    let (end, ending) = watch::channel(false);
    // Workers that are named are known before the first request.
    for worker in &router.options.workers {
        heart_beat::ask_one(&router, worker).await;
    }
    let asking = tokio::spawn(heart_beat::ask(Arc::clone(&router), router.options.heart_beat));
    let server = tokio::spawn(listener.serve(routes(Arc::clone(&router)), ending));
    ready(address);
    let name = signals.next().await;
    tracing::info!("{name}: no new requests");
    router.draining.store(true, Ordering::Relaxed);
    let _ = end.send(true);
    let ended = tokio::select! {
        _ = tokio::time::timeout(router.options.shutdown_timeout, server) => Ended::Drained,
        _ = signals.next() => Ended::AtOnce,
    };
    asking.abort();
    Ok(ended)
}

impl Router {
    fn new(options: RouterOptions) -> Arc<Self> {
        // A worker's next heart-beat may be late by as much again.
        let workers = Workers::new(options.dispatch, options.heart_beat * 2, options.seed);
        Arc::new(Self {
            api_key: options.api_key.as_ref().map(|key| blake3::hash(key.as_bytes())),
            client: HttpClient::new(options.api_key.as_deref()),
            options,
            workers,
            metrics: RouterMetrics {
                requests: Family::new(&["worker"], Counter::default),
                retries: Counter::default(),
                http: Family::new(&["method", "status"], Counter::default),
                seconds: Histogram::new(&[0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0]),
            },
            draining: AtomicBool::new(false),
        })
    }
}

fn routes(router: Arc<Router>) -> Paths {
    let relayed = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"];
    let mut paths = Paths::new();
    for path in relayed {
        paths = paths.route(path, post(forward));
    }
    paths
        .route("/", get(|| async { Html(page::CHAT) }))
        .route("/tokenizer_info", get(forward))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/register_worker", post(register))
        .route("/receive_heart_beat", post(receive_heart_beat))
        .route("/refresh_all_workers", post(refresh))
        .route("/list_models", post(list_models))
        .route("/list_language_models", post(list_models))
        .route("/list_multimodal_models", post(|| async { Json(json!({"models": []})) }))
        .route("/get_worker_address", post(worker_address))
        .route("/worker_get_status", post(status))
        .route("/test_connection", get(|| async { Json(json!("success")) }))
        .fallback(|| async { ApiError::not_found("no such path") })
        .method_not_allowed_fallback(|| async {
            ApiError::other(StatusCode::METHOD_NOT_ALLOWED, "no such method of this path")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&router), check_key))
        .layer(middleware::from_fn_with_state(Arc::clone(&router), observe))
        .with_state(router)
}

async fn observe(State(router): State<Arc<Router>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let response = next.run(request).await;
    let status = response.status().as_u16().to_string();
    router.metrics.http.with(&[method_label(&method), &status]).add(1);
    router.metrics.seconds.observe(begun.elapsed().as_secs_f64());
    response
}

async fn check_key(State(router): State<Arc<Router>>, request: Request, next: Next) -> Response {
    let guarded = |path: &str| !["/", "/health", "/metrics", "/test_connection"].contains(&path);
    match router.api_key {
        Some(key) if guarded(request.uri().path()) && !sends_key(request.headers(), key) => {
            ApiError::unauthorized().into_response()
        }
        _ => next.run(request).await,
    }
}

async fn forward(
    State(router): State<Arc<Router>>,
    method: Method,
    headers: HeaderMap,
    request: Request,
) -> ApiResult<Response> {
    if router.draining.load(Ordering::Relaxed) {
        return Err(ApiError::unavailable("the router is shutting down"));
    }
    let path = request.uri().path().to_owned();
    let body = read_body(request.into_body(), router.options.max_body_bytes).await?;
    relay(&router, Incoming { method, path, headers, body }).await
}

fn card(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "altiplano"})
}

async fn models(State(router): State<Arc<Router>>) -> Json<Value> {
    let cards: Vec<Value> = router.workers.models().iter().map(|name| card(name)).collect();
    Json(json!({"object": "list", "data": cards}))
}

async fn model(
    State(router): State<Arc<Router>>,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    match router.workers.serves(&id) {
        true => Ok(Json(card(&id))),
        false => {
            let known = router.workers.models().join(", ");
            Err(ApiError::not_found(format!("the model {id:?} does not exist; there are {known}")))
        }
    }
}

async fn health(State(router): State<Arc<Router>>) -> StatusCode {
    let ready =
        !router.draining.load(Ordering::Relaxed) && !router.workers.addresses().0.is_empty();
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The router's metrics, then those of its workers with the worker as a label.
async fn metrics(State(router): State<Arc<Router>>) -> Response {
    let (up, all) = router.workers.addresses();
    let mut out = Exposition::default();
    let none = Labels::default();
    let [is_up, known] = [up.len(), all.len()].map(|count| {
        let gauge = Gauge::default();
        gauge.set(count as f64);
        gauge
    });
    out.metric("altiplano_route_workers_up", "Workers that answer.", &is_up, &none);
    out.metric("altiplano_route_workers", "Workers that are known.", &known, &none);
    out.family(
        "altiplano_route_requests_total",
        "Requests answered by a worker.",
        &router.metrics.requests,
        &none,
    );
    out.metric(
        "altiplano_route_retries_total",
        "Requests tried on another worker.",
        &router.metrics.retries,
        &none,
    );
    out.family(
        "altiplano_route_http_requests_total",
        "HTTP requests.",
        &router.metrics.http,
        &none,
    );
    out.metric(
        "altiplano_route_http_request_duration_seconds",
        "Until the headers of an answer.",
        &router.metrics.seconds,
        &none,
    );
    let mut texts = Vec::new();
    for address in up {
        if let Ok(text) = router.client.get_text(&address, "/metrics", &HeaderMap::new()).await {
            texts.push((address, text));
        }
    }
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, out.finish() + &merge(&texts)).into_response()
}

/// Largest body of a worker's message in bytes.
const LARGEST_MESSAGE: usize = 1 << 20;

async fn register(State(router): State<Arc<Router>>, body: Body) -> ApiResult<Json<Value>> {
    let message = read_json(body, LARGEST_MESSAGE).await?;
    let name = worker_name(&message)?;
    let sends = message.get("check_heart_beat").and_then(Value::as_bool).unwrap_or(true);
    match message.get("worker_status").and_then(WorkerStatus::of_json) {
        Some(status) => {
            if !router.workers.register(name, status, sends) {
                return Err(ApiError::unavailable("there are too many workers"));
            }
        }
        None => {
            if !heart_beat::ask_one(&router, name).await {
                return Err(ApiError::invalid(format!(
                    "the worker {name} does not say what it serves"
                )));
            }
        }
    }
    Ok(Json(Value::Null))
}

async fn receive_heart_beat(
    State(router): State<Arc<Router>>,
    body: Body,
) -> ApiResult<Json<Value>> {
    let message = read_json(body, LARGEST_MESSAGE).await?;
    let queue = message.get("queue_length").and_then(Value::as_u64).unwrap_or(0) as usize;
    Ok(Json(json!({"exist": router.workers.heart_beat(worker_name(&message)?, queue)})))
}

fn worker_name(message: &Value) -> ApiResult<&str> {
    let name = message.get("worker_name").and_then(Value::as_str);
    name.filter(|name| !name.is_empty() && name.len() <= 256)
        .ok_or_else(|| ApiError::field("worker_name", "expected the address of the worker"))
}

async fn refresh(State(router): State<Arc<Router>>) -> Json<Value> {
    for address in router.workers.addresses().1 {
        heart_beat::ask_one(&router, &address).await;
    }
    Json(Value::Null)
}

async fn list_models(State(router): State<Arc<Router>>) -> Json<Value> {
    Json(json!({"models": router.workers.models()}))
}

async fn worker_address(State(router): State<Arc<Router>>, body: Body) -> ApiResult<Json<Value>> {
    let message = read_json(body, LARGEST_MESSAGE).await?;
    let model = message.get("model").and_then(Value::as_str);
    let assigned = router.workers.assign(model, b"", &[]);
    // FastChat's way to say that there is none.
    let address = assigned.map(|assigned| assigned.address.clone()).unwrap_or_default();
    Ok(Json(json!({"address": address})))
}

async fn status(State(router): State<Arc<Router>>) -> Json<Value> {
    Json(router.workers.status())
}
