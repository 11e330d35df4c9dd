//! Counts of what is taken out of a page.

use crate::step::{Removed, StepCounts};

/// A kind of markup that is not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Comments,
    Templates,
    Tables,
    References,
    Files,
    Categories,
    Interlanguage,
    ExternalLinks,
    Formulas,
    Elements,
    MagicWords,
    TailSections,
    EmptySections,
    StrayTableLines,
    PunctuationLines,
}

impl Part {
    const ALL: [(Self, &'static str); 15] = [
        (Self::Comments, "comments"),
        (Self::Templates, "templates"),
        (Self::Tables, "tables"),
        (Self::References, "references"),
        (Self::Files, "files"),
        (Self::Categories, "categories"),
        (Self::Interlanguage, "interlanguage_links"),
        (Self::ExternalLinks, "bare_external_links"),
        (Self::Formulas, "formulas"),
        (Self::Elements, "elements"),
        (Self::MagicWords, "magic_words"),
        (Self::TailSections, "tail_sections"),
        (Self::EmptySections, "empty_sections"),
        (Self::StrayTableLines, "stray_table_lines"),
        (Self::PunctuationLines, "punctuation_lines"),
    ];
}

/// Counts of one page. They reach [`StepCounts`] only when the page stays.
#[derive(Clone, Debug, Default)]
pub(super) struct Removals {
    parts: [Removed; Part::ALL.len()],
    bytes: usize,
}

impl Removals {
    /// Counts one part of `bytes` bytes.
    pub fn add(&mut self, part: Part, bytes: usize) {
        let removed = &mut self.parts[part as usize];
        removed.parts += 1;
        removed.bytes += bytes as u64;
        self.bytes += bytes;
    }

    /// Bytes counted so far, all kinds together: what encloses them does not count them again.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds all counts to those of the step.
    pub fn add_to(&self, counts: &mut StepCounts) {
        for (part, name) in Part::ALL {
            let removed = self.parts[part as usize];
            if removed.parts > 0 {
                counts.remove_parts(name, removed);
            }
        }
    }
}
