//! A server of files on loopback: a bucket by the S3 protocol, or a web server, with TLS or not, which fails as
//! a test wants it to. What it holds is in memory.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The value of a part of the query.
    fn query(&self, name: &str) -> Option<String> {
        let parts = self.query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
        parts.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decode(value))
    }
}

/// What is done instead of answering.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Nothing: it is answered.
    None,
    /// This status, with this text.
    Status(u16, &'static str),
    /// The connection is cut after so many bytes of the body.
    Cut(usize),
    /// The range is not looked at.
    Whole,
    /// The header `Content-Length` is larger by this, and nothing more comes.
    Longer(usize),
    /// Another address.
    Redirect(String),
    /// There is no answer as long as the server lives.
    Hang,
}

type FaultOf = dyn Fn(&Request, usize) -> Fault + Send + Sync;

struct State {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    uploads: Mutex<BTreeMap<String, BTreeMap<u32, Vec<u8>>>>,
    requests: Mutex<Vec<Request>>,
    hanging: (Mutex<usize>, Condvar),
    fault: Box<FaultOf>,
    /// A request without a signature by this key is refused.
    key: Option<&'static str>,
}

/// The server. It answers until the tests end.
#[derive(Clone)]
pub struct StorageServer {
    /// Its address without a slash at the end.
    pub url: String,
    state: Arc<State>,
}

/// Keys of a page of a listing: few, so that there are several pages.
const PAGE: usize = 7;

impl StorageServer {
    pub fn start() -> Self {
        Self::failing(|_, _| Fault::None)
    }

    /// Fails as `fault` says, which is asked with every request and its number.
    pub fn failing(fault: impl Fn(&Request, usize) -> Fault + Send + Sync + 'static) -> Self {
        Self::new(Box::new(fault), None, None)
    }

    /// Refuses what is not signed with `key`.
    pub fn private(key: &'static str) -> Self {
        Self::new(Box::new(|_, _| Fault::None), Some(key), None)
    }

    /// Speaks TLS.
    pub fn with_tls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::new(Box::new(|_, _| Fault::None), None, Some(config))
    }

    fn new(
        fault: Box<FaultOf>,
        key: Option<&'static str>,
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            objects: Mutex::default(),
            uploads: Mutex::default(),
            requests: Mutex::default(),
            hanging: Default::default(),
            fault,
            key,
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(stream.try_clone().unwrap(), stream, &state),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        let stream = rustls::StreamOwned::new(connection, stream);
                        let stream = Arc::new(Mutex::new(stream));
                        serve(Shared(Arc::clone(&stream)), Shared(stream), &state);
                    }
                });
            }
        });
        Self { url, state }
    }

    /// Puts an object at `key`: the bucket, a slash, the rest.
    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        self.state.objects.lock().unwrap().insert(key.to_owned(), bytes.into());
    }

    /// Puts the files below `folder` there, under `prefix`.
    pub fn put_folder(&self, prefix: &str, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let key = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                self.put_folder(&key, &entry.path());
            } else {
                self.put(&key, std::fs::read(entry.path()).unwrap());
            }
        }
    }

    /// The objects below `prefix`, named without it.
    pub fn objects(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let objects = self.state.objects.lock().unwrap();
        let below = objects.iter().filter_map(|(key, bytes)| {
            Some((key.strip_prefix(prefix)?.trim_start_matches('/').to_owned(), bytes.clone()))
        });
        below.collect()
    }

    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Waits until a request hangs.
    pub fn wait_for_hanging(&self) {
        let (count, changed) = &self.state.hanging;
        let minutes = std::time::Duration::from_secs(240);
        let waited =
            changed.wait_timeout_while(count.lock().unwrap(), minutes, |count| *count == 0);
        assert!(*waited.unwrap().0 > 0, "no request hangs");
    }

    /// A command that finds the bucket here.
    pub fn s3(&self, command: &mut std::process::Command) {
        without_credentials(command);
        command.env("AWS_ENDPOINT_URL", &self.url);
    }
}

