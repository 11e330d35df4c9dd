//! A stand-in for an OpenAI-compatible server on loopback, whose answers a test writes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;

/// A request: its path, its headers in lower case, its body.
pub struct Request {
    pub path: String,
    pub headers: String,
    pub body: Value,
}

/// An answer: status, further headers with their line ends, body.
pub struct Reply {
    pub status: u16,
    pub headers: &'static str,
    pub body: Value,
}

impl Reply {
    pub fn ok(body: Value) -> Self {
        Self { status: 200, headers: "", body }
    }
}

/// The server. It answers until the tests end.
pub struct ApiStandIn {
    pub url: String,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl ApiStandIn {
    /// Answers every request by `answer`, which gets the number of the request too.
    pub fn start(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::new(None, answer)
    }

    /// As [`ApiStandIn::start`], with TLS.
    pub fn start_with_tls(
        config: Arc<rustls::ServerConfig>,
        answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::new(Some(config), answer)
    }

    fn new(
        tls: Option<Arc<rustls::ServerConfig>>,
        answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/v1", listener.local_addr().unwrap());
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let (answer, kept) = (Arc::new(answer), Arc::clone(&bodies));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, kept) = (Arc::clone(&answer), Arc::clone(&kept));
                let tls = tls.clone();
                thread::spawn(move || match tls {
                    None => serve(stream, &*answer, &kept),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        let mut stream = rustls::StreamOwned::new(connection, stream);
                        serve(&mut stream, &*answer, &kept);
                        stream.conn.send_close_notify();
                        let _ = stream.flush();
                    }
                });
            }
        });
        Self { url, bodies }
    }

    /// The bodies of all requests so far.
    pub fn bodies(&self) -> Vec<Value> {
        self.bodies.lock().unwrap().clone()
    }
}

fn serve(
    stream: impl Read + Write,
    answer: &dyn Fn(usize, &Request) -> Reply,
    kept: &Mutex<Vec<Value>>,
) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut headers) = (String::new(), String::new());
    if reader.read_line(&mut first).is_err() {
        return;
    }
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        headers.push_str(&line.to_ascii_lowercase());
    }
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length:"));
    let Some(length) = length.and_then(|length| length.trim().parse().ok()) else { return };
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let request = Request { path, headers, body: serde_json::from_slice(&body).unwrap() };
    let number = {
        let mut kept = kept.lock().unwrap();
        kept.push(request.body.clone());
        kept.len() - 1
    };
    let Reply { status, headers, body } = answer(number, &request);
    let body = body.to_string();
    let reply = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n{headers}\r\n{body}",
        body.len()
    );
    let _ = reader.into_inner().write_all(reply.as_bytes());
}
