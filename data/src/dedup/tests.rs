//! Global steps against brute force in memory, for any cut into tasks, partitions and threads.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use md5::{Digest, Md5};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::budget::Budget;
use super::find::{Keeper, find_within};
use super::*;
use crate::text::ccnet::normalize_for_dedup;

/// A document and the number of its input file.
type Corpus = Vec<(Document, u32)>;

/// What becomes of each document: its text and metadata, or the reason.
pub(super) type Fates = Vec<std::result::Result<Document, String>>;

/// Runs `step` over tasks of documents, with `decide` in place of its own.
fn run_with(
    step: &dyn GlobalStep,
    tasks: &[&[(Document, u32)]],
    folder: &Path,
    decide: impl FnOnce(&[TaskFiles], &Path) -> Result<Vec<FileDigest>>,
) -> Fates {
    let files: Vec<TaskFiles> = (0..tasks.len())
        .map(|number| TaskFiles {
            signatures: folder.join(format!("{number}.signatures")),
            decisions: folder.join(format!("{number}.decisions")),
        })
        .collect();
    for (task, files) in tasks.iter().zip(&files) {
        let mut signatures = step.signatures(&files.signatures).unwrap();
        for (document, input) in *task {
            signatures.add(document, *input).unwrap();
        }
        signatures.finish().unwrap().verify(&files.signatures, "").unwrap();
    }
    let spill = folder.join("spill");
    std::fs::create_dir_all(&spill).unwrap();
    let written = decide(&files, &spill).unwrap();
    assert_eq!(written.len(), files.len());
    for (digest, files) in written.iter().zip(&files) {
        digest.verify(&files.decisions, "").unwrap();
    }
    assert_eq!(std::fs::read_dir(&spill).unwrap().count(), 0, "temporary files are left");
    let mut fates = Vec::new();
    for (task, files) in tasks.iter().zip(&files) {
        let mut filter = step.filter(&files.decisions).unwrap();
        for (document, _) in *task {
            let mut document = document.clone();
            let before = document.text.len() as u64;
            let mut counts = StepCounts::default();
            fates.push(match filter.apply(&mut document, &mut counts).unwrap() {
                Verdict::Keep => {
                    let removed: u64 = counts.removed().values().map(|part| part.bytes).sum();
                    assert_eq!(before, document.text.len() as u64 + removed);
                    Ok(document)
                }
                Verdict::Split(_) => panic!("a filter splits no document"),
                Verdict::Drop { reason, .. } => {
                    assert!(counts.removed().is_empty());
                    Err(reason.name().to_owned())
                }
            });
        }
        filter.finish().unwrap();
    }
    fates
}

/// Runs `step` over tasks of documents within `memory_bytes`.
pub(super) fn run(step: &dyn GlobalStep, tasks: &[&[(Document, u32)]], memory_bytes: u64) -> Fates {
    let folder = tempfile::tempdir().unwrap();
    run_with(step, tasks, folder.path(), |files, spill| {
        decide_within(step, files, memory_bytes, spill)
    })
}

/// Makes the decision of `step` and checks that its progress ends at the whole.
fn decide_within(
    step: &dyn GlobalStep,
    files: &[TaskFiles],
    memory_bytes: u64,
    spill: &Path,
) -> Result<Vec<FileDigest>> {
    let progress = Progress::hidden();
    let resources = Resources { memory_bytes, spill: spill.to_owned(), progress: &progress };
    let written = step.decide(files, &resources)?;
    assert!(progress.share().is_none_or(|share| share == 1.0), "{progress:?}");
    Ok(written)
}

/// A budget with everything tiny.
fn tiny_budget(
    units: u64,
    partitions: usize,
    workers: usize,
    sort_bytes: usize,
    range_words: u64,
) -> Budget {
    let mut budget = Budget::new(units, units, 32, MIN_MEMORY, 1).unwrap();
    budget.estimate.partitions = partitions;
    budget.estimate.workers = workers;
    budget.partition_buffer = 100;
    budget.sort_bytes = sort_bytes;
    budget.range_units = 64 * range_words;
    budget.ranges = units.div_ceil(budget.range_units).max(1) as usize;
    budget.range_buffer = 24;
    budget
}

