//! Tests of the rules of C4.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::document::Document;
use crate::step::{StepCounts, Verdict};

const FILLER: &str = "This is the first sentence of it.\nHere comes the second sentence now.\n\
                      And this here is the third one.";

struct Outcome {
    text: String,
    reason: Option<String>,
    counts: StepCounts,
}

fn run(options: &C4Options, text: &str) -> Outcome {
    options.validate("c4").unwrap();
    let step = options.build("c4").unwrap();
    let mut document = Document { id: "a".into(), text: text.into(), ..Document::default() };
    let mut counts = StepCounts::default();
    let reason = match step.apply(&mut document, &mut counts) {
        Verdict::Keep | Verdict::Split(_) => None,
        Verdict::Drop { reason, .. } => Some(reason.name().to_owned()),
    };
    Outcome { text: document.text, reason, counts }
}

/// What is left of `line` between three good lines, and why it is gone.
fn line(preset: C4Preset, line: &str) -> std::result::Result<String, String> {
    let options = C4Options { min_sentences: Some(3), ..C4Options::preset(preset) };
    let outcome = run(&options, &format!("{FILLER}\n{line}\n{FILLER}"));
    if let Some(reason) = outcome.reason {
        return Err(reason);
    }
    let removed: Vec<_> =
        outcome.counts.removed().keys().filter(|key| key.starts_with("lines")).copied().collect();
    match removed[..] {
        [] => {
            let middle = outcome.text.strip_prefix(FILLER).unwrap().strip_suffix(FILLER).unwrap();
            Ok(middle.trim_matches('\n').to_owned())
        }
        [reason] => {
            assert_eq!(outcome.text, format!("{FILLER}\n{FILLER}"));
            Err(reason.to_owned())
        }
        _ => panic!("{removed:?}"),
    }
}

#[test]
fn lines_go_for_the_reasons_of_tfds() {
    let long = "x".repeat(1000);
    let tfds = |text: &str| line(C4Preset::Tfds, text);
    let gone = |text: &str| tfds(text).unwrap_err();
    assert_eq!(tfds(&format!("One {long} word is not too long.")).unwrap().len(), 1026);
    assert_eq!(gone(&format!("One {long}x word is too long.")), "lines-with-too-long-word");
    // Characters, not bytes.
    let umlauts = "ü".repeat(1000);
    assert!(tfds(&format!("One {umlauts} word is not too long.")).is_ok());
    for ends in ["no mark at the end", "an ellipsis at the end...", "some code at the end;", ""] {
        assert_eq!(gone(ends), "lines-no-endmark", "{ends:?}");
    }
    for ends in
        ["a mark is here now.", "is a mark here now?", "what a mark it is!", "he said \"so it is\""]
    {
        assert_eq!(tfds(ends).unwrap(), ends);
    }
    assert_eq!(gone("it ends in a 'quote'"), "lines-no-endmark");
    assert_eq!(gone("only four words here."), "lines-too-short");
    assert_eq!(gone("Please enable JavaScript to see it."), "lines-javascript");
    assert_eq!(gone("Read our Privacy Policy before you go."), "lines-policy");
    assert_eq!(gone("This site USES COOKIES to work well."), "lines-policy");
    // White space around a line is not looked at.
    assert_eq!(tfds("  \u{a0}a mark is here now. \t").unwrap(), "a mark is here now.");
}

#[test]
fn citations_go_before_the_end_is_looked_at() {
    let tfds = |text: &str| line(C4Preset::Tfds, text);
    let text = "A [1]claim[23] is made[] here[edit] twice[citation needed].";
    assert_eq!(tfds(text).unwrap(), "A claim is made here twice.");
    assert_eq!(
        tfds("Arabic digits[١٢] go as well here.").unwrap(),
        "Arabic digits go as well here."
    );
    assert_eq!(tfds("An [a] and a [2b] do stay.").unwrap(), "An [a] and a [2b] do stay.");
    assert_eq!(tfds("A mark before the end.[4]").unwrap(), "A mark before the end.");
    // The space before the citation stays, and so the line does not end in a mark.
    assert_eq!(tfds("A mark before the end. [4]").unwrap_err(), "lines-no-endmark");
    // Words are counted after the citations are gone, and before by datatrove.
    assert_eq!(tfds("Four words [1] are here.").unwrap_err(), "lines-too-short");
    assert_eq!(line(C4Preset::Datatrove, "Two [1] words.").unwrap(), "Two  words.");
    assert_eq!(line(C4Preset::Datatrove, "Two words.").unwrap_err(), "lines-too-short");
    assert_eq!(line(C4Preset::Datatrove, "ends in a 'quote'").unwrap(), "ends in a 'quote'");
}

