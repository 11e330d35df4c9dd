#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use proptest::prelude::*;
use proptest::sample::select;
use rayon::prelude::*;

use crate::progress::Progress;
use crate::tokenizer::model_proto::{self, PieceType};
use crate::tokenizer::train::train_with;
use crate::tokenizer::trainer_log::TrainerLog;
use crate::tokenizer::{Piece, Tokenizer};

/// All text files of the repository's fixtures.
fn fixtures() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut paths: Vec<PathBuf> = walkdir::WalkDir::new(folder)
        .into_iter()
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

/// A model that SentencePiece trains on the first `bytes` of some fixtures with the arguments of this
/// program's kind, `more` going before them.
fn trained(vocab_size: usize, bytes: usize, more: &[&str]) -> Tokenizer {
    let mut arguments: Vec<String> = [
        "--model_type=bpe",
        &format!("--vocab_size={vocab_size}"),
        "--character_coverage=0.9999",
        "--split_digits=true",
        "--byte_fallback=true",
        "--normalization_rule_name=identity",
        "--remove_extra_whitespaces=false",
        "--allow_whitespace_only_pieces=true",
        "--num_threads=1",
    ]
    .map(str::to_owned)
    .into();
    for argument in more {
        let name = &argument[..=argument.find('=').unwrap()];
        arguments.retain(|usual| !usual.starts_with(name));
        arguments.push((*argument).to_owned());
    }
    let (mut text, mut ends) = (String::new(), Vec::new());
    for fixture in fixtures().iter().step_by(3) {
        let until = fixture.floor_char_boundary(bytes);
        for line in fixture[..until].lines().filter(|line| !line.is_empty()) {
            let until = line.floor_char_boundary(4000);
            text.push_str(&line[..until]);
            ends.push(text.len());
        }
    }
    let progress = Progress::hidden();
    let mut log = TrainerLog::new(&progress, 0);
    let bytes = train_with(&arguments, text.as_bytes(), &ends, &mut log).unwrap();
    Tokenizer::from_bytes(Path::new("test.model"), &bytes).unwrap()
}

fn usual() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| trained(3000, 8000, &[]))
}

/// Pieces across words and digits, and user-defined symbols.
fn unusual() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        trained(
            1500,
            600,
            &[
                "--split_by_whitespace=false",
                "--split_digits=false",
                "--split_by_unicode_script=false",
                "--split_by_number=false",
                "--user_defined_symbols=<s>,<|end|>,▁▁▁,of▁the,the,<|,日本",
            ],
        )
    })
}

/// The tokens of `texts`, which must be the same with SentencePiece.
fn compare(tokenizer: &Tokenizer, texts: &[String]) -> usize {
    assert!(tokenizer.encodes_by_words());
    // In parallel: each thread has a cache of its own.
    let check = |text: &String| {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids == tokenizer.encode_by_sentencepiece(text).unwrap(), "{text:.80}");
        ids.len()
    };
    texts.par_iter().map(check).sum()
}

#[test]
fn all_fixtures_get_sentencepieces_ids() {
    let texts = fixtures();
    assert!(compare(usual(), &texts) > 500_000);
    let some: Vec<String> = texts.into_iter().step_by(4).collect();
    assert!(compare(unusual(), &some) > 50_000);
}

#[test]
fn models_that_change_the_text_are_left_to_sentencepiece() {
    for more in [
        "--normalization_rule_name=nmt_nfkc",
        "--remove_extra_whitespaces=true",
        "--byte_fallback=false",
        "--treat_whitespace_as_suffix=true",
        "--model_type=unigram",
    ] {
        let tokenizer = trained(800, 2000, &[more]);
        assert!(!tokenizer.encodes_by_words(), "{more}");
        let text = "The  nation, 1776.\n";
        assert_eq!(
            tokenizer.encode(text).unwrap(),
            tokenizer.encode_by_sentencepiece(text).unwrap(),
            "{more}"
        );
    }
    assert!(trained(800, 2000, &["--add_dummy_prefix=false"]).encodes_by_words());
}

/// Text of words, digits, blanks, control characters, other scripts and what looks like marks.
fn hostile_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => select(vec![
            " ", "  ", "   ", "\u{2581}", " \u{2581}", "\n", "\r\n", "\t", "\0", "\u{1}", "\u{7f}",
            "\u{85}", "\u{a0}", "\u{200b}", "\u{feff}", "\u{fffd}", "\u{2585}", "\u{10ffff}",
            "<s>", "</s>", "<unk>", "<0x0A>", "<|end|>", "<|", "of the", "the", "日本", "日本語",
            "1776", "１２", "3.14", "é", "e\u{301}", "👩\u{200d}👩", "ﬁ", "данные", "https://x.org/?a=1",
            "    return x;", "________", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ]).prop_map(str::to_owned),
        2 => "[a-zA-Z]{1,12}",
        1 => "\\PC{0,8}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

/// A model of pieces made of few characters, with few different scores, in which anything may
/// be a piece.
fn any_model() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        6 => prop::collection::vec(select(vec!['a', 'b', '1', '\u{2581}', 'é', '日']), 1..5)
            .prop_map(String::from_iter),
        1 => select(vec!["<s>", "<", "s>", "<s", "<unk>", "a b", " a", " ", "<0x0A>", "\n", "a\n"])
            .prop_map(str::to_owned),
    ];
    let kind = prop_oneof![
        9 => Just(PieceType::Normal),
        1 => Just(PieceType::UserDefined)
    ];
    let scores = select(vec![-3.0f32, -2.0, -1.0, 0.0, -0.0, 1.5]);
    let control = select(vec!["<s>", "a", "\u{2581}", "ab"]);
    (prop::collection::vec((text, scores, kind), 0..60), control, any::<bool>()).prop_map(
        |(texts, control, add_dummy_prefix)| {
            let piece = |text: &str, kind| Piece { text: text.to_owned(), score: 0.0, kind };
            let mut pieces =
                vec![piece("<unk>", PieceType::Unknown), piece(control, PieceType::Control)];
            for byte in 0..=255 {
                pieces.push(piece(&format!("<0x{byte:02X}>"), PieceType::Byte(byte)));
            }
            let first = pieces.len();
            for (text, score, kind) in texts {
                if pieces[first..].iter().all(|piece| piece.text != text) {
                    pieces.push(Piece { text, score, kind });
                }
            }
            model_proto::write_bpe(&pieces, add_dummy_prefix)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_text_gets_sentencepieces_ids(text in hostile_text()) {
        for tokenizer in [usual(), unusual()] {
            prop_assert_eq!(
                tokenizer.encode(&text).unwrap(),
                tokenizer.encode_by_sentencepiece(&text).unwrap()
            );
        }
    }

    #[test]
    fn any_model_gives_sentencepieces_ids(
        bytes in any_model(),
        texts in prop::collection::vec("[ab1 \u{2581}é日<s>\n👩]{0,24}", 1..8)
    ) {
        let tokenizer = Tokenizer::from_bytes(Path::new("any.model"), &bytes).unwrap();
        prop_assert!(tokenizer.encodes_by_words());
        for text in texts {
            // Twice: the second time words come from the cache.
            for _ in 0..2 {
                prop_assert_eq!(
                    tokenizer.encode(&text).unwrap(),
                    tokenizer.encode_by_sentencepiece(&text).unwrap(),
                    "{:?}", text
                );
            }
        }
    }
}
