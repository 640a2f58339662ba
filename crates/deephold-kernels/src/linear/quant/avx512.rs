//! AVX-512 with VNNI: a line is one register, `vpdpbusd` multiplies and adds it to 16 sums in one instruction.
//!
//! It multiplies u8 by i8 without saturating. Signed codes go in with their top bit flipped, which is 128 more.

use super::wide::{self, Wide};
use super::x86::*;
use super::{Layout, PANEL, QuantizedActivations};

/// As [`wide::tile`].
///
/// # Safety
/// The machine has the features named; otherwise as [`wide::tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn tile(
    layout: Layout,
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
    fetch: bool,
) {
    // SAFETY: the caller's promise is handed on.
    unsafe { wide::tile::<Vnni>(layout, panel, act, rows, y, fetch) }
}

pub(crate) struct Vnni;

/// Of each lane the low words of both, the first's below.
#[inline(always)]
unsafe fn words(lanes: [__m512i; 2]) -> __m512i {
    // SAFETY: the features are the caller's promise.
    unsafe {
        let above = _mm512_slli_epi32::<16>(lanes[1]);
        _mm512_ternarylogic_epi32::<0xf8>(above, lanes[0], _mm512_set1_epi32(0xffff))
    }
}

// SAFETY of the unsafe blocks: the features are the caller's promise to every function of the trait, and so are the bytes
// behind its pointers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]
impl Wide for Vnni {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    const SIGNED_OFFSET: i32 = 128;
    const PAIRS: bool = true;

    #[inline(always)]
    unsafe fn ask_for(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn low(b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(b, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high(b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn six_bits(lines: [__m512i; 3]) -> [__m512i; 4] {
        unsafe {
            let low = _mm512_set1_epi8(63);
            // The high two bits of `b` above the high six of `c`.
            let above = |b, c| _mm512_ternarylogic_epi32::<0xd8>(b, _mm512_srli_epi16::<2>(c), low);
            let [a, b, c] = lines;
            let last = _mm512_and_si512(_mm512_srli_epi16::<2>(above(a, above(b, c))), low);
            [_mm512_and_si512(a, low), _mm512_and_si512(b, low), _mm512_and_si512(c, low), last]
        }
    }

    #[inline(always)]
    unsafe fn dot(acc: __m512i, codes: __m512i, x: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, codes, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    unsafe fn dot_signed(acc: __m512i, codes: __m512i, x: i32) -> __m512i {
        unsafe { Self::dot(acc, _mm512_xor_si512(codes, _mm512_set1_epi8(-128)), x) }
    }

    #[inline(always)]
    unsafe fn splat(x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn scales(p: *const i8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn mul_add(acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(acc, _mm512_mullo_epi32(a, b)) }
    }

    #[inline(always)]
    unsafe fn mul_add_pair(acc: __m512i, parts: [__m512i; 2], scales: *const i8) -> __m512i {
        unsafe {
            let scales = words([Self::scales(scales), Self::scales(scales.add(PANEL))]);
            _mm512_dpwssd_epi32(acc, words(parts), scales)
        }
    }

    #[inline(always)]
    unsafe fn add_mins(acc: __m512i, p: *const u8, sums: i32) -> __m512i {
        unsafe {
            let mins = _mm512_cvtepu8_epi16(_mm256_loadu_si256(p.cast()));
            _mm512_dpwssd_epi32(acc, mins, _mm512_set1_epi32(sums))
        }
    }

    #[inline(always)]
    unsafe fn zeros() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn add_scaled(acc: __m512, dx: f32, d: __m512, sum: __m512i) -> __m512 {
        unsafe { _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(dx), d), _mm512_cvtepi32_ps(sum), acc) }
    }

    #[inline(always)]
    unsafe fn store(acc: __m512, y: *mut f32) {
        unsafe { _mm512_storeu_ps(y, acc) }
    }
}
