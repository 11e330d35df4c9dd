//! The XML of a dump: its header and one page at a time.
//!
//! The schema is MediaWiki's export format (0.3 to 0.11): `siteinfo` with `dbname`, `base` and
//! `namespaces`; then pages with `title`, `ns`, `id`, `redirect`, and a `revision` with `id`,
//! `timestamp`, `model` and `text`. Dumps have no document type; one that has is refused,
//! because entities it defines can expand without bound.

use std::borrow::Cow;

use quick_xml::Reader;
use quick_xml::events::{BytesRef, BytesStart, Event};

/// Why a page or header cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct XmlError {
    /// A reason for the statistics.
    pub reason: &'static str,
    /// Detail for the log.
    pub detail: String,
}

/// The name under which a document type is refused.
pub(super) const DOCUMENT_TYPE: &str = "xml_document_type";

fn bad_xml(error: impl ToString) -> XmlError {
    XmlError { reason: "bad_xml", detail: error.to_string() }
}

fn document_type() -> XmlError {
    let detail = "has a document type (<!DOCTYPE>), which dumps have not; the entities it may \
                  define are refused";
    XmlError { reason: DOCUMENT_TYPE, detail: detail.into() }
}

/// What the header says of the wiki.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SiteInfo {
    /// `enwiki`.
    pub dbname: String,
    /// Address of the main page.
    pub base: String,
    /// `xml:lang` of the dump.
    pub language: String,
    /// Numbers and names of the namespaces.
    pub namespaces: Vec<(i64, String)>,
}

/// Reads the header: all before the first page. A damaged one says what comes before the damage.
///
/// # Errors
/// A document type is refused.
pub(super) fn read_site_info(header: &str) -> Result<SiteInfo, XmlError> {
    let mut reader = Reader::from_str(header);
    let mut info = SiteInfo::default();
    let mut text = String::new();
    let mut namespace = 0;
    loop {
        let Ok(event) = reader.read_event() else { return Ok(info) };
        match event {
            Event::DocType(_) => return Err(document_type()),
            Event::Start(tag) => {
                text.clear();
                let attribute = |name: &str| -> Option<String> {
                    let value = tag.try_get_attribute(name).ok()??;
                    Some(String::from_utf8_lossy(value.value.as_bytes()).into_owned())
                };
                match tag.local_name().as_ref() {
                    "mediawiki" => info.language = attribute("xml:lang").unwrap_or_default(),
                    "namespace" => {
                        namespace = attribute("key").and_then(|key| key.parse().ok()).unwrap_or(0);
                    }
                    _ => {}
                }
            }
            Event::End(tag) => match tag.local_name().as_ref() {
                "dbname" => info.dbname = text.trim().to_owned(),
                "base" => info.base = text.trim().to_owned(),
                "namespace" => info.namespaces.push((namespace, text.trim().to_owned())),
                _ => {}
            },
            Event::Text(content) => text.push_str(&content),
            // No name that matters has an entity.
            Event::GeneralRef(reference) => {
                let _ = push_reference(&reference, &mut text);
            }
            Event::Eof => return Ok(info),
            _ => {}
        }
    }
}

/// A page, of its last revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub title: String,
    /// Number of the namespace; None in dumps before 2012.
    pub namespace: Option<i64>,
    pub id: u64,
    pub redirect: bool,
    /// Where a redirect leads, if the dump says so beside the text.
    pub redirect_target: Option<String>,
    pub revision: u64,
    pub timestamp: String,
    /// Empty in old dumps, where all is wikitext.
    pub model: String,
    /// Wikitext. Empty when `wanted` is not.
    pub text: String,
    /// The page is an article: its text was read.
    pub wanted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Title,
    Namespace,
    Id,
    Revision,
    Timestamp,
    Model,
    Text,
}

/// Whose text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Articles: pages of namespace 0, without redirects.
    Articles,
    /// Templates: pages of namespace [`TEMPLATES`], redirects too.
    Templates,
}

/// The namespace of templates.
pub(super) const TEMPLATES: i64 = 10;

