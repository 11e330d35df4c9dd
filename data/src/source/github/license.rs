//! Which license a file or repository is under, by its text or its SPDX tag.
//!
//! A small detector: it knows the wording that sets each license apart, compared without case,
//! punctuation and line ends. Names are SPDX identifiers in lower case, as the BigQuery dump of
//! GitHub has them. What it does not know is [`UNKNOWN`], never a guess.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};

/// The license is not known, or none is given.
pub const UNKNOWN: &str = "unknown";

/// Takes the right to sell away from whatever license it stands before.
const COMMONS_CLAUSE: &str = "commons-clause";
/// Nobody else may use the file.
const PROPRIETARY: &str = "proprietary";

/// Bytes of the top of a file in which its own notice is looked for.
const NOTICE_BYTES: usize = 4096;

/// Bytes of a license file that are looked at.
const TEXT_BYTES: usize = 64 << 10;
/// Longest SPDX expression.
const TAG_BYTES: usize = 100;

/// Wording and the license it begins. Of several the first in the text counts: licenses name
/// others further down.
const WORDINGS: [(&str, &str); 60] = [
    ("commons clause license condition", COMMONS_CLAUSE),
    (
        "permission is hereby granted free of charge to any person obtaining a copy of this \
         software",
        "mit",
    ),
    ("unicode license v3", "unicode-3.0"),
    ("unicode data files and software", "unicode-3.0"),
    ("community data license agreement permissive version 2 0", "cdla-permissive-2.0"),
    ("the mit license mit", "mit"),
    ("redistribution and use in source and binary forms", "bsd"),
    ("apache license version 2 0", "apache-2.0"),
    ("www apache org licenses license 2 0", "apache-2.0"),
    ("apache software license version 1 1", "apache-1.1"),
    ("permission to use copy modify and or distribute this software for any purpose", "isc"),
    ("permission to use copy modify and distribute this software for any purpose", "isc"),
    ("gnu affero general public license version 3", "agpl-3.0"),
    ("gnu affero general public license as published", "agpl-3.0"),
    ("gnu lesser general public license version 3", "lgpl-3.0"),
    ("gnu lesser general public license version 2 1", "lgpl-2.1"),
    ("gnu lesser general public license as published", "lgpl"),
    ("gnu library general public license version 2", "lgpl-2.0"),
    ("gnu general public license version 3", "gpl-3.0"),
    ("gnu general public license v3", "gpl-3.0"),
    ("gnu general public license version 2", "gpl-2.0"),
    ("gnu general public license v2", "gpl-2.0"),
    ("gnu general public license version 1", "gpl-1.0"),
    ("gnu general public license as published", "gpl"),
    ("gnu free documentation license", "gfdl"),
    ("mozilla public license version 2 0", "mpl-2.0"),
    ("mozilla public license v 2 0", "mpl-2.0"),
    ("mozilla public license version 1 1", "mpl-1.1"),
    ("eclipse public license v 2 0", "epl-2.0"),
    ("eclipse public license version 2 0", "epl-2.0"),
    ("eclipse public license v 1 0", "epl-1.0"),
    ("eclipse public license version 1 0", "epl-1.0"),
    ("common development and distribution license", "cddl-1.0"),
    ("common public license version 1 0", "cpl-1.0"),
    ("european union public licence v 1 2", "eupl-1.2"),
    ("european union public licence v 1 1", "eupl-1.1"),
    ("this is free and unencumbered software released into the public domain", "unlicense"),
    ("cc0 1 0 universal", "cc0-1.0"),
    ("creative commons attribution sharealike 4 0", "cc-by-sa-4.0"),
    ("attribution sharealike 4 0 international", "cc-by-sa-4.0"),
    ("attribution noncommercial", "cc-by-nc"),
    ("creative commons attribution 4 0", "cc-by-4.0"),
    ("attribution 4 0 international", "cc-by-4.0"),
    ("attribution sharealike 3 0 unported", "cc-by-sa-3.0"),
    ("boost software license version 1 0", "bsl-1.0"),
    ("business source license 1 1", "busl-1.1"),
    ("server side public license", "sspl-1.0"),
    ("elastic license", "elastic-2.0"),
    ("do what the fuck you want to public license", "wtfpl"),
    ("the artistic license 2 0", "artistic-2.0"),
    ("the artistic license", "artistic-1.0"),
    ("microsoft public license", "ms-pl"),
    ("microsoft reciprocal license", "ms-rl"),
    ("sil open font license version 1 1", "ofl-1.1"),
    ("altered source versions must be plainly marked", "zlib"),
    ("python software foundation license version 2", "python-2.0"),
    ("academic free license", "afl-3.0"),
    ("open software license", "osl-3.0"),
    ("university of illinois ncsa open source license", "ncsa"),
    ("the postgresql licence", "postgresql"),
];

