//! `altiplano serve` and `route` as processes on loopback.

use std::cell::RefCell;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{self, Answer};
use crate::harness::{Finished, Running, SmallRun, altiplano, copy_dir, temporary};

/// A small trained model, made once: 400 pieces, a context of 64 tokens.
pub fn checkpoint() -> &'static PathBuf {
    static CHECKPOINT: OnceLock<PathBuf> = OnceLock::new();
    CHECKPOINT.get_or_init(|| {
        let dir = temporary("served");
        let _ = fs::remove_dir_all(&dir);
        let run = SmallRun::new();
        run.train(&["steps=20", "checkpoint.every=0", "validate.every=0"]).ok();
        copy_dir(&run.checkpoint("small", 20), &dir);
        let template = "{{ bos_token }}{% for message in messages %}{{ message.content }} \
                        {% endfor %}";
        fs::write(temporary("served.jinja"), template).unwrap();
        dir
    })
}

/// A process that serves.
pub struct Server {
    process: Option<Running>,
    pub address: String,
}

impl Server {
    /// `altiplano serve` on a free port with further arguments.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_at("0", arguments)
    }

    /// The same on a port of its own.
    pub fn start_at(port: &str, arguments: &[&str]) -> Self {
        let mut command = altiplano();
        command.arg("serve").arg("--checkpoint").arg(checkpoint());
        command.args(["--port", port, "--threads", "1", "--num-gpu-blocks-override", "64"]);
        command.arg("--chat-template").arg(temporary("served.jinja"));
        Self::wait(Running::start(command.args(arguments)), "serving ")
    }

    /// A server of another model, with all its defaults.
    pub fn of(checkpoint: &Path) -> Self {
        let mut command = altiplano();
        command.args(["serve", "--port", "0", "--checkpoint"]).arg(checkpoint);
        Self::wait(Running::start(&mut command), "serving ")
    }

    /// A port that nobody listens on.
    pub fn free_port() -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port().to_string()
    }

    /// `altiplano route` on a free port.
    pub fn route(arguments: &[&str]) -> Self {
        let mut command = altiplano();
        Self::wait(
            Running::start(command.args(["route", "--port", "0"]).args(arguments)),
            "routing ",
        )
    }

    fn wait(mut process: Running, begins: &str) -> Self {
        let address = RefCell::new(String::new());
        process.wait_until(|said| {
            let line = said.lines().find(|line| line.starts_with(begins) && line.ends_with('/'));
            let found = line.and_then(|line| line.rsplit("http://").next());
            found.is_some_and(|found| {
                *address.borrow_mut() = found.trim_end_matches('/').to_owned();
                true
            })
        });
        Self { process: Some(process), address: address.into_inner() }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn signal(&self, name: &str) {
        self.process.as_ref().unwrap().signal(name);
    }

    /// Waits for the end of the process.
    pub fn finish(mut self) -> Finished {
        self.process.take().unwrap().finish()
    }

    /// Ends it by SIGTERM, which has to end in status 0.
    pub fn stop(self) {
        self.signal("TERM");
        self.finish().ok();
    }

    /// Sends a request and does not read the answer.
    pub fn open(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        client::open(&self.address, method, path, headers, body)
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::read(self.open("POST", path, "", &body.to_string()))
    }

    pub fn get(&self, path: &str) -> Answer {
        Answer::read(self.open("GET", path, "", ""))
    }

    pub fn complete(&self, body: &Value) -> Value {
        self.post("/v1/completions", body).ok()
    }

    /// The ids of a text, without marks.
    pub fn ids(&self, text: &str) -> Value {
        let body = json!({"prompt": text, "add_special_tokens": false});
        self.post("/tokenize", &body).ok()["tokens"].clone()
    }

    /// The value of a metric of the server's model.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let start = format!("vllm:{name}{{");
        let line = text.lines().find(|line| line.starts_with(&start));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .rsplit(' ')
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    pub fn wait_until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        for _ in 0..2000 {
            if reached(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited for twenty seconds for {what}");
    }
}

impl Drop for Server {
    /// A test that failed leaves no process behind.
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal("KILL");
            process.finish();
        }
    }
}

impl Answer {
    /// The answer is good, whole or a stream.
    #[track_caller]
    pub fn is_good(&self) {
        assert_eq!(self.status, 200, "{}", self.body);
    }
}
