//! The lines that tell a book from what Project Gutenberg put around it.
//!
//! The forms are those found in its plain text files since 1991: the modern
//! `*** START OF THE PROJECT GUTENBERG EBOOK … ***`, the `SMALL PRINT` of the years before 2000,
//! and `End of the Project Gutenberg Etext of …`.

/// Lines at the top of a file that may hold a start marker.
const HEADER_LINES: usize = 600;
/// Without a start marker, no line before this one is an end marker.
const FOOTER_FROM_LINE: usize = 100;
/// Paragraphs at the beginning of the book that may be credits.
const CREDIT_PARAGRAPHS: usize = 8;
/// Longest legal section inside a book, in lines.
const LEGAL_LINES: usize = 40;

/// Longest start marker, in lines: a long title goes on in the next ones.
const MARKER_LINES: usize = 8;
/// Longest paragraph of credits, in lines, that is known by what it names alone.
const CREDIT_LINES: usize = 12;
/// Longest header of the sites in Australia and Canada, in lines.
const SITE_HEADER_LINES: usize = 150;
/// Lines at the end of a file that may hold what those sites write there.
const SITE_FOOTER_LINES: usize = 40;

/// Beginnings of paragraphs that say who made the file, or which other versions of it there are.
const CREDITS: [&str; 62] = [
    "produced by",
    "e-text prepared by",
    "etext prepared by",
    "etext produced by",
    "e-text produced by",
    "ebook prepared by",
    "ebook produced by",
    "this etext was",
    "this e-text was",
    "this ebook was",
    "this e-book was",
    "this file was",
    "this book was produced",
    "prepared by",
    "scanned by",
    "scanned and proofed by",
    "transcribed by",
    "transcribed from the",
    "html version by",
    "digitized by",
    "digitised by",
    "proofread by",
    "proofed by",
    "typed by",
    "text file produced by",
    "credits:",
    "updated editions will",
    "special thanks to",
    "thanks to",
    "images generously",
    "[this file was first posted",
    "online distributed proofreading team",
    "note: project gutenberg",
    "note: images of the original",
    "note: this is",
    "note: the original file",
    "note: the html",
    "note: there is",
    "note: file for which",
    "note: see also",
    "[note: project gutenberg",
    "project gutenberg also has",
    "project gutenberg has the other volumes",
    "images of the original pages are available",
    "there is an illustrated edition",
    "there is an improved edition",
    "there are several editions of this",
    "this project gutenberg",
    "produit par",
    "ce livre a été",
    "produziert von",
    "erstellt von",
    "dieses buch wurde",
    "geproduceerd door",
    "prodotto da",
    "producido por",
    "produzido por",
    "tuottanut",
    "tuottaneet",
    "producerad av",
    "produceret af",
    "produceret",
];

/// What a short paragraph at the beginning of a book names when it is credits.
const CREDIT_NAMES: [&str; 9] = [
    "distributed proofread",
    "pgdp.net",
    "pgdpcanada",
    "gutenberg.org",
    "gutenberg.net",
    "internet archive",
    "archive.org",
    "hathitrust",
    "project gutenberg",
];

/// What a footer begins with, in the languages of the catalogue.
const END_WORDS: [&str; 33] = [
    "end",
    "ende",
    "einde",
    "eind",
    "fin",
    "fim",
    "fine",
    "fi",
    "fí",
    "slut",
    "slutt",
    "slutning",
    "slutningen",
    "loppu",
    "koniec",
    "konec",
    "kraj",
    "vége",
    "fino",
    "finis",
    "wakas",
    "katapusan",
    "τέλος",
    "τελος",
    "конец",
    "кінець",
    "край",
    "sfârșitul",
    "diwedd",
    "endir",
    "críoch",
    "lõpp",
    "pabaiga",
];

