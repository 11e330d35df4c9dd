//! A client that speaks HTTP over a plain socket. The tests of the crate and those of the binary share it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

/// Sends a request and does not read the answer, which has to go on coming within a minute.
pub fn open(
    address: impl ToSocketAddrs,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (host, length) = (stream.peer_addr().unwrap(), body.len());
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n\
         {headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    pub fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut headers = String::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            headers.push_str(&line.to_ascii_lowercase());
        }
        let mut body = Vec::new();
        if headers.contains("transfer-encoding: chunked") {
            loop {
                let mut size = String::new();
                reader.read_line(&mut size).unwrap();
                let size = usize::from_str_radix(size.trim(), 16).unwrap();
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk).unwrap();
                if size == 0 {
                    break;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        } else {
            // Not every server closes the connection behind its answer.
            let length = headers.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length = length.map_or(u64::MAX, |length| length.trim().parse().unwrap());
            reader.take(length).read_to_end(&mut body).unwrap();
        }
        let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, headers, body: String::from_utf8(body).unwrap() }
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    /// The object of a good answer.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// The message of an error, which has OpenAI's shape, with its `param` in brackets.
    #[track_caller]
    pub fn error(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let error = self.json()["error"].clone();
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 4, "{keys:?}");
        for key in ["message", "type", "param", "code"] {
            assert!(error.get(key).is_some(), "no {key} in {error}");
        }
        format!(
            "{} [{}]",
            error["message"].as_str().unwrap(),
            error["param"].as_str().unwrap_or("")
        )
    }

    /// The objects of a stream, which ends with `[DONE]`.
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        assert!(self.headers.contains("text/event-stream"), "{}", self.headers);
        let mut data: Vec<&str> =
            self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}
