//! The server: HTTP in OpenAI's form in front of the inference engine and the tokenizer, the offline
//! batch, and the router in front of many servers.
//!
//! A module uses only the modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | [`error`] | what can go wrong: for clients in OpenAI's shape, and for the server |
//! | [`api_key`] | the key that requests have to send |
//! | [`runtime`] | threads that serve connections |
//! | [`request_body`] | bodies of requests, within bounds |
//! | [`metrics`] | counters, gauges, histograms and their text |
//! | [`token_engine`] | what is asked of an engine |
//! | [`serving_metrics`] | what is counted, under vLLM's names |
//! | [`engine_thread`] | the thread that owns the engine |
//! | [`admission`] | who is let in |
//! | [`served_model`] | the model's names, tokenizer, template and limits |
//! | [`fields`] | the fields of a request, one by one |
//! | [`constraint`] | grammars and words that may not appear |
//! | [`sampling`] | the fields that completions and chat share |
//! | [`app`] | what every handler shares |
//! | [`choice`] | one answer while it is made |
//! | [`logprobs`] | probabilities of tokens in both shapes |
//! | [`generation`] | a request at work |
//! | [`event_stream`] | answers as server-sent events |
//! | [`completions`] | `/v1/completions` |
//! | [`chat_completions`] | `/v1/chat/completions` |
//! | [`tokenization`] | `/tokenize`, `/detokenize`, `/tokenizer_info` |
//! | [`page`] | the chat page |
//! | [`http`] | paths, keys, names of requests, bounds |
//! | [`listener`] | connections |
//! | [`server`] | a server's life, signals |
//! | [`batch`] | offline batches |
//! | [`api_client`] | requests to an endpoint of this kind, or to an engine of this process |
//! | [`route`] | the router in front of many servers |

pub mod error;

pub mod api_key;

pub mod runtime;

pub mod request_body;

pub mod metrics;

pub mod token_engine;

pub mod serving_metrics;

pub mod engine_thread;

pub mod admission;

pub mod served_model;

pub mod fields;

pub mod constraint;

pub mod sampling;

pub mod app;

pub mod choice;

pub mod logprobs;

pub mod generation;

pub mod event_stream;

pub mod completions;

pub mod chat_completions;

pub mod tokenization;

pub mod page;

pub mod http;

pub mod listener;

pub mod server;

pub mod batch;

pub mod api_client;

pub mod route;

#[cfg(test)]
mod tests;
