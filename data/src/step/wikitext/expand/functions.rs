//! Parser functions.

use super::dates::{self, DateProblem, Moment, Names};
use super::magic_words::{UrlForm, of_page, url_encode};
use super::numbers::{format_number, from_php, numeric, plural_form};
use super::parse::Part;
use super::{Expander, Failure, Frame, expression};
use crate::step::wikitext::templates::{Rules, with_first};

/// Longest text that `padleft` and `padright` make, in characters.
const MOST_PADDED: usize = 500;
/// Parts of a title that are looked at.
const MOST_TITLE_PARTS: usize = 25;
/// How an error begins, by which `#iferror` knows it.
pub(super) const ERROR: &str = "<strong class=\"error\">";

/// A parser function that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    If,
    IfEqual,
    IfError,
    IfExpression,
    IfExists,
    Switch,
    Expression,
    Time,
    TitleParts,
    Tag,
    FirstArgument,
    FormatNumber,
    Lower,
    Upper,
    LowerFirst,
    UpperFirst,
    PadLeft,
    PadRight,
    Plural,
    Grammar,
    UrlEncode,
    AnchorEncode,
    Nothing,
    OfPage(&'static str),
}

impl Function {
    /// The function of this name, which stands before a colon.
    pub fn of(name: &str) -> Option<Self> {
        let name = name.trim();
        const OF_PAGE: [&str; 12] = [
            "PAGENAME",
            "FULLPAGENAME",
            "BASEPAGENAME",
            "SUBPAGENAME",
            "ROOTPAGENAME",
            "PAGENAMEE",
            "FULLPAGENAMEE",
            "BASEPAGENAMEE",
            "NAMESPACE",
            "NAMESPACENUMBER",
            "TALKPAGENAME",
            "ARTICLEPAGENAME",
        ];
        if let Some(word) = OF_PAGE.iter().find(|word| **word == name) {
            return Some(Self::OfPage(word));
        }
        Some(match name.to_lowercase().as_str() {
            "#if" | "#wenn" | "#si" | "#если" => Self::If,
            "#ifeq" | "#wenngleich" | "#siigual" => Self::IfEqual,
            "#iferror" | "#wennfehler" | "#sierror" => Self::IfError,
            "#ifexpr" | "#wennausdruck" | "#siexpr" => Self::IfExpression,
            "#ifexist" | "#wennexist" | "#siexiste" => Self::IfExists,
            "#switch" | "#wechsle" | "#según" => Self::Switch,
            "#expr" | "#ausdruck" => Self::Expression,
            "#time" | "#timel" | "#zeit" => Self::Time,
            "#titleparts" => Self::TitleParts,
            "#tag" => Self::Tag,
            "#formatdate" | "#dateformat" => Self::FirstArgument,
            "formatnum" | "zahlenformat" => Self::FormatNumber,
            "lc" => Self::Lower,
            "uc" => Self::Upper,
            "lcfirst" => Self::LowerFirst,
            "ucfirst" => Self::UpperFirst,
            "padleft" => Self::PadLeft,
            "padright" => Self::PadRight,
            "plural" => Self::Plural,
            "grammar" => Self::Grammar,
            "urlencode" => Self::UrlEncode,
            "anchorencode" => Self::AnchorEncode,
            "defaultsort"
            | "displaytitle"
            | "sortierung"
            | "seitentitel"
            | "#related"
            | "#coordinates"
            | "defaultsortkey"
            | "defaultcategorysort" => Self::Nothing,
            _ => return None,
        })
    }
}

