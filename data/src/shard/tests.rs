#![allow(clippy::unwrap_used)]

use std::path::Path;

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt16Type;
use proptest::prelude::*;

use super::*;
use crate::document::Split;
use crate::error::{DataError, Result};

/// Documents of 1 to 9 tokens below `vocab_size`.
fn documents(count: usize, vocab_size: u32) -> Vec<Vec<u32>> {
    (0..count as u32)
        .map(|n| {
            let ids = 0..1 + n % 9;
            ids.map(|k| n.wrapping_mul(2_654_435_761).wrapping_add(k * 977) % vocab_size).collect()
        })
        .collect()
}

fn write(path: &Path, documents: &[Vec<u32>], vocab_size: usize, batch_tokens: usize) {
    let mut writer =
        ShardWriter::new(path, "fingerprint", vocab_size).with_batch_tokens(batch_tokens);
    for document in documents {
        writer.push(document, 3).unwrap();
    }
    let summary = writer.finish(Split::Train).unwrap();
    assert_eq!(summary.documents, documents.len() as u64);
}

fn read_all(shard: &Shard) -> Result<Vec<i32>> {
    let mut ids = vec![0; shard.header().tokens as usize];
    shard.read(0, &mut ids)?;
    Ok(ids)
}

#[test]
fn tokens_and_document_starts_survive_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (vocab_size, batch_tokens) in [(1000, 1), (1000, 64), (65_536, 1 << 20), (100_000, 50)] {
        let path = folder.path().join("a.arrow");
        let documents = documents(300, vocab_size as u32);
        write(&path, &documents, vocab_size, batch_tokens);
        let shard = Shard::open(&path).unwrap();
        shard.verify().unwrap();
        let flat: Vec<i32> = documents.concat().iter().map(|&id| id as i32).collect();
        assert_eq!(read_all(&shard).unwrap(), flat);
        assert_eq!(shard.header().text_bytes, 900);

        let mut starts = vec![0];
        for document in &documents {
            starts.push(starts.last().unwrap() + document.len() as u64);
        }
        let total = starts.pop().unwrap();
        assert_eq!(shard.document_starts(0, total).collect::<Vec<_>>(), starts);
        for (begin, end) in [(5, 6), (0, 1), (17, 93), (total - 1, total), (9, 9)] {
            let inside: Vec<u64> =
                starts.iter().copied().filter(|at| (begin..end).contains(at)).collect();
            assert_eq!(shard.document_starts(begin, end).collect::<Vec<_>>(), inside);
            let mut window = vec![0; (end - begin) as usize];
            shard.read(begin, &mut window).unwrap();
            assert_eq!(window, flat[begin as usize..end as usize]);
        }
        for position in 0..total {
            let start = *starts.iter().rfind(|at| **at <= position).unwrap();
            assert_eq!(shard.document_start(position), start);
        }
        assert!(shard.read(total - 1, &mut [0, 0]).is_err());
    }
}

#[test]
fn any_arrow_reader_sees_the_documents() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.arrow");
    let documents = documents(50, 1000);
    write(&path, &documents, 1000, 40);
    let file = std::fs::File::open(&path).unwrap();
    let reader = arrow_ipc::reader::FileReader::try_new(file, None).unwrap();
    assert_eq!(reader.schema().metadata()["altiplano.documents"], "50");
    assert!(reader.num_batches() > 2);
    let mut seen = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let lists = batch.column(0).as_list::<i32>();
        for row in 0..lists.len() {
            let ids = lists.value(row);
            let ids = ids.as_primitive::<UInt16Type>().values();
            seen.push(ids.iter().map(|&id| u32::from(id)).collect::<Vec<_>>());
        }
    }
    assert_eq!(seen, documents);
}

#[test]
fn the_file_is_the_same_bytes_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |name: &str| {
        let path = folder.path().join(name);
        write(&path, &documents(50, 1000), 1000, 40);
        std::fs::read(&path).unwrap()
    };
    let first = bytes("a.arrow");
    for _ in 0..8 {
        assert!(bytes("b.arrow") == first);
    }
}

#[test]
fn ids_outside_the_vocabulary_are_not_written() {
    let mut writer = ShardWriter::new(Path::new("a.arrow"), "f", 10);
    let error = writer.push(&[3, 10], 1).unwrap_err().to_string();
    assert!(error.contains("found 10") && error.contains("vocabulary size 10"), "{error}");
}

#[test]
fn every_truncation_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.arrow");
    write(&path, &documents(20, 1000), 1000, 30);
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        match layout::read(&path, &whole[..length]) {
            Err(DataError::Shard { .. }) => {}
            Err(other) => panic!("cut at {length}: {other}"),
            Ok(_) => panic!("cut at {length}: accepted"),
        }
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = Shard::open(&path).unwrap_err().to_string();
    assert!(error.contains("a.arrow") && error.contains("cut short"), "{error}");
}

/// Opens and reads everything; true when the contents are as they were.
fn probe(path: &Path, original: &[i32], starts: &[u64]) -> bool {
    let Ok(shard) = Shard::open(path) else {
        return false;
    };
    let tokens = shard.header().tokens;
    let read = read_all(&shard);
    let found: Vec<u64> = shard.document_starts(0, tokens).collect();
    let _ = shard.document_start(tokens.saturating_sub(1));
    let verified = shard.verify().is_ok();
    let same = read.is_ok_and(|ids| ids == original) && found == starts;
    assert!(!verified || same, "altered, but the checksum agrees");
    same
}

#[test]
fn every_altered_byte_is_an_error_or_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.arrow");
    let written = documents(20, 1000);
    write(&path, &written, 1000, 30);
    let original: Vec<i32> = written.concat().iter().map(|&id| id as i32).collect();
    let mut starts = vec![0];
    for document in &written[..written.len() - 1] {
        starts.push(starts.last().unwrap() + document.len() as u64);
    }
    assert!(probe(&path, &original, &starts));
    let whole = std::fs::read(&path).unwrap();
    let altered = folder.path().join("b.arrow");
    let mut noticed = 0;
    for at in 0..whole.len() {
        let masks = [0x01, 0x80, 0xff];
        let alter = |mask: u8| {
            let mut bytes = whole.clone();
            bytes[at] ^= mask;
            bytes
        };
        for mask in masks {
            let _ = layout::read(&altered, &alter(mask));
        }
        std::fs::write(&altered, alter(masks[at % 3])).unwrap();
        noticed += u32::from(!probe(&altered, &original, &starts));
    }
    // Padding may change unnoticed; the manifest's checksum of the file covers that.
    assert!(noticed > 500, "{noticed} of {}", whole.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn rubbish_never_panics(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.arrow");
        write(&path, &documents(12, 100_000), 100_000, 30);
        let mut bytes = std::fs::read(&path).unwrap();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // The trailer stays, so that the footer is looked at.
        let trailer = bytes.split_off(bytes.len() - 10);
        let keep = bytes.len() - cut.index(bytes.len() / 4);
        bytes.truncate(keep);
        bytes.extend(trailer);
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(shard) = Shard::open(&path) {
            let _ = shard.verify();
            let tokens = shard.header().tokens;
            let _ = shard.document_starts(0, tokens).count();
            let _ = shard.document_start(tokens / 2);
        }
    }
}
