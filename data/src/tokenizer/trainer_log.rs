//! What SentencePiece's trainer says while it works: how far it is, and why it refuses.

use crate::progress::Progress;

/// Passes over the text between two prunings of a unigram model (`num_sub_iterations`).
const PASSES: u64 = 2;
/// Share of the pieces that a pruning leaves (`shrinking_factor`).
const SHRINKING: f64 = 0.75;
/// Pruning ends at so many times the size of the vocabulary.
const SURPLUS: f64 = 1.1;

/// Shows how far a training is, from the trainer's log.
#[derive(Debug)]
pub(crate) struct TrainerLog<'a> {
    progress: &'a Progress,
    vocab_size: u64,
    /// Passes over the text so far.
    passes: u64,
}

impl<'a> TrainerLog<'a> {
    /// For a training of a unigram model of `vocab_size` pieces.
    pub fn new(progress: &'a Progress, vocab_size: usize) -> Self {
        Self { progress, vocab_size: vocab_size as u64, passes: 0 }
    }

    /// Hears a line such as `file.cc(268) LOG(INFO) EM sub_iter=0 size=40 obj=…`.
    pub fn hear(&mut self, line: &str) {
        let Some((_, said)) = line.split_once(" LOG(INFO) ") else { return };
        let number = |name: &str| -> Option<u64> {
            let (_, rest) = said.split_once(name)?;
            rest.split(' ').next()?.parse().ok()
        };
        if said.starts_with("Normalizing sentences") {
            self.progress.phase("reading the sentences");
        } else if said.starts_with("Tokenizing input") {
            self.progress.phase("cutting them into words");
        } else if said.starts_with("Making suffix array") {
            self.progress.phase("collecting what may become a piece");
        } else if said.starts_with("EM sub_iter=")
            && let Some(size) = number(" size=")
        {
            self.passes += 1;
            let left = passes_left(size, self.vocab_size) + PASSES - 1 - (self.passes - 1) % PASSES;
            self.progress.set_total(self.passes + left);
            self.progress.set_done(self.passes);
        }
    }
}

/// Passes a unigram model of `size` pieces still needs after those of this size, if pruning takes
/// away no more than it is set to.
fn passes_left(size: u64, vocab_size: u64) -> u64 {
    let surplus = size as f64 / (SURPLUS * vocab_size.max(1) as f64);
    if surplus <= 1.0 {
        return 0;
    }
    // The cast saturates.
    PASSES * (surplus.ln() / -SHRINKING.ln()).ceil() as u64
}

/// Why the trainer refused, from its status `Internal: src/file.cc(584) [condition] message`, in
/// the words of the configuration.
pub(super) fn explain(status: &str) -> String {
    let numbers: Vec<&str> = message_of(status)
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .collect();
    match (message_of(status), &*numbers) {
        (message, [vocab_size, needed]) if message.starts_with("Vocabulary size is smaller") => {
            format!(
                "a `vocab_size` of {vocab_size} is too small for the text, whose characters, with \
                 the 3 marks, need {needed}; raise `vocab_size`, or lower `character_coverage`"
            )
        }
        _ if status.contains("[!sentences_.empty()]") => "there is no text to train on".into(),
        ("", _) => "SentencePiece's trainer cannot make a model of this text".into(),
        (message, _) => message.to_owned(),
    }
}

/// What a status says without the place in the source and the condition that did not hold.
fn message_of(status: &str) -> &str {
    let without_code = match status.split_once(": ") {
        Some((code, rest)) if code.chars().all(|c| c.is_alphabetic() || c == ' ') => rest,
        _ => status,
    };
    let Some((place, rest)) = without_code.split_once(" [") else { return without_code.trim() };
    if !place.ends_with(')') || !place.contains('(') {
        return without_code.trim();
    }
    // The condition has brackets of its own; the message begins behind the one that closes it.
    let mut open = 1;
    for (at, c) in rest.char_indices() {
        open += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        if open == 0 {
            return rest[at + 1..].trim();
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_of_a_unigram_model_are_foreseen() {
        assert_eq!(passes_left(1100, 1000), 0);
        // 2000, 1500, 1125, then below 1100.
        assert_eq!(passes_left(2000, 1000), 6);
        let progress = Progress::hidden();
        let mut log = TrainerLog::new(&progress, 1000);
        let line = |iter: u32, size: u32| {
            format!("u.cc(1) LOG(INFO) EM sub_iter={iter} size={size} obj=1")
        };
        log.hear(&line(0, 2000));
        assert_eq!(progress.share(), Some(1.0 / 8.0));
        for (iter, size) in [(1, 2000), (0, 1500), (1, 1500), (0, 1125), (1, 1125), (0, 844)] {
            log.hear(&line(iter, size));
        }
        assert_eq!(progress.share(), Some(7.0 / 8.0));
        log.hear("nonsense");
        log.hear(&line(1, 844));
        assert_eq!(progress.share(), Some(1.0));
    }

    #[test]
    fn refusals_have_no_source_files_and_conditions() {
        let small = "Internal: src/trainer_interface.cc(584) [(static_cast<int>(required_chars_.size() \
             + meta_pieces_.size())) <= (trainer_spec_.vocab_size())] Vocabulary size is smaller than \
             required_chars. 300 vs 334. Increase vocab_size or decrease character_coverage with \
             --character_coverage option.";
        let said = explain(small);
        assert!(
            said.contains("300") && said.contains("334") && said.contains("`vocab_size`"),
            "{said}"
        );
        let other = "Internal: x.cc(1) [v[0] == w[1]] ";
        assert_eq!(explain(other), "SentencePiece's trainer cannot make a model of this text");
        assert_eq!(explain("Internal: x.cc(1) [a] it is dark"), "it is dark");
        assert_eq!(explain("x.cc(433) [!sentences_.empty()] "), "there is no text to train on");
        assert_eq!(explain("out of memory"), "out of memory");
        for said in [small, other].map(explain) {
            for internal in [".cc", "::", "->", "_cast", "Internal", "--"] {
                assert!(!said.contains(internal), "{said}");
            }
        }
    }
}