impl Expander<'_> {
    /// Evaluates a function: `first` is what stands behind its colon, `parts` what is behind each `|`.
    /// Only the branch that is taken is evaluated.
    pub(super) fn function(
        &mut self,
        function: Function,
        first: &str,
        parts: &[Part],
        frame: Frame<'_>,
        out: &mut String,
    ) -> Result<(), Failure> {
        let first = first.trim();
        let language = self.environment.language;
        let value = match function {
            Function::If => return self.branch(parts, usize::from(first.is_empty()), frame, out),
            Function::IfEqual => {
                let second = self.part(parts, 0, frame)?;
                let equal = is_equal(first, second.trim());
                return self.branch(parts, if equal { 1 } else { 2 }, frame, out);
            }
            Function::IfError => {
                let error = is_error(first);
                return match (error, parts.len()) {
                    (true, _) => self.branch(parts, 0, frame, out),
                    (false, 0 | 1) => self.push(first, out),
                    (false, _) => self.branch(parts, 1, frame, out),
                };
            }
            Function::IfExpression => match expression::value(first) {
                Ok(value) => {
                    let holds = value.is_some_and(|value| value != 0.0);
                    return self.branch(parts, usize::from(!holds), frame, out);
                }
                Err(problem) => error(&format!("Expression error: {problem}")),
            },
            Function::IfExists => {
                return self.branch(parts, usize::from(!self.exists(first)), frame, out);
            }
            Function::Switch => return self.switch(first, parts, frame, out),
            Function::Expression => expression::evaluate(first)
                .unwrap_or_else(|problem| error(&format!("Expression error: {problem}"))),
            Function::Time => {
                let date = self.part(parts, 0, frame)?;
                let other = self.part(parts, 1, frame)?;
                self.time(first, &date, other.trim())?
            }
            Function::TitleParts => {
                let count = self.part(parts, 0, frame)?;
                let offset = self.part(parts, 1, frame)?;
                title_parts(first, from_integer(&count), from_integer(&offset))
            }
            Function::Tag => {
                let content = self.part(parts, 0, frame)?;
                let mut tag = format!("<{first}");
                for index in 1..parts.len() {
                    tag.push(' ');
                    tag += &self.part(parts, index, frame)?;
                }
                format!("{tag}>{content}</{first}>")
            }
            Function::FirstArgument | Function::Grammar => match (function, parts.first()) {
                (Function::Grammar, Some(_)) => self.part(parts, 0, frame)?,
                _ => first.to_owned(),
            },
            Function::FormatNumber => {
                let form = self.part(parts, 0, frame)?.trim().to_uppercase();
                format_number(language, first, form == "R", form != "NOSEP")
            }
            Function::Lower => first.to_lowercase(),
            Function::Upper => first.to_uppercase(),
            Function::LowerFirst => with_first(first, |c| c.to_lowercase().collect()),
            Function::UpperFirst => with_first(first, |c| c.to_uppercase().collect()),
            Function::PadLeft | Function::PadRight => {
                let length = self.part(parts, 0, frame)?;
                let padding = match parts.get(1) {
                    Some(_) => self.part(parts, 1, frame)?.trim().to_owned(),
                    None => "0".to_owned(),
                };
                let padding = padding_of(first, from_integer(&length), &padding);
                match function {
                    Function::PadLeft => padding + first,
                    _ => first.to_owned() + &padding,
                }
            }
            Function::Plural => return self.plural(first, parts, frame, out),
            Function::UrlEncode => {
                let form = match self.part(parts, 0, frame)?.trim() {
                    "PATH" => UrlForm::Path,
                    "WIKI" => UrlForm::Page,
                    _ => UrlForm::Query,
                };
                url_encode(first, form)
            }
            Function::AnchorEncode => first.replace(' ', "_"),
            Function::Nothing => String::new(),
            Function::OfPage(word) => of_page(word, first).unwrap_or_default(),
        };
        self.push(&value, out)
    }

    /// The text of a part, with its name; empty when there is none. It decides something.
    fn part(&mut self, parts: &[Part], index: usize, frame: Frame<'_>) -> Result<String, Failure> {
        let Some(part) = parts.get(index) else { return Ok(String::new()) };
        let mut text = String::new();
        if let Some(name) = &part.name {
            text = self.known(name, frame)?;
            text.push('=');
        }
        text += &self.known(&part.value, frame)?;
        Ok(text)
    }

    /// Writes a part without the white space around it.
    fn branch(
        &mut self,
        parts: &[Part],
        index: usize,
        frame: Frame<'_>,
        out: &mut String,
    ) -> Result<(), Failure> {
        let Some(part) = parts.get(index) else { return Ok(()) };
        let mut text = String::new();
        if let Some(name) = &part.name {
            self.nodes(name, frame, &mut text)?;
            text.push('=');
        }
        self.nodes(&part.value, frame, &mut text)?;
        self.push(text.trim(), out)
    }

    fn switch(
        &mut self,
        value: &str,
        parts: &[Part],
        frame: Frame<'_>,
        out: &mut String,
    ) -> Result<(), Failure> {
        let mut found = false;
        let mut default: Option<&Part> = None;
        let mut falls_to_default = false;
        for (index, part) in parts.iter().enumerate() {
            let Some(name) = &part.name else {
                // A case without a text has that of the next; the last is the default.
                let case = self.known(&part.value, frame)?;
                let last = index + 1 == parts.len();
                if last && case.trim() != "#default" {
                    return self.push(case.trim(), out);
                }
                found |= is_equal(value, case.trim());
                falls_to_default |= case.trim() == "#default";
                continue;
            };
            let case = self.known(name, frame)?;
            let case = case.trim();
            if found || is_equal(value, case) {
                return self.trimmed(part, frame, out);
            }
            if case == "#default" || falls_to_default {
                default = Some(part);
                falls_to_default = false;
            }
        }
        match default {
            Some(part) => self.trimmed(part, frame, out),
            None => Ok(()),
        }
    }

    fn trimmed(&mut self, part: &Part, frame: Frame<'_>, out: &mut String) -> Result<(), Failure> {
        let text = self.text_of(&part.value, frame)?;
        self.push(text.trim(), out)
    }

    fn plural(
        &mut self,
        number: &str,
        parts: &[Part],
        frame: Frame<'_>,
        out: &mut String,
    ) -> Result<(), Failure> {
        let language = self.environment.language;
        let count = from_php(&format_number(language, number, true, true));
        let mut forms = Vec::new();
        for part in parts {
            match &part.name {
                // A form for one number alone: `12=a dozen`.
                Some(name) if numeric(self.known(name, frame)?.trim()) == Some(count) => {
                    return self.trimmed(part, frame, out);
                }
                Some(name) if numeric(self.known(name, frame)?.trim()).is_some() => {}
                _ => forms.push(part),
            }
        }
        let form = plural_form(language, count).min(forms.len().saturating_sub(1));
        match forms.get(form) {
            Some(part) => self.trimmed(part, frame, out),
            None => Ok(()),
        }
    }

    /// Whether a page exists, as far as is known here: this one, and templates.
    fn exists(&self, title: &str) -> bool {
        let environment = &self.environment;
        if title.is_empty() {
            return false;
        }
        let is_template = title.contains(':')
            && environment
                .definitions
                .is_some_and(|known| known.contains_page(environment.language, title));
        title == environment.title || is_template
    }

    fn time(&mut self, pattern: &str, date: &str, language: &str) -> Result<String, Failure> {
        let environment = &self.environment;
        let now = environment.stamp.and_then(Moment::of_stamp);
        let moment = match dates::parse(date, now) {
            Ok(moment) => moment,
            Err(DateProblem::Invalid) => return Ok(error("Error: Invalid time.")),
            Err(DateProblem::Unknown) => return Err(Failure::Unknown),
        };
        let own = language.is_empty() || language == environment.language;
        let rules = if own { environment.rules } else { Rules::of(Some(language)) };
        let english = language == "en" || own && matches!(environment.language, "en" | "");
        let names = Names { months: rules.months(), english };
        dates::format(pattern, moment, &names).map_err(|_| Failure::Unknown)
    }
}

