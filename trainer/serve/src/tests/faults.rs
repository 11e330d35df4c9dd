//! Overload, clients that go away, faults of the engine, keys.

use std::io::{Read, Write};
use std::net::Shutdown;

use altiplano_model::infer::{Request, RequestId, SamplingParams};
use futures_util::FutureExt;
use serde_json::json;

use super::client::Answer;
use super::fake_engine::SCRIPT;
use super::server::{TestServer, options};
use crate::admission::AdmissionLimits;
use crate::api_key::ApiKey;
use crate::app::AppOptions;
use crate::completions;
use crate::engine_thread::Delivery;
use crate::request_body::RequestBody;

const RUNNING: &str = "vllm:num_requests_running{model_name=\"tiny\",engine=\"0\"}";

/// A request that runs until it is ended.
fn endless(stream: bool) -> String {
    json!({"prompt": "ZQ", "max_tokens": 500, "stream": stream, "ignore_eos": true}).to_string()
}

#[test]
fn a_full_server_says_429_and_when_to_come_back() {
    let admission = AdmissionLimits { requests: 2, tokens: 100 };
    let server = TestServer::start(AppOptions { admission, ..options() });
    let held: Vec<_> =
        (0..2).map(|_| server.open("POST", "/v1/completions", "", &endless(true))).collect();
    server.wait_until("two requests to run", |server| server.metric(RUNNING) == 2.0);
    let full = server.post("/v1/completions", &json!({"prompt": "a"}));
    assert!(full.error(429).contains("2 sequences"), "{}", full.body);
    assert!(full.headers.contains("retry-after: 1"), "{}", full.headers);
    let rejected =
        "vllm:admission_rejections_total{model_name=\"tiny\",engine=\"0\",reason=\"requests\"}";
    assert_eq!(server.metric(rejected), 1.0);
    drop(held);
    server.wait_until("room", |server| server.app.admission.requests() == 0);
    server.post("/v1/completions", &json!({"prompt": "a"})).ok();
}

#[test]
fn a_client_that_goes_away_ends_its_request() {
    let server = TestServer::start(options());
    for stream in [true, false] {
        let mut client = server.open("POST", "/v1/completions", "", &endless(stream));
        server.wait_until("the request to run", |server| server.metric(RUNNING) == 1.0);
        if stream {
            client.read_exact(&mut [0; 40]).unwrap();
        }
        client.shutdown(Shutdown::Both).unwrap();
        drop(client);
        server.wait_until("the request to end", |server| server.metric(RUNNING) == 0.0);
        server.wait_until("its room", |server| server.app.open_requests() == 0);
        let aborted = "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"abort\"}";
        assert_eq!(server.metric(aborted), if stream { 1.0 } else { 2.0 });
    }
    let usage = "vllm:kv_cache_usage_perc{model_name=\"tiny\",engine=\"0\"}";
    assert_eq!(server.metric(usage), 0.0);
}

#[test]
fn a_slow_reader_holds_up_nobody() {
    let server = TestServer::start(options());
    let body = json!({"prompt": "Q", "max_tokens": 500, "stream": true, "logprobs": 20, "n": 8})
        .to_string();
    let slow: Vec<_> = (0..4).map(|_| server.open("POST", "/v1/completions", "", &body)).collect();
    server.post("/v1/completions", &json!({"prompt": "a"})).ok();
    server.wait_until("all to be computed", |server| server.metric(RUNNING) == 0.0);
    // Nothing was read until now, and all of it is there.
    for stream in slow {
        let events = Answer::read(stream).events();
        let ends =
            events.iter().filter(|event| !event["choices"][0]["finish_reason"].is_null()).count();
        assert_eq!(ends, 8);
    }
}

#[test]
fn an_engine_that_panics_or_breaks_ends_in_500s() {
    for letter in ["P", "B"] {
        let server = TestServer::start(options());
        let waiting = server.open("POST", "/v1/completions", "", &endless(false));
        let streaming = server.open("POST", "/v1/completions", "", &endless(true));
        server.wait_until("the requests to run", |server| server.metric(RUNNING) == 2.0);
        let broken = server.post("/v1/completions", &json!({"prompt": letter}));
        assert!(broken.error(500).contains("engine"), "{}", broken.body);
        Answer::read(waiting).error(500);
        // The headers of a stream were sent; the error comes as an event.
        let events = Answer::read(streaming).events();
        assert_eq!(events.last().unwrap()["error"]["code"], 500);
        assert_eq!(server.get("/health").status, 503);
        server.post("/v1/completions", &json!({"prompt": "a"})).error(500);
        assert!(server.app.engine.ended().unwrap().contains("asked to"));
    }
}

