//! The seven sources in miniature from buckets and web servers, and to buckets: the same bytes as on one disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use super::{Project, fixture};
use crate::harness::{Finished, Running, repository};
use crate::storage_server::{Fault, StorageServer, authority, without_credentials};

/// The seven sources of the quickstart, read from `place` instead of the repository.
fn seven_sources(place: &str) -> String {
    let config = fs::read_to_string(repository("configs/data/quickstart.yaml")).unwrap();
    config
        .replace("../../tests/fixtures", place)
        .replace("output: ../../runs/quickstart/data", "output: out")
        .replace("vocab_size: 4096", "vocab_size: 500")
        .replace("input_bytes: 8000000", "input_bytes: 500000")
}

/// The folders of the fixtures that the seven sources read.
const FOLDERS: [&str; 7] =
    ["common_crawl", "c4", "github", "wikipedia", "books", "arxiv", "stack_exchange"];

fn with_fixtures(server: StorageServer, prefix: &str) -> StorageServer {
    for name in FOLDERS {
        server.put_folder(&format!("{prefix}/{name}"), &fixture(name));
    }
    server
}

/// The files of each kind below `folder` that do not hold times.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for kind in ["documents", "dropped", "tokens"] {
        for source in fs::read_dir(folder.join(kind)).into_iter().flatten() {
            for file in fs::read_dir(source.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                all.insert(name, fs::read(path).unwrap());
            }
        }
    }
    if let Ok(model) = fs::read(folder.join("tokenizer.model")) {
        all.insert("tokenizer.model".into(), model);
    }
    all
}

/// Of the files of a bucket those that do not hold times.
fn stored(server: &StorageServer, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let mut all = server.objects(prefix);
    all.retain(|name, _| {
        name == "tokenizer.model"
            || ["documents/", "dropped/", "tokens/"].iter().any(|kind| name.starts_with(kind))
    });
    all
}

/// Runs all three commands of a data configuration.
fn run_all(project: &Project, mut environment: impl FnMut(&mut Command)) {
    for words in [&["data", "run"][..], &["tokenizer", "train"], &["tokenize"]] {
        let mut line = crate::harness::altiplano();
        line.args(words).arg(project.path("data.yaml"));
        environment(&mut line);
        Finished::from(line.output().unwrap()).ok();
    }
}

/// What the seven sources become on this machine. Made once.
fn local() -> &'static BTreeMap<String, Vec<u8>> {
    static LOCAL: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    LOCAL.get_or_init(|| {
        let project = Project::new("");
        project.write("data.yaml", seven_sources(repository("tests/fixtures").to_str().unwrap()));
        run_all(&project, |_| {});
        files(&project.path("out"))
    })
}

/// Of that the files of `data run`.
fn local_documents() -> BTreeMap<String, Vec<u8>> {
    let kinds = ["documents/", "dropped/"];
    let mut all = local().clone();
    all.retain(|name, _| kinds.iter().any(|kind| name.starts_with(kind)));
    all
}

#[track_caller]
fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