/// Reads a page, from `<page>` to `</page>`, with its text if it is one of `wanted`. A page that does not
/// say its namespace may be.
pub(super) fn read_page(xml: &str, wanted: Wanted) -> Result<Page, XmlError> {
    let mut reader = Reader::from_str(xml);
    let mut page = Page { wanted: true, ..Page::default() };
    let mut value = String::new();
    let mut field = None;
    let mut depth = 0usize;
    let mut in_revision = false;
    loop {
        match reader.read_event().map_err(bad_xml)? {
            Event::Start(tag) => {
                depth += 1;
                value.clear();
                field = match (depth, tag.local_name().as_ref()) {
                    (2, "title") => Some(Field::Title),
                    (2, "ns") => Some(Field::Namespace),
                    (2, "id") => Some(Field::Id),
                    (2, "revision") => {
                        in_revision = true;
                        None
                    }
                    (2, "redirect") => {
                        page.redirect = true;
                        page.redirect_target = title_of(&tag);
                        None
                    }
                    (3, "id") if in_revision => Some(Field::Revision),
                    (3, "timestamp") if in_revision => Some(Field::Timestamp),
                    (3, "model") if in_revision => Some(Field::Model),
                    (3, "text") if in_revision => {
                        page.wanted = match wanted {
                            Wanted::Articles => {
                                !page.redirect && matches!(page.namespace, None | Some(0))
                            }
                            Wanted::Templates => matches!(page.namespace, None | Some(TEMPLATES)),
                        };
                        page.wanted.then_some(Field::Text)
                    }
                    _ => None,
                };
            }
            Event::Empty(tag) => match (depth, tag.local_name().as_ref()) {
                (1, "redirect") => {
                    page.redirect = true;
                    page.redirect_target = title_of(&tag);
                }
                (2, "text") if in_revision => page.text.clear(),
                _ => {}
            },
            Event::End(_) => {
                if let Some(field) = field.take() {
                    set(&mut page, field, &mut value)?;
                }
                in_revision &= depth != 2;
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return finish(page);
                }
            }
            Event::Text(text) if field.is_some() => value.push_str(&unix_lines(&text)),
            Event::CData(text) if field.is_some() => value.push_str(&unix_lines(&text)),
            Event::GeneralRef(reference) if field.is_some() => {
                push_reference(&reference, &mut value)?;
            }
            Event::DocType(_) => return Err(document_type()),
            Event::Eof => return Err(bad_xml("the page does not end")),
            _ => {}
        }
    }
}

/// The attribute `title` of a redirect.
fn title_of(tag: &BytesStart<'_>) -> Option<String> {
    let value = tag.try_get_attribute("title").ok()??;
    let value = String::from_utf8_lossy(value.value.as_bytes()).into_owned();
    let title = htmlize::unescape_attribute(value).trim().to_owned();
    (!title.is_empty()).then_some(title)
}

fn set(page: &mut Page, field: Field, value: &mut String) -> Result<(), XmlError> {
    let number = |what: &str| {
        let text = value.trim();
        text.parse::<i64>().map_err(|_| bad_xml(format!("{what} {text:?} is no number")))
    };
    match field {
        Field::Title => page.title = value.trim().to_owned(),
        Field::Namespace => page.namespace = Some(number("namespace")?),
        Field::Id => page.id = number("page id")?.unsigned_abs(),
        Field::Revision => page.revision = number("revision id")?.unsigned_abs(),
        Field::Timestamp => page.timestamp = value.trim().to_owned(),
        Field::Model => page.model = value.trim().to_owned(),
        Field::Text => page.text = std::mem::take(value),
    }
    Ok(())
}

fn finish(page: Page) -> Result<Page, XmlError> {
    if page.id == 0 || page.title.is_empty() {
        return Err(bad_xml("the page has no id or no title"));
    }
    Ok(page)
}

/// XML turns every line end into a line feed.
fn unix_lines(text: &str) -> Cow<'_, str> {
    if memchr::memchr(b'\r', text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n"))
}

