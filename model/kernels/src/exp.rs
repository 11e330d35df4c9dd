//! Branch-free exponentials for loops that must vectorise.
//!
//! `2^x = 2^n p(r)` with `n` the nearest integer to `x` and `r = x - n` in [-1/2, 1/2]. `p`
//! is the polynomial of degree 6 with the smallest largest relative error on that interval
//! (2.6e-9), so the error is that of f32 rounding. `e^x` reduces by `ln 2` split in two
//! parts, whose first has few enough bits for `n * high` to be exact.

/// Adding this rounds an f32 of magnitude below 2^22 to an integer held in the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23

/// `2^(n - 1)`, for the `n` held in the low bits of `t = n + ROUND`, as a factor.
#[inline(always)]
fn half_power_of_two(t: f32) -> f32 {
    f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f00_0000))
}

/// `e^x`. At most 2 units in the last place off; below 4.8e-38 the result is 0.
/// NaN gives NaN, infinities give 0 and infinity.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4; // 355 / 512
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let t = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // Coefficients are doubled so that the power of two is 2^(n - 1) and n = 128 fits.
    let mut p = 2.0 * 1.406_127_7e-3_f32;
    p = p.mul_add(r, 2.0 * 8.379_021e-3);
    p = p.mul_add(r, 2.0 * 4.166_477_7e-2);
    p = p.mul_add(r, 2.0 * 1.666_636_5e-1);
    p = p.mul_add(r, 2.0 * 5.000_000_4e-1);
    p = p.mul_add(r, 2.0);
    p = p.mul_add(r, 2.0);
    let y = p * half_power_of_two(t);
    let y = if x < -86.2 { 0.0 } else { y };
    if x > 88.722_83 { f32::INFINITY } else { y }
}

/// `2^x` for `x <= 64`, as the softmax needs it: at most 2 units in the last place off,
/// 0 below `2^-125.5`. NaN gives NaN.
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    // From -126 on the power of two is zero. NaN stays.
    let x = if x < -126.0 { -126.0 } else { x };
    let t = x + ROUND;
    let r = x - (t - ROUND);
    let mut p = 2.0 * 1.559_471_8e-4_f32;
    p = p.mul_add(r, 2.0 * 1.340_665_9e-3);
    p = p.mul_add(r, 2.0 * 9.617_693e-3);
    p = p.mul_add(r, 2.0 * 5.550_310_5e-2);
    p = p.mul_add(r, 2.0 * 2.402_265_3e-1);
    p = p.mul_add(r, 2.0 * 6.931_472e-1);
    p = p.mul_add(r, 2.0);
    p * half_power_of_two(t)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst_error(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, low: f32, high: f32) -> f64 {
        let steps = 400_000;
        (0..=steps)
            .map(|i| low + (high - low) * (i as f32 / steps as f32))
            .map(|x| {
                let want = exact(f64::from(x));
                ((f64::from(f(x)) - want) / want).abs()
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_accurate() {
        let error = worst_error(exp, f64::exp, -86.0, 88.7);
        assert!(error < 1.3e-7, "{error:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-90.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn exp2_is_accurate() {
        let error = worst_error(exp2, f64::exp2, -124.0, 64.0);
        assert!(error < 1.3e-7, "{error:e}");
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(-1e30), 0.0);
        assert!(exp2(f32::NAN).is_nan());
    }
}
