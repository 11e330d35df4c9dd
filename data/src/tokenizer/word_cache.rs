//! The ids of words seen before.

/// Words kept. A word displaces the one that was in its place.
const WORDS: usize = 1 << 17;
/// Longest word in bytes.
const WORD_BYTES: usize = 16;
/// Most ids of a word, so that an entry fills a cache line.
const MOST_IDS: usize = 11;

/// Words and their ids: one place per hash, 8 MiB.
pub(crate) struct WordCache {
    entries: Box<[Entry]>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Entry {
    word: u128,
    /// 0 when there is none.
    length: u8,
    count: u8,
    ids: [u32; MOST_IDS],
}

/// A short word: its bytes and where it belongs.
pub(crate) struct Key {
    word: u128,
    length: u8,
    place: usize,
}

impl Default for WordCache {
    fn default() -> Self {
        let empty = Entry { word: 0, length: 0, count: 0, ids: [0; MOST_IDS] };
        Self { entries: vec![empty; WORDS].into() }
    }
}

impl WordCache {
    /// The key of `text[start..end]`, if it is a short word.
    #[inline]
    pub fn key(text: &[u8], start: usize, end: usize) -> Option<Key> {
        let length = end - start;
        if length == 0 || length > WORD_BYTES {
            return None;
        }
        let word = match text.get(start..start + WORD_BYTES).and_then(|word| word.try_into().ok()) {
            // Bytes behind the word are cleared.
            Some(word) => u128::from_le_bytes(word) & (u128::MAX >> (8 * (WORD_BYTES - length))),
            None => {
                let mut word = [0; WORD_BYTES];
                word[..length].copy_from_slice(&text[start..end]);
                u128::from_le_bytes(word)
            }
        };
        let low = (word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let high = ((word >> 64) as u64 ^ low >> 32).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        let place = ((low ^ high) >> 40) as usize % WORDS;
        Some(Key { word, length: length as u8, place })
    }

    /// The ids of the word.
    #[inline]
    pub fn get(&self, key: &Key) -> Option<&[u32]> {
        let entry = &self.entries[key.place];
        if entry.word != key.word || entry.length != key.length {
            return None;
        }
        entry.ids.get(..usize::from(entry.count))
    }

    /// Keeps the ids of the word, unless they are many.
    pub fn put(&mut self, key: &Key, ids: &[u32]) {
        if ids.len() > MOST_IDS {
            return;
        }
        let entry = &mut self.entries[key.place];
        (entry.word, entry.length, entry.count) = (key.word, key.length, ids.len() as u8);
        entry.ids[..ids.len()].copy_from_slice(ids);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_whatever_stands_behind_it() {
        let mut cache = WordCache::default();
        let text = b" the whale and the sea";
        cache.put(&WordCache::key(text, 0, 4).unwrap(), &[7, 8]);
        assert_eq!(cache.get(&WordCache::key(b"x the", 1, 5).unwrap()), Some(&[7, 8][..]));
        assert_eq!(cache.get(&WordCache::key(text, 0, 3).unwrap()), None);
        // A zero byte is not the same as no byte.
        cache.put(&WordCache::key(b"a", 0, 1).unwrap(), &[1]);
        assert_eq!(cache.get(&WordCache::key(b"a\0", 0, 2).unwrap()), None);
        assert!(WordCache::key(&[b'a'; 17], 0, 17).is_none());
        let whole = WordCache::key(&[b'a'; 17], 0, 16).unwrap();
        cache.put(&whole, &[3; 12]);
        assert_eq!(cache.get(&whole), None);
        cache.put(&whole, &[3; 11]);
        assert_eq!(cache.get(&whole), Some(&[3; 11][..]));
    }
}
