//! The classifier of reference-like pages.
