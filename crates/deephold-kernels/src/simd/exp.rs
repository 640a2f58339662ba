//! e^x on 16 lanes.

use super::Simd;

/// e^x with a relative error below 2e-7 for -87 <= x <= 88; 0 below that, about e^88 above, NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (Cody and Waite's two-part ln 2), e^r by its Taylor series to r^7, whose remainder
/// is below 6e-9, then 2^n is multiplied in. Rounding in the last steps dominates: about 1.5 units in the last place.
///
/// # Safety
/// See [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    const LOW: f32 = -87.0;
    const HIGH: f32 = 88.0;
    // 1/7! .. 1/0!
    const TAYLOR: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // SAFETY: the caller's; only lane arithmetic follows.
    unsafe {
        // The bound comes first, so that a NaN in x stays.
        let bounded = S::min(S::splat(HIGH), S::max(S::splat(LOW), x));
        let n = S::round(S::mul(bounded, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), bounded);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut e = S::splat(TAYLOR[0]);
        for c in &TAYLOR[1..] {
            e = S::fma(e, r, S::splat(*c));
        }
        S::zero_below(x, S::splat(LOW), S::mul(e, S::pow2(n)))
    }
}
