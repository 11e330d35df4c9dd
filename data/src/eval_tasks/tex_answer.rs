//! Answers in TeX: the boxed one of a solution, and a form in which equal answers are equal texts.

/// What stands in the last `\boxed` or `\fbox` of a solution.
pub(super) fn boxed(solution: &str) -> Option<String> {
    if let Some((_, last)) = solution.rsplit_once("\\boxed ") {
        return Some(last.split('$').next().unwrap_or_default().to_owned());
    }
    let start = solution.rfind("\\boxed").or_else(|| solution.rfind("\\fbox"))?;
    let open = start + solution[start..].find('{')?;
    let mut depth = 0usize;
    for (n, byte) in solution.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Some(solution[open + 1..n].to_owned());
        }
    }
    None
}

/// The form of an answer in which it is compared: without units, degrees and spaces, fractions and
/// roots in braces. What it cannot bring into that form is compared as it is.
pub(super) fn canonical(answer: &str) -> String {
    canonical_form(answer).unwrap_or_else(|| answer.to_owned())
}

/// None where the rules of `hendrycks_math` fail.
fn canonical_form(answer: &str) -> Option<String> {
    let mut text = answer.to_owned();
    for (from, to) in [
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        text = text.replace(from, to);
    }
    let parts: Vec<&str> = text.split("\\text{ ").collect();
    match parts[..] {
        [_] => {}
        // A unit on the right.
        [before, _] => text = before.to_owned(),
        _ => return None,
    }
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    let sides: Vec<&str> = text.split('=').collect();
    if let [left, right] = sides[..]
        && left.chars().count() <= 2
    {
        text = right.to_owned();
    }
    text = braced_roots(&text)?.replace(' ', "");
    text = braced_fractions(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    let sides: Vec<&str> = text.split('/').collect();
    if let [above, below] = sides[..] {
        let (above, below) = (above.parse::<i128>().ok()?, below.parse::<i128>().ok()?);
        if text == format!("{above}/{below}") {
            return Some(format!("\\frac{{{above}}}{{{below}}}"));
        }
    }
    Some(text)
}

/// `\sqrt3` as `\sqrt{3}`.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut braced = parts.next()?.to_owned();
    for part in parts {
        braced.push_str("\\sqrt");
        match part.chars().next()? {
            '{' => braced.push_str(part),
            first => {
                braced.push_str(&format!("{{{first}}}{}", &part[first.len_utf8()..]));
            }
        }
    }
    Some(braced)
}

/// `\frac12` and `\frac1{72}` with both parts in braces.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut braced = parts.next()?.to_owned();
    for part in parts {
        braced.push_str("\\frac");
        let mut letters = part.chars();
        let above = letters.next()?;
        if above == '{' {
            braced.push_str(part);
            continue;
        }
        let Some(below) = letters.next() else { return Some(text.to_owned()) };
        let rest = letters.as_str();
        match below {
            '{' => braced.push_str(&format!("{{{above}}}{{{rest}")),
            below => braced.push_str(&format!("{{{above}}}{{{below}}}{rest}")),
        }
    }
    Some(braced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_boxed_answer_is_found() {
        for (solution, answer) in [
            ("so $\\boxed{1}$ or $\\boxed{\\frac{1}{2}}$.", Some("\\frac{1}{2}")),
            ("it is \\fbox{7}", Some("7")),
            ("it is $\\boxed 5$ here", Some("5")),
            ("nothing", None),
            ("\\boxed{open", None),
            ("\\boxed", None),
        ] {
            assert_eq!(boxed(solution).as_deref(), answer, "{solution}");
        }
    }

    #[test]
    fn equal_answers_have_one_form() {
        for (a, b) in [
            ("\\frac12", "\\dfrac{1}{2}"),
            ("0.5", "1/2"),
            (".5", "0.5"),
            ("x = 3", "3"),
            ("\\sqrt3", "\\sqrt{3}"),
            ("90^\\circ", "90"),
            ("12\\text{ cm}", "12"),
            ("\\left( 1, 2 \\right)", "(1,2)"),
        ] {
            assert_eq!(canonical(a), canonical(b), "{a} {b}");
        }
        assert_ne!(canonical("1"), canonical("2"));
        assert_eq!(canonical("\\frac"), "\\frac");
    }
}
