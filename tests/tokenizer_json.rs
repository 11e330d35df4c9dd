//! Tokenizers that are a `tokenizer.json`: LLaMA 3's kind against the Python package `tokenizers`, all
//! commands with one, and files that are not what they say. Values made by
//! `scripts/golden/make_byte_level_bpe.py`.

use std::fs;
use std::path::{Path, PathBuf};

use altiplano_data::{StreamDecoder, Tokenizer};
use serde_json::{Value, json};

use crate::harness::{SmallRun, copy_dir, corpus, repository, run};

fn golden() -> PathBuf {
    repository("tests/golden/byte_level_bpe")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Ids, texts and what a stream says are those of the Python package; half a character is never said.
#[test]
fn ids_and_texts_are_those_of_tokenizers() {
    let tokenizer = Tokenizer::open(&golden().join("tokenizer.json")).unwrap();
    let expected = json_of(&golden().join("expected.json"));
    assert_eq!(tokenizer.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap());
    let entries = expected["entries"].as_array().unwrap();
    assert!(entries.len() > 100);
    for entry in entries {
        let ids: Vec<u32> =
            entry["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        if let Some(text) = entry["text"].as_str() {
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
            let bytes: Vec<u8> =
                ids.iter().flat_map(|id| tokenizer.piece_bytes(*id).unwrap()).collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), text);
        }
        let decoded = entry["decoded"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{ids:?}");
        let mut decoder = StreamDecoder::after_prompt(&tokenizer);
        let said: String = ids.iter().map(|id| decoder.push(*id)).collect();
        assert_eq!(said + &decoder.finish(), decoded, "{ids:?}");
    }
    // A character of four bytes is said whole, with its last.
    let ids = tokenizer.encode("\u{1f642}").unwrap();
    let mut decoder = StreamDecoder::new(&tokenizer);
    let said: Vec<String> = ids.iter().map(|id| decoder.push(*id)).collect();
    assert!(ids.len() > 1);
    assert_eq!(said.last().unwrap(), "\u{1f642}");
    assert!(said[..said.len() - 1].iter().all(String::is_empty));
}

/// The marks are those that the files beside it name, as a string or with settings; config.json has
/// their numbers where there are no names.
#[test]
fn marks_are_named_by_the_files_beside_it() {
    let tokenizer = Tokenizer::open(&golden().join("tokenizer.json")).unwrap();
    let name = |id: Option<u32>| tokenizer.piece(id.unwrap()).unwrap().text.clone();
    assert_eq!(name(tokenizer.bos_id()), "<|begin_of_text|>");
    assert_eq!(name(tokenizer.eos_id()), "<|eot_id|>");
    // A mark in a text is text, and has no text of its own.
    let eos = tokenizer.eos_id().unwrap();
    assert!(!tokenizer.encode("<|eot_id|>").unwrap().contains(&eos));
    assert_eq!(tokenizer.decode(&[eos]).unwrap(), "");
    assert_eq!(tokenizer.piece_bytes(eos).unwrap(), b"");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::copy(golden().join("tokenizer.json"), &path).unwrap();
    let marks = |tokenizer: Tokenizer| (tokenizer.bos_id(), tokenizer.eos_id());
    assert_eq!(marks(Tokenizer::open(&path).unwrap()), (None, None));
    let config = json!({ "bos_token_id": 5, "eos_token_id": [7, 8] });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    assert_eq!(marks(Tokenizer::open(&path).unwrap()), (Some(5), Some(7)));
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<nothing>"}"#).unwrap();
    let error = Tokenizer::open(&path).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("<nothing>"), "{error}");
}

