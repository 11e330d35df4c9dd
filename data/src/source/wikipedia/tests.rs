use std::io::Write;

use bzip2::Compression;
use bzip2::write::BzEncoder;

use super::*;
use crate::source::Rejection;

const HEADER: &str = "<mediawiki version=\"0.10\" xml:lang=\"en\"><siteinfo><dbname>enwiki</dbname>\
<base>https://en.wikipedia.org/wiki/Main_Page</base><namespaces><namespace key=\"0\" />\
<namespace key=\"1\">Talk</namespace></namespaces></siteinfo>\n";
const END: &str = "</mediawiki>\n";

fn page(id: u64, title: &str, extra: &str, text: &str) -> String {
    format!(
        "  <page><title>{title}</title>{extra}<id>{id}</id><revision><id>{}</id>\
         <timestamp>2022-07-01T00:00:00Z</timestamp><text xml:space=\"preserve\">{text}</text>\
         </revision></page>\n",
        id + 1000
    )
}

fn articles(from: u64, count: u64) -> String {
    let article = |id| page(id, &format!("Article {id}"), "<ns>0</ns>", &format!("Text {id}. é"));
    (from..from + count).map(article).collect()
}

fn bzip2(text: &str) -> Vec<u8> {
    let mut encoder = BzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Documents, rejections, and the error it ended with.
type Read = (Vec<Document>, Vec<Rejection>, Result<()>);

fn read_with(source: &WikipediaSource, name: &str, bytes: &[u8]) -> Read {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let source = WikipediaSource { paths: vec![path], ..source.clone() };
    source.validate("wikipedia").unwrap();
    let inputs = source.inputs("wikipedia").unwrap();
    let total = std::cell::Cell::new(0);
    let context = ReadContext {
        source: "wikipedia",
        input: &inputs[0],
        scratch: folder.path(),
        memory_bytes: 0,
        bytes_read: &|count| total.set(total.get() + count),
    };
    let (mut documents, mut rejections) = (Vec::new(), Vec::new());
    let result = source.read(&context, &mut |record| {
        match record {
            Record::Document(document) => documents.push(document),
            Record::Rejected(rejection) => rejections.push(rejection),
        }
        Ok(())
    });
    if result.is_ok() {
        assert_eq!(total.get(), bytes.len() as u64);
    }
    (documents, rejections, result)
}

fn read(name: &str, bytes: &[u8]) -> Read {
    read_with(&WikipediaSource::dumps(Vec::new()), name, bytes)
}

fn reasons(rejections: &[Rejection]) -> Vec<&str> {
    rejections.iter().map(|rejection| rejection.reason.name()).collect()
}

#[test]
fn articles_become_documents_and_the_rest_is_counted() {
    let dump = [
        HEADER,
        &page(1, "AT&amp;T \"x\"", "<ns>0</ns>", "'''Text'''"),
        &page(2, "Talk:A", "<ns>1</ns>", "x"),
        &page(3, "Talk:B", "", "x"),
        &page(4, "R", "<ns>0</ns><redirect title=\"A\" />", "#REDIRECT [[A]]"),
        &page(5, "S", "<ns>0</ns>", "#redirect [[A]]"),
        &page(6, "J", "<ns>0</ns>", "{}").replace("<text", "<model>javascript</model><text"),
        &page(7, "E", "<ns>0</ns>", ""),
        &page(8, "X", "<ns>0</ns>", "&bomb;"),
        END,
    ]
    .concat();
    for (name, bytes) in [
        ("a.xml", dump.clone().into_bytes()),
        ("a.xml.bz2", bzip2(&dump)),
        ("a.xml.zst", zstd::encode_all(dump.as_bytes(), 3).unwrap()),
    ] {
        let (documents, rejections, result) = read(name, &bytes);
        result.unwrap();
        assert_eq!(documents.len(), 1);
        let document = &documents[0];
        assert_eq!(document.id, "enwiki:1");
        assert_eq!(document.text, "'''Text'''");
        assert_eq!(document.language.as_deref(), Some("en"));
        assert_eq!(document.created.as_deref(), Some("2022-07-01T00:00:00Z"));
        assert_eq!(document.url.as_deref(), Some("https://en.wikipedia.org/wiki/AT%26T_%22x%22"));
        let metadata = document.metadata();
        assert_eq!((&metadata["title"], &metadata["revid"]), (&"AT&T \"x\"".into(), &1001.into()));
        assert_eq!(
            reasons(&rejections),
            [
                "other_namespace",
                "other_namespace",
                "redirect",
                "redirect",
                "not_wikitext",
                "empty",
                "undefined_entity"
            ]
        );
        let offset = rejections[0].offset as usize;
        assert!(dump[offset..].starts_with("<page><title>Talk:A"));
    }
}

#[test]
fn multistream_dumps_are_the_same_for_any_number_of_threads() {
    let streams: Vec<String> = (0..50).map(|n| articles(1 + 10 * n, 10)).collect();
    let mut bytes = bzip2(HEADER);
    streams.iter().for_each(|stream| bytes.extend(bzip2(stream)));
    bytes.extend(bzip2(END));
    let plain = [HEADER, &streams.concat(), END].concat();
    let expected = read("enwiki.xml", plain.as_bytes());
    assert_eq!(expected.0.len(), 500);
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let made = pool.install(|| read("enwiki.xml.bz2", &bytes));
        assert!(made.2.is_ok() && (made.0, made.1) == (expected.0.clone(), expected.1.clone()));
    }
}

