//! Text as such: character sets, superscripts, lines, white space, normal forms, words, HTML, TeX, names of the
//! Wikipedias.

pub(crate) mod calendar;
pub mod ccnet;
pub mod charset;
pub mod html;
pub mod python;
pub(crate) mod script_marks;
pub mod sentences;
pub mod tex;
pub mod wikipedia;
pub mod word_ngrams;
