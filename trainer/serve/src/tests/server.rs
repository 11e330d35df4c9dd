//! A server on loopback with the fake engine.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use altiplano_data::Tokenizer;
use altiplano_data::chat::{ChatTemplate, SpecialTokens};
use altiplano_data::tokenizer::{BpeModel, Piece, PieceType};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::client::{self, Answer};
use super::fake_engine::FakeEngine;
use crate::admission::AdmissionLimits;
use crate::app::{App, AppOptions};
use crate::engine_thread;
use crate::http::routes;
use crate::listener::Listener;
use crate::served_model::{SamplingDefaults, ServedModel, now};
use crate::serving_metrics::ServingMetrics;

/// A tokenizer of bytes, letters and a few words.
pub fn tokenizer() -> Tokenizer {
    let piece = |text: &str, score: f32, kind| Piece { text: text.to_owned(), score, kind };
    let mut pieces = vec![
        piece("<unk>", 0.0, PieceType::Unknown),
        piece("<s>", 0.0, PieceType::Control),
        piece("</s>", 0.0, PieceType::Control),
    ];
    pieces.extend(
        (0..=255u8).map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, PieceType::Byte(byte))),
    );
    let letters = ('a'..='z').chain('A'..='Z').map(String::from);
    let words =
        ["he", "\u{2581}t", "\u{2581}the", "at", "\u{2581}c", "\u{2581}cat"].map(String::from);
    let texts = words.into_iter().chain(["\u{2581}".to_owned()]).chain(letters);
    pieces.extend(
        texts.enumerate().map(|(rank, text)| piece(&text, -(rank as f32), PieceType::Normal)),
    );
    let model = BpeModel {
        pieces: &pieces,
        bos: Some(1),
        eos: Some(2),
        padding: None,
        add_dummy_prefix: true,
    };
    Tokenizer::from_bytes(Path::new("test.model"), &model.to_bytes()).unwrap()
}

/// A model with this tokenizer.
pub fn served_model(tokenizer: Tokenizer) -> ServedModel {
    ServedModel {
        names: vec!["tiny".into(), "other name".into()],
        root: "runs/tiny".into(),
        specials: SpecialTokens::of(&tokenizer),
        template: Some(ChatTemplate::open("vicuna_v1.1").unwrap()),
        tokenizer_config: Value::Null,
        max_model_len: 512,
        vocab_size: tokenizer.vocab_size(),
        eos_token_ids: vec![2],
        tokenizer,
        defaults: SamplingDefaults::default(),
        created: now(),
    }
}

pub struct TestServer {
    pub app: Arc<App>,
    pub address: SocketAddr,
    end: watch::Sender<bool>,
    pub runtime: Runtime,
}

pub fn options() -> AppOptions {
    AppOptions {
        admission: AdmissionLimits { requests: 64, tokens: 100_000 },
        max_logprobs: 20,
        seed: 0,
        stream_interval: 1,
        return_tokens_as_token_ids: false,
        api_key: None,
        max_body_bytes: 1 << 20,
    }
}

impl TestServer {
    pub fn start(options: AppOptions) -> Self {
        let tokenizer = tokenizer();
        let engine = FakeEngine::new(&tokenizer);
        let model = served_model(tokenizer);
        let metrics = Arc::new(ServingMetrics::new("tiny", 512));
        let engine = engine_thread::start(engine, Arc::clone(&metrics)).unwrap();
        let app = App::new(model, engine, metrics, options);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(Listener::bind(([127, 0, 0, 1], 0).into())).unwrap();
        let address = listener.address();
        let (end, ending) = watch::channel(false);
        runtime.spawn(listener.serve(routes(Arc::clone(&app)), ending));
        Self { app, address, end, runtime }
    }

    /// Sends a request and does not read the answer.
    pub fn open(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        client::open(self.address, method, path, headers, body)
    }

    pub fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        Answer::read(self.open(method, path, headers, body))
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, "", &body.to_string())
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", "")
    }

    /// The value of a metric with these labels.
    pub fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics").body;
        let found = text.lines().find_map(|metric| metric.strip_prefix(line)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {line} in {text}")).parse().unwrap()
    }

    /// Waits until `reached`.
    pub fn wait_until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        for _ in 0..1000 {
            if reached(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited for ten seconds for {what}");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.end.send(true);
    }
}
