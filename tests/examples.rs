//! Examples to fine-tune on: what is read, what of it is trained, and how it is laid into batches.

use std::path::{Path, PathBuf};

use altiplano_data::chat::{ChatTemplate, Message, RenderOptions, SpecialTokens};
use altiplano_data::sft::{
    Conversation, Dropped, EncodedExample, ExampleEncoder, ExampleFormat, ExampleLoader,
    ExampleLoaderOptions, ExamplePosition, Examples, ExamplesOptions, FileOfExamples, TrainOn,
    for_each_example,
};
use altiplano_data::{Batch, IGNORED_TARGET, ProgressMode, StreamDecoder, Tokenizer};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::harness::repository;

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&repository("tests/golden/tokenizer/tokenizer.model")).unwrap()
}

fn template(name: &str) -> ChatTemplate {
    ChatTemplate::open(name).unwrap()
}

fn file(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// Role and content of every message of every example of a file.
fn read(path: &Path, format: Option<ExampleFormat>) -> Result<Vec<Vec<String>>, String> {
    let mut all = Vec::new();
    for_each_example(path, format, &|_| {}, |_, conversation| {
        let text = |message: &Message| format!("{}: {}", message.role(), message.content());
        all.push(conversation.messages.iter().map(text).collect());
        Ok(())
    })
    .map_err(|error| error.to_string())?;
    Ok(all)
}

/// Spans lie end to end over the text, and what a token is written with stands there.
#[test]
fn tokens_know_their_bytes() {
    let tokenizer = tokenizer();
    for text in TEXTS.iter().chain(&["", " ", "a", "  a  b ", "▁a ▁ b", "\t \u{3000}é", "x\n\n y"])
    {
        let spans = tokenizer.encode_with_spans(text).unwrap();
        let ids: Vec<u32> = spans.iter().map(|span| span.id).collect();
        assert_eq!(ids, tokenizer.encode(text).unwrap());
        let mut end = 0;
        for span in &spans {
            assert_eq!(span.bytes.start, end, "{text:?}");
            end = span.bytes.end;
            let piece = &tokenizer.piece(span.id).unwrap().text;
            if let Some(shown) = text.get(span.bytes.clone()).filter(|_| !piece.starts_with("<0x"))
            {
                let written = piece.replace('▁', " ");
                let shown = shown.replace('▁', " ");
                assert!(written == shown || written == format!(" {shown}"), "{text:?}: {piece}");
            }
        }
        assert_eq!(end, text.len(), "{text:?}");
    }
}

#[test]
fn lists_and_lines_of_three_formats_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let list = "\u{feff} [ {\"instruction\": \"do {it}\", \"input\": \" \", \"output\": \"\u{e9}]\\\"}\", \"x\": 1},\n\
                {\"instruction\": \"a\", \"output\": \"b\"} ] \n";
    let path = file(folder.path(), "alpaca.json", list);
    let expected = vec![
        vec!["user: do {it}".to_owned(), "assistant: \u{e9}]\"}".to_owned()],
        vec!["user: a".to_owned(), "assistant: b".to_owned()],
    ];
    assert_eq!(read(&path, None).unwrap(), expected);
    let lines = "{\"conversations\": [{\"from\": \"system\", \"value\": \"s\"}, {\"from\": \"human\", \
                 \"value\": \"a\"}, {\"from\": \"bard\", \"value\": \"b\"}], \"id\": \"1\"}\n\n";
    let path = file(folder.path(), "s.jsonl", lines);
    assert_eq!(read(&path, None).unwrap(), [["system: s", "user: a", "assistant: b"]]);
    let path = file(
        folder.path(),
        "m.json",
        "[{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}]",
    );
    assert_eq!(read(&path, None).unwrap(), [["user: a"]]);
    assert_eq!(read(&file(folder.path(), "e.json", "[]"), None).unwrap().len(), 0);
    assert_eq!(read(&file(folder.path(), "e.json", ""), None).unwrap().len(), 0);
}

