//! What the product of a tile needs of a CPU, and plain Rust for any.

use half::f16;

/// Rows of the weight side by side: a panel.
pub(super) const LANES: usize = 16;

/// Sixteen lanes of integers and numbers.
///
/// # Safety
///
/// The methods may be called only on a CPU that has the instructions, inside of what is compiled for them.
pub(super) unsafe trait Lanes {
    /// Four bytes in each lane.
    type Bytes: Copy;
    /// An i32 in each lane.
    type Ints: Copy;
    /// An f32 in each lane.
    type Floats: Copy;

    /// Fetches the cache line at `from`, which need not be memory, into the second-level cache.
    unsafe fn fetch(from: *const u8);
    /// The 64 bytes at `from`.
    unsafe fn bytes(from: *const u8) -> Self::Bytes;
    /// The bits from `shift` on, 0 to 7, of each byte that `mask` keeps.
    unsafe fn bits(bytes: Self::Bytes, shift: u32, mask: u8) -> Self::Bytes;
    /// `high` shifted by four bits to the left, where no bit is lost, or `low`.
    unsafe fn join(low: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    /// Zeros.
    unsafe fn zeros() -> Self::Ints;
    /// What sums begin with so that elements lose their bias, which is 128 if they are `large`: the i32
    /// at `correction`, or zero where [`Lanes::dot`] sees to it.
    unsafe fn start(correction: *const u8, large: bool) -> Self::Ints;
    /// `sums` and the products of the four elements in each lane, of at most 6 bits unless they are
    /// `large`, by the four i8 at `x`.
    unsafe fn dot(sums: Self::Ints, w: Self::Bytes, x: *const u8, large: bool) -> Self::Ints;
    /// The same integers as numbers.
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats;
    /// The 16 f16 at `from`.
    unsafe fn halves(from: *const u8) -> Self::Floats;
    /// The 16 i8 at `from`.
    unsafe fn small(from: *const u8) -> Self::Floats;
    /// The f32 at `from` in each lane.
    unsafe fn splat(from: *const u8) -> Self::Floats;
    /// `a · b`.
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `c − a · b`.
    unsafe fn sub_mul(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Writes the lanes.
    unsafe fn store(floats: Self::Floats, to: &mut [f32; LANES]);
}

/// Plain Rust.
pub(super) struct Portable;

/// Each lane by its number.
#[inline(always)]
fn each<T>(of: impl FnMut(usize) -> T) -> [T; LANES] {
    std::array::from_fn(of)
}

// SAFETY: needs nothing of the CPU.
unsafe impl Lanes for Portable {
    type Bytes = [u8; 4 * LANES];
    type Ints = [i32; LANES];
    type Floats = [f32; LANES];

    #[inline(always)]
    unsafe fn fetch(_from: *const u8) {}

    #[inline(always)]
    unsafe fn bytes(from: *const u8) -> Self::Bytes {
        // SAFETY: the caller's 64 bytes.
        unsafe { from.cast::<Self::Bytes>().read() }
    }

    #[inline(always)]
    unsafe fn bits(bytes: Self::Bytes, shift: u32, mask: u8) -> Self::Bytes {
        bytes.map(|byte| byte >> shift & mask)
    }

    #[inline(always)]
    unsafe fn join(low: Self::Bytes, high: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| low[i] | high[i] << 4)
    }

    #[inline(always)]
    unsafe fn zeros() -> Self::Ints {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn start(correction: *const u8, _large: bool) -> Self::Ints {
        // SAFETY: the caller's i32.
        [unsafe { correction.cast::<i32>().read_unaligned() }; LANES]
    }

    #[inline(always)]
    unsafe fn dot(sums: Self::Ints, w: Self::Bytes, x: *const u8, _large: bool) -> Self::Ints {
        // SAFETY: the caller's four i8.
        let x = unsafe { x.cast::<[i8; 4]>().read() }.map(i32::from);
        each(|i| sums[i] + (0..4).map(|j| i32::from(w[4 * i + j]) * x[j]).sum::<i32>())
    }

    #[inline(always)]
    unsafe fn to_floats(ints: Self::Ints) -> Self::Floats {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    unsafe fn halves(from: *const u8) -> Self::Floats {
        // SAFETY: the caller's 16 f16.
        let halves = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        halves.map(|half| f16::from_bits(u16::from_le(half)).to_f32())
    }

    #[inline(always)]
    unsafe fn small(from: *const u8) -> Self::Floats {
        // SAFETY: the caller's 16 i8.
        unsafe { from.cast::<[i8; LANES]>().read() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn splat(from: *const u8) -> Self::Floats {
        // SAFETY: the caller's f32.
        [unsafe { from.cast::<f32>().read_unaligned() }; LANES]
    }

    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each(|i| c[i] + a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn sub_mul(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each(|i| c[i] - a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn store(floats: Self::Floats, to: &mut [f32; LANES]) {
        *to = floats;
    }
}
