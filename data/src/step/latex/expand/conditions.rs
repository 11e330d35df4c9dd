//! Which branch of a conditional stays.

use std::rc::Rc;

use memchr::memchr;

use super::super::comments::opens;
use super::super::definition::NO_VALUE;
use super::arguments::{FALSE, TRUE};
use super::{Expander, Frame};
use crate::text::tex::{after_blank_rest, control_name, group_end, skip_blanks};

impl Expander {
    /// Conditions of the document: sets them, and takes out the branch that does not hold.
    pub(super) fn condition(&mut self, text: &str, at: usize, name: &str) -> bool {
        let after = at + 1 + name.len();
        // TeX reads the blank behind a name with it.
        let next = after + usize::from(text[after..].starts_with(' '));
        if self.macros.set_condition(name) {
            let end = match at == 0 || text.as_bytes()[at - 1] == b'\n' {
                true => after_blank_rest(text, after).unwrap_or(next),
                false => next,
            };
            self.counts.definitions.add(end - at);
            self.go_to(end);
            self.seam = true;
            return true;
        }
        if let Some(holds) = self.macros.condition(name) {
            let end = match holds {
                true => {
                    self.branches.push(0);
                    next
                }
                false => {
                    self.work += text.len() - after;
                    let found = (self.work <= self.most_work)
                        .then(|| self.skip_branch(text, after))
                        .flatten();
                    let Some((end, is_else)) = found else { return false };
                    self.work -= text.len() - end;
                    if is_else {
                        self.branches.push(0);
                    }
                    end + usize::from(text[end..].starts_with(' '))
                }
            };
            self.go_to(end);
            self.seam = true;
            return true;
        }
        let Some(open) = self.branches.last_mut() else { return false };
        match name {
            "fi" if *open == 0 => {
                self.branches.pop();
                self.go_to(next);
            }
            "else" if *open == 0 => {
                let Some((end, _)) = self.skip_branch(text, after) else { return false };
                self.branches.pop();
                self.go_to(end + usize::from(text[end..].starts_with(' ')));
            }
            "fi" => {
                *open -= 1;
                return false;
            }
            _ => {
                if name.starts_with("if") && opens(name) {
                    *open += 1;
                }
                return false;
            }
        }
        self.seam = true;
        true
    }

    /// Position behind the `\fi` or `\else` that ends the branch at `at`, and whether it is an
    /// `\else`.
    pub(super) fn skip_branch(&self, text: &str, mut at: usize) -> Option<(usize, bool)> {
        let mut depth = 0usize;
        loop {
            at += memchr(b'\\', &text.as_bytes()[at..])?;
            let name = control_name(text, at);
            at += 1 + name.len();
            match name {
                "fi" if depth == 0 => return Some((at, false)),
                "else" if depth == 0 => return Some((at, true)),
                "fi" => depth -= 1,
                "newif" => {
                    at = skip_blanks(text, at);
                    at += usize::from(text[at..].starts_with('\\'));
                }
                _ if name.starts_with("if") && opens(name) => depth += 1,
                _ => {}
            }
        }
    }

    /// `\IfBooleanTF`, `\IfNoValueTF` and their like: the branch that holds, where it is known.
    pub(super) fn choice(&mut self, text: &str, name: &str, after: usize, depth: usize) -> bool {
        let Some((kind, which)) = ["TF", "T", "F"]
            .iter()
            .find_map(|which| Some((name.strip_suffix(which)?, *which)))
            .filter(|(kind, _)| matches!(*kind, "IfBoolean" | "IfNoValue" | "IfValue"))
        else {
            return false;
        };
        let mut at = after;
        let mut group = || {
            let open = skip_blanks(text, at);
            let end = group_end(text, open)?;
            at = end;
            Some(&text[open + 1..end - 1])
        };
        let Some(value) = group().map(str::trim) else { return false };
        let holds = match (kind, value) {
            ("IfBoolean", TRUE) => true,
            ("IfBoolean", FALSE) => false,
            ("IfBoolean", _) => return false,
            ("IfNoValue", value) => value == NO_VALUE,
            (_, value) => value != NO_VALUE,
        };
        let (then, otherwise) = match which {
            "TF" => (group(), group()),
            "T" => (group(), Some("")),
            _ => (Some(""), group()),
        };
        let (Some(then), Some(otherwise)) = (then, otherwise) else { return false };
        let chosen: Rc<str> = if holds { then } else { otherwise }.into();
        self.work += at - after;
        self.go_to(at);
        self.frames.push(Frame { text: chosen, at: 0, depth: depth + 1 });
        self.seam = true;
        true
    }
}