#[test]
fn what_is_broken_is_named_with_its_record_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let good = "{\"instruction\": \"a\", \"output\": \"b\"}";
    let long = format!("{{\"instruction\": \"{}\"}}", "x".repeat(17 << 20));
    let bad_utf8 = [good.as_bytes(), b"\n{\"instruction\": \"\xff\"}"].concat();
    for (text, words) in [
        (format!("[{good}, {{\"instruction\": \"a\"}}]"), vec!["record 1", "output", "missing"]),
        (
            "{\"instruction\": 3, \"output\": \"\"}".into(),
            vec!["instruction", "a number", "a string"],
        ),
        (format!("[{good}"), vec!["inside the list", "cut short"]),
        (format!("[{good} {good}]"), vec!["expected a comma"]),
        (format!("[{good},]"), vec!["a comma before the end"]),
        (format!("[{good}] x"), vec!["follows the list"]),
        ("{\"instruction\": \"a\"".into(), vec!["inside a record"]),
        ("{]".into(), vec!["record 0", "not JSON"]),
        ("{\"instruction\": }".into(), vec!["record 0", "not JSON"]),
        ("[1, 2]".into(), vec!["expected a record"]),
        ("hello".into(), vec!["expected a record"]),
        ("{\"text\": \"a\"}".into(), vec!["none of the keys"]),
        (long, vec!["more than", "bytes"]),
        (
            "[{\"conversations\": [{\"from\": \"robot\", \"value\": \"\"}]}]".into(),
            vec!["conversations.0.from", "\"robot\"", "human"],
        ),
        (
            "[{\"messages\": [{\"role\": \"user\", \"content\": null}]}]".into(),
            vec!["messages.0.content", "null"],
        ),
        ("{\"messages\": {}}".into(), vec!["messages", "a list"]),
    ] {
        let error = read(&file(folder.path(), "x.json", &text), None).unwrap_err();
        let shown = &text[..text.len().min(80)];
        assert!(error.contains("x.json"), "{error}");
        for word in words {
            assert!(error.contains(word), "{shown}: no {word:?} in {error}");
        }
    }
    let error = read(&file(folder.path(), "x.json", bad_utf8), None).unwrap_err();
    assert!(error.contains("record 1") && error.contains("byte 53"), "{error}");
    // The format is that of the first record.
    let mixed = format!("{good}\n{{\"messages\": []}}");
    let error = read(&file(folder.path(), "x.json", mixed), None).unwrap_err();
    assert!(error.contains("record 1: instruction: missing"), "{error}");
}

fn conversation(turns: &[(&str, &str)]) -> Conversation {
    Conversation { messages: turns.iter().map(|(role, text)| Message::new(role, text)).collect() }
}

#[test]
fn a_conversation_is_rounds_or_has_a_reason() {
    let (u, a, s) = (("user", "x"), ("assistant", "y"), ("system", "z"));
    let tidy = |turns: &[(&str, &str)]| {
        let tidied = conversation(turns).tidy()?;
        Ok((tidied.messages.len(), tidied.removed_messages))
    };
    assert_eq!(tidy(&[u, a]), Ok((2, 0)));
    assert_eq!(tidy(&[s, u, a, u, a]), Ok((5, 0)));
    assert_eq!(tidy(&[a, u, a, u]), Ok((2, 2)));
    assert_eq!(tidy(&[s, a, u, a]), Ok((3, 1)));
    for (turns, reason) in [
        (vec![], Dropped::TooShort),
        (vec![s], Dropped::TooShort),
        (vec![u], Dropped::TooShort),
        (vec![a, u], Dropped::TooShort),
        (vec![a, a], Dropped::TooShort),
        (vec![a, a, a], Dropped::NoUser),
        (vec![u, u, a], Dropped::RolesDoNotAlternate),
        (vec![u, a, a], Dropped::RolesDoNotAlternate),
        (vec![u, a, s, u, a], Dropped::RolesDoNotAlternate),
        (vec![u, ("assistant", " \n")], Dropped::EmptyResponse),
        (vec![u, ("assistant", ""), u, a], Dropped::EmptyTurn),
        (vec![("user", " "), a], Dropped::EmptyTurn),
    ] {
        assert_eq!(tidy(&turns), Err(reason), "{turns:?}");
    }
}

