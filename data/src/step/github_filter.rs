//! Which source files are worth having: by license, extension and the look of their text.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::{Document, Reason, metadata_text};
use crate::error::{DataError, Result};
use crate::source::license::{UNKNOWN, is_allowed, reported_name};
use crate::text::python::{is_alnum, is_alpha, is_line_end, is_space};

/// Licenses LLaMA took: Apache, BSD and MIT (arXiv 2302.13971, section 2.1), as RedPajama spells
/// them out.
const LICENSES: [&str; 4] = ["mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause"];

/// Ends of paths that RedPajama's `github_run_filter.py` keeps, case counts.
const EXTENSIONS: [&str; 66] = [
    ".asm",
    ".bat",
    ".cmd",
    ".c",
    ".h",
    ".cs",
    ".cpp",
    ".hpp",
    ".c++",
    ".h++",
    ".cc",
    ".hh",
    ".C",
    ".H",
    ".cmake",
    ".css",
    ".dockerfile",
    ".f90",
    ".f",
    ".f03",
    ".f08",
    ".f77",
    ".f95",
    ".for",
    ".fpp",
    ".go",
    ".hs",
    ".html",
    ".java",
    ".js",
    ".jl",
    ".lua",
    ".md",
    ".markdown",
    ".php",
    ".php3",
    ".php4",
    ".php5",
    ".phps",
    ".phpt",
    ".pl",
    ".pm",
    ".pod",
    ".perl",
    ".ps1",
    ".psd1",
    ".psm1",
    ".py",
    ".rb",
    ".rs",
    ".sql",
    ".scala",
    ".sh",
    ".bash",
    ".command",
    ".zsh",
    ".ts",
    ".tsx",
    ".tex",
    ".vb",
    "Dockerfile",
    "Makefile",
    ".xml",
    ".rst",
    ".m",
    ".smali",
];

/// Keeps source files by license, extension and heuristics of their text, by default with
/// RedPajama's thresholds but for `min_letters_per_token`. Lengths are code points; a line ends where Python's `str.splitlines` ends it.
///
/// The license and the path are those in the metadata, where the GitHub source puts them; a
/// document without that key is not judged by it. A license that is not known is not allowed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GithubFilterOptions {
    /// Licenses that are allowed, SPDX identifiers in lower case (list of strings, default `mit`,
    /// `apache-2.0`, `bsd-2-clause`, `bsd-3-clause`). Empty: any.
    pub licenses: Vec<String>,
    /// Ends of paths that are kept, case counts (list of strings, default RedPajama's 66). Empty:
    /// any.
    pub extensions: Vec<String>,
    /// Longest line (integer, default 1000).
    pub max_line_length: u64,
    /// Most code points a line, line ends included, on average (number, default 100).
    pub max_mean_line_length: f64,
    /// Least share of letters and digits (number, 0 to 1, default 0.25).
    pub min_alnum: f64,
    /// Least letters for each token, a token being a run of letters, digits and `_` or a run of
    /// other visible characters (number, default 0.6: below are tables of numbers; RedPajama's 1.5
    /// also takes short, dense code).
    pub min_letters_per_token: f64,
}

impl Default for GithubFilterOptions {
    fn default() -> Self {
        Self {
            licenses: LICENSES.map(str::to_owned).into(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
            max_line_length: 1000,
            max_mean_line_length: 100.0,
            min_alnum: 0.25,
            min_letters_per_token: 0.6,
        }
    }
}

impl StepOptions for GithubFilterOptions {
    /// Version 1 wrote its reasons as `licence:…`; version 2 dropped dense code.
    fn version(&self) -> u32 {
        3
    }

    fn validate(&self, key: &str) -> Result<()> {
        if let Some(license) =
            self.licenses.iter().find(|name| name.bytes().any(|byte| byte.is_ascii_uppercase()))
        {
            let key = format!("{key}.licenses");
            return Err(DataError::config(key, license, "an SPDX identifier in lower case"));
        }
        for (name, value, most) in [
            ("max_mean_line_length", self.max_mean_line_length, f64::MAX),
            ("min_alnum", self.min_alnum, 1.0),
            ("min_letters_per_token", self.min_letters_per_token, f64::MAX),
        ] {
            if !(0.0..=most).contains(&value) {
                let expected = if most == 1.0 { "0 to 1" } else { "0 or more" };
                return Err(DataError::config(format!("{key}.{name}"), value, expected));
            }
        }
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(GithubFilter { options: self.clone() }))
    }
}

struct GithubFilter {
    options: GithubFilterOptions,
}

