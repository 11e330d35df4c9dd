//! SentencePiece's BPE encoding, word by word.
//!
//! SentencePiece merges the best pair of neighbours of a whole text until no pair of neighbours
//! is a piece: highest score first, the leftmost of equals. A merge across the place between two
//! characters needs a piece in which the two stand side by side. So a text may be cut wherever no
//! piece has the two characters side by side, and the parts encoded alone give the same ids
//! ([`Joins`] holds which pairs of characters some piece has). For a model trained with the usual
//! settings those places are the beginnings of words, digits and changes of script. Words repeat:
//! their ids are kept in a [`WordCache`].
//!
//! [`BpeEncoder::new`] accepts only models for which this holds and gives the reason otherwise.

mod joins;
mod merge;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};

use self::joins::Joins;
use self::merge::{MergeTable, Merger};
use super::SPACE;
use super::model_proto::{Model, ModelType, PieceType};
use super::word_cache::WordCache;

/// Longest user-defined symbol in bytes. SentencePiece looks at no more than 64 symbols that
/// begin at one place.
const LONGEST_USER_DEFINED: usize = 64;

/// No piece: a character that is written as bytes.
const NO_SYMBOL: u32 = u32::MAX;

/// An encoder whose ids are those of SentencePiece for every text.
pub(super) struct BpeEncoder {
    joins: Joins,
    merges: MergeTable,
    characters: CharacterTable,
    /// Per symbol the id that is put out, or [`NO_SYMBOL`] if it is written as bytes.
    outputs: Vec<u32>,
    byte_ids: [u32; 256],
    user_defined: Option<UserDefined>,
    add_dummy_prefix: bool,
    /// Work spaces not in use. There are as many as threads ever encoded at once.
    idle: Mutex<Vec<WorkSpace>>,
}

/// Symbols that are found before anything else and never merged.
struct UserDefined {
    automaton: AhoCorasick,
    /// The piece of each pattern.
    symbols: Vec<u32>,
}

/// What one thread needs to encode.
#[derive(Default)]
struct WorkSpace {
    cache: WordCache,
    merger: Merger,
}

impl BpeEncoder {
    /// The tables for `model`, or why it is left to SentencePiece.
    pub fn new(model: &Model) -> Result<Self, &'static str> {
        if model.model_type != ModelType::Bpe {
            return Err("it is no BPE model");
        }
        if !model.identity || !model.escape_whitespaces || model.whitespace_as_suffix {
            return Err("it changes the text before encoding");
        }
        if !model.byte_fallback {
            return Err("it has no byte fallback");
        }
        let mut byte_ids = [NO_SYMBOL; 256];
        // SentencePiece looks up names of marks and bytes before those of text.
        let mut reserved = HashMap::new();
        let mut pieces = HashMap::new();
        let mut user_defined = Vec::new();
        for (id, piece) in model.pieces.iter().enumerate() {
            let id = u32::try_from(id).map_err(|_| "it has too many pieces")?;
            let text = piece.text.as_str();
            if piece.score.is_nan() {
                return Err("a score is not a number");
            }
            match piece.kind {
                PieceType::Normal => {
                    pieces.insert(text, id);
                }
                PieceType::UserDefined if text.len() > LONGEST_USER_DEFINED => {
                    return Err("a user-defined symbol is long");
                }
                PieceType::UserDefined => {
                    pieces.insert(text, id);
                    user_defined.push(id);
                }
                // SentencePiece takes these apart by the last merge anywhere in the text.
                PieceType::Unused => return Err("it has unused pieces"),
                PieceType::Control => {
                    reserved.insert(text, id);
                }
                PieceType::Unknown => {
                    reserved.insert(text, NO_SYMBOL);
                }
                PieceType::Byte(byte) => {
                    reserved.insert(text, id);
                    byte_ids[usize::from(byte)] = id;
                }
            }
        }
        if byte_ids.contains(&NO_SYMBOL) {
            return Err("a byte piece is missing");
        }
        let output = |text: &str| reserved.get(text).or_else(|| pieces.get(text)).copied();

