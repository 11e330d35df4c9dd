//! The micro-kernel of AMX: bf16 in tiles of 16 rows of 64 bytes.
//!
//! The intrinsics are not stable in Rust, so the instructions are written as inline assembly. The
//! compiler never uses tiles by itself, so what one instruction leaves in them is there for the next.

use super::contract::{MOST_ROWS, MicroKernel, NR, RUN, SCORES, TILE, layout};
use super::x86::{Avx512Bf16, fetch};
use crate::element::Element;
use crate::transpose::transpose_16;
use std::arch::asm;

/// bf16 on AMX, with AVX512-BF16 for everything but products.
#[derive(Clone, Copy)]
pub(super) struct Amx;

/// Bytes of a row of a tile: 16 units.
const ROW_BYTES: usize = 64;

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration([u8; 64]);

/// Eight tiles of 16 rows of 64 bytes (palette 1).
const TILES: Configuration = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = ROW_BYTES as u8;
        bytes[48 + tile] = TILE as u8;
        tile += 1;
    }
    Configuration(bytes)
};

/// Tiles in use by this thread, until dropped.
struct Tiles;

impl Tiles {
    /// # Safety
    ///
    /// The process must be allowed to use tiles.
    #[inline(always)]
    unsafe fn configure() -> Self {
        static CONFIGURATION: Configuration = TILES;
        // SAFETY: 64 bytes that describe tiles this CPU has.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack)) };
        Self
    }
}

impl Drop for Tiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: tiles were configured; no sum is left in one.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Where the tiles of an operand lie, in bytes.
#[derive(Clone, Copy)]
struct Side {
    /// The first 16 rows of `A` or columns of `B`, and the other 16.
    tiles: [*const u8; 2],
    /// Distance of the rows of a tile.
    row: usize,
    /// Distance of tiles that follow each other along the contraction.
    next: usize,
}