/// What may stand between such a word and the name of the project.
const CONNECTIONS: [&str; 38] = [
    "of", "the", "this", "a", "des", "dieses", "dieser", "der", "diese", "van", "het", "de", "dit",
    "deze", "del", "della", "dello", "dell", "di", "du", "do", "da", "dos", "på", "af", "av", "ng",
    "von", "la", "le", "les", "el", "l", "d", "του", "της", "ebook", "etext",
];

/// Names of the project in the languages of the catalogue.
const PROJECT_NAMES: [&str; 16] = [
    "project gutenberg",
    "projekt gutenberg",
    "projekt-gutenberg",
    "projet gutenberg",
    "proyecto gutenberg",
    "projecto gutenberg",
    "projeto gutenberg",
    "projecte gutenberg",
    "progetto gutenberg",
    "projekto gutenberg",
    "gutenberg-projekt",
    "gutenberg projekt",
    "gutenberg-projektin",
    "gutenberg-hank",
    "проект гутенберг",
    "проекта гутенберг",
];

/// Where the book lies in the lines of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// First line of the book.
    pub start: usize,
    /// First line after it.
    pub end: usize,
    /// A line said where the book begins.
    pub start_marked: bool,
    /// A line said where the book ends.
    pub end_marked: bool,
    /// Legal sections inside the book: ranges of lines.
    pub legal: Vec<(usize, usize)>,
}

/// Finds the book in `lines`.
pub(super) fn find_book(lines: &[&str]) -> Bounds {
    let mut bounds = Bounds { end: lines.len(), ..Bounds::default() };
    for (number, line) in lines.iter().enumerate().take(HEADER_LINES) {
        if is_start(line) {
            bounds.start_marked = true;
            bounds.start = number + 1 + lines_of_marker(&lines[number..]);
        }
    }
    let site = if bounds.start_marked { None } else { site_header(lines) };
    if let Some(end) = site {
        bounds.start_marked = true;
        bounds.start = end;
    }
    let header = HEADER_LINES.min(lines.len());
    let from = if bounds.start_marked { bounds.start } else { FOOTER_FROM_LINE };
    let ends = |(number, line): (usize, &&str)| {
        is_end(line) || number >= header && is_small_print_start(line)
    };
    let found = lines.iter().enumerate().skip(from).find(|&(number, line)| ends((number, line)));
    if let Some((number, _)) = found {
        bounds.end = number;
        bounds.end_marked = true;
    } else if site.is_some()
        && let Some(number) = site_footer(lines, bounds.start)
    {
        bounds.end = number;
        bounds.end_marked = true;
    }
    bounds.start = skip_credits(&lines[..bounds.end], bounds.start);
    bounds.legal = legal_sections(lines, &bounds);
    bounds
}

/// Stars and spaces before the words of `line`, and the words.
fn stars(line: &str) -> (usize, &str) {
    let words = line.trim_start_matches(|c: char| c == '*' || c.is_whitespace());
    (line.len() - words.len() - line.bytes().take_while(|&b| b == b' ').count(), words.trim_end())
}

