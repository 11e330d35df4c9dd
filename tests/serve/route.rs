//! `altiplano route` in front of servers.

use serde_json::{Value, json};

use super::client::Answer;
use super::server::Server;

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
    let ghost = json!({"prompt": "The", "model": "ghost"});
    assert!(router.post("/v1/completions", &ghost).error(503).contains("no worker"));
    let status = router.post("/worker_get_status", &json!({})).ok();
    assert_eq!(status["queue_length"], 0);
    assert!(router.get("/").body.contains("<title>altiplano: chat"));
    router.stop();
    worker.stop();
}
