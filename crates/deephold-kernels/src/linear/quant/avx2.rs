//! AVX2: unsigned codes against signed activations by `maddubs`, 16-bit sums as long as they are exact.
//!
//! `maddubs` adds two products u8 * i8 in 16 bits and saturates; with codes <= 63 and |q| <= 127 a pair is at most
//! 16002, so it never does. A lane's 16-bit sum over one group is at most
//! - 4-bit codes (`Block256Int4Min`, `Block32Int4`): 16 products of 15 * 127: 30480;
//! - 6-bit codes (`Block256Int6`): 8 products of (code - 32) * q, at most 8 * 32 * 127 = 32512. The sum starts at -32
//!   times the activations (`center`); steps in between may wrap, the end is exact because it is in range;
//! - `Block256Int6Min`: 8 products of 31 * 127: 31496, because its formats have 5-bit codes at most.
//!
//! One `madd` then multiplies by the group's scale (twice in a lane) and adds the halves in 32 bits: at most
//! 8 * 2 * 30480 * 63 with 4-bit codes and 16 * 2 * 32512 * 128 with 6-bit ones, below 2^31. `Block32Int8` has signed
//! codes: their absolute values, at most 128, are multiplied by activations that take the codes' signs. A pair is at most
//! 2 * 128 * 127 = 32512, so nothing saturates; two pairs would, and each goes into 32 bits by a `madd` with ones.

use std::arch::x86_64::*;
use std::mem::offset_of;

use super::layout::{
    Block32Int4, Block32Int8, Block32Int8Min, Block256Int4Min, Block256Int6, Block256Int6Min,
};
use super::{Layout, PANEL, QuantizedActivations};

/// Bytes ahead of the current line that are asked for where blocks are small; the hardware's own prefetch stops at page ends.
/// Where they are large, it is the same line of the next block, so that none is left out.
const AHEAD: usize = 2048;
/// The same for 8-bit codes, with which half as far is faster by a twentieth to a tenth (docs/lab.md, 2026-11-28).
const AHEAD_8BIT: usize = 1024;

/// y[i] = the panel's 16 outputs for activation row `rows[i]`; 4, 2 or 1 rows. `fetch` asks for lines ahead of their use:
/// for the first rows that meet a panel, which then comes from memory.
///
/// # Safety
/// The machine has AVX2, FMA and F16C; `panel` is whole blocks for `act.k`, and `rows` are below `act.rows`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn tile(
    layout: Layout,
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
    fetch: bool,
) {
    debug_assert_eq!(panel.len(), act.k / layout.block_len() * layout.block_bytes());
    // SAFETY: the caller's promise is handed on.
    unsafe {
        match (rows.len(), layout) {
            (4, Layout::Block32Int8) => b8::<4, false>(panel, act, rows, y, fetch),
            (4, Layout::Block32Int8Min) => b8::<4, true>(panel, act, rows, y, fetch),
            (4, Layout::Block32Int4) => b4::<4>(panel, act, rows, y, fetch),
            (4, Layout::Block256Int4Min) => k4::<4, 1>(panel, act, rows, y, fetch),
            (4, Layout::Block256Int6) => k6::<4, 1, false>(panel, act, rows, y, fetch),
            (4, Layout::Block256Int6Min) => k6::<4, 1, true>(panel, act, rows, y, fetch),
            (2, Layout::Block32Int8) => b8::<2, false>(panel, act, rows, y, fetch),
            (2, Layout::Block32Int8Min) => b8::<2, true>(panel, act, rows, y, fetch),
            (2, Layout::Block32Int4) => b4::<2>(panel, act, rows, y, fetch),
            (2, Layout::Block256Int4Min) => k4::<2, 2>(panel, act, rows, y, fetch),
            (2, Layout::Block256Int6) => k6::<2, 2, false>(panel, act, rows, y, fetch),
            (2, Layout::Block256Int6Min) => k6::<2, 2, true>(panel, act, rows, y, fetch),
            (_, Layout::Block32Int8) => b8::<1, false>(panel, act, rows, y, fetch),
            (_, Layout::Block32Int8Min) => b8::<1, true>(panel, act, rows, y, fetch),
            (_, Layout::Block32Int4) => b4::<1>(panel, act, rows, y, fetch),
            (_, Layout::Block256Int4Min) => k4::<1, 2>(panel, act, rows, y, fetch),
            (_, Layout::Block256Int6) => k6::<1, 2, false>(panel, act, rows, y, fetch),
            (_, Layout::Block256Int6Min) => k6::<1, 2, true>(panel, act, rows, y, fetch),
        }
    }
}