/// Numbers by their value, all else by its characters.
fn is_equal(a: &str, b: &str) -> bool {
    a == b || matches!((numeric(a), numeric(b)), (Some(a), Some(b)) if a == b)
}

fn error(message: &str) -> String {
    format!("{ERROR}{message}</strong>")
}

/// Whether a text has an element of class `error`, as parser functions write it.
fn is_error(text: &str) -> bool {
    text.split('<').skip(1).any(|tag| {
        let tag = tag.split('>').next().unwrap_or_default();
        let element = ["strong", "span", "p", "div"].iter().any(|name| tag.starts_with(name));
        let class = tag.split_once("class=").map_or("", |(_, class)| class.trim_start_matches('"'));
        element && class.split(['"', ' ']).any(|name| name == "error")
    })
}

fn from_integer(text: &str) -> i64 {
    numeric(text.trim()).map_or(0, |number| number as i64)
}

/// Parts of a title between slashes: `count` of them (0: all; negative: so many less) from `offset` on
/// (from 1; negative: from the end).
fn title_parts(title: &str, count: i64, offset: i64) -> String {
    let title = with_first(title.replace('_', " ").trim(), |c| c.to_uppercase().collect());
    let parts: Vec<&str> = title.splitn(MOST_TITLE_PARTS, '/').collect();
    let length = parts.len() as i64;
    let start = match offset {
        1.. => offset - 1,
        0 => 0,
        _ => (length + offset).max(0),
    };
    let end = match count {
        0 => length,
        1.. => start.saturating_add(count).min(length),
        _ => length + count,
    };
    match parts.get(start.min(length) as usize..end.max(0) as usize) {
        Some(parts) => parts.join("/"),
        None => String::new(),
    }
}

/// What is put beside `text` so that it has `length` characters.
fn padding_of(text: &str, length: i64, padding: &str) -> String {
    let length = length.clamp(0, MOST_PADDED as i64) as usize;
    let missing = length.saturating_sub(text.chars().count());
    if padding.is_empty() {
        return String::new();
    }
    padding.chars().cycle().take(missing).collect()
}
