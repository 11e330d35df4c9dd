//! What requests ask for and get.

use serde_json::{Value, json};

use super::fake_engine::SCRIPT;
use super::server::{TestServer, options};

fn server() -> TestServer {
    TestServer::start(options())
}

#[test]
fn a_completion_has_openai_s_shape() {
    let server = server();
    let answer = server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 50})).ok();
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "tiny");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], SCRIPT);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &Value::Null));
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = &answer["usage"];
    // <s>, the space before a text and the letter.
    assert_eq!(usage["prompt_tokens"], 3);
    let total =
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], total);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
}

#[test]
fn the_sampled_end_token_counts_and_max_tokens_is_16_by_default() {
    let server = server();
    let all = server.post(
        "/v1/completions",
        &json!({"prompt": "a", "max_tokens": 99, "return_token_ids": true}),
    );
    let ids = all.ok()["choices"][0]["token_ids"].as_array().unwrap().clone();
    assert_eq!(ids.last(), Some(&json!(2)));
    assert_eq!(all.json()["usage"]["completion_tokens"], ids.len());
    let endless = server.post("/v1/completions", &json!({"prompt": "Q"})).ok();
    assert_eq!(endless["usage"]["completion_tokens"], 16);
    assert_eq!(endless["choices"][0]["finish_reason"], "length");
}

#[test]
fn prompts_come_as_texts_and_as_ids() {
    let server = server();
    let prompts = [json!("a"), json!(["a", "b"]), json!([1, 300]), json!([[1, 300], [301]])];
    for (prompt, choices) in prompts.into_iter().zip([1, 2, 1, 2]) {
        let body = json!({"prompt": prompt, "n": 2, "max_tokens": 3});
        let answer = server.post("/v1/completions", &body).ok();
        let list = answer["choices"].as_array().unwrap();
        let numbers: Vec<u64> =
            list.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..choices * 2).collect::<Vec<u64>>());
    }
    // Ids are taken as they are: no begin token is put before them.
    let ids = server.post("/v1/completions", &json!({"prompt": [300, 301]})).ok();
    assert_eq!(ids["usage"]["prompt_tokens"], 2);
    let empty = server.post("/v1/completions", &json!({"prompt": ""})).ok();
    assert_eq!(empty["usage"]["prompt_tokens"], 1);
    let bare = json!({"prompt": "a", "add_special_tokens": false});
    assert_eq!(server.post("/v1/completions", &bare).ok()["usage"]["prompt_tokens"], 2);
}

/// The joined texts of the choices of a stream, and the reasons why they ended.
fn joined(events: &[Value], text: impl Fn(&Value) -> Option<&str>) -> Vec<(String, Value)> {
    let mut choices: Vec<(String, Value)> = Vec::new();
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        let index = choice["index"].as_u64().unwrap() as usize;
        choices.resize(choices.len().max(index + 1), Default::default());
        choices[index].0.push_str(text(choice).unwrap_or_default());
        if !choice["finish_reason"].is_null() {
            choices[index].1 = choice["finish_reason"].clone();
        }
    }
    choices
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = server();
    let bodies = [
        json!({"prompt": "a", "max_tokens": 50}),
        json!({"prompt": ["a", "Q b"], "n": 2, "max_tokens": 9, "logprobs": 2, "echo": true}),
        json!({"prompt": "Q", "max_tokens": 40, "stop": ["cat hat é", "zz"], "stream_interval": 3}),
        json!({"prompt": "a", "max_tokens": 12, "stop": "at", "include_stop_str_in_output": true}),
    ];
    for mut body in bodies {
        let whole = server.post("/v1/completions", &body).ok();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let events = server.post("/v1/completions", &body).events();
        let (last, chunks) = events.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], whole["usage"]);
        assert!(chunks.iter().all(|chunk| chunk["usage"].is_null()));
        assert!(chunks.iter().all(|chunk| chunk["id"] == events[0]["id"]));
        let streamed = joined(chunks, |choice| choice["text"].as_str());
        let list = whole["choices"].as_array().unwrap();
        let expected: Vec<(String, Value)> = list
            .iter()
            .map(|choice| {
                (choice["text"].as_str().unwrap().into(), choice["finish_reason"].clone())
            })
            .collect();
        assert_eq!(streamed, expected, "{body}");
        if body.get("logprobs").is_some() {
            for (index, choice) in list.iter().enumerate() {
                let of_choice =
                    chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
                let mine = of_choice.filter(|choice| choice["index"] == index);
                for key in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
                    let joined: Vec<&Value> =
                        mine.clone().flat_map(|c| c["logprobs"][key].as_array().unwrap()).collect();
                    let whole: Vec<&Value> =
                        choice["logprobs"][key].as_array().unwrap().iter().collect();
                    assert_eq!(joined, whole, "{key}");
                }
            }
        }
    }
}

