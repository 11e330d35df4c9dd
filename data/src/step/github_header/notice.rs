//! Which paragraphs of a comment are a license notice.

use std::sync::LazyLock;

use regex::bytes::Regex;

use super::comments::{Comment, Line};

/// Where a comment stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Code stands before it.
    pub code_seen: bool,
    /// A line with a `#` may be a heading.
    pub heading: bool,
}

/// What begins a line of a notice, behind the marks of the comment.
static LINE_NOTICE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^[\s\W]*(
        (?i: (portions|parts|some\ parts|original|modifications?|file|code|this\ \w+|the\ \w+|all\ \w+|source|
              program|library|software|module|document(ation)?|content)(\ is|\ are)?,?:?\s+)?
        ( (?i:copyright\s*(\(c\)|©|&copy;|\(©\)|:|,|-|–)\s*.*) | (?i:copyright\s+.{0,30}\b(19|20)\d\d)
          | Copyright\s+(by\s+)?(the\s+)?\p{Lu}.* | COPYRIGHT\b.*
          | (?i:copyrighted\s+(by|\(c\)|©|\p{Lu}))
          | © | \(c\)\s*(?i:copyright|(19|20)\d\d|\p{Lu}) | \(C\)\s*\p{Lu} )
        | SPDX-
        | (?i:all\ rights\ (are\ )?reserved)
        | @(?i:licen[cs]e|copyright)\b
        | (?i:licen[cs]ed?\s*:) | (?i:licen[cs]e\s+.{0,20}(mit|bsd|gpl|apache|mpl|isc)\b)
        | (?i:(dual[- ])?licen[cs]ed\s+(under|to|as|with))
        | (?i:released|distributed|published|available)\ (?i:under\ the)\b.*(?i:licen[cs]e|terms)
        | (?i:permission\ is\ (hereby|granted)|permission\ to\ use)
        | (?i:redistribution\ and\ use|redistributions?\ (of|in))
        | (?i:this\ (source\ )?(file|code|program|software|library|package|module|script|work|project|class|
              product|source)(\ (file|code))?\ is\ (free\ software|made\ available|(re)?distributed|released|
              licen[cs]ed|published|provided|subject|governed|protected|confidential|proprietary|
              (in\ the\ )?public\ domain|part\ of\ .*licen[cs]e|copyright))
        | (?i:use\ of\ this\ source\ code|you\ may\ not\ use|you\ may\ obtain|for\ the\ full\ copyright)
        | (?i:see\ (also\ )?(the\ )?(accompanying\ |bundled\ |enclosed\ )?(files?\ )?[\x22'`<(]?\.{0,2}/?(licen[cs]e|copying|copyright)\b)
        | (?i:the\ )?(MIT|BSD|ISC|Apache|Boost|GNU|Mozilla|Eclipse)\b.{0,30}(?i:licen[cs]e)
        | (?i:proprietary\ and\ confidential|confidential\ and\ proprietary|unauthori[sz]ed\ copying)
        | (?i:released\ (in|into|to)\ the\ public\ domain|public\ domain\b)
        | (?i:alle\ rechte\ vorbehalten|tous\ droits\ r[eé]serv|(todos\ )?(los\ )?derechos\ reservados|
            (todos\ os\ )?direitos\ (reservados|autorais)|droits\ d.auteur|tutti\ i\ diritti|alle\ rechten\ voorbehouden|
            wszel?kie\ prawa|все\ права\ защищены|авторск(ие|ое)\ прав|urheberrecht|lizenz\s*:|
            lizenziert\ unter|licencia\s*:|bajo\ la\ licencia|sous\ (la\ )?licence|licence\s*:|
            sotto\ (la\ )?licenza|sob\ a\ licença|licença\s*:|лицензи[яи]|
            版权所有|版權所有|著作权|著作権|保留所有权利|许可证|授权协议|ライセンス|저작권|라이선스)
        )",
    )
});

/// What is part of a notice wherever it stands in a line.
static PHRASE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)(?i) all\ rights\ reserved | SPDX-License-Identifier\s*: | SPDX-FileCopyrightText
        | permission\ is\ hereby\ granted | redistribution\ and\ use\ in\ source
        | may\ not\ use\ this\ file\ except | copyright\s*(\(c\)|©)\s*\W*(19|20)\d\d
        | use\ of\ this\ source\ code\ is\ governed | derechos\ reservados | droits\ r[eé]serv[eé]s
        | rechte\ vorbehalten | права\ защищены | 版权所有 | 保留所有权利",
    )
});

