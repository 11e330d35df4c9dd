//! StackExchange: `Posts.xml` plain, in gzip, and in 7z archives.
//!
//! The checksums of a 7z archive's header are made right first, so that the directory behind
//! them is read too.

#![no_main]

use std::sync::Once;

use altiplano_data::source::{Record, StackExchangeSource};
use altiplano_fuzz::{TestFile, allow_caught_panics};
use flate2::Crc;
use libfuzzer_sys::fuzz_target;

const SEVEN_ZIP: &[u8] = b"7z\xbc\xaf\x27\x1c";

fuzz_target!(|data: &[u8]| {
    static HOOK: Once = Once::new();
    HOOK.call_once(allow_caught_panics);
    let mut bytes = data.to_vec();
    let name = match data {
        [0x1f, 0x8b, ..] => "math.example.com/Posts.xml.gz",
        _ if data.starts_with(SEVEN_ZIP) => {
            mend_checksums(&mut bytes);
            "math.example.com.7z"
        }
        _ => "math.example.com/Posts.xml",
    };
    let source = StackExchangeSource {
        max_record_bytes: 32 << 10,
        max_expanded_bytes: 16 << 20,
        min_answer_score: (data.len() % 3 == 0).then_some(0),
        max_answers: (data.len() % 5 == 0).then_some(2),
        keep_unanswered: data.len() % 2 == 0,
        ..StackExchangeSource::files(Vec::new())
    };
    let plain = name.ends_with(".xml");
    let file = TestFile::new(name, &bytes);
    let reading = file.read_twice(&source, name.ends_with(".7z"));
    if plain {
        // A named character reference becomes at most as long as it is; list items and
        // paragraphs have at least the bytes of their tags.
        assert!(reading.text_bytes() <= 2 * data.len() + 64, "{}", reading.text_bytes());
    }
    let counted = source.count(file.input(), &|_| {});
    assert_eq!(counted.is_ok(), reading.error.is_none(), "{counted:?} {:?}", reading.error);
    let Ok(counted) = counted else { return };
    // Every row of a whole file is somewhere.
    let accounted: u64 = reading
        .records
        .iter()
        .map(|record| match record {
            Record::Document(document) => 1 + answers(&document.metadata()),
            // The answers of a question that is not used go with it.
            Record::Rejected(rejection) if rejection.reason.name() == "unanswered" => {
                let words = rejection.detail.split([':', ' ']);
                1 + words.filter_map(|word| word.parse::<u64>().ok()).next().unwrap_or_default()
            }
            Record::Rejected(_) => 1,
        })
        .sum();
    let rows = counted.questions + counted.answers + counted.other + counted.broken;
    // So do those of an empty question, of which nothing is said.
    let empty = reading.records.iter().any(|record| match record {
        Record::Document(_) => false,
        Record::Rejected(rejection) => rejection.reason.name() == "empty",
    });
    let adds_up = if empty { accounted <= rows } else { accounted == rows };
    assert!(adds_up, "{accounted} of {rows}: {:?}", reading.records);
});

fn answers(metadata: &serde_json::Map<String, serde_json::Value>) -> u64 {
    let used = metadata["answer_ids"].as_array().map_or(0, |ids| ids.len() as u64);
    used + metadata["answers_left_out"].as_u64().unwrap_or_default()
}

/// Sets the two checksums of the signature header (7zFormat.txt of the LZMA SDK): at 8 that of
/// bytes 12 to 32, at 28 that of the header at 32 + the offset at 12, of the length at 20.
fn mend_checksums(archive: &mut [u8]) {
    let number = |at: usize, archive: &[u8]| {
        let bytes = archive.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let sum = |bytes: &[u8]| {
        let mut crc = Crc::new();
        crc.update(bytes);
        crc.sum().to_le_bytes()
    };
    if archive.len() < 32 {
        return;
    }
    if let (Some(offset), Some(length)) = (number(12, archive), number(20, archive))
        && let Some(from) = offset.checked_add(32)
        && let Some(to) = from.checked_add(length)
        && let Some(header) = archive.get(from..to)
    {
        let sum = sum(header);
        archive[28..32].copy_from_slice(&sum);
    }
    let sum = sum(&archive[12..32]);
    archive[8..12].copy_from_slice(&sum);
}
