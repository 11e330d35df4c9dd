//! The models web pages are sorted by, trained and applied by the same binary.

use std::fmt::Write;

use serde_json::{Value, json};

use super::apply::apply;
use super::{Project, fixture};
use crate::harness::run;

/// `data COMMAND` on a configuration file of the project.
#[track_caller]
fn train(project: &Project, command: &str, config: &str) -> Value {
    let file = format!("{command}.yaml");
    project.write(&file, config);
    run(["data", command, project.path(&file).to_str().unwrap(), "--json"]).ok().json()
}

/// Sentences of one kind: `words` in changing order.
fn sentence(words: &[&str], number: usize) -> String {
    let word = |at: usize| words[(number * 7 + at * (number % 5 + 1)) % words.len()];
    (0..24).map(word).collect::<Vec<_>>().join(" ")
}

const ENGLISH: [&str; 12] = [
    "the",
    "of",
    "and",
    "which",
    "have",
    "was",
    "government",
    "people",
    "with",
    "year",
    "this",
    "by",
];
const GERMAN: [&str; 12] = [
    "die",
    "der",
    "und",
    "welche",
    "haben",
    "war",
    "Regierung",
    "Menschen",
    "mit",
    "Jahr",
    "dies",
    "von",
];

#[test]
fn a_language_model_of_ones_own() {
    let project = Project::new("");
    let mut lines = String::new();
    for number in 0..300 {
        writeln!(lines, "__label__en {} {number}", sentence(&ENGLISH, number)).unwrap();
        writeln!(lines, "__label__de {} {number}", sentence(&GERMAN, number)).unwrap();
    }
    project.write("lines.txt", lines);
    let config = "inputs: [lines.txt]\noutput: lid.bin\n\
                  training: {dimensions: 8, buckets: 2000, min_chars: 2, max_chars: 3}\n";
    let report = train(&project, "train-lid", config);
    assert_eq!(report["accuracy"], 1.0, "{report}");
    assert_eq!(report["languages"]["de"]["accuracy"], 1.0, "{report}");
    let model = project.path("lid.bin");
    let options = format!("model: {:?}\nkeep: [de]\n", model.to_str().unwrap());
    let objects = [
        json!({"id": "en", "text": sentence(&ENGLISH, 1000)}),
        json!({"id": "de", "text": format!("{}\n{}", sentence(&GERMAN, 1001), sentence(&GERMAN, 1003))}),
    ];
    let applied = apply("language", &options, &objects);
    assert_eq!(applied.kept.len(), 1);
    assert_eq!(
        (&applied.kept[0]["id"], &applied.kept[0]["language"]),
        (&json!("de"), &json!("de"))
    );
    assert_eq!(applied.dropped[0]["reason"], "language_not_kept");
    // The same text and options make the same model.
    let again = train(&project, "train-lid", config);
    assert_eq!(again["blake3"], report["blake3"]);
    // A damaged model is named.
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    super::apply::apply_lines("language", &options, b"").fails(1, &["lid.bin"]);
}

const REFERENCE: [&str; 10] = [
    "study",
    "university",
    "published",
    "research",
    "history",
    "evidence",
    "museum",
    "journal",
    "century",
    "theory",
];
const RANDOM: [&str; 10] =
    ["buy", "cheap", "click", "sale", "free", "shipping", "login", "cart", "offer", "deal"];

#[test]
fn a_classifier_of_references() {
    let kinds = [("references", REFERENCE), ("random", RANDOM)];
    let source = |name: &str| {
        format!("- {{name: {name}, text: {{paths: [{name}.jsonl], format: jsonl}}}}\n")
    };
    let project = Project::new(&kinds.map(|(name, _)| source(name)).concat());
    for (name, words) in kinds {
        let line = |number: usize| {
            let text: Vec<_> = (0..5).map(|line| sentence(&words, number * 5 + line)).collect();
            let text = [text, vec![format!("number {number}")]].concat();
            format!("{}\n", json!({"id": format!("{name}{number}"), "text": text.join("\n")}))
        };
        project.write(&format!("{name}.jsonl"), (0..120).map(line).collect::<String>());
    }
    project.run(&[]);
    let report = train(
        &project,
        "train-classifier",
        "references: [out/documents/references]\nrandom: [out/documents/random]\n\
         output: references.bin\nmin_chars: 100\nheld_out: 0.2\n\
         training: {dimensions: 8, epochs: 20, learning_rate: 0.5}\n",
    );
    assert!(report["references"]["held_out"].as_u64().unwrap() >= 5, "{report}");
    assert!(project.path("references.json").exists(), "the report lies beside the model");
    let text = |words: &[&str]| sentence(words, 77);
    let mixed = format!("{} {}", text(&RANDOM), text(&REFERENCE[..5]));
    let objects = [
        json!({"id": "reference", "text": text(&REFERENCE)}),
        json!({"id": "random", "text": text(&RANDOM)}),
        json!({"id": "mixed", "text": mixed}),
    ];
    let model = format!("model: {:?}\n", project.path("references.bin").to_str().unwrap());
    let scored = apply("reference_classifier", &format!("{model}threshold: 0\n"), &objects).kept;
    let score = |at: usize| scored[at]["metadata"]["wiki_prob"].as_f64().unwrap();
    assert!(score(0) > 0.9 && score(1) < 0.1 && score(1) < score(2) && score(2) < score(0));
    let applied = apply("reference_classifier", &model, &objects);
    assert_eq!(applied.kept[0]["id"], "reference");
    assert_eq!(applied.dropped[0]["reason"], "not_reference_like");
    // The presets are 0.5 and 0.25.
    for (preset, threshold) in [("llama", 0.5), ("redpajama", 0.25)] {
        let options = format!("{model}preset: {preset}\n");
        let kept = apply("reference_classifier", &options, &objects).kept.len();
        assert_eq!(kept, (0..3).filter(|&at| score(at) >= threshold).count(), "{preset}");
    }
}

