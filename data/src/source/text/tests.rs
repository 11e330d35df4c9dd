#![allow(clippy::unwrap_used)]

use std::io::Write;

use super::*;
use crate::document::Reason;

fn read(source: &TextSource) -> Result<Vec<Vec<Record>>> {
    let read = |input: &Input| {
        let mut records = Vec::new();
        let context = ReadContext {
            source: "c4",
            input,
            scratch: Path::new(""),
            memory_bytes: 0,
            bytes_read: &|_| {},
        };
        source.read(&context, &mut |record| {
            records.push(record);
            Ok(())
        })?;
        Ok(records)
    };
    source.inputs("sources.c4.text")?.iter().map(read).collect()
}

/// The parts of a file that `document_bytes` makes, and what is not kept.
fn parts(text: &[u8], document_bytes: usize) -> Vec<Record> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("input.txt");
    std::fs::write(&path, text).unwrap();
    let source = TextSource {
        document_bytes: Some(document_bytes),
        max_record_bytes: document_bytes.max(1000),
        ..TextSource::files(vec![path])
    };
    source.validate("text").unwrap();
    read(&source).unwrap().remove(0)
}

fn document(record: &Record) -> &Document {
    match record {
        Record::Document(document) => document,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_says_itself_how_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let lines = b"{\"text\": \"one\"}\n{\"text\": \"two\"}\n";
    let read_as = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let yaml = format!("paths: [{}]", path.display());
        let source: TextSource = serde_yaml::from_str(&yaml).unwrap();
        source.validate("text").unwrap();
        read(&source).map(|records| records[0].len())
    };
    assert_eq!(read_as("a.jsonl.gz", &gzip(lines)).unwrap(), 2);
    assert_eq!(read_as("b.txt", lines).unwrap(), 2);
    assert_eq!(read_as("c", &zstd::encode_all(&lines[..], 1).unwrap()).unwrap(), 2);
    assert_eq!(read_as("d.txt", b"{ a set }\nof words\n").unwrap(), 1);
    let error = read_as("f.zip", b"PK\x03\x04rest").unwrap_err().to_string();
    assert!(error.contains("f.zip") && error.contains("archive"), "{error}");
}

#[test]
fn a_long_file_is_cut_into_documents_and_nothing_is_lost() {
    let verses: String = (0..200)
        .map(|n| format!("Verse {n} is short.{}", if n % 4 == 3 { "\n\n" } else { "\n" }))
        .collect();
    let windows = verses.replace('\n', "\r\n");
    let one_line = "Wörter ohne Zeilenende. ".repeat(300);
    let no_space = "é日".repeat(1000);
    for text in [&verses, &windows, &one_line, &no_space] {
        for bytes in [100, 101, 137, 399] {
            let records = parts(text.as_bytes(), bytes);
            let joined: String = records
                .iter()
                .filter_map(|record| match record {
                    Record::Document(document) => Some(document.text.as_str()),
                    // A part of white space only.
                    Record::Rejected(_) => None,
                })
                .collect();
            let bare = |text: &str| text.replace(char::is_whitespace, "");
            assert_eq!(bare(&joined), bare(text), "{bytes} bytes of {:.20}", text);
        }
    }
    let records = parts(verses.as_bytes(), 400);
    let joined: String = records.iter().map(|record| document(record).text.as_str()).collect();
    assert_eq!(joined, verses);
    for record in &records[..records.len() - 1] {
        let text = &document(record).text;
        assert!(text.ends_with("\n\n") && (200..=400).contains(&text.len()), "{text:?}");
    }
    assert_eq!(document(&records[1]).id, "input.txt/00000001");
    // Windows' line ends count for the size and are gone after.
    let records = parts(windows.as_bytes(), 400);
    let joined: String = records.iter().map(|record| document(record).text.as_str()).collect();
    assert_eq!(joined, verses);
    // The longest record allowed is not a bound where it is cut.
    let text = format!("First.\n{}\nLast.\n", "x".repeat(5000));
    let records = parts(text.as_bytes(), 500);
    let joined: String = records.iter().map(|record| document(record).text.as_str()).collect();
    assert_eq!(joined, text);
}