/// The tokenizer of a SentencePiece model in its `tokenizer.json` gives the same ids, texts and
/// streams as the model.
#[test]
fn a_sentencepiece_model_is_the_same_in_either_file() {
    let folder = repository("tests/golden/tokenizer");
    let model = Tokenizer::open(&folder.join("tokenizer.model")).unwrap();
    let json = Tokenizer::open(&folder.join("tokenizer.json")).unwrap();
    assert_eq!(model.vocab_size(), json.vocab_size());
    for text in ["The whale", "  two spaces", " ", "", "naïve 日本\n\n12", "a\tb ▁ c"] {
        let ids = model.encode(text).unwrap();
        assert_eq!(json.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(json.decode(&ids).unwrap(), model.decode(&ids).unwrap(), "{text:?}");
        for after in [false, true] {
            let said = |tokenizer: &Tokenizer| {
                let mut decoder = match after {
                    true => StreamDecoder::after_prompt(tokenizer),
                    false => StreamDecoder::new(tokenizer),
                };
                let said: Vec<String> = ids.iter().map(|id| decoder.push(*id)).collect();
                (said, decoder.finish())
            };
            assert_eq!(said(&json), said(&model), "{text:?}");
        }
    }
}

/// A corpus is tokenized with one, a model is trained on it, and the checkpoint has the file byte for
/// byte, generates, is evaluated, exported and imported again.
#[test]
fn every_command_works_with_one() {
    let small = SmallRun::new();
    let dir = small.dir.path();
    let tokenizer = dir.join("tokenizer");
    copy_dir(&golden(), &tokenizer);
    let file = tokenizer.join("tokenizer.json");
    let data = dir.join("data.yaml");
    let config = fs::read_to_string(corpus().join("data.yaml")).unwrap();
    fs::write(&data, config.replace("output: .", "output: made")).unwrap();
    copy_dir(&corpus().join("documents"), &dir.join("made/documents"));
    let model = format!("tokenizer.model={}", file.display());
    run(["tokenizer", "train", text(&data), &model]).fails(2, &["tokenizer.model", "tokenize"]);
    run(["tokenize", text(&data), &model]).ok();

    let tokens = dir.join("made/tokens/speeches");
    let sources = format!("data.sources=[{{path: {}, weight: 1.0}}]", tokens.display());
    let given = format!("tokenizer={}", file.display());
    // Shards and tokenizer have to belong together.
    small.train(&["steps=2", "model.vocab_size=410", &given]).fails(1, &["tokenizer"]);
    small.train(&["steps=2", "validate.every=0", "model.vocab_size=410", &sources, &given]).ok();
    let checkpoint = small.checkpoint("small", 2);
    let bytes = |dir: &Path| fs::read(dir.join("tokenizer.json")).unwrap();
    assert!(bytes(&checkpoint) == bytes(&tokenizer));
    assert!(!checkpoint.join("tokenizer.model").exists());
    assert_eq!(json_of(&checkpoint.join("tokenizer_config.json"))["eos_token"], "<|eot_id|>");

    let exported = dir.join("exported");
    run([
        "export",
        "--checkpoint",
        text(&checkpoint),
        "--format",
        "hf",
        "--output",
        text(&exported),
    ])
    .ok();
    assert!(bytes(&exported) == bytes(&tokenizer));
    let imported = dir.join("imported");
    run(["import", "--from", "hf", text(&exported), "--output", text(&imported)]).ok();
    assert!(bytes(&imported) == bytes(&tokenizer));
    let written = dir.join("text.txt");
    fs::write(&written, "The people of the United States 🙂.\n").unwrap();
    let both = [&checkpoint, &imported].map(|dir| {
        let generated = run([
            "generate",
            "--checkpoint",
            text(dir),
            "--prompt",
            "Fellow 🙂 citizens",
            "--temperature",
            "0",
            "--max-tokens",
            "16",
            "--json",
        ]);
        let scored =
            run(["eval", "--checkpoint", text(dir), "--json", "--documents", text(&written)]);
        (generated.ok().json()["token_ids"].clone(), scored.ok().json()["bits_per_byte"].clone())
    });
    assert_eq!(both[0], both[1]);
    assert!(both[0].1.is_number());

    // GGUF holds tokenizers of SentencePiece alone.
    let gguf = dir.join("model.gguf");
    run(["export", "--checkpoint", text(&checkpoint), "--format", "gguf", "--output", text(&gguf)])
        .fails(1, &["tokenizer.json", "--format hf"]);
    assert!(!gguf.exists());
}

/// Forty steps that double a text.
fn doubling(steps: &str) -> Value {
    let double = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "aa" });
    json!({ "type": "Sequence", steps: vec![double; 40] })
}

