//! An order of `0..count` without a list: a keyed bijection.

/// Rounds of the network. Four make a pseudo-random permutation of a good round function (Luby
/// and Rackoff, 1988); more even out small domains.
const ROUNDS: usize = 8;

/// A permutation of `0..count` made by a Feistel network over the next power of four, walking
/// along its cycle until the value is inside. Computing one value costs a few rounds and needs
/// no memory.
#[derive(Clone, Debug)]
pub struct Permutation {
    count: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The order of `count` sequences of `source` in `epoch`. Another seed, source or epoch gives
    /// another order.
    pub fn new(count: u64, seed: u64, source: &str, epoch: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("altiplano epoch permutation v1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&epoch.to_le_bytes());
        hasher.update(source.as_bytes());
        let mut bytes = [0; ROUNDS * 8];
        hasher.finalize_xof().fill(&mut bytes);
        let mut keys = [0; ROUNDS];
        let (chunks, _) = bytes.as_chunks::<8>();
        for (key, chunk) in keys.iter_mut().zip(chunks) {
            *key = u64::from_le_bytes(*chunk);
        }
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Self { count, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Where `index`, below `count`, goes.
    pub fn apply(&self, index: u64) -> u64 {
        debug_assert!(index < self.count);
        let mut value = index;
        // The domain is less than four times as large, so this takes a few steps on average; it
        // ends because the cycle comes back to `index` at the latest.
        loop {
            value = self.network(value);
            if value < self.count {
                return value;
            }
        }
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half_bits) | right
    }
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_comes_once() {
        for count in (1..200).chain([255, 256, 257, 1000, 4096, 10_007]) {
            let permutation = Permutation::new(count, 7, "books", 3);
            let mut seen = vec![false; count as usize];
            for index in 0..count {
                let value = permutation.apply(index) as usize;
                assert!(!seen[value], "{count}: {value} twice");
                seen[value] = true;
            }
        }
    }

    #[test]
    fn seed_source_and_epoch_each_change_the_order() {
        let order = |seed, source, epoch| -> Vec<u64> {
            let permutation = Permutation::new(1000, seed, source, epoch);
            (0..1000).map(|index| permutation.apply(index)).collect()
        };
        let first = order(1, "a", 0);
        assert_eq!(first, order(1, "a", 0));
        for other in [order(2, "a", 0), order(1, "b", 0), order(1, "a", 1)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of 1000 at the same place");
        }
    }

    #[test]
    fn the_order_is_well_mixed() {
        // Where the first tenth goes: each tenth of the range gets about as many.
        let count = 100_000;
        let permutation = Permutation::new(count, 1, "web", 0);
        let mut buckets = [0u32; 10];
        let mut ascents = 0;
        let mut last = 0;
        for index in 0..count / 10 {
            let value = permutation.apply(index);
            buckets[(value * 10 / count) as usize] += 1;
            ascents += u32::from(value > last);
            last = value;
        }
        assert!(buckets.iter().all(|&n| (850..1150).contains(&n)), "{buckets:?}");
        assert!((4800..5200).contains(&ascents), "{ascents}");
    }

    #[test]
    fn large_counts_stay_inside() {
        let count = u64::MAX / 5;
        let permutation = Permutation::new(count, 1, "web", 0);
        for index in [0, 1, count / 2, count - 1] {
            assert!(permutation.apply(index) < count);
        }
    }
}
