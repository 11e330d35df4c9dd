//! Supervised fine-tuning: examples in three formats, what of them is trained, rows of several, and
//! batches that resume from one number.
//!
//! An example becomes token ids by its chat template, stretch by stretch between special tokens, and every
//! token knows its bytes of the text. A token is trained if it begins at or behind the first byte of what
//! the assistant says. So no conversation is lost to a tokenizer whose tokens do not add up, and what is
//! trained is, token for token, what the model is asked for at inference.
//!
//! Files are read as streams. The ids of all examples are kept in memory, four bytes each.

mod conversation;
mod encode;
mod examples;
mod formats;
mod loader;
mod pack;
mod report;

pub use conversation::{Conversation, Dropped, Tidied};
pub use encode::{EncodedExample, ExampleEncoder, TrainOn};
pub use examples::{ExampleOrigin, Examples, ExamplesOptions, FileOfExamples};
pub use formats::{ExampleFormat, for_each_example};
pub use loader::{ExampleLoader, ExampleLoaderOptions, ExamplePosition};
pub use pack::{OPEN_ROWS, pack};
pub use report::{Lengths, SftReport};
