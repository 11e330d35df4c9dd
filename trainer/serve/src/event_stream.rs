//! Answers as server-sent events.
//!
//! A task of its own makes the events; the body holds what is made and not yet read, at most what
//! `max_tokens` allows, so a slow reader holds up nobody. The body owns the guard of the request: a
//! reader that goes away drops it, and the engine ends the request in its next step.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::engine_thread::AbortGuard;

/// Between two comments, which keep a connection open on which no event comes for long.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Where a task puts its events.
#[derive(Debug)]
pub struct Events(UnboundedSender<Bytes>);

impl Events {
    /// Sends an object.
    pub fn send(&self, event: &Value) {
        self.write(format!("data: {event}\n\n"));
    }

    fn write(&self, text: String) {
        // A reader that went away needs nothing more.
        let _ = self.0.send(Bytes::from(text));
    }
}

/// The response whose events `make` sends; after it `[DONE]` ends the stream.
pub fn respond<F>(guard: Option<AbortGuard>, make: impl FnOnce(Events) -> F) -> Response
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, events) = unbounded_channel();
    let keep_alive = Events(sender.clone());
    let done = Events(sender.clone());
    let work = make(Events(sender));
    tokio::spawn(async move {
        tokio::pin!(work);
        let mut ticks = tokio::time::interval(KEEP_ALIVE);
        ticks.tick().await;
        loop {
            tokio::select! {
                () = &mut work => break,
                _ = ticks.tick() => keep_alive.write(": keep-alive\n\n".to_owned()),
            }
        }
        done.write("data: [DONE]\n\n".to_owned());
    });
    let mut response = Response::new(Body::from_stream(body(events, guard)));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Proxies must not collect events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn body(
    events: UnboundedReceiver<Bytes>,
    guard: Option<AbortGuard>,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold((events, guard), |(mut events, guard)| async move {
        let event = events.recv().await?;
        Some((Ok(event), (events, guard)))
    })
}
