//! The words and labels of a fastText model, and the rows of the input matrix a text selects.
//!
//! The rules are those of fastText's `dictionary.cc` (MIT): 32-bit FNV-1a over sign-extended
//! bytes, words between the seven bytes of ASCII white space (NUL among them), the end of the
//! text as the word `</s>`, character n-grams of `<word>` and word n-grams hashed into buckets.

use super::reader::ModelReader;
use crate::error::Result;

/// The word that ends a line.
const END: &[u8] = b"</s>";
/// What a label begins with. The file does not hold it: this is fastText's default.
pub(super) const LABEL_PREFIX: &str = "__label__";
/// Longest entry in bytes.
const MAX_ENTRY_BYTES: usize = 1 << 16;
/// Multiplier of the hash of word n-grams.
const WORD_NGRAM_MULTIPLIER: u64 = 116_049_371;
/// Sum of all label counts from which on the Huffman tree could no longer be built.
const MAX_COUNT: i64 = 1_000_000_000_000_000;

/// Sizes of the n-grams, from the model's arguments.
#[derive(Clone, Copy, Debug)]
pub(super) struct NgramSizes {
    /// Rows of the input matrix that n-grams share.
    pub buckets: u32,
    /// Shortest character n-gram.
    pub min_chars: usize,
    /// Longest character n-gram; 0 for none.
    pub max_chars: usize,
    /// Longest word n-gram; 1 for none.
    pub max_words: usize,
}

/// Words, labels and n-gram buckets.
#[derive(Debug)]
pub(super) struct Dictionary {
    entries: Vec<u8>,
    /// Where each entry ends in `entries`.
    ends: Vec<usize>,
    words: usize,
    /// Open addressing by hash; `EMPTY` or the entry's number.
    table: Vec<u32>,
    ngrams: NgramSizes,
    /// Buckets that survived pruning, with their row after the words.
    pruned: Option<BucketMap>,
    label_counts: Vec<i64>,
}

const EMPTY: u32 = u32::MAX;

impl Dictionary {
    /// Reads the dictionary's block of the file.
    pub fn read(reader: &mut ModelReader, ngrams: NgramSizes) -> Result<Self> {
        let size = i64::from(reader.i32("the dictionary's size")?);
        let words = i64::from(reader.i32("the number of words")?);
        let labels = i64::from(reader.i32("the number of labels")?);
        reader.i64("the number of tokens")?;
        let pruned = reader.i64("the number of pruned buckets")?;
        // An entry is at least its NUL, a count and a type.
        let size = reader.count(size, 10, "the dictionary's size")?;
        if words < 0 || labels < 1 || words + labels != size as i64 {
            return Err(reader.bad(format!("{words} words and {labels} labels in {size} entries")));
        }
        let words = words as usize;
        let mut entries = Vec::new();
        let mut ends = Vec::with_capacity(size);
        let mut label_counts = Vec::with_capacity(size - words);
        let mut total = 0i64;
        for index in 0..size {
            reader.until_nul(&mut entries, MAX_ENTRY_BYTES, "a dictionary entry")?;
            ends.push(entries.len());
            let count = reader.i64("a count")?;
            let label = reader.bool("the kind of an entry")?;
            if label != (index >= words) {
                return Err(reader.bad("the words of the dictionary do not precede its labels"));
            }
            if label {
                total = total.saturating_add(count);
                if count < 0 || total >= MAX_COUNT {
                    return Err(reader.bad(format!("a label's count is {count}")));
                }
                label_counts.push(count);
            }
        }
        let pruned = if pruned < 0 { None } else { Some(BucketMap::read(reader, pruned)?) };
        let mut dictionary =
            Self { entries, ends, words, table: Vec::new(), ngrams, pruned, label_counts };
        dictionary.index();
        Ok(dictionary)
    }

    fn index(&mut self) {
        let slots = (2 * self.ends.len()).next_power_of_two();
        self.table = vec![EMPTY; slots];
        for index in 0..self.ends.len() {
            let hash = hash(self.entry(index));
            let slot = self.slot(hash, self.entry(index));
            self.table[slot] = index as u32;
        }
    }

