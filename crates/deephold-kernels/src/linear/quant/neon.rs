//! NEON: a line is four registers of four lanes; `sdot` where the processor has it, else widening products.
//!
//! Both give the same integers. `sdot` (ARMv8.2, Cortex-A55/A76 and later) is written as assembly, since the compiler does
//! not offer it on stable; older processors such as Cortex-A72 take the second form.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::wide::{self, Wide};
use super::{Layout, PANEL, QuantizedActivations};

/// As [`wide::tile`].
///
/// # Safety
/// The machine has NEON; otherwise as [`wide::tile`].
pub(super) unsafe fn tile(
    layout: Layout,
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
) {
    // SAFETY: the caller's promise is handed on; `sdot` runs only where it was found.
    unsafe {
        if is_aarch64_feature_detected!("dotprod") {
            tile_dot(layout, panel, act, rows, y);
        } else {
            tile_plain(layout, panel, act, rows, y);
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn tile_dot(
    layout: Layout,
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
) {
    // SAFETY: the caller's promise is handed on.
    unsafe { wide::tile::<Neon<true>>(layout, panel, act, rows, y, false) }
}

/// As [`tile`], without `sdot`.
///
/// # Safety
/// As [`tile`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn tile_plain(
    layout: Layout,
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
) {
    // SAFETY: the caller's promise is handed on.
    unsafe { wide::tile::<Neon<false>>(layout, panel, act, rows, y, false) }
}

struct Neon<const DOT: bool>;

impl<const DOT: bool> Neon<DOT> {
    #[inline(always)]
    unsafe fn dot4(acc: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: `DOT` only where the processor has the instruction; it touches registers alone.
        unsafe {
            if DOT {
                let mut sum = acc;
                asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) codes, in(vreg) x,
                     options(pure, nomem, nostack, preserves_flags));
                return sum;
            }
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(x)));
            let high = vpaddlq_s16(vmull_s8(vget_high_s8(codes), vget_high_s8(x)));
            vaddq_s32(acc, vpaddq_s32(low, high))
        }
    }
}

// SAFETY of the unsafe blocks: NEON is the caller's promise to every function of the trait, and so are the bytes behind
// its pointers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]
impl<const DOT: bool> Wide for Neon<DOT> {
    type Bytes = [uint8x16_t; 4];
    type Ints = [int32x4_t; 4];
    type Floats = [float32x4_t; 4];

    const SIGNED_OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn ask_for(_: *const u8) {}

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [uint8x16_t; 4] {
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }

    #[inline(always)]
    unsafe fn low(b: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        b.map(|b| unsafe { vandq_u8(b, vdupq_n_u8(15)) })
    }

    #[inline(always)]
    unsafe fn high(b: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
        b.map(|b| unsafe { vshrq_n_u8::<4>(b) })
    }

    #[inline(always)]
    unsafe fn six_bits(lines: [[uint8x16_t; 4]; 3]) -> [[uint8x16_t; 4]; 4] {
        let [a, b, c] = lines;
        // Shifts that keep the high bits of what they shift into.
        let last = |i: usize| unsafe { vshrq_n_u8::<2>(vsriq_n_u8::<4>(vsriq_n_u8::<2>(a[i], b[i]), c[i])) };
        let low = |line: [uint8x16_t; 4]| line.map(|bytes| unsafe { vandq_u8(bytes, vdupq_n_u8(63)) });
        [low(a), low(b), low(c), [last(0), last(1), last(2), last(3)]]
    }

    #[inline(always)]
    unsafe fn dot(acc: [int32x4_t; 4], codes: [uint8x16_t; 4], x: i32) -> [int32x4_t; 4] {
        // Codes below 64 are the same signed.
        unsafe { Self::dot_signed(acc, codes, x) }
    }

    #[inline(always)]
    unsafe fn dot_signed(acc: [int32x4_t; 4], codes: [uint8x16_t; 4], x: i32) -> [int32x4_t; 4] {
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x));
            let [a0, a1, a2, a3] = acc;
            let [c0, c1, c2, c3] = codes;
            let dot = |a, c| Self::dot4(a, vreinterpretq_s8_u8(c), x);
            [dot(a0, c0), dot(a1, c1), dot(a2, c2), dot(a3, c3)]
        }
    }

    #[inline(always)]
    unsafe fn splat(x: i32) -> [int32x4_t; 4] {
        unsafe { [vdupq_n_s32(x); 4] }
    }

    #[inline(always)]
    unsafe fn scales(p: *const i8) -> [int32x4_t; 4] {
        unsafe {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            [
                vmovl_s16(vget_low_s16(low)),
                vmovl_s16(vget_high_s16(low)),
                vmovl_s16(vget_low_s16(high)),
                vmovl_s16(vget_high_s16(high)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn mul_add(acc: [int32x4_t; 4], a: [int32x4_t; 4], b: [int32x4_t; 4]) -> [int32x4_t; 4] {
        unsafe {
            [
                vmlaq_s32(acc[0], a[0], b[0]),
                vmlaq_s32(acc[1], a[1], b[1]),
                vmlaq_s32(acc[2], a[2], b[2]),
                vmlaq_s32(acc[3], a[3], b[3]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn add_mins(acc: [int32x4_t; 4], p: *const u8, sums: i32) -> [int32x4_t; 4] {
        unsafe {
            // The even bytes are the first mins, the odd ones the second.
            let pairs = vld2q_u8(p);
            let (first, second) = (sums as i16, (sums >> 16) as i16);
            let wide = |b: uint8x16_t| {
                let low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(b)));
                let high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(b)));
                [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)]
            };
            let (a, b) = (wide(pairs.0), wide(pairs.1));
            let one = |i: usize| vmlal_n_s16(vmlal_n_s16(acc[i], a[i], first), b[i], second);
            [one(0), one(1), one(2), one(3)]
        }
    }

    #[inline(always)]
    unsafe fn zeros() -> [float32x4_t; 4] {
        unsafe { [vdupq_n_f32(0.0); 4] }
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> [float32x4_t; 4] {
        // Once a block: not worth the half-precision intrinsics, which stable does not have.
        let mut values = [0f32; 16];
        for (i, v) in values.iter_mut().enumerate() {
            let bytes = unsafe { [*p.add(2 * i), *p.add(2 * i + 1)] };
            *v = half::f16::from_le_bytes(bytes).to_f32();
        }
        let v = values.as_ptr();
        unsafe { [vld1q_f32(v), vld1q_f32(v.add(4)), vld1q_f32(v.add(8)), vld1q_f32(v.add(12))] }
    }

    #[inline(always)]
    unsafe fn add_scaled(
        acc: [float32x4_t; 4],
        dx: f32,
        d: [float32x4_t; 4],
        sum: [int32x4_t; 4],
    ) -> [float32x4_t; 4] {
        unsafe {
            let one = |i: usize| vfmaq_f32(acc[i], vmulq_n_f32(d[i], dx), vcvtq_f32_s32(sum[i]));
            [one(0), one(1), one(2), one(3)]
        }
    }

    #[inline(always)]
    unsafe fn store(acc: [float32x4_t; 4], y: *mut f32) {
        for (i, acc) in acc.into_iter().enumerate() {
            unsafe { vst1q_f32(y.add(4 * i), acc) };
        }
    }
}
