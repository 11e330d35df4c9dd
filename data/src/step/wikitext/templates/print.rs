//! What a rule prints: text with places for arguments.

use super::script;
use crate::text::script_marks::Script;

/// Arguments of a template that are printed one after the other: each is looked for from the first on.
const MOST_ARGUMENTS: usize = 999;
/// Deepest nesting of optional parts.
const MOST_DEPTH: usize = 8;

/// What a rule prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::step::wikitext) struct Format(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// Printed if all in it is there.
    Optional(Vec<Piece>),
    /// The first of these arguments that is there.
    Argument(Vec<String>),
    /// The unnamed arguments from the first number to the second, with a text between them.
    Join(usize, usize, String),
    /// One text if there is an argument of this name, else the other.
    Choice(String, String, String),
    /// The name of the template as it is written.
    Name,
    /// What a `*` in its rule stands for.
    Rest,
    Function(Function, Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Month,
    Dots,
    Age,
    Fraction,
    Chemistry,
    Convert,
    Super,
    Sub,
    Ordinal,
}

/// What a template is printed with.
pub(super) struct Context<'a> {
    /// Its name as it is written.
    pub name: &'a str,
    /// What a `*` in the name of its rule stands for.
    pub rest: &'a str,
    /// Names of the months.
    pub months: &'a [String],
    /// The text before it.
    pub before: &'a str,
}

impl Format {
    /// Reads what a rule prints.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let pieces = parse_pieces(&mut rest, 0)?;
        match rest.is_empty() {
            true => Ok(Self(pieces)),
            false => Err("a `]` without its `[`".into()),
        }
    }

    /// Whether it prints nothing whatever the arguments.
    pub fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    /// The text for these arguments; none when one that it needs is not there.
    pub(super) fn print(&self, arguments: &Arguments<'_>, context: &Context<'_>) -> Option<String> {
        let mut out = String::new();
        print_pieces(&self.0, arguments, context, &mut out)?;
        (!out.is_empty()).then_some(out)
    }
}

fn parse_pieces(rest: &mut &str, depth: usize) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    while let Some(c) = rest.chars().next() {
        if c == ']' {
            break;
        }
        let after = &rest[c.len_utf8()..];
        match c {
            '[' if depth < MOST_DEPTH => {
                pieces.extend((!text.is_empty()).then(|| Piece::Text(std::mem::take(&mut text))));
                *rest = after;
                let inside = parse_pieces(rest, depth + 1)?;
                *rest = rest.strip_prefix(']').ok_or("a `[` without its `]`")?;
                pieces.push(Piece::Optional(inside));
            }
            '{' => {
                pieces.extend((!text.is_empty()).then(|| Piece::Text(std::mem::take(&mut text))));
                let end = after.find('}').ok_or("a `{` without its `}`")?;
                pieces.push(parse_place(&after[..end])?);
                *rest = &after[end + 1..];
            }
            c => {
                text.push(c);
                *rest = after;
            }
        }
    }
    pieces.extend((!text.is_empty()).then_some(Piece::Text(text)));
    Ok(pieces)
}

fn parse_place(place: &str) -> Result<Piece, String> {
    match place {
        "@" => return Ok(Piece::Name),
        "*" => return Ok(Piece::Rest),
        "" => return Err("`{}` names no argument".into()),
        _ => {}
    }
    if let Some(choice) = place.strip_prefix('?') {
        let mut parts = choice.splitn(3, ':');
        return match (parts.next(), parts.next(), parts.next()) {
            (Some(name), Some(then), Some(otherwise)) => {
                Ok(Piece::Choice(name.into(), then.into(), otherwise.into()))
            }
            _ => Err(format!("`{{{place}}}`: expected a name and two texts, {{?name:text:text}}")),
        };
    }
    if let Some((range, between)) = place.split_once('*') {
        let (from, to) = match range.split_once('-') {
            Some((from, to)) => (from, to.parse()),
            None => (range, Ok(MOST_ARGUMENTS)),
        };
        return match (from.parse(), to) {
            (Ok(from), Ok(to)) if from > 0 => Ok(Piece::Join(from, to, between.into())),
            _ => Err(format!("`{{{place}}}`: expected a number before the `*`")),
        };
    }
    let mut words = place.split(' ');
    let function = match words.next().unwrap_or_default() {
        "month" => Function::Month,
        "dots" => Function::Dots,
        "age" => Function::Age,
        "frac" => Function::Fraction,
        "chem" => Function::Chemistry,
        "convert" => Function::Convert,
        "sup" => Function::Super,
        "sub" => Function::Sub,
        "ordinal" => Function::Ordinal,
        _ => return Ok(Piece::Argument(place.split('|').map(str::to_owned).collect())),
    };
    let arguments: Vec<String> = words.map(str::to_owned).collect();
    let needs = !matches!(
        function,
        Function::Age | Function::Fraction | Function::Chemistry | Function::Convert
    );
    match (needs, arguments.len()) {
        (true, 1) | (false, 0) => Ok(Piece::Function(function, arguments)),
        // `month` and its like may also be names of arguments.
        (true, 0) => Ok(Piece::Argument(vec![place.to_owned()])),
        _ => Err(format!("`{{{place}}}` has too many arguments")),
    }
}

