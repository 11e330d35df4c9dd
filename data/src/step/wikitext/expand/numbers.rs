//! Numbers as PHP reads and writes them, and as languages do.

/// Significant digits that PHP writes.
const PRECISION: i32 = 14;

/// Longest number, in bytes: a `#switch` may ask for its value at every case.
const LONGEST: usize = 1024;

/// The number that `text` is, if it is one as a whole: `" 1.50"` is.
pub(super) fn numeric(text: &str) -> Option<f64> {
    if text.len() > LONGEST {
        return None;
    }
    let text = text.trim_start();
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let starts =
        digits.strip_prefix('.').unwrap_or(digits).starts_with(|c: char| c.is_ascii_digit());
    let allowed = |c: char| c.is_ascii_digit() || ".eE+-".contains(c);
    if !starts || !text.trim_end().chars().all(allowed) {
        return None;
    }
    text.trim_end().parse().ok()
}

/// The number that `text` begins with; 0 without one.
pub(super) fn from_php(text: &str) -> f64 {
    let mut points = 0;
    let end = text.find(|c: char| {
        points += usize::from(c == '.');
        !(c.is_ascii_digit() || c == '.' && points == 1)
    });
    text[..end.unwrap_or(text.len())].parse().unwrap_or(0.0)
}

/// `value` with at most 14 digits that count; very large and small ones with a power of ten.
pub(super) fn to_php(value: f64) -> String {
    if value.is_nan() {
        return "NAN".into();
    }
    if value.is_infinite() {
        return if value < 0.0 { "-INF" } else { "INF" }.into();
    }
    let scientific = format!("{:.*e}", PRECISION as usize - 1, value);
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..PRECISION).contains(&exponent) {
        let digits = digits.trim_end_matches('0');
        let zero = if digits.ends_with('.') { "0" } else { "" };
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}{zero}E{sign}{}", exponent.abs());
    }
    let places = (PRECISION - 1 - exponent).max(0) as usize;
    let fixed = format!("{value:.places$}");
    let fixed = match fixed.contains('.') {
        true => fixed.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => fixed,
    };
    if fixed == "-0" { "0".into() } else { fixed }
}

/// How a language writes numbers: what stands between thousands, before the fraction, and the fewest
/// digits of the first group.
fn separators(language: &str) -> (&'static str, &'static str, usize) {
    match language {
        "de" | "da" | "nl" | "ro" | "sl" | "sr" | "hr" | "ca" => (".", ",", 1),
        "bg" | "es" | "hu" | "pl" | "pt" | "ru" | "uk" => ("\u{a0}", ",", 2),
        "cs" | "it" | "sv" => ("\u{a0}", ",", 1),
        "fr" => ("\u{202f}", ",", 1),
        _ => (",", ".", 1),
    }
}

/// `formatnum`: the number in the form of the language; what is none stays. `raw` undoes it.
pub(super) fn format_number(language: &str, text: &str, raw: bool, grouped: bool) -> String {
    let (group, point, fewest) = separators(language);
    if raw {
        let plain = text.replace(group, "");
        return plain.replace(point, ".").replace('−', "-");
    }
    let mut out = String::with_capacity(text.len() + 4);
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        out.push_str(&rest[..start]);
        let number = &rest[start..];
        let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
        let (whole, after) = number.split_at(end);
        push_grouped(whole, if grouped { group } else { "" }, fewest, &mut out);
        let fraction = after
            .strip_prefix('.')
            .map_or(0, |after| after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len()));
        rest = after;
        if fraction > 0 {
            out.push_str(point);
            out.push_str(&after[1..=fraction]);
            rest = &after[fraction + 1..];
        }
    }
    out.push_str(rest);
    out
}

