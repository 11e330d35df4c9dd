//! A line of `metrics.jsonl`: a JSON object whose last key, `checksum`, tells whether the rest is
//! as it was written. It is the beginning of the blake3 hash of the object without that key.

use serde::Serialize;

use super::{InitialMetrics, StepMetrics};

/// What stands between the object's content and the checksum.
const KEY: &str = ",\"checksum\":\"";
/// What stands behind the checksum.
const CLOSE: &str = "\"}";
/// Hexadecimal digits of a checksum: 64 bits.
const DIGITS: usize = 16;

/// What a line says.
#[derive(Debug)]
pub(super) enum Line {
    /// The validation before the first step.
    Initial(InitialMetrics),
    /// A step.
    Step(StepMetrics),
}

/// A line and whether it has a checksum: lines of earlier versions have none.
#[derive(Debug)]
pub(super) struct Checked {
    pub line: Line,
    pub has_checksum: bool,
}

impl Line {
    /// The step of the line; 0 before the first.
    pub fn step(&self) -> u64 {
        match self {
            Self::Initial(metrics) => metrics.step,
            Self::Step(metrics) => metrics.step,
        }
    }

    fn parse(object: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(object).map(Self::Step).or_else(
            |error| match serde_json::from_slice::<InitialMetrics>(object) {
                Ok(metrics) if metrics.step == 0 => Ok(Self::Initial(metrics)),
                _ => Err(error),
            },
        )
    }
}

/// The line of `metrics`, with its line feed.
pub(super) fn write(metrics: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(metrics)?;
    let checksum = checksum(&line);
    // Every kind of metrics has keys, so the brace stands behind one.
    line.pop();
    line.extend_from_slice(format!("{KEY}{checksum}{CLOSE}\n").as_bytes());
    Ok(line)
}

/// Reads a line, with or without its line feed, and holds it against its checksum.
pub(super) fn read(line: &[u8]) -> Result<Checked, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let parts = line
        .len()
        .checked_sub(KEY.len() + DIGITS + CLOSE.len())
        .map(|content| line.split_at(content))
        .and_then(|(content, end)| {
            let digits = end.strip_prefix(KEY.as_bytes())?.strip_suffix(CLOSE.as_bytes())?;
            Some((content, digits))
        });
    let Some((content, expected)) = parts else {
        let line = Line::parse(line).map_err(|error| format!("not a metrics object: {error}"))?;
        return Ok(Checked { line, has_checksum: false });
    };
    let object = [content, b"}"].concat();
    let found = checksum(&object);
    if found.as_bytes() != expected {
        let expected = String::from_utf8_lossy(expected);
        return Err(format!("altered: the checksum of its content is {found}, it says {expected}"));
    }
    let line = Line::parse(&object).map_err(|error| format!("not a metrics object: {error}"))?;
    Ok(Checked { line, has_checksum: true })
}

fn checksum(object: &[u8]) -> String {
    let mut digits = blake3::hash(object).to_hex().to_string();
    digits.truncate(DIGITS);
    digits
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_line_counts() {
        let metrics = StepMetrics { step: 12, loss: 0.1 + 0.2, ..Default::default() };
        let line = write(&metrics).unwrap();
        let Checked { line: Line::Step(read_back), has_checksum: true } = read(&line).unwrap()
        else {
            panic!("not a step");
        };
        assert_eq!(read_back, metrics);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["checksum"].as_str().unwrap().len(), 16);
        for at in 0..line.len() - 1 {
            for bit in 0..8 {
                let mut altered = line.clone();
                altered[at] ^= 1 << bit;
                let passes = matches!(read(&altered), Ok(Checked { has_checksum: true, .. }));
                assert!(!passes, "bit {bit} of byte {at}");
            }
        }
    }
}
