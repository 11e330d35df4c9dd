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
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use heart_beat::{Membership, join};
pub use workers::Dispatch;

use self::client::{ANSWER_TIME, HttpClient};
use self::heart_beat::Asked;
use self::merged_metrics::merge;
use self::relay::{Incoming, relay};
use self::workers::{WorkerStatus, Workers};
use crate::api_key::ApiKey;
use crate::error::{ApiError, ApiResult, Result, ServeError};
use crate::http::method_label;
use crate::listener::Listener;
use crate::metrics::{Counter, Exposition, Family, Gauge, Histogram, Labels};
use crate::page;
use crate::request_body::{RequestBody, receive};
use crate::server::EndSignals;

/// Longest time between two questions to a worker how it is.
const ASK_EVERY: Duration = Duration::from_secs(2);

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
    /// Time between heart-beats. A worker whose heart-beat is late is asked how it is, and forgotten
    /// after two of them.
    pub heart_beat: Duration,
    /// The key that clients send; workers get it too.
    pub api_key: Option<ApiKey>,
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
    /// Its name among routers, by which it knows itself.
    id: String,
    draining: AtomicBool,
}

/// Routes until a signal comes; `ready` hears of the address.
///
/// # Errors
/// When the address is taken, or one of the workers that are named is this router.
pub async fn serve(options: RouterOptions, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let mut signals = EndSignals::catch()?;
    let listener = Listener::bind(options.address).await?;
    let address = listener.address();
    let router = Router::new(options);
    let (end, ending) = watch::channel(false);
    let server = tokio::spawn(listener.serve(routes(Arc::clone(&router)), ending));
    // Workers that are named are known before the first request.
    let named = &router.options.workers;
    named.iter().for_each(|worker| router.workers.expect(worker));
    let asked = heart_beat::ask_all(&router, named).await;
    if let Some(at) = asked.iter().position(|asked| *asked == Asked::Itself) {
        let message =
            format!("--workers {}: is this router itself; name the servers behind it", named[at]);
        return Err(ServeError::Usage { message });
    }
    let every = ASK_EVERY.min(router.options.heart_beat / 4);
    let asking = tokio::spawn(heart_beat::ask(Arc::clone(&router), every));
    ready(address);
    let name = signals.next().await;
    tracing::info!("{name}: no new requests");
    router.draining.store(true, Ordering::Relaxed);
    let _ = end.send(true);
    tokio::select! {
        _ = tokio::time::timeout(router.options.shutdown_timeout, server) => {}
        _ = signals.next() => {}
    }
    asking.abort();
    Ok(())
}

impl Router {
    fn new(options: RouterOptions) -> Arc<Self> {
        // A worker's next heart-beat may be late by as much again.
        let workers = Workers::new(options.dispatch, options.heart_beat * 2, options.seed);
        let key = options.api_key.as_ref().map(ApiKey::text);
        Arc::new(Self {
            client: HttpClient::new(key, ANSWER_TIME.min(options.heart_beat)),
            options,
            workers,
            metrics: RouterMetrics {
                requests: Family::new(&["worker"], Counter::default),
                retries: Counter::default(),
                http: Family::new(&["method", "status"], Counter::default),
                seconds: Histogram::new(&[0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0]),
            },
            id: format!("{:032x}", rand::random::<u128>()),
            draining: AtomicBool::new(false),
        })
    }

    /// Whether what a worker says of itself is what this router says.
    fn is_itself(&self, status: &Value) -> bool {
        status.get("router_id").and_then(Value::as_str) == Some(&self.id)
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
    match &router.options.api_key {
        Some(key) if guarded(request.uri().path()) && !key.is_sent(request.headers()) => {
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
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let body = receive(request.into_body(), router.options.max_body_bytes).await?;
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
    let texts = join_all(up.into_iter().map(async |address| {
        let text = router.client.get_text(&address, "/metrics").await;
        text.ok().map(|text| (address, text))
    }));
    let texts: Vec<(String, String)> = texts.await.into_iter().flatten().collect();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, out.finish() + &merge(&texts)).into_response()
}

/// Largest body of a worker's message in bytes.
const LARGEST_MESSAGE: usize = 1 << 20;

async fn register(State(router): State<Arc<Router>>, body: Body) -> ApiResult<Json<Value>> {
    let message = RequestBody::read(body, LARGEST_MESSAGE).await?.with_json(Ok).await?;
    let name = worker_name(&message)?;
    let sends = message.get("check_heart_beat").and_then(Value::as_bool).unwrap_or(true);
    // It is asked in any case: a router that is its own worker would hand requests to itself for ever.
    let asked = heart_beat::status_of(&router, name).await.ok();
    if asked.as_ref().is_some_and(|status| router.is_itself(status)) {
        let message = format!("{name} is this router itself, which cannot be its own worker");
        return Err(ApiError::field("worker_name", message));
    }
    let given = message.get("worker_status").and_then(WorkerStatus::of_json);
    let status = given.or_else(|| WorkerStatus::of_json(&asked?)).ok_or_else(|| {
        ApiError::invalid(format!("the worker {name} does not say what it serves"))
    })?;
    match router.workers.register(name, status, sends) {
        true => Ok(Json(Value::Null)),
        false => Err(ApiError::unavailable("there are too many workers")),
    }
}

async fn receive_heart_beat(
    State(router): State<Arc<Router>>,
    body: Body,
) -> ApiResult<Json<Value>> {
    let message = RequestBody::read(body, LARGEST_MESSAGE).await?.with_json(Ok).await?;
    let queue = message.get("queue_length").and_then(Value::as_u64).unwrap_or(0) as usize;
    Ok(Json(json!({"exist": router.workers.heart_beat(worker_name(&message)?, queue)})))
}

fn worker_name(message: &Value) -> ApiResult<&str> {
    let name = message.get("worker_name").and_then(Value::as_str);
    name.filter(|name| !name.is_empty() && name.len() <= 256)
        .ok_or_else(|| ApiError::field("worker_name", "expected the address of the worker"))
}

async fn refresh(State(router): State<Arc<Router>>) -> Json<Value> {
    heart_beat::ask_all(&router, &router.workers.addresses().1).await;
    Json(Value::Null)
}

async fn list_models(State(router): State<Arc<Router>>) -> Json<Value> {
    Json(json!({"models": router.workers.models()}))
}

async fn worker_address(State(router): State<Arc<Router>>, body: Body) -> ApiResult<Json<Value>> {
    let message = RequestBody::read(body, LARGEST_MESSAGE).await?.with_json(Ok).await?;
    let model = message.get("model").and_then(Value::as_str);
    let assigned = router.workers.assign(model, b"", &[]);
    // FastChat's way to say that there is none.
    let address = assigned.map(|assigned| assigned.address.clone()).unwrap_or_default();
    Ok(Json(json!({"address": address})))
}

/// What another router asks of this one.
async fn status(State(router): State<Arc<Router>>) -> ApiResult<Json<Value>> {
    if router.draining.load(Ordering::Relaxed) {
        return Err(ApiError::unavailable("the router is shutting down"));
    }
    let mut status = router.workers.status();
    status["router_id"] = json!(router.id);
    Ok(Json(status))
}
