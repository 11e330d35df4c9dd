//! Conversations of ShareGPT: web pages of chats become messages in Markdown, long ones are cut, broken ones
//! dropped.
//!
//! The text of a document is the JSON list of its messages, `[{"from": "human", "value": …}, …]`. The order
//! of the work and its constants are those of FastChat, without its known faults: code blocks are told apart
//! one by one, white space before the first line of code stays, a number with a slash is the page's counter
//! only where a line ends behind it, and no round is lost where a conversation is cut.

mod clean;
mod filter;
mod markdown;
mod message;
mod split;

pub use clean::SharegptCleanOptions;
pub use filter::SharegptFilterOptions;
pub use split::SharegptSplitOptions;
