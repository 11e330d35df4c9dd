//! Overload, clients that go away, signals, keys and wrong arguments.

use std::io::Read;

use serde_json::json;

use super::client::Answer;
use super::server::{Server, checkpoint};
use crate::harness::{altiplano, run};

/// A request that runs for as long as the context has room; many of them keep a server busy.
fn long(stream: bool) -> String {
    json!({"prompt": "The", "max_tokens": 56, "ignore_eos": true, "n": 16, "stream": stream})
        .to_string()
}

#[test]
fn overload_and_clients_that_go_away_leave_nothing_behind() {
    let server = Server::start(&["--max-num-seqs", "2", "--max-num-queued-reqs", "14"]);
    let mut turned_away = 0;
    for round in 0..4 {
        let mut open: Vec<_> = (0..6)
            .map(|_| server.open("POST", "/v1/completions", "", &long(round % 2 == 0)))
            .collect();
        // Half of them go away while they wait or run.
        drop(open.split_off(3));
        for stream in open {
            let answer = Answer::read(stream);
            match answer.status {
                200 => {}
                429 => {
                    assert!(answer.headers.contains("retry-after"), "{}", answer.headers);
                    turned_away += 1;
                }
                other => panic!("{other}: {}", answer.body),
            }
        }
    }
    assert!(turned_away > 0);
    server.wait_until("all to end", |server| {
        server.metric("num_requests_running") + server.metric("num_requests_waiting") == 0.0
    });
    assert_eq!(server.metric("kv_cache_usage_perc"), 0.0);
    // And it answers as before, once it has seen the last client go.
    let body = json!({"prompt": "The", "max_tokens": 5, "temperature": 0});
    server.wait_until("a request to be taken", |server| {
        Answer::read(server.open("POST", "/v1/completions", "", &body.to_string())).status == 200
    });
    assert_eq!(server.complete(&body)["choices"], server.complete(&body)["choices"]);
    server.stop();
}

#[test]
fn sigterm_lets_requests_end_or_ends_them_with_what_they_have() {
    let server = Server::start(&["--shutdown-timeout", "0", "--max-num-seqs", "1"]);
    let mut stream = server.open("POST", "/v1/completions", "", &long(true));
    stream.read_exact(&mut [0; 300]).unwrap();
    server.signal("TERM");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("[DONE]"), "{rest}");
    assert!(
        rest.contains("\"finish_reason\":\"abort\"")
            || rest.contains("\"finish_reason\":\"length\"")
    );
    server.finish().ok();
}

#[test]
fn a_key_is_asked_for() {
    let server = Server::start(&["--api-key", "secret"]);
    let body = json!({"prompt": "The", "max_tokens": 2}).to_string();
    let ask = |server: &Server, headers: &str| {
        Answer::read(server.open("POST", "/v1/completions", headers, &body))
    };
    ask(&server, "").error(401);
    ask(&server, "Authorization: Bearer other\r\n").error(401);
    ask(&server, "Authorization: Bearer secret\r\n").ok();
    // The port is taken.
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    let mut second = altiplano();
    second.args(["serve", "--port", &port, "--checkpoint"]).arg(checkpoint());
    crate::harness::Finished::from(second.output().unwrap()).fails(1, &["cannot listen", "--port"]);
    server.stop();
}

#[test]
fn wrong_arguments_are_named() {
    let checkpoint = checkpoint().to_str().unwrap();
    let serve = |arguments: &[&str]| {
        run(["serve", "--checkpoint", checkpoint, "--port", "0"].iter().chain(arguments).copied())
    };
    serve(&["--max-model-len", "65"]).fails(2, &["--max-model-len 65", "64"]);
    serve(&["--chat-template", "vicuna_v0"]).fails(1, &["vicuna_v0", "### Human"]);
    serve(&["--kv-cache-memory", "1"]).fails(2, &["--kv-cache-memory"]);
    serve(&["--override-generation-config", "[]"]).fails(2, &["--override-generation-config"]);
    serve(&["--scheduling-policy", "random"]).fails(2, &["fcfs"]);
    run(["serve", "--checkpoint", "nowhere"]).fails(1, &["nowhere"]);
    let router = ["--router", "http://127.0.0.1:1"];
    serve(&[&router[..], &["--host", "0.0.0.0"]].concat())
        .fails(2, &["--host 0.0.0.0", "--worker-address"]);
    serve(&["--heart-beat", "18446744073709551615"]).fails(2, &["--heart-beat"]);
    serve(&["--api-key", "a b"]).fails(2, &["--api-key", "header"]);
    // Sampling defaults are looked at before anybody asks.
    serve(&["--override-generation-config", "{\"temperature\": -1}"])
        .fails(2, &["--override-generation-config", "temperature: found -1"]);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("generation_config.json");
    std::fs::write(config, "{\"top_p\": 7, \"temperature\": 0.5}").unwrap();
    serve(&["--generation-config", dir.path().to_str().unwrap()])
        .fails(1, &["generation_config.json", "top_p: found 7", "--generation-config none"]);
}
