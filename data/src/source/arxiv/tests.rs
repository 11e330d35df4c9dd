use super::*;
use crate::source::archive::tests::{gzip, tar_of};

const MAIN: &[u8] =
    b"\\documentclass{article}\n\\begin{document}\n\\input{body}\n\\end{document}\n";
const SINGLE: &[u8] = b"\\documentstyle{article}\\begin{document}D\xe9j\xe0 vu.\\end{document}\n";

fn archive() -> Vec<u8> {
    let project = gzip(&tar_of(&[
        ("main.tex", MAIN),
        ("body.tex", b"\\section{One} Text.\n"),
        ("fig.eps", b"%!PS"),
        ("00README.XXX", b"nothing"),
    ]));
    tar_of(&[
        ("0704/0704.0001.gz", &project),
        ("0704/math0001001.gz", &gzip(SINGLE)),
        ("0704/0704.0002.pdf", b"%PDF-1.4"),
        ("0704/0704.0003.gz", &project[..project.len() / 2]),
        ("../0704.0004.gz", &project),
        ("0704/0704.0005.gz", &gzip(b"No paper.")),
        ("0704/0704.0006.gz", &project),
    ])
}

fn read(source: &ArxivSource, key: &str) -> (Vec<Record>, Result<()>) {
    let mut records = Vec::new();
    for input in source.inputs(key).unwrap() {
        let context = ReadContext {
            source: "arxiv",
            input: &input,
            scratch: Path::new(""),
            memory_bytes: 0,
            bytes_read: &|_| {},
        };
        let result = source.read(&context, &mut |record| {
            records.push(record);
            Ok(())
        });
        if result.is_err() {
            return (records, result);
        }
    }
    (records, Ok(()))
}

fn summary(records: &[Record]) -> Vec<String> {
    let line = |record: &Record| match record {
        Record::Document(document) => document.id.clone(),
        Record::Rejected(rejection) => rejection.reason.name().to_owned(),
    };
    records.iter().map(line).collect()
}

#[test]
fn papers_of_an_archive_are_read_and_the_rest_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("arXiv_src_0704_001.tar");
    std::fs::write(&path, archive()).unwrap();
    let source = ArxivSource::archives(vec![folder.path().join("*.tar")]);
    let (records, result) = read(&source, "arxiv");
    result.unwrap();
    assert_eq!(
        summary(&records),
        [
            "0704.0001",
            "math/0001001",
            "pdf_only",
            "bad_archive",
            "unsafe_path",
            "no_root",
            "0704.0006"
        ]
    );
    let Record::Document(first) = &records[0] else { panic!() };
    assert_eq!(
        first.text,
        "\\documentclass{article}\n\\begin{document}\n\\section{One} Text.\n\n\\end{document}\n"
    );
    assert_eq!(first.url.as_deref(), Some("https://arxiv.org/abs/0704.0001"));
    assert_eq!(first.created.as_deref(), Some("2007-04-01T11:04:05Z"));
    let metadata = first.metadata();
    assert_eq!((&metadata["yymm"], &metadata["root"]), (&json!("0704"), &json!("main.tex")));
    assert_eq!((&metadata["n_files"], &metadata["n_tex_files"]), (&json!(4), &json!(2)));
    let Record::Document(second) = &records[1] else { panic!() };
    assert!(second.text.contains("Déjà vu."), "{}", second.text);
    assert_eq!(second.metadata()["encodings"], json!(["windows-1252"]));
    let Record::Rejected(broken) = &records[3] else { panic!() };
    assert!(broken.reason.is_error() && broken.detail.starts_with("0704.0003: "), "{broken:?}");
    assert!(broken.offset > 0 && broken.offset % 512 == 0);
}

#[test]
fn a_truncated_archive_is_an_error_after_the_papers_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let bytes = archive();
    for length in [bytes.len() - 1024, bytes.len() - 1500, 600, 0] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let (records, result) = read(&ArxivSource::archives(vec![path.clone()]), "arxiv");
        match result {
            Err(DataError::Archive { offset, .. }) => assert!(offset <= length as u64),
            other => panic!("cut at {length}: {other:?}"),
        }
        let whole = records.iter().filter(|record| matches!(record, Record::Document(_))).count();
        assert!(whole <= 3);
        assert!(length > 600 || records.is_empty(), "a paper cut short is no record");
    }
}

#[test]
fn single_submissions_and_folders_are_read_too() {
    let folder = tempfile::tempdir().unwrap();
    // A folder with such a name is not a pattern.
    let base = folder.path().join("p[1]");
    let papers = base.join("papers");
    for (path, content) in [("one/main.tex", MAIN), ("one/body.tex", b"B\n"), ("two/x.tex", SINGLE)]
    {
        let path = papers.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let mut folders = ArxivSource {
        format: ArxivFormat::Folders,
        ..ArxivSource::archives(vec!["papers".into()])
    };
    folders.make_paths_absolute(&base);
    let (records, result) = read(&folders, "arxiv");
    result.unwrap();
    assert_eq!(summary(&records), ["one", "two"]);

    std::fs::write(papers.join("2101.00001v2.tar.gz"), gzip(&tar_of(&[("m.tex", MAIN)]))).unwrap();
    std::fs::write(papers.join("cut.gz"), &gzip(SINGLE)[..30]).unwrap();
    let singles = ArxivSource::archives(vec![pattern_below(&papers, Path::new("*.gz"))]);
    let (records, result) = read(&singles, "arxiv");
    result.unwrap();
    assert_eq!(summary(&records), ["2101.00001", "bad_archive"]);
}

#[test]
fn identifiers_are_arxivs() {
    for (name, id, yymm) in [
        ("0704/0704.0001.gz", "0704.0001", Some("0704")),
        ("1501/1501.00001.gz", "1501.00001", Some("1501")),
        ("0001/math0001001.gz", "math/0001001", Some("0001")),
        ("9901/cond-mat9901001.gz", "cond-mat/9901001", Some("9901")),
        ("2101.00001v3.gz", "2101.00001", Some("2101")),
        ("papers/thesis.gz", "papers/thesis.gz", None),
    ] {
        let paper = Paper::named(name, None);
        assert_eq!((paper.id.as_str(), paper.yymm.as_deref()), (id, yymm));
    }
}

#[test]
fn options_are_checked() {
    let source: ArxivSource = serde_yaml::from_str("{paths: [a.tar]}").unwrap();
    assert_eq!(source, ArxivSource::archives(vec!["a.tar".into()]));
    source.validate("sources.x.arxiv").unwrap();
    let bad = ArxivSource { max_expanded_bytes: 1, ..source };
    let error = bad.validate("sources.x.arxiv").unwrap_err().to_string();
    assert!(error.contains("sources.x.arxiv.max_expanded_bytes"), "{error}");
}
