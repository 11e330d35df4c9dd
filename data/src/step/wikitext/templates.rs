//! The few templates that stand for text of the sentence they are in.

/// What a rendered template is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The first argument.
    First,
    /// The second argument: `{{lang|fr|bonjour}}`.
    Second,
    /// The argument `text`, `quote` or the first one, as a paragraph.
    Quote,
    /// A quantity with its unit.
    Convert,
    /// The first arguments, at most so many, with spaces between: `{{unité|5|km}}`.
    Joined(usize),
    /// Always the same.
    Constant(&'static str),
}

/// Names in lower case. Those of other languages than English are the editions' own copies.
const RENDERED: &[(&str, Kind)] = &[
    ("blockquote", Kind::Quote),
    ("bquote", Kind::Quote),
    ("convert", Kind::Convert),
    ("cquote", Kind::Quote),
    ("cvt", Kind::Convert),
    ("date", Kind::Joined(3)),
    ("emdash", Kind::Constant("—")),
    ("endash", Kind::Constant("–")),
    ("lang", Kind::Second),
    ("langue", Kind::Second),
    ("math", Kind::First),
    ("mdash", Kind::Constant("—")),
    ("mvar", Kind::First),
    ("nbsp", Kind::Constant(" ")),
    ("ndash", Kind::Constant("–")),
    ("nobr", Kind::First),
    ("nobreak", Kind::First),
    ("nombre", Kind::Joined(2)),
    ("nowrap", Kind::First),
    ("quote", Kind::Quote),
    ("snd", Kind::Constant(" – ")),
    ("spaced ndash", Kind::Constant(" – ")),
    ("spaces", Kind::Constant(" ")),
    ("unidad", Kind::Joined(2)),
    ("unité", Kind::Joined(2)),
    ("zitat", Kind::Quote),
];

/// Longest name in [`RENDERED`], in bytes.
const LONGEST_NAME: usize = 12;

/// The text of template `name`, if it is one of the few that are rendered. `body` is what stands
/// between the braces, with its own markup done; `pipes` less `base` are the positions in it of
/// the `|` that separate the name and the arguments.
pub(super) fn render(body: &str, name: &str, pipes: &[usize], base: usize) -> Option<String> {
    const FORMAT: &str = "formatnum:";
    if name.get(..FORMAT.len()).is_some_and(|start| start.eq_ignore_ascii_case(FORMAT)) {
        return Some(name[FORMAT.len()..].trim().to_owned());
    }
    let kind = kind(name)?;
    let arguments = Arguments { body, pipes, base };
    match kind {
        Kind::Constant(text) => Some(text.to_owned()),
        Kind::First => arguments.positional(1).map(str::to_owned),
        Kind::Second => arguments.positional(2).map(str::to_owned),
        Kind::Quote => {
            let named = arguments.named("text").or_else(|| arguments.named("quote"));
            let text = named.or_else(|| arguments.positional(1))?;
            Some(format!("\n{text}\n"))
        }
        Kind::Convert => convert(&arguments),
        Kind::Joined(most) => {
            let all: Vec<&str> =
                (1..=most).map_while(|number| arguments.positional(number)).collect();
            (!all.is_empty()).then(|| all.join(" "))
        }
    }
}

fn kind(name: &str) -> Option<Kind> {
    if name.is_empty() || name.len() > LONGEST_NAME {
        return None;
    }
    let mut lower = [0; LONGEST_NAME];
    for (to, from) in lower.iter_mut().zip(name.bytes()) {
        *to = if from == b'_' { b' ' } else { from.to_ascii_lowercase() };
    }
    let lower = &lower[..name.len()];
    // `lang-fr` and its like hold the text alone.
    if lower.len() <= 8 && lower.starts_with(b"lang-") {
        return Some(Kind::First);
    }
    let found = RENDERED.binary_search_by(|(name, _)| name.as_bytes().cmp(lower)).ok()?;
    Some(RENDERED[found].1)
}

struct Arguments<'a> {
    body: &'a str,
    pipes: &'a [usize],
    base: usize,
}

impl<'a> Arguments<'a> {
    /// Arguments as name and value; the name is empty for those without one.
    fn all(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let (body, base) = (self.body, self.base);
        let starts = self.pipes.iter().map(move |pipe| pipe - base);
        let ends = starts.clone().skip(1).chain([body.len()]);
        starts.zip(ends).map(move |(start, end)| {
            let argument = &body[start + 1..end];
            match argument.split_once('=') {
                Some((name, value)) => (name.trim(), value.trim()),
                None => ("", argument.trim()),
            }
        })
    }

