//! The macros known at a place of the text, and the replacement of calls.

use std::collections::HashMap;
use std::rc::Rc;

use memchr::memchr_iter;

use super::definition::{Definition, Macro, Meaning, control_names, is_definition, is_prefix};
use crate::text::tex::{ends_in_control_word, is_word, starts_with_letter};

/// Macros visited to find out whether a new one calls itself.
const VISITED: usize = 1000;

/// Control sequences that hold the document together: a user's own version of one is not put in
/// its place.
fn is_structural(name: &str) -> bool {
    const STRUCTURAL: [&str; 40] = [
        "begin",
        "end",
        "part",
        "chapter",
        "section",
        "subsection",
        "subsubsection",
        "paragraph",
        "subparagraph",
        "appendix",
        "bibliography",
        "printbibliography",
        "bibitem",
        "cite",
        "ref",
        "eqref",
        "label",
        "caption",
        "footnote",
        "item",
        "title",
        "author",
        "date",
        "thanks",
        "maketitle",
        "documentclass",
        "documentstyle",
        "usepackage",
        "input",
        "include",
        "par",
        "csname",
        "endcsname",
        "else",
        "fi",
        "or",
        "verb",
        "proof",
        "abstract",
        "endinput",
    ];
    STRUCTURAL.contains(&name) || name.starts_with("if") || is_definition(name) || is_prefix(name)
}

/// The macros known at a place of the text.
#[derive(Debug, Default)]
pub(super) struct Macros {
    known: HashMap<String, Rc<Macro>>,
}

/// What became of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its calls will be replaced.
    Known,
    /// It calls itself.
    Recursive,
    /// Its arguments are delimited.
    Unsupported,
    /// It is an own version of something structural, or of what exists.
    Ignored,
}

impl Macros {
    /// The macro `name`, if its calls are to be replaced.
    pub fn get(&self, name: &str) -> Option<&Rc<Macro>> {
        self.known.get(name).filter(|found| found.expandable)
    }

    /// Takes in a definition. `work` grows by the macros looked at.
    pub fn define(&mut self, definition: Definition, work: &mut usize) -> Outcome {
        let Definition { name, meaning, keeps_existing, .. } = definition;
        if is_structural(&name) || keeps_existing && self.known.contains_key(&name) {
            return Outcome::Ignored;
        }
        let mut new = match meaning {
            Meaning::Macro(new) => new,
            // \let takes the meaning the target has now.
            Meaning::Alias(target) => match self.known.get(&target) {
                Some(target) => {
                    let target = Rc::clone(target);
                    self.known.insert(name, target);
                    return Outcome::Known;
                }
                None if target == name || matches!(target.as_str(), "relax" | "undefined") => {
                    self.known.remove(&name);
                    return Outcome::Ignored;
                }
                None => Macro {
                    parameters: 0,
                    default: None,
                    body: format!("\\{target}").into(),
                    expandable: true,
                    frozen: true,
                    defines: false,
                },
            },
            Meaning::Unsupported => {
                self.known.remove(&name);
                return Outcome::Unsupported;
            }
        };
        new.expandable = new.frozen || !self.calls(&new.body, &name, work);
        let outcome = if new.expandable { Outcome::Known } else { Outcome::Recursive };
        self.known.insert(name, Rc::new(new));
        outcome
    }

    /// Whether `body` calls `name`, through other macros too. Also when there are too many macros
    /// to tell.
    fn calls(&self, body: &Rc<str>, name: &str, work: &mut usize) -> bool {
        let mut visited: HashMap<&str, ()> = HashMap::new();
        let mut waiting: Vec<&str> = vec![body];
        while let Some(body) = waiting.pop() {
            *work += body.len();
            for called in control_names(body) {
                if called == name {
                    return true;
                }
                let Some((called, found)) = self.known.get_key_value(called) else { continue };
                if !found.expandable || visited.insert(called, ()).is_some() {
                    continue;
                }
                if visited.len() > VISITED {
                    return true;
                }
                waiting.push(&found.body);
            }
        }
        false
    }
}

/// Bytes of `body` with `arguments` in place, or a little more.
pub(super) fn substituted_length(body: &str, arguments: &[&str]) -> usize {
    let places = memchr_iter(b'#', body.as_bytes()).map(|at| {
        let number = body.as_bytes().get(at + 1).copied().unwrap_or(0).wrapping_sub(b'1');
        arguments.get(usize::from(number)).map_or(0, |argument| argument.len() + 2)
    });
    places.fold(body.len(), usize::saturating_add)
}

/// `body` with `arguments` in place of `#1` to `#9`, and `#` for `##`.
pub(super) fn substitute(body: &str, arguments: &[&str]) -> String {
    let mut out = String::with_capacity(substituted_length(body, arguments));
    let mut push = |part: &str| {
        if starts_with_letter(part) && ends_in_control_word(&out) {
            out.push(' ');
        }
        out.push_str(part);
    };
    let mut from = 0;
    for at in memchr_iter(b'#', body.as_bytes()) {
        if at < from {
            continue;
        }
        let next = body.as_bytes().get(at + 1).copied().unwrap_or(0);
        let argument = arguments.get(usize::from(next.wrapping_sub(b'1')));
        match (next, argument) {
            (b'#', _) => {
                push(&body[from..=at]);
                from = at + 2;
            }
            (_, Some(argument)) => {
                push(&body[from..at]);
                push(argument);
                from = at + 2;
            }
            _ => {}
        }
    }
    push(&body[from..]);
    out
}

/// Whether `name` can be written as a control sequence, so that looking it up makes sense.
pub(super) fn is_callable(name: &str) -> bool {
    !name.is_empty() && (is_word(name) || !name.starts_with(['%', '\\', '{', '}', '\n', ' ']))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::definition::read_definition;
    use super::*;
    use crate::text::tex::control_name;

    #[test]
    fn arguments_take_their_places() {
        assert_eq!(substitute("a#1b#2#1", &["x", "y"]), "axbyx");
        assert_eq!(substitute("\\alpha#1", &["x"]), "\\alpha x");
        assert_eq!(substitute("#1b", &["\\alpha"]), "\\alpha b");
        assert_eq!(substitute("\\def\\y##1{#1##1}", &["x"]), "\\def\\y#1{x#1}");
        assert_eq!(substitute("#3#", &["x"]), "#3#");
    }

    #[test]
    fn macros_that_call_themselves_are_known_as_such() {
        let mut macros = Macros::default();
        let mut define = |text: &str| {
            let command = control_name(text, 0);
            let definition = read_definition(text, command, 1 + command.len()).unwrap();
            macros.define(definition, &mut 0)
        };
        assert_eq!(define("\\def\\a{\\b}"), Outcome::Known);
        assert_eq!(define("\\def\\b{\\c \\c}"), Outcome::Known);
        assert_eq!(define("\\def\\c{\\a}"), Outcome::Recursive);
        assert_eq!(define("\\renewcommand{\\vec}[1]{\\mathbf{\\vec{#1}}}"), Outcome::Recursive);
        assert_eq!(define("\\renewcommand{\\section}[1]{#1}"), Outcome::Ignored);
        assert_eq!(define("\\def\\d#1.{#1}"), Outcome::Unsupported);
    }
}