/// Identifiers that reports name; all others are counted together.
const OTHERS: [&str; 27] = [
    COMMONS_CLAUSE,
    PROPRIETARY,
    "bzip2-1.0.6",
    "bsd-2-clause",
    "bsd-3-clause",
    "bsd-4-clause",
    "bsd-3-clause-clear",
    "bsd-source-code",
    "0bsd",
    "mit-0",
    "x11",
    "gpl-2.0-only",
    "gpl-2.0-or-later",
    "gpl-3.0-only",
    "gpl-3.0-or-later",
    "lgpl-2.1-only",
    "lgpl-2.1-or-later",
    "lgpl-3.0-only",
    "lgpl-3.0-or-later",
    "agpl-3.0-only",
    "agpl-3.0-or-later",
    "cc-by-sa-2.0",
    "postgresql-license",
    "openssl",
    "ruby",
    "vim",
    UNKNOWN,
];

static DETECTOR: LazyLock<Option<AhoCorasick>> = LazyLock::new(|| {
    // Of patterns that begin at the same place the longer one: version 2 1, not version 2.
    let wordings = WORDINGS.map(|(wording, _)| wording);
    AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(wordings).ok()
});

/// The license whose text `text` is, or [`UNKNOWN`].
pub fn detect_license(text: &str) -> &'static str {
    license_in(&plain_words(text))
}

/// As [`detect_license`], of [`plain_words`].
fn license_in(plain: &str) -> &'static str {
    let found = DETECTOR.as_ref().and_then(|detector| detector.find(plain));
    let Some(found) = found else { return UNKNOWN };
    let has = |wording: &str| plain.contains(wording);
    if has("commons clause") {
        return COMMONS_CLAUSE;
    }
    match WORDINGS[found.pattern().as_usize()].1 {
        "mit" if has("permission is hereby granted") && !has("this permission notice") => "mit-0",
        "bsd" if has("the origin of this software must not be misrepresented") => "bzip2-1.0.6",
        "bsd" if has("all advertising materials mentioning features") => "bsd-4-clause",
        "bsd" if has("may be used to endorse") || has("used to endorse or promote") => {
            "bsd-3-clause"
        }
        "bsd" if has("must retain the above copyright") => "bsd-2-clause",
        "bsd" => UNKNOWN,
        "isc" if has("permission notice appear in all copies") => "isc",
        "isc" => "0bsd",
        name => name,
    }
}

/// Names of licenses in notices, which do not quote the license: the first that is there counts.
const NOTICES: [(&str, &str); 22] = [
    ("commons clause", COMMONS_CLAUSE),
    ("unauthorized copying", PROPRIETARY),
    ("proprietary and confidential", PROPRIETARY),
    ("confidential and proprietary", PROPRIETARY),
    ("gnu affero general public license", "agpl-3.0"),
    ("gnu lesser general public license", "lgpl"),
    ("gnu library general public license", "lgpl-2.0"),
    ("gnu general public license", "gpl"),
    ("gnu gpl", "gpl"),
    ("gplv2", "gpl-2.0"),
    ("gpl v2", "gpl-2.0"),
    ("gplv3", "gpl-3.0"),
    ("gpl v3", "gpl-3.0"),
    ("under the gpl", "gpl"),
    ("under the lgpl", "lgpl"),
    ("mozilla public license", "mpl-2.0"),
    ("eclipse public license", "epl-2.0"),
    ("under the apache license", "apache-2.0"),
    ("under the mit license", "mit"),
    ("under mit license", "mit"),
    ("the mit license", "mit"),
    ("licensed under mit", "mit"),
];

