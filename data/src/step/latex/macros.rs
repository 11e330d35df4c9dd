//! The macros known at a place of the text, and the replacement of calls.

use std::collections::{HashMap, HashSet};
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

/// Whether a version of a sectioning command is something else, as in `\def\part{\partial}`, so that
/// it does not hold the document together any more.
fn is_other_symbol(name: &str, meaning: &Meaning) -> bool {
    let sectioning = matches!(
        name,
        "part"
            | "chapter"
            | "section"
            | "subsection"
            | "subsubsection"
            | "paragraph"
            | "subparagraph"
    );
    let Meaning::Macro(new) = meaning else { return false };
    let formats = |name: &str| name.contains('@') || is_structural(name) || LAYOUT.contains(&name);
    sectioning
        && new.arguments.is_empty()
        && new.body.contains('\\')
        && !control_names(&new.body).any(formats)
}

/// What a heading is made of in plain TeX.
const LAYOUT: [&str; 16] = [
    "bf",
    "sf",
    "sc",
    "large",
    "Large",
    "bigskip",
    "medskip",
    "smallskip",
    "noindent",
    "vskip",
    "centerline",
    "line",
    "leftline",
    "goodbreak",
    "bigbreak",
    "secdef",
];

/// The macros known at a place of the text.
#[derive(Debug, Default)]
pub(super) struct Macros {
    known: HashMap<String, Rc<Macro>>,
    /// Conditions of the document's own, without `if`, and what they say here.
    conditions: HashMap<String, bool>,
    /// What definitions inside of open groups took the place of.
    undo: Vec<(String, Option<Rc<Macro>>)>,
    /// Length of `undo` where each open group begins.
    groups: Vec<usize>,
    /// Groups that are open beyond [`MOST_GROUPS`].
    deeper: usize,
    /// Every name the document gave a meaning to.
    named: HashSet<String>,
}

/// Groups inside groups whose definitions end with them.
const MOST_GROUPS: usize = 500;

/// What became of a definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its calls will be replaced.
    Known,
    /// It calls itself.
    Recursive,
    /// Its arguments are unusual.
    Unsupported,
    /// It is an own version of something structural, or of what exists.
    Ignored,
}

impl Macros {
    /// The macro `name`, if its calls are to be replaced.
    pub fn get(&self, name: &str) -> Option<&Rc<Macro>> {
        self.known.get(name).filter(|found| found.expandable)
    }

    /// What the document's own condition `name`, which begins with `if`, says here.
    pub fn condition(&self, name: &str) -> Option<bool> {
        self.conditions.get(name.strip_prefix("if")?).copied()
    }

    /// Sets a condition if `name` does so: `\drafttrue`.
    pub fn set_condition(&mut self, name: &str) -> bool {
        let (stem, value) = match (name.strip_suffix("true"), name.strip_suffix("false")) {
            (Some(stem), _) => (stem, true),
            (None, Some(stem)) => (stem, false),
            _ => return false,
        };
        self.conditions.get_mut(stem).map(|known| *known = value).is_some()
    }

    /// A group begins.
    pub fn begin_group(&mut self) {
        match self.groups.len() < MOST_GROUPS {
            true => self.groups.push(self.undo.len()),
            false => self.deeper += 1,
        }
    }

    /// A group ends, and with it what was defined inside.
    pub fn end_group(&mut self) {
        if self.deeper > 0 {
            self.deeper -= 1;
            return;
        }
        let Some(start) = self.groups.pop() else { return };
        for (name, before) in self.undo.drain(start..).rev() {
            match before {
                Some(before) => self.known.insert(name, before),
                None => self.known.remove(&name),
            };
        }
    }

    /// How many control sequences in `text` are macros of the document.
    pub fn left_in(&self, text: &str) -> u64 {
        if self.named.is_empty() {
            return 0;
        }
        control_names(text).filter(|name| self.named.contains(*name)).count() as u64
    }

    /// Gives `name` another meaning, inside the open group alone unless `global`.
    fn set(&mut self, name: String, new: Option<Rc<Macro>>, global: bool) {
        let before = match new.clone() {
            Some(new) => self.known.insert(name.clone(), new),
            None => self.known.remove(&name),
        };
        if global {
            // Where an open group ends, the new meaning stays.
            for (_, kept) in self.undo.iter_mut().filter(|(other, _)| *other == name) {
                kept.clone_from(&new);
            }
        } else if !self.groups.is_empty() {
            self.undo.push((name, before));
        }
    }

