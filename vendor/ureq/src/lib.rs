//! Stands in for `ureq` 2, which `torch-sys` uses for one thing: to download libtorch while it is
//! being built, when `LIBTORCH` is not set. altiplano's builds download nothing but crates, so
//! every request is refused, with what to do instead. Nothing else in the workspace uses ureq 2.
//!
//! Only the names that the build script of `torch-sys` 0.22 calls are here.

use std::fmt;

/// The refusal of a request.
#[derive(Debug)]
pub struct Error {
    url: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the feature `tch` needs libtorch 2.9.0, and LIBTORCH is not set. This build does not \
             download it ({}). Run `eval \"$(scripts/setup_libtorch)\"`, which sets it up and sets \
             LIBTORCH, and build again",
            self.url
        )
    }
}

impl std::error::Error for Error {}

/// A request that [`Request::call`] refuses.
#[derive(Debug)]
pub struct Request {
    url: String,
}

/// What a request would get for `url`.
pub fn get(url: &str) -> Request {
    Request { url: url.to_string() }
}

impl Request {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn call(self) -> Result<Response, Error> {
        Err(Error { url: self.url })
    }
}

/// The answer that never comes.
#[derive(Debug)]
pub enum Response {}

impl Response {
    /// Status of the answer.
    pub fn status(&self) -> u16 {
        match *self {}
    }

    /// Body of the answer.
    pub fn into_reader(self) -> Box<dyn std::io::Read + Send + Sync + 'static> {
        match self {}
    }

    /// Body of the answer, parsed.
    ///
    /// # Errors
    /// None: there is no answer.
    pub fn into_json<T: serde::de::DeserializeOwned>(self) -> std::io::Result<T> {
        match self {}
    }
}