/// What a notice at the top of a file also is: nothing else is written so there.
static TOP_PHRASE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)(?i) \blicen[cs]ed\ under | under\ the\ terms\ (and\ conditions\ )?of | made\ available\ under
        | (distributed|released|provided|available|published)\ under\ (the|an?)\b
        | general\ public\ licen[cs]e | (apache|mit|bsd|isc|mozilla|boost|eclipse|artistic|zlib|x11|w3c|
          creative\ commons)[\w\s.,()-]{0,20}\blicen[cs]e\b | see\ (the\ )?(file\ )?licen[cs]e | @licen[cs]e",
    )
});

/// What the paragraphs of a license speak of, once one of them was seen.
static LICENSE_BODY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)(?i) licen[cs] | warrant | liab(le|ility) | redistribut | copyright | permission | merchantab
        | \bas[\s-]is\b | provided\ that | following\ conditions | disclaimer | endorse | free\ software
        | \bGNU\b | damages | public\ domain | patent | trademark | derivative\ works? | sublicense
        | modif(y|ied|ication).*(distribut|version) | ^\W*(https?|ftp)://\S*$ | \(the\ .license.\)
        | \b(MIT|BSD|GPL|LGPL|MPL|ISC|Apache)\b | rights\ reserved",
    )
});

/// What stands beside a notice and is of no more use without it: who, when, where.
static BYLINE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^[\s\W]*( (?i:@?(authors?|contributors?|maintainers?|written\ by|created\ by|developed\ by|
            modified\ by|original\ authors?|contact|e-?mail|date|created(\ on)?|last\ modified|since|
            changed|version|copyright|website|homepage)\b\s*[:=-]?.*)
          | \$(Id|Revision|Date|Author|Header)\b.* | \S+@\S+\.\S+ | .*<\S+@\S+>.* )$",
    )
});

/// A line from which on a paragraph is no notice any more.
static USAGE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)^[\s\W]*(?i: usage|synopsis|description|examples?|purpose|summary|overview|abstract|notes?|
          todo|fixme|options|arguments|requires|dependencies|depends|see\ also|features|name|package|
          module|file|filename|fileoverview|brief|details|param|return|returns|type|class|namespace|ingroup|
          defgroup|overview|desc)\b\s*(:|-|–|$|\s\S+)",
    )
});

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the patterns above are valid")
}

/// Whether `text` speaks of licenses at all: most files do not.
pub(super) fn has_mention(text: &str) -> bool {
    static ANY: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"(?i)copyright|licen[cs]|spdx|rights\s+reserved|redistribution|©|\(c\)|public domain|proprietary|permission|licen[çz]|lizenz|vorbehalten|droits|derechos|direitos|diritti|voorbehouden|zastrze|прав|лиценз|版权|版權|著作|保留|许可|授权|ライセンス|저작권|라이선스",
        )
    });
    ANY.is_match(text.as_bytes())
}

/// What a paragraph of a comment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Notice,
    Byline,
    Text,
}

/// The parts of `comment` that are a notice: all of it, or paragraphs.
pub(super) fn notices_of(text: &str, comment: &Comment, place: Place) -> Vec<(usize, usize)> {
    let content = |line: &Line| text[line.text.min(line.text_end)..line.text_end].trim_end();
    let strict = place.code_seen || comment.is_documentation || place.heading && comment.is_hash;
    // Paragraphs, as ranges of lines and what they are.
    let mut paragraphs: Vec<(usize, usize, Kind)> = Vec::new();
    let mut licensed = false;
    let mut at = 0;
    while at < comment.lines.len() {
        if is_blank(content(&comment.lines[at])) {
            at += 1;
            continue;
        }
        let length = comment.lines[at..].iter().take_while(|line| !is_blank(content(line))).count();
        let end = at + length;
        while at < end {
            let lines = &comment.lines[at..end];
            let (kind, length) = next_part(lines, &content, strict, licensed);
            licensed |= kind == Kind::Notice;
            paragraphs.push((at, at + length, kind));
            at += length;
        }
    }
    if !licensed {
        return Vec::new();
    }
    if paragraphs.iter().all(|(.., kind)| *kind != Kind::Text) {
        return vec![(comment.start, comment.end)];
    }
    cut(text, comment, &paragraphs)
}