/// A file from a stranger is an error with its name, never a panic.
#[test]
fn files_that_are_not_tokenizers_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let whole = fs::read_to_string(golden().join("tokenizer.json")).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&whole).unwrap();
        change(&mut value);
        value.to_string().into_bytes()
    };
    let cases: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"{}".to_vec(),
        b"[1, 2]".to_vec(),
        b"{\"model\": 3}".to_vec(),
        b"\xff\xfe{}".to_vec(),
        whole.as_bytes()[..whole.len() / 2].to_vec(),
        "[".repeat(100_000).into_bytes(),
        format!("{{\"model\": {}", "{\"model\":".repeat(100_000)).into_bytes(),
        changed(&|json| json["model"]["type"] = "Other".into()),
        changed(&|json| json["model"]["vocab"]["zebra"] = json!(4_000_000_000u64)),
        changed(&|json| json["model"]["vocab"]["zebra"] = json!(-1)),
        changed(&|json| json["model"]["vocab"]["zebra"] = json!("one")),
        changed(&|json| json["model"]["vocab"] = json!(["a", "b"])),
        changed(&|json| json["model"]["vocab"] = json!({})),
        changed(&|json| json["model"]["merges"] = json!([["a", "no such piece"]])),
        changed(&|json| json["model"]["merges"] = json!([["a"]])),
        changed(&|json| json["model"]["dropout"] = json!(0.5)),
        changed(&|json| {
            json["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "Regex": "(" },
            "behavior": "Isolated", "invert": false })
        }),
        changed(&|json| json["decoder"] = json!({ "type": "Sequence", "decoders": 7 })),
        changed(&|json| {
            json["normalizer"] = json!({ "type": "Precompiled",
            "precompiled_charsmap": "AAAA" })
        }),
        changed(&|json| json["added_tokens"] = json!([{ "id": "x", "content": 1 }])),
        // A letter becomes a terabyte.
        changed(&|json| json["normalizer"] = doubling("normalizers")),
        changed(&|json| json["decoder"] = doubling("decoders")),
    ];
    for (n, bytes) in cases.iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        let error = match Tokenizer::open(&path) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("case {n} is taken"),
        };
        assert!(error.contains("tokenizer.json"), "case {n}: {error}");
    }
    // Larger than any, and never read: a sparse file.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = Tokenizer::open(&path).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("at most"), "{error}");
    let error = Tokenizer::open(Path::new("/dev/null")).unwrap_err().to_string();
    assert!(error.contains("plain file"), "{error}");
}

/// Files of a directory that nobody should read: devices, directories, JSON that is none.
#[test]
fn odd_files_of_a_directory_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let import = |name: &str| {
        let output = dir.path().join(name);
        run(["import", "--from", "hf", text(&source), "--output", text(&output)])
    };
    let fresh = || {
        let _ = fs::remove_dir_all(&source);
        copy_dir(&repository("tests/golden/llama_kinds/llama2"), &source);
    };
    fresh();
    fs::copy(repository("tests/golden/tokenizer/tokenizer.model"), source.join("tokenizer.model"))
        .unwrap();
    for name in ["generation_config.json", "tokenizer_config.json"] {
        let before = fs::read(source.join(name)).ok();
        fs::write(source.join(name), "{ broken").unwrap();
        import("broken").fails(1, &[name, "is not JSON"]);
        match before {
            Some(bytes) => fs::write(source.join(name), bytes).unwrap(),
            None => fs::remove_file(source.join(name)).unwrap(),
        }
    }
    import("whole").ok();
    for name in ["config.json", "tokenizer.model", "generation_config.json"] {
        fresh();
        let _ = fs::remove_file(source.join(name));
        std::os::unix::fs::symlink("/dev/zero", source.join(name)).unwrap();
        import("odd").fails(1, &[name, "plain file"]);
        fs::remove_file(source.join(name)).unwrap();
        let path = source.join(name);
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        import("odd").fails(1, &[name, "at most"]);
    }
    assert!(!dir.path().join("odd").exists());
}
