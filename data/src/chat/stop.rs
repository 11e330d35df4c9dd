//! Stop strings: where generated text ends because of what it says.

/// Looks for stop strings in text that comes in pieces, and holds back what may begin one and nothing
/// else.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stop: Vec<String>,
    /// The stop string that ends a text stays in it.
    included: bool,
    /// Text that is not certain yet.
    held: String,
    matched: Option<usize>,
}

impl StopStrings {
    /// Text ends before the first of `stop`, or behind it if it is `included`. Empty strings end
    /// nothing.
    pub fn new(stop: &[String], included: bool) -> Self {
        let stop = stop.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stop, included, held: String::new(), matched: None }
    }

    /// The text that is certain after `piece`; nothing more once a stop string was found.
    pub fn push(&mut self, piece: &str) -> String {
        if self.matched.is_some() {
            return String::new();
        }
        self.held.push_str(piece);
        let found = self.stop.iter().enumerate().filter_map(|(index, stop)| {
            let at = self.held.find(stop.as_str())?;
            Some((at, index))
        });
        if let Some((at, index)) = found.min() {
            self.matched = Some(index);
            self.held.truncate(if self.included { at + self.stop[index].len() } else { at });
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.longest_beginning();
        self.held.drain(..certain).collect()
    }

    /// As [`StopStrings::push`] for text in which no stop string counts yet.
    pub fn pass(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        std::mem::take(&mut self.held)
    }

    /// The text ends otherwise: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that was found.
    pub fn matched(&self) -> Option<&str> {
        Some(&self.stop[self.matched?])
    }

    /// Bytes at the end of the held text that are the beginning of a stop string.
    fn longest_beginning(&self) -> usize {
        let begins = |stop: &str| {
            (1..stop.len())
                .rev()
                .find(|length| {
                    stop.is_char_boundary(*length) && self.held.ends_with(&stop[..*length])
                })
                .unwrap_or(0)
        };
        self.stop.iter().map(|stop| begins(stop)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts that came out, the stop string found, and what was held back at last.
    fn pieces(stop: &[&str], pieces: &[&str]) -> (String, Option<String>, String) {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut stops = StopStrings::new(&stop, false);
        let out = pieces.iter().map(|piece| stops.push(piece)).collect();
        (out, stops.matched().map(str::to_owned), stops.finish())
    }

    #[test]
    fn a_stop_string_across_pieces_ends_the_text_before_it() {
        let (out, stopped, _) = pieces(&["\n\nQ:"], &["yes", "\n", "\nQ", ": why"]);
        assert_eq!((out.as_str(), stopped.as_deref()), ("yes", Some("\n\nQ:")));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_comes_out() {
        let (out, stopped, held) = pieces(&["abc"], &["xab", "abd", "ab"]);
        assert_eq!((out.as_str(), stopped, held.as_str()), ("xababd", None, "ab"));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_wins() {
        let (out, stopped, _) = pieces(&["late", "é!", ""], &["caf", "é", "! too late"]);
        assert_eq!((out.as_str(), stopped.as_deref()), ("caf", Some("é!")));
    }

    #[test]
    fn a_stop_string_can_stay_in_the_text_and_can_be_passed_over() {
        let mut stops = StopStrings::new(&["end".to_owned()], true);
        assert_eq!(stops.pass("end en"), "end en");
        assert_eq!(stops.push(" the en"), " the ");
        assert_eq!(stops.push("d of it"), "end");
        assert_eq!((stops.push("more"), stops.finish()), (String::new(), String::new()));
    }
}
