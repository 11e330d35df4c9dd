//! ROUGE-L: how much two texts have in common, by the longest common subsequence of their words.

/// The words of a text: letters and digits of ASCII in lower case, everything else parts them.
pub(super) fn words(text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// The F-measure of the longest common subsequence, 0 to 1.
pub(super) fn rouge_l(one: &[u32], other: &[u32]) -> f64 {
    let common = common_subsequence(one, other);
    if common == 0 {
        return 0.0;
    }
    let (precision, recall) =
        (common as f64 / one.len() as f64, common as f64 / other.len() as f64);
    2.0 * precision * recall / (precision + recall)
}

/// Length of the longest common subsequence.
fn common_subsequence(one: &[u32], other: &[u32]) -> usize {
    let mut row = vec![0; other.len() + 1];
    for word in one {
        let mut diagonal = 0;
        for (at, theirs) in other.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == theirs { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_the_definition() {
        assert_eq!(words("Don't  stop, É 2x!"), ["don", "t", "stop", "2x"]);
        for (one, other, expected) in [
            (&[1, 2, 3][..], &[1, 2, 3][..], 1.0),
            (&[1, 2, 3, 4], &[1, 3], 2.0 * 0.5 / 1.5),
            (&[1, 2], &[2, 1], 0.5),
            (&[1], &[2], 0.0),
            (&[], &[1], 0.0),
        ] {
            assert!((rouge_l(one, other) - expected).abs() < 1e-12, "{one:?} {other:?}");
            assert_eq!(rouge_l(one, other), rouge_l(other, one));
        }
    }
}