/// Four bytes in every lane.
#[inline(always)]
pub(super) unsafe fn quad<E>(p: *const E) -> __m256i {
    // SAFETY: the caller points at 4 readable bytes; AVX2 is the kernels' own promise.
    unsafe { _mm256_set1_epi32(p.cast::<i32>().read_unaligned()) }
}

/// The same sum, which the compiler has to finish here: no load and no other such sum is moved across. Otherwise it takes the
/// broadcasts of many lines before their use, far more than there are registers, and puts them all on the stack.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn finished(mut sum: __m256i) -> __m256i {
    // SAFETY: nothing is executed.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) sum, options(nostack, preserves_flags)) };
    sum
}

#[inline(always)]
pub(super) unsafe fn load(p: *const u8) -> __m256i {
    // SAFETY: the caller points at 32 readable bytes.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

/// Eight f16.
#[inline(always)]
pub(super) unsafe fn halves(p: *const u8) -> __m256 {
    // SAFETY: the caller points at 16 readable bytes.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
}

#[inline(always)]
unsafe fn ask_for(p: *const u8, ahead: usize) {
    // SAFETY: a prefetch touches nothing; the address may be anywhere.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(p.wrapping_add(ahead).cast()) }
}

/// acc + f32(sum) * (dx * d)
#[inline(always)]
pub(super) unsafe fn add_scaled(acc: __m256, dx: f32, d: __m256, sum: __m256i) -> __m256 {
    // SAFETY: arithmetic on registers only.
    unsafe { _mm256_fmadd_ps(_mm256_mul_ps(_mm256_set1_ps(dx), d), _mm256_cvtepi32_ps(sum), acc) }
}

#[inline(always)]
pub(super) unsafe fn store<const T: usize>(acc: [[__m256; 2]; T], y: &mut [[f32; PANEL]]) {
    for (acc, y) in acc.iter().zip(y) {
        // SAFETY: a row of `y` is 16 f32.
        unsafe {
            _mm256_storeu_ps(y.as_mut_ptr(), acc[0]);
            _mm256_storeu_ps(y.as_mut_ptr().add(8), acc[1]);
        }
    }
}

/// Per tile row: pointer to the row's part of an array with `per_row` elements a row.
#[inline(always)]
pub(super) fn row_ptrs<const T: usize, E>(array: &[E], per_row: usize, rows: &[usize]) -> [*const E; T] {
    std::array::from_fn(|t| array[rows[t] * per_row..][..per_row].as_ptr())
}

/// Adds the products of `H` half lines with four activations each to sums of 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_products<const H: usize>(part: &mut [__m256i; H], codes: &[__m256i; H], x: __m256i) {
    for (part, codes) in part.iter_mut().zip(codes) {
        *part = _mm256_add_epi16(*part, _mm256_maddubs_epi16(*codes, x));
    }
}

