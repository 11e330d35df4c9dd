//! Records that never became documents, on their way to the drop log.
//!
//! A line of the log is about a hundred bytes, and a broken record may be one. So only the first
//! short ones of a reason have a line each; after that a row of them is one line.

use std::collections::BTreeMap;

use super::drop_log::{DropLog, DroppedDocument};
use crate::error::Result;

/// Short records of a reason and input file that have a line each.
const SINGLE: u64 = 100;
/// Records of this length have a line each in any case.
const LONG_BYTES: u64 = 256;

/// The rejected records of one input file.
#[derive(Default)]
pub(super) struct Rejections {
    /// Short records so far, by reason.
    short: BTreeMap<String, u64>,
    /// The row of short records that is not in the log yet.
    row: Option<DroppedDocument>,
}

impl Rejections {
    /// Logs the record at `offset`.
    pub fn add(&mut self, dropped: DroppedDocument, offset: u64, log: &mut DropLog) -> Result<()> {
        if dropped.bytes < LONG_BYTES {
            if !self.short.contains_key(&dropped.reason) {
                self.short.insert(dropped.reason.clone(), 0);
            }
            let short = self.short.get_mut(&dropped.reason).filter(|short| **short < SINGLE);
            match (short, &mut self.row) {
                (Some(short), _) => *short += 1,
                (None, Some(row)) if row.reason == dropped.reason => {
                    row.extend(&dropped, offset);
                    return Ok(());
                }
                (None, _) => {
                    self.end_row(log)?;
                    self.row = Some(dropped.into_row(offset));
                    return Ok(());
                }
            }
        }
        self.end_row(log)?;
        log.add(dropped, "")
    }

    /// Something else follows: the row is at its end.
    pub fn end_row(&mut self, log: &mut DropLog) -> Result<()> {
        match self.row.take() {
            Some(row) => log.add(row, ""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::drop_log::find_dropped;
    use super::*;
    use crate::document::Reason;

    #[test]
    fn rows_of_short_records_take_one_line_and_every_record_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stage0-00000.jsonl.zst");
        let mut log = DropLog::create(&path, 0).unwrap();
        let mut rejections = Rejections::default();
        let mut add = |rejections: &mut Rejections, offset: u64, reason: &Reason, bytes: u64| {
            let id = format!("a@b.jsonl@{offset}");
            let dropped = DroppedDocument::new(id, "text", reason, "detail".into(), bytes);
            rejections.add(dropped, offset, &mut log).unwrap();
        };
        for line in 0..100_000 {
            add(&mut rejections, 2 * line, &Reason::BAD_JSON, 2);
        }
        add(&mut rejections, 200_000, &Reason::TOO_LONG, 1 << 20);
        for line in 0..1000 {
            add(&mut rejections, 300_000 + 2 * line, &Reason::BAD_JSON, 2);
        }
        rejections.end_row(&mut log).unwrap();
        let written = log.finish().unwrap();

        let text = zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap();
        let lines = text.split(|&byte| byte == b'\n').count() - 1;
        assert_eq!(lines, 100 + 1 + 1 + 1);
        let found =
            |offset: u64| find_dropped(&path, &written, &format!("a@b.jsonl@{offset}")).unwrap();
        let single = found(198).unwrap();
        assert_eq!((single.records, single.detail.as_str()), (1, "detail"));
        for offset in [200, 150_000, 199_998] {
            let row = found(offset).unwrap();
            assert_eq!((row.id.as_str(), row.last_offset), ("a@b.jsonl@200", Some(199_998)));
            assert_eq!((row.records, row.bytes), (99_900, 199_800));
        }
        assert_eq!(found(200_000).unwrap().reason, "too_long");
        assert_eq!(found(300_500).unwrap().last_offset, Some(301_998));
        assert!(found(250_000).is_none());
    }
}
