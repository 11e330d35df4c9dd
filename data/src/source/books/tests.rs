use std::io::Write;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use crate::source::Rejection;

fn read_inputs(source: &BooksSource) -> Vec<Result<(Vec<Document>, Vec<Rejection>)>> {
    source.validate("books").unwrap();
    let inputs = source.inputs("books").unwrap();
    let one = |input: &Input| {
        let total = std::cell::Cell::new(0);
        let context = ReadContext {
            source: "books",
            input,
            scratch: Path::new(""),
            memory_bytes: 0,
            bytes_read: &|count| total.set(total.get() + count),
        };
        let (mut documents, mut rejections) = (Vec::new(), Vec::new());
        source.read(&context, &mut |record| {
            match record {
                Record::Document(document) => documents.push(document),
                Record::Rejected(rejection) => rejections.push(rejection),
            }
            Ok(())
        })?;
        assert_eq!(total.get(), input.bytes);
        Ok((documents, rejections))
    };
    inputs.iter().map(one).collect()
}

/// Writes `files` into a folder and reads them all.
fn read(
    layout: BooksLayout,
    files: &[(&str, Vec<u8>)],
) -> Vec<Result<(Vec<Document>, Vec<Rejection>)>> {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let source = BooksSource {
        i_have_rights: true,
        max_book_bytes: 1000,
        ..BooksSource::new(vec![folder.path().join("*")], layout)
    };
    read_inputs(&source)
}

fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        writer.start_file(*name, SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn gutenberg_files_of_all_encodings_are_read() {
    let read = read(
        BooksLayout::Gutenberg,
        &[
            ("1342-0.txt", "\u{feff}Café \r\nnoir".into()),
            ("1342-8.txt", b"Caf\xe9".to_vec()),
            ("20-8.txt", b"Character set encoding: ISO-8859-1\r\n\r\nCaf\xe9 \xfcber".to_vec()),
            ("old.txt", b"The Project Gutenberg Etext [Etext #77]\nx".to_vec()),
            ("plain.txt", b"x".to_vec()),
        ],
    );
    let documents: Vec<_> = read.into_iter().flat_map(|read| read.unwrap().0).collect();
    let ids: Vec<_> = documents.iter().map(|document| document.id.as_str()).collect();
    assert_eq!(ids, ["pg:1342", "pg:20", "pg:77", "pg:plain"]);
    assert_eq!(documents[0].text, "Café \r\nnoir");
    assert_eq!(documents[0].url.as_deref(), Some("https://www.gutenberg.org/ebooks/1342"));
    assert_eq!(documents[0].metadata()["n_words"], 2);
    assert!(documents[1].text.ends_with("Café über"));
    assert_eq!(documents[1].metadata()["encoding"], "windows-1252");
}

#[test]
fn zip_files_are_read_with_care() {
    let long = vec![b'x'; 5000];
    let read = read(
        BooksLayout::Gutenberg,
        &[
            ("11.zip", zip_of(&[("11-8.txt", b"caf\xe9"), ("11-0.txt", "café".as_bytes())])),
            ("12.zip", zip_of(&[("../../alice10.txt", b"Alice"), ("pic.jpg", b"x")])),
            ("13.zip", zip_of(&[("13.txt", &long)])),
            ("14.zip", zip_of(&[("14.htm", b"x")])),
            ("15.zip", {
                let mut bytes = zip_of(&[("15.txt", b"a book about whales and the sea")]);
                let at = bytes.windows(4).position(|window| window == b".txt").unwrap();
                bytes[at + 10] ^= 0x55;
                bytes
            }),
            ("16.zip", {
                let mut bytes = zip_of(&[("16.txt", b"a book")]);
                bytes.truncate(bytes.len() - 30);
                bytes
            }),
        ],
    );
    let one = |index: usize| read[index].as_ref().unwrap();
    assert_eq!((one(0).0[0].id.as_str(), one(0).0[0].text.as_str()), ("pg:11", "café"));
    assert_eq!((one(1).0[0].id.as_str(), one(1).0[0].text.as_str()), ("pg:12", "Alice"));
    for (index, reason) in [(2, "too_long"), (3, "no_text"), (4, "damaged_archive")] {
        let (documents, rejections) = one(index);
        assert!(documents.is_empty());
        assert_eq!(rejections[0].reason.name(), reason);
    }
    assert!(matches!(read[5], Err(DataError::Archive { .. })));
}

#[test]
fn pg19_and_books3_lines_are_read() {
    let pg19 = r#"{"short_book_title": "Emma", "publication_date": "1815", "url": "http://www.gutenberg.org/ebooks/158", "text": "Emma Woodhouse, handsome"}
{"short_book_title": "X", "publication_date": 1900, "text": "y"}
not json

{"text": 5}
{"short_book_title": "No text"}
"#;
    let read_pg19 = read(BooksLayout::Pg19, &[("train.jsonl", pg19.into())]);
    let (documents, rejections) = read_pg19[0].as_ref().unwrap();
    assert_eq!(documents[0].id, "pg:158");
    assert_eq!(documents[0].language.as_deref(), Some("en"));
    let metadata = documents[0].metadata();
    assert_eq!((&metadata["title"], &metadata["year"]), (&"Emma".into(), &1815.into()));
    assert_eq!(metadata["n_words"], 3);
    assert!(documents[1].id.starts_with("pg19:") && documents[1].metadata()["year"] == 1900);
    let reasons: Vec<_> = rejections.iter().map(|rejection| rejection.reason.name()).collect();
    assert_eq!(reasons, ["bad_json", "bad_json", "missing_text"]);

    let read_books3 = read(
        BooksLayout::Books3,
        &[
            ("A Title.txt", b"text".to_vec()),
            ("b.jsonl", br#"{"title": "B", "text": "text"}"#.to_vec()),
        ],
    );
    let books: Vec<_> = read_books3.iter().map(|read| &read.as_ref().unwrap().0[0]).collect();
    assert_eq!(books[0].id, books[1].id);
    assert!(books[0].id.starts_with("books3:") && books[0].id.len() == 39);
    assert_eq!(books[0].metadata()["title"], "A Title");
    assert_eq!(books[1].metadata()["title"], "B");
}

#[test]
fn books3_needs_the_users_word() {
    let source = BooksSource::new(vec!["x".into()], BooksLayout::Books3);
    let message = source.validate("sources.b.books").unwrap_err().to_string();
    assert!(message.starts_with("sources.b.books.i_have_rights: found false"), "{message}");
    let source: BooksSource =
        serde_yaml::from_str("{paths: [x], layout: books3, i_have_rights: true}").unwrap();
    assert!(source.validate("b").is_ok());
    assert!(serde_yaml::from_str::<BooksSource>("{paths: [x], layout: books4}").is_err());
}
