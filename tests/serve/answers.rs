//! What a server says of a real model.

use serde_json::{Value, json};

use super::server::{Server, checkpoint};
use crate::harness::run;

/// The answers of one server, which starts once for all that is asked here.
#[test]
fn a_server_answers_as_generate_does_and_as_clients_expect() {
    let server = Server::start(&[]);
    greedy_is_what_generate_says(&server);
    ids_and_texts_are_one_prompt(&server);
    a_stream_says_what_the_whole_answer_says(&server);
    an_echo_scores_what_was_generated(&server);
    a_prompt_that_is_known_gives_the_same_answer(&server);
    grammars_hold(&server);
    a_chat_answers(&server);
    limits_are_said(&server);
    server.wait_until("everything to end", |server| server.metric("num_requests_running") == 0.0);
    assert_eq!(server.metric("kv_cache_usage_perc"), 0.0);
    server.stop();
}

fn greedy_is_what_generate_says(server: &Server) {
    let checkpoint = checkpoint().to_str().unwrap();
    let arguments =
        ["generate", "--checkpoint", checkpoint, "--prompt", "The people", "--max-tokens", "20"];
    let generated = run(arguments.into_iter().chain(["--temperature", "0", "--json"])).ok().json();
    let body = json!({"prompt": "The people", "max_tokens": 20, "temperature": 0, "return_token_ids": true});
    let served = server.complete(&body);
    let choice = &served["choices"][0];
    assert_eq!(choice["text"], generated["text"]);
    assert_eq!(choice["token_ids"], generated["token_ids"]);
    assert_eq!(choice["finish_reason"], generated["finish_reason"]);
}

fn ids_and_texts_are_one_prompt(server: &Server) {
    let mut ids = vec![json!(1)];
    ids.extend(server.ids("The people").as_array().unwrap().iter().cloned());
    let body =
        |prompt: Value| json!({"prompt": prompt, "max_tokens": 10, "seed": 5, "temperature": 0.9});
    let [text, list] =
        [json!("The people"), json!(ids)].map(|prompt| server.complete(&body(prompt)));
    assert_eq!(text["choices"][0]["text"], list["choices"][0]["text"]);
    assert_eq!(text["usage"]["prompt_tokens"], list["usage"]["prompt_tokens"]);
}

fn a_stream_says_what_the_whole_answer_says(server: &Server) {
    let mut body = json!({"prompt": ["The people", "Call me"], "n": 2, "max_tokens": 24, "seed": 9,
                          "temperature": 1.0, "logprobs": 2, "stop": [" of"], "top_p": 0.95, "top_k": 50,
                          "min_p": 0.001, "repetition_penalty": 1.1, "presence_penalty": 0.1,
                          "frequency_penalty": 0.1, "logit_bias": {"300": -5}});
    let whole = server.complete(&body);
    body["stream"] = json!(true);
    let events = server.post("/v1/completions", &body).events();
    for choice in whole["choices"].as_array().unwrap() {
        let mine: Vec<&Value> = events
            .iter()
            .flat_map(|event| event["choices"].as_array().unwrap())
            .filter(|part| part["index"] == choice["index"])
            .collect();
        let text: String = mine.iter().map(|part| part["text"].as_str().unwrap()).collect();
        assert_eq!(choice["text"], text);
        assert_eq!(choice["finish_reason"], mine.last().unwrap()["finish_reason"]);
        let tokens: Vec<&Value> =
            mine.iter().flat_map(|part| part["logprobs"]["tokens"].as_array().unwrap()).collect();
        assert_eq!(
            choice["logprobs"]["tokens"].as_array().unwrap().iter().collect::<Vec<_>>(),
            tokens
        );
    }
    let other = json!({"prompt": "The people", "max_tokens": 24, "seed": 10});
    let again = server.complete(&other);
    assert_eq!(server.complete(&other)["choices"], again["choices"]);
}