#[test]
fn pages_go_for_the_reasons_of_tfds_in_their_order() {
    let options = C4Options::default();
    let page = |text: &str| run(&options, &format!("{FILLER}\n{text}")).reason;
    assert_eq!(
        page("Here is Lorem IPSUM dolor sit amet."),
        Some("filtered-page-loremipsum".into())
    );
    assert_eq!(page("Here a { opens in the line."), Some("filtered-page-squigglybracket".into()));
    // A line that goes for an earlier reason cannot drop the page.
    assert_eq!(page("Here a { opens without a mark"), None);
    assert_eq!(page("Here JavaScript { opens in the line."), None);
    assert_eq!(
        page("Here our privacy policy { opens a line."),
        Some("filtered-page-squigglybracket".into())
    );
    assert_eq!(
        page("Lorem ipsum { javascript privacy policy both."),
        Some("filtered-page-loremipsum".into())
    );
    assert_eq!(
        run(&options, "Two sentences are here. No more of them.").reason,
        Some("filtered-page-toofewsentences".into())
    );
    assert_eq!(run(&options, "").reason, Some("filtered-page-toofewsentences".into()));
    assert_eq!(run(&options, "Three are here. It is so. They all are on one line.").reason, None);
    let datatrove = C4Options::preset(C4Preset::Datatrove);
    assert_eq!(run(&datatrove, FILLER).reason, Some("filtered-page-toofewsentences".into()));
    assert_eq!(run(&datatrove, &format!("{FILLER} One more. And yet one more.")).reason, None);
}

#[test]
fn a_page_of_190000_characters_is_the_longest() {
    let line = "This is a line of exactly fifty characters, é é é.\n";
    assert_eq!(line.chars().count(), 51);
    let text = line.repeat(3725);
    let rest = 190_000 - text.chars().count();
    let text = text + &"x".repeat(rest);
    assert_eq!(text.chars().count(), 190_000);
    assert_eq!(run(&C4Options::default(), &text).reason, None);
    let longer = text + "x";
    assert_eq!(
        run(&C4Options::default(), &longer).reason,
        Some("filtered-page-contenttoolong".into())
    );
    assert_eq!(run(&C4Options::preset(C4Preset::Datatrove), &longer).reason, None);
}

#[test]
fn bad_words_drop_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("words");
    std::fs::write(&path, "rotten\nvery bad\n").unwrap();
    let mut options = C4Options { bad_words: Some(path), ..C4Options::default() };
    let page = |options: &C4Options, text: &str| run(options, &format!("{FILLER}\n{text}")).reason;
    let reason = Some("filtered-page-badword".to_owned());
    assert_eq!(page(&options, "A ROTTEN egg is in it."), reason);
    assert_eq!(page(&options, "It is a Very Bad, bad egg."), reason);
    assert_eq!(page(&options, "Rottenness is not in the list."), None);
    assert_eq!(page(&options, "Rotten at the line's very start."), None);
    options.preset = C4Preset::Datatrove;
    options.min_sentences = Some(3);
    assert_eq!(page(&options, "Rotten at the line's very start."), reason);
}

#[test]
fn counts_are_of_pages_that_stay() {
    let options = C4Options::default();
    let outcome = run(&options, &format!("menu\nhome\n{FILLER}\n\nIt has a citation[12] in it.\n"));
    assert_eq!(outcome.reason, None);
    assert_eq!(outcome.text, format!("{FILLER}\nIt has a citation in it."));
    let removed = outcome.counts.removed();
    // The empty line has no end mark either.
    assert_eq!((removed["lines-no-endmark"].parts, removed["lines-no-endmark"].bytes), (3, 8));
    assert_eq!((removed["citations"].parts, removed["citations"].bytes), (1, 4));
    assert_eq!(outcome.counts.noted["lines-valid"], 4);
    let outcome = run(&options, "menu\nOne good line is not enough.");
    assert!(outcome.reason.is_some() && outcome.counts == StepCounts::default());
}

#[test]
fn lines_end_as_in_python() {
    let text = FILLER.replace('\n', "\u{2028}")
        + "\u{85}menu\u{c}menu\r\nmenu\u{1d}And a last one is here.";
    let outcome = run(&C4Options::default(), &text);
    assert_eq!(outcome.text, format!("{FILLER}\nAnd a last one is here."));
    assert_eq!(outcome.counts.removed()["lines-no-endmark"].parts, 3);
}

#[test]
fn every_constant_can_be_set_and_every_rule_turned_off() {
    let yaml = "preset: c4-datatrove\nmin_words_per_line: 0\nmin_sentences: 0\nend_marks: []\n\
                max_word_chars: 0\nremove_citations: false\nplaceholder_phrases: []\n\
                javascript_phrases: []\ncode_marks: []\npolicy_phrases: []\n";
    let options: C4Options = serde_yaml::from_str(yaml).unwrap();
    let text = "lorem ipsum { javascript\nterms of use [1]";
    assert_eq!(run(&options, text).text, text);
    let again: C4Options = serde_yaml::from_str(&serde_yaml::to_string(&options).unwrap()).unwrap();
    assert_eq!(again, options);
    assert!(serde_yaml::from_str::<C4Options>("min_wrds: 3").is_err());
    let options = C4Options { end_marks: Some(vec![String::new()]), ..C4Options::default() };
    assert!(options.validate("steps.1.c4").unwrap_err().to_string().contains("c4.end_marks"));
    let paragraphs = C4Options { min_paragraphs: Some(1), ..C4Options::default() };
    assert_eq!(run(&paragraphs, FILLER).reason, Some("filtered-page-toofewparagraphs".into()));
    let paragraphs = C4Options { min_paragraph_chars: Some(33), ..paragraphs };
    assert_eq!(run(&paragraphs, FILLER).reason, None);
}