/// Cuts a corpus into tasks after the given numbers of documents.
fn cut<'a>(corpus: &'a Corpus, sizes: &[usize]) -> Vec<&'a [(Document, u32)]> {
    let mut tasks = Vec::new();
    let mut rest = corpus.as_slice();
    for &size in sizes {
        let (task, after) = rest.split_at(size.min(rest.len()));
        tasks.push(task);
        rest = after;
    }
    tasks.push(rest);
    tasks
}

fn documents(texts: Vec<Vec<String>>) -> Corpus {
    let document = |number: usize, lines: Vec<String>| Document {
        id: format!("doc/{number}"),
        url: (number % 5 != 4).then(|| format!("http://www.example.org/{}/", number % 23)),
        text: lines.join("\n"),
        ..Document::default()
    };
    let numbered = texts.into_iter().enumerate();
    numbered.map(|(number, lines)| (document(number, lines), number as u32 / 2)).collect()
}

/// Texts of lines that often meet again, in other spellings too.
fn corpus() -> impl Strategy<Value = Corpus> {
    let line = prop_oneof![
        4 => (0..30u8).prop_map(|number| format!("Line {}", char::from(b'a' + number))),
        1 => (0..9u8).prop_map(|number| format!("  LINE a {number}… ")),
        1 => Just(String::new()),
        1 => "[a-c]{1,3}".prop_map(|text| format!("Unique {text}.")),
    ];
    let text = prop::collection::vec(line, 1..8);
    prop::collection::vec(text, 0..40).prop_map(documents)
}

/// The lines each document keeps under `mode`: their numbers.
fn expected_paragraphs(corpus: &Corpus, options: &DedupParagraphsOptions) -> Vec<Vec<usize>> {
    let scope = |input: u32| match options.mode {
        ParagraphMode::Ccnet => input / options.files_per_group,
        _ => 0,
    };
    let mut having: BTreeMap<(u32, String), BTreeSet<(u64, usize)>> = BTreeMap::new();
    for (number, (document, input)) in corpus.iter().enumerate() {
        for line in document.text.split('\n') {
            let owner = (xxh3_64(document.id.as_bytes()), number);
            having.entry((scope(*input), normalize_for_dedup(line))).or_default().insert(owner);
        }
    }
    let kept = |number: usize, (document, input): &(Document, u32)| {
        let mut seen = BTreeSet::new();
        let mut ids = Vec::new();
        for (id, line) in document.text.split('\n').enumerate() {
            let line = normalize_for_dedup(line);
            let having = &having[&(scope(*input), line.clone())];
            let wins = match options.mode {
                ParagraphMode::KeepFirst => {
                    !line.is_empty() && having.first().is_some_and(|owner| owner.1 == number)
                }
                _ => having.len() == 1,
            };
            if wins && seen.insert(line) {
                ids.push(id);
            }
        }
        ids
    };
    corpus.iter().enumerate().map(|(number, entry)| kept(number, entry)).collect()
}