#[test]
fn a_sequence_with_bad_logits_ends_by_an_error() {
    let server = TestServer::start(options());
    let choice = server.post("/v1/completions", &json!({"prompt": "X"})).ok()["choices"][0].clone();
    assert_eq!((&choice["finish_reason"], &choice["text"]), (&json!("error"), &json!("")));
    assert_eq!(choice["error"], "the logits are not finite");
    assert_eq!(
        server.metric("vllm:corrupted_requests_total{model_name=\"tiny\",engine=\"0\"}"),
        1.0
    );
    server.post("/v1/completions", &json!({"prompt": "a"})).ok();
}

#[test]
fn a_server_that_ends_takes_nothing_new_and_finishes_what_runs() {
    let server = TestServer::start(options());
    let running = server.open("POST", "/v1/completions", "", &endless(false));
    server.wait_until("some tokens", |server| server.app.metrics.generation_tokens.get() > 3);
    server.app.drain();
    assert_eq!(server.get("/health").status, 503);
    assert!(
        server
            .post("/v1/completions", &json!({"prompt": "a"}))
            .error(503)
            .contains("shutting down")
    );
    server.app.engine.abort_all();
    let answer = Answer::read(running).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "abort");
    assert!(answer["choices"][0]["text"].as_str().unwrap().starts_with(&SCRIPT[..4]));
}

/// A request counts as open before it is read, so that the server does not end meanwhile.
#[test]
fn a_request_is_open_from_its_arrival() {
    let server = TestServer::start(options());
    let body = RequestBody::of_json(json!({"prompt": "a", "max_tokens": 1}));
    let answer = server.runtime.block_on(async {
        let mut answer = Box::pin(completions::answer(&server.app, body, "x"));
        assert!(answer.as_mut().now_or_never().is_none());
        assert_eq!(server.app.open_requests(), 1);
        answer.await
    });
    assert_eq!(answer.unwrap().status(), 200);
    assert_eq!(server.app.open_requests(), 0);
}

#[test]
fn one_answer_of_several_can_end_early() {
    let server = TestServer::start(options());
    // Endless and slow.
    let ids = server.post("/tokenize", &json!({"prompt": "ZQ"})).ok()["tokens"].clone();
    let ids: Vec<u32> = serde_json::from_value(ids).unwrap();
    let params = SamplingParams { max_tokens: 200, ignore_eos: true, ..SamplingParams::default() };
    let mut request = Request::new(RequestId(0), ids, params);
    request.n = 2;
    let (mut deliveries, guard) = server.app.engine.submit(vec![request]).unwrap();
    guard.aborter().abort_sequence(0, 0);
    let mut came = [0; 2];
    while let Some(Delivery::Output { output, .. }) = deliveries.blocking_recv() {
        came[output.index] += 1;
    }
    assert_eq!(came[1], 200);
    assert!(came[0] < 200, "{came:?}");
    drop(guard);
    let aborted =
        "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"abort\"}";
    assert_eq!(server.metric(aborted), 0.0);
}

#[test]
fn a_worker_that_ends_says_so_to_its_router() {
    let server = TestServer::start(options());
    assert_eq!(server.post("/worker_get_status", &json!({})).ok()["queue_length"], 0);
    server.app.drain();
    server.post("/worker_get_status", &json!({})).error(503);
}

#[test]
fn a_key_guards_what_answers_and_not_what_watches() {
    let server = TestServer::start(AppOptions {
        api_key: Some(ApiKey::from("secret".to_owned())),
        ..options()
    });
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    for headers in ["", "Authorization: Bearer wrong\r\n", "Authorization: secret\r\n"] {
        let answer = server.request("POST", "/v1/completions", headers, &body);
        answer.error(401);
        assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
    }
    let key = "Authorization: Bearer secret\r\n";
    server.request("POST", "/v1/completions", key, &body).ok();
    server.get("/v1/models").error(401);
    server.post("/tokenize", &json!({"prompt": "a"})).error(401);
    server.post("/reset_prefix_cache", &json!({})).error(401);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/metrics").status, 200);
}

#[test]
fn headers_are_bounded() {
    let server = TestServer::start(options());
    let many: String = (0..300).map(|n| format!("x-{n}: 1\r\n")).collect();
    let mut stream = server.open("GET", "/health", &many, "");
    let _ = stream.flush();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.contains(" 431 "), "{answer}");
    assert_eq!(server.get("/health").status, 200);
}
