//! Raw files in buckets and on web servers, and output that goes to a bucket.

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

/// A project of one source of text at `path`.
fn of_text(path: &str) -> Project {
    Project::new(&format!("- name: tales\n  text: {{paths: [{path:?}]}}\n"))
}

/// `data run --json` with nothing but `server` for a bucket.
fn run(project: &Project, server: &StorageServer) -> Finished {
    let mut line = project.command("run", &["--json"]);
    server.s3(&mut line);
    line.output().unwrap().into()
}

fn documents(report: &Value) -> u64 {
    super::rows(report)[0]["train_documents"].as_u64().unwrap()
}

/// JSON lines of `count` documents of some length.
fn lines(count: usize) -> Vec<u8> {
    let mut text = String::new();
    let mut state = 1u64;
    for number in 0..count {
        let words: Vec<String> = (0..150)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                format!("{:x}", state >> 40)
            })
            .collect();
        text += &format!("{{\"id\": \"{number}\", \"text\": \"{}\"}}\n", words.join(" "));
    }
    text.into_bytes()
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

#[test]
fn patterns_are_expanded_by_listing() {
    let server = StorageServer::start();
    for number in 0..20 {
        server.put(&format!("bucket/in/{number:02}.jsonl"), lines(1));
    }
    server.put("bucket/in/deep/er/99.jsonl", lines(1));
    server.put("bucket/in/note.md", "no document");
    server.put("bucket/inn/1.jsonl", lines(1));
    let read = |pattern: &str| {
        let report = run(&of_text(pattern), &server).ok().json();
        documents(&report)
    };
    assert_eq!(read("s3://bucket/in/*.jsonl"), 20);
    assert_eq!(read("s3://bucket/in/**/*.jsonl"), 21);
    assert_eq!(read("s3://bucket/in/{03,1?}.jsonl"), 11);
    assert_eq!(read("s3://bucket/in/07.jsonl"), 1);
    assert_eq!(read("s3://bucket/i*/1.jsonl"), 1);
    let none = run(&of_text("s3://bucket/in/*.txt"), &server);
    none.fails(1, &["sources.tales.text.paths", "nothing matches", "s3://bucket/in/*.txt"]);
}

#[test]
fn a_list_names_objects() {
    let server = StorageServer::start();
    let wet = fs::read_dir(fixture("common_crawl")).unwrap().map(|entry| entry.unwrap().path());
    let mut names = Vec::new();
    for path in wet {
        let name = format!("crawl-data/x/{}", path.file_name().unwrap().to_str().unwrap());
        server.put(&format!("commoncrawl/{name}"), fs::read(path).unwrap());
        names.push(name);
    }
    server.put("commoncrawl/lists/wet.paths", names.join("\n"));
    let of = |list: &str, root: &str| {
        Project::new(&format!("- name: web\n  web_archive: {{list: {list:?}, root: {root:?}}}\n"))
    };
    let in_bucket = of("s3://commoncrawl/lists/wet.paths", "s3://commoncrawl");
    let expected = run(&in_bucket, &server).ok().json();
    let web = format!("{}/commoncrawl", server.url);
    let from_web = of(&format!("{web}/lists/wet.paths"), &web);
    let found = run(&from_web, &server).ok().json();
    assert_eq!(found["manifests"], expected["manifests"]);
    assert!(documents(&expected) > 10);
    server.put("commoncrawl/lists/wet.paths", "crawl-data/x/gone.warc.wet.gz\n");
    run(&in_bucket, &server).fails(
        1,
        &["sources.web.web_archive.list", "s3://commoncrawl/crawl-data/x/gone.warc.wet.gz", "404"],
    );
}

#[test]
fn an_object_that_changes_is_read_again_and_one_that_stays_is_not() {
    let server = StorageServer::start();
    server.put("bucket/a.jsonl", lines(3));
    let project = of_text("s3://bucket/a.jsonl");
    let done = |report: &Value| report["groups_done"].as_u64().unwrap();
    assert_eq!(done(&run(&project, &server).ok().json()), 1);
    assert_eq!(done(&run(&project, &server).ok().json()), 0);
    // As many bytes: only the ETag tells.
    let mut changed = lines(3);
    changed[30] = b'z';
    server.put("bucket/a.jsonl", changed);
    assert_eq!(done(&run(&project, &server).ok().json()), 1);
}

/// A server that answers the first requests for bytes so, and the project that reads from it.
fn with_faults(faults: Vec<Fault>, bytes: Vec<u8>, bucket: bool) -> (StorageServer, Project) {
    let faults = std::sync::Mutex::new(faults);
    let server = StorageServer::failing(move |request, _| {
        let mut faults = faults.lock().unwrap();
        if request.method != "GET" || faults.is_empty() { Fault::None } else { faults.remove(0) }
    });
    server.put("bucket/a.jsonl", bytes);
    let path = match bucket {
        true => "s3://bucket/a.jsonl".to_owned(),
        false => format!("{}/bucket/a.jsonl", server.url),
    };
    let project = of_text(&path);
    (server, project)
}

