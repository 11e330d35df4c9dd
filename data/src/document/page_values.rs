//! What a decompressed Parquet page claims of its values.

use parquet::basic::Encoding;
use parquet::column::page::Page;
use parquet::schema::types::ColumnDescriptor;

/// The values of a data page, behind its levels; none if they do not lie inside it.
pub(super) fn values_of<'a>(page: &'a Page, column: &ColumnDescriptor) -> Option<&'a [u8]> {
    match page {
        Page::DataPage { buf, num_values, def_level_encoding, rep_level_encoding, .. } => {
            let levels = [
                (column.max_rep_level(), rep_level_encoding),
                (column.max_def_level(), def_level_encoding),
            ];
            levels.into_iter().filter(|(most, _)| *most > 0).try_fold(
                &buf[..],
                |rest, (most, encoding)| {
                    if *encoding == Encoding::RLE {
                        let (length, rest) = rest.split_first_chunk()?;
                        return rest.get(u32::from_le_bytes(*length) as usize..);
                    }
                    let bits = 16 - most.leading_zeros() as usize;
                    rest.get((*num_values as usize).checked_mul(bits)?.div_ceil(8)..)
                },
            )
        }
        Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
            buf.get(def_levels_byte_len.checked_add(*rep_levels_byte_len)? as usize..)
        }
        Page::DictionaryPage { .. } => None,
    }
}

/// How many lengths `values` claim to hold: of DELTA_LENGTH_BYTE_ARRAY one count, of
/// DELTA_BYTE_ARRAY two.
pub(super) fn delta_counts(encoding: Encoding, values: &[u8]) -> Vec<u64> {
    let lists = match encoding {
        Encoding::DELTA_LENGTH_BYTE_ARRAY => 1,
        Encoding::DELTA_BYTE_ARRAY => 2,
        _ => 0,
    };
    let (mut counts, mut rest) = (Vec::new(), Some(values));
    for _ in 0..lists {
        let Some(mut bytes) = rest else { break };
        let count = delta_count(&mut bytes);
        counts.extend(count.map(|count| count.1));
        rest = count.and_then(|(block, count)| skip_deltas(bytes, block, count));
    }
    counts
}

/// Blocks of deltas: values of a block, and parts of it with a width of their own.
type Block = (u64, u64);

/// The head of a list in DELTA_BINARY_PACKED: its blocks and how many numbers it has.
fn delta_count(bytes: &mut &[u8]) -> Option<(Block, u64)> {
    let block = (unsigned(bytes)?, unsigned(bytes)?);
    let count = unsigned(bytes)?;
    // The first number.
    unsigned(bytes)?;
    Some((block, count))
}

/// What stands behind the list.
fn skip_deltas(mut bytes: &[u8], (values, parts): Block, count: u64) -> Option<&[u8]> {
    let part = values.checked_div(parts)?;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        // The smallest difference.
        unsigned(&mut bytes)?;
        let (widths, mut rest) = bytes.split_at_checked(usize::try_from(parts).ok()?)?;
        for &width in widths.iter().take_while(|_| part > 0) {
            // Parts behind the last number have no bytes, whatever their width.
            if left > 0 {
                let length = u64::from(width).checked_mul(part)? / 8;
                rest = rest.get(usize::try_from(length).ok()?..)?;
                left = left.saturating_sub(part);
            }
        }
        bytes = rest;
    }
    Some(bytes)
}

fn unsigned(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// The length of the longest value of a dictionary page.
pub(super) fn longest_value(mut page: &[u8]) -> u64 {
    let mut longest = 0;
    while let Some((length, rest)) = page.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        let Some(rest) = rest.get(length as usize..) else { break };
        longest = longest.max(length);
        page = rest;
    }
    u64::from(longest)
}