fn push_grouped(digits: &str, group: &str, fewest: usize, out: &mut String) {
    let grouped = digits.len() >= 3 + fewest;
    for (index, digit) in digits.chars().enumerate() {
        let left = digits.len() - index;
        if grouped && index > 0 && left.is_multiple_of(3) {
            out.push_str(group);
        }
        out.push(digit);
    }
}

/// `plural`: which of the forms of a word stands with the number, from 0.
pub(super) fn plural_form(language: &str, number: f64) -> usize {
    let whole = number.fract() == 0.0;
    let count = number.abs() as u64;
    let (ten, hundred) = (count % 10, count % 100);
    let slavic = |one: bool| match one {
        true => 0,
        false if (2..=4).contains(&ten) && !(12..=14).contains(&hundred) => 1,
        false => 2,
    };
    match language {
        "fr" | "pt" => usize::from(count > 1),
        "ru" | "uk" | "sr" | "hr" => slavic(ten == 1 && hundred != 11),
        "pl" => slavic(count == 1),
        "cs" => match count {
            1 => 0,
            2..=4 => 1,
            _ => 2,
        },
        "sl" => match hundred {
            1 => 0,
            2 => 1,
            3 | 4 => 2,
            _ => 3,
        },
        "ro" => match count {
            1 => 0,
            0 => 1,
            _ if (1..=19).contains(&hundred) => 1,
            _ => 2,
        },
        _ => usize::from(count != 1 || !whole),
    }
}

/// Roman numerals, from 1 to 9999.
pub(super) fn roman(number: i64) -> Option<String> {
    if !(1..=9999).contains(&number) {
        return None;
    }
    let mut left = number;
    let mut out = String::new();
    for (value, letters) in [
        (1000, "M"),
        (900, "CM"),
        (500, "D"),
        (400, "CD"),
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ] {
        while left >= value {
            out.push_str(letters);
            left -= value;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_form_of_their_language() {
        for (language, number, expected) in [
            ("en", "1234567.891", "1,234,567.891"),
            ("de", "1234567.891", "1.234.567,891"),
            ("fr", "1234", "1\u{202f}234"),
            ("pl", "1234", "1234"),
            ("pl", "12345", "12\u{a0}345"),
            ("sv", "-12345.5", "-12\u{a0}345,5"),
            ("en", "about 5000 or 12", "about 5,000 or 12"),
            ("en", "none", "none"),
        ] {
            assert_eq!(
                format_number(language, number, false, true),
                expected,
                "{language} {number}"
            );
        }
        assert_eq!(format_number("de", "1.234,5", true, true), "1234.5");
        assert_eq!(format_number("de", "1234.5", false, false), "1234,5");
    }

    #[test]
    fn words_have_the_forms_of_their_language() {
        let forms = |language: &str, numbers: &[i32]| -> String {
            numbers.iter().map(|&n| plural_form(language, n.into()).to_string()).collect()
        };
        assert_eq!(forms("en", &[0, 1, 2, 11]), "1011");
        assert_eq!(forms("fr", &[0, 1, 2]), "001");
        assert_eq!(forms("ru", &[1, 2, 5, 11, 12, 21, 22, 111]), "01222012");
        assert_eq!(forms("pl", &[1, 2, 5, 12, 21, 22]), "012221");
        assert_eq!(forms("cs", &[1, 3, 5]), "012");
        assert_eq!(forms("sl", &[1, 2, 3, 5, 101]), "01230");
        assert_eq!(plural_form("en", 1.5), 1);
        assert_eq!(roman(1994).as_deref(), Some("MCMXCIV"));
        assert_eq!(roman(0), None);
    }

    #[test]
    fn text_is_a_number_as_a_whole() {
        assert_eq!(numeric("01"), Some(1.0));
        assert_eq!(numeric(" 1.50 "), Some(1.5));
        assert_eq!(numeric("1e3"), Some(1000.0));
        for text in ["", "a", "1a", "-", ".", "1 2", "inf", "nan"] {
            assert_eq!(numeric(text), None, "{text}");
        }
    }
}