#[test]
fn damage_is_counted_and_truncation_is_an_error() {
    let streams = [HEADER.to_owned(), articles(1, 20), articles(21, 20), END.to_owned()];
    let compressed = streams.each_ref().map(|stream| bzip2(stream));
    let second = compressed[0].len();
    let mut bytes = compressed.concat();
    bytes[second + 60] ^= 0xff;
    let (documents, rejections, result) = read("a.bz2", &bytes);
    result.unwrap();
    assert_eq!(documents[0].id, "enwiki:21");
    assert_eq!((documents.len(), reasons(&rejections)), (20, vec!["damaged_stream"]));
    assert!(rejections[0].reason.is_error());
    assert!(rejections[0].detail.contains(&format!("stream at byte {second}")));

    // Cut inside the third stream, then between streams, then plain in a page.
    let whole = compressed.concat();
    let cut = second + compressed[1].len() + 30;
    let (documents, _, result) = read("a.bz2", &whole[..cut]);
    assert_eq!(documents.len(), 20);
    assert!(matches!(result, Err(DataError::Archive { offset, .. }) if offset == cut as u64));
    let (documents, _, result) = read("a.bz2", &whole[..second + compressed[1].len()]);
    assert_eq!(documents.len(), 20);
    let message = result.unwrap_err().to_string();
    assert!(message.contains("without </mediawiki>"), "{message}");
    let plain = streams.concat();
    let (documents, _, result) = read("a.xml", &plain.as_bytes()[..plain.len() - 60]);
    assert_eq!(documents.len(), 39);
    assert!(matches!(result, Err(DataError::BadFile { .. })));
}

#[test]
fn document_types_are_refused_by_name() {
    let bomb = format!("<!DOCTYPE lolz [<!ENTITY lol \"lol\">]>\n{HEADER}{END}");
    let inside = format!("{HEADER}<page><!DOCTYPE x></page>{END}");
    for dump in [bomb, inside] {
        let message = read("a.xml", dump.as_bytes()).2.unwrap_err().to_string();
        assert!(message.contains("<!DOCTYPE>") && message.contains("a.xml"), "{message}");
    }
}

#[test]
fn the_language_is_found_and_others_are_not_read() {
    let info = |dbname: &str, base: &str, language: &str| SiteInfo {
        dbname: dbname.into(),
        base: base.into(),
        language: language.into(),
        ..SiteInfo::default()
    };
    let of = |info: SiteInfo, name: &str| language_of(&info, name);
    assert_eq!(of(info("dewiki", "", ""), "enwiki-x.xml").as_deref(), Some("de"));
    assert_eq!(of(info("", "", ""), "d/srwiki-20220620-pages.xml").as_deref(), Some("sr"));
    assert_eq!(of(info("zh_min_nanwiki", "", ""), "a").as_deref(), Some("zh-min-nan"));
    assert_eq!(of(info("", "https://fr.wikipedia.org/wiki/A", ""), "a").as_deref(), Some("fr"));
    assert_eq!(of(info("", "", "uk"), "a.xml").as_deref(), Some("uk"));
    assert_eq!(of(info("", "", ""), "wiki.xml"), None);

    let dump = format!("{HEADER}{}{END}", articles(1, 3));
    let source =
        WikipediaSource { languages: vec!["de".into()], ..WikipediaSource::dumps(Vec::new()) };
    let (documents, rejections, result) = read_with(&source, "a.xml", dump.as_bytes());
    result.unwrap();
    assert_eq!((documents.len(), reasons(&rejections)), (0, vec!["other_language"]));
    let forced = WikipediaSource { language: Some("de".into()), ..source };
    assert_eq!(read_with(&forced, "a.xml", dump.as_bytes()).0[0].id, "dewiki:1");
}

#[test]
fn long_pages_are_skipped_and_broken_ones_counted() {
    let dump = format!(
        "{HEADER}{}{}<page><title>x</page>{}{END}",
        articles(1, 1),
        page(2, "Long", "<ns>0</ns>", &"x".repeat(5000)),
        articles(3, 1)
    );
    let source = WikipediaSource { max_page_bytes: 1000, ..WikipediaSource::dumps(Vec::new()) };
    let (documents, rejections, result) = read_with(&source, "a.xml", dump.as_bytes());
    result.unwrap();
    assert_eq!(documents.len(), 2);
    assert_eq!(reasons(&rejections), ["too_long", "bad_xml"]);
}

#[test]
fn options_are_checked() {
    let check = |change: &dyn Fn(&mut WikipediaSource)| {
        let mut source = WikipediaSource::dumps(vec!["x".into()]);
        change(&mut source);
        source.validate("k").map_err(|error| error.to_string())
    };
    assert!(check(&|_| ()).is_ok());
    assert!(check(&|s| s.paths.clear()).unwrap_err().contains("k.paths"));
    assert!(check(&|s| s.languages = vec!["English".into()]).unwrap_err().contains("English"));
    assert!(check(&|s| s.language = Some("xx".into())).unwrap_err().contains("k.language"));
    assert!(check(&|s| s.max_page_bytes = 0).unwrap_err().contains("max_page_bytes"));
}
