//! Who is let in: a bounded number of sequences and of prompt tokens at a time, decided before a
//! prompt is tokenized.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::ApiError;
use crate::serving_metrics::ServingMetrics;

/// How much may be inside at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Sequences, running or waiting.
    pub requests: usize,
    /// Tokens of their prompts.
    pub tokens: usize,
}

#[derive(Debug, Default)]
struct Inside {
    requests: usize,
    tokens: usize,
}

/// Counts what is inside.
#[derive(Debug)]
pub struct Admission {
    limits: AdmissionLimits,
    inside: Mutex<Inside>,
    metrics: Arc<ServingMetrics>,
}

impl Admission {
    /// Nothing inside yet.
    pub fn new(limits: AdmissionLimits, metrics: Arc<ServingMetrics>) -> Arc<Self> {
        Arc::new(Self { limits, inside: Mutex::default(), metrics })
    }

    /// Lets `requests` sequences in whose prompts have about `tokens` tokens. What is larger than the
    /// limits comes in alone.
    ///
    /// # Errors
    /// 429 when there is no room now.
    pub fn enter(self: &Arc<Self>, requests: usize, tokens: usize) -> Result<Permit, ApiError> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let full =
            |used: usize, more: usize, limit: usize| used > 0 && used.saturating_add(more) > limit;
        let (what, limit) = if full(inside.requests, requests, self.limits.requests) {
            ("requests", self.limits.requests)
        } else if full(inside.tokens, tokens, self.limits.tokens) {
            ("tokens", self.limits.tokens)
        } else {
            inside.requests += requests;
            inside.tokens += tokens;
            return Ok(Permit { admission: Arc::clone(self), requests, tokens });
        };
        drop(inside);
        self.metrics.rejections.with(&[what]).add(1);
        let of = if what == "tokens" { "prompt tokens" } else { "sequences" };
        Err(ApiError::overloaded(format!(
            "the server is full: it takes {limit} {of} at a time; try again later"
        )))
    }

    /// Sequences inside.
    pub fn requests(&self) -> usize {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner).requests
    }
}

/// Room that is given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    admission: Arc<Admission>,
    requests: usize,
    tokens: usize,
}

impl Permit {
    /// The prompts turned out to have `tokens` tokens.
    pub fn set_tokens(&mut self, tokens: usize) {
        let mut inside = self.admission.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.tokens = inside.tokens - self.tokens + tokens;
        self.tokens = tokens;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut inside = self.admission.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.requests -= self.requests;
        inside.tokens -= self.tokens;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_never_exceeds_the_limits_and_leaves_again() {
        let metrics = Arc::new(ServingMetrics::new("m", 64));
        let limits = AdmissionLimits { requests: 3, tokens: 100 };
        let admission = Admission::new(limits, Arc::clone(&metrics));
        let mut first = admission.enter(2, 60).unwrap();
        assert_eq!(admission.enter(2, 10).unwrap_err().status, 429);
        assert_eq!(admission.enter(1, 50).unwrap_err().status, 429);
        first.set_tokens(50);
        let second = admission.enter(1, 50).unwrap();
        assert_eq!(admission.requests(), 3);
        drop((first, second));
        // Too large for the limits, but alone.
        assert_eq!(admission.enter(9, 900).unwrap().requests, 9);
        assert_eq!(admission.requests(), 0);
        let rejected = |reason| metrics.rejections.with(&[reason]).get();
        assert_eq!((rejected("requests"), rejected("tokens")), (1, 1));
    }
}
