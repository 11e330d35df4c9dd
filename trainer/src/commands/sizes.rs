//! Sizes on the command line, in the units of GNU coreutils.

use altiplano_data::dedup::MIN_MEMORY;

/// A size in bytes such as `80GB`: `K`, `M`, `G` and `T` or `KiB`, `MiB`, `GiB` and `TiB` are powers of
/// 1024; `kB`, `MB`, `GB` and `TB` powers of 1000; in either case.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].trim().to_ascii_lowercase());
    let (prefix, base) = match unit.strip_suffix('b') {
        None => (unit.as_str(), 1024_f64),
        Some(prefix) => match prefix.strip_suffix('i') {
            None => (prefix, 1000.0),
            Some(prefix) => (prefix, 1024.0),
        },
    };
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == prefix);
    let (Some(power), false) = (power, unit == "ib") else {
        return Err(format!("{unit:?} is not a unit; expected one as in 2G, 80GB or 24GiB"));
    };
    match number.parse::<f64>().map(|number| number * base.powi(power as i32)) {
        Ok(size) if (1.0..1e18).contains(&size) => Ok(size as u64),
        _ => Err(format!("{text:?} is not a size; expected one such as 2G, 80GB or 24GiB")),
    }
}

/// The memory that a step over all documents may use, in bytes.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    match bytes(text)? {
        size if size < MIN_MEMORY => Err(format!("{size} bytes; expected 4M or more")),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_coreutils() {
        assert_eq!(bytes("80GB"), Ok(80_000_000_000));
        assert_eq!(bytes("24 GiB"), Ok(24 << 30));
        assert_eq!(bytes("1.5mb"), Ok(1_500_000));
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("4096B"), Ok(4096));
        assert_eq!(bytes("2G"), Ok(2 << 30));
        assert_eq!(bytes("1T"), Ok(1 << 40));
        for wrong in ["", "GB", "-1GB", "80GX", "nan", "1e30GB", "0", "5iB", "5bb", "5Gi"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_has_a_least_size() {
        assert_eq!(memory("64m"), Ok(64 << 20));
        assert_eq!(memory("5000000"), Ok(5_000_000));
        for wrong in ["", "G", "2X", "-1G", "10", "99999999999T"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }
}