#[test]
fn seven_sources_go_from_a_bucket_to_token_shards_in_a_bucket() {
    let server = with_fixtures(StorageServer::private("KEY"), "raw/dumps");
    let project = Project::new("");
    let config = seven_sources("s3://raw/dumps");
    project
        .write("data.yaml", config.replace("output: out", "output: s3://made/corpus\nwork: work"));
    server.put("made/corpus/other.txt", "not ours");
    let signed = |line: &mut Command| {
        server.s3(line);
        line.env("AWS_ACCESS_KEY_ID", "KEY").env("AWS_SECRET_ACCESS_KEY", "SECRET");
    };
    run_all(&project, signed);
    let in_bucket = stored(&server, "made/corpus");
    assert_same(&in_bucket, local());
    assert_same(&files(&project.path("work")), local());
    // Every source comes to an end with its manifest.
    assert_eq!(in_bucket.keys().filter(|name| name.ends_with("manifest.json")).count(), 14);

    // On another machine nothing is done again.
    let elsewhere = Project::new("");
    let config = fs::read_to_string(project.path("data.yaml")).unwrap();
    elsewhere.write("data.yaml", config);
    let mut line = elsewhere.command("run", &["--json"]);
    signed(&mut line);
    let report = Finished::from(line.output().unwrap()).ok().json();
    assert_eq!(report["groups_done"], 0, "{report}");
    let before = server.requests().len();
    let mut line = crate::harness::altiplano();
    line.arg("tokenize").arg(elsewhere.path("data.yaml")).arg("--json");
    signed(&mut line);
    let report = Finished::from(line.output().unwrap()).ok().json();
    assert!(report["sources"].as_array().unwrap().iter().all(|s| s["skipped"] == true));
    assert!(server.requests()[before..].iter().all(|request| request.method != "PUT"));
    assert_same(&stored(&server, "made/corpus"), local());

    // A run takes its shards from there.
    let tokenizer = project.path("work/tokenizer.model");
    elsewhere.write(
        "train.yaml",
        format!(
            "name: small\noutput: runs\ntokenizer: {tokenizer:?}\n\
             model: {{dim: 32, n_layers: 1, n_heads: 2, n_kv_heads: 2, hidden_dim: 48, \
             vocab_size: 500, max_seq_len: 64}}\n\
             data: {{sources: [{{path: \"s3://made/corpus/tokens/books\", weight: 1}}]}}\n\
             batch: {{micro_batch: 2, grad_accum_steps: 1, seq_len: 64}}\nsteps: 2\n\
             optimizer: {{lr: 1.0e-3, warmup_steps: 1}}\n"
        ),
    );
    let batches = |place: &str| {
        let mut line = crate::harness::altiplano();
        line.args(["data", "batches"]).arg(elsewhere.path("train.yaml"));
        line.arg(format!("data.sources.0.path={place}"));
        signed(&mut line);
        line.env("XDG_CACHE_HOME", elsewhere.path("cache"));
        let text = Finished::from(line.output().unwrap()).ok().stdout;
        // Where the files lie is told too.
        let cached = fs::read_dir(elsewhere.path("cache/altiplano/storage"));
        let cached = cached.map(|mut all| all.next().unwrap().unwrap().path());
        text.replace(cached.unwrap_or_default().to_str().unwrap(), "FOLDER")
            .replace(project.path("work/tokens/books").to_str().unwrap(), "FOLDER")
    };
    // And is resumed, wherever it is started: the address stays what it is.
    let train = |arguments: &[&str]| {
        let mut line = crate::harness::altiplano();
        line.arg("train").args(arguments);
        signed(&mut line);
        line.env("XDG_CACHE_HOME", elsewhere.path("cache"));
        Finished::from(line.output().unwrap())
    };
    let (config, run) = (elsewhere.path("train.yaml"), elsewhere.path("runs/small"));
    let (config, run) = (config.to_str().unwrap(), run.to_str().unwrap());
    train(&[config]).ok();
    train(&["--resume", run, "steps=3"]).ok();
    let written = fs::read_to_string(elsewhere.path("runs/small/config.yaml")).unwrap();
    assert!(written.contains("path: s3://made/corpus/tokens/books"), "{written}");
    // A run itself lies on this machine.
    train(&[config, "name=other", "output=s3://made/runs"]).fails(2, &["output", "is an address"]);
    let local_tokens = project.path("work/tokens/books");
    let fetched = batches("s3://made/corpus/tokens/books");
    assert_eq!(fetched, batches(local_tokens.to_str().unwrap()));
    assert!(!fetched.is_empty());
}