fn check_paragraphs(corpus: &Corpus, options: &DedupParagraphsOptions, fates: &Fates) {
    let expected = expected_paragraphs(corpus, options);
    assert_eq!(fates.len(), corpus.len());
    for ((fate, (document, _)), ids) in fates.iter().zip(corpus).zip(expected) {
        let lines: Vec<_> = document.text.split('\n').collect();
        let text: Vec<_> = ids.iter().map(|&id| lines[id]).collect();
        let text = text.join("\n");
        match fate {
            Err(reason) => {
                assert!(ids.is_empty(), "{} was dropped", document.id);
                assert_eq!(reason, "all_duplicates");
            }
            Ok(kept) => {
                assert_eq!(kept.text, text);
                let metadata = serde_json::json!({
                    "line_ids": ids,
                    "nlines": ids.len(),
                    "length": text.chars().count(),
                    "original_nlines": lines.len(),
                    "original_length": document.text.chars().count(),
                });
                assert_eq!(serde_json::Value::Object(kept.metadata()), metadata);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    #[test]
    fn paragraphs_agree_with_brute_force(
        corpus in corpus(),
        sizes in prop::collection::vec(0usize..20, 0..4),
        partitions in 1usize..6,
        workers in 1usize..4,
        sort_bytes in 1usize..600,
        range_words in 1u64..3,
        files_per_group in 1u32..8,
    ) {
        let units = corpus.iter().map(|(document, _)| document.text.split('\n').count()).sum::<usize>();
        let budget = tiny_budget(units as u64, partitions, workers, sort_bytes, range_words);
        let tasks = cut(&corpus, &sizes);
        for mode in [ParagraphMode::Ccnet, ParagraphMode::Global, ParagraphMode::KeepFirst] {
            let options = DedupParagraphsOptions { mode, files_per_group, min_chars: 0 };
            let folder = tempfile::tempdir().unwrap();
            let step = options.build();
            let progress = Progress::hidden();
            let fates = run_with(&*step, &tasks, folder.path(), |files, spill| {
                let spill = spill.to_owned();
                let resources = Resources { memory_bytes: 0, spill, progress: &progress };
                match mode {
                    ParagraphMode::Ccnet => {
                        let keeper = Keeper::Nobody { scope: Some(files_per_group) };
                        find_within::<1, 2>(files, keeper, &budget, &resources)
                    }
                    ParagraphMode::Global => {
                        let keeper = Keeper::Nobody { scope: None };
                        find_within::<1, 2>(files, keeper, &budget, &resources)
                    }
                    ParagraphMode::KeepFirst => {
                        let keeper = Keeper::SmallestOwner;
                        find_within::<1, 3>(files, keeper, &budget, &resources)
                    }
                }
            });
            check_paragraphs(&corpus, &options, &fates);
            // The step's own budget, and one task.
            check_paragraphs(&corpus, &options, &run(&*step, &[&corpus], MIN_MEMORY));
        }
    }

    #[test]
    fn survivors_do_not_depend_on_the_order(corpus in corpus(), seed in any::<u64>()) {
        let mut shuffled = corpus.clone();
        shuffled.sort_by_key(|(document, _)| xxh3_64(format!("{seed}{}", document.id).as_bytes()));
        let steps: [Box<dyn GlobalStep>; 5] = [
            DedupParagraphsOptions { mode: ParagraphMode::Global, ..Default::default() }.build(),
            DedupParagraphsOptions { mode: ParagraphMode::KeepFirst, ..Default::default() }.build(),
            DedupDocumentsOptions { key: DocumentKey::Text }.build(),
            DedupDocumentsOptions { key: DocumentKey::Url }.build(),
            DedupBooksOptions { threshold: 0.6, shingle_words: 2 }.build(),
        ];
        for step in steps {
            let outcome = |corpus: &Corpus| -> BTreeMap<String, std::result::Result<String, String>> {
                let ids = corpus.iter().map(|(document, _)| document.id.clone());
                let fates = run(&*step, &cut(corpus, &[7, 3]), MIN_MEMORY);
                ids.zip(fates.into_iter().map(|fate| fate.map(|document| document.text))).collect()
            };
            prop_assert_eq!(outcome(&corpus), outcome(&shuffled));
        }
    }

    #[test]
    fn documents_agree_with_brute_force(
        corpus in corpus(),
        sizes in prop::collection::vec(0usize..20, 0..4),
    ) {
        for key in [DocumentKey::Text, DocumentKey::Url] {
            let value = |document: &Document| match key {
                DocumentKey::Text => Some(document.text.clone()),
                _ => document.url.as_deref().map(normalize_url),
            };
            let mut best: BTreeMap<String, (u64, String)> = BTreeMap::new();
            for (document, _) in &corpus {
                if let Some(value) = value(document) {
                    let owner = (xxh3_64(document.id.as_bytes()), document.id.clone());
                    let best = best.entry(value).or_insert_with(|| owner.clone());
                    *best = best.clone().min(owner);
                }
            }
            let step = DedupDocumentsOptions { key }.build();
            let fates = run(&*step, &cut(&corpus, &sizes), MIN_MEMORY);
            for (fate, (document, _)) in fates.iter().zip(&corpus) {
                let stays = value(document).is_none_or(|value| best[&value].1 == document.id);
                prop_assert_eq!(fate.as_ref().ok(), stays.then_some(document));
            }
        }
    }

    #[test]
    fn page_lines_agree_with_brute_force(
        mut corpus in corpus(),
        sizes in prop::collection::vec(0usize..20, 0..4),
    ) {
        // One page an address, as the step before it leaves them.
        let mut seen = BTreeSet::new();
        corpus.retain(|(document, _)| document.url.as_ref().is_none_or(|url| seen.insert(url.clone())));
        let page = |document: &Document| {
            let address = document.url.as_deref().map_or(document.id.clone(), normalize_url);
            Md5::digest(address.as_bytes()).to_vec()
        };
        let mut owner: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (document, _) in &corpus {
            for line in document.text.split('\n') {
                let line = line.trim().to_lowercase();
                let page = page(document);
                let owner = owner.entry(line).or_insert_with(|| page.clone());
                *owner = owner.clone().min(page);
            }
        }
        let step = DedupLinesOptions { min_sentences: 0 }.build();
        let fates = run(&*step, &cut(&corpus, &sizes), MIN_MEMORY);
        for (fate, (document, _)) in fates.iter().zip(&corpus) {
            let mut seen = BTreeSet::new();
            let lines = document.text.split('\n').filter(|line| {
                let line = line.trim().to_lowercase();
                owner[&line] == page(document) && seen.insert(line)
            });
            let text = lines.collect::<Vec<_>>().join("\n");
            match fate {
                Ok(kept) => prop_assert_eq!(&kept.text, &text),
                Err(reason) => {
                    prop_assert_eq!(reason, "filtered-deduped_page-empty");
                    prop_assert_eq!(text, "");
                }
            }
        }
    }
}

#[test]
fn decisions_are_the_same_bytes_for_any_memory_and_threads() {
    // Every document has a line of its own and one that all have: more copies of one key than a
    // thread can sort at once.
    let texts = (0..150_000).map(|number| {
        let shared = number % 1000;
        vec![
            format!("own {}", xxh3_64(&u32::to_le_bytes(number)) | 1 << 60),
            "All have this".into(),
            format!(
                "some have {}{}",
                char::from(b'a' + (shared % 26) as u8),
                "x".repeat(shared as usize / 26)
            ),
        ]
    });
    let corpus = documents(texts.collect());
    let letters = |text: &str| {
        text.bytes()
            .map(|byte| if byte.is_ascii_digit() { b'a' + byte - b'0' } else { byte })
            .map(char::from)
            .collect()
    };
    let corpus: Corpus = corpus
        .into_iter()
        .map(|(document, input)| (Document { text: letters(&document.text), ..document }, input))
        .collect();
    let tasks = cut(&corpus, &[40_000, 0, 60_000]);
    let options = DedupParagraphsOptions { mode: ParagraphMode::KeepFirst, ..Default::default() };
    let outcome = |memory_bytes: u64, threads: usize| {
        let folder = tempfile::tempdir().unwrap();
        let step = options.build();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let fates = run_with(&*step, &tasks, folder.path(), |files, spill| {
            pool.install(|| decide_within(&*step, files, memory_bytes, spill))
        });
        let decisions: Vec<_> = (0..tasks.len())
            .map(|number| std::fs::read(folder.path().join(format!("{number}.decisions"))).unwrap())
            .collect();
        (decisions, fates)
    };
    let (decisions, fates) = outcome(1 << 30, 2);
    let kept =
        |text: &str| fates.iter().filter(|fate| fate.as_ref().unwrap().text.contains(text)).count();
    assert_eq!(kept("All have this"), 1);
    assert_eq!(kept("own"), 150_000);
    assert_eq!(kept("some have"), 1000);
    for (memory, threads) in [(MIN_MEMORY, 1), (MIN_MEMORY, 7), (10 << 20, 2), (1 << 30, 7)] {
        assert!(outcome(memory, threads).0 == decisions, "{memory} bytes, {threads} threads");
    }
}

#[test]
fn repetition_inside_one_document_is_no_duplicate() {
    let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
    let corpus = documents(vec![
        lines(&["Menu", "Only here", "only HERE", "", "Both"]),
        lines(&["menu…", "Both 1"]),
        lines(&["both"]),
    ]);
    let with = |mode, files_per_group| {
        let step = DedupParagraphsOptions { mode, files_per_group, min_chars: 0 }.build();
        let fates = run(&*step, &[&corpus], MIN_MEMORY);
        fates.into_iter().map(|fate| fate.map(|document| document.text)).collect::<Vec<_>>()
    };
    // Inputs 0, 0 and 1: the third document is alone in its scope.
    let all = Err("all_duplicates".to_owned());
    let first = Ok("Only here\n\nBoth".to_owned());
    assert_eq!(with(ParagraphMode::Ccnet, 1), [first, Ok("Both 1".into()), Ok("both".into())]);
    let first = Ok("Only here\n".to_owned());
    assert_eq!(with(ParagraphMode::Ccnet, 2), [first.clone(), Ok("Both 1".into()), all.clone()]);
    assert_eq!(with(ParagraphMode::Global, 1), [first, Ok("Both 1".into()), all]);
    let kept = with(ParagraphMode::KeepFirst, 1);
    let count = |text: &str| kept.iter().flatten().filter(|kept| kept.contains(text)).count();
    assert_eq!((count("enu"), count("oth")), (1, 2));
    assert!(kept.iter().flatten().all(|text| !text.contains("\n\n") && !text.ends_with('\n')));
}

#[test]
fn metadata_of_earlier_steps_goes_on() {
    let mut corpus = documents(vec![
        ["a", "gone", "b"].map(str::to_owned).to_vec(),
        ["gone", "short"].map(str::to_owned).to_vec(),
    ]);
    corpus[0].0.metadata =
        Some(r#"{"line_ids":[3,5,9],"nlines":20,"length":99,"title":"t"}"#.to_owned());
    let step = DedupParagraphsOptions { min_chars: 3, ..Default::default() }.build();
    let fates = run(&*step, &[&corpus], MIN_MEMORY);
    assert_eq!(
        serde_json::Value::Object(fates[0].as_ref().unwrap().metadata()),
        serde_json::json!({"line_ids": [3, 9], "original_nlines": 20, "original_length": 99,
            "nlines": 2, "length": 3, "title": "t"})
    );
    assert_eq!(fates[1].as_ref().unwrap().text, "short");
    let step = DedupParagraphsOptions { min_chars: 4, ..Default::default() }.build();
    let fates = run(&*step, &[&corpus], MIN_MEMORY);
    assert_eq!(fates[0], Err("too_short".into()));
}

#[test]
fn keys_of_the_metadata_count_where_they_are() {
    let corpus: Corpus = [("a", "x"), ("b", "x"), ("c", "y"), ("d", ""), ("e", "")]
        .into_iter()
        .map(|(id, digest)| {
            let mut document = Document { id: id.into(), ..Document::default() };
            document.set_metadata("digest", digest);
            document.set_metadata("content_md5", 5);
            (document, 0)
        })
        .collect();
    let kept = |key| {
        let fates = run(&*DedupDocumentsOptions { key }.build(), &[&corpus], MIN_MEMORY);
        fates.iter().filter(|fate| fate.is_ok()).count()
    };
    assert_eq!((kept(DocumentKey::Digest), kept(DocumentKey::ContentMd5)), (4, 5));
}

#[test]
fn pages_with_too_few_sentences_left_go() {
    let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
    let corpus = documents(vec![
        lines(&["One is here.", "Two is here. Three is here."]),
        lines(&["Four is here.", "One is here.", "Five is here."]),
    ]);
    let fates = run(&*DedupLinesOptions::default().build(), &[&corpus], MIN_MEMORY);
    let kept = fates.iter().filter(|fate| fate.is_ok()).count();
    assert_eq!(kept, 1);
    assert!(fates.contains(&Err("filtered-deduped_page-toofewsentences".into())));
}

#[test]
fn groups_out_of_order_are_refused() {
    let mut corpus = documents(vec![vec!["a".into()]; 6]);
    corpus.reverse();
    let folder = tempfile::tempdir().unwrap();
    let options = DedupParagraphsOptions { files_per_group: 1, ..Default::default() };
    let step = options.build();
    let file = folder.path().join("signatures");
    let mut signatures = step.signatures(&file).unwrap();
    for (document, input) in &corpus {
        signatures.add(document, *input).unwrap();
    }
    signatures.finish().unwrap();
    let files = [TaskFiles { signatures: file, decisions: folder.path().join("decisions") }];
    let spill = folder.path().join("spill");
    std::fs::create_dir(&spill).unwrap();
    let error = decide_within(&*step, &files, MIN_MEMORY, &spill).unwrap_err();
    assert!(error.to_string().contains("input files"), "{error}");
    let none = DedupParagraphsOptions { files_per_group: 0, ..Default::default() };
    assert!(none.validate("steps.1").unwrap_err().to_string().contains("steps.1.files_per_group"));
}