/// Appends what `pieces` print; none, with nothing certain in `out`, when an argument is missing.
fn print_pieces(
    pieces: &[Piece],
    arguments: &Arguments<'_>,
    context: &Context<'_>,
    out: &mut String,
) -> Option<()> {
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Optional(inside) => {
                let length = out.len();
                if print_pieces(inside, arguments, context, out).is_none() {
                    out.truncate(length);
                }
            }
            Piece::Argument(names) => {
                out.push_str(names.iter().find_map(|name| arguments.get(name))?);
            }
            Piece::Join(from, to, between) => {
                let mut found = false;
                for value in
                    (*from..=(*to).min(MOST_ARGUMENTS)).map_while(|number| arguments.given(number))
                {
                    if value.is_empty() {
                        continue;
                    }
                    if found {
                        out.push_str(between);
                    }
                    out.push_str(value);
                    found = true;
                }
                found.then_some(())?;
            }
            Piece::Choice(name, then, otherwise) => {
                out.push_str(if arguments.get(name).is_some() { then } else { otherwise });
            }
            Piece::Name => out.push_str(context.name),
            Piece::Rest => out.push_str(context.rest),
            Piece::Function(function, names) => {
                out.push_str(&call(*function, names, arguments, context, out)?);
            }
        }
    }
    Some(())
}

fn call(
    function: Function,
    names: &[String],
    arguments: &Arguments<'_>,
    context: &Context<'_>,
    out: &str,
) -> Option<String> {
    let value = || names.first().and_then(|name| arguments.get(name));
    let before = if out.is_empty() { context.before } else { out };
    match function {
        Function::Month => Some(month(value()?, context.months)),
        Function::Dots => {
            let date = value()?;
            let mut parts = date.splitn(3, '.').map(str::trim);
            let (day, number, year) = (parts.next()?, parts.next()?, parts.next()?);
            Some(format!(
                "{} {} {year}",
                day.trim_start_matches('0'),
                month(number, context.months)
            ))
        }
        Function::Age => age(arguments).map(|years| years.to_string()),
        Function::Fraction => {
            let parts: Vec<&str> =
                (1..=3).map_while(|number| arguments.positional(number)).collect();
            match parts[..] {
                [bottom] => Some(format!("1/{bottom}")),
                [top, bottom] => Some(format!("{top}/{bottom}")),
                [whole, top, bottom] => Some(format!("{whole} {top}/{bottom}")),
                _ => None,
            }
        }
        Function::Chemistry => {
            let mut formula = String::new();
            for part in (1..=MOST_ARGUMENTS).map_while(|number| arguments.given(number)) {
                // A charge behind a number of atoms.
                let charge = part.ends_with(['+', '-', '−', '–']);
                if charge && formula.ends_with(|c: char| c.is_ascii_digit()) {
                    formula.push('^');
                }
                formula.push_str(part);
            }
            (!formula.is_empty()).then_some(formula)
        }
        Function::Convert => convert(arguments),
        Function::Super => Some(script(Script::Super, before, value()?)),
        Function::Sub => Some(script(Script::Sub, before, value()?)),
        Function::Ordinal => {
            let number = value()?;
            let ending = match number.as_bytes() {
                [.., b'1', b'1' | b'2' | b'3'] => "th",
                [.., b'1'] => "st",
                [.., b'2'] => "nd",
                [.., b'3'] => "rd",
                _ => "th",
            };
            Some(format!("{number}{ending}"))
        }
    }
}