#[test]
fn text_ends_before_a_stop_string_and_says_which() {
    let server = server();
    let body = json!({"prompt": "a", "max_tokens": 50, "stop": ["nowhere", " hat"]});
    let choice = server.post("/v1/completions", &body).ok()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(" the cat"), &json!(" hat")));
    // More than the four of OpenAI.
    let many: Vec<String> = (0..60).map(|n| format!("stop{n}")).collect();
    server.post("/v1/completions", &json!({"prompt": "a", "stop": many})).ok();
    let cat = server.post("/tokenize", &json!({"prompt": "cat", "add_special_tokens": false})).ok();
    let id = cat["tokens"][0].clone();
    let body = json!({"prompt": "a", "max_tokens": 50, "stop_token_ids": [id]});
    let choice = server.post("/v1/completions", &body).ok()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(" the"), &id));
    // A stop string does not count before min_tokens.
    let body = json!({"prompt": "a", "max_tokens": 50, "stop": "cat", "min_tokens": 8});
    let choice = server.post("/v1/completions", &body).ok()["choices"][0].clone();
    assert_eq!(choice["text"], SCRIPT);
}

#[test]
fn echo_scores_a_prompt_as_lm_eval_reads_it() {
    let server = server();
    let prompt = [1, 300, 301, 302];
    let body = json!({"prompt": [prompt, prompt], "max_tokens": 1, "echo": true, "logprobs": 1,
                      "temperature": 0, "seed": 1234});
    let answer = server.post("/v1/completions", &body).ok();
    for choice in answer["choices"].as_array().unwrap() {
        let logprobs = &choice["logprobs"];
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[key].as_array().unwrap().len(), prompt.len() + 1, "{key}");
        }
        assert_eq!(
            (&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]),
            (&Value::Null, &Value::Null)
        );
        // The token itself is among the likeliest, so that `max(top.values())` can be compared.
        let top = logprobs["top_logprobs"][1].as_object().unwrap();
        assert_eq!(top.len(), 2);
        assert!(top.values().any(|value| value == &logprobs["token_logprobs"][1]));
    }
    // Scored alone: nothing is generated.
    let body = json!({"prompt": "the cat", "max_tokens": 0, "echo": true, "logprobs": 0});
    let choice = server.post("/v1/completions", &body).ok()["choices"][0].clone();
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("the cat"), &json!("length")));
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens[0], "<s>");
    assert_eq!(choice["logprobs"]["text_offset"].as_array().unwrap().len(), tokens.len());
    let body = json!({"prompt": "a", "prompt_logprobs": 1, "max_tokens": 1});
    let choice = server.post("/v1/completions", &body).ok()["choices"][0].clone();
    assert_eq!(choice["prompt_logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(choice["prompt_logprobs"][0], Value::Null);
    assert!(
        choice["prompt_logprobs"][1]
            .as_object()
            .unwrap()
            .values()
            .all(|token| token["rank"].is_u64())
    );
}

#[test]
fn tokens_can_be_written_as_ids() {
    let server = server();
    let body =
        json!({"prompt": "a", "max_tokens": 1, "logprobs": 1, "return_tokens_as_token_ids": true});
    let logprobs = server.post("/v1/completions", &body).ok()["choices"][0]["logprobs"].clone();
    assert!(logprobs["tokens"][0].as_str().unwrap().starts_with("token_id:"));
}

#[test]
fn the_best_of_several_answers_are_given() {
    let server = server();
    let body = json!({"prompt": "a", "n": 1, "best_of": 3, "max_tokens": 3});
    let answer = server.post("/v1/completions", &body).ok();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 1);
    assert_eq!(answer["usage"]["completion_tokens"], 9);
}

#[test]
fn a_chat_completion_has_openai_s_shape() {
    let server = server();
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "a </s>"}]}]);
    let body = json!({"messages": messages, "logprobs": true, "top_logprobs": 2, "n": 2});
    let answer = server.post("/v1/chat/completions", &body).ok();
    assert_eq!(answer["object"], "chat.completion");
    let choice = &answer["choices"][1];
    assert_eq!(choice["message"], json!({"role": "assistant", "content": SCRIPT}));
    let token = &choice["logprobs"]["content"][0];
    assert_eq!(token["token"], " the");
    assert_eq!(token["bytes"], json!(b" the"));
    assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    // What a message says never becomes a special token.
    let ids = server.post("/tokenize", &json!({"messages": messages})).ok();
    let ends = ids["tokens"].as_array().unwrap().iter().filter(|id| **id == json!(2)).count();
    assert_eq!(ends, 0);
    assert_eq!(ids["tokens"][0], 1);
    assert_eq!(answer["usage"]["prompt_tokens"], ids["count"]);
}

