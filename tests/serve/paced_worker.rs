//! A stand-in for a worker behind a router, which says what a test tells it when the test tells it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What the worker does next.
enum Next {
    /// Says more of its answer.
    Say(String),
    /// Ends the answer, for this reason.
    End(&'static str),
    /// Refuses the request that comes, with this message.
    Refuse(&'static str),
}

/// What has happened to the worker.
#[derive(Default)]
struct Seen {
    /// Bodies of the requests for an answer.
    bodies: Vec<Value>,
    /// Answers whose reader went away.
    left: usize,
}

/// The worker of the model `paced`. It answers one request at a time.
pub struct PacedWorker {
    pub url: String,
    next: Sender<Next>,
    seen: Arc<Mutex<Seen>>,
}

impl PacedWorker {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (next, todo) = channel();
        let (todo, seen) = (Arc::new(Mutex::new(todo)), Arc::new(Mutex::new(Seen::default())));
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (todo, seen) = (Arc::clone(&todo), Arc::clone(&shared));
                thread::spawn(move || answer(stream, &todo, &seen));
            }
        });
        Self { url, next, seen }
    }

    pub fn say(&self, text: &str) {
        self.next.send(Next::Say(text.to_owned())).unwrap();
    }

    pub fn end(&self, reason: &'static str) {
        self.next.send(Next::End(reason)).unwrap();
    }

    pub fn refuse(&self, message: &'static str) {
        self.next.send(Next::Refuse(message)).unwrap();
    }

    /// Role and text of every message of the newest request.
    pub fn asked(&self) -> Vec<(String, String)> {
        let seen = self.seen.lock().unwrap();
        let messages = seen.bodies.last().unwrap()["messages"].as_array().unwrap();
        let text = |message: &Value, key: &str| message[key].as_str().unwrap().to_owned();
        messages.iter().map(|message| (text(message, "role"), text(message, "content"))).collect()
    }

    /// Waits until `count` answers have lost their reader.
    #[track_caller]
    pub fn wait_until_left(&self, count: usize) {
        for _ in 0..1500 {
            if self.seen.lock().unwrap().left == count {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("waited for thirty seconds for the end of a connection");
    }
}

/// The first line and the body of the request that comes; none where the other end has gone.
pub fn read_request(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok()?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Some((first, body))
}

fn answer(stream: TcpStream, todo: &Mutex<Receiver<Next>>, seen: &Mutex<Seen>) {
    let Some((first, body)) = read_request(&stream) else { return };
    let whole = |status: u16, body: Value| {
        let body = body.to_string();
        let _ = write!(
            &stream,
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
    };
    if !first.contains("/v1/chat/completions") {
        return whole(200, json!({"model_names": ["paced"], "speed": 1, "queue_length": 0}));
    }
    seen.lock().unwrap().bodies.push(serde_json::from_slice(&body).unwrap());
    let todo = todo.lock().unwrap();
    let (mut begun, mut count) = (false, 0);
    loop {
        let next = match todo.recv_timeout(Duration::from_millis(20)) {
            Ok(next) => next,
            Err(RecvTimeoutError::Timeout) if !is_left(&stream) => continue,
            Err(RecvTimeoutError::Timeout) => {
                seen.lock().unwrap().left += 1;
                return;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let (delta, reason) = match next {
            Next::Refuse(message) => {
                let error = json!({"message": message, "type": "BadRequestError", "param": null, "code": 400});
                return whole(400, json!({"error": error}));
            }
            Next::Say(text) => (json!({"content": text}), Value::Null),
            Next::End(reason) => (json!({}), Value::from(reason)),
        };
        if !begun {
            begun = true;
            let _ = write!(
                &stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
            );
        }
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        let _ = write!(&stream, "data: {}\n\n", json!({"choices": [choice]}));
        if !reason.is_null() {
            let usage = json!({"choices": [], "usage": {"completion_tokens": count}});
            let _ = write!(&stream, "data: {usage}\n\ndata: [DONE]\n\n");
            return;
        }
        count += 1;
    }
}

/// Whether the other end has closed the connection.
fn is_left(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let seen = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    !matches!(seen, Err(error) if error.kind() == ErrorKind::WouldBlock)
}
