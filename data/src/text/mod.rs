//! Text as such: character sets, lines and white space, normal forms, words.

pub mod ccnet;
pub mod charset;
pub mod html;
pub mod python;
pub mod sentences;
pub mod word_ngrams;
