//! Text as such: character sets, lines, white space, normal forms, words, HTML, TeX.

pub mod ccnet;
pub mod charset;
pub mod html;
pub mod python;
pub mod sentences;
pub mod tex;
pub mod word_ngrams;
