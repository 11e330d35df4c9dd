#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::OnceLock;

use proptest::prelude::*;

use super::sentencepiece::PART_BYTES;
use super::*;
use crate::document::{Document, DocumentFile, DocumentWriter};
use crate::progress::ProgressMode;

/// Text with words, code, digits, tabs, runs of spaces and other scripts.
fn text(seed: u64) -> String {
    let words = [
        "the",
        "of",
        "and",
        "people",
        "government",
        "nation",
        "whale",
        "ship",
        "sea",
        "captain",
        "return",
        "let",
        "match",
        "struct",
        "every",
        "year",
        "peace",
        "war",
        "über",
        "naïve",
        "日本語",
        "данные",
        "λ",
        "1776",
        "2024",
        "3.14",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = |bound: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % bound
    };
    let mut text = String::new();
    for _ in 0..2000 {
        text.push_str(words[draw(words.len())]);
        text.push_str([" ", " ", " ", ", ", ".\n", "\n    ", "\t", "();  // ", "\n\n"][draw(9)]);
    }
    text
}

fn documents(folder: &Path) -> Vec<DocumentFile> {
    let path = folder.join("train-00000.parquet");
    let mut writer = DocumentWriter::create(&path).unwrap();
    for index in 0..20 {
        let document = Document {
            id: format!("d{index}"),
            text: text(index),
            source: "test".into(),
            ..Document::default()
        };
        writer.write(&document).unwrap();
    }
    writer.finish().unwrap();
    vec![DocumentFile::open(&path).unwrap()]
}

fn config(vocab_size: usize) -> TokenizerConfig {
    TokenizerConfig {
        vocab_size,
        character_coverage: 0.9995,
        input_bytes: 200_000,
        ..TokenizerConfig::default()
    }
}

fn train_bytes(config: &TokenizerConfig) -> Result<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let files = documents(folder.path());
    let model = folder.path().join("tokenizer.model");
    train(config, &files, &model, ProgressMode::Hidden)?;
    Ok(std::fs::read(&model).unwrap())
}

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let bytes = train_bytes(&config(420)).unwrap();
        Tokenizer::from_bytes(Path::new("test.model"), &bytes).unwrap()
    })
}

#[test]
fn the_same_text_trains_the_same_bytes() {
    let first = train_bytes(&config(420)).unwrap();
    assert_eq!(first, train_bytes(&config(420)).unwrap());
    let sampled = TokenizerConfig { input_bytes: 50_000, ..config(420) };
    let other_seed = TokenizerConfig { seed: 2, ..sampled.clone() };
    assert_ne!(train_bytes(&sampled).unwrap(), train_bytes(&other_seed).unwrap());
}

#[test]
fn a_model_that_was_altered_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let files = documents(folder.path());
    let model = folder.path().join("tokenizer.model");
    let description = folder.path().join("tokenizer.model.json");
    train(&config(420), &files, &model, ProgressMode::Hidden).unwrap();
    let trained = std::fs::read(&model).unwrap();
    assert_eq!(Tokenizer::open(&model).unwrap().model(), trained);
    for path in [&model, &description] {
        let whole = std::fs::read(path).unwrap();
        for at in [5, whole.len() / 2, whole.len() - 3] {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            std::fs::write(path, bytes).unwrap();
            let error = Tokenizer::open(&model).unwrap_err();
            assert!(matches!(error, DataError::Altered { .. }), "{error}");
            let error = error.to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(error.contains("tokenizer train"), "{error}");
        }
        std::fs::write(path, whole).unwrap();
    }
    // A model of other tools has no description.
    std::fs::remove_file(&description).unwrap();
    Tokenizer::open(&model).unwrap();
}

#[test]
fn the_vocabulary_is_llamas_kind() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.vocab_size(), 420);
    assert_eq!(tokenizer.unk_id(), Some(0));
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    let kind = |id| tokenizer.piece(id).unwrap().kind;
    assert_eq!(kind(0), PieceType::Unknown);
    assert_eq!((kind(1), kind(2)), (PieceType::Control, PieceType::Control));
    for byte in 0..=255u8 {
        assert_eq!(kind(3 + u32::from(byte)), PieceType::Byte(byte));
    }
    assert_eq!(tokenizer.piece(420), None);
    // Merges have falling scores.
    assert_eq!(tokenizer.piece(259).unwrap().score, 0.0);
    assert_eq!(tokenizer.piece(260).unwrap().score, -1.0);
    assert_eq!(tokenizer.fingerprint().len(), 64);
}