    fn named(&self, wanted: &str) -> Option<&'a str> {
        let mut all = self.all().filter(|(name, value)| *name == wanted && !value.is_empty());
        all.next().map(|(_, value)| value)
    }

    /// The argument of this number, from 1; None when it is missing or empty.
    fn positional(&self, number: usize) -> Option<&'a str> {
        let mut unnamed = self.all().filter(|(name, _)| name.is_empty());
        let found = unnamed.nth(number - 1).map(|(_, value)| value);
        found.filter(|value| !value.is_empty()).or_else(|| self.named(&number.to_string()))
    }
}

/// `{{convert|5|km|mi}}`: the quantity in its own unit. Ranges and sums as their authors gave
/// them: `{{convert|5|to|10|km}}`, `{{convert|6|ft|2|in}}`.
fn convert(arguments: &Arguments<'_>) -> Option<String> {
    let mut text = arguments.positional(1)?.to_owned();
    // A quantity has at most a few numbers; more is no quantity.
    for number in [2, 4, 6] {
        let word = arguments.positional(number)?;
        let next = arguments.positional(number + 1).filter(|next| is_number(next));
        let joined = match word {
            "-" | "–" | "to(-)" => "–",
            "to" | "and" | "or" | "by" => &format!(" {word} "),
            "x" | "×" | "*" => " × ",
            "+/-" | "±" | "+-" => " ± ",
            unit => {
                text.push(' ');
                push_unit(unit, &mut text);
                // Feet and inches; but a number with no unit after it is a precision.
                let follows = arguments.positional(number + 2).is_some_and(|u| !is_number(u));
                match next {
                    Some(next) if follows => {
                        text.push(' ');
                        text.push_str(next);
                        continue;
                    }
                    _ => return Some(text),
                }
            }
        };
        text.push_str(joined);
        text.push_str(next?);
    }
    Some(text)
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || "-−+.".contains(c))
        && text.chars().all(|c| c.is_ascii_digit() || "-−+.,/".contains(c))
}

/// Appends the symbol of a unit. Codes begin with a power of ten where the number is in
/// thousands, millions or billions: `e6acre`.
fn push_unit(code: &str, text: &mut String) {
    let mut unit = code;
    for (power, word) in [("e3", "thousand "), ("e6", "million "), ("e9", "billion ")] {
        if let Some(rest) = code.strip_prefix(power) {
            text.push_str(word);
            unit = rest;
        }
    }
    text.push_str(match unit {
        "C" | "degC" => "°C",
        "F" | "degF" => "°F",
        "sqmi" | "mi2" => "sq mi",
        "sqft" | "ft2" => "sq ft",
        "cuft" | "ft3" => "cu ft",
        "km2" | "sqkm" => "km²",
        "m2" | "sqm" => "m²",
        "m3" => "m³",
        "km3" => "km³",
        "kph" => "km/h",
        "USgal" => "US gallons",
        "PD/sqmi" | "/sqmi" => "per square mile",
        "PD/km2" | "/km2" => "per square kilometre",
        other => other,
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rendered(body: &str) -> Option<String> {
        let pipes: Vec<_> = body.match_indices('|').map(|(at, _)| at).collect();
        render(body, body.split('|').next().unwrap().trim(), &pipes, 0)
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(RENDERED.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(RENDERED.iter().map(|entry| entry.0.len()).max(), Some(LONGEST_NAME));
    }

    #[test]
    fn the_few_templates_are_text() {
        for (body, text) in [
            ("lang|fr|bonjour", Some("bonjour")),
            ("Lang |fr|2=bon jour", Some("bon jour")),
            ("lang-de|''Wort''", Some("''Wort''")),
            ("nowrap|a b", Some("a b")),
            ("Quote|text=Be brave.|author=X", Some("\nBe brave.\n")),
            ("cquote|Be brave.", Some("\nBe brave.\n")),
            ("ndash", Some("–")),
            ("convert|5|km|mi", Some("5 km")),
            ("convert|5|to|10|km|abbr=on", Some("5 to 10 km")),
            ("convert|5|-|10|C", Some("5–10 °C")),
            ("convert|6|ft|2|in", Some("6 ft 2 in")),
            ("convert|100|sqmi|km2|0", Some("100 sq mi")),
            ("convert|2|x|3|x|4|m", Some("2 × 3 × 4 m")),
            ("convert|87|e6acre|km2", Some("87 million acre")),
            ("Unité|5,2|km|2", Some("5,2 km")),
            ("date|14|juillet|1789|en France", Some("14 juillet 1789")),
            ("formatnum: 2381741|R", Some("2381741")),
            ("convert|5|ft|0", Some("5 ft")),
            ("convert|5", None),
            ("lang|fr", None),
            ("Infobox|name=x", None),
            ("", None),
        ] {
            assert_eq!(rendered(body).as_deref(), text, "{body}");
        }
    }
}
