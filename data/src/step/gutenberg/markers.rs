//! The lines that tell a book from what Project Gutenberg put around it.
//!
//! The forms are those found in its plain text files since 1991: the modern
//! `*** START OF THE PROJECT GUTENBERG EBOOK … ***`, the `SMALL PRINT` of the years before 2000,
//! and `End of the Project Gutenberg Etext of …`.

use super::notes::{site_footer, site_header, skip_credits};

/// Lines at the top of a file that may hold a start marker.
const HEADER_LINES: usize = 600;
/// Without a start marker, no line before this one is an end marker.
const FOOTER_FROM_LINE: usize = 100;
/// Longest legal section inside a book, in lines.
const LEGAL_LINES: usize = 40;

/// Longest start marker, in lines: a long title goes on in the next ones.
const MARKER_LINES: usize = 8;

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

pub(super) fn contains(text: &str, words: &str) -> bool {
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

fn strip<'a>(text: &'a str, prefix: &str) -> &'a str {
    if starts_with(text, prefix) { &text[prefix.len()..] } else { text }
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