fn starts_with(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn contains(text: &str, words: &str) -> bool {
    text.to_ascii_lowercase().contains(words)
}

fn is_start(line: &str) -> bool {
    let (stars, words) = stars(line);
    if stars == 0 {
        return false;
    }
    let modern = stars >= 3 && starts_with(words, "start of") && contains(words, "gutenberg");
    let small_print = starts_with(words, "end") && contains(words, "the small print");
    modern || small_print || is_small_print_start(line)
}

fn is_small_print_start(line: &str) -> bool {
    let (stars, words) = stars(line);
    stars > 0 && starts_with(words, "start") && contains(words, "the small print")
}

/// Further lines of the start marker that `lines` begin with.
fn lines_of_marker(lines: &[&str]) -> usize {
    if lines[0].trim_end().ends_with('*') {
        return 0;
    }
    let next = lines.iter().skip(1).take(MARKER_LINES).take_while(|line| !line.trim().is_empty());
    next.enumerate().find(|(_, line)| line.trim_end().ends_with("***")).map_or(0, |(at, _)| at + 1)
}

fn is_end(line: &str) -> bool {
    // Most lines are prose: look at their first word alone.
    let (stars, words) = stars(line);
    let words = strip(strip(words, "this is "), "the ");
    let first = words.split([' ', '\'', '’', ':']).next().unwrap_or_default();
    if first.len() > 24 {
        return false;
    }
    let first = first.to_lowercase();
    if END_WORDS.contains(&first.as_str()) {
        let rest = words
            [words.char_indices().nth(first.chars().count()).map_or(words.len(), |(at, _)| at)..]
            .to_lowercase();
        let near = &rest[..rest.floor_char_boundary(40)];
        let between = |words: &str| {
            let words = words.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
            words.clone().count() <= 3 && words.clone().all(|word| CONNECTIONS.contains(&word))
        };
        return PROJECT_NAMES
            .iter()
            .any(|name| near.find(name).is_some_and(|at| between(&near[..at])));
    }
    // The word comes last: A Project Gutenberg … vége, Project Gutenbergin … loppu.
    let last = words.trim_end_matches(['.', '*', ' ', '!']).rsplit(' ').next().unwrap_or_default();
    let names = words.len() < 200
        && (stars > 0 || first == "project" || first == "a" || first == "projekt");
    names
        && ["vége", "loppu", "loppuu", "lõpp", "完", "終"].contains(&last.to_lowercase().as_str())
        && contains(words, "gutenberg")
}

/// Where the header of Project Gutenberg Australia or Canada ends, which have no start marker: with
/// the first paragraph that says nothing of the file.
fn site_header(lines: &[&str]) -> Option<usize> {
    let top = &lines[..lines.len().min(SITE_HEADER_LINES)];
    let first = top.iter().take(30).position(|line| {
        let line = line.to_lowercase();
        [
            "project gutenberg of australia",
            "project gutenberg australia",
            "project gutenberg canada",
        ]
        .iter()
        .any(|name| line.contains(name))
    })?;
    // Nothing but fields and names stands before it.
    let mut end = 0;
    let mut at = 0;
    while at < top.len() {
        if top[at].trim().is_empty() {
            at += 1;
            continue;
        }
        let length = top[at..].iter().take_while(|line| !line.trim().is_empty()).count();
        let paragraph = &top[at..at + length];
        if at > first && !paragraph.iter().any(|line| speaks_of_the_file(line)) {
            break;
        }
        at += length;
        end = at;
    }
    (end > first).then_some(end)
}

/// Whether a line is part of what those sites write around a book.
fn speaks_of_the_file(line: &str) -> bool {
    let line = line.trim_start_matches(['*', ' ']).to_lowercase();
    let begins = [
        "title:",
        "author:",
        "authors:",
        "translator:",
        "editor:",
        "illustrator:",
        "ebook no",
        "language:",
        "date first posted",
        "date most recently updated",
        "date last updated",
        "date of first publication",
        "place and date of edition",
        "edition:",
        "character set",
        "date:",
        "production notes",
        "this ebook",
        "this e-book",
        "copyright laws",
        "edition used",
        "most recent update",
        "first posted",
    ];
    let names = [
        "project gutenberg",
        "gutenberg.net.au",
        "gutenberg.ca",
        "public domain in australia",
        "public domain in canada",
        "copyright in your country",
        "do not download",
        "made available at no cost",
        "created from printed editions",
        "before downloading",
    ];
    begins.iter().any(|begin| line.starts_with(begin))
        || names.iter().any(|name| line.contains(name))
}

/// Where the last lines of those sites begin.
fn site_footer(lines: &[&str], start: usize) -> Option<usize> {
    let from = start.max(lines.len().saturating_sub(SITE_FOOTER_LINES));
    let found = (from..lines.len()).find(|&number| {
        let line = lines[number].trim().to_lowercase();
        line.starts_with("[end of ")
            || line.len() < 100
                && [
                    "gutenberg australia",
                    "gutenberg of australia",
                    "gutenberg canada",
                    "gutenberg.net.au",
                    "gutenberg.ca",
                    "full of free ebooks",
                ]
                .iter()
                .any(|name| line.contains(name))
    })?;
    Some(found)
}

fn strip<'a>(text: &'a str, prefix: &str) -> &'a str {
    if starts_with(text, prefix) { &text[prefix.len()..] } else { text }
}