#[test]
fn a_chat_stream_begins_with_the_role_and_ends_with_the_reason() {
    let server = server();
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true,
                      "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let events = server.post("/v1/chat/completions", &body).events();
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let last = &events[events.len() - 2]["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("stop")));
    assert!(events[2]["usage"]["completion_tokens"].as_u64().unwrap() >= 1);
    let text = joined(&events, |choice| choice["delta"]["content"].as_str());
    assert_eq!(text, [(SCRIPT.to_owned(), json!("stop"))]);
}

#[test]
fn a_message_can_be_continued_and_echoed() {
    let server = server();
    let messages =
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is"}]);
    let body = json!({"messages": messages, "continue_final_message": true, "echo": true});
    let answer = server.post("/v1/chat/completions", &body).ok();
    assert_eq!(answer["choices"][0]["message"]["content"], format!("It is{SCRIPT}"));
    let both = json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": true});
    assert!(
        server.post("/v1/chat/completions", &both).error(400).contains("continue_final_message")
    );
}

#[test]
fn errors_have_one_shape_and_name_the_field() {
    let server = server();
    let completion = |body: Value, words: &str| {
        let error = server.post("/v1/completions", &body).error(400);
        assert!(error.contains(words), "{words}: {error}");
    };
    completion(json!({}), "[prompt]");
    completion(json!({"prompt": {}}), "[prompt]");
    completion(json!({"prompt": [[]]}), "[prompt]");
    completion(json!({"prompt": [99999]}), "outside the vocabulary");
    completion(json!({"prompt": "a", "temperature": -1}), "[temperature]");
    completion(json!({"prompt": "a", "top_p": 0}), "[top_p]");
    completion(json!({"prompt": "a", "top_k": -2}), "[top_k]");
    completion(json!({"prompt": "a", "min_p": 2}), "[min_p]");
    completion(json!({"prompt": "a", "n": 0}), "[n]");
    completion(json!({"prompt": "a", "n": 2, "best_of": 1}), "[best_of]");
    completion(json!({"prompt": "a", "logprobs": 21}), "[logprobs]");
    completion(json!({"prompt": "a", "logit_bias": {"99999": 1}}), "[logit_bias]");
    completion(json!({"prompt": "a", "logit_bias": {"x": 1}}), "[logit_bias]");
    completion(json!({"prompt": "a", "suffix": "x"}), "[suffix]");
    completion(json!({"prompt": "a", "use_beam_search": true}), "[use_beam_search]");
    completion(
        json!({"prompt": "a", "stream_options": {"include_usage": true}}),
        "[stream_options]",
    );
    completion(json!({"prompt": "a", "max_tokens": 1000}), "maximum context length is 512");
    completion(json!({"prompt": "ab ".repeat(400)}), "maximum context length is 512");
    completion(json!({"prompt": "a", "response_format": {"type": "xml"}}), "[response_format]");
    completion(
        json!({"prompt": "a", "structured_outputs": {"regex": "("}}),
        "[structured_outputs]",
    );
    completion(json!({"prompt": "a", "min_tokens": 20}), "[min_tokens]");
    let chat = |body: Value, words: &str| {
        let error = server.post("/v1/chat/completions", &body).error(400);
        assert!(error.contains(words), "{words}: {error}");
    };
    let hello = json!([{"role": "user", "content": "a"}]);
    chat(json!({"messages": []}), "[messages]");
    chat(json!({"messages": [{"role": "robot", "content": "a"}]}), "robot");
    chat(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}), "image_url");
    chat(json!({"messages": [{"role": "assistant", "content": "a"}]}), "alternate");
    chat(json!({"messages": hello, "tools": [{"type": "function"}]}), "[tools]");
    chat(json!({"messages": hello, "top_logprobs": 2}), "[top_logprobs]");
    chat(json!({"messages": hello, "chat_template": "x"}), "[chat_template]");
    let not_json = server.request("POST", "/v1/completions", "", "{\"prompt\": ").error(400);
    assert!(not_json.contains("not JSON"), "{not_json}");
    let deep = "[".repeat(5000);
    server.request("POST", "/v1/completions", "", &deep).error(400);
    let error = server.post("/v1/completions", &json!({"prompt": "a", "model": "gpt"})).error(404);
    assert!(error.contains("tiny, other name") && error.contains("[model]"), "{error}");
    assert!(server.get("/v1/embeddings").error(404).contains("/v1/completions"));
    server.get("/v1/completions").error(405);
    let large = json!({"prompt": "a".repeat(2 << 20)});
    server.post("/v1/completions", &large).error(413);
}

