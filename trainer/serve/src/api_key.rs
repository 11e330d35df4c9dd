//! The key that requests have to send.

use std::fmt;

use axum::http::{HeaderMap, HeaderValue, header};

/// A key that requests send as `Authorization: Bearer KEY`. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    text: String,
    hash: blake3::Hash,
}

impl ApiKey {
    /// The key itself, for requests to others that ask for it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the key was sent. Hashes are compared in a time that does not depend on them.
    pub fn is_sent(&self, headers: &HeaderMap) -> bool {
        let sent =
            headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        blake3::hash(sent.strip_prefix(b"Bearer ").unwrap_or_default()) == self.hash
    }
}

impl From<String> for ApiKey {
    fn from(text: String) -> Self {
        let hash = blake3::hash(text.as_bytes());
        Self { text, hash }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_compared_and_not_shown() {
        let key = ApiKey::from("secret".to_owned());
        assert!(!format!("{key:?}").contains("secret"));
        let sends = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            key.is_sent(&HeaderMap::from_iter([(header::AUTHORIZATION, value)]))
        };
        assert!(sends("Bearer secret"));
        assert!(!sends("Bearer secre") && !sends("secret") && !key.is_sent(&HeaderMap::new()));
    }
}