#[test]
fn a_server_that_fails_for_a_while_is_asked_again() {
    let busy = Fault::Status(503, "<Error><Code>SlowDown</Code></Error>");
    for bucket in [true, false] {
        let faults = vec![busy.clone(), busy.clone(), busy.clone()];
        let (server, project) = with_faults(faults, lines(50), bucket);
        let finished = run(&project, &server).ok();
        assert_eq!(documents(&finished.json()), 50);
        assert!(finished.stderr.contains("503"), "{}", finished.stderr);
    }
    let (server, project) = with_faults(vec![busy; 100], lines(1), true);
    run(&project, &server).fails(
        1,
        &["sources.tales.text", "s3://bucket/a.jsonl", "503", "after 4 retries", "run again"],
    );
}

#[test]
fn a_connection_that_is_cut_goes_on_where_it_was() {
    let text = lines(2000);
    let most = text.len();
    assert!(most > 1 << 20);
    for bucket in [true, false] {
        let cuts = [100, 70_000, 0, 1].map(Fault::Cut).to_vec();
        let (server, project) = with_faults(cuts, text.clone(), bucket);
        assert_eq!(documents(&run(&project, &server).ok().json()), 2000);
        let requests = server.requests();
        let ranges: Vec<_> = requests.iter().filter(|request| request.method == "GET").collect();
        assert!(ranges.iter().all(|request| request.header("range").is_some()));
        // The second begins where the first was cut, and asks for the same object.
        assert!(ranges[1].header("range").unwrap().starts_with("bytes=100-"), "{:?}", ranges[1]);
        assert_eq!(ranges[1].header("if-match"), ranges[0].header("if-match"));
        assert!(ranges[1].header("if-match").is_some());
    }
    // Nothing ever comes.
    let (server, project) = with_faults(vec![Fault::Cut(0); 100], text, true);
    let mut line = project.command("run", &[]);
    server.s3(&mut line);
    line.env("ALTIPLANO_STORAGE_RETRIES", "1");
    let finished = Finished::from(line.output().unwrap());
    finished.fails(1, &["sources.tales.text", "s3://bucket/a.jsonl", "broke off", "run again"]);
}

#[test]
fn a_server_without_ranges_is_read_whole() {
    let text = lines(2000);
    let (server, project) = with_faults(vec![Fault::Whole; 1000], text.clone(), false);
    assert_eq!(documents(&run(&project, &server).ok().json()), 2000);
    // One that also cuts connections gives the rest at the next try.
    let most = text.len();
    let whole = std::sync::atomic::AtomicUsize::new(0);
    let server = StorageServer::failing(move |request, _| {
        if request.method != "GET" {
            return Fault::None;
        }
        match whole.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Fault::Whole,
            1 => Fault::Cut(most / 2),
            _ => Fault::Whole,
        }
    });
    server.put("bucket/a.jsonl", text);
    let project = of_text(&format!("{}/bucket/a.jsonl", server.url));
    assert_eq!(documents(&run(&project, &server).ok().json()), 2000);
    // Archives that are read from their end are copied first.
    let book = fixture("stack_exchange");
    let server = StorageServer::failing(|_, _| Fault::Whole);
    server.put_folder("dumps", &book);
    let mut names: Vec<_> = server.objects("dumps").into_keys().collect();
    names.retain(|name| name.ends_with(".7z"));
    let paths: Vec<String> =
        names.iter().map(|name| format!("{:?}", format!("{}/dumps/{name}", server.url))).collect();
    let from_web = Project::new(&format!(
        "- name: posts\n  stack_exchange: {{paths: [{}]}}\n",
        paths.join(", ")
    ));
    let local = Project::new(&format!(
        "- name: posts\n  stack_exchange: {{paths: [{:?}]}}\n",
        book.join("*.7z")
    ));
    assert_eq!(run(&from_web, &server).ok().json()["manifests"], local.run(&[])["manifests"]);
}

#[test]
fn an_object_that_is_not_what_it_was_is_an_error() {
    let text = lines(3000);
    // It changes between two ranges.
    for bucket in [true, false] {
        let holder = std::sync::Arc::new(OnceLock::<StorageServer>::new());
        let (later, other) = (std::sync::Arc::clone(&holder), text[..text.len() - 1].to_vec());
        let failing = StorageServer::failing(move |request, _| {
            let is_later = request.header("range").is_some_and(|r| !r.starts_with("bytes=0-"));
            if request.method == "GET" && is_later {
                later.get().unwrap().put("bucket/a.jsonl", other.clone());
            }
            Fault::None
        });
        let _ = holder.set(failing.clone());
        failing.put("bucket/a.jsonl", text.clone());
        let path = match bucket {
            true => "s3://bucket/a.jsonl".to_owned(),
            false => format!("{}/bucket/a.jsonl", failing.url),
        };
        run(&of_text(&path), &failing).fails(
            1,
            &["sources.tales.text", "bucket/a.jsonl", "changed while it was read", "run again"],
        );
    }
    // Lengths that are not true end in errors, without their memory being taken.
    let lying = StorageServer::failing(|request, _| {
        if request.method == "HEAD" { Fault::Longer(1 << 45) } else { Fault::None }
    });
    lying.put("bucket/a.jsonl", lines(2));
    run(&of_text("s3://bucket/a.jsonl"), &lying).fails(1, &["s3://bucket/a.jsonl", "run again"]);
    let lying = StorageServer::failing(|request, _| {
        if request.method == "GET" { Fault::Longer(1 << 45) } else { Fault::None }
    });
    lying.put("bucket/a.jsonl", lines(2));
    // The range says what there is.
    assert_eq!(documents(&run(&of_text("s3://bucket/a.jsonl"), &lying).ok().json()), 2);
}

