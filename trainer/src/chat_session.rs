//! A conversation with a model: its history as ids, within the context.
//!
//! What the model sees is rendered by its chat template, as in fine-tuning. When the conversation grows
//! beyond the context its oldest rounds are left out; a system message stays.

use std::path::Path;

use altiplano_data::Tokenizer;
use altiplano_data::chat::{ChatTemplate, Message, RenderOptions, SpecialTokens, TemplateSource};

use crate::checkpoint::{self, hugging_face};
use crate::error::{Result, TrainerError};

/// Share of the context that is kept free for an answer, at most.
const ANSWER_SHARE: usize = 4;

/// A conversation in progress.
#[derive(Debug)]
pub struct ChatSession<'a> {
    template: ChatTemplate,
    tokenizer: &'a Tokenizer,
    specials: SpecialTokens,
    messages: Vec<Message>,
    /// Most tokens of the conversation and its answer.
    context: usize,
    /// Tokens that are kept free for an answer.
    reserved: usize,
    /// What the template puts between its prompt and an answer, such as a blank.
    lead_in: String,
}

/// What a model is asked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Messages that were left out to make room, in this turn.
    pub dropped: usize,
}

impl<'a> ChatSession<'a> {
    /// A conversation that has not begun. An answer has at most `max_tokens` tokens, a conversation with
    /// it at most `context`.
    pub fn new(
        template: ChatTemplate,
        tokenizer: &'a Tokenizer,
        system: Option<&str>,
        context: usize,
        max_tokens: usize,
    ) -> Self {
        let specials = SpecialTokens::of(tokenizer);
        let messages = system.map(|text| Message::new("system", text)).into_iter().collect();
        let reserved = max_tokens.min(context / ANSWER_SHARE).max(1);
        let lead_in = lead_in(&template, &specials).unwrap_or_default();
        Self { template, tokenizer, specials, messages, context, reserved, lead_in }
    }

    /// What stands before an answer in the text that the model writes, and is not part of it.
    pub fn lead_in(&self) -> &str {
        &self.lead_in
    }

    /// The prompt for the answer to `text`, which becomes part of the conversation. The oldest rounds are
    /// left out until it fits.
    ///
    /// # Errors
    /// When the template refuses the conversation, or when `text` alone is too long, which then is not part
    /// of it.
    pub fn ask(&mut self, text: &str) -> Result<Prompt> {
        self.messages.push(Message::new("user", text));
        let system = usize::from(self.messages[0].role() == "system");
        let most = self.context.saturating_sub(self.reserved);
        let mut dropped = 0;
        loop {
            let ids = match self.render() {
                Ok(ids) => ids,
                Err(error) => {
                    self.messages.pop();
                    return Err(error);
                }
            };
            if ids.len() <= most {
                return Ok(Prompt { ids, dropped });
            }
            // A round is a question and its answer.
            if self.messages.len() < system + 3 {
                self.messages.pop();
                return Err(TrainerError::Usage {
                    message: format!(
                        "the message is too long: with its template it has {} tokens, and of the \
                         context of {} there are {most} for it",
                        ids.len(),
                        self.context,
                    ),
                });
            }
            self.messages.drain(system..system + 2);
            dropped += 2;
        }
    }

    /// Makes `text`, without the lead-in, the answer to the last question.
    pub fn answered(&mut self, text: &str) {
        self.messages.push(Message::new("assistant", text));
    }

    fn render(&self) -> Result<Vec<u32>> {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let rendered = self.template.render(&self.messages, &self.specials, &options)?;
        Ok(rendered.encode(self.tokenizer)?)
    }
}

/// What `template` puts between its prompt and an answer; none where it refuses to say.
fn lead_in(template: &ChatTemplate, specials: &SpecialTokens) -> Option<String> {
    let question = Message::new("user", "question");
    let prompt = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let before = template.render(std::slice::from_ref(&question), specials, &prompt).ok()?.text;
    let round = [question, Message::new("assistant", "answer")];
    let whole = template.render(&round, specials, &RenderOptions::default()).ok()?.text;
    let (lead_in, _) = whole.strip_prefix(&before)?.split_once("answer")?;
    Some(lead_in.to_owned())
}

/// Passes text on without what stands before it.
#[derive(Debug)]
pub struct WithoutLeadIn<'a> {
    lead_in: &'a str,
    /// The beginning of the text, until it is clear whether it is the lead-in.
    begun: Option<String>,
}

impl<'a> WithoutLeadIn<'a> {
    /// For one text that may begin with `lead_in`.
    pub fn new(lead_in: &'a str) -> Self {
        Self { lead_in, begun: Some(String::new()) }
    }

    /// What is to be shown after `piece`.
    pub fn push(&mut self, piece: &str) -> String {
        let Some(begun) = &mut self.begun else {
            return piece.to_owned();
        };
        begun.push_str(piece);
        if begun.len() < self.lead_in.len() && self.lead_in.starts_with(begun.as_str()) {
            return String::new();
        }
        let begun = self.begun.take().unwrap_or_default();
        begun.strip_prefix(self.lead_in).unwrap_or(&begun).to_owned()
    }
}

/// The template that `given` names, else the one `found` in the model in `path`. None where there is none.
///
/// # Errors
/// When a file cannot be read, or is not a template.
pub fn find_template(
    path: &Path,
    found: Option<&TemplateSource>,
    given: Option<&str>,
) -> Result<Option<ChatTemplate>> {
    if let Some(name) = given {
        return Ok(Some(ChatTemplate::open(name)?));
    }
    let found = match (found, path.is_dir()) {
        (None, true) => checkpoint::read_chat_template(path)?,
        (found, _) => found.cloned(),
    };
    Ok(found.map(|found| found.compile()).transpose()?)
}

/// As [`find_template`], for a model that has to have one.
///
/// # Errors
/// As [`find_template`]; when there is none.
pub fn template_of(
    path: &Path,
    found: Option<&TemplateSource>,
    given: Option<&str>,
) -> Result<ChatTemplate> {
    find_template(path, found, given)?.ok_or_else(|| TrainerError::RunFile {
        path: match path.is_dir() {
            true => path.join(hugging_face::TOKENIZER_CONFIG_FILE),
            false => path.to_path_buf(),
        },
        reason: "has no chat_template: the model was not taught to converse; --template alpaca, \
                 vicuna_v1.1 or a file gives one"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lead_in_across_pieces_is_not_shown() {
        let shown = |lead_in: &str, pieces: &[&str]| {
            let mut text = WithoutLeadIn::new(lead_in);
            pieces.iter().map(|piece| text.push(piece)).collect::<String>()
        };
        assert_eq!(shown(" ", &[" Hi", " there"]), "Hi there");
        assert_eq!(shown(" ", &["", "Hi ", " x"]), "Hi  x");
        assert_eq!(shown("\n\n", &["\n", "\nyes", "\n\n"]), "yes\n\n");
        assert_eq!(shown("\n\n", &["\n", "no"]), "\nno");
        assert_eq!(shown("", &["a"]), "a");
    }
}