/// What the first lines of a paragraph are, and how many of them.
fn next_part<'t>(
    lines: &[Line],
    content: &dyn Fn(&Line) -> &'t str,
    strict: bool,
    licensed: bool,
) -> (Kind, usize) {
    let matches = |regex: &Regex, line: &Line| regex.is_match(content(line).as_bytes());
    let is_notice = |line: &Line| {
        let text = content(line);
        matches(&LINE_NOTICE, line) && !is_prose(text)
            || !strict && (matches(&PHRASE, line) || matches(&TOP_PHRASE, line))
    };
    // A sentence may be wrapped anywhere, so the whole paragraph is looked at too.
    let joined = || lines.iter().map(content).collect::<Vec<_>>().join(" ");
    let Some(first) = lines.iter().position(is_notice) else {
        let all = joined();
        let phrase = PHRASE.is_match(all.as_bytes()) || TOP_PHRASE.is_match(all.as_bytes());
        if !strict && phrase {
            return (Kind::Notice, lines.len());
        }
        if licensed && LICENSE_BODY.is_match(all.as_bytes()) && !matches(&USAGE, &lines[0]) {
            return (Kind::Notice, lines.len());
        }
        let byline = lines.iter().all(|line| matches(&BYLINE, line));
        return (if byline { Kind::Byline } else { Kind::Text }, lines.len());
    };
    if first > 0 {
        let before = &lines[..first];
        let byline = before.iter().all(|line| matches(&BYLINE, line));
        return (if byline { Kind::Byline } else { Kind::Text }, first);
    }
    let usage = |line: &Line| matches(&USAGE, line) && !is_notice(line);
    let length = lines[1..].iter().position(usage).map_or(lines.len(), |at| at + 1);
    (Kind::Notice, length)
}

/// Whether a line only mentions copyright: `Copyright notices are read here.`
fn is_prose(text: &str) -> bool {
    static PROSE: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"(?i)^[\s\W]*copyright\s+(line|notice|header|text|year|message|string|owner|symbol|statement|and license (parser|check)|info(rmation)?)s?\s+(is|are|that|which|for|of|in|to|at|from|if|must|should)\b",
        )
    });
    PROSE.is_match(text.as_bytes())
}

/// Nothing to read: blank, or drawn lines.
fn is_blank(text: &str) -> bool {
    !text.contains(|c: char| c.is_alphanumeric() || c == '©')
}

/// Cuts the paragraphs that are no text out of a comment of which others stay.
fn cut(text: &str, comment: &Comment, paragraphs: &[(usize, usize, Kind)]) -> Vec<(usize, usize)> {
    let mut gone = vec![false; comment.lines.len()];
    for &(from, to, kind) in paragraphs {
        gone[from..to].fill(kind == Kind::Notice);
    }
    // Of the blank lines around what goes, those that part what stays are left once.
    let blank = |line: &Line| is_blank(&text[line.text.min(line.text_end)..line.text_end]);
    let mut stays_before = false;
    let mut at = 0;
    while at < gone.len() {
        if !gone[at] && !blank(&comment.lines[at]) {
            stays_before = true;
            at += 1;
            continue;
        }
        let begins = at;
        let mut cuts = false;
        while at < gone.len() && (gone[at] || blank(&comment.lines[at])) {
            cuts |= gone[at];
            at += 1;
        }
        if !cuts {
            continue;
        }
        let stays_after = at < gone.len();
        let mut kept = stays_before && stays_after;
        for line in begins..at {
            if gone[line] {
                continue;
            }
            let edge = !comment.is_run && (line == 0 || line + 1 == gone.len());
            gone[line] = !edge && !std::mem::take(&mut kept);
        }
    }
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for (number, line) in comment.lines.iter().enumerate().filter(|(number, _)| gone[*number]) {
        let last = number + 1 == comment.lines.len();
        // The marks of a block stay.
        let (from, to) = match (comment.is_run, number, last) {
            (false, 0, _) | (false, _, true) => {
                (line.text.min(line.text_end), line.text_end - trailing_end(text, line))
            }
            _ => (line.start, line.end),
        };
        match parts.last_mut() {
            Some(before) if before.1 == from => before.1 = to,
            _ if from < to => parts.push((from, to)),
            _ => {}
        }
    }
    parts
}

/// Bytes of the line end in the text of `line`, which stays behind an opening mark.
fn trailing_end(text: &str, line: &Line) -> usize {
    let content = &text[line.text.min(line.text_end)..line.text_end];
    content.len() - content.trim_end().len()
}