    fn entry(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.entries[start..self.ends[index]]
    }

    /// The slot that holds `word`, or the empty one where it would be.
    fn slot(&self, hash: u32, word: &[u8]) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = hash as usize & mask;
        while self.table[slot] != EMPTY && self.entry(self.table[slot] as usize) != word {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// Words of the dictionary.
    pub fn words(&self) -> usize {
        self.words
    }

    /// Buckets that survived pruning; none when the model was not pruned.
    pub fn pruned_buckets(&self) -> Option<usize> {
        self.pruned.as_ref().map(|map| map.rows)
    }

    /// How often each label was seen in training.
    pub fn label_counts(&self) -> &[i64] {
        &self.label_counts
    }

    /// The labels without their prefix.
    pub fn labels(&self) -> Vec<String> {
        (self.words..self.ends.len())
            .map(|index| {
                let label = String::from_utf8_lossy(self.entry(index)).into_owned();
                label.strip_prefix(LABEL_PREFIX).map(str::to_owned).unwrap_or(label)
            })
            .collect()
    }

    /// Hands the rows that `text` selects to `visit`, each as often as it counts. The text is
    /// one line whatever line ends it holds; as in fastText, a word `</s>` ends it.
    pub fn rows(&self, text: &[u8], mut visit: impl FnMut(usize)) {
        let NgramSizes { max_chars, max_words, .. } = self.ngrams;
        let mut hashes = Vec::new();
        let mut marked = Vec::new();
        let tokens = text.split(|&byte| is_space(byte)).filter(|token| !token.is_empty());
        for token in tokens.chain(std::iter::once(END)) {
            let hash = hash(token);
            let entry = self.table[self.slot(hash, token)];
            let known = entry != EMPTY;
            let label = if known {
                entry as usize >= self.words
            } else {
                token.starts_with(LABEL_PREFIX.as_bytes())
            };
            if !label {
                if known {
                    visit(entry as usize);
                }
                if max_chars > 0 && token != END {
                    marked.clear();
                    marked.push(b'<');
                    marked.extend_from_slice(token);
                    marked.push(b'>');
                    self.character_ngrams(&marked, &mut visit);
                }
                if max_words > 1 {
                    hashes.push(hash);
                }
            }
            if token == END {
                break;
            }
        }
        self.word_ngrams(&hashes, &mut visit);
    }

    #[inline]
    fn visit_bucket(&self, bucket: u32, visit: &mut impl FnMut(usize)) {
        match &self.pruned {
            None => visit(self.words + bucket as usize),
            Some(map) => {
                if let Some(row) = map.get(bucket) {
                    visit(self.words + row as usize);
                }
            }
        }
    }

    fn character_ngrams(&self, word: &[u8], visit: &mut impl FnMut(usize)) {
        let NgramSizes { buckets, min_chars, max_chars, .. } = self.ngrams;
        if buckets == 0 {
            return;
        }
        let reduce = Remainder::by(buckets);
        let continues = |at: usize| word.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
        for start in 0..word.len() {
            if continues(start) {
                continue;
            }
            let mut hash = HASH_START;
            let mut end = start;
            for length in 1..=max_chars {
                if end == word.len() {
                    break;
                }
                hash = hash_byte(hash, word[end]);
                end += 1;
                while continues(end) {
                    hash = hash_byte(hash, word[end]);
                    end += 1;
                }
                // The two marks alone say nothing.
                let mark = length == 1 && (start == 0 || end == word.len());
                if length >= min_chars && !mark {
                    self.visit_bucket(reduce.of(hash), visit);
                }
            }
        }
    }

    fn word_ngrams(&self, hashes: &[u32], visit: &mut impl FnMut(usize)) {
        let NgramSizes { buckets, max_words, .. } = self.ngrams;
        if buckets == 0 {
            return;
        }
        // fastText keeps the hashes as signed numbers.
        let widen = |hash: u32| i64::from(hash as i32) as u64;
        for (at, &first) in hashes.iter().enumerate() {
            let mut hash = widen(first);
            for &next in hashes[at + 1..].iter().take(max_words - 1) {
                hash = hash.wrapping_mul(WORD_NGRAM_MULTIPLIER).wrapping_add(widen(next));
                self.visit_bucket((hash % u64::from(buckets)) as u32, visit);
            }
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | 0x0b | 0x0c | 0)
}

const HASH_START: u32 = 2_166_136_261;

#[inline]
fn hash_byte(hash: u32, byte: u8) -> u32 {
    // The byte is sign-extended: a quirk that models depend on.
    (hash ^ i32::from(byte as i8) as u32).wrapping_mul(16_777_619)
}

fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(HASH_START, |hash, &byte| hash_byte(hash, byte))
}

/// `x % divisor` by two multiplications (Lemire, Kaser, Kurz 2019, arXiv 1902.01961).
#[derive(Clone, Copy)]
struct Remainder {
    divisor: u32,
    inverse: u64,
}

impl Remainder {
    fn by(divisor: u32) -> Self {
        Self { divisor, inverse: (u64::MAX / u64::from(divisor)).wrapping_add(1) }
    }

