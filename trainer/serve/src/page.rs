//! The chat page: one file without anything from elsewhere.

/// The page of a server, and of a router, which has several models.
pub const CHAT: &str = include_str!("page.html");