/// The trained tokens of an example as text, a string for every stretch; `</s>` is written out.
fn trained_text(tokenizer: &Tokenizer, example: &EncodedExample) -> Vec<String> {
    let text = |range: &std::ops::Range<usize>| {
        let ids = &example.ids[range.clone()];
        let (ids, end) = match ids.split_last() {
            Some((last, rest)) if Some(*last) == tokenizer.eos_id() => (rest, "</s>"),
            _ => (ids, ""),
        };
        let mut decoder = StreamDecoder::after_prompt(tokenizer);
        let text: String = ids.iter().map(|id| decoder.push(*id)).collect();
        text + &decoder.finish() + end
    };
    example.trained.iter().map(text).collect()
}

fn encode(
    tokenizer: &Tokenizer,
    name: &str,
    turns: &[(&str, &str)],
    most: usize,
) -> EncodedExample {
    let template = template(name);
    let encoder = ExampleEncoder::new(tokenizer, &template, most, TrainOn::Responses);
    encoder.encode(&conversation(turns).messages).unwrap()
}

/// Texts that are easily got wrong at the boundary, and marks as text.
const TEXTS: [&str; 14] = [
    "Hi!",
    " two  blanks ",
    "\n\nfeeds",
    ": colon",
    "12 digits",
    "日本語",
    "🙂",
    "</s>",
    "<s> x",
    "é",
    "ASSISTANT: no",
    "USER: x ASSISTANT: ",
    "### Response:",
    "{x} {{ y }}",
];

#[test]
fn exactly_the_answers_and_their_ends_are_trained() {
    let tokenizer = tokenizer();
    let (bos, eos) = (tokenizer.bos_id().unwrap(), tokenizer.eos_id().unwrap());
    for first in TEXTS {
        for second in TEXTS {
            let alpaca =
                encode(&tokenizer, "alpaca", &[("user", first), ("assistant", second)], 4096);
            assert_eq!(trained_text(&tokenizer, &alpaca), [format!("{second}</s>")]);
            let turns =
                [("user", "a"), ("assistant", first), ("user", second), ("assistant", second)];
            let vicuna = encode(&tokenizer, "vicuna_v1.1", &turns, 4096);
            let expected = [format!(" {first}</s>"), format!(" {second}</s>")];
            assert_eq!(trained_text(&tokenizer, &vicuna), expected);
            for (example, ends) in [(&alpaca, 1), (&vicuna, 2)] {
                assert_eq!(example.straddling, 0);
                assert_eq!(example.ids[0], bos);
                assert_eq!(example.ids.iter().filter(|id| **id == eos).count(), ends);
                assert_eq!(example.ids.iter().filter(|id| **id == bos).count(), 1);
            }
        }
    }
}

/// Decoding the trained tokens of each round gives the answer with its blank, and an end token.
#[test]
fn masks_are_right_for_any_conversation() {
    const PARTS: [&str; 13] =
        ["a", " ", "\n", ":", "the", "é", "日", "🙂", "7", "</s>", "<s>", " ASSISTANT: ", "##"];
    let tokenizer = tokenizer();
    for seed in 0..100 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut text = || -> String {
            let parts = random.random_range(0..8);
            // An answer has to say something.
            (0..parts).fold("x".to_owned(), |text, _| text + PARTS[random.random_range(0..13)])
        };
        let rounds: Vec<[String; 2]> = (0..1 + seed % 4).map(|_| [text(), text()]).collect();
        let turns: Vec<(&str, &str)> = rounds
            .iter()
            .flat_map(|[question, answer]| [("user", &**question), ("assistant", &**answer)])
            .collect();
        let example = encode(&tokenizer, "vicuna_v1.1", &turns, 1 << 20);
        let expected: Vec<String> =
            rounds.iter().map(|[_, answer]| format!(" {answer}</s>")).collect();
        assert_eq!(trained_text(&tokenizer, &example), expected, "{turns:?}");
    }
}