/// Takes away what the environment of the tests says about object storage.
pub fn without_credentials(command: &mut std::process::Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command.env("ALTIPLANO_STORAGE_RETRIES", "4");
}

/// A certificate authority of the tests, as a file, and a server's configuration with a certificate by it.
pub fn authority(folder: &Path) -> (std::path::PathBuf, Arc<rustls::ServerConfig>) {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certified = rcgen::generate_simple_self_signed(names).unwrap();
    let file = folder.join("authority.pem");
    std::fs::write(&file, certified.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    (file, Arc::new(config))
}

/// Both directions of a connection with TLS.
struct Shared(Arc<Mutex<rustls::StreamOwned<rustls::ServerConnection, TcpStream>>>);

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().read(buffer)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().unwrap().flush()
    }
}

fn serve(input: impl Read, mut output: impl Write, state: &State) {
    let mut input = BufReader::new(input);
    while let Some(request) = read_request(&mut input) {
        let number = {
            let mut requests = state.requests.lock().unwrap();
            requests.push(Request { body: Vec::new(), ..request.clone() });
            requests.len() - 1
        };
        let fault = (state.fault)(&request, number);
        if fault == Fault::Hang {
            *state.hanging.0.lock().unwrap() += 1;
            state.hanging.1.notify_all();
            loop {
                thread::park();
            }
        }
        let Answer { status, mut headers, body } = match &fault {
            Fault::Status(status, text) => Answer::new(*status, *text),
            Fault::Redirect(url) => Answer::new(302, "").with("Location", url),
            _ => answer(&request, state, fault == Fault::Whole),
        };
        let longer = if let Fault::Longer(bytes) = fault { bytes } else { 0 };
        headers += &format!("Content-Length: {}\r\n", body.len() + longer);
        let body: &[u8] = if request.method == "HEAD" { &[] } else { &body };
        let sent = if let Fault::Cut(bytes) = fault { bytes.min(body.len()) } else { body.len() };
        let head = format!("HTTP/1.1 {status} X\r\n{headers}\r\n");
        let all = [head.as_bytes(), &body[..sent]].concat();
        if output.write_all(&all).and_then(|()| output.flush()).is_err()
            || matches!(fault, Fault::Cut(_) | Fault::Longer(_))
        {
            return;
        }
    }
}

fn read_request(input: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    input.read_line(&mut line).ok()?;
    let mut parts = line.split_whitespace();
    let (method, target) = (parts.next()?.to_owned(), parts.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (decode(path), query.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    input.read_exact(&mut body).ok()?;
    Some(Request { method, path, query, headers, body })
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: String::new(), body: body.into() }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }
}

