//! `altiplano route` in front of servers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::client::Answer;
use super::paced_worker::read_request;
use super::server::Server;
use crate::harness::run;

/// Waits until so many workers are up.
fn wait_for_workers(router: &Server, count: usize) {
    let line = format!("altiplano_route_workers_up {count}\n");
    router.wait_until(&line, |router| router.get("/metrics").body.contains(&line));
}

#[test]
fn a_worker_that_dies_costs_no_request() {
    // Workers are heard of ten times as often as they must be.
    let router = Server::route(&["--heart-beat", "10"]);
    assert_eq!(router.get("/health").status, 503);
    let body =
        json!({"prompt": "The people", "max_tokens": 20, "temperature": 0, "model": "served"});
    router.post("/v1/completions", &body).error(503);
    let join = ["--router", &router.url(), "--heart-beat", "1"];
    let workers = [Server::start(&join), Server::start(&join)];
    router.wait_until("both workers", |router| {
        router.get("/metrics").body.contains("altiplano_route_workers_up 2")
    });
    let models = router.get("/v1/models").ok();
    let names: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card["id"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"served"), "{names:?}");
    assert_eq!(router.get("/v1/models/served").ok()["id"], "served");
    assert_eq!(router.post("/list_models", &json!({})).ok()["models"], json!(names));
    let error = router.post("/v1/completions", &json!({"prompt": "a", "model": "gpt"})).error(404);
    assert!(error.contains("served"), "{error}");

    // Different prompts, so that both workers have some; one of them dies meanwhile.
    let ask = |number: usize| {
        let mut body = body.clone();
        body["prompt"] = json!(format!("{number} people"));
        body["stream"] = json!(number.is_multiple_of(2));
        router.open("POST", "/v1/completions", "", &body.to_string())
    };
    let [first, second] = workers;
    let before: Vec<Answer> = (0..8).map(|number| Answer::read(ask(number))).collect();
    assert!(before.iter().all(|answer| answer.status == 200));
    let metrics = router.get("/metrics").body;
    for worker in [&first, &second] {
        let label = format!("worker=\"{}\"", worker.url());
        assert!(metrics.contains(&label), "no {label} in {metrics}");
        assert!(metrics.contains(&format!("vllm:num_requests_running{{{label}")), "{metrics}");
    }
    first.signal("KILL");
    first.finish();
    let after: Vec<Answer> = (0..8).map(|number| Answer::read(ask(number))).collect();
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(after.status, 200, "{}", after.body);
        assert_eq!(text(before), text(after), "{number}");
    }
    // One of them went to the worker that is gone, or the next one does.
    let noticed =
        |router: &Server| router.get("/metrics").body.contains("altiplano_route_workers_up 1");
    for number in 8..100 {
        if noticed(&router) {
            break;
        }
        Answer::read(ask(number)).is_good();
    }
    assert!(noticed(&router));
    // A worker that comes back is used again.
    let third = Server::start(&join);
    router.wait_until("the new worker", |router| {
        router.get("/metrics").body.contains("altiplano_route_workers_up 2")
    });
    third.stop();
    second.stop();
    router.stop();
}

fn text(answer: &Answer) -> String {
    let choices: Vec<Value> = match answer.headers.contains("text/event-stream") {
        true => answer.events(),
        false => vec![answer.ok()],
    };
    choices.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect()
}

#[test]
fn workers_are_named_or_register_as_fastchat_s_do() {
    let worker = Server::start(&[]);
    let router =
        Server::route(&["--workers", &worker.url(), "--dispatch", "lottery", "--seed", "3"]);
    let body = json!({"prompt": "The", "max_tokens": 4, "temperature": 0});
    let direct = worker.complete(&body);
    assert_eq!(router.complete(&body)["choices"], direct["choices"]);
    assert_eq!(
        router.post("/get_worker_address", &json!({"model": "served"})).ok()["address"],
        worker.url()
    );
    let beat = |name: &str| {
        router.post("/receive_heart_beat", &json!({"worker_name": name, "queue_length": 0})).ok()
    };
    assert_eq!(beat(&worker.url())["exist"], true);
    assert_eq!(beat("http://127.0.0.1:1")["exist"], false);
    let register = json!({"worker_name": "http://127.0.0.1:1", "check_heart_beat": true, "multimodal": false,
                          "worker_status": {"model_names": ["ghost"], "speed": 1, "queue_length": 0}});
    assert_eq!(router.post("/register_worker", &register).status, 200);
    assert_eq!(beat("http://127.0.0.1:1")["exist"], true);
    // Two models: a request has to name one.
    let error = router.post("/v1/completions", &body).error(400);
    assert!(error.contains("ghost") && error.contains("served"), "{error}");
    assert!(error.ends_with("[model]"), "{error}");
    router.get("/tokenizer_info").error(400);
    router.get("/tokenizer_info?model=served").ok();
    let ghost = json!({"prompt": "The", "model": "ghost"});
    assert!(router.post("/v1/completions", &ghost).error(503).contains("no worker"));
    let status = router.post("/worker_get_status", &json!({})).ok();
    assert_eq!(status["queue_length"], 0);
    assert!(router.get("/").body.contains("<title>altiplano: chat"));
    router.stop();
    worker.stop();
}