#[test]
fn the_files_of_c4_are_read_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let line = |n: usize| {
        format!(
            "{{\"text\":\"Page {n}\\nwith é.\",\"timestamp\":\"2019-04-25T12:57:5{n}Z\",\
             \"url\":\"https://example.org/{n}\"}}\n"
        )
    };
    let gzip = |name: &str, lines: &str| {
        let path = folder.path().join(name);
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(lines.as_bytes()).unwrap();
        std::fs::write(path, encoder.finish().unwrap()).unwrap();
    };
    gzip("c4-train.00000-of-00002.json.gz", &(line(0) + &line(1)));
    gzip("c4-train.00001-of-00002.json.gz", &(line(2) + "{\"text\": \"\"}\n" + &line(3)));
    let yaml = format!(
        "{{paths: [\"{}/c4-train.*.json.gz\"], format: jsonl, created_field: timestamp}}",
        folder.path().display()
    );
    let mut source: TextSource = serde_yaml::from_str(&yaml).unwrap();
    source.validate("text").unwrap();
    let files = read(&source).unwrap();
    assert_eq!(files.iter().map(Vec::len).collect::<Vec<_>>(), [2, 3]);
    let Record::Document(document) = &files[0][1] else { panic!("{files:?}") };
    assert_eq!(document.id, "c4-train.00000-of-00002.json.gz/00000001");
    assert_eq!(document.text, "Page 1\nwith é.");
    assert_eq!(document.created.as_deref(), Some("2019-04-25T12:57:51Z"));
    assert_eq!(document.url.as_deref(), Some("https://example.org/1"));
    let Record::Rejected(rejection) = &files[1][1] else { panic!("{files:?}") };
    assert_eq!(rejection.reason, Reason::EMPTY);

    source.records_per_file = Some([2, 3]);
    assert_eq!(read(&source).unwrap(), files);
    source.records_per_file = Some([2, 2]);
    let error = read(&source).unwrap_err().to_string();
    assert!(error.contains("00001-of-00002") && error.contains("3 records"), "{error}");
    source.records_per_file = Some([3, 2]);
    assert!(source.validate("text").unwrap_err().to_string().contains("records_per_file"));

    // A line that is no JSON is counted, a cut file is an error.
    gzip("c4-train.00001-of-00002.json.gz", &(line(2) + "{\"text\": \n"));
    source.records_per_file = None;
    let files = read(&source).unwrap();
    assert!(matches!(&files[1][1], Record::Rejected(r) if r.reason == Reason::BAD_JSON));
    let path = folder.path().join("c4-train.00000-of-00002.json.gz");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    assert!(matches!(read(&source), Err(DataError::Archive { .. })));
}

#[test]
fn files_of_any_encoding_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let latin = b"Il a \xe9t\xe9 d\xe9cid\xe9 que la f\xeate aurait lieu \xe0 No\xebl.";
    let utf16: Vec<u8> =
        "\u{feff}höhe\n***\ntiefe\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (name, bytes) in [
        ("a.txt", latin.to_vec()),
        ("b.txt", utf16),
        ("c.txt", b"f\x81r".to_vec()),
        ("d.txt", b"He said ~{VPND~} and ~{WVJ}~}.".to_vec()),
        ("e.txt", "b\u{e4}".repeat(50).bytes().chain([0xff]).collect()),
    ] {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let source = |name: &str| TextSource::files(vec![folder.path().join(name)]);
    let texts = |source: &TextSource| -> Vec<String> {
        source.validate("text").unwrap();
        let records = read(source).unwrap().remove(0);
        let text = |record| match record {
            Record::Document(document) => document.text,
            Record::Rejected(rejection) => rejection.reason.name().to_owned(),
        };
        records.into_iter().map(text).collect()
    };
    assert_eq!(texts(&source("a.txt")), ["Il a été décidé que la fête aurait lieu à Noël."]);
    assert_eq!(texts(&source("b.txt")), ["höhe\n***\ntiefe\n"]);
    let cut = TextSource { document_separator: Some("***".into()), ..source("b.txt") };
    assert_eq!(texts(&cut), ["höhe\n", "tiefe\n"]);
    let cyrillic = TextSource { encoding: Some("cp866".into()), ..source("c.txt") };
    assert_eq!(texts(&cyrillic), ["fБr"]);
    let german = TextSource { encoding: Some("cp850".into()), ..source("c.txt") };
    assert_eq!(texts(&german), ["für"]);
    assert_eq!(texts(&source("d.txt")), ["undecodable_encoding"]);
    assert!(texts(&source("e.txt"))[0].ends_with("bä\u{fffd}"));
    let nonsense = TextSource { encoding: Some("nonsense".into()), ..source("c.txt") };
    let error = nonsense.validate("sources.x.text").unwrap_err().to_string();
    assert!(error.contains("sources.x.text.encoding") && error.contains("nonsense"), "{error}");
    let records = TextSource { format: Some(TextFormat::Jsonl), ..german };
    assert!(records.validate("text").unwrap_err().to_string().contains("UTF-8"));
}