#[test]
fn unknown_fields_are_taken_and_truncation_keeps_the_end() {
    let server = server();
    let body = json!({"prompt": "a", "spice": "hot", "user": "me", "model": "other name", "max_tokens": 1});
    server.post("/v1/completions", &body).ok();
    let body = json!({"prompt": "ab ".repeat(900), "truncate_prompt_tokens": 7, "max_tokens": 1,
                      "return_token_ids": true});
    let answer = server.post("/v1/completions", &body).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], 7);
    assert_ne!(answer["choices"][0]["prompt_token_ids"][0], 1);
    // What was cut off is not echoed.
    for prompt in [
        json!("ab at cat"),
        server.post("/tokenize", &json!({"prompt": "ab at cat"})).ok()["tokens"].clone(),
    ] {
        let body =
            json!({"prompt": prompt, "truncate_prompt_tokens": 1, "max_tokens": 0, "echo": true});
        let answer = server.post("/v1/completions", &body).ok();
        assert_eq!(answer["choices"][0]["text"].as_str().unwrap().trim(), "cat");
    }
}

#[test]
fn a_form_that_is_none_blames_the_field_that_gave_it() {
    let server = server();
    let bad = json!({"type": "object", "properties": 3});
    let ask = |name: &str, value: Value| {
        server.post("/v1/completions", &json!({"prompt": "a", name: value})).error(400)
    };
    assert!(ask("structured_outputs", json!({"json": bad})).contains("[structured_outputs]"));
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": bad}});
    assert!(ask("response_format", format).contains("[response_format]"));
}

#[test]
fn text_becomes_ids_and_ids_text() {
    let server = server();
    let encoded =
        server.post("/tokenize", &json!({"prompt": "the é", "return_token_strs": true})).ok();
    assert_eq!(encoded["max_model_len"], 512);
    assert_eq!(encoded["token_strs"][0], "<s>");
    assert!(encoded["token_strs"].as_array().unwrap().contains(&json!("bytes:\\xc3")));
    let decoded = server.post("/detokenize", &json!({"tokens": encoded["tokens"]})).ok();
    assert_eq!(decoded["prompt"], "the é");
    // Whoever writes special tokens out wants their ids.
    let special = json!({"prompt": "<s>a</s>", "add_special_tokens": false});
    let tokens = server.post("/tokenize", &special).ok()["tokens"].clone();
    assert_eq!((&tokens[0], tokens.as_array().unwrap().last()), (&json!(1), Some(&json!(2))));
    server.post("/detokenize", &json!({"tokens": [99999]})).error(400);
    let info = server.get("/tokenizer_info").ok();
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<s>"), &json!("</s>")));
    assert!(info["chat_template"].as_str().unwrap().contains("ASSISTANT"));
}

#[test]
fn the_small_endpoints_answer() {
    let server = server();
    let models = server.get("/v1/models").ok();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["max_model_len"], 512);
    assert_eq!(server.get("/v1/models/tiny").ok()["object"], "model");
    server.get("/v1/models/unknown").error(404);
    let health = server.get("/health");
    assert_eq!((health.status, health.body.as_str()), (200, ""));
    assert!(server.get("/version").ok()["version"].is_string());
    assert_eq!(server.get("/load").ok()["server_load"], 0);
    assert_eq!(server.post("/reset_prefix_cache", &json!({})).status, 200);
    assert_eq!(server.post("/worker_get_status", &json!({})).ok()["queue_length"], 0);
    let page = server.get("/");
    assert!(page.status == 200 && page.headers.contains("text/html"));
    let body = json!({"prompt": "a", "max_tokens": 1, "request_id": "mine"});
    assert_eq!(server.post("/v1/completions", &body).ok()["id"], "cmpl-mine");
    let named = server.request("GET", "/health", "X-Request-Id: my-id\r\n", "");
    assert!(named.headers.contains("x-request-id: my-id"), "{}", named.headers);
}

#[test]
fn metrics_have_vllm_s_names_and_count() {
    let server = server();
    server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 3})).ok();
    let answer = server.get("/metrics");
    assert!(answer.headers.contains("text/plain; version=0.0.4"), "{}", answer.headers);
    let label = "{model_name=\"tiny\",engine=\"0\"}";
    assert_eq!(server.metric(&format!("vllm:prompt_tokens_total{label}")), 3.0);
    assert_eq!(server.metric(&format!("vllm:generation_tokens_total{label}")), 3.0);
    for histogram in ["time_to_first_token", "e2e_request_latency", "request_queue_time"] {
        assert_eq!(
            server.metric(&format!("vllm:{histogram}_seconds_count{label}")),
            1.0,
            "{histogram}"
        );
    }
    assert_eq!(server.metric(&format!("vllm:inter_token_latency_seconds_count{label}")), 2.0);
    let success =
        "vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"length\"}";
    assert_eq!(server.metric(success), 1.0);
    let http = "http_requests_total{handler=\"/v1/completions\",method=\"POST\",status=\"200\"}";
    assert_eq!(server.metric(http), 1.0);
}
