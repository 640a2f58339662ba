//! AVX-VNNI, for processors that have `vpdpbusd` but no AVX-512: a line is two registers, each with eight rows.
//!
//! As in `avx512.rs`, signed codes go in with their top bit flipped, which is 128 more.

use super::wide::{self, Wide};
use super::x86::*;
use super::{Layout, PANEL, QuantizedActivations};

/// As [`wide::tile`].
///
/// # Safety
/// The machine has the features named; otherwise as [`wide::tile`].
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
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

/// What `f` makes of both halves.
#[inline(always)]
fn both<T>(f: impl Fn(usize) -> T) -> [T; 2] {
    [f(0), f(1)]
}

// SAFETY of the unsafe blocks: the features are the caller's promise to every function of the trait, and so are the bytes
// behind its pointers.
#[allow(clippy::undocumented_unsafe_blocks, reason = "one contract for all, above")]
impl Wide for Vnni {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];

    const SIGNED_OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn ask_for(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load(p: *const u8) -> [__m256i; 2] {
        both(|h| unsafe { _mm256_loadu_si256(p.cast::<__m256i>().add(h)) })
    }

    #[inline(always)]
    unsafe fn low(b: [__m256i; 2]) -> [__m256i; 2] {
        both(|h| unsafe { _mm256_and_si256(b[h], _mm256_set1_epi8(15)) })
    }

    #[inline(always)]
    unsafe fn high(b: [__m256i; 2]) -> [__m256i; 2] {
        both(|h| unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(b[h]), _mm256_set1_epi8(15)) })
    }

    #[inline(always)]
    unsafe fn six_bits(lines: [[__m256i; 2]; 3]) -> [[__m256i; 2]; 4] {
        unsafe {
            let low = _mm256_set1_epi8(63);
            let codes = lines.map(|line| both(|h| _mm256_and_si256(line[h], low)));
            // The high two bits of each byte, two places lower: a shift of words, from which nothing crosses into a neighbour.
            let down =
                |line: [__m256i; 2], h: usize| _mm256_srli_epi16::<2>(_mm256_andnot_si256(low, line[h]));
            let last = both(|h| {
                let last_two = _mm256_or_si256(down(lines[1], h), _mm256_srli_epi16::<2>(down(lines[2], h)));
                _mm256_or_si256(down(lines[0], h), _mm256_srli_epi16::<2>(last_two))
            });
            [codes[0], codes[1], codes[2], last]
        }
    }

    #[inline(always)]
    unsafe fn dot(acc: [__m256i; 2], codes: [__m256i; 2], x: i32) -> [__m256i; 2] {
        unsafe {
            let x = _mm256_set1_epi32(x);
            both(|h| _mm256_dpbusd_avx_epi32(acc[h], codes[h], x))
        }
    }

    #[inline(always)]
    unsafe fn dot_signed(acc: [__m256i; 2], codes: [__m256i; 2], x: i32) -> [__m256i; 2] {
        unsafe {
            let shifted = both(|h| _mm256_xor_si256(codes[h], _mm256_set1_epi8(-128)));
            Self::dot(acc, shifted, x)
        }
    }

    #[inline(always)]
    unsafe fn splat(x: i32) -> [__m256i; 2] {
        both(|_| unsafe { _mm256_set1_epi32(x) })
    }

    #[inline(always)]
    unsafe fn scales(p: *const i8) -> [__m256i; 2] {
        both(|h| unsafe { _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * h).cast())) })
    }

    #[inline(always)]
    unsafe fn mul_add(acc: [__m256i; 2], a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        both(|h| unsafe { _mm256_add_epi32(acc[h], _mm256_mullo_epi32(a[h], b[h])) })
    }

    #[inline(always)]
    unsafe fn add_mins(acc: [__m256i; 2], p: *const u8, sums: i32) -> [__m256i; 2] {
        unsafe {
            let sums = _mm256_set1_epi32(sums);
            both(|h| {
                let mins = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast::<__m128i>().add(h)));
                _mm256_add_epi32(acc[h], _mm256_madd_epi16(mins, sums))
            })
        }
    }

    #[inline(always)]
    unsafe fn zeros() -> [__m256; 2] {
        both(|_| unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn halves(p: *const u8) -> [__m256; 2] {
        both(|h| unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast::<__m128i>().add(h))) })
    }

    #[inline(always)]
    unsafe fn add_scaled(acc: [__m256; 2], dx: f32, d: [__m256; 2], sum: [__m256i; 2]) -> [__m256; 2] {
        both(|h| unsafe {
            let scale = _mm256_mul_ps(_mm256_set1_ps(dx), d[h]);
            _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum[h]), acc[h])
        })
    }

    #[inline(always)]
    unsafe fn store(acc: [__m256; 2], y: *mut f32) {
        for (h, acc) in acc.into_iter().enumerate() {
            unsafe { _mm256_storeu_ps(y.add(8 * h), acc) }
        }
    }
}
