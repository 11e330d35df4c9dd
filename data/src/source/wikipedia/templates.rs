//! The pass over a dump that indexes its templates.

use std::path::Path;

use memchr::memmem;

use super::pages::Piece;
use super::streams::Damage;
use super::template_index::{TemplateFile, TemplateWriter};
use super::xml::{TEMPLATES, Wanted, read_page};
use super::{PieceSink, Site, WikipediaSource, no_pages};
use crate::error::Result;
use crate::fingerprint::Fingerprint;
use crate::source::{Input, ReadContext};

/// Version of the index. A new one makes it anew.
const VERSION: u32 = 1;
/// Bytes of a page in which its namespace stands.
const FIRST_BYTES: usize = 2048;

impl WikipediaSource {
    /// What the index of the templates of `input` depends on.
    pub(crate) fn template_key(&self, input: &Input) -> String {
        let mut key = Fingerprint::of(&format!("templates {VERSION}"));
        key.json(&self.language).json(&self.languages).number(self.max_page_bytes.to_le_bytes());
        key.part(&input.name).number(input.bytes.to_le_bytes());
        key.number(input.modified_nanos.to_le_bytes());
        key.hex()
    }

    /// Writes the templates that the dump of `context` defines to `path`. Damage in the dump is left to
    /// the reading of its articles, which counts it.
    ///
    /// # Errors
    /// As the reading of the articles.
    pub(crate) fn index_templates(
        &self,
        context: &ReadContext<'_>,
        path: &Path,
    ) -> Result<TemplateFile> {
        let writer = TemplateWriter::create(path)?;
        let mut templates = Templates { source: self, context, site: None, writer };
        self.read_pieces(context, &mut templates)?;
        let site = templates.site.filter(|site| !site.unwanted);
        let names = site.iter().flat_map(|site| &site.other_namespaces);
        let names = names.filter(|(_, number)| **number == TEMPLATES).map(|(name, _)| name.clone());
        let mut names: Vec<String> = names.collect();
        names.sort();
        let language = site.as_ref().map(|site| site.language.clone());
        templates.writer.finish(self.template_key(context.input), language, names)
    }
}

/// Writes the templates among the pages of a dump.
struct Templates<'a, 'b> {
    source: &'a WikipediaSource,
    context: &'a ReadContext<'b>,
    site: Option<Site>,
    writer: TemplateWriter<'a>,
}

impl PieceSink for Templates<'_, '_> {
    fn other_language(&self) -> bool {
        self.site.as_ref().is_some_and(|site| site.unwanted)
    }

    fn damaged(&mut self, _: &Damage, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn piece(&mut self, piece: Piece<'_>) -> Result<()> {
        match piece {
            Piece::Header(bytes) => {
                self.site = Some(self.source.site(self.context.input, bytes)?);
                Ok(())
            }
            Piece::NoPages => Err(no_pages(&self.context.input.path)),
            Piece::TooLong { .. } => Ok(()),
            Piece::Page { bytes, .. } => self.page(bytes),
        }
    }
}

impl Templates<'_, '_> {
    fn page(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(site) = self.site.as_ref().filter(|site| !site.unwanted) else { return Ok(()) };
        // Most pages are articles: their namespace says so before they are parsed.
        let first = &bytes[..bytes.len().min(FIRST_BYTES)];
        if let Some(found) = memmem::find(first, b"<ns>")
            && !first[found + 4..].trim_ascii_start().starts_with(b"10")
        {
            return Ok(());
        }
        let Ok(text) = simdutf8::basic::from_utf8(bytes) else { return Ok(()) };
        let Ok(page) = read_page(text, Wanted::Templates) else { return Ok(()) };
        let Some((prefix, name)) = page.title.split_once(':') else { return Ok(()) };
        let number = match page.namespace {
            Some(number) => Some(number),
            None => site.other_namespaces.get(&prefix.to_lowercase()).copied(),
        };
        if number != Some(TEMPLATES) || !matches!(page.model.as_str(), "" | "wikitext") {
            return Ok(());
        }
        let written = page.redirect || site.names.is_redirect(&page.text);
        let target = page.redirect_target.or_else(|| link_target(&page.text));
        match target.filter(|_| written) {
            Some(target) => self.writer.add(&site.language, name, &target, true),
            None if written => Ok(()),
            None => self.writer.add(&site.language, name, &page.text, false),
        }
    }
}

/// The target of the first link of a redirect.
fn link_target(text: &str) -> Option<String> {
    let link = text.split_once("[[")?.1.split_once("]]")?.0;
    let target = link.split('|').next().unwrap_or_default().trim();
    (!target.is_empty()).then(|| target.to_owned())
}
