//! The templates of a dump, cut into their parts when they are first called.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::parse::Parsed;
use crate::error::Result;
use crate::source::TemplateIndex;

/// Bytes of definitions that are kept in memory. When there are more, all are forgotten.
const CACHE_BYTES: usize = 64 << 20;

/// Templates by name, from the index of a run.
pub(in crate::step::wikitext) struct Definitions {
    index: Arc<TemplateIndex>,
    cache: RwLock<Cache>,
}

#[derive(Default)]
struct Cache {
    known: HashMap<String, Option<Arc<Parsed>>>,
    bytes: usize,
}

impl Definitions {
    pub fn new(index: Arc<TemplateIndex>) -> Self {
        Self { index, cache: RwLock::default() }
    }

    /// Whether there is a page of this title, with its namespace, among the templates.
    pub fn contains_page(&self, language: &str, title: &str) -> bool {
        self.index.contains_page(language, title)
    }

    /// The template that a call names.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(super) fn get(&self, language: &str, name: &str) -> Result<Option<Arc<Parsed>>> {
        if !self.index.contains(language, name) {
            return Ok(None);
        }
        let key = format!("{language}\0{name}");
        let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache.known.get(&key) {
            return Ok(known.clone());
        }
        drop(cache);
        let text = self.index.get(language, name)?;
        let parsed = text.map(|text| Arc::new(Parsed::of_template(&text)));
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        let bytes = parsed.as_ref().map_or(0, |parsed| parsed.text.len());
        if cache.bytes.saturating_add(bytes) > CACHE_BYTES {
            *cache = Cache::default();
        }
        cache.bytes += bytes + key.len();
        cache.known.insert(key, parsed.clone());
        Ok(parsed)
    }
}