/// As `lm_eval` scores: the tokens of a prompt, one new token, all probabilities.
fn an_echo_scores_what_was_generated(server: &Server) {
    let body = json!({"prompt": "The people", "max_tokens": 12, "temperature": 0, "logprobs": 1,
                      "return_token_ids": true});
    let said = server.complete(&body)["choices"][0].clone();
    let mut prompt = vec![json!(1)];
    prompt.extend(server.ids("The people").as_array().unwrap().iter().cloned());
    let context = prompt.len();
    prompt.extend(said["token_ids"].as_array().unwrap().iter().cloned());
    let body = json!({"prompt": [prompt], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true,
                      "seed": 1234});
    let scored = server.complete(&body)["choices"][0]["logprobs"].clone();
    let of = |logprobs: &Value, key: &str| logprobs[key].as_array().unwrap().clone();
    let scored_tokens = of(&scored, "token_logprobs");
    assert_eq!(scored_tokens.len(), prompt.len() + 1);
    let likeliest = of(&scored, "top_logprobs");
    for (place, said) in of(&said["logprobs"], "token_logprobs").iter().enumerate() {
        let scored = scored_tokens[context + place].as_f64().unwrap();
        assert!((scored - said.as_f64().unwrap()).abs() < 1e-4, "{place}: {scored} and {said}");
        // Greedy: each token is the likeliest at its place.
        let top = likeliest[context + place].as_object().unwrap();
        let most = top.values().map(|value| value.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!(scored, most);
    }
}

fn a_prompt_that_is_known_gives_the_same_answer(server: &Server) {
    let prompt = "The people of the United States and the government of the people";
    let body = json!({"prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 3, "cache_salt": "x"});
    let first = server.complete(&body);
    let again = server.complete(&body);
    assert_eq!(first["choices"], again["choices"]);
    let cached =
        |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached(&first), Some(0));
    assert!(cached(&again).unwrap() >= 16, "{again}");
    assert_eq!(server.post("/reset_prefix_cache", &json!({})).status, 200);
    assert_eq!(cached(&server.complete(&body)), Some(0));
}

fn grammars_hold(server: &Server) {
    let ask = |more: Value| {
        let mut body = json!({"prompt": "The", "max_tokens": 40, "seed": 3});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.complete(&body)["choices"][0].clone()
    };
    let choice = ask(json!({"structured_outputs": {"choice": ["whale", "ship of the line"]}}));
    assert!(["whale", "ship of the line"].contains(&choice["text"].as_str().unwrap()), "{choice}");
    assert_eq!(choice["finish_reason"], "stop");
    let digits = ask(json!({"structured_outputs": {"regex": "[0-9]{3}é"}}))["text"].clone();
    let digits = digits.as_str().unwrap();
    assert!(digits.len() == 5 && digits.ends_with('é'), "{digits}");
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}},
                        "required": ["ok"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    let text = ask(json!({"response_format": format}))["text"].clone();
    let answer: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
    assert!(answer["ok"].is_boolean(), "{answer}");
    let words = ask(json!({"temperature": 0, "bad_words": ["the", "of", "e"]}))["text"].clone();
    assert!(!words.as_str().unwrap().contains(" the"), "{words}");
    let only =
        ask(json!({"allowed_token_ids": server.ids("the"), "max_tokens": 6}))["text"].clone();
    assert!(only.as_str().unwrap().replace("the", "").trim().is_empty(), "{only}");
}

fn a_chat_answers(server: &Server) {
    let messages = json!([{"role": "user", "content": "The people"}]);
    let body = json!({"messages": messages, "max_tokens": 10, "temperature": 0});
    let answer = server.post("/v1/chat/completions", &body).ok();
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    let models = server.get("/v1/models").ok();
    assert_eq!(models["data"][0]["id"], "served");
    assert_eq!(models["data"][0]["max_model_len"], 64);
}

fn limits_are_said(server: &Server) {
    let long = json!({"prompt": "word ".repeat(80)});
    let error = server.post("/v1/completions", &long).error(400);
    assert!(error.contains("maximum context length is 64 tokens"), "{error}");
    let whole = server.complete(&json!({"prompt": "The", "max_tokens": 56, "ignore_eos": true}));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
}