#[test]
fn perplexity_sorts_pages_into_buckets() {
    let speeches = fixture("plain/speeches");
    let project = Project::new(&format!(
        "- {{name: speeches, text: {{paths: [{:?}]}}}}\n",
        speeches.join("19[5-9]*.txt").to_str().unwrap()
    ));
    project.run(&[]);
    let report = train(
        &project,
        "train-lm",
        "documents: [out/documents/speeches]\nmodel: {language: en, output: lm, vocab_size: 500, \
         ngrams: {order: 3}, memory_bytes: 67108864, arpa: true}\n",
    );
    assert!(report["documents"].as_u64().unwrap() > 5, "{report}");
    let speech = std::fs::read_to_string(speeches.join("2003_george_w_bush.txt")).unwrap();
    let speech: String = speech.chars().take(3000).collect();
    // The same words in another order are less likely, signs at random still less.
    let mut words: Vec<&str> = speech.split_whitespace().collect();
    words.sort_unstable();
    let sorted = words.join(" ");
    let noise: String = (0..3000u32).map(|n| char::from(33 + (n * n % 89) as u8)).collect();
    let objects = [("speech", speech), ("sorted", sorted), ("noise", noise)]
        .map(|(id, text)| json!({"id": id, "text": text}));
    let options = |more: &str| format!("model: {:?}\n{more}", project.path("lm").to_str().unwrap());
    let all = "keep: [head, middle, tail]\ncutoffs: {head: 1.0, middle: 2.0}\n";
    let scored = apply("perplexity", &options(all), &objects).kept;
    let score = |at: usize| scored[at]["metadata"]["perplexity"].as_f64().unwrap();
    assert!(score(0) < score(1) && score(1) < score(2), "{} {} {}", score(0), score(1), score(2));
    assert!((score(0) * 10.0 - (score(0) * 10.0).round()).abs() < 1e-6, "one decimal");
    assert!(scored.iter().all(|object| object["metadata"]["bucket"] == "tail"));
    let cutoffs = format!("cutoffs: {{head: {}, middle: {}}}\n", score(0) + 0.1, score(1) + 0.1);
    let applied = apply("perplexity", &options(&cutoffs), &objects);
    let buckets: Vec<_> = applied.kept.iter().map(|object| &object["metadata"]["bucket"]).collect();
    assert_eq!(buckets, ["head", "middle"]);
    assert_eq!(applied.dropped[0]["reason"], "perplexity_tail");
    // The same model out of its ARPA file, as another tool would have written it.
    let path = |name: &str| project.path(name).to_str().unwrap().to_owned();
    let (arpa, pieces) = (path("lm/en.arpa"), path("lm/en.sp.model"));
    let (output, sample) = (path("imported"), path("out/documents/speeches"));
    let import = |arpa: &str| {
        let names = ["--pieces", &pieces, "--language", "en", "--output", &output];
        run([&["data", "import-lm", arpa][..], &names, &["--sample", &sample, "--json"]].concat())
    };
    let imported = import(&arpa).ok().json();
    assert_eq!(imported["ngrams"], report["estimate"]["ngrams"], "{imported}");
    assert!(imported["cutoffs"]["head"].as_f64().unwrap() > 1.0, "{imported}");
    let from_arpa = format!("model: {output:?}\n{all}");
    assert_eq!(apply("perplexity", &from_arpa, &objects).kept, scored);
    // A damaged one is named with its line, and the model stays.
    let text = std::fs::read_to_string(&arpa).unwrap();
    let line = 1 + text.lines().position(|line| line == "\\2-grams:").unwrap() + 1;
    let damaged = text.replacen("\\2-grams:\n-", "\\2-grams:\nx", 1);
    project.write("damaged.arpa", damaged);
    import(&path("damaged.arpa")).fails(1, &["damaged.arpa", &format!("line {line}:")]);
    assert_eq!(apply("perplexity", &from_arpa, &objects).kept, scored);
    // A language without a model is in no bucket, and stays.
    let other = [json!({"id": "a", "text": "Un texte.", "language": "fr"})];
    let kept = apply("perplexity", &options(&cutoffs), &other).kept;
    assert_eq!(kept[0]["metadata"]["bucket"], "all");
}