/// The license that the notice at the top of a source file names, whatever the repository around it
/// is under: its SPDX tag, or the wording of the comments before its first code.
pub fn own_license(text: &str) -> Option<String> {
    if let Some(tag) = spdx_tag(text) {
        return Some(tag);
    }
    let comments = leading_comments(text);
    if comments.is_empty() {
        return None;
    }
    let plain = plain_words(comments);
    let known = license_in(&plain);
    if known != UNKNOWN {
        return Some(known.to_owned());
    }
    let found = NOTICES.iter().find(|(wording, _)| plain.contains(wording));
    found.map(|&(_, name)| name.to_owned())
}

/// The comments that `text` begins with, near enough: a line that is none ends them.
fn leading_comments(text: &str) -> &str {
    let head = &text[..text.floor_char_boundary(NOTICE_BYTES)];
    let mut inside: Option<&str> = None;
    let mut end = 0;
    for line in head.split_inclusive('\n') {
        let words = line.trim_start_matches('\u{feff}').trim();
        match inside {
            Some(close) if words.contains(close) => inside = None,
            Some(_) => {}
            None => {
                let blocks = [
                    ("/*", "*/"),
                    ("<!--", "-->"),
                    ("\"\"\"", "\"\"\""),
                    ("'''", "'''"),
                    ("(*", "*)"),
                    ("{-", "-}"),
                    ("=begin", "=end"),
                    ("<#", "#>"),
                    ("--[[", "]]"),
                ];
                let block = blocks.iter().find(|(open, _)| words.starts_with(open));
                let mark =
                    ["//", "#", "--", ";", "%", "!", "REM", "rem", "::", "<?", "<!", "..", "'"];
                match block {
                    Some((open, close)) => {
                        inside = (!words[open.len()..].contains(close)).then_some(close);
                    }
                    None if words.is_empty() || mark.iter().any(|mark| words.starts_with(mark)) => {
                    }
                    None => break,
                }
            }
        }
        end += line.len();
    }
    &head[..end]
}

/// `text` in lower case, everything but letters and digits made one space.
fn plain_words(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut plain = String::with_capacity(end);
    for byte in text[..end].bytes() {
        if byte.is_ascii_alphanumeric() {
            plain.push(byte.to_ascii_lowercase() as char);
        } else if !plain.ends_with(' ') {
            plain.push(' ');
        }
    }
    plain
}

/// The expression after `SPDX-License-Identifier:` in the first kilobytes of a file, in lower
/// case.
pub fn spdx_tag(text: &str) -> Option<String> {
    const TAG: &[u8] = b"SPDX-License-Identifier:";
    let head = &text.as_bytes()[..text.len().min(4096)];
    let at = memchr::memmem::find(head, TAG)? + TAG.len();
    let line = text.get(at..)?.lines().next()?;
    let expression: String = line
        .chars()
        .take(TAG_BYTES)
        .take_while(|&c| c.is_ascii_alphanumeric() || " .-+()".contains(c))
        .collect();
    // Ends of comments: `*/` stops above, `-->` does not.
    let expression = expression.trim().trim_end_matches("--").trim().to_ascii_lowercase();
    (!expression.is_empty()).then_some(expression)
}

/// Whether a file of this name holds the license of its folder.
pub fn is_license_file(name: &str) -> bool {
    let endings = [".txt", ".md", ".rst"];
    let stem = endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name);
    // An ending in lower case is that of code: license.go.
    if stem.as_bytes().windows(2).any(|pair| pair[0] == b'.' && pair[1].is_ascii_lowercase()) {
        return false;
    }
    let stem = stem.to_ascii_lowercase();
    ["license", "licence", "copying", "unlicense", "copyright"].iter().any(|known| {
        let rest = stem.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
    })
}

