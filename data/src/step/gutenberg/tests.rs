use proptest::prelude::*;

use super::*;

const MODERN: &str = "\u{feff}The Project Gutenberg eBook of Moby Dick; Or, The Whale\r\n\r\n\
Title: Moby Dick; Or, The Whale\r\n\r\nAuthor: Herman Melville\r\n\r\n\
Release date: July 1, 2001 [eBook #2701]\r\n\r\nLanguage: English\r\n\r\n\
*** START OF THE PROJECT GUTENBERG EBOOK MOBY DICK; OR, THE WHALE ***\r\n\r\n\
Produced by Daniel Lazarus and Jonesey\r\n\r\n";
const OLD: &str = "**The Project Gutenberg Etext of Moby Dick, by Herman Melville**\n\n\
***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\nWhy is this here? Lawyers.\n\
*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n\n\
This etext was prepared by Daniel Lazarus.\n\n";

fn chapters() -> String {
    (1..200).map(|n| format!("CHAPTER {n}\n\nCall me Ishmael, the {n}th of my name.\n\n")).collect()
}

fn apply(text: String) -> (Verdict, Document, StepCounts) {
    let mut document = Document { text, ..Document::default() };
    let mut counts = StepCounts::default();
    let verdict = GutenbergOptions::default().apply(&mut document, &mut counts);
    (verdict, document, counts)
}

#[test]
fn header_and_footer_of_all_times_go() {
    let book = chapters();
    for (header, footer) in [
        (MODERN, "*** END OF THE PROJECT GUTENBERG EBOOK MOBY DICK ***\r\nLicense.\r\n"),
        (MODERN, "End of Project Gutenberg's Moby Dick\n\n*** END OF THIS PROJECT GUTENBERG ***"),
        (OLD, "End of the Project Gutenberg Etext of Moby Dick\n"),
    ] {
        let file = format!("{header}{}{footer}", book.replace('\n', "\r\n"));
        let (verdict, document, counts) = apply(file);
        assert_eq!(verdict, Verdict::Keep);
        assert_eq!(document.text, book.trim());
        assert!(counts.noted.is_empty(), "{:?}", counts.noted);
        assert_eq!(counts.removed()["header"].parts, 1);
        let metadata = document.metadata();
        assert_eq!(metadata["author"], "Herman Melville");
        assert_eq!(metadata["n_words"], 199 * 10);
        if header == MODERN {
            assert_eq!(metadata["title"], "Moby Dick; Or, The Whale");
            assert_eq!(document.language.as_deref(), Some("en"));
        } else {
            assert_eq!(metadata["title"], "Moby Dick");
            assert_eq!(metadata["header_lines_removed"], 7);
        }
    }
}

#[test]
fn books_without_markers_stay_whole_and_are_noted() {
    let (_, document, counts) = apply(chapters());
    assert_eq!(document.text, chapters().trim());
    assert_eq!(counts.noted["no_start_marker"] + counts.noted["no_end_marker"], 2);
    assert!(counts.removed().is_empty());
}

#[test]
fn a_header_of_more_than_30_percent_stays() {
    let header = format!("{}\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n", "x\n".repeat(40));
    // Just over and just under the bound.
    for (length, kept) in [(292, true), (302, false)] {
        let book = "y".repeat(length);
        let (_, document, counts) = apply(format!("{header}{book}"));
        let share = header.len() as f64 / (header.len() + length) as f64;
        assert_eq!(share > 0.3, kept, "{share}");
        assert_eq!(document.text.starts_with('x'), kept);
        assert_eq!(counts.noted.contains_key("suspicious_header"), kept);
    }
}

#[test]
fn a_footer_that_takes_most_of_the_book_stays() {
    let text = format!(
        "*** START OF THE PROJECT GUTENBERG EBOOK X ***\na\nEnd of Project Gutenberg's joke\n{}",
        chapters().repeat(20)
    );
    let (_, document, counts) = apply(text);
    assert!(document.text.ends_with("of my name."));
    assert_eq!(counts.noted["suspicious_footer"], 1);
}

#[test]
fn text_is_brought_into_one_form() {
    let (_, document, _) = apply("e\u{301}t\r\n[Illustration: x]\r\n\u{212b}".into());
    assert_eq!(document.text, "ét\n\u{c5}");
    let (verdict, ..) = apply(" \n".into());
    assert_eq!(verdict, Verdict::Drop { reason: Reason::EMPTY, detail: String::new() });
}

#[test]
fn legal_sections_inside_go() {
    let legal = "<<THIS ELECTRONIC VERSION OF THE COMPLETE WORKS IS\nCOPYRIGHT. PROHIBITED \
                 COMMERCIAL DISTRIBUTION INCLUDES BY ANY\nSERVICE THAT CHARGES FOR DOWNLOAD TIME OR \
                 FOR MEMBERSHIP.>>\n";
    let (_, document, counts) = apply(format!("Act one.\n{legal}Act two.\n{legal}"));
    assert_eq!(document.text, "Act one.\nAct two.");
    assert_eq!(counts.removed()["legal_sections"].parts, 2);
}

proptest! {
    #[test]
    fn any_lines_are_cut_in_bounds(
        lines in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![
                    "*** START OF THE PROJECT GUTENBERG EBOOK X ***", "***START**THE SMALL PRINT!",
                    "*END*THE SMALL PRINT!*", "End of Project Gutenberg's X", "", "Produced by É",
                    "<<THIS ELECTRONIC VERSION OF", "SERVICE THAT CHARGES FOR DOWNLOAD", "Title: É",
                    "  É", "[Illustration", "]", "{12}", "[Pg 1]", "*", "***", "12",
                ]).prop_map(str::to_owned),
                "\\PC{0,80}",
            ],
            0..200,
        ),
    ) {
        let step = GutenbergOptions {
            drop_page_numbers: true,
            unwrap_paragraphs: true,
            ..GutenbergOptions::default()
        };
        let text = lines.join("\n");
        let bytes = text.len();
        let mut document = Document { text, ..Document::default() };
        let verdict = step.apply(&mut document, &mut StepCounts::default());
        if verdict == Verdict::Keep {
            prop_assert!(!document.text.is_empty());
            prop_assert!(document.text.len() <= 3 * bytes + 1);
        }
    }
}
