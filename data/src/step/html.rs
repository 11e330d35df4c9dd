//! HTML to text, as steps over documents whose text is HTML.

use serde::{Deserialize, Serialize};

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::{Document, Reason};
use crate::error::Result;
use crate::text::html::{HtmlOptions, stack_exchange, web_page};

impl StepOptions for HtmlOptions {
    /// Version 1 let the digits of superscripts run into those before them, and lost the numbers of
    /// lists.
    fn version(&self) -> u32 {
        2
    }

    fn validate(&self, key: &str) -> Result<()> {
        HtmlOptions::validate(self, key)
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(self.clone()))
    }
}

impl Step for HtmlOptions {
    fn apply(&self, document: &mut Document, _counts: &mut StepCounts) -> Verdict {
        let page = web_page(&document.text, self);
        if let Some(title) = page.title {
            document.set_metadata("title", title);
        }
        replace(document, page.text)
    }
}

/// StackExchange posts to text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackExchangeHtmlOptions {}

impl StepOptions for StackExchangeHtmlOptions {
    /// Version 1 let the digits of superscripts run into those before them, and lost the numbers of
    /// lists.
    fn version(&self) -> u32 {
        2
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(*self))
    }
}

impl Step for StackExchangeHtmlOptions {
    fn apply(&self, document: &mut Document, _counts: &mut StepCounts) -> Verdict {
        let text = stack_exchange(&document.text);
        replace(document, text)
    }
}

fn replace(document: &mut Document, text: String) -> Verdict {
    if text.is_empty() {
        let detail = format!("{} bytes of HTML without visible text", document.text.len());
        return Verdict::Drop { reason: Reason::EMPTY, detail };
    }
    document.text = text;
    Verdict::Keep
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn apply(options: &dyn StepOptions, html: &str) -> (Verdict, Document) {
        let mut document = Document { id: "a".into(), text: html.into(), ..Document::default() };
        let step = options.build("html").unwrap();
        let verdict = step.apply(&mut document, &mut StepCounts::default());
        (verdict, document)
    }

    #[test]
    fn pages_and_posts_become_text() {
        let (verdict, document) = apply(&HtmlOptions::default(), "<title>T</title><p>a<p>b");
        assert_eq!((verdict, document.text.as_str()), (Verdict::Keep, "a\nb"));
        assert_eq!(document.metadata()["title"], "T");

        let (_, document) = apply(&StackExchangeHtmlOptions {}, "<p>a</p><ul><li>b</li></ul>");
        assert_eq!(document.text, "a\n\n* b");
        assert_eq!(document.metadata, None);

        let (verdict, _) = apply(&HtmlOptions::default(), "<script>x</script>");
        assert!(
            matches!(verdict, Verdict::Drop { ref reason, .. } if *reason == Reason::EMPTY),
            "{verdict:?}"
        );
    }

    #[test]
    fn a_marker_is_part_of_a_line() {
        let options: HtmlOptions = serde_yaml::from_str("list_marker: \"a\\nb\"").unwrap();
        assert!(
            StepOptions::validate(&options, "steps.0.html")
                .unwrap_err()
                .to_string()
                .contains("list_marker")
        );
        assert!(serde_yaml::from_str::<HtmlOptions>("nav: true").is_err());
    }
}
