//! The table of a mixture, and the speed of a step.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Project, fixture};
use crate::harness::{Finished, corpus, repository, run};

/// `data report --mixture` of a file that mixes sources of the small corpus.
fn report(file: &Path, arguments: &[&str]) -> Finished {
    let file = file.to_str().unwrap();
    run([&["data", "report", "--mixture", file][..], arguments].concat())
}

fn close(value: &Value, expected: f64) -> bool {
    (value.as_f64().unwrap() - expected).abs() <= 1e-9 * expected.abs()
}

#[test]
fn the_table_of_a_mixture() {
    let project = Project::new("");
    let file = project.path("mixture.yaml");
    let tokens = corpus().join("tokens");
    let sources = |weights: [f64; 3]| {
        let names = ["speeches", "books", "early"];
        let source = |(name, weight)| {
            format!("  - {{path: {:?}, weight: {weight}}}\n", tokens.join(name).to_str().unwrap())
        };
        names.into_iter().zip(weights).map(source).collect::<String>()
    };
    fs::write(&file, format!("sources:\n{}max_epochs: 2\n", sources([6.0, 3.0, 1.0]))).unwrap();

    // Without a budget as much is drawn as there is without repeating a source.
    let json = report(&file, &["--json"]).ok().json();
    let mixture = &json["mixture"];
    let rows = mixture["sources"].as_array().unwrap();
    let budget = mixture["token_budget"].as_f64().unwrap();
    let most = rows.iter().map(|row| row["epochs"].as_f64().unwrap()).fold(0.0, f64::max);
    assert!((0.999..=1.0).contains(&most), "{mixture}");
    let shares = [0.6, 0.3, 0.1];
    for (row, share) in rows.iter().zip(shares) {
        let number = |key: &str| row[key].as_f64().unwrap();
        assert!(close(&row["share"], share), "{row}");
        assert!(close(&row["tokens_drawn"], share * budget), "{row}");
        assert!(close(&row["epochs"], share * budget / number("tokens")), "{row}");
        assert!(close(&row["bytes_per_token"], number("bytes") / number("tokens")), "{row}");
        // What is held out is not trained on.
        let manifest = tokens.join(row["name"].as_str().unwrap()).join("manifest.json");
        let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
        let train = |key: &str| -> f64 {
            let shards = manifest["shards"].as_array().unwrap().iter();
            shards.filter(|shard| shard["split"] == "train").map(|s| s[key].as_f64().unwrap()).sum()
        };
        assert_eq!((number("tokens"), number("documents")), (train("tokens"), train("documents")));
        let documents = corpus().join("documents").join(row["name"].as_str().unwrap());
        let text =
            run(["data", "cat", "--split", "train", documents.to_str().unwrap()]).ok().stdout;
        let separators = number("documents") - 1.0;
        assert_eq!(number("bytes") + separators, text.len() as f64, "{row}");
    }

    // Drawn five times as often, the smallest repeats beyond what is asked and is named.
    let draw = format!("{}", (budget * 5.0) as u64);
    let table = report(&file, &["--tokens", &draw]).ok().stdout;
    let early = rows.iter().position(|row| row["epochs"].as_f64() == Some(most)).unwrap();
    let name = rows[early]["name"].as_str().unwrap();
    let warnings: Vec<_> = table.lines().filter(|line| line.starts_with("warning")).collect();
    assert!(warnings.iter().any(|line| line.contains(name) && line.contains("max_epochs 2")));
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let repeats = row["epochs"].as_f64().unwrap() * 5.0 > 2.0;
        assert_eq!(warnings.iter().any(|line| line.contains(name)), repeats, "{table}");
    }
    assert!(table.contains("60.00%") && table.contains("30.00%") && table.contains("10.00%"));
    // A budget in the file, and one that goes before it.
    let budgeted = format!("sources:\n{}token_budget: 1000\n", sources([1.0, 1.0, 2.0]));
    fs::write(&file, &budgeted).unwrap();
    assert_eq!(report(&file, &["--json"]).ok().json()["mixture"]["token_budget"], 1000);
    let json = report(&file, &["--tokens", "2e3", "--json"]).ok().json();
    assert_eq!(json["mixture"]["token_budget"], 2000);
    assert!(close(&json["mixture"]["sources"][2]["tokens_drawn"], 1000.0), "{json}");
    // Both reports at once.
    let both = ["data", "report", corpus().to_str().unwrap(), "--mixture", file.to_str().unwrap()];
    let both = run(both).ok().stdout;
    assert!(both.contains("= kept") && both.contains("50.00%"), "{both}");
}

#[test]
fn mistakes_in_a_mixture() {
    let project = Project::new("");
    let file = project.path("mixture.yaml");
    let books = corpus().join("tokens/books");
    let books = books.to_str().unwrap();
    let mixture = |text: &str| fs::write(&file, text).unwrap();
    mixture(&format!("sources:\n  - {{path: {books:?}, wieght: 1}}\n"));
    report(&file, &[]).fails(2, &["mixture.yaml:2:", "wieght", "\"weight\""]);
    mixture(&format!("sources:\n  - {{path: {books:?}, weight: 0}}\n"));
    report(&file, &[]).fails(2, &["weight", "above 0"]);
    mixture("sources:\n  - {path: nowhere, weight: 1}\n");
    report(&file, &[]).fails(1, &["nowhere"]);
    mixture(&format!("sources:\n  - {{path: {books:?}, weight: 1}}\n"));
    for tokens in ["0", "-5", "many", "1.5"] {
        report(&file, &[&format!("--tokens={tokens}")]).fails(2, &["--tokens"]);
    }
    run(["data", "report"]).fails(2, &["<DIR>"]);
    // The shipped mixture is the table of the paper; its sources are not there yet.
    let shipped = repository("configs/data/llama1_mixture.yaml");
    report(&shipped, &[]).fails(1, &["common_crawl"]);
}

#[test]
fn the_speed_of_a_step() {
    let project = Project::new("");
    let page = "This is a sentence of an ordinary page. Here comes the second one of it.\n";
    let line = |number: usize| {
        serde_json::json!({"id": format!("{number}"), "text": page.repeat(number % 7)}).to_string()
    };
    let lines: Vec<String> = (0..70).map(line).collect();
    project.write("pages.jsonl", lines.join("\n"));
    let bytes: usize = (0..70).map(|number| page.len() * (number % 7)).sum();
    let pages = project.path("pages.jsonl");
    let json = run(["bench", "data", "c4", pages.to_str().unwrap(), "--json"]).ok().json();
    // The empty ones never become documents.
    assert_eq!((&json["documents"], &json["bytes"]), (&60.into(), &bytes.into()), "{json}");
    // Three sentences a page are needed.
    assert_eq!(json["documents_kept"], 50, "{json}");
    for key in ["megabytes_per_second", "cpu_seconds", "repetitions"] {
        assert!(json[key].as_f64().unwrap() > 0.0, "{key}: {json}");
    }
    let pages = pages.to_str().unwrap();
    run(["bench", "data", "c44", pages]).fails(2, &["c44", "\"c4\""]);
    let nothing = fixture("no-such-file.jsonl");
    run(["bench", "data", "c4", nothing.to_str().unwrap()]).fails(1, &["no-such-file.jsonl"]);
}