/// The first line after the credits and notes at the beginning of the book.
fn skip_credits(lines: &[&str], start: usize) -> usize {
    let mut at = start;
    for _ in 0..CREDIT_PARAGRAPHS {
        let Some(paragraph) = (at..lines.len()).find(|&line| !lines[line].trim().is_empty()) else {
            break;
        };
        let blank = (paragraph..lines.len()).find(|&line| lines[line].trim().is_empty());
        let end = blank.unwrap_or(lines.len());
        let words = lines[paragraph].trim();
        let lower = words.to_lowercase();
        let names = || {
            // A name may go on in the next line.
            let joined = lines[paragraph..end].join(" ");
            end - paragraph <= CREDIT_LINES
                && CREDIT_NAMES.iter().any(|name| contains(&joined, name))
        };
        let credit = CREDITS.iter().any(|credit| lower.starts_with(credit));
        if !credit && !names() {
            break;
        }
        at = end;
    }
    at
}

fn legal_sections(lines: &[&str], bounds: &Bounds) -> Vec<(usize, usize)> {
    let mut sections = Vec::new();
    let mut number = bounds.start;
    while number < bounds.end {
        if starts_with(lines[number].trim_start(), "<<this electronic version of") {
            let last = bounds.end.min(number + LEGAL_LINES);
            let end = (number..last)
                .find(|&line| contains(lines[line], "service that charges for download"));
            if let Some(end) = end {
                sections.push((number, end + 1));
                number = end;
            }
        }
        number += 1;
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_markers_of_all_times() {
        for line in [
            "*** START OF THE PROJECT GUTENBERG EBOOK MOBY DICK ***",
            "***START OF THIS PROJECT GUTENBERG EBOOK X***",
            "  *** START OF THIS PROJECT GUTENBERG EBOOK THE LONG TITLE OF",
            "***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***",
            "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
            "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.03.17.02*END*",
        ] {
            assert!(is_start(line), "{line}");
        }
        for line in ["START OF THE PROJECT GUTENBERG", "* * *", "*** The start", "", "*END*"] {
            assert!(!is_start(line), "{line}");
        }
    }

    #[test]
    fn end_markers_of_all_times() {
        for line in [
            "*** END OF THE PROJECT GUTENBERG EBOOK MOBY DICK ***",
            "***END OF THIS PROJECT GUTENBERG EBOOK X***",
            "End of the Project Gutenberg Etext of Moby Dick",
            "End of Project Gutenberg's Moby Dick, by Herman Melville",
            "End of The Project Gutenberg Etext",
            "END OF PROJECT GUTENBERG ETEXT",
            "This is the end of the Project Gutenberg Etext",
            "Ende dieses Projekt Gutenberg Etextes Faust",
            "Einde van Project Gutenberg's Boek, door Auteur",
            "Einde van het Project Gutenberg EBoek",
            "Fin de Project Gutenberg's Candide",
            "Fin del Proyecto Gutenberg",
            "Fim do Projecto Gutenberg de Os Lusíadas",
            "Fine del Progetto Gutenberg",
            "Slut på Project Gutenbergs Röda rummet",
            "A Project Gutenberg EBook Egri csillagok vége",
            "Τέλος του Project Gutenberg",
        ] {
            assert!(is_end(line), "{line}");
        }
        for line in [
            "End of the Project",
            "THE END",
            "Fine words of Project Gutenberg",
            "Fin de siècle",
            "End it, said he, and thought of the old Project Gutenberg",
            "the end of the world",
            "End of Chapter 1",
            "",
        ] {
            assert!(!is_end(line), "{line}");
        }
    }

    #[test]
    fn a_long_title_and_notes_are_part_of_the_header() {
        let marker = [
            "*** START OF THE PROJECT GUTENBERG EBOOK DANGER SIGNALS",
            "REMARKABLE, EXCITING AND UNIQUE EXAMPLES OF THE BRAVERY, DARING AND",
            "STOICISM IN THE MIDST OF DANGER OF TRAIN DISPATCHERS AND RAILROAD",
            "ENGINEERS ***",
            "",
            "Note: Project Gutenberg also has an HTML version of this",
            "      file which includes the original illustrations.",
            "",
            "Juliet S., Charles F. and the Online Distributed",
            "Proofreading Team",
            "",
            "CHAPTER I",
        ];
        let bounds = find_book(&marker);
        assert_eq!(marker[bounds.start..].join("").trim(), "CHAPTER I");
        // A marker that does not end takes nothing else with it.
        let open = ["*** START OF THE PROJECT GUTENBERG EBOOK X", "", "CHAPTER I", "***"];
        assert_eq!(find_book(&open).start, 1);
    }

    #[test]
    fn the_sites_of_other_countries_have_headers_too() {
        let australia = [
            "Project Gutenberg Australia",
            "",
            "Title: A Tale",
            "Author: A",
            "* A Project Gutenberg of Australia eBook *",
            "",
            "Copyright laws are changing all over the world. Be sure to check them",
            "before downloading.",
            "",
            "A TALE",
            "",
            "Text.",
            "",
            "THE END",
            "",
            "Project Gutenberg Australia",
        ];
        let bounds = find_book(&australia);
        assert_eq!(australia[bounds.start..bounds.end].join("|"), "|A TALE||Text.||THE END|");
        let canada = [
            "* A Project Gutenberg Canada eBook *",
            "",
            "This eBook is made available at no cost and with very few restrictions.",
            "",
            "Title: A Tale",
            "Date first posted: 1 May 2010",
            "",
            "This ebook was produced by: A B",
            "",
            "Chapter One",
            "",
            "[End of _A Tale_ by A B]",
        ];
        let bounds = find_book(&canada);
        assert_eq!(canada[bounds.start..bounds.end].join("|"), "|Chapter One|");
        assert!(bounds.start_marked && bounds.end_marked);
    }

    #[test]
    fn the_book_is_between_its_markers() {
        let lines = [
            "The Project Gutenberg EBook of X",
            "*** START OF THIS PROJECT GUTENBERG EBOOK A LONG TITLE",
            "THAT GOES ON ***",
            "",
            "Produced by A and the Online",
            "Distributed Proofreading Team at http://www.pgdp.net",
            "",
            "CHAPTER I",
            "<<THIS ELECTRONIC VERSION OF X IS",
            "SERVICE THAT CHARGES FOR DOWNLOAD TIME>>",
            "Text.",
            "End of Project Gutenberg's X",
            "*** END OF THIS PROJECT GUTENBERG EBOOK X ***",
        ];
        let expected = Bounds {
            start: 6,
            end: 11,
            start_marked: true,
            end_marked: true,
            legal: vec![(8, 10)],
        };
        assert_eq!(find_book(&lines), expected);
        let plain = ["a"; 50];
        let whole = Bounds { end: 50, ..Bounds::default() };
        assert_eq!(find_book(&plain), whole);
        // Credits may be all that is left of a header.
        let credits = Bounds { start: 2, end: 4, ..Bounds::default() };
        assert_eq!(find_book(&lines[4..8]), credits);
        // Early lines may quote a marker; a start marker late in the book is none.
        let mut late = vec!["a"; 700];
        late[50] = "End of Project Gutenberg's X";
        late[650] = lines[1];
        assert_eq!(find_book(&late), Bounds { end: 700, ..Bounds::default() });
    }
}