    #[inline]
    fn of(self, x: u32) -> u32 {
        let fraction = self.inverse.wrapping_mul(u64::from(x));
        ((u128::from(fraction) * u128::from(self.divisor)) >> 64) as u32
    }
}

/// Buckets that survived pruning.
#[derive(Debug)]
struct BucketMap {
    /// Open addressing; a bucket and its row after the words.
    table: Vec<(u32, u32)>,
    rows: usize,
}

impl BucketMap {
    fn read(reader: &mut ModelReader, pairs: i64) -> Result<Self> {
        let rows = reader.count(pairs, 8, "the number of pruned buckets")?;
        let mut table = vec![(EMPTY, 0); (2 * rows.max(1)).next_power_of_two()];
        for _ in 0..rows {
            let bucket = reader.i32("a pruned bucket")?;
            let row = reader.i32("a pruned bucket's row")?;
            match (u32::try_from(bucket), u32::try_from(row)) {
                (Ok(bucket), Ok(row)) if (row as usize) < rows => {
                    let slot = Self::slot(&table, bucket);
                    table[slot] = (bucket, row);
                }
                _ => return Err(reader.bad(format!("pruned bucket {bucket} has row {row}"))),
            }
        }
        Ok(Self { table, rows })
    }

    fn slot(table: &[(u32, u32)], bucket: u32) -> usize {
        let mask = table.len() - 1;
        // Fibonacci hashing: the high bits are the well mixed ones.
        let mixed = u64::from(bucket).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut slot = (mixed >> 32) as usize & mask;
        while table[slot].0 != EMPTY && table[slot].0 != bucket {
            slot = (slot + 1) & mask;
        }
        slot
    }

    #[inline]
    fn get(&self, bucket: u32) -> Option<u32> {
        let (found, row) = self.table[Self::slot(&self.table, bucket)];
        (found != EMPTY).then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fasttexts() {
        // FNV-1a test vectors (ASCII), and one byte that is sign-extended.
        assert_eq!(hash(b""), 0x811c_9dc5);
        assert_eq!(hash(b"a"), 0xe40c_292c);
        assert_eq!(hash(b"foobar"), 0xbf9c_f968);
        let plain = (HASH_START ^ 0xc3).wrapping_mul(16_777_619);
        let extended = (HASH_START ^ 0xffff_ffc3).wrapping_mul(16_777_619);
        assert_eq!(hash(&[0xc3]), extended);
        assert_ne!(hash(&[0xc3]), plain);
    }

    #[test]
    fn the_remainder_is_the_remainder() {
        for divisor in [1, 2, 3, 7, 999_983, 2_000_000, u32::MAX - 1, u32::MAX] {
            let reduce = Remainder::by(divisor);
            for x in [0, 1, 2, divisor.wrapping_sub(1), divisor, 123_456_789, u32::MAX] {
                assert_eq!(reduce.of(x), x % divisor, "{x} % {divisor}");
            }
        }
    }
}
