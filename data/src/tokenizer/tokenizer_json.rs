//! `tokenizer.json`: a SentencePiece BPE model in the format of Hugging Face's `tokenizers`.
//!
//! The format has no scores: it has a list of merges, best first, each a pair of pieces. SentencePiece
//! merges the pair whose union has the best score, the leftmost of equals, so the list has for every
//! piece all pairs that it can be made of, in the order of the scores.
//!
//! Marks such as `<s>` are entries of the vocabulary, but not among the `added_tokens`, which a
//! reader looks for in the text: a text that contains `<s>` is text, as it is to SentencePiece.

use std::collections::HashSet;

use serde::Serialize;
use serde_json::{Value, json};

use super::SPACE;
use super::model_proto::{Model, ModelType, Piece, PieceType};

/// The file, or why this model cannot be written that way with the same ids.
pub(super) fn tokenizer_json(model: &Model, bos: Option<u32>) -> Result<String, &'static str> {
    if model.model_type != ModelType::Bpe {
        return Err("it is not a BPE model");
    }
    if !model.identity || !model.escape_whitespaces || model.whitespace_as_suffix {
        return Err("it changes the text before encoding");
    }
    let bytes = model.pieces.iter().filter(|piece| matches!(piece.kind, PieceType::Byte(_)));
    if !model.byte_fallback || bytes.count() != 256 {
        return Err("it has no byte fallback");
    }
    let known = |piece: &Piece| !matches!(piece.kind, PieceType::UserDefined | PieceType::Unused);
    if !model.pieces.iter().all(known) {
        return Err("it has pieces that are user-defined or unused");
    }
    let vocab: Vec<(&str, usize)> =
        model.pieces.iter().enumerate().map(|(id, piece)| (piece.text.as_str(), id)).collect();
    if vocab.iter().map(|(text, _)| text).collect::<HashSet<_>>().len() != vocab.len() {
        return Err("it has two pieces of the same text");
    }
    let unknown = model.pieces.iter().find(|piece| piece.kind == PieceType::Unknown);
    let mut file = TokenizerJson {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: [],
        normalizer: normalizer(model.add_dummy_prefix),
        pre_tokenizer: None,
        post_processor: bos.and_then(|id| Some(post_processor(id, model.pieces.get(id as usize)?))),
        decoder: decoder(model.add_dummy_prefix),
        model: Bpe {
            r#type: "BPE",
            dropout: None,
            unk_token: unknown.map(|piece| piece.text.as_str()),
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            merges: merges(&model.pieces)?,
            vocab,
        },
    };
    // The order of keys is the same whatever order JSON objects have in memory.
    file.normalizer.sort_all_objects();
    file.decoder.sort_all_objects();
    file.post_processor.iter_mut().for_each(Value::sort_all_objects);
    let text = serde_json::to_string_pretty(&file);
    text.map(|text| text + "\n").map_err(|_| "it cannot be written as JSON")
}

/// The file, in the order in which `tokenizers` itself writes it.
#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: [(); 0],
    normalizer: Value,
    pre_tokenizer: Option<()>,
    post_processor: Option<Value>,
    decoder: Value,
    model: Bpe<'a>,
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Option<()>,
    end_of_word_suffix: Option<()>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "in_order")]
    vocab: Vec<(&'a str, usize)>,
    merges: Vec<[&'a str; 2]>,
}

/// A map in the order of the ids.
fn in_order<S: serde::Serializer>(
    entries: &[(&str, usize)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().copied())
}

/// Spaces become `▁`, and one is put before the text.
fn normalizer(add_dummy_prefix: bool) -> Value {
    let escape = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    match add_dummy_prefix {
        true => json!({
            "type": "Sequence",
            "normalizers": [{ "type": "Prepend", "prepend": SPACE }, escape],
        }),
        false => escape,
    }
}

/// The begin mark is put before a text.
fn post_processor(id: u32, piece: &Piece) -> Value {
    let mark = |text: usize| json!({ "SpecialToken": { "id": piece.text, "type_id": text } });
    let text = |name: &str, text: usize| json!({ "Sequence": { "id": name, "type_id": text } });
    json!({
        "type": "TemplateProcessing",
        "single": [mark(0), text("A", 0)],
        "pair": [mark(0), text("A", 0), mark(1), text("B", 1)],
        "special_tokens": {
            piece.text.as_str(): { "id": piece.text, "ids": [id], "tokens": [piece.text] },
        },
    })
}

/// The other way round, with bytes put together.
fn decoder(add_dummy_prefix: bool) -> Value {
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if add_dummy_prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": decoders })
}

/// Every pair of pieces that makes a piece, best first.
fn merges(pieces: &[Piece]) -> Result<Vec<[&str; 2]>, &'static str> {
    let normal = || pieces.iter().filter(|piece| piece.kind == PieceType::Normal);
    let texts: HashSet<&str> = normal().map(|piece| piece.text.as_str()).collect();
    let one = |text: &str| text.chars().nth(1).is_none();
    let mut merged: Vec<&Piece> = normal().filter(|piece| !one(&piece.text)).collect();
    // SentencePiece also joins characters that are not pieces; here they are bytes by then.
    let spelled = |piece: &Piece| {
        let mut character = [0; 4];
        piece.text.chars().all(|c| texts.contains(&*c.encode_utf8(&mut character)))
    };
    if !merged.iter().all(|piece| spelled(piece)) {
        return Err("it has pieces with characters that are no pieces");
    }
    merged.sort_by(|a, b| b.score.total_cmp(&a.score));
    // Of equals SentencePiece takes the leftmost, whatever piece it makes; a list cannot say that.
    if merged.windows(2).any(|pair| pair[0].score == pair[1].score) {
        return Err("it has pieces of equal score");
    }
    let mut merges = Vec::new();
    for piece in merged {
        let text = piece.text.as_str();
        let mut cuts: Vec<usize> = text
            .char_indices()
            .map(|(at, _)| at)
            .filter(|&at| texts.contains(&text[..at]) && texts.contains(&text[at..]))
            .collect();
        cuts.sort_by_key(|&at| (!comes_first(text, at), std::cmp::Reverse(at)));
        merges.extend(cuts.into_iter().map(|at| [&text[..at], &text[at..]]));
    }
    Ok(merges)
}

