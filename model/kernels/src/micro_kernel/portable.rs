//! The micro-kernel in plain Rust.

use super::contract::{MR, MicroKernel, NR, layout};
use crate::element::Element;

/// Plain Rust, for any CPU.
#[derive(Clone, Copy)]
pub(crate) struct PortableF32;

/// `sum + a * b`, rounded twice: a fused multiply-add is a library call on a CPU without the
/// instruction.
#[inline(always)]
fn plain(a: f32, b: f32, sum: f32) -> f32 {
    sum + a * b
}

/// Rows and columns of sums that [`multiply_plain`] keeps in registers: 12 of the 16 registers of AVX2.
const SUB_ROWS: usize = 6;
pub(super) const SUB_COLUMNS: usize = 16;

/// [`MicroKernel::multiply`] in plain Rust: 6 rows by 16 columns at a time, so strips are 16 wide.
///
/// # Safety
///
/// As [`MicroKernel::multiply`].
#[inline(always)]
pub(super) unsafe fn multiply_plain<const LAYOUT: u8>(
    steps: usize,
    a: impl Fn(usize, usize) -> *const f32,
    b: *const f32,
    c: *mut f32,
    c_row: usize,
    add: bool,
    multiply_add: impl Fn(f32, f32, f32) -> f32,
) {
    let b = layout::columns::<LAYOUT, _>(b, steps, SUB_COLUMNS);
    for column in (0..NR).step_by(SUB_COLUMNS) {
        for row in (0..MR).step_by(SUB_ROWS) {
            let mut sums = [[0.0f32; SUB_COLUMNS]; SUB_ROWS];
            for s in 0..steps {
                // SAFETY: inside the ranges the caller vouches for.
                unsafe {
                    let b = b(column, s).cast::<[f32; SUB_COLUMNS]>().read();
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let a = a(row + r, s).read_unaligned();
                        for (sum, &b) in sums.iter_mut().zip(&b) {
                            *sum = multiply_add(a, b, *sum);
                        }
                    }
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                // SAFETY: inside the ranges the caller vouches for.
                unsafe {
                    let c = c.add((row + r) * c_row + column).cast::<[f32; SUB_COLUMNS]>();
                    let mut out = if add { c.read() } else { [0.0; SUB_COLUMNS] };
                    for (out, &sum) in out.iter_mut().zip(sums) {
                        *out += sum;
                    }
                    c.write(out);
                }
            }
        }
    }
}

// SAFETY: needs nothing of the CPU.
unsafe impl MicroKernel for PortableF32 {
    type Unit = f32;
    const DEPTH: usize = 1;
    const FUSED: bool = false;
    const STRIP: usize = SUB_COLUMNS;

    /// Always: 6 rows at a time fit the first-level cache whatever their distance.
    fn reads_rows_in_place(_address: usize, _stride: usize) -> bool {
        true
    }

    #[inline(always)]
    fn unit<E: Element>(at: impl Fn(usize) -> E) -> f32 {
        at(0).to_f32()
    }

    unsafe fn multiply<const LAYOUT: u8>(
        steps: usize,
        a: *const f32,
        b: *const f32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe {
            let a = layout::units::<LAYOUT, _>(a, 1);
            multiply_plain::<LAYOUT>(steps, a, b, c, c_row, add, plain);
        }
    }

    unsafe fn multiply_rows(
        steps: usize,
        a: *const u8,
        a_row: usize,
        b: *const f32,
        c: *mut f32,
        c_row: usize,
        add: bool,
    ) {
        // SAFETY: passed on.
        unsafe {
            let a = layout::in_place(a, a_row);
            multiply_plain::<{ layout::STRIPS }>(steps, a, b, c, c_row, add, plain);
        }
    }

    unsafe fn vectorize<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}