    /// Takes in a definition. `work` grows by the macros looked at.
    pub fn define(&mut self, definition: Definition, global: bool, work: &mut usize) -> Outcome {
        let Definition { name, meaning, keeps_existing, .. } = definition;
        let global = global || definition.global;
        match meaning {
            Meaning::Other => return Outcome::Ignored,
            Meaning::Condition => {
                let stem = name.strip_prefix("if").unwrap_or(&name).to_owned();
                self.conditions.insert(stem, false);
                return Outcome::Ignored;
            }
            _ => {}
        }
        if is_structural(&name) && !is_other_symbol(&name, &meaning)
            || keeps_existing && self.known.contains_key(&name)
        {
            return Outcome::Ignored;
        }
        self.named.insert(name.clone());
        let mut new = match meaning {
            Meaning::Macro(new) => new,
            // \let takes the meaning the target has now.
            Meaning::Alias(target) => match self.known.get(&target) {
                Some(target) => {
                    let target = Rc::clone(target);
                    self.set(name, Some(target), global);
                    return Outcome::Known;
                }
                None if target == name || matches!(target.as_str(), "relax" | "undefined") => {
                    self.set(name, None, global);
                    return Outcome::Ignored;
                }
                None => Macro {
                    arguments: Vec::new(),
                    body: format!("\\{target}").into(),
                    expandable: true,
                    frozen: true,
                    defines: false,
                },
            },
            Meaning::Unsupported | Meaning::Condition | Meaning::Other => {
                self.set(name, None, global);
                return Outcome::Unsupported;
            }
        };
        new.expandable = new.frozen || !self.calls(&new.body, &name, work);
        let outcome = if new.expandable { Outcome::Known } else { Outcome::Recursive };
        self.set(name, Some(Rc::new(new)), global);
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
    fn definitions_end_with_their_group() {
        let mut macros = Macros::default();
        let define = |macros: &mut Macros, text: &str| {
            let command = control_name(text, 0);
            let definition = read_definition(text, command, 1 + command.len()).unwrap();
            macros.define(definition, false, &mut 0);
        };
        let body =
            |macros: &Macros, name: &str| macros.get(name).map(|found| found.body.to_string());
        define(&mut macros, "\\def\\a{x}");
        macros.begin_group();
        define(&mut macros, "\\def\\a{y}");
        define(&mut macros, "\\def\\b{y}");
        define(&mut macros, "\\gdef\\c{z}");
        macros.begin_group();
        define(&mut macros, "\\def\\a{w}");
        macros.end_group();
        assert_eq!(body(&macros, "a").as_deref(), Some("y"));
        macros.end_group();
        macros.end_group();
        assert_eq!(body(&macros, "a").as_deref(), Some("x"));
        assert_eq!(body(&macros, "b"), None);
        assert_eq!(body(&macros, "c").as_deref(), Some("z"));
        assert_eq!(macros.left_in("\\a\\b\\alpha"), 2);
    }

    #[test]
    fn macros_that_call_themselves_are_known_as_such() {
        let mut macros = Macros::default();
        let mut define = |text: &str| {
            let command = control_name(text, 0);
            let definition = read_definition(text, command, 1 + command.len()).unwrap();
            macros.define(definition, false, &mut 0)
        };
        assert_eq!(define("\\def\\a{\\b}"), Outcome::Known);
        assert_eq!(define("\\def\\b{\\c \\c}"), Outcome::Known);
        assert_eq!(define("\\def\\c{\\a}"), Outcome::Recursive);
        assert_eq!(define("\\renewcommand{\\vec}[1]{\\mathbf{\\vec{#1}}}"), Outcome::Recursive);
        assert_eq!(define("\\renewcommand{\\section}[1]{#1}"), Outcome::Ignored);
        assert_eq!(define("\\def\\d#1.{#1}"), Outcome::Known);
        assert_eq!(define("\\def\\e#2{#1}"), Outcome::Unsupported);
        assert_eq!(define("\\def\\part{\\partial}"), Outcome::Known);
        assert_eq!(define("\\def\\section{\\bigskip\\bf}"), Outcome::Ignored);
    }
}
