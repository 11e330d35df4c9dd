//! From what a model wrote to instructions, and which of them are not wanted.

use std::sync::LazyLock;

use regex::Regex;

use super::seed_tasks::{NO_INPUT, SeedTask};

/// Fewest and most words of an instruction.
const FEWEST_WORDS: usize = 4;
const MOST_WORDS: usize = 150;

/// Words of what a model of text cannot do.
static KEYWORDS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i)\b(?:images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram)\b",
    )
    .ok()
});

/// A piece of an answer: an instruction, or why it is none.
pub(super) type Piece = Result<SeedTask, &'static str>;

/// The instructions in `text`, the answer to a prompt that shows `shown` tasks. `cut_short`: the answer ended at
/// the largest number of tokens.
pub(super) fn instructions(text: &str, shown: usize, cut_short: bool) -> Vec<Piece> {
    // The prompt ends with the heading of the first. A model that answers it as a message often begins with
    // that heading again, behind a word of its own.
    let number = shown + 1;
    let first = match at_heading(text, number, "Instruction") {
        Some((before, behind)) if at_heading(before, number, "Input").is_none() => {
            format!("{number}. Instruction:{behind}")
        }
        _ => format!("{number}. Instruction:{text}"),
    };
    let pieces: Vec<&str> = first.split("###").collect();
    let last = pieces.len() - 1;
    let mut found = Vec::new();
    for (at, piece) in pieces.into_iter().enumerate() {
        if piece.trim().is_empty() {
            continue;
        }
        found.push(match at == last && cut_short {
            true => Err("cut_short"),
            false => task(piece, shown + 1 + at).and_then(wanted),
        });
    }
    found
}

/// The task of a piece with the headings of `number`.
fn task(piece: &str, number: usize) -> Piece {
    let (before, rest) = at_heading(piece, number, "Instruction").ok_or("malformed")?;
    let (instruction, rest) = at_heading(rest, number, "Input").ok_or("malformed")?;
    let (input, output) = at_heading(rest, number, "Output").ok_or("malformed")?;
    let again = ["Instruction", "Input", "Output"]
        .iter()
        .any(|heading| at_heading(output, number, heading).is_some());
    if !before.trim().is_empty() || again {
        return Err("malformed");
    }
    let input = input.trim();
    let input = if input.eq_ignore_ascii_case(NO_INPUT) { "" } else { input };
    Ok(SeedTask {
        instruction: instruction.trim().to_owned(),
        input: input.to_owned(),
        output: output.trim().to_owned(),
    })
}

/// What is before and behind `number. heading:`; the blank may be any white space.
fn at_heading<'a>(text: &'a str, number: usize, heading: &str) -> Option<(&'a str, &'a str)> {
    let numbered = format!("{number}.");
    for (at, _) in text.match_indices(&numbered) {
        let (before, behind) = (&text[..at], &text[at + numbered.len()..]);
        // Of 12. the 2. is not the number.
        let inside_number = before.ends_with(|c: char| c.is_ascii_digit());
        let word = behind.trim_start();
        if word.len() == behind.len() || inside_number {
            continue;
        }
        if let Some(behind) = word.strip_prefix(heading).and_then(|word| word.strip_prefix(':')) {
            return Some((before, behind));
        }
    }
    None
}

/// The task, or why it is not wanted.
fn wanted(task: SeedTask) -> Piece {
    let instruction = task.instruction.as_str();
    let words = instruction.split_whitespace().count();
    let Some(first) = instruction.chars().next() else { return Err("too_short") };
    if words < FEWEST_WORDS {
        return Err("too_short");
    }
    if words > MOST_WORDS {
        return Err("too_long");
    }
    if KEYWORDS.as_ref().is_some_and(|keywords| keywords.is_match(instruction)) {
        return Err("keyword");
    }
    if instruction.starts_with("Write a program") {
        return Err("program");
    }
    if first.is_ascii_punctuation() {
        return Err("punctuation");
    }
    if !first.is_ascii() {
        return Err("not_ascii");
    }
    Ok(task)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn piece(number: usize, instruction: &str) -> String {
        format!(
            "{number}. Instruction: {instruction}\n{number}. Input:\n<NoInput>\n{number}. Output:\nok\n"
        )
    }

    #[test]
    fn an_answer_is_cut_into_its_instructions() {
        let text = " Name three large rivers.\n4. Input:\n<noinput>\n4. Output:\nNile\n###\n"
            .to_owned()
            + &piece(5, "Name four small rivers.")
            + "###\n5. Instruction: Wrong number here\n5. Input:\nx\n5. Output:\ny\n###\n"
            + "7. Instruction: No output at all\n7. Input: x\n###\n"
            + &piece(8, "Name five more rivers.");
        let found = instructions(&text, 3, true);
        let names: Vec<Result<&str, &str>> = found
            .iter()
            .map(|piece| piece.as_ref().map(|task| task.instruction.as_str()).map_err(|e| *e))
            .collect();
        assert_eq!(
            names,
            [
                Ok("Name three large rivers."),
                Ok("Name four small rivers."),
                Err("malformed"),
                Err("malformed"),
                Err("cut_short"),
            ]
        );
        let second = found[1].as_ref().unwrap();
        assert_eq!((second.input.as_str(), second.output.as_str()), ("", "ok"));
        assert!(instructions(&text, 3, false)[4].is_ok());
    }

    #[test]
    fn an_answer_that_begins_with_the_heading_again_is_the_same() {
        let plain = &piece(4, "Name three large rivers.")["4. Instruction:".len()..];
        for begin in
            ["4. Instruction:", "### 4. Instruction:", "Here they are:\n\n###\n4. Instruction:"]
        {
            let again = format!("{begin}{plain}###\n{}", piece(5, "Name four small rivers."));
            let found = instructions(&again, 3, false);
            assert_eq!(found.len(), 2, "{begin}");
            assert!(found.iter().all(Result::is_ok), "{begin}: {found:?}");
        }
    }

    #[test]
    fn what_is_not_wanted_has_its_reason() {
        for (instruction, reason) in [
            ("Name three rivers", "too_short"),
            (&*"word ".repeat(151), "too_long"),
            ("Describe the Images below now", "keyword"),
            ("Please go to the shop", "keyword"),
            ("Write a program that adds", "program"),
            ("\"Quoted words\" mean what here", "punctuation"),
            ("Éclair is a kind of what", "not_ascii"),
        ] {
            let found = instructions(&piece(4, instruction)["4. Instruction:".len()..], 3, false);
            assert_eq!(found[0], Err(reason), "{instruction}");
        }
        // Only whole words count.
        let found = instructions(
            &piece(4, "Explain mapping and imagery here")["4. Instruction:".len()..],
            3,
            false,
        );
        assert!(found[0].is_ok());
    }
}