#[test]
fn digits_are_split_and_marks_in_text_stay_text() {
    let tokenizer = tokenizer();
    let pieces = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text).unwrap();
        ids.iter().map(|id| tokenizer.piece(*id).unwrap().text.clone()).collect()
    };
    assert_eq!(pieces("the 2024"), ["▁the", "▁", "2", "0", "2", "4"]);
    assert_eq!(pieces("\n"), ["▁", "<0x0A>"]);
    for text in ["<s>", "</s>", "<unk>", "a <s> b</s>", "<0x0A>"] {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|id| *id > 2), "{text}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
    let marked = tokenizer.encode_document("the sea", true, true).unwrap();
    assert_eq!((marked[0], *marked.last().unwrap()), (1, 2));
    assert_eq!(tokenizer.decode(&marked).unwrap(), "the sea");
    assert_eq!(tokenizer.encode("").unwrap(), Vec::<u32>::new());
    assert_eq!(tokenizer.decode(&[]).unwrap(), "");
    assert!(tokenizer.decode(&[420]).is_err());
}

#[test]
fn text_comes_back_exactly() {
    let tokenizer = tokenizer();
    let texts = [
        " leading",
        "  two",
        "trailing  ",
        "\n",
        "\n\n\ta\r\n b",
        "a    b",
        "e\u{301}",
        "ﬁ ½ Ａ",
        "\u{feff}bom",
        "emoji 👩‍👩‍👧 and 🏳️‍🌈",
        "nul\0inside",
        "\u{2585} reserved",
    ];
    for text in texts {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{text:?}");
    }
    let long = text(99);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&long).unwrap()).unwrap(), long);
    // The one exception, which SentencePiece has by design.
    let ids = tokenizer.encode("a\u{2581}b").unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a b");
}

#[test]
fn encoding_in_parts_changes_nothing() {
    let tokenizer = tokenizer();
    let long = (0..50).map(text).collect::<String>();
    assert!(long.len() > 2 * PART_BYTES, "{}", long.len());
    let Codec::SentencePiece(codec) = &tokenizer.codec else { panic!("of another kind") };
    let whole = codec.processor.encode(&long).unwrap();
    let whole: Vec<u32> = whole.into_iter().map(|piece| piece.id).collect();
    assert!(codec.part_prefix.is_some());
    assert!(tokenizer.encode_by_sentencepiece(&long).unwrap() == whole);
    assert!(tokenizer.encode(&long).unwrap() == whole);
    // No line feed near the bound, and none at all.
    let lineless = "word ".repeat(PART_BYTES / 4);
    for text in [format!("{lineless}\n{lineless}"), lineless] {
        let ids = tokenizer.encode_by_sentencepiece(&text).unwrap();
        assert!(tokenizer.decode(&ids).unwrap() == text);
        assert!(tokenizer.encode(&text).unwrap() == ids);
    }
}

#[test]
fn a_text_in_pieces_has_the_ids_of_the_whole() {
    let tokenizer = tokenizer();
    let long = (0..50).map(text).collect::<String>();
    let lineless = "naïve word ".repeat(PART_BYTES / 8);
    for text in [long.clone(), lineless.clone(), format!("{long}{lineless}\n"), String::new()] {
        for size in [1000, 300_001] {
            let mut encoder = StreamEncoder::new(tokenizer);
            let (mut ids, mut rest) = (Vec::new(), text.as_str());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.floor_char_boundary(size));
                encoder.push(piece, &mut ids).unwrap();
                rest = after;
            }
            let before_the_end = ids.len();
            encoder.finish(&mut ids).unwrap();
            assert!(ids == tokenizer.encode(&text).unwrap(), "pieces of {size} bytes");
            // What is left for the end is about a part, whatever the length of the text.
            assert_eq!(before_the_end > 0, text.starts_with(&long), "pieces of {size} bytes");
        }
    }
}

