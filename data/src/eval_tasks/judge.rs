//! Whether a generated text is the answer.

use std::sync::LazyLock;

use regex::Regex;

use super::example::{Answer, Rules};
use super::tex_answer::{boxed, canonical};

/// What a generated text says, by one measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The filter of the measure.
    pub filter: &'static str,
    /// The answer that was found in the text, in the form that is compared.
    pub found: String,
    /// Whether it is right.
    pub right: bool,
}

#[allow(clippy::unwrap_used, reason = "the patterns are constants")]
static BEHIND_MARK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"#### (\-?[0-9\.\,]+)").unwrap());
#[allow(clippy::unwrap_used, reason = "the patterns are constants")]
static ANY_NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(-?[$0-9.,]{2,})|(-?[0-9]+)").unwrap());
#[allow(clippy::unwrap_used, reason = "the patterns are constants")]
static ARTICLES: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b(?:The |the |An |A |The |a |an )").unwrap());

/// What the harness has where a pattern finds nothing.
const INVALID: &str = "[invalid]";

impl Answer {
    /// What `text` says by each measure of the rules. Programs are judged by running them.
    pub fn judge(&self, text: &str, rules: Rules) -> Vec<Judgement> {
        let one = |filter, found: String, right| vec![Judgement { filter, found, right }];
        match (self, rules) {
            (Self::Program(_), _) => Vec::new(),
            (Self::Aliases(aliases), Rules::Paper) => {
                let cut = text.split('\n').next().unwrap_or_default();
                let found = squad_form(cut.trim().trim_end_matches(['.', ',']));
                let right = aliases.iter().any(|alias| squad_form(alias) == found);
                one("none", found, right)
            }
            (Self::Aliases(aliases), Rules::Harness) => {
                let form = |text: &str| without_punctuation(&ARTICLES.replace_all(text, ""));
                let found = form(text.trim());
                let right = aliases.iter().any(|alias| form(alias) == found);
                one("remove_whitespace", found, right)
            }
            (Self::Number(solution), Rules::Paper) => {
                let expected = number_form(solution);
                let found = number_form(&strict(text).unwrap_or_else(|| flexible(text)));
                let right = found == expected;
                one("none", found, right)
            }
            (Self::Number(solution), Rules::Harness) => {
                let expected = number_form(solution);
                let judged = |filter, found: String| {
                    let found = number_form(&found);
                    Judgement { filter, right: found == expected, found }
                };
                vec![
                    judged("strict-match", strict(text).unwrap_or_else(|| INVALID.into())),
                    judged("flexible-extract", flexible(text)),
                ]
            }
            (Self::Expression(expected), rules) => {
                let between = || {
                    let (first, last) = (text.find('$')?, text.rfind('$')?);
                    (first < last).then(|| text[first + 1..last].to_owned())
                };
                let found = match rules {
                    Rules::Paper => boxed(text).unwrap_or_default(),
                    Rules::Harness => between().unwrap_or_else(|| text.to_owned()),
                };
                let found = canonical(&found);
                let right = found == canonical(expected);
                one("none", found, right)
            }
        }
    }
}

/// The number behind the first `####`.
fn strict(text: &str) -> Option<String> {
    BEHIND_MARK.captures(text).map(|found| found[1].trim().to_owned())
}

/// The last number.
fn flexible(text: &str) -> String {
    let last = ANY_NUMBER.find_iter(text).last();
    last.map_or_else(|| INVALID.to_owned(), |found| found.as_str().trim().to_owned())
}

/// A number as it is compared: without separators, currency, what precedes `#### ` and a final dot.
fn number_form(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let text = text.rsplit_once("#### ").map_or(text.as_str(), |(_, number)| number).to_owned();
    text.strip_suffix('.').unwrap_or(&text).to_lowercase()
}

/// Small letters without ASCII punctuation.
fn without_punctuation(text: &str) -> String {
    let kept = |letter: &char| !letter.is_ascii_punctuation();
    text.to_lowercase().chars().filter(kept).collect()
}

/// The form of SQuAD: small letters without punctuation, articles and further spaces.
fn squad_form(text: &str) -> String {
    let text = without_punctuation(text);
    let words = text.split_whitespace().filter(|word| !["a", "an", "the"].contains(word));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(answer: &Answer, text: &str, rules: Rules) -> Vec<bool> {
        answer.judge(text, rules).iter().map(|judgement| judgement.right).collect()
    }

    #[test]
    fn closed_book_answers_are_compared_in_their_normal_form() {
        let answer = Answer::Aliases(vec!["The Blue  Whale".into(), "whales".into()]);
        for (text, paper, harness) in [
            (" the blue whale.", true, false),
            (" Blue Whale", true, false),
            (" The Blue  Whale", true, true),
            (" whales, and others", false, false),
            (" Whales", true, true),
            (" Whales\nQ: more", true, false),
        ] {
            assert_eq!(judged(&answer, text, Rules::Paper), [paper], "{text}");
            assert_eq!(judged(&answer, text, Rules::Harness), [harness], "{text}");
        }
    }

    #[test]
    fn numbers_are_found_where_the_rules_look() {
        let answer = Answer::Number("Half of it.\n#### 1,250".into());
        for (text, paper, strict, flexible) in [
            (" so 5.\n#### 1250", true, true, true),
            (" so $1,250.", true, false, true),
            (" #### 1250 and then 3", true, true, false),
            (" nothing", false, false, false),
            (" 1251", false, false, false),
        ] {
            assert_eq!(judged(&answer, text, Rules::Paper), [paper], "{text}");
            assert_eq!(judged(&answer, text, Rules::Harness), [strict, flexible], "{text}");
        }
    }

    #[test]
    fn expressions_are_taken_from_their_marks() {
        let answer = Answer::Expression("\\frac{1}{2}".into());
        assert_eq!(judged(&answer, "it is $\\boxed{1/2}$", Rules::Paper), [true]);
        assert_eq!(judged(&answer, "it is $\\frac12$", Rules::Paper), [false]);
        assert_eq!(judged(&answer, "it is $\\frac12$.", Rules::Harness), [true]);
        assert_eq!(judged(&answer, "1/2", Rules::Harness), [true]);
        assert_eq!(judged(&answer, "2", Rules::Harness), [false]);
    }
}
