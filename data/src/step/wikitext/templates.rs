//! Templates that stand for words of the sentence they are in.
//!
//! Files of rules, one for all languages and one for each, say what a template prints; users may give
//! files of their own. What no rule knows, and what is still there after the templates of the dump were
//! expanded, is taken out, and counted by name when it stood inside a line.

mod print;
mod rules;

pub(super) use print::Arguments;
pub(super) use rules::{RuleSet, Rules};

use crate::text::script_marks::{Script, mark_before};

/// What becomes of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rendered {
    /// This stands in its place.
    Text(String),
    /// It is known to be no words.
    Nothing,
    /// Nothing knows it, or its arguments are not as its rule wants them.
    Unknown,
}

/// What template `name` prints. `body` is what stands between the braces, with its own markup done;
/// `pipes` less `base` are the positions in it of the `|` that separate the name and the arguments;
/// `before` is the text so far.
pub(super) fn render(
    rules: &Rules,
    body: &str,
    name: &str,
    pipes: &[usize],
    base: usize,
    before: &str,
) -> Rendered {
    if let Some(text) = parser_function(name) {
        return text;
    }
    let Some((rule, rest)) = rules.find(name) else { return Rendered::Unknown };
    if rule.is_nothing() {
        return Rendered::Nothing;
    }
    let arguments = Arguments { body, pipes, base };
    let context = print::Context { name, rest, months: rules.months(), before };
    match rule.print(&arguments, &context) {
        Some(text) => Rendered::Text(text),
        None => Rendered::Unknown,
    }
}

/// Functions of the parser that print their first argument, behind a colon.
fn parser_function(name: &str) -> Option<Rendered> {
    let (function, argument) = name.split_once(':')?;
    let argument = argument.trim();
    let text = match function.to_ascii_lowercase().as_str() {
        "formatnum" | "#formatdate" | "#dateformat" => argument.to_owned(),
        "lc" => argument.to_lowercase(),
        "uc" => argument.to_uppercase(),
        "lcfirst" => with_first(argument, |first| first.to_lowercase().collect()),
        "ucfirst" => with_first(argument, |first| first.to_uppercase().collect()),
        _ => return None,
    };
    Some(Rendered::Text(text))
}

/// `text` with its first character as `change` has it.
pub(super) fn with_first(text: &str, change: impl FnOnce(char) -> String) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => change(first) + characters.as_str(),
        None => String::new(),
    }
}