/// Appends what `&name;` or `&#number;` stands for. Only the five entities of XML are known:
/// others would have to be defined by a document type.
fn push_reference(reference: &BytesRef<'_>, text: &mut String) -> Result<(), XmlError> {
    if let Some(c) = reference.resolve_char_ref().map_err(bad_xml)? {
        text.push(c);
        return Ok(());
    }
    let name: &str = reference;
    text.push(match name {
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let detail = format!("the entity &{name}; is not one of XML's own; it is refused");
            return Err(XmlError { reason: "undefined_entity", detail });
        }
    });
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: &str = "<page>
    <title>AT&amp;T</title><ns>0</ns><id>17</id>
    <revision><id>99</id><parentid>98</parentid><timestamp>2022-07-01T00:00:00Z</timestamp>
      <contributor><username>x</username><id>5</id></contributor>
      <comment>id</comment><model>wikitext</model><format>text/x-wiki</format>
      <text bytes=\"20\" xml:space=\"preserve\">&lt;b&gt; &amp;nbsp; &quot;a&apos;\r\nb &#x41;&#66;</text>
    </revision></page>";

    #[test]
    fn a_page_has_its_own_id_and_that_of_its_revision() {
        let page = read_page(PAGE, Wanted::Articles).unwrap();
        assert_eq!((page.id, page.revision, page.namespace), (17, 99, Some(0)));
        assert_eq!(page.title, "AT&T");
        assert_eq!(page.text, "<b> &nbsp; \"a'\nb AB");
        assert_eq!(
            (page.timestamp.as_str(), page.model.as_str()),
            ("2022-07-01T00:00:00Z", "wikitext")
        );
        assert!(page.wanted && !page.redirect);
    }

    #[test]
    fn unwanted_pages_are_not_read() {
        let talk = read_page(&PAGE.replace("<ns>0", "<ns>1"), Wanted::Articles).unwrap();
        assert!(!talk.wanted && talk.text.is_empty());
        let redirect = PAGE.replace("</ns>", "</ns><redirect title=\"x\" />");
        assert!(read_page(&redirect, Wanted::Articles).unwrap().redirect);
        let old = read_page(&PAGE.replace("<ns>0</ns>", ""), Wanted::Articles).unwrap();
        assert!(old.wanted && old.namespace.is_none());
        let history = PAGE.replace(
            "</page>",
            "<revision><id>100</id><timestamp>t</timestamp><text>new</text></revision></page>",
        );
        let page = read_page(&history, Wanted::Articles).unwrap();
        assert_eq!((page.revision, page.text.as_str()), (100, "new"));
    }

    #[test]
    fn templates_are_read_with_their_redirects() {
        let template = PAGE.replace("<ns>0", "<ns>10");
        assert!(read_page(&template, Wanted::Templates).unwrap().text.starts_with("<b>"));
        assert!(!read_page(PAGE, Wanted::Templates).unwrap().wanted);
        for redirect in
            ["<redirect title=\"T:A &amp; B\" />", "<redirect title=\"T:A &amp; B\"></redirect>"]
        {
            let page = template.replace("</ns>", &format!("</ns>{redirect}"));
            let page = read_page(&page, Wanted::Templates).unwrap();
            assert_eq!(page.redirect_target.as_deref(), Some("T:A & B"));
            assert!(page.wanted);
        }
    }

    #[test]
    fn bombs_and_bad_pages_are_refused_by_name() {
        let reason = |page: &str| read_page(page, Wanted::Articles).unwrap_err().reason;
        assert_eq!(reason(&PAGE.replace("&amp;nbsp;", "&lol9;")), "undefined_entity");
        let bomb = "<page><!DOCTYPE x [<!ENTITY a \"b\">]></page>";
        assert_eq!(reason(bomb), DOCUMENT_TYPE);
        let header = "<!DOCTYPE lolz [<!ENTITY lol \"lol\">]><mediawiki>";
        assert_eq!(read_site_info(header).unwrap_err().reason, DOCUMENT_TYPE);
        assert_eq!(reason(&PAGE.replace("</title>", "</titel>")), "bad_xml");
        assert_eq!(reason(&PAGE.replace("<id>17", "<id>x")), "bad_xml");
        assert_eq!(reason("<page><title>x</title></page>"), "bad_xml");
        assert_eq!(reason("<page>"), "bad_xml");
        assert_eq!(reason(&PAGE.replace("&#66;", "&#xD800;")), "bad_xml");
    }

    #[test]
    fn the_header_names_the_wiki() {
        let header = "<mediawiki xml:lang=\"de\"><siteinfo><dbname>dewiki</dbname>
            <base>https://de.wikipedia.org/wiki/A</base><namespaces>
            <namespace key=\"0\" /><namespace key=\"6\" case=\"first-letter\">Datei</namespace>
            </namespaces></siteinfo>\n";
        let info = read_site_info(header).unwrap();
        assert_eq!((info.dbname.as_str(), info.language.as_str()), ("dewiki", "de"));
        assert_eq!(info.base, "https://de.wikipedia.org/wiki/A");
        assert_eq!(info.namespaces, [(6, "Datei".to_owned())]);
    }

    proptest! {
        #[test]
        fn hostile_pages_are_errors_or_pages(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(vec![
                        "<title>", "</title>", "<id>", "</id>", "1", "<revision>", "</revision>",
                        "<text>", "</text>", "<text/>", "&lt;", "&#0;", "&#x110000;", "&;", "&a",
                        "<!DOCTYPE", "<![CDATA[", "]]>", "<!--", "-->", "<?x", "?>", ">", "<", "\"",
                        "<ns>", "</ns>", "<page>", "</page>", "é", "\r",
                    ]).prop_map(str::to_owned),
                    "\\PC{0,8}",
                ],
                0..40,
            ),
        ) {
            let xml = format!("<page>{}</page>", parts.concat());
            let _ = read_page(&xml, Wanted::Articles);
            let _ = read_site_info(&xml);
        }
    }
}
