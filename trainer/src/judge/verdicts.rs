//! What a judge said.

use std::sync::LazyLock;

use regex::Regex;

/// Which of two answers is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first.
    A,
    /// The second.
    B,
    /// Neither.
    Tie,
    /// The text does not say.
    Error,
}

/// The marks of a comparison.
const MARKS: [(&str, Verdict); 3] =
    [("[[A]]", Verdict::A), ("[[B]]", Verdict::B), ("[[C]]", Verdict::Tie)];

/// The verdict of a comparison: the last of `[[A]]`, `[[B]]` and `[[C]]`. Without one, and with two different
/// ones in the line of the last, there is none.
pub fn comparison(text: &str) -> Verdict {
    let has = |line: &str, mark: &str| line.contains(mark);
    let Some(line) = text.lines().rev().find(|line| MARKS.iter().any(|(mark, _)| has(line, mark)))
    else {
        return Verdict::Error;
    };
    let mut found = MARKS.iter().filter(|(mark, _)| has(line, mark));
    match (found.next(), found.next()) {
        (Some((_, verdict)), None) => *verdict,
        _ => Verdict::Error,
    }
}

/// The points of an answer: the last `[[number]]`, else the last `[number]`; none when there is no number from
/// 1 to 10.
pub fn points(text: &str) -> Option<f64> {
    static RATINGS: LazyLock<Option<[Regex; 2]>> = LazyLock::new(|| {
        let double = Regex::new(r"\[\[(\d+(?:\.\d+)?)\]\]").ok()?;
        let single = Regex::new(r"\[(\d+(?:\.\d+)?)\]").ok()?;
        Some([double, single])
    });
    let found = RATINGS.as_ref()?.iter().find_map(|rating| rating.captures_iter(text).last())?;
    let points: f64 = found[1].parse().ok()?;
    (1.0..=10.0).contains(&points).then_some(points)
}

/// What becomes of a pair whose answers were shown in both orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The first model's answer is better in both orders.
    First,
    /// The second model's.
    Second,
    /// Anything else.
    Tie,
    /// One of the texts has no verdict: the question is left out.
    LeftOut,
}

/// The outcome of two verdicts: of the first model's answer shown first, and shown second. And whether the
/// order changed what was said; none where there is no verdict.
pub fn outcome(shown_first: Verdict, shown_second: Verdict) -> (Outcome, Option<bool>) {
    // In terms of the models.
    let second = match shown_second {
        Verdict::A => Verdict::B,
        Verdict::B => Verdict::A,
        other => other,
    };
    let outcome = match (shown_first, second) {
        (Verdict::Error, _) | (_, Verdict::Error) => return (Outcome::LeftOut, None),
        (Verdict::A, Verdict::A) => Outcome::First,
        (Verdict::B, Verdict::B) => Outcome::Second,
        _ => Outcome::Tie,
    };
    (outcome, Some(shown_first != second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mark_is_the_verdict() {
        use Verdict::{A, B, Error, Tie};
        for (text, verdict) in [
            ("[[A]]", A),
            ("I think\n[[B]].", B),
            ("not [[A]], for\nit is [[B]]", B),
            ("[[A]] and [[A]]", A),
            ("It is [[A]] or [[B]]", Error),
            ("[[A]] or [[B]]\nso [[C]]\nThank you.", Tie),
            ("A is better", Error),
            ("[A]", Error),
            ("", Error),
        ] {
            assert_eq!(comparison(text), verdict, "{text}");
        }
    }

    #[test]
    fn points_are_in_brackets() {
        for (text, expected) in [
            ("Rating: [[7]]", Some(7.0)),
            ("[[8.5]]", Some(8.5)),
            ("[1] first, Rating: [[3]]", Some(3.0)),
            ("Rating: [4]", Some(4.0)),
            ("[[2]] no, [[9]]", Some(9.0)),
            ("[[0]]", None),
            ("[[11]]", None),
            ("[[x]]", None),
            ("7", None),
        ] {
            assert_eq!(points(text), expected, "{text}");
        }
    }

    #[test]
    fn a_win_needs_both_orders() {
        use Verdict::{A, B, Error, Tie};
        for (first, second, expected) in [
            (A, B, (Outcome::First, Some(false))),
            (B, A, (Outcome::Second, Some(false))),
            // The first place wins both times.
            (A, A, (Outcome::Tie, Some(true))),
            (B, B, (Outcome::Tie, Some(true))),
            (Tie, Tie, (Outcome::Tie, Some(false))),
            (A, Tie, (Outcome::Tie, Some(true))),
            (Error, A, (Outcome::LeftOut, None)),
            (Tie, Error, (Outcome::LeftOut, None)),
        ] {
            assert_eq!(outcome(first, second), expected, "{first:?} {second:?}");
        }
    }
}
