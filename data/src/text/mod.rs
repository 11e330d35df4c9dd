//! Text as such: character sets, lines and white space.

pub mod charset;
pub mod html;
pub mod python;