#[test]
fn impossible_vocabularies_are_errors_with_the_key_to_change() {
    let error = train_bytes(&config(100_000)).unwrap_err().to_string();
    assert!(error.contains("`vocab_size` of 100000 is too large"), "{error}");
    let error = train_bytes(&config(300)).unwrap_err().to_string();
    assert!(error.contains("`vocab_size` of 300 is too small"), "{error}");
    for bad in [
        config(299),
        TokenizerConfig { character_coverage: 0.5, ..config(420) },
        TokenizerConfig { input_bytes: 0, ..config(420) },
    ] {
        assert!(matches!(train_bytes(&bad), Err(DataError::Config { .. })));
    }
    // Almost nothing to train on.
    let tiny = TokenizerConfig { input_bytes: 3, ..config(300) };
    assert!(matches!(train_bytes(&tiny), Err(DataError::TokenizerTraining { .. })));
}

/// What Google's Python package (0.2.3) gives with the model that it trains on the same sentences.
#[test]
fn ids_are_those_of_the_reference_implementation() {
    let golden: [(&str, &[u32]); 3] = [
        (
            "the people of the nation, 1776.",
            &[336, 340, 353, 336, 355, 393, 373, 400, 399, 399, 416, 384],
        ),
        (
            "  let x = 3.14;\n\treturn x;\n",
            &[
                263, 307, 373, 123, 373, 64, 373, 417, 384, 400, 401, 392, 13, 389, 288, 373, 123,
                392, 13,
            ],
        ),
        ("日本語 naïve 👩 \u{2585}", &[342, 337, 373, 243, 162, 148, 172, 373, 229, 153, 136]),
    ];
    for (text, ids) in golden {
        assert_eq!(tokenizer().encode(text).unwrap(), ids, "{text:?}");
    }
}

#[test]
fn damaged_models_are_errors() {
    let bytes = train_bytes(&config(420)).unwrap();
    let open = |bytes: &[u8]| Tokenizer::from_bytes(Path::new("m.model"), bytes);
    for length in [0, 1, 10, 100, bytes.len() / 2] {
        // A cut may fall between two entries: then it is a smaller model, or none.
        if let Ok(tokenizer) = open(&bytes[..length]) {
            assert!(tokenizer.vocab_size() < 420);
        }
    }
    assert!(open(b"{}").is_err());
    assert!(open(&[0xff; 100]).is_err());
}

/// What a stream decoder makes of `ids`.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = StreamDecoder::new(tokenizer);
    let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
    text.push_str(&decoder.finish());
    text
}

#[test]
fn a_character_is_emitted_when_its_last_byte_comes() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("a👩b").unwrap();
    let mut decoder = StreamDecoder::new(tokenizer);
    let parts: Vec<String> = ids.iter().map(|id| decoder.push(*id)).collect();
    assert_eq!(parts, ["", "a", "", "", "", "👩", "b"]);
    // Behind a prompt the space of the first piece is text.
    let ids = tokenizer.encode("the").unwrap();
    assert_eq!(StreamDecoder::after_prompt(tokenizer).push(ids[0]), " the");
    assert_eq!(StreamDecoder::new(tokenizer).push(ids[0]), "the");
}

proptest! {
    #[test]
    fn any_text_comes_back(text in "\\PC{0,60}|[ \t\n\r]{0,8}(\\PC|[ \n\t]){0,40}") {
        let tokenizer = tokenizer();
        let text = text.replace('\u{2581}', "");
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().all(|id| *id > 2));
        prop_assert_eq!(&tokenizer.decode(&ids).unwrap(), &text);
        prop_assert_eq!(&streamed(tokenizer, &ids), &text);
    }

    #[test]
    fn streaming_equals_decoding_for_any_ids(
        ids in prop::collection::vec(prop_oneof![0u32..420, 0u32..3, 195u32..259], 0..40)
    ) {
        let tokenizer = tokenizer();
        prop_assert_eq!(streamed(tokenizer, &ids), tokenizer.decode(&ids).unwrap());
    }
}