/// `value` behind `before` as a superscript or subscript.
fn script(script: Script, before: &str, value: &str) -> String {
    format!("{}{value}", mark_before(script, before, value))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn rendered_in(language: &str, body: &str) -> Option<String> {
        let pipes: Vec<_> = body.match_indices('|').map(|(at, _)| at).collect();
        let name = body.split('|').next().unwrap().trim();
        match render(Rules::of(Some(language)), body, name, &pipes, 0, "") {
            Rendered::Text(text) => Some(text),
            Rendered::Nothing => Some(String::new()),
            Rendered::Unknown => None,
        }
    }

    fn check(language: &str, cases: &[(&str, Option<&str>)]) {
        for (body, text) in cases {
            assert_eq!(rendered_in(language, body).as_deref(), *text, "{language} {body}");
        }
    }

    #[test]
    fn templates_of_all_languages_are_text() {
        let cases = [
            ("lang|fr|bonjour", Some("bonjour")),
            ("Lang |fr|2=bon jour", Some("bon jour")),
            ("lang-de|''Wort''", Some("''Wort''")),
            ("langx|el|Αθήνα", Some("Αθήνα")),
            ("nowrap|a b", Some("a b")),
            ("Quote|text=Be brave.|author=X", Some("\nBe brave.\n")),
            ("cquote|Be brave.", Some("\nBe brave.\n")),
            ("ndash", Some("–")),
            ("mdashb", Some("—")),
            ("convert|5|km|mi", Some("5 km")),
            ("convert|5|to|10|km|abbr=on", Some("5 to 10 km")),
            ("convert|5|-|10|C", Some("5–10 °C")),
            ("convert|6|ft|2|in", Some("6 ft 2 in")),
            ("convert|100|sqmi|km2|0", Some("100 sq mi")),
            ("convert|2|x|3|x|4|m", Some("2 × 3 × 4 m")),
            ("convert|87|e6acre|km2", Some("87 million acre")),
            ("formatnum: 2381741|R", Some("2381741")),
            ("lc:ABC", Some("abc")),
            ("convert|5|ft|0", Some("5 ft")),
            ("convert|5", None),
            ("lang|fr", None),
            ("Infobox|name=x", None),
            ("", None),
            ("citation needed|date=May 2010", Some("")),
            ("sfn|Smith|1990|p=4", Some("")),
            ("hlist|a|b|c", Some("a, b, c")),
            ("chem|C|n|H|2n", Some("CnH2n")),
            ("chem|SO|4|2-", Some("SO4^2-")),
            ("chem2|H2O", Some("H2O")),
            ("frac|2|1|2", Some("2 1/2")),
            ("frac|3", Some("1/3")),
            ("val|879.6|0.8|u=s", Some("879.6 ± 0.8 s")),
            ("key press|Ctrl|C", Some("Ctrl+C")),
            ("ill|Max Muster|de", Some("Max Muster")),
            ("US$|5 million", Some("US$5 million")),
        ];
        check("en", &cases);
        check("pl", &cases[5..10]);
    }

    #[test]
    fn dates_names_and_quotes_are_those_of_the_language() {
        check(
            "en",
            &[
                ("nihongo|Blue League|青リーグ|lead=yes|extra=x", Some("Blue League (青リーグ)")),
                ("As of|2010|3", Some("As of March 2010")),
                ("as of|2012|lc=y", Some("as of 2012")),
                ("birth date|1950|5|3|df=y", Some("May 3, 1950")),
                ("death date and age|2000|1|2|1950|5|3", Some("January 2, 2000 (aged 49)")),
                ("HMS|Ark Royal|R07|6", Some("HMS Ark Royal")),
                ("ship|USS|Enterprise|CV-6", Some("USS Enterprise")),
                ("ship||Bismarck", Some("Bismarck")),
                ("circa|1900", Some("c. 1900")),
                ("ordinal|22", Some("22nd")),
                ("interlanguage link|Anna Beispiel|fr|Anna B", Some("Anna Beispiel")),
                ("flag|France", Some("France")),
                ("USA", Some("United States")),
            ],
        );
        check(
            "fr",
            &[
                ("XXe siècle", Some("XXe siècle")),
                ("s|XIX|e", Some("XIXe siècle")),
                ("date de naissance|11|novembre|1866", Some("11 novembre 1866")),
                ("date|21|septembre|1936|en France", Some("21 septembre 1936")),
                ("Unité|5,2|km|2", Some("5,2 km^2")),
                ("1er", Some("1er")),
                ("citation|le mot", Some("« le mot »")),
            ],
        );
        check(
            "de",
            &[
                ("Argentinien", Some("Argentinien")),
                ("FRA", Some("Frankreich")),
                ("enS|tower", Some("tower")),
                ("flag|France", Some("France")),
            ],
        );
        check(
            "ru",
            &[
                ("СС3|3.5.1998", Some("3 мая 1998")),
                ("s|XV веке", Some("XV веке")),
                ("nobr|25 м", Some("25 м")),
                ("num|1200", Some("1200")),
                ("lang-en|tower", Some("tower")),
            ],
        );
        check(
            "es",
            &[("fecha|3|5|1950", Some("3 de mayo de 1950")), ("siglo|XV", Some("siglo XV"))],
        );
        check("it", &[("a.C.", Some("a.C.")), ("data|1|2|1900", Some("1 febbraio 1900"))]);
    }

    #[test]
    fn scripts_know_what_stands_before() {
        let render_behind = |before: &str, body: &str| {
            let pipes: Vec<_> = body.match_indices('|').map(|(at, _)| at).collect();
            let name = body.split('|').next().unwrap();
            render(Rules::of(Some("en")), body, name, &pipes, 0, before)
        };
        assert_eq!(render_behind("10", "sup|23"), Rendered::Text("^23".into()));
        assert_eq!(render_behind("H", "sub|2"), Rendered::Text("2".into()));
    }
}
