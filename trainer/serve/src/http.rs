//! The paths of the server, and what holds for all of them: keys, names of requests, bounds, errors in
//! one shape.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::request_body::RequestBody;
use crate::{chat_completions, completions, page, tokenization};

/// Longest name that a client gives its request.
const LONGEST_ID: usize = 128;
const REQUEST_ID: &str = "x-request-id";

/// The name of a request, in its answer and in the log.
#[derive(Debug, Clone)]
struct RequestName(String);

/// The paths, with their methods, for messages and counters.
const PATHS: [&str; 14] = [
    "/",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/health",
    "/metrics",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/version",
    "/ping",
    "/load",
    "/reset_prefix_cache",
    "/worker_get_status",
];

/// The server's paths.
pub fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(|| async { Html(page::CHAT) }))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/health", get(health))
        .route("/ping", get(health).post(health))
        .route("/metrics", get(metrics))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .route("/version", get(version))
        .route("/load", get(load))
        .route("/reset_prefix_cache", post(reset_prefix_cache))
        .route("/worker_get_status", post(worker_status))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), check_key))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), observe))
        .with_state(app)
}

/// Names the request, measures it and writes a line about it.
async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let fits = |id: &&str| {
        !id.is_empty() && id.len() <= LONGEST_ID && id.bytes().all(|b| b.is_ascii_graphic())
    };
    let id = given.filter(fits).map_or_else(|| app.new_id(), str::to_owned);
    request.extensions_mut().insert(RequestName(id.clone()));
    let method = request.method().clone();
    let path = handler(request.uri().path());
    let mut response = next.run(request).await;
    let (status, took) = (response.status().as_u16(), begun.elapsed());
    app.metrics.http(path, method_label(&method), status, took);
    if ["/health", "/metrics", "/ping"].contains(&path) {
        tracing::debug!(%id, "{method} {path} {status}");
    } else {
        tracing::info!(%id, "{method} {path} {status} after {:.3} s", took.as_secs_f64());
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// The method as counters know it: no more values than there are here.
pub fn method_label(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::POST,
        Method::HEAD,
        Method::OPTIONS,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
    ];
    if known.contains(method) { method.as_str() } else { "other" }
}

/// The path as counters know it: no more values than there are paths.
fn handler(path: &str) -> &'static str {
    let of_model = path.starts_with("/v1/models/").then_some("/v1/models/{id}");
    let known = PATHS.iter().find(|known| **known == path).copied();
    of_model.or(known).unwrap_or("none")
}

/// Whether a path shows nothing but that the server is there.
fn is_open(path: &str) -> bool {
    ["/", "/health", "/ping", "/metrics", "/version", "/worker_get_status"].contains(&path)
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match &app.options.api_key {
        Some(key) if !is_open(request.uri().path()) && !key.is_sent(request.headers()) => {
            ApiError::unauthorized().into_response()
        }
        _ => next.run(request).await,
    }
}

async fn complete(
    State(app): State<Arc<App>>,
    Extension(RequestName(id)): Extension<RequestName>,
    body: Body,
) -> ApiResult<Response> {
    app.check_ready()?;
    let body = RequestBody::read(body, app.options.max_body_bytes).await?;
    completions::answer(&app, body, &id).await
}

async fn chat(
    State(app): State<Arc<App>>,
    Extension(RequestName(id)): Extension<RequestName>,
    body: Body,
) -> ApiResult<Response> {
    app.check_ready()?;
    let body = RequestBody::read(body, app.options.max_body_bytes).await?;
    chat_completions::answer(&app, body, &id).await
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": app.model.cards()}))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    app.model.check_name(Some(&id))?;
    let card = app.model.cards().into_iter().find(|card| card["id"] == id.as_str());
    card.map(Json).ok_or_else(|| ApiError::not_found("no such model"))
}

async fn health(State(app): State<Arc<App>>) -> StatusCode {
    match app.check_ready() {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, app.metrics.text()).into_response()
}

async fn tokenize(State(app): State<Arc<App>>, body: Body) -> ApiResult<Json<Value>> {
    let body = RequestBody::read(body, app.options.max_body_bytes).await?;
    in_turn(body, move |json| tokenization::tokenize(&app, json)).await
}

async fn detokenize(State(app): State<Arc<App>>, body: Body) -> ApiResult<Json<Value>> {
    let body = RequestBody::read(body, app.options.max_body_bytes).await?;
    in_turn(body, move |json| tokenization::detokenize(&app, json)).await
}

/// Bodies of `/tokenize` and `/detokenize` that are worked on at a time: each takes memory in many
/// times its length.
static TEXTS_AT_A_TIME: Semaphore = Semaphore::const_new(2);

async fn in_turn(
    body: RequestBody,
    work: impl FnOnce(Value) -> ApiResult<Value> + Send + 'static,
) -> ApiResult<Json<Value>> {
    let place = TEXTS_AT_A_TIME.acquire().await;
    // The place is kept until the work ends, also when the client has gone before.
    let done = body.with_json(move |json| {
        let _place = place;
        work(json)
    });
    done.await.map(Json)
}

async fn tokenizer_info(State(app): State<Arc<App>>) -> Json<Value> {
    Json(tokenization::info(&app))
}

async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

async fn load(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"server_load": app.open_requests()}))
}

async fn reset_prefix_cache(State(app): State<Arc<App>>) -> ApiResult<StatusCode> {
    app.engine.reset_prefix_cache().await?;
    Ok(StatusCode::OK)
}

/// What a router asks its workers, in FastChat's fields; an error while this one takes no requests.
async fn worker_status(State(app): State<Arc<App>>) -> ApiResult<Json<Value>> {
    app.check_ready()?;
    Ok(Json(app.worker_status()))
}

async fn no_such_path(method: Method, request: Request) -> ApiError {
    let paths = PATHS.join(", ");
    ApiError::not_found(format!(
        "{method} {}: no such path; there are {paths}",
        request.uri().path()
    ))
}

async fn no_such_method(method: Method, request: Request) -> ApiError {
    let message = format!("{method} is not a method of {}", request.uri().path());
    ApiError::other(StatusCode::METHOD_NOT_ALLOWED, message)
}