/// Whether `license`, an identifier or an SPDX expression in lower case, is covered by `allowed`:
/// every part that `and` joins must be, of those that `or` joins one. `or later` is `+`. What
/// `with` adds is left out: exceptions only give more rights.
pub fn is_allowed(license: &str, allowed: &[String]) -> bool {
    let license = license.replace(['(', ')'], " ");
    license.split(" and ").all(|part| {
        part.split(" or ").any(|one| {
            let name = one.split(" with ").next().unwrap_or_default().trim();
            allowed.iter().any(|allowed| allowed == name)
        })
    })
}

/// `license` as reports name it: its first part that `allowed` does not cover when that is a
/// known identifier, else `other`.
pub fn reported_name(license: &str, allowed: &[String]) -> &'static str {
    let plain = license.replace(['(', ')'], " ");
    let mut parts = plain.split(" and ").flat_map(|part| part.split(" or ")).map(str::trim);
    let part = parts.find(|part| !is_allowed(part, allowed)).unwrap_or_default();
    let mut known = WORDINGS.iter().map(|&(_, name)| name).chain(OTHERS);
    known.find(|&name| name == part).unwrap_or("other")
}

/// The SPDX expression in the manifest `name` of a package, in lower case: `license` of
/// `Cargo.toml`, `pyproject.toml` and `package.json`.
pub fn manifest_license(name: &str, text: &str) -> Option<String> {
    let (key, separator) = match name {
        "Cargo.toml" | "pyproject.toml" => ("license", '='),
        "package.json" => ("\"license\"", ':'),
        _ => return None,
    };
    let value = text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix(key)?.trim_start().strip_prefix(separator)?;
        rest.trim_start().strip_prefix('"')?.split('"').next()
    })?;
    let plain = |c: char| c.is_ascii_alphanumeric() || " .-+()/".contains(c);
    let expression = value.trim().to_ascii_lowercase().replace('/', " or ");
    (value.len() <= TAG_BYTES && value.chars().all(plain) && !expression.is_empty())
        .then_some(expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIT: &str = "Copyright (c) 2020 A. Uthor\n\nPermission is hereby granted, free of \
        charge, to any person obtaining\na copy of this software and associated documentation \
        files\n\nThe above copyright notice and this permission notice shall be\nincluded in all \
        copies";
    const BSD: &str = "Copyright 2009 The Authors. All rights reserved.\n\nRedistribution and use \
        in source and binary forms, with or without\nmodification, are permitted provided that \
        the following conditions are met:\n\n   * Redistributions of source code must retain the \
        above copyright\nnotice";

    #[test]
    fn licenses_are_told_by_their_wording() {
        assert_eq!(detect_license(MIT), "mit");
        assert_eq!(detect_license(&MIT[..150]), "mit-0");
        assert_eq!(detect_license(BSD), "bsd-2-clause");
        let three = format!(
            "{BSD} * Neither the name of X nor the names of its contributors may \
            be used to endorse or promote products"
        );
        assert_eq!(detect_license(&three), "bsd-3-clause");
        let four = format!("{three} All advertising materials mentioning features or use");
        assert_eq!(detect_license(&four), "bsd-4-clause");
        for (text, name) in [
            ("Apache License\n                 Version 2.0, January 2004", "apache-2.0"),
            ("GNU GENERAL PUBLIC LICENSE\n     Version 2, June 1991", "gpl-2.0"),
            ("GNU GENERAL PUBLIC LICENSE\n     Version 3, 29 June 2007", "gpl-3.0"),
            ("GNU LESSER GENERAL PUBLIC LICENSE\n Version 2.1, February 1999", "lgpl-2.1"),
            ("GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007", "agpl-3.0"),
            ("Mozilla Public License Version 2.0", "mpl-2.0"),
            (
                "This is free and unencumbered software released into the public domain.",
                "unlicense",
            ),
            ("UNICODE LICENSE V3\nPermission is hereby granted, free of charge,", "unicode-3.0"),
            ("All rights reserved. Ask us.", UNKNOWN),
            ("", UNKNOWN),
        ] {
            assert_eq!(detect_license(text), name);
        }
    }

    #[test]
    fn the_first_license_of_a_text_counts() {
        let text = format!("{MIT}\n\nParts are under the GNU General Public License version 2");
        assert_eq!(detect_license(&text), "mit");
    }

    #[test]
    fn tags_are_read() {
        assert_eq!(spdx_tag("// SPDX-License-Identifier: MIT\nx").as_deref(), Some("mit"));
        let tag = spdx_tag("/* SPDX-License-Identifier: (GPL-2.0+ OR BSD-3-Clause) */");
        assert_eq!(tag.as_deref(), Some("(gpl-2.0+ or bsd-3-clause)"));
        assert_eq!(spdx_tag("<!-- SPDX-License-Identifier: MIT -->").as_deref(), Some("mit"));
        assert_eq!(spdx_tag("no tag"), None);
    }

    #[test]
    fn a_file_may_have_a_license_of_its_own() {
        for (text, expected) in [
            ("// SPDX-License-Identifier: MIT\nint x;", Some("mit")),
            (
                "/* This is free software under the GNU General Public License. */\nint x;",
                Some("gpl"),
            ),
            ("# Licensed under the Apache License, Version 2.0\nx = 1", Some("apache-2.0")),
            ("\"\"\"Released under the MIT license.\"\"\"\nx = 1", Some("mit")),
            (
                "/*\n * \"Commons Clause\" License Condition v1.0\n * Apache License, Version 2.0\n */",
                Some("commons-clause"),
            ),
            ("// Unauthorized copying of this file is prohibited.\nint x;", Some("proprietary")),
            ("// Copyright 2020 A\nint x;", None),
            ("static const char *text = \"GNU General Public License\";", None),
            ("x = 1\n# GNU General Public License\n", None),
        ] {
            assert_eq!(own_license(text).as_deref(), expected, "{text}");
        }
        let clause = "\"Commons Clause\" License Condition v1.0\n\nThe Software is provided under \
            the Apache License, Version 2.0";
        assert_eq!(detect_license(clause), "commons-clause");
    }

    #[test]
    fn expressions_are_allowed_as_a_whole() {
        let allowed = ["mit".to_owned(), "apache-2.0".to_owned()];
        for (license, expected) in [
            ("mit", true),
            ("gpl-2.0", false),
            ("(gpl-2.0+ or mit)", true),
            ("mit and gpl-2.0", false),
            ("mit and (apache-2.0 or gpl-2.0)", true),
            ("apache-2.0 with llvm-exception", true),
            (UNKNOWN, false),
            ("", false),
        ] {
            assert_eq!(is_allowed(license, &allowed), expected, "{license}");
        }
    }

    #[test]
    fn names_in_reports_are_few() {
        let reported = |license| reported_name(license, &["mit".to_owned()]);
        assert_eq!(reported("gpl-2.0"), "gpl-2.0");
        assert_eq!(reported("bsd-3-clause"), "bsd-3-clause");
        assert_eq!(reported("my own licence"), "other");
        assert_eq!(reported(UNKNOWN), UNKNOWN);
        assert_eq!(reported("mit and (unlicense)"), "unlicense");
    }

    #[test]
    fn manifests_say_what_a_package_is_under() {
        let cargo = "[package]\nname = \"x\"\nlicense = \"MIT/Apache-2.0\"\n";
        assert_eq!(manifest_license("Cargo.toml", cargo).as_deref(), Some("mit or apache-2.0"));
        let node = "{\n  \"name\": \"x\",\n  \"license\": \"(MIT OR GPL-2.0)\",\n}";
        assert_eq!(manifest_license("package.json", node).as_deref(), Some("(mit or gpl-2.0)"));
        assert_eq!(manifest_license("package.json", "{\"license\": {\"type\": 1}}"), None);
        assert_eq!(manifest_license("Cargo.toml", "license.workspace = true"), None);
        assert_eq!(manifest_license("main.rs", cargo), None);
    }

    #[test]
    fn license_files_are_known_by_name() {
        for name in [
            "LICENSE",
            "License.txt",
            "COPYING",
            "LICENSE-MIT",
            "licence.md",
            "COPYING.LESSER",
            "LICENSE_A2",
            "LICENSE-APACHE-2.0",
        ] {
            assert!(is_license_file(name), "{name}");
        }
        for name in ["licenses", "license_test.go", "license.go", "main.c", "relicense"] {
            assert!(!is_license_file(name), "{name}");
        }
    }
}