/// `H` halves of a panel at once: both where there are registers for them, so that activations are read once for both.
///
/// # Safety
/// As [`tile`].
#[allow(clippy::needless_range_loop, reason = "a row and a half of a panel index several arrays")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn k4<const T: usize, const H: usize>(
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
    fetch: bool,
) {
    let blocks = act.k / 256;
    let q = row_ptrs::<T, _>(&act.q, act.k, rows);
    let sums = row_ptrs::<T, _>(&act.sums32, act.k / 32, rows);
    let dx = row_ptrs::<T, _>(&act.d, blocks, rows);
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    let low = _mm256_set1_epi8(15);
    // Scales as two equal words in each lane.
    let twice = _mm256_setr_epi8(
        0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4, -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7,
        -1, 7, -1,
    );
    for b in 0..blocks {
        // SAFETY: all offsets stay within block b of the panel and of the rows (256 codes).
        unsafe {
            let p = panel.as_ptr().add(b * size_of::<Block256Int4Min>());
            for h0 in (0..2).step_by(H) {
                let mut sum = [[_mm256_setzero_si256(); H]; T];
                for g in 0..8 {
                    let mut part = [[_mm256_setzero_si256(); H]; T];
                    for l in 0..4 {
                        let line = p.add((g * 4 + l) * 64 + h0 * 32);
                        if fetch && (H == 2 || l % 2 == h0) {
                            ask_for(line, size_of::<Block256Int4Min>());
                        }
                        let (mut first, mut second) = ([low; H], [low; H]);
                        for h in 0..H {
                            let codes = load(line.add(h * 32));
                            first[h] = _mm256_and_si256(codes, low);
                            second[h] = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
                        }
                        for t in 0..T {
                            let x = q[t].add(b * 256 + g * 32 + l * 8);
                            add_products(&mut part[t], &first, quad(x));
                            add_products(&mut part[t], &second, quad(x.add(4)));
                            part[t] = part[t].map(|sum| finished(sum));
                        }
                    }
                    for h in 0..H {
                        let scales = p
                            .add(offset_of!(Block256Int4Min, scales) + g * PANEL + (h0 + h) * 8)
                            .cast::<i64>();
                        let scale = _mm256_shuffle_epi8(_mm256_set1_epi64x(scales.read_unaligned()), twice);
                        for t in 0..T {
                            sum[t][h] = _mm256_add_epi32(sum[t][h], _mm256_madd_epi16(part[t][h], scale));
                        }
                    }
                }
                if fetch && h0 + H == 2 {
                    for line in
                        (offset_of!(Block256Int4Min, scales)..size_of::<Block256Int4Min>()).step_by(64)
                    {
                        ask_for(p.add(line), size_of::<Block256Int4Min>());
                    }
                }
                let mut min_sum = [[_mm256_setzero_si256(); H]; T];
                for pair in 0..4 {
                    for h in 0..H {
                        let mins =
                            p.add(offset_of!(Block256Int4Min, mins) + pair * 2 * PANEL + (h0 + h) * 16);
                        let min = _mm256_cvtepu8_epi16(_mm_loadu_si128(mins.cast()));
                        for t in 0..T {
                            let x = quad(sums[t].add(b * 8 + pair * 2));
                            min_sum[t][h] = _mm256_add_epi32(min_sum[t][h], _mm256_madd_epi16(min, x));
                        }
                    }
                }
                for h in 0..H {
                    let (d, dmin) = (
                        halves(p.add(offset_of!(Block256Int4Min, d) + (h0 + h) * 16)),
                        halves(p.add(offset_of!(Block256Int4Min, dmin) + (h0 + h) * 16)),
                    );
                    for t in 0..T {
                        let (dx, acc) = (*dx[t].add(b), &mut acc[t][h0 + h]);
                        *acc = add_scaled(*acc, dx, d, sum[t][h]);
                        *acc = add_scaled(*acc, -dx, dmin, min_sum[t][h]);
                    }
                }
            }
        }
    }
    // SAFETY: `y` has T rows.
    unsafe { store(acc, y) }
}

/// Three half lines of six bits and two: four of six bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn six_bits(lines: [__m256i; 3]) -> [__m256i; 4] {
    let low = _mm256_set1_epi8(63);
    let [a, b, c] = lines.map(|line| _mm256_andnot_si256(low, line));
    let bc = _mm256_or_si256(_mm256_srli_epi16::<2>(c), b);
    let abc = _mm256_or_si256(_mm256_srli_epi16::<2>(bc), a);
    let [first, second, third] = lines.map(|line| _mm256_and_si256(low, line));
    [first, second, third, _mm256_srli_epi16::<2>(abc)]
}

