//! Web archives, plain or compressed, and HTML to text.

#![no_main]

use altiplano_data::source::{Record, WebArchiveFormat, WebArchiveSource};
use altiplano_data::step::{StackExchangeHtmlOptions, Verdict};
use altiplano_data::text::html::HtmlOptions;
use altiplano_fuzz::{TestFile, apply_twice, choose, document};
use libfuzzer_sys::fuzz_target;

const MOST_BYTES: usize = 64 << 10;
const FORMATS: [WebArchiveFormat; 3] =
    [WebArchiveFormat::Auto, WebArchiveFormat::Wet, WebArchiveFormat::Warc];

fuzz_target!(|data: &[u8]| {
    let html = HtmlOptions {
        skip_navigation: data.len() % 2 == 0,
        list_marker: choose(&["", "- ", "0123456789abcdef"], data).to_owned(),
    };
    // Only what may be an archive is read as one: all else would be the same rejection.
    let start = &data[..data.len().min(8)];
    let archive = start.windows(4).any(|bytes| bytes == b"WARC")
        || start.starts_with(&[0x1f, 0x8b])
        || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    if archive {
        let source = WebArchiveSource {
            format: choose(&FORMATS, data),
            html: html.clone(),
            max_record_bytes: MOST_BYTES,
            ..WebArchiveSource::files(Vec::new())
        };
        let reading = TestFile::new("a.warc.gz", data).read_twice(&source, false);
        assert!(reading.records.len() <= 64 * data.len(), "{}", reading.records.len());
        for record in &reading.records {
            match record {
                // Old encodings become up to three times as long; a list item is shorter than
                // its tag and the longest marker.
                Record::Document(page) => assert!(page.text.len() <= 18 * MOST_BYTES),
                Record::Rejected(rejection) => assert!(rejection.offset <= data.len() as u64),
            }
        }
        let mut ids: Vec<&str> = reading.documents().map(|page| page.id.as_str()).collect();
        let count = ids.len();
        ids.dedup();
        assert!(ids.is_sorted() && ids.len() == count, "{ids:?}");
        return;
    }
    let page = document(&String::from_utf8_lossy(data));
    let marker = html.list_marker.len();
    let (verdict, text, _) = apply_twice(&html, &page);
    if verdict == Verdict::Keep {
        // `<li>` and a character; a line feed, the marker and a character.
        assert!(text.text.len() <= (2 + marker / 4) * page.text.len() + 16);
        assert!(!text.text.contains('\0'));
    }
    let (verdict, text, _) = apply_twice(&StackExchangeHtmlOptions {}, &page);
    if verdict == Verdict::Keep {
        assert!(text.text.len() <= 2 * page.text.len() + 16);
    }
});