/// Whether the pair that `at` cuts `text` into has to stand before the one of the mirrored place.
///
/// The two can overlap: A, B and C in a row with `AB = BC = text`, so that `text` repeats after the
/// length of A. SentencePiece then merges A and B, which stand to the left.
fn comes_first(text: &str, at: usize) -> bool {
    let repeats =
        |period: usize| text.is_char_boundary(period) && text.starts_with(&text[period..]);
    repeats(at) && !repeats(text.len() - at)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::super::Tokenizer;
    use super::super::model_proto::{Piece, PieceType, write_bpe};
    use serde_json::Value;

    fn piece(text: &str, score: f32, kind: PieceType) -> Piece {
        Piece { text: text.into(), score, kind }
    }

    /// Marks, bytes, the characters `a`, `b` and `▁`, and these pieces, best first.
    fn tokenizer(merged: &[&str], more: &[Piece]) -> Tokenizer {
        let mut pieces = vec![
            piece("<unk>", 0.0, PieceType::Unknown),
            piece("<s>", 0.0, PieceType::Control),
            piece("</s>", 0.0, PieceType::Control),
        ];
        let byte = |byte: u8| piece(&format!("<0x{byte:02X}>"), 0.0, PieceType::Byte(byte));
        pieces.extend((0..=255).map(byte));
        let normal = merged.iter().chain(&["a", "b", "\u{2581}"]).enumerate();
        pieces.extend(normal.map(|(n, text)| piece(text, -(n as f32), PieceType::Normal)));
        pieces.extend_from_slice(more);
        Tokenizer::from_bytes(Path::new("m.model"), &write_bpe(&pieces, true)).unwrap()
    }

    /// What Hugging Face's tokenizers do with the file: the pair of lowest rank is merged, the leftmost
    /// of equals, until there is none.
    fn encode_by_merges(file: &Value, text: &str) -> Vec<u64> {
        let vocab = &file["model"]["vocab"];
        let ranks: HashMap<(&str, &str), usize> = file["model"]["merges"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(rank, pair)| ((pair[0].as_str().unwrap(), pair[1].as_str().unwrap()), rank))
            .collect();
        let mut symbols: Vec<String> = Vec::new();
        let normalized = format!(" {text}").replace(' ', "\u{2581}");
        for character in normalized.chars().map(String::from) {
            match vocab.get(&character) {
                Some(_) => symbols.push(character),
                None => symbols.extend(character.bytes().map(|byte| format!("<0x{byte:02X}>"))),
            }
        }
        let rank = |pair: &[String]| ranks.get(&(pair[0].as_str(), pair[1].as_str())).copied();
        while let Some((_, at)) =
            symbols.windows(2).enumerate().filter_map(|(at, pair)| Some((rank(pair)?, at))).min()
        {
            let right = symbols.remove(at + 1);
            symbols[at].push_str(&right);
        }
        symbols.iter().map(|symbol| vocab[symbol.as_str()].as_u64().unwrap()).collect()
    }

    proptest::proptest! {
        #[test]
        fn merges_give_the_ids_of_scores(
            mut pieces in proptest::collection::vec("[ab\u{2581}]{2,5}", 1..14),
            texts in proptest::collection::vec("[ab c]{1,24}", 20),
        ) {
            let mut seen = std::collections::HashSet::new();
            pieces.retain(|piece| seen.insert(piece.clone()));
            let merged: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let tokenizer = tokenizer(&merged, &[]);
            let file: Value = serde_json::from_str(&tokenizer.tokenizer_json().unwrap()).unwrap();
            for text in &texts {
                let ids: Vec<u64> =
                    tokenizer.encode(text).unwrap().into_iter().map(u64::from).collect();
                proptest::prop_assert_eq!(encode_by_merges(&file, text), ids, "{:?}", text);
            }
        }
    }

    /// Of the pairs that make `abaab` and overlap in `aba ab aab`, the left one is merged.
    #[test]
    fn overlapping_pairs_are_in_the_order_of_the_text() {
        let tokenizer = tokenizer(&["ab", "aba", "aab", "abaab"], &[]);
        let file: Value = serde_json::from_str(&tokenizer.tokenizer_json().unwrap()).unwrap();
        let merges = file["model"]["merges"].as_array().unwrap();
        let of = |left: &str, right: &str| {
            merges.iter().position(|pair| pair[0] == left && pair[1] == right).unwrap()
        };
        assert!(of("aba", "ab") < of("ab", "aab"), "{merges:?}");
    }

    #[test]
    fn models_of_another_kind_have_no_such_file() {
        assert!(tokenizer(&["ab"], &[]).tokenizer_json().is_some());
        for more in [
            piece("abc", -9.0, PieceType::Normal),
            piece("bb", 0.0, PieceType::Normal),
            piece("<mask>", 0.0, PieceType::UserDefined),
            piece("bb", -9.0, PieceType::Unused),
        ] {
            let tokenizer = tokenizer(&["ab"], std::slice::from_ref(&more));
            assert_eq!(tokenizer.tokenizer_json(), None, "{more:?}");
        }
    }
}
