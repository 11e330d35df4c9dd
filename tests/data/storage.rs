//! Raw files in buckets and on web servers that fail in every way, and addresses that cannot be read.

use std::fs;
use std::sync::OnceLock;

use serde_json::Value;

use super::{Project, fixture};
use crate::harness::Finished;
use crate::storage_server::{Fault, StorageServer};

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
    for (line, words) in [
        ("/etc/passwd\n", "is a path of this machine"),
        ("crawl-data/x/gone.warc.wet.gz?a=b\n", "without `?` and `#`"),
    ] {
        server.put("commoncrawl/lists/wet.paths", line);
        run(&in_bucket, &server).fails(1, &[line.trim(), words]);
    }
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