impl Step for GithubFilter {
    fn apply(&self, document: &mut Document, _counts: &mut StepCounts) -> Verdict {
        let options = &self.options;
        let mut metadata = document.metadata();
        let path = metadata.get("path").and_then(Value::as_str);
        if path.is_some_and(|path| path.ends_with(".crt") || path == "LICENSE") {
            return Verdict::unwanted("skipped_path", path.unwrap_or_default());
        }
        if let Some(license) = metadata.get("license")
            && !options.licenses.is_empty()
        {
            let license = license.as_str().unwrap_or(UNKNOWN).to_ascii_lowercase();
            if !is_allowed(&license, &options.licenses) {
                let name = reported_name(&license, &options.licenses);
                let reason = Reason::unwanted_for(format!("license:{name}"));
                return Verdict::Drop { reason, detail: license };
            }
        }
        if document.text.is_empty() {
            return Verdict::unwanted("empty", "");
        }
        if let Some(path) = path
            && !options.extensions.is_empty()
            && !options.extensions.iter().any(|end| path.ends_with(end.as_str()))
        {
            return Verdict::unwanted("extension", path);
        }
        let look = Look::of(&document.text);
        let against = |value: f64, bound: f64| format!("{value}, threshold {bound}");
        let longest = look.max_line_length;
        if longest > options.max_line_length {
            let detail = against(longest as f64, options.max_line_length as f64);
            return Verdict::unwanted("max_line_length", detail);
        }
        let mean = look.mean_line_length();
        if mean > options.max_mean_line_length {
            let detail = against(mean, options.max_mean_line_length);
            return Verdict::unwanted("mean_line_length", detail);
        }
        let alnum = look.alnum_share();
        if alnum < options.min_alnum {
            return Verdict::unwanted("alnum", against(alnum, options.min_alnum));
        }
        let letters = look.letters_per_token();
        if letters < options.min_letters_per_token {
            let detail = against(letters, options.min_letters_per_token);
            return Verdict::unwanted("letters_per_token", detail);
        }
        metadata.insert("line_count".to_owned(), look.lines.into());
        metadata.insert("max_line_length".to_owned(), longest.into());
        metadata.insert("avg_line_length".to_owned(), mean.into());
        metadata.insert("alnum_prop".to_owned(), alnum.into());
        document.metadata = Some(metadata_text(metadata));
        Verdict::Keep
    }
}

/// What a text looks like, in code points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Look {
    chars: u64,
    lines: u64,
    max_line_length: u64,
    letters: u64,
    alnum: u64,
    tokens: u64,
}

/// Kinds of characters as bits; the two lowest say which run a character belongs to.
mod kind {
    pub const SPACE: u8 = 0;
    pub const WORD: u8 = 1;
    pub const OTHER: u8 = 2;
    pub const RUN: u8 = 3;
    pub const LETTER: u8 = 4;
    pub const ALNUM: u8 = 8;
    pub const LINE_END: u8 = 16;
}

fn kind_of(c: char) -> u8 {
    let run = if is_alnum(c) || c == '_' {
        kind::WORD
    } else if is_space(c) {
        kind::SPACE
    } else {
        kind::OTHER
    };
    let flag = |holds: bool, flag: u8| if holds { flag } else { 0 };
    run | flag(is_alpha(c), kind::LETTER)
        | flag(is_alnum(c), kind::ALNUM)
        | flag(is_line_end(c), kind::LINE_END)
}

impl Look {
    fn of(text: &str) -> Self {
        let ascii: [u8; 128] = std::array::from_fn(|byte| kind_of(byte as u8 as char));
        let bytes = text.as_bytes();
        let mut look = Self::default();
        let mut run = kind::SPACE;
        let (mut at, mut line_start) = (0, 0);
        while let Some(&byte) = bytes.get(at) {
            let kind = match ascii.get(usize::from(byte)) {
                Some(&kind) => {
                    at += 1;
                    kind
                }
                None => {
                    let c = text[at..].chars().next().unwrap_or_default();
                    at += c.len_utf8();
                    kind_of(c)
                }
            };
            look.letters += u64::from(kind & kind::LETTER != 0);
            look.alnum += u64::from(kind & kind::ALNUM != 0);
            let next = kind & kind::RUN;
            look.tokens += u64::from(next != run && next != kind::SPACE);
            run = next;
            if kind & kind::LINE_END != 0 {
                look.end_line(look.chars - line_start);
                look.chars += 1;
                if byte == b'\r' && bytes.get(at) == Some(&b'\n') {
                    look.chars += 1;
                    at += 1;
                }
                line_start = look.chars;
            } else {
                look.chars += 1;
            }
        }
        if look.chars > line_start {
            look.end_line(look.chars - line_start);
        }
        look
    }

    fn end_line(&mut self, length: u64) {
        self.lines += 1;
        self.max_line_length = self.max_line_length.max(length);
    }

    fn mean_line_length(&self) -> f64 {
        self.chars as f64 / self.lines as f64
    }

    fn alnum_share(&self) -> f64 {
        self.alnum as f64 / self.chars as f64
    }

