//! Conversations as text: chat templates, the ids of what they give, and stop strings.
//!
//! One renderer serves fine-tuning, `generate --chat` and the server, so a model sees at inference,
//! token for token, what it saw in training. A template is a Hugging Face `chat_template`: Jinja with
//! the variables `messages`, `bos_token`, `eos_token` and `add_generation_prompt`. `alpaca` and
//! `vicuna_v1.1` are built in.
//!
//! Special tokens that a template writes become ids. Those that stand in a message are text, as
//! everything else that a user writes.

mod json_value;
mod rendered;
mod stop;
mod strftime;
mod template;

pub use rendered::{RenderedChat, Segment, SpecialTokens};
pub use stop::StopStrings;
pub use template::{BUILT_IN_TEMPLATES, ChatTemplate, Message, RenderOptions, TemplateSource};

#[cfg(test)]
mod tests;