        let mut outputs: Vec<u32> =
            model.pieces.iter().map(|piece| output(&piece.text).unwrap_or(NO_SYMBOL)).collect();
        let mut characters = CharacterTable::default();
        let mut joins = Joins::default();
        for (&text, &id) in &pieces {
            joins.add(text);
            let mut rest = text.chars();
            if let (Some(character), None) = (rest.next(), rest.next()) {
                characters.set(character, id);
            }
        }
        // Characters that are not pieces but are part of one, or have the name of a mark, are symbols
        // too: merges look at the text only. In the order of the pieces, so that the tables are
        // the same every time.
        for text in model.pieces.iter().map(|piece| piece.text.as_str()) {
            for character in text.chars().filter(|character| *character != ' ') {
                if characters.get(character) == NO_SYMBOL {
                    let symbol = u32::try_from(outputs.len()).map_err(|_| "too many symbols")?;
                    characters.set(character, symbol);
                    let name = character.to_string();
                    outputs.push(output(&name).unwrap_or(NO_SYMBOL));
                }
            }
        }
        let symbol = |text: &str| {
            let mut rest = text.chars();
            match (rest.next(), rest.next()) {
                (Some(character), None) => {
                    Some(characters.get(character)).filter(|symbol| *symbol != NO_SYMBOL)
                }
                _ => pieces.get(text).copied(),
            }
        };
        let merges = MergeTable::new(&model.pieces, symbol);
        let user_defined = if user_defined.is_empty() {
            None
        } else {
            let texts = user_defined.iter().map(|id| model.pieces[*id as usize].text.as_str());
            let automaton = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(texts)
                .map_err(|_| "its user-defined symbols are too many")?;
            Some(UserDefined { automaton, symbols: user_defined })
        };
        Ok(Self {
            joins,
            merges,
            characters,
            outputs,
            byte_ids,
            user_defined,
            add_dummy_prefix: model.add_dummy_prefix,
            idle: Mutex::default(),
        })
    }

    /// Appends the ids of `text`.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let Some(first) = text.chars().next() else {
            return;
        };
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut space = idle().pop().unwrap_or_default();
        if let Some(user_defined) = &self.user_defined {
            let prefix = if self.add_dummy_prefix { SPACE } else { "" };
            let text = format!("{prefix}{}", text.replace(' ', SPACE));
            let mut done = 0;
            for found in user_defined.automaton.find_iter(&text) {
                self.encode_words(&text[done..found.start()], &mut space, ids);
                let symbol = user_defined.symbols[found.pattern().as_usize()];
                self.put(symbol, &text.as_bytes()[found.range()], ids);
                done = found.end();
            }
            self.encode_words(&text[done..], &mut space, ids);
        } else if self.add_dummy_prefix {
            let end = if self.joins.have(' ', first) { self.joins.end_of_word(text, 0) } else { 0 };
            self.encode_words(&format!(" {}", &text[..end]), &mut space, ids);
            self.encode_words(&text[end..], &mut space, ids);
        } else {
            self.encode_words(text, &mut space, ids);
        }
        idle().push(space);
    }

    fn encode_words(&self, text: &str, space: &mut WorkSpace, ids: &mut Vec<u32>) {
        let mut at = 0;
        while at < text.len() {
            let end = self.joins.end_of_word(text, at);
            let Some(key) = WordCache::key(text.as_bytes(), at, end) else {
                self.encode_word(&text[at..end], &mut space.merger, ids);
                at = end;
                continue;
            };
            match space.cache.get(&key) {
                Some(found) => ids.extend_from_slice(found),
                None => {
                    let first = ids.len();
                    self.encode_word(&text[at..end], &mut space.merger, ids);
                    space.cache.put(&key, &ids[first..]);
                }
            }
            at = end;
        }
    }

    fn encode_word(&self, word: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        let symbols =
            word.char_indices().map(|(at, character)| (at, self.characters.get(character)));
        let symbols = merger.merge(&self.merges, word.len(), symbols);
        let ends = symbols.iter().skip(1).map(|next| next.start).chain([word.len()]);
        for (symbol, end) in symbols.iter().zip(ends) {
            self.put(symbol.symbol, &word.as_bytes()[symbol.start..end], ids);
        }
    }

    /// Appends what `symbol`, which stands for `bytes`, is written as.
    fn put(&self, symbol: u32, bytes: &[u8], ids: &mut Vec<u32>) {
        let output = self.outputs.get(symbol as usize).copied().unwrap_or(NO_SYMBOL);
        if output != NO_SYMBOL {
            ids.push(output);
            return;
        }
        for &byte in bytes {
            if byte == b' ' {
                ids.extend(SPACE.bytes().map(|byte| self.byte_ids[usize::from(byte)]));
            } else {
                ids.push(self.byte_ids[usize::from(byte)]);
            }
        }
    }
}

/// The symbol of every character, in pages of 256. A space and `▁` are the same.
struct CharacterTable {
    pages: Vec<u16>,
    symbols: Vec<[u32; 256]>,
}

impl Default for CharacterTable {
    /// No character has a symbol.
    fn default() -> Self {
        Self { pages: vec![0; 0x11_0000 >> 8], symbols: vec![[NO_SYMBOL; 256]] }
    }
}

impl CharacterTable {
    fn get(&self, character: char) -> u32 {
        let code = joins::folded(character) as usize;
        self.symbols[usize::from(self.pages[code >> 8])][code & 0xff]
    }

    fn set(&mut self, character: char, symbol: u32) {
        // No text has a space once it is normalized.
        if character == ' ' {
            return;
        }
        let code = joins::folded(character) as usize;
        let page = &mut self.pages[code >> 8];
        if *page == 0 {
            // There are 0x1100 pages.
            *page = self.symbols.len() as u16;
            self.symbols.push([NO_SYMBOL; 256]);
        }
        self.symbols[usize::from(*page)][code & 0xff] = symbol;
    }
}

#[cfg(test)]
mod tests;