/// `H` as in [`k4`].
///
/// # Safety
/// As [`tile`].
#[allow(clippy::needless_range_loop, reason = "a row and a half of a panel index several arrays")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn k6<const T: usize, const H: usize, const MINS: bool>(
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
    fetch: bool,
) {
    let blocks = act.k / 256;
    let block_bytes = if MINS { size_of::<Block256Int6Min>() } else { size_of::<Block256Int6>() };
    let q = row_ptrs::<T, _>(&act.q, act.k, rows);
    let center = row_ptrs::<T, _>(&act.center, act.k / 8, rows);
    let sums = row_ptrs::<T, _>(&act.sums16, act.k / 16, rows);
    let dx = row_ptrs::<T, _>(&act.d, blocks, rows);
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    for b in 0..blocks {
        // SAFETY: all offsets stay within block b of the panel (`block_bytes`) and of the rows (256 codes).
        unsafe {
            let p = panel.as_ptr().add(b * block_bytes);
            for h0 in (0..2).step_by(H) {
                let mut sum = [[_mm256_setzero_si256(); H]; T];
                for g in 0..16 {
                    let lines = p.add(g * 192 + h0 * 32);
                    if fetch && (H == 2 || g % 2 == h0) {
                        for line in [0, 64, 128] {
                            ask_for(lines.add(line), block_bytes);
                        }
                    }
                    let mut codes = [[_mm256_setzero_si256(); H]; 4];
                    let mut scale = [_mm256_setzero_si256(); H];
                    for h in 0..H {
                        let half = lines.add(h * 32);
                        for (codes, quad) in codes.iter_mut().zip(six_bits([
                            load(half),
                            load(half.add(64)),
                            load(half.add(128)),
                        ])) {
                            codes[h] = quad;
                        }
                        let scales = p.add(offset_of!(Block256Int6, scales) + g * PANEL + (h0 + h) * 8);
                        let scales = _mm_loadl_epi64(scales.cast());
                        scale[h] = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(scales, scales));
                    }
                    let mut part = [[_mm256_setzero_si256(); H]; T];
                    if !MINS {
                        for t in 0..T {
                            part[t] = [quad(center[t].add(b * 32 + g * 2)); H];
                        }
                    }
                    for (i, codes) in codes.iter().enumerate() {
                        for t in 0..T {
                            add_products(&mut part[t], codes, quad(q[t].add(b * 256 + g * 16 + i * 4)));
                            part[t] = part[t].map(|sum| finished(sum));
                        }
                    }
                    for t in 0..T {
                        for h in 0..H {
                            sum[t][h] = _mm256_add_epi32(sum[t][h], _mm256_madd_epi16(part[t][h], scale[h]));
                        }
                    }
                }
                if fetch && h0 + H == 2 {
                    for line in (offset_of!(Block256Int6, scales)..block_bytes).step_by(64) {
                        ask_for(p.add(line), block_bytes);
                    }
                }
                for h in 0..H {
                    let d = halves(p.add(offset_of!(Block256Int6, d) + (h0 + h) * 16));
                    for t in 0..T {
                        acc[t][h0 + h] = add_scaled(acc[t][h0 + h], *dx[t].add(b), d, sum[t][h]);
                    }
                    if MINS {
                        let mut min_sum = [_mm256_setzero_si256(); T];
                        for pair in 0..8 {
                            let mins =
                                p.add(offset_of!(Block256Int6Min, mins) + pair * 2 * PANEL + (h0 + h) * 16);
                            let min = _mm256_cvtepu8_epi16(_mm_loadu_si128(mins.cast()));
                            for t in 0..T {
                                let x = quad(sums[t].add(b * 16 + pair * 2));
                                min_sum[t] = _mm256_add_epi32(min_sum[t], _mm256_madd_epi16(min, x));
                            }
                        }
                        let dmin = halves(p.add(offset_of!(Block256Int6Min, dmin) + (h0 + h) * 16));
                        for t in 0..T {
                            acc[t][h0 + h] = add_scaled(acc[t][h0 + h], -*dx[t].add(b), dmin, min_sum[t]);
                        }
                    }
                }
            }
        }
    }
    // SAFETY: `y` has T rows.
    unsafe { store(acc, y) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn b4<const T: usize>(
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
    fetch: bool,
) {
    let blocks = act.k / 32;
    let q = row_ptrs::<T, _>(&act.q, act.k, rows);
    let sums = row_ptrs::<T, _>(&act.sums32, blocks, rows);
    let dx = row_ptrs::<T, _>(&act.d, blocks, rows);
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    let (low, one) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    for b in 0..blocks {
        // SAFETY: all offsets stay within block b of the panel and of the rows (32 codes).
        unsafe {
            let p = panel.as_ptr().add(b * size_of::<Block32Int4>());
            #[allow(clippy::needless_range_loop, reason = "two halves of a panel")]
            for h in 0..2 {
                let mut part = [_mm256_setzero_si256(); T];
                for l in 0..4 {
                    let line = p.add(l * 64 + h * 32);
                    if fetch && h == 0 {
                        ask_for(line, AHEAD);
                    }
                    let codes = load(line);
                    let first = _mm256_and_si256(codes, low);
                    let second = _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low);
                    for t in 0..T {
                        let x = q[t].add(b * 32 + l * 8);
                        part[t] = _mm256_add_epi16(part[t], _mm256_maddubs_epi16(first, quad(x)));
                        part[t] = _mm256_add_epi16(part[t], _mm256_maddubs_epi16(second, quad(x.add(4))));
                        part[t] = finished(part[t]);
                    }
                }
                let d = halves(p.add(offset_of!(Block32Int4, d) + h * 16));
                for t in 0..T {
                    let offset = _mm256_set1_epi32(8 * i32::from(*sums[t].add(b)));
                    let sum = _mm256_sub_epi32(_mm256_madd_epi16(part[t], one), offset);
                    acc[t][h] = add_scaled(acc[t][h], *dx[t].add(b), d, sum);
                }
            }
        }
    }
    // SAFETY: `y` has T rows.
    unsafe { store(acc, y) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn b8<const T: usize, const MINS: bool>(
    panel: &[u8],
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
    fetch: bool,
) {
    let blocks = act.k / 32;
    let block_bytes = if MINS { size_of::<Block32Int8Min>() } else { size_of::<Block32Int8>() };
    let sums = row_ptrs::<T, _>(&act.sums32, blocks, rows);
    let q = row_ptrs::<T, _>(&act.q, act.k, rows);
    let dx = row_ptrs::<T, _>(&act.d, blocks, rows);
    let mut acc = [[_mm256_setzero_ps(); 2]; T];
    let one = _mm256_set1_epi16(1);
    for b in 0..blocks {
        // SAFETY: all offsets stay within block b of the panel (`block_bytes`) and of the rows (32 codes).
        unsafe {
            let p = panel.as_ptr().add(b * block_bytes);
            #[allow(clippy::needless_range_loop, reason = "two halves of a panel")]
            for h in 0..2 {
                let mut sum = [_mm256_setzero_si256(); T];
                for l in 0..8 {
                    let line = p.add(l * 64 + h * 32);
                    if fetch && h == 0 {
                        ask_for(line, AHEAD_8BIT);
                    }
                    let codes = load(line);
                    let size = _mm256_abs_epi8(codes);
                    for t in 0..T {
                        let x = _mm256_sign_epi8(quad(q[t].add(b * 32 + l * 4)), codes);
                        let pairs = _mm256_maddubs_epi16(size, x);
                        sum[t] = finished(_mm256_add_epi32(sum[t], _mm256_madd_epi16(pairs, one)));
                    }
                }
                let d = halves(p.add(offset_of!(Block32Int8, d) + h * 16));
                for t in 0..T {
                    acc[t][h] = add_scaled(acc[t][h], *dx[t].add(b), d, sum[t]);
                }
                if MINS {
                    let dmin = halves(p.add(offset_of!(Block32Int8Min, dmin) + h * 16));
                    for t in 0..T {
                        let sum = _mm256_set1_epi32(i32::from(*sums[t].add(b)));
                        acc[t][h] = add_scaled(acc[t][h], -*dx[t].add(b), dmin, sum);
                    }
                }
            }
        }
    }
    // SAFETY: `y` has T rows.
    unsafe { store(acc, y) }
}
