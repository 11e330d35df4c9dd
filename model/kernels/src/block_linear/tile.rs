//! The product of a few rows of activations and one or two panels.

use super::activations::{BLOCK, parts};
use super::format::{Format, panel_bytes};
use super::lanes::{LANES, Lanes, Portable};

/// Lanes with a product of tiles that is compiled for their CPU.
///
/// # Safety
///
/// An implementation may be used only on a CPU that has its instructions.
pub(super) unsafe trait Tile: Lanes {
    /// Whether there are registers for 6 rows of `x` and two panels in a tile, or for 2 rows and one.
    const IS_WIDE: bool;

    /// The products of `R` rows of `x` and `P` panels: [`sums_of_tile`], compiled for this CPU.
    ///
    /// # Safety
    ///
    /// Rows and panels are whole, of `inputs` elements, in the layout of `F`.
    unsafe fn tile<F: Format, const R: usize, const P: usize>(
        out: &mut [[[f32; LANES]; P]; R],
        x: [*const u8; R],
        panels: [*const u8; P],
        inputs: usize,
    );
}

/// See [`Tile::tile`].
///
/// # Safety
///
/// As there; inlined into what is compiled for `L`.
#[inline(always)]
pub(super) unsafe fn sums_of_tile<L: Lanes, F: Format, const R: usize, const P: usize>(
    out: &mut [[[f32; LANES]; P]; R],
    x: [*const u8; R],
    panels: [*const u8; P],
    inputs: usize,
) {
    const STEP: usize = 4;
    let at = parts::<F>(inputs);
    let large = F::BIAS == 128;
    let ahead = P * panel_bytes::<F>(inputs);
    let blocks = inputs / F::LEN;
    // SAFETY: blocks, groups and steps of the rows and the panels.
    unsafe {
        let zero = [0u8; 4];
        let mut sums = [[L::splat(zero.as_ptr()); P]; R];
        for block in 0..blocks {
            let (mut quants, mut scales) = (panels, panels);
            for p in 0..P {
                quants[p] = panels[p].add(block * F::QUANT_BYTES);
                scales[p] = panels[p].add(blocks * F::QUANT_BYTES + block * F::SCALE_BYTES);
            }
            // Few rows wait for memory: what the next panels have here is fetched meanwhile.
            if R <= 2 {
                for p in 0..P {
                    for line in (0..F::QUANT_BYTES).step_by(64) {
                        L::fetch(quants[p].wrapping_add(ahead + line));
                    }
                    L::fetch(scales[p].wrapping_add(ahead));
                }
            }
            for group in 0..F::LEN / F::GROUP {
                let first = block * F::LEN + group * F::GROUP;
                let mut correction = x;
                for correction in &mut correction {
                    *correction = correction.add(at.corrections + first / F::GROUP * 4);
                }
                let mut ints = [[L::zeros(); P]; R];
                if !F::HAS_MINIMUM {
                    for r in 0..R {
                        ints[r] = [L::start(correction[r], large); P];
                    }
                }
                for step in 0..F::GROUP / STEP {
                    let mut w = [F::elements::<L>(quants[0], group, step); P];
                    for p in 1..P {
                        w[p] = F::elements::<L>(quants[p], group, step);
                    }
                    for r in 0..R {
                        let x = x[r].add(first + step * STEP);
                        for p in 0..P {
                            ints[r][p] = L::dot(ints[r][p], w[p], x, large);
                        }
                    }
                }
                for p in 0..P {
                    let scale = F::scale::<L>(scales[p], group);
                    for r in 0..R {
                        let x_scale = L::splat(x[r].add(at.scales + first / BLOCK * 4));
                        let scale = L::mul(scale, x_scale);
                        sums[r][p] = L::mul_add(L::to_floats(ints[r][p]), scale, sums[r][p]);
                    }
                    if F::HAS_MINIMUM {
                        let minimum = F::minimum::<L>(scales[p], group);
                        for r in 0..R {
                            let total = L::splat(correction[r]);
                            sums[r][p] = L::sub_mul(minimum, total, sums[r][p]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for p in 0..P {
                L::store(sums[r][p], &mut out[r][p]);
            }
        }
    }
}

// SAFETY: needs nothing of the CPU.
unsafe impl Tile for Portable {
    const IS_WIDE: bool = false;

    unsafe fn tile<F: Format, const R: usize, const P: usize>(
        out: &mut [[[f32; LANES]; P]; R],
        x: [*const u8; R],
        panels: [*const u8; P],
        inputs: usize,
    ) {
        // SAFETY: passed on.
        unsafe { sums_of_tile::<Self, F, R, P>(out, x, panels, inputs) }
    }
}
