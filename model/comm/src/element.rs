//! What a buffer is made of, and sums in the order of the ranks.
//!
//! A sum is `((x₀ + x₁) + x₂) + …`, element by element: f32 in f32, f64 in f64. bf16 parts are
//! widened, added in f32, and rounded once.

use bytemuck::Pod;
use half::bf16;

/// A number that travels between ranks as its bytes.
pub trait Element: Pod + Send + Sync {
    /// Its name in messages.
    const NAME: &'static str;
}

/// An [`Element`] that can be summed.
pub trait Summand: Element {
    /// The type that sums are made in.
    type Sum: Copy + Default;

    /// The same value in the type of sums.
    fn widen(self) -> Self::Sum;

    /// One addition.
    fn add(sum: Self::Sum, value: Self) -> Self::Sum;

    /// The sum, rounded to this type.
    fn round(sum: Self::Sum) -> Self;
}

macro_rules! elements {
    ($($type:ty),*) => {
        $(impl Element for $type {
            const NAME: &'static str = stringify!($type);
        })*
    };
}

elements!(u8, u32, u64, i32, i64, f32, f64, bf16);

/// Names of all elements; the index is the number that travels.
pub(crate) const NAMES: [&str; 8] = ["u8", "u32", "u64", "i32", "i64", "f32", "f64", "bf16"];

impl Summand for f32 {
    type Sum = f32;

    fn widen(self) -> f32 {
        self
    }

    fn add(sum: f32, value: Self) -> f32 {
        sum + value
    }

    fn round(sum: f32) -> Self {
        sum
    }
}

impl Summand for f64 {
    type Sum = f64;

    fn widen(self) -> f64 {
        self
    }

    fn add(sum: f64, value: Self) -> f64 {
        sum + value
    }

    fn round(sum: f64) -> Self {
        sum
    }
}

impl Summand for bf16 {
    type Sum = f32;

    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn add(sum: f32, value: Self) -> f32 {
        sum + value.to_f32()
    }

    fn round(sum: f32) -> Self {
        Self::from_f32(sum)
    }
}

/// Memory that a rank hands over while an operation works on it, and gets back from it.
///
/// # Safety
/// The pointer and the length stay the same for as long as the value exists and is not changed,
/// also when the value is moved. Taking the pointer again does not invalidate pointers taken before,
/// as with [`Vec::as_mut_ptr`]. All elements are initialised.
pub unsafe trait Buffer<E: Element>: Send + 'static {
    /// Elements.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first element, to read.
    fn as_ptr(&self) -> *const E;

    /// The first element, to write.
    fn as_mut_ptr(&mut self) -> *mut E;
}

// SAFETY: elements of a vector are on the heap and stay there while it is neither changed nor
// dropped; `Vec` promises that its pointers do not invalidate each other.
unsafe impl<E: Element> Buffer<E> for Vec<E> {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn as_ptr(&self) -> *const E {
        Self::as_ptr(self)
    }

    fn as_mut_ptr(&mut self) -> *mut E {
        Self::as_mut_ptr(self)
    }
}

/// Elements whose sums are kept at a time, so that they stay in the first cache.
const BLOCK: usize = 1024;

/// Writes `((parts[0] + parts[1]) + parts[2]) + …` to `sum`; with `add`, what is in `sum` is the first
/// summand. All slices have one length.
pub fn ordered_sum<E: Summand>(sum: &mut [E], parts: &[&[E]], add: bool) {
    let mut sums = [E::Sum::default(); BLOCK];
    for (index, block) in sum.chunks_mut(BLOCK).enumerate() {
        let range = index * BLOCK..index * BLOCK + block.len();
        let sums = &mut sums[..block.len()];
        let rest = match (add, parts) {
            (false, [first, rest @ ..]) => {
                sums.iter_mut().zip(&first[range.clone()]).for_each(|(sum, x)| *sum = x.widen());
                rest
            }
            (_, all) => {
                sums.iter_mut().zip(block.iter()).for_each(|(sum, x)| *sum = x.widen());
                all
            }
        };
        for part in rest {
            let values = &part[range.clone()];
            sums.iter_mut().zip(values).for_each(|(sum, x)| *sum = E::add(*sum, *x));
        }
        block.iter_mut().zip(sums.iter()).for_each(|(out, sum)| *out = E::round(*sum));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_made_from_the_left() {
        let parts: [&[f32]; 3] = [&[1e8, -0.0], &[-1e8, -0.0], &[1.0, -0.0]];
        let mut sum = [7.0f32; 2];
        ordered_sum(&mut sum, &parts, false);
        assert_eq!(sum.map(f32::to_bits), [1.0f32, -0.0].map(f32::to_bits));
        // In another order the small one would be lost: 1 + 1e8 is 1e8 in f32.
        ordered_sum(&mut sum, &[&[1e8, 0.0], &[-1e8, 0.0]], true);
        assert_eq!(sum, [0.0, 0.0]);
    }

    #[test]
    fn bf16_is_rounded_once() {
        let value = |x: f32| vec![bf16::from_f32(x); 3000];
        let parts = [value(256.0), value(0.75), value(0.75)];
        let parts: Vec<&[bf16]> = parts.iter().map(Vec::as_slice).collect();
        let mut sum = vec![bf16::ZERO; 3000];
        ordered_sum(&mut sum, &parts, false);
        // 257.5 rounds to 258; each step rounded to 8 bits would have stayed at 256.
        assert!(sum.iter().all(|sum| sum.to_f32() == 258.0));
    }

    #[test]
    fn every_element_has_a_number() {
        for name in [u8::NAME, u32::NAME, u64::NAME, i32::NAME, i64::NAME, f32::NAME, f64::NAME] {
            assert!(NAMES.contains(&name));
        }
        assert!(NAMES.contains(&bf16::NAME));
    }
}
