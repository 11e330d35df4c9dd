//! The chat page.

use std::process::Command;

use super::server::Server;
use crate::harness::{Finished, repository};

/// One file that asks nobody else, and says what its parts are to who cannot see them.
#[test]
fn the_page_stands_alone_and_works_without_a_mouse() {
    let server = Server::start(&[]);
    let page = server.get("/");
    assert!(page.headers.contains("text/html"), "{}", page.headers);
    let page = page.body;
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    for needed in ["lang=\"en\"", "aria-live", "<label", "light-dark(", ":focus-visible"] {
        assert!(page.contains(needed), "{needed}");
    }
    // Its script, with as much of a document as it uses, where there is an interpreter.
    let script = repository("tests/serve/page.mjs");
    match Command::new("node").arg(script).arg(server.url()).output() {
        Ok(output) => drop(Finished::from(output).ok()),
        Err(error) => eprintln!("skipped: the page's script is not run: node: {error}"),
    }
    server.stop();
}