/// A 32 x 32 product over `count` times 16 units.
///
/// A product of tiles takes 16 cycles and two loads of tiles as long, so that four loads are hidden
/// behind four products, if rows of tiles lie on cache lines.
///
/// # Safety
///
/// Tiles are configured; those of `a` and `b` are readable, 32 rows of 32 sums `c_row` apart are
/// readable and writable at `c`.
#[inline(always)]
unsafe fn multiply_tiles(count: usize, a: Side, b: Side, c: *mut f32, c_row: usize, add: bool) {
    // SAFETY: passed on; every tile the compiler is told about, no stack.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jz 2f",
            "tileloadd tmm0, [{c0} + {c_row}]",
            "tileloadd tmm1, [{c0} + {c_row} + 64]",
            "tileloadd tmm2, [{c1} + {c_row}]",
            "tileloadd tmm3, [{c1} + {c_row} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "test {count}, {count}",
            "jz 5f",
            "4:",
            "tileloadd tmm6, [{b0} + {b_row}]",
            "tileloadd tmm4, [{a0} + {a_row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {b_row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {a_row}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, {a_next}",
            "add {a1}, {a_next}",
            "add {b0}, {b_next}",
            "add {b1}, {b_next}",
            "dec {count}",
            "jnz 4b",
            "5:",
            "tilestored [{c0} + {c_row}], tmm0",
            "tilestored [{c0} + {c_row} + 64], tmm1",
            "tilestored [{c1} + {c_row}], tmm2",
            "tilestored [{c1} + {c_row} + 64], tmm3",
            add = inout(reg) u32::from(add) => _,
            count = inout(reg) count => _,
            a0 = inout(reg) a.tiles[0] => _,
            a1 = inout(reg) a.tiles[1] => _,
            a_row = in(reg) a.row,
            a_next = in(reg) a.next,
            b0 = inout(reg) b.tiles[0] => _,
            b1 = inout(reg) b.tiles[1] => _,
            b_row = in(reg) b.row,
            b_next = in(reg) b.next,
            c0 = in(reg) c,
            c1 = in(reg) c.add(TILE * c_row),
            c_row = in(reg) c_row * size_of::<f32>(),
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

/// Units `distance` apart, in bytes.
const fn bytes(distance: usize) -> usize {
    distance * size_of::<u32>()
}

impl Side {
    #[inline(always)]
    fn new(first: *const u8, second: usize, row: usize, next: usize) -> Self {
        Self { tiles: [first, first.wrapping_add(second)], row, next }
    }

    /// Rows of `A`.
    #[inline(always)]
    fn rows<const LAYOUT: u8>(a: *const u32) -> Self {
        let a = a.cast();
        match LAYOUT {
            layout::SCORE_ROWS => {
                let row = bytes(SCORES / 2);
                Self::new(a, TILE * row, row, ROW_BYTES)
            }
            layout::SCORE_COLUMNS => {
                let row = bytes(SCORES);
                Self::new(a, ROW_BYTES, row, TILE * row)
            }
            _ => Self::new(a, TILE * ROW_BYTES, ROW_BYTES, MOST_ROWS * ROW_BYTES),
        }
    }

    /// Columns of `B`.
    #[inline(always)]
    fn columns<const LAYOUT: u8>(b: *const u32, steps: usize) -> Self {
        let b = b.cast();
        match LAYOUT {
            layout::STRIPS => Self::new(b, steps * ROW_BYTES, ROW_BYTES, TILE * ROW_BYTES),
            _ => Self::new(b, ROW_BYTES, bytes(NR), TILE * bytes(NR)),
        }
    }
}

// SAFETY: reached only where cpu_level found AVX512-BF16 and tiles that this process may use.
unsafe impl MicroKernel for Amx {
    type Unit = u32;
    const DEPTH: usize = 2;
    const ROWS: usize = MOST_ROWS;
    const ROWS_IN_TILES: bool = true;
    const STEPS: usize = TILE;
    const BLOCK_STEPS: usize = 512;
    const STRIP: usize = RUN;

    /// If every row of a tile is one cache line; a tile whose rows straddle two loads half as fast.
    fn reads_rows_in_place(address: usize, stride: usize) -> bool {
        address.is_multiple_of(ROW_BYTES) && stride.is_multiple_of(ROW_BYTES)
    }

    #[inline(always)]
    fn unit<E: Element>(at: impl Fn(usize) -> E) -> u32 {
        Avx512Bf16::unit(at)
    }

    #[inline(always)]
    unsafe fn multiply<const LAYOUT: u8>(
        steps: usize,
        a: *const u32,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        let (a, b) = (Side::rows::<LAYOUT>(a), Side::columns::<LAYOUT>(b, steps));
        // SAFETY: passed on; vectorize configured the tiles.
        unsafe { multiply_tiles(steps / TILE, a, b, c, c_row, add) }
    }

    #[inline(always)]
    unsafe fn multiply_rows(
        steps: usize,
        a: *const u8,
        a_row: usize,
        b: *const u32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        let a = Side::new(a, TILE * a_row, a_row, ROW_BYTES);
        let b = Side::columns::<{ layout::STRIPS }>(b, steps);
        // SAFETY: passed on; vectorize configured the tiles.
        unsafe { multiply_tiles(steps / TILE, a, b, c, c_row, add) }
    }

    #[inline(always)]
    fn fetch_ahead(c: *const f32, c_row: usize) {
        fetch(c, MOST_ROWS, c_row);
    }

    #[inline(always)]
    unsafe fn transpose_16<E: Element>(
        to: *mut u32,
        to_step: usize,
        from: *const E,
        row: usize,
        lanes: usize,
    ) {
        // SAFETY: passed on.
        unsafe { Avx512Bf16::transpose_16(to, to_step, from, row, lanes) }
    }

    #[inline(always)]
    unsafe fn interleave(to: *mut u32, low: *const u8, high: *const u8, lanes: usize) {
        // SAFETY: passed on.
        unsafe { Avx512Bf16::interleave(to, low, high, lanes) }
    }

    #[inline(always)]
    unsafe fn store_row(to: *mut u32, row: &[f32; RUN]) {
        // SAFETY: passed on.
        unsafe { Avx512Bf16::store_row(to, row) }
    }

    #[inline(always)]
    unsafe fn store_columns(to: *mut u32, low: &[f32; RUN], high: &[f32; RUN]) {
        // SAFETY: passed on.
        unsafe { Avx512Bf16::store_columns(to, low, high) }
    }

    #[inline(always)]
    unsafe fn turn_columns(units: *mut u32, columns: usize) {
        for column in (0..columns).step_by(TILE) {
            // SAFETY: 16 steps of 16 columns; all are read before the first is written.
            unsafe {
                let block = units.add(column);
                transpose_16(block, SCORES, block.cast_const().cast(), bytes(SCORES), TILE);
            }
        }
    }

    #[target_feature(
        enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi2"
    )]
    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
        // SAFETY: the kernel runs only where tiles are permitted.
        let _tiles = unsafe { Tiles::configure() };
        f()
    }
}