/// What a model is asked with for a turn is what it saw before that turn in training.
#[test]
fn a_prompt_is_the_beginning_of_its_training_ids() {
    let tokenizer = tokenizer();
    let specials = SpecialTokens::of(&tokenizer);
    for name in ["alpaca", "vicuna_v1.1"] {
        let template = template(name);
        for text in TEXTS {
            let turns = [("user", text), ("assistant", text), ("user", "x"), ("assistant", text)];
            let example = encode(&tokenizer, name, &turns, 4096);
            let messages = conversation(&turns).messages;
            for (turn, trained) in example.trained.iter().enumerate() {
                let options = RenderOptions { add_generation_prompt: true, ..Default::default() };
                let before = &messages[..2 * turn + 1];
                let prompt = template.render(before, &specials, &options).unwrap();
                let ids = prompt.encode(&tokenizer).unwrap();
                assert_eq!(ids, example.ids[..trained.start], "{name} {text:?} {turn}");
            }
        }
    }
}

#[test]
fn long_examples_are_cut_at_the_end() {
    let tokenizer = tokenizer();
    let turns = [("user", "x"), ("assistant", "one two three four five six")];
    let whole = encode(&tokenizer, "alpaca", &turns, 4096);
    let most = whole.ids.len() - 3;
    let cut = encode(&tokenizer, "alpaca", &turns, most);
    assert_eq!((cut.ids.as_slice(), cut.cut), (&whole.ids[..most], 3));
    assert_eq!(cut.trained_tokens(), whole.trained_tokens() - 3);
    let nothing = encode(&tokenizer, "alpaca", &turns, whole.trained[0].start);
    assert_eq!(nothing.trained_tokens(), 0);
}

#[test]
fn a_template_without_a_place_for_the_input_has_it_behind_the_instruction() {
    let tokenizer = tokenizer();
    let mut user = Message::new("user", "Sort.");
    user.0.insert("input".into(), "b a".into());
    let messages = [user, Message::new("assistant", "a b")];
    let text = |name: &str| {
        let template = template(name);
        let encoder = ExampleEncoder::new(&tokenizer, &template, 4096, TrainOn::Responses);
        tokenizer.decode(&encoder.encode(&messages).unwrap().ids).unwrap()
    };
    assert!(
        text("alpaca").contains("### Instruction:\nSort.\n\n### Input:\nb a\n\n### Response:a b")
    );
    assert!(text("vicuna_v1.1").contains("USER: Sort.\n\nb a ASSISTANT: a b"));
}

fn options(files: Vec<PathBuf>) -> ExamplesOptions {
    ExamplesOptions {
        files: files.into_iter().map(|path| FileOfExamples { path, format: None }).collect(),
        max_length: 256,
        train_on: TrainOn::Responses,
        drop_duplicates: false,
        held_out: 0.0,
        seed: 1,
        progress: ProgressMode::Hidden,
    }
}

fn loader(examples: Examples, step: usize, packing: bool) -> ExampleLoader {
    let options = ExampleLoaderOptions {
        examples: step,
        micro_batch: 2,
        max_length: 256,
        packing,
        seed: 1,
        padding: 2,
    };
    ExampleLoader::new(examples, options)
}

/// Alpaca records whose outputs are `n` words long for n = 1, 2, …
fn records(count: usize) -> String {
    let record = |n: usize| {
        let output = vec!["word"; n % 7 + 1].join(" ");
        format!("{{\"instruction\": \"{n}\", \"output\": \"{output}\"}}\n")
    };
    (0..count).map(record).collect()
}

#[test]
fn every_example_is_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let more = "{\"instruction\": \"0\", \"output\": \"word\", \"id\": 7}\n\
                {\"instruction\": \"a\", \"output\": \" \"}\n\
                {\"instruction\": \"\", \"output\": \"a\"}\n";
    let path = file(folder.path(), "a.jsonl", records(20) + more);
    let long = format!("{{\"instruction\": \"{}\", \"output\": \"a\"}}", "long ".repeat(400));
    let second = file(folder.path(), "b.jsonl", long);
    let (tokenizer, template) = (tokenizer(), template("alpaca"));
    let mut options = options(vec![path, second]);
    options.drop_duplicates = true;
    options.held_out = 0.1;
    let examples = Examples::load(&options, &tokenizer, &template).unwrap();
    let report = examples.report();
    assert_eq!((report.examples, report.used, report.held_out), (24, 18, 2));
    let dropped: Vec<(&str, u64)> = report.dropped.iter().map(|(k, v)| (*k, *v)).collect();
    let expected =
        [("duplicate", 1), ("empty_response", 1), ("empty_turn", 1), ("nothing_to_train", 1)];
    assert_eq!(dropped, expected);
    assert_eq!(report.ignored_keys["id"], 1);
    assert!(report.to_string().contains("24 read = 18 used + 2 held out + 4 dropped"), "{report}");
    let mut all: Vec<u32> = [examples.train(), examples.held_out()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<_>>());
    // The same again.
    let again = Examples::load(&options, &tokenizer, &template).unwrap();
    assert_eq!(again.fingerprint(), examples.fingerprint());
    options.held_out = 20.0;
    let error = Examples::load(&options, &tokenizer, &template).unwrap_err().to_string();
    assert!(error.contains("validate.examples") && error.contains("20"), "{error}");
}

