//! A vector is two registers of eight lanes.

use std::arch::x86_64::*;

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

type V = [__m256; 2];

// SAFETY of the unsafe blocks: instructions and reach of pointers are the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks, reason = "said once above")]
#[allow(
    unused_unsafe,
    reason = "register intrinsics are safe where the feature is on, which a generic body cannot show"
)]
impl Simd for Avx2 {
    type V = V;
    #[inline(always)]
    unsafe fn ask_for(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> V {
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> V {
        unsafe {
            let half = |p: *const u16| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            [half(p), half(p.add(8))]
        }
    }
    #[inline(always)]
    unsafe fn load_f8(p: *const u8) -> V {
        // E4M3 shifted into f16 is too small by 2^8, exactly, subnormals included; only its NaN (480) is no number.
        unsafe {
            let half = |p: *const u8| {
                let b = _mm_cvtepu8_epi16(_mm_loadl_epi64(p.cast()));
                let sign = _mm_slli_epi16::<8>(_mm_and_si128(b, _mm_set1_epi16(0x80)));
                let rest = _mm_slli_epi16::<7>(_mm_and_si128(b, _mm_set1_epi16(0x7f)));
                let x = _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, rest)), _mm256_set1_ps(256.0));
                let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
                _mm256_or_ps(x, _mm256_cmp_ps::<_CMP_EQ_OQ>(magnitude, _mm256_set1_ps(480.0)))
            };
            [half(p), half(p.add(8))]
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: V) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn zero_below(x: V, limit: V, v: V) -> V {
        unsafe {
            let half = |x, limit, v| _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, limit), v);
            [half(x[0], limit[0], v[0]), half(x[1], limit[1], v[1])]
        }
    }
    #[inline(always)]
    unsafe fn round(a: V) -> V {
        const EVEN: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { [_mm256_round_ps::<EVEN>(a[0]), _mm256_round_ps::<EVEN>(a[1])] }
    }
    #[inline(always)]
    unsafe fn pow2(n: V) -> V {
        unsafe {
            let half = |n| {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            };
            [half(n[0]), half(n[1])]
        }
    }
    #[inline(always)]
    unsafe fn sum(a: V) -> f32 {
        unsafe {
            let b = _mm256_add_ps(a[0], a[1]);
            let c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps::<1>(b));
            let d = _mm_add_ps(c, _mm_movehl_ps(c, c));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps::<1>(d, d)))
        }
    }
    #[inline(always)]
    unsafe fn fold_max(a: V) -> f32 {
        unsafe {
            let b = _mm256_max_ps(a[0], a[1]);
            let c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps::<1>(b));
            let d = _mm_max_ps(c, _mm_movehl_ps(c, c));
            _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps::<1>(d, d)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [V; 16]) -> [V; 16] {
        unsafe {
            let quarter =
                |row0: usize, half: usize| transpose8(std::array::from_fn(|i| rows[row0 + i][half]));
            let [a, b, c, d] = [quarter(0, 0), quarter(8, 0), quarter(0, 1), quarter(8, 1)];
            std::array::from_fn(|i| if i < 8 { [a[i], b[i]] } else { [c[i - 8], d[i - 8]] })
        }
    }
}

/// Lane i of vector j to lane j of vector i.
#[inline(always)]
#[allow(unused_unsafe, reason = "as above")]
pub(super) unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: registers only; AVX is the caller's promise.
    unsafe {
        // Pairs of rows, then fours of rows within halves of a register, then the halves.
        let low: [__m256; 4] = std::array::from_fn(|i| _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]));
        let high: [__m256; 4] = std::array::from_fn(|i| _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]));
        let fours = |a, b| [_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b)];
        let [a, b] = [fours(low[0], low[1]), fours(high[0], high[1])];
        let [c, d] = [fours(low[2], low[3]), fours(high[2], high[3])];
        let (top, bottom) = ([a[0], a[1], b[0], b[1]], [c[0], c[1], d[0], d[1]]);
        std::array::from_fn(|i| match i {
            0..4 => _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]),
            _ => _mm256_permute2f128_ps::<0x31>(top[i - 4], bottom[i - 4]),
        })
    }
}