    fn letters_per_token(&self) -> f64 {
        self.letters as f64 / self.tokens.max(1) as f64
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::python::split_lines;

    fn reason(metadata: Value, text: &str) -> String {
        let mut document = Document {
            text: text.into(),
            metadata: Some(metadata.to_string()),
            ..Document::default()
        };
        let step = GithubFilterOptions::default().build("").unwrap();
        match step.apply(&mut document, &mut StepCounts::default()) {
            Verdict::Keep => String::new(),
            Verdict::Drop { reason, .. } => reason.name().to_owned(),
        }
    }

    fn by_path(path: &str, text: &str) -> String {
        reason(serde_json::json!({"path": path, "license": "mit"}), text)
    }

    const CODE: &str = "fn main() {\n    let value = compute(3);\n}\n";

    #[test]
    fn licenses_are_allowed_or_named() {
        let of = |license: Value| reason(serde_json::json!({"license": license}), CODE);
        for license in
            ["mit", "MIT", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "gpl-2.0 or mit"]
        {
            assert_eq!(of(license.into()), "");
        }
        assert_eq!(of("gpl-2.0".into()), "license:gpl-2.0");
        assert_eq!(of("bsd-4-clause".into()), "license:bsd-4-clause");
        assert_eq!(of("unknown".into()), "license:unknown");
        assert_eq!(of(Value::Null), "license:unknown");
        assert_eq!(of("my very own".into()), "license:other");
        assert_eq!(reason(serde_json::json!({}), CODE), "");
    }

    #[test]
    fn extensions_are_a_list_of_endings() {
        for path in ["a.rs", "dir/Makefile", "my.Dockerfile", "a.C", "x.tar.sh"] {
            assert_eq!(by_path(path, CODE), "", "{path}");
        }
        for path in ["a.RS", "a.txt", "a.json", "makefile", "rs", "LICENSE.txt"] {
            assert_eq!(by_path(path, CODE), "extension", "{path}");
        }
        assert_eq!(by_path("x/ca.crt", CODE), "skipped_path");
        assert_eq!(by_path("LICENSE", CODE), "skipped_path");
        assert_eq!(GithubFilterOptions::default().extensions.len(), 66);
    }

    #[test]
    fn thresholds_are_exclusive_and_in_code_points() {
        assert_eq!(by_path("a.rs", ""), "empty");
        let line = |length: usize| format!("{}\n{}", "é".repeat(length), "a\n".repeat(100));
        assert_eq!(by_path("a.rs", &line(1000)), "");
        assert_eq!(by_path("a.rs", &line(1001)), "max_line_length");
        let mean = |length: usize| format!("{}\n", "é".repeat(length)).repeat(7);
        assert_eq!(by_path("a.rs", &mean(99)), "");
        assert_eq!(by_path("a.rs", &mean(100)), "mean_line_length");
        assert_eq!(by_path("a.rs", "aaa!!!!!!!!!"), "");
        assert_eq!(by_path("a.rs", "aaa!!!!!!!!!!"), "alnum");
        assert_eq!(by_path("a.rs", "aa, 1, 2, 3 "), "letters_per_token");
        assert_eq!(
            by_path("a.c", "for (i = 0; i < n; i++) { sum += values[i] * weights[i]; }\n"),
            ""
        );
        assert_eq!(by_path("a.rs", "aaaa, 1b"), "");
    }

    #[test]
    fn the_look_is_pythons() {
        // Python 3.11: s = 'a_1 é.½\r\nx\x1fy\u2028  \x1c\u0903z\n'; len(s.splitlines()),
        // max(map(len, …)), sum(c.isalpha() …), sum(c.isalnum() …), len(re.findall(…)).
        let look = Look::of("a_1 é.½\r\nx\u{1f}y\u{2028}  \u{1c}\u{903}z\n");
        assert_eq!((look.chars, look.lines, look.max_line_length), (19, 4, 7));
        assert_eq!((look.letters, look.alnum, look.tokens), (5, 7, 8));
        assert_eq!(Look::of(""), Look::default());
    }

    proptest! {
        #[test]
        fn lines_are_those_of_splitlines(text in "[a é\\n\\r\\x0b\\x1c\\x85\u{2028}]{0,30}") {
            let look = Look::of(&text);
            let lines: Vec<usize> = split_lines(&text).map(|line| line.chars().count()).collect();
            prop_assert_eq!(look.lines, lines.len() as u64);
            prop_assert_eq!(look.max_line_length, lines.into_iter().max().unwrap_or(0) as u64);
            prop_assert_eq!(look.chars, text.chars().count() as u64);
        }
    }

    #[test]
    fn options_are_checked() {
        let options: GithubFilterOptions = serde_yaml::from_str("{licenses: [MIT]}").unwrap();
        assert!(options.validate("steps.0.x").unwrap_err().to_string().contains("licenses"));
        let options: GithubFilterOptions = serde_yaml::from_str("{min_alnum: 1.5}").unwrap();
        assert!(options.validate("steps.0.x").unwrap_err().to_string().contains("min_alnum"));
        GithubFilterOptions::default().validate("x").unwrap();
    }
}