#[test]
fn seven_sources_come_from_a_web_server_with_tls() {
    let folder = tempfile::tempdir().unwrap();
    let (roots, config) = authority(folder.path());
    let server = with_fixtures(StorageServer::with_tls(config), "dumps");
    let project = Project::new("");
    // A web server lists nothing, so every file is named.
    let mut config = seven_sources(&format!("{}/dumps", server.url));
    for (name, pattern) in [
        ("common_crawl", "*.warc.wet.gz"),
        ("c4", "c4-train.*.json.gz"),
        ("github", "github_*.gz"),
        ("wikipedia", "*.xml.bz2"),
        ("books", "*.txt"),
        ("arxiv", "*.tar"),
        ("stack_exchange", "*.7z"),
    ] {
        let ending = pattern.rsplit('*').next().unwrap();
        let mut names: Vec<String> = fs::read_dir(fixture(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|file| file.ends_with(ending))
            .map(|file| format!("{:?}", format!("{}/dumps/{name}/{file}", server.url)))
            .collect();
        names.sort();
        let before = format!("{:?}", format!("{}/dumps/{name}/{pattern}", server.url));
        assert!(config.contains(&before), "{before}");
        config = config.replace(&before, &names.join(", "));
    }
    project.write("data.yaml", config);
    let mut line = project.command("run", &[]);
    without_credentials(&mut line);
    line.env("SSL_CERT_FILE", &roots);
    Finished::from(line.output().unwrap()).ok();
    assert_same(&files(&project.path("out")), &local_documents());

    // Without the authority's certificate nothing is read.
    let mut line = project.command("run", &["output=other"]);
    without_credentials(&mut line);
    line.env("ALTIPLANO_STORAGE_RETRIES", "0");
    let finished = Finished::from(line.output().unwrap());
    finished
        .fails(1, &["sources.common_crawl.web_archive.paths", "https://127.0.0.1", "certificate"]);
}

#[test]
fn a_killed_run_goes_on_from_the_bucket() {
    // The twelfth file that is written hangs, and the process is killed over it.
    let written = std::sync::atomic::AtomicUsize::new(0);
    let server = StorageServer::failing(move |request, _| {
        let number = match request.method.as_str() {
            "PUT" => written.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
            _ => 0,
        };
        if number == 12 { Fault::Hang } else { Fault::None }
    });
    let server = with_fixtures(server, "raw/dumps");
    server.put("made/x", "");
    let config = seven_sources("s3://raw/dumps")
        .replace("output: out", "output: s3://made/corpus\nwork: work");
    let project = Project::new("");
    project.write("data.yaml", &config);
    let mut line = project.command("run", &["--threads", "1"]);
    server.s3(&mut line);
    let running = Running::start(&mut line);
    server.wait_for_hanging();
    running.signal("KILL");
    running.finish();
    let half = server.objects("made/corpus");
    assert!(half.len() >= 12, "{}", half.len());
    assert!(!half.contains_key("documents/common_crawl/manifest.json"));

    // On a machine that has nothing, and then with the folder as it was left.
    let other = Project::new("");
    other.write("data.yaml", &config);
    for (project, done) in [(&other, false), (&project, true)] {
        let mut line = project.command("run", &["--json"]);
        server.s3(&mut line);
        let report = Finished::from(line.output().unwrap()).ok().json();
        assert_eq!(report["groups_done"] == 0, done, "{report}");
        assert!(report["groups_skipped"].as_u64().unwrap() > 0, "{report}");
        assert_same(&stored(&server, "made/corpus"), &local_documents());
        assert_same(&files(&project.path("work")), &local_documents());
    }
}

#[test]
fn ranks_without_a_shared_disk_meet_in_the_bucket() {
    let server = with_fixtures(StorageServer::start(), "raw/dumps");
    server.put("made/x", "");
    let config = seven_sources("s3://raw/dumps")
        .replace("output: out", "output: s3://made/corpus\nwork: work");
    let machines = [Project::new(""), Project::new(""), Project::new("")];
    for machine in &machines {
        machine.write("data.yaml", &config);
    }
    let command = |machine: &Project, command: &str, arguments: &[&str]| {
        let mut line = machine.command(command, &[arguments, &["--json"]].concat());
        server.s3(&mut line);
        Finished::from(line.output().unwrap()).ok().json()
    };
    let waiting = |report: &Value| report["waiting"].as_array().is_some_and(|all| !all.is_empty());
    for round in 0.. {
        assert!(round < 8, "it does not come to an end");
        for (rank, machine) in machines[..2].iter().enumerate() {
            command(machine, "run", &["--rank", &rank.to_string(), "--world-size", "2"]);
        }
        if !waiting(&command(&machines[2], "merge", &[])) {
            break;
        }
    }
    assert_same(&stored(&server, "made/corpus"), &local_documents());
}

/// A process that is ended with its handle.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a request without a signature, which moto takes; the status.
fn put(address: &str, path: &str, bytes: &[u8]) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        bytes.len()
    );
    stream.write_all(&[head.as_bytes(), bytes].concat()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// The protocol as others understand it: `scripts/setup_moto` installs the server.
#[test]
fn seven_sources_go_through_a_bucket_of_moto() {
    let moto = std::env::var_os("MOTO_SERVER")
        .map_or_else(|| repository(".venv-moto/bin/moto_server"), Into::into);
    if !moto.is_file() {
        eprintln!("skipped: no {}, see scripts/setup_moto", moto.display());
        return;
    }
    // A port that is free now.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let port = address.rsplit(':').next().unwrap().to_owned();
    let server = Command::new(moto)
        .args(["-H", "127.0.0.1", "-p", &port])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let _server = Server(server);
    for _ in 0..600 {
        if std::net::TcpStream::connect(&address).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    for bucket in ["/raw", "/made"] {
        assert_eq!(put(&address, bucket, b""), "200");
    }
    for folder in FOLDERS {
        for file in fs::read_dir(fixture(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            if file.is_file() {
                let name = file.file_name().unwrap().to_str().unwrap();
                let status =
                    put(&address, &format!("/raw/{folder}/{name}"), &fs::read(&file).unwrap());
                assert_eq!(status, "200", "{name}");
            }
        }
    }
    let project = Project::new("");
    let config = seven_sources("s3://raw");
    project
        .write("data.yaml", config.replace("output: out", "output: s3://made/corpus\nwork: work"));
    let signed = |line: &mut Command| {
        without_credentials(line);
        line.env("AWS_ENDPOINT_URL", format!("http://{address}"));
        line.env("AWS_ACCESS_KEY_ID", "KEY").env("AWS_SECRET_ACCESS_KEY", "SECRET");
    };
    run_all(&project, signed);
    assert_same(&files(&project.path("work")), local());
    // Another folder is filled from the bucket, and nothing is done again.
    let elsewhere = Project::new("");
    elsewhere.write("data.yaml", fs::read_to_string(project.path("data.yaml")).unwrap());
    let mut line = elsewhere.command("run", &["--json"]);
    signed(&mut line);
    assert_eq!(Finished::from(line.output().unwrap()).ok().json()["groups_done"], 0);
    assert_same(&files(&elsewhere.path("work")), &local_documents());
}
