//! Magic words: what pages and their names are, and the current time, which is that of the revision.

use super::Environment;
use super::dates::{Moment, Names, format};

/// Names that wikis give to magic words in their own language, and the English ones.
const LOCAL: [(&str, &str); 20] = [
    ("SEITENNAME", "PAGENAME"),
    ("VOLLER_SEITENNAME", "FULLPAGENAME"),
    ("SEITENNAME_URL", "PAGENAMEE"),
    ("NAMENSRAUM", "NAMESPACE"),
    ("JETZIGES_JAHR", "CURRENTYEAR"),
    ("LOKALES_JAHR", "LOCALYEAR"),
    ("NOMPAGE", "PAGENAME"),
    ("NOMPAGECOMPLET", "FULLPAGENAME"),
    ("ESPACENOMMAGE", "NAMESPACE"),
    ("NOMBREDEPAGINA", "PAGENAME"),
    ("NOMBREDEPÁGINA", "PAGENAME"),
    ("NOMEDAPAGINA", "PAGENAME"),
    ("TITOLOPAGINA", "PAGENAME"),
    ("PAGINANAAM", "PAGENAME"),
    ("NAZWASTRONY", "PAGENAME"),
    ("NÁZEVSTRÁNKY", "PAGENAME"),
    ("SIDNAMN", "PAGENAME"),
    ("НАЗВАНИЕСТРАНИЦЫ", "PAGENAME"),
    ("ИМЯСТРАНИЦЫ", "PAGENAME"),
    ("НАЗВАСТОРІНКИ", "PAGENAME"),
];

/// The value of `name` without arguments; none when it is no magic word.
pub(super) fn variable(name: &str, page: &Environment<'_>) -> Option<String> {
    if let Some(value) = of_page(name, page.title) {
        return Some(value);
    }
    let constant = match name {
        "!" => "|",
        "=" => "=",
        "SITENAME" => "Wikipedia",
        "CONTENTLANGUAGE" | "CONTENTLANG" | "PAGELANGUAGE" => page.language,
        "DIRECTIONMARK" | "DIRMARK" | "REVISIONID" | "REVISIONUSER" | "NOGALLERY" => "",
        _ => return time(name, page),
    };
    Some(constant.to_owned())
}

/// What a magic word says of the page of this title. All articles are in the namespace without a name,
/// which has no subpages.
pub(super) fn of_page(name: &str, title: &str) -> Option<String> {
    let local = LOCAL.iter().find(|(local, _)| *local == name).map(|(_, english)| *english);
    Some(match local.unwrap_or(name) {
        "PAGENAME" | "FULLPAGENAME" | "BASEPAGENAME" | "SUBPAGENAME" | "ROOTPAGENAME"
        | "ARTICLEPAGENAME" | "SUBJECTPAGENAME" => title.to_owned(),
        "PAGENAMEE" | "FULLPAGENAMEE" | "BASEPAGENAMEE" | "SUBPAGENAMEE" | "ROOTPAGENAMEE"
        | "ARTICLEPAGENAMEE" | "SUBJECTPAGENAMEE" => url_encode(title, UrlForm::Page),
        "TALKPAGENAME" => format!("Talk:{title}"),
        "TALKPAGENAMEE" => format!("Talk:{}", url_encode(title, UrlForm::Page)),
        "NAMESPACE" | "NAMESPACEE" | "SUBJECTSPACE" | "ARTICLESPACE" => String::new(),
        "NAMESPACENUMBER" => "0".to_owned(),
        "TALKSPACE" => "Talk".to_owned(),
        _ => return None,
    })
}

/// `CURRENTYEAR` and its like: those of the revision, so that they are the same in every run.
fn time(name: &str, page: &Environment<'_>) -> Option<String> {
    let local = LOCAL.iter().find(|(local, _)| *local == name).map(|(_, english)| *english);
    let name = local.unwrap_or(name);
    let what = name.strip_prefix("CURRENT").or_else(|| name.strip_prefix("LOCAL"))?;
    let pattern = match what {
        "YEAR" => "Y",
        "MONTH" | "MONTH2" => "m",
        "MONTH1" => "n",
        "MONTHNAME" | "MONTHNAMEGEN" => "F",
        "DAY" => "j",
        "DAY2" => "d",
        "DOW" => "w",
        "DAYNAME" => "l",
        "WEEK" => "W",
        "TIME" => "H:i",
        "HOUR" => "H",
        "TIMESTAMP" => "YmdHis",
        _ => return None,
    };
    let moment = page.stamp.and_then(Moment::of_stamp)?;
    let names = Names { months: page.rules.months(), english: page.language == "en" };
    format(pattern, moment, &names).ok()
}

/// How a text stands in an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UrlForm {
    /// Behind a `?`: spaces are `+`.
    Query,
    /// As the name of a page: spaces are `_`, and signs that may stand in a path stay.
    Page,
    /// As part of a path: spaces are `%20`.
    Path,
}

pub(super) fn url_encode(text: &str, form: UrlForm) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match (byte, form) {
            (b' ', UrlForm::Query) => out.push('+'),
            (b' ', UrlForm::Page) => out.push('_'),
            (b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_' | b'.', _) => {
                out.push(byte as char);
            }
            (_, UrlForm::Page) if b"~;@$!*(),/:".contains(&byte) => out.push(byte as char),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}