/// (inputs up to their target, target) of every target of the passes, whatever the row.
fn targets(passes: &[Batch]) -> Vec<(Vec<i32>, i32)> {
    let mut found = Vec::new();
    for pass in passes {
        for (place, target) in
            pass.targets.iter().enumerate().filter(|(_, t)| **t != IGNORED_TARGET)
        {
            let row = place / pass.seq_len * pass.seq_len;
            let from = row + pass.first_visible[place] as usize;
            found.push((pass.inputs[from..=place].to_vec(), *target));
        }
    }
    found.sort();
    found
}

#[test]
fn packed_rows_predict_what_single_rows_predict() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "a.jsonl", records(30));
    let (tokenizer, template) = (tokenizer(), template("alpaca"));
    let load = || Examples::load(&options(vec![path.clone()]), &tokenizer, &template).unwrap();
    let (mut packed, mut single) = (loader(load(), 8, true), loader(load(), 8, false));
    for _ in 0..6 {
        let (packed, single) = (packed.next_step(), single.next_step());
        assert_eq!(targets(&packed), targets(&single));
        assert!(packed.iter().all(|pass| (pass.batch_size, pass.seq_len) == (2, 256)));
        assert!(single.iter().all(|pass| pass.seq_len % 64 == 0));
        assert!(packed.len() < single.len());
        for pass in packed.iter().chain(&single) {
            for (place, first) in pass.first_visible.iter().enumerate() {
                assert!((0..=(place % pass.seq_len) as i32).contains(first));
            }
        }
    }
}

/// Numbers of the records in the rows of a pass.
fn records_of(pass: &Batch) -> Vec<u32> {
    let words = pass.origins.iter().flat_map(|origin| origin.shard.split(' '));
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn the_position_is_a_number_of_examples() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "a.jsonl", records(10));
    let (tokenizer, template) = (tokenizer(), template("alpaca"));
    let load = || Examples::load(&options(vec![path.clone()]), &tokenizer, &template).unwrap();
    let mut whole = loader(load(), 4, true);
    let steps: Vec<_> = (0..6).map(|_| whole.next_step()).collect();
    let mut first = loader(load(), 4, true);
    first.next_step();
    first.next_step();
    let mut second = loader(load(), 4, true);
    second.restore(&first.position()).unwrap();
    for expected in &steps[2..] {
        assert!(second.next_step() == *expected);
    }
    // Every epoch has every example once, in another order.
    let drawn: Vec<u32> = steps.iter().flatten().flat_map(records_of).collect();
    let sorted = |epoch: &[u32]| {
        let mut epoch = epoch.to_vec();
        epoch.sort_unstable();
        epoch
    };
    let (epochs, _) = drawn.as_chunks::<10>();
    assert_eq!(epochs.len(), 2);
    for epoch in epochs {
        // A step that has the end of one epoch and the beginning of the next may lay them as it likes.
        assert!(
            sorted(epoch).windows(2).filter(|pair| pair[0] == pair[1]).count() <= 2,
            "{epoch:?}"
        );
    }
    assert_eq!(sorted(&drawn[..20]), (0..10).flat_map(|n| [n, n]).collect::<Vec<_>>());
    assert_ne!(drawn[..8], drawn[10..18]);
    let mut other = ExamplePosition { fingerprint: "x".into(), ..second.position() };
    assert!(second.restore(&other).is_err());
    other = ExamplePosition { examples: u64::MAX, ..first.position() };
    assert!(second.restore(&other).is_err());
}
