//! A vector is four registers of four lanes.

use std::arch::aarch64::*;

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Neon;

type V = [float32x4_t; 4];

#[inline(always)]
fn map(a: V, f: impl Fn(float32x4_t) -> float32x4_t) -> V {
    [f(a[0]), f(a[1]), f(a[2]), f(a[3])]
}

#[inline(always)]
fn map2(a: V, b: V, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> V {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

/// f16 bits in u32 lanes to f32, by integer steps: the conversion intrinsics are younger than the oldest supported compiler.
#[inline(always)]
fn widen_f16(h: uint32x4_t) -> float32x4_t {
    // SAFETY: register arithmetic of the aarch64 baseline.
    unsafe {
        let sign = vshlq_n_u32::<16>(vandq_u32(h, vdupq_n_u32(0x8000)));
        let rest = vandq_u32(h, vdupq_n_u32(0x7fff));
        let scaled =
            vmulq_f32(vreinterpretq_f32_u32(vshlq_n_u32::<13>(rest)), vdupq_n_f32(f32::from_bits(239 << 23)));
        // An exponent of all ones stays so: infinity and NaN.
        let special = vandq_u32(vcgeq_u32(rest, vdupq_n_u32(0x7c00)), vdupq_n_u32(0x7f80_0000));
        vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(vreinterpretq_u32_f32(scaled), special), sign))
    }
}

// SAFETY of the unsafe blocks: NEON is the aarch64 baseline, reach of pointers is the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once above")]
#[allow(unused_unsafe, reason = "register intrinsics are safe on newer compilers")]
impl Simd for Neon {
    type V = V;
    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> V {
        unsafe {
            let quarter = |p: *const u16| widen_f16(vmovl_u16(vld1_u16(p)));
            [quarter(p), quarter(p.add(4)), quarter(p.add(8)), quarter(p.add(12))]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> V {
        unsafe {
            let quarter = |p: *const u16| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p)));
            [quarter(p), quarter(p.add(4)), quarter(p.add(8)), quarter(p.add(12))]
        }
    }
    #[inline(always)]
    unsafe fn load_f8(p: *const u8) -> V {
        unsafe {
            let quarter = |b: uint16x4_t| {
                let sign = vshl_n_u16::<8>(vand_u16(b, vdup_n_u16(0x80)));
                let rest = vshl_n_u16::<7>(vand_u16(b, vdup_n_u16(0x7f)));
                let x = vmulq_n_f32(widen_f16(vmovl_u16(vorr_u16(sign, rest))), 256.0);
                let nan = vceqq_f32(vabsq_f32(x), vdupq_n_f32(480.0));
                vbslq_f32(nan, vdupq_n_f32(f32::NAN), x)
            };
            let bytes = vld1q_u8(p);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
            [
                quarter(vget_low_u16(low)),
                quarter(vget_high_u16(low)),
                quarter(vget_low_u16(high)),
                quarter(vget_high_u16(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
            vst1q_f32(p.add(8), v[2]);
            vst1q_f32(p.add(12), v[3]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        map2(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        map2(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        map2(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        map2(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        unsafe {
            [
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        map2(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        map2(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn zero_below(x: V, limit: V, v: V) -> V {
        let keep = map2(x, limit, |x, limit| unsafe { vreinterpretq_f32_u32(vcltq_f32(x, limit)) });
        map2(keep, v, |k, v| unsafe { vbslq_f32(vreinterpretq_u32_f32(k), vdupq_n_f32(0.0), v) })
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        map(a, |a| unsafe { vrndnq_f32(a) })
    }
    #[inline(always)]
    unsafe fn pow2(n: V) -> V {
        map(n, |n| unsafe {
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127))))
        })
    }
    #[inline(always)]
    unsafe fn sum(a: V) -> f32 {
        unsafe {
            let b = [vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3])];
            let c = vaddq_f32(b[0], b[1]);
            let d = vadd_f32(vget_low_f32(c), vget_high_f32(c));
            vget_lane_f32::<0>(d) + vget_lane_f32::<1>(d)
        }
    }
    #[inline(always)]
    unsafe fn fold_max(a: V) -> f32 {
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a[0], a[1]), vmaxq_f32(a[2], a[3]))) }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [V; 16]) -> [V; 16] {
        // Sixteen blocks of 4 x 4, the block at (i, j) to (j, i).
        let blocks: [[[float32x4_t; 4]; 4]; 4] = std::array::from_fn(|i| {
            std::array::from_fn(|j| transpose4(std::array::from_fn(|k| rows[4 * i + k][j])))
        });
        std::array::from_fn(|c| std::array::from_fn(|i| blocks[i][c / 4][c % 4]))
    }
}

/// Lane i of vector j to lane j of vector i.
#[inline(always)]
fn transpose4(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: register arithmetic of the aarch64 baseline.
    unsafe {
        let pair = |a, b| [vtrn1q_f32(a, b), vtrn2q_f32(a, b)].map(|x| vreinterpretq_f64_f32(x));
        let ([a, b], [c, d]) = (pair(r[0], r[1]), pair(r[2], r[3]));
        [vtrn1q_f64(a, c), vtrn1q_f64(b, d), vtrn2q_f64(a, c), vtrn2q_f64(b, d)]
            .map(|x| vreinterpretq_f32_f64(x))
    }
}