/// The name of a month given by number; what is none stays.
fn month(value: &str, months: &[String]) -> String {
    let number = value.parse::<usize>().ok().and_then(|number| months.get(number.checked_sub(1)?));
    number.cloned().unwrap_or_else(|| value.to_owned())
}

/// Whole years from the date in the arguments 4 to 6 to that in 1 to 3.
fn age(arguments: &Arguments<'_>) -> Option<i64> {
    let number = |at: usize| arguments.positional(at)?.parse::<i64>().ok();
    let (to, from) = ([number(1)?, number(2)?, number(3)?], [number(4)?, number(5)?, number(6)?]);
    let years = to[0].checked_sub(from[0])? - i64::from(to[1..] < from[1..]);
    (0..=150).contains(&years).then_some(years)
}

/// The arguments of a template.
pub(in crate::step::wikitext) struct Arguments<'a> {
    /// What stands between the braces.
    pub body: &'a str,
    /// Positions of the `|`, `base` added.
    pub pipes: &'a [usize],
    /// What is to be taken off them.
    pub base: usize,
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

    /// An argument by its name or number; none when it is missing or empty.
    fn get(&self, name: &str) -> Option<&'a str> {
        match name.parse() {
            Ok(number) => self.positional(number),
            Err(_) => self.named(name),
        }
    }

    fn named(&self, wanted: &str) -> Option<&'a str> {
        let mut all = self.all().filter(|(name, value)| *name == wanted && !value.is_empty());
        all.next().map(|(_, value)| value)
    }

    /// The argument of this number, from 1, even when it is empty.
    fn given(&self, number: usize) -> Option<&'a str> {
        let mut unnamed = self.all().filter(|(name, _)| name.is_empty());
        let found = unnamed.nth(number - 1).map(|(_, value)| value);
        found.or_else(|| self.named(&number.to_string()))
    }

    /// The argument of this number; none when it is missing or empty.
    fn positional(&self, number: usize) -> Option<&'a str> {
        let number = Some(number).filter(|&number| number > 0)?;
        self.given(number)
            .filter(|value| !value.is_empty())
            .or_else(|| self.named(&number.to_string()))
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

    fn printed(format: &str, body: &str) -> Option<String> {
        let pipes: Vec<_> = body.match_indices('|').map(|(at, _)| at).collect();
        let months: Vec<String> = (1..=12).map(|number| format!("M{number}")).collect();
        let name = body.split('|').next().unwrap();
        let context = Context { name, rest: "rest", months: &months, before: "" };
        Format::parse(format).unwrap().print(&Arguments { body, pipes: &pipes, base: 0 }, &context)
    }

    #[test]
    fn places_are_filled() {
        for (format, body, expected) in [
            ("a {1} b", "x|1", Some("a 1 b")),
            ("{1} ({2})", "x|1", None),
            ("{1}[ ({2}[, {3}])]", "x|1", Some("1")),
            ("{1}[ ({2}[, {3}])]", "x|1|2|3", Some("1 (2, 3)")),
            ("{text|2|1}", "x|1|text= t ", Some("t")),
            ("{1*, }", "x|a||c|n=1", Some("a, c")),
            ("{2-3*+}", "x|a|b|c|d", Some("b+c")),
            ("{?lc:as:As}", "x|lc=y", Some("as")),
            ("{?lc:as:As}", "x", Some("As")),
            ("{@}/{*}", "Name", Some("Name/rest")),
            ("{month 1}", "x|2", Some("M2")),
            ("{month 1}", "x|May", Some("May")),
            ("{month}", "x|month=5", Some("5")),
            ("{dots 1}", "x|03.05.1998", Some("3 M5 1998")),
            ("{age}", "x|2000|1|2|1950|1|2", Some("50")),
            ("{age}", "x|2000|1|2", None),
        ] {
            assert_eq!(printed(format, body).as_deref(), expected, "{format} {body}");
        }
        for wrong in ["{1", "[{1}", "{1}]", "{}", "{?a:b}", "{x*y}", "{month 1 2}"] {
            assert!(Format::parse(wrong).is_err(), "{wrong}");
        }
    }
}