fn answer(request: &Request, state: &State, whole: bool) -> Answer {
    let signed = request.header("authorization").unwrap_or_default();
    if state.key.is_some_and(|key| !signed.contains(&format!("Credential={key}/"))) {
        return Answer::new(403, "<Error><Code>AccessDenied</Code></Error>");
    }
    let key = request.path.trim_start_matches('/').to_owned();
    let mut objects = state.objects.lock().unwrap();
    match request.method.as_str() {
        "GET" if request.query("list-type").is_some() => list(request, &key, &objects),
        "GET" | "HEAD" => match objects.get(&key) {
            None => Answer::new(404, "<Error><Code>NoSuchKey</Code></Error>"),
            Some(bytes) => object(request, bytes, whole),
        },
        "PUT" if request.query("uploadId").is_some() => {
            let mut uploads = state.uploads.lock().unwrap();
            let parts = uploads.get_mut(&request.query("uploadId").unwrap()).unwrap();
            let number = request.query("partNumber").unwrap().parse().unwrap();
            parts.insert(number, request.body.clone());
            Answer::new(200, "").with("ETag", &etag(&request.body))
        }
        "PUT" => {
            objects.insert(key, request.body.clone());
            Answer::new(200, "").with("ETag", &etag(&request.body))
        }
        "POST" if request.query("uploads").is_some() => {
            let mut uploads = state.uploads.lock().unwrap();
            let id = format!("upload{}", uploads.len());
            uploads.insert(id.clone(), BTreeMap::new());
            Answer::new(
                200,
                format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                     </InitiateMultipartUploadResult>"
                ),
            )
        }
        "POST" if request.query("uploadId").is_some() => {
            let mut uploads = state.uploads.lock().unwrap();
            let parts = uploads.remove(&request.query("uploadId").unwrap()).unwrap();
            let bytes: Vec<u8> = parts.into_values().flatten().collect();
            let tag = etag(&bytes);
            objects.insert(key, bytes);
            let tag = tag.replace('"', "&quot;");
            Answer::new(
                200,
                format!(
                    "<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
                ),
            )
        }
        "POST" if request.query("delete").is_some() => {
            let text = String::from_utf8_lossy(&request.body).into_owned();
            let mut deleted = String::new();
            for part in text.split("<Key>").skip(1) {
                let name = part.split("</Key>").next().unwrap();
                objects.remove(&format!("{}/{name}", key.trim_end_matches('/')));
                deleted += &format!("<Deleted><Key>{name}</Key></Deleted>");
            }
            Answer::new(200, format!("<DeleteResult>{deleted}</DeleteResult>"))
        }
        "DELETE" => {
            objects.remove(&key);
            Answer::new(204, "")
        }
        _ => Answer::new(405, ""),
    }
}

fn object(request: &Request, bytes: &[u8], whole: bool) -> Answer {
    let tag = etag(bytes);
    if request.header("if-match").is_some_and(|wanted| wanted != tag) {
        return Answer::new(412, "<Error><Code>PreconditionFailed</Code></Error>");
    }
    let range = request.header("range").and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        let start: usize = start.parse().ok()?;
        Some(start..(end.parse::<usize>().ok()? + 1).min(bytes.len()))
    });
    let answer = match range.filter(|_| !whole) {
        None => Answer::new(200, bytes),
        Some(range) if range.start >= range.end => return Answer::new(416, ""),
        Some(range) => {
            let all = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
            Answer::new(206, &bytes[range]).with("Content-Range", &all)
        }
    };
    answer.with("ETag", &tag).with("Last-Modified", "Sun, 01 Nov 2026 10:00:00 GMT")
}

fn list(request: &Request, bucket: &str, objects: &BTreeMap<String, Vec<u8>>) -> Answer {
    let bucket = format!("{}/", bucket.trim_end_matches('/'));
    if !objects.keys().any(|key| key.starts_with(&bucket)) {
        return Answer::new(404, "<Error><Code>NoSuchBucket</Code></Error>");
    }
    let prefix = format!("{bucket}{}", request.query("prefix").unwrap_or_default());
    let after = request.query("continuation-token").unwrap_or_default();
    let mut keys =
        objects.iter().filter(|(key, _)| key.starts_with(&prefix) && key[bucket.len()..] > *after);
    let mut page = String::new();
    let mut last = "";
    for (key, bytes) in keys.by_ref().take(PAGE) {
        last = &key[bucket.len()..];
        page += &format!(
            "<Contents><Key>{last}</Key><LastModified>2026-11-01T10:00:00.000Z</LastModified>\
             <ETag>{}</ETag><Size>{}</Size></Contents>",
            etag(bytes).replace('"', "&quot;"),
            bytes.len()
        );
    }
    let more = match keys.next() {
        Some(_) => format!("<NextContinuationToken>{last}</NextContinuationToken>"),
        None => String::new(),
    };
    Answer::new(200, format!("<ListBucketResult>{page}{more}</ListBucketResult>"))
}

fn etag(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// Undoes percent signs.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let code = text.get(at + 1..at + 3).and_then(|code| u8::from_str_radix(code, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap()
}