#[test]
fn a_worker_that_stops_holds_up_nobody() {
    let router = Server::route(&["--heart-beat", "4"]);
    let join = ["--router", &router.url(), "--heart-beat", "1", "--max-num-seqs", "1"];
    let [first, second] = [Server::start(&join), Server::start(&join)];
    wait_for_workers(&router, 2);
    // It takes connections and answers nothing.
    first.signal("STOP");
    let asked: Vec<TcpStream> = (0..6)
        .map(|number| {
            let prompt = format!("{number} people");
            let body = json!({"prompt": prompt, "max_tokens": 5, "stream": number % 2 == 0});
            router.open("POST", "/v1/completions", "", &body.to_string())
        })
        .collect();
    asked.into_iter().map(Answer::read).for_each(|answer| answer.is_good());
    wait_for_workers(&router, 1);
    first.signal("CONT");
    wait_for_workers(&router, 2);
    second.stop();
    wait_for_workers(&router, 1);
    // A stream that has begun ends with an error: what was read must not be said again.
    let long =
        json!({"prompt": "The", "max_tokens": 56, "ignore_eos": true, "n": 128, "stream": true});
    let mut stream = router.open("POST", "/v1/completions", "", &long.to_string());
    stream.read_exact(&mut [0; 600]).unwrap();
    first.signal("STOP");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    let events: Vec<&str> =
        rest.split('\n').filter_map(|line| line.trim().strip_prefix("data: ")).collect();
    let [.., error, done] = events[..] else { panic!("{rest}") };
    assert_eq!(done, "[DONE]");
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!(error["error"]["code"], 500, "{error}");
    assert!(error["error"]["message"].as_str().unwrap().contains("does not answer"), "{error}");
    // Nobody is left.
    router.post("/v1/completions", &json!({"prompt": "The"})).error(503);
    first.signal("KILL");
    first.finish();
    router.stop();
}

#[test]
fn a_router_is_not_its_own_worker() {
    let port = Server::free_port();
    let own = format!("http://127.0.0.1:{port}");
    run(["route", "--port", &port, "--workers", &own]).fails(2, &["--workers", &own, "itself"]);
    let router = Server::route(&[]);
    let register = json!({"worker_name": router.url(), "check_heart_beat": true,
                          "worker_status": {"model_names": ["m"], "speed": 1, "queue_length": 0}});
    let error = router.post("/register_worker", &register).error(400);
    assert!(error.contains(&router.url()) && error.contains("itself"), "{error}");
    assert_eq!(router.get("/v1/models").ok()["data"], json!([]));
    router.stop();
}

#[test]
fn a_named_worker_is_seen_when_it_comes() {
    let port = Server::free_port();
    let router = Server::route(&["--workers", &format!("http://127.0.0.1:{port}")]);
    router.post("/v1/completions", &json!({"prompt": "The"})).error(503);
    let late = Server::start_at(&port, &[]);
    // Long before the next of the heart-beats, which are 45 seconds apart.
    wait_for_workers(&router, 1);
    router.complete(&json!({"prompt": "The", "max_tokens": 2}));
    late.stop();
    router.stop();
}

/// A worker that says it is there, and breaks off in the middle of its answers; of those to the router's
/// questions too while `breaks` is set.
fn half_a_worker(breaks: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |stream: TcpStream| {
        let Some((first, _)) = read_request(&stream) else { return };
        let status =
            json!({"model_names": ["served"], "speed": 1000, "queue_length": 0}).to_string();
        let whole = first.contains("/worker_get_status") && !breaks.load(Ordering::Relaxed);
        let sent = if whole { &status[..] } else { &status[..20] };
        let _ = write!(
            &stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{sent}",
            status.len()
        );
    };
    thread::spawn(move || listener.incoming().flatten().for_each(answer));
    address
}

#[test]
fn a_worker_that_breaks_off_halfway_is_taken_out() {
    let breaks = Arc::new(AtomicBool::new(false));
    let half = half_a_worker(Arc::clone(&breaks));
    let worker = Server::start(&[]);
    let named = ["--workers", &half, &worker.url(), "--heart-beat", "4", "--dispatch", "lottery"];
    let router = Server::route(&named);
    wait_for_workers(&router, 2);
    // The half worker is by far the fastest, so it is asked; nothing of what it says reaches a client.
    let body = json!({"prompt": "The", "max_tokens": 4, "temperature": 0});
    let expected = worker.complete(&body)["choices"].clone();
    for _ in 0..3 {
        assert_eq!(router.complete(&body)["choices"], expected);
    }
    assert!(!router.get("/metrics").body.contains("altiplano_route_retries_total 0\n"));
    wait_for_workers(&router, 2);
    breaks.store(true, Ordering::Relaxed);
    wait_for_workers(&router, 1);
    worker.stop();
    router.stop();
}