#[test]
fn addresses_that_cannot_be_read_say_why() {
    let server = StorageServer::private("KEY");
    server.put("bucket/a.jsonl", lines(1));
    let fails = |code: i32, path: &str, words: &[&str]| {
        let words = [&["sources.tales.text.paths"], words].concat();
        run(&of_text(path), &server).fails(code, &words)
    };
    fails(2, "ftp://host/a.txt", &["ftp://host/a.txt", "s3://, gs://, az://, https://"]);
    fails(2, "s3:///a.txt", &["s3://BUCKET/PATH"]);
    fails(2, "https://host/a.txt?token=1", &["without `?`"]);
    fails(2, "https://host/*.txt", &["a web server lists none"]);
    fails(1, "s3://bucket/a.jsonl", &["403", "no credentials were found", "AWS_ACCESS_KEY_ID"]);
    fails(1, "s3://bucket/*.jsonl", &["access denied", "AWS_ACCESS_KEY_ID"]);
    fails(1, &format!("{}/bucket/a.jsonl", server.url), &["the server does not allow it"]);

    let open = StorageServer::start();
    open.put("bucket/a.jsonl", lines(1));
    run(&of_text("s3://bucket/b.jsonl"), &open)
        .fails(1, &["sources.tales.text.paths", "s3://bucket/b.jsonl", "404"]);
    run(&of_text("s3://bucke/*.jsonl"), &open)
        .fails(1, &["sources.tales.text.paths", "s3://bucke", "no such bucket"]);
    run(&of_text(&format!("{}/b.jsonl", open.url)), &open).fails(1, &["404", "check the address"]);

    let project = of_text("s3://bucket/a.jsonl");
    let mut line = project.command("run", &[]);
    open.s3(&mut line);
    line.env("AWS_ACCESS_KEY_ID", "KEY");
    Finished::from(line.output().unwrap()).fails(1, &["s3://bucket/a.jsonl", "AWS_"]);
    let mut line = project.command("run", &[]);
    server.s3(&mut line);
    line.env("AWS_ACCESS_KEY_ID", "OTHER").env("AWS_SECRET_ACCESS_KEY", "x");
    Finished::from(line.output().unwrap()).fails(1, &["403", "check that the credentials"]);
    let mut line = project.command("run", &[]);
    open.s3(&mut line);
    line.env("ALTIPLANO_STORAGE_RETRIES", "many");
    Finished::from(line.output().unwrap()).fails(1, &["ALTIPLANO_STORAGE_RETRIES", "0 to 1000"]);
}

#[test]
fn output_to_a_bucket_needs_a_bucket_and_a_folder() {
    let server = StorageServer::start();
    server.put("bucket/a.jsonl", lines(2));
    let project = of_text("s3://bucket/a.jsonl");
    let fails = |overrides: &[&str], words: &[&str]| {
        let mut line = project.command("run", overrides);
        server.s3(&mut line);
        Finished::from(line.output().unwrap()).fails(2, words)
    };
    fails(&["output=s3://bucket/made"], &["work", "found nothing", "s3://bucket/made"]);
    fails(&["work=there"], &["work", "expected none"]);
    fails(&["output=https://host/made", "work=work"], &["output", "web servers only give"]);
    let refused = StorageServer::failing(|request, _| match request.method.as_str() {
        "PUT" => Fault::Status(403, "<Error><Code>AccessDenied</Code></Error>"),
        _ => Fault::None,
    });
    refused.put("bucket/a.jsonl", lines(2));
    let work = project.path("work");
    let mut line =
        project.command("run", &["output=s3://bucket/made", &format!("work={}", work.display())]);
    refused.s3(&mut line);
    Finished::from(line.output().unwrap())
        .fails(1, &["s3://bucket/made/", "cannot be written", "access denied"]);
}

#[test]
fn a_web_server_may_send_the_reader_on() {
    let to = StorageServer::start();
    to.put("b/a.jsonl", lines(5));
    let url = format!("{}/b/a.jsonl", to.url);
    let from = StorageServer::failing(move |_, _| Fault::Redirect(url.clone()));
    let project = of_text(&format!("{}/a.jsonl", from.url));
    assert_eq!(documents(&run(&project, &to).ok().json()), 5);
    let round = StorageServer::failing(|request, _| Fault::Redirect(request.path.clone()));
    let project = of_text(&format!("{}/a.jsonl", round.url));
    run(&project, &to).fails(1, &["redirections"]);
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
