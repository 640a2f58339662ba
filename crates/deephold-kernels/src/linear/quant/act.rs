//! Activations as int8: `x ~ d * q`, d shared by 32 or 256 elements, q in -127..=127.

use crate::{Isa, ThreadPool};

/// Rows from which on AVX2 multiplies 8-bit codes as words; below, making words of a panel's costs more than it saves (docs/lab.md,
/// 2026-12-01).
pub(super) const WORDS_FROM: usize = 48;

/// Up to this sum of 16 magnitudes the products with codes of 6 bits less 32 fit 16 bits (32 * 1023 = 32736), those with codes up
/// to 31 as well, and those of 32 columns with codes of 4 bits (15 * 2 * 1023).
const NARROW: u16 = 1023;

/// How many elements share a scale.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum ActivationBlocks {
    /// 32, for layouts of 32-element blocks.
    Of32,
    /// 256, for layouts of 256-element blocks.
    Of256,
}

/// Rounded activations [rows, k] with the sums that kernels need.
pub(crate) struct QuantizedActivations {
    /// Whose products these are for.
    pub(super) isa: Isa,
    pub(super) kind: ActivationBlocks,
    pub(super) rows: usize,
    pub(super) k: usize,
    /// Scale of each block, [rows, blocks].
    pub(super) d: Vec<f32>,
    /// Codes, [rows, k].
    pub(super) q: Vec<i8>,
    /// Sums of 32 codes, [rows, k / 32].
    pub(super) sums32: Vec<i16>,
    /// K256: sums of 16 codes, [rows, k / 16].
    pub(super) sums16: Vec<i16>,
    /// K256: -32 times the sums over 16 codes, [rows, k / 16, 2]. With AVX2 of the first two, and the last two, of each four; otherwise
    /// of all, as one number of 32 bits, low half first.
    pub(super) center: Vec<i16>,
    /// K256: whether no 16 codes' magnitudes add up to more than [`NARROW`], [rows, k / 256].
    pub(super) narrow: Vec<bool>,
    /// K32, with AVX2 and many rows: the codes as words, of each four the first, the third, the second and the fourth, [rows, k].
    pub(super) words: Vec<i16>,
}

/// One row's part of every array.
struct RowOut<'a> {
    d: &'a mut [f32],
    q: &'a mut [i8],
    sums32: &'a mut [i16],
    sums16: &'a mut [i16],
    center: &'a mut [i16],
    narrow: &'a mut [bool],
    words: &'a mut [i16],
}

impl QuantizedActivations {
    /// Rounds `x`, [rows, k]; a block with NaN or an infinity gets the scale NaN, so that its products are NaN.
    pub(crate) fn new(
        pool: &ThreadPool,
        isa: Isa,
        kind: ActivationBlocks,
        x: &[f32],
        rows: usize,
        k: usize,
    ) -> Self {
        assert_eq!(x.len(), rows * k, "activations of another shape");
        let of_32 = kind == ActivationBlocks::Of32;
        let block = if of_32 { 32 } else { 256 };
        assert!(k.is_multiple_of(block), "a row must be whole blocks of {block}");
        let extra = if of_32 { 0 } else { x.len() / 16 };
        let words = if of_32 && isa == Isa::Avx2 && rows >= WORDS_FROM { x.len() } else { 0 };
        let mut act = Self {
            isa,
            kind,
            rows,
            k,
            d: vec![0.0; x.len() / block],
            q: vec![0; x.len()],
            sums32: vec![0; x.len() / 32],
            sums16: vec![0; extra],
            center: vec![0; 2 * extra],
            narrow: vec![false; extra / 16],
            words: vec![0; words],
        };
        if rows == 0 || k == 0 {
            return act;
        }
        // Chunks of rows, each array cut alike; a task locks its own chunk only.
        let chunk = rows.div_ceil(4 * pool.threads());
        let cut = |len: usize| (len / rows * chunk).max(1);
        let mut sums16 = act.sums16.chunks_mut(cut(extra));
        let mut center = act.center.chunks_mut(cut(2 * extra));
        let mut narrow = act.narrow.chunks_mut(cut(extra / 16));
        let mut words = act.words.chunks_mut(cut(words));
        let mut tasks = Vec::new();
        let rest = act.d.chunks_mut(cut(x.len() / block)).zip(act.q.chunks_mut(cut(x.len())));
        for ((d, q), sums32) in rest.zip(act.sums32.chunks_mut(cut(x.len() / 32))) {
            let (sums16, center) = (sums16.next().unwrap_or_default(), center.next().unwrap_or_default());
            let (narrow, words) = (narrow.next().unwrap_or_default(), words.next().unwrap_or_default());
            tasks.push(std::sync::Mutex::new(RowOut { d, q, sums32, sums16, center, narrow, words }));
        }
        pool.run(tasks.len(), &|task, _| {
            let mut out = tasks[task].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let x = &x[task * chunk * k..][..out.q.len()];
            round(isa, block, x, &mut out);
        });
        drop(tasks);
        act
    }
}

fn round(isa: Isa, block: usize, x: &[f32], out: &mut RowOut<'_>) {
    #[cfg(target_arch = "x86_64")]
    if matches!(isa, Isa::Avx2 | Isa::AvxVnni | Isa::Avx512) {
        // SAFETY: `Ops` takes only an available set, and the wider ones include AVX2.
        return unsafe { avx2::round(isa, block, x, out) };
    }
    codes(block, x, out);
    sums(isa, out, 0);
}

/// Scales and codes.
#[inline(always)]
fn codes(block: usize, x: &[f32], out: &mut RowOut<'_>) {
    for (b, (x, q)) in x.chunks_exact(block).zip(out.q.chunks_exact_mut(block)).enumerate() {
        // Magnitudes compare like their bits, and NaN is above infinity.
        let top = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
        let max = f32::from_bits(top);
        // Below this the inverse would overflow; such activations are zero to any later sum.
        let usable = max.is_finite() && max > 1e-35;
        let inv = if usable { 127.0 / max } else { 0.0 };
        out.d[b] = if usable { max / 127.0 } else { max * 0.0 };
        if usable {
            for (q, v) in q.iter_mut().zip(x) {
                // SAFETY: |v * inv| is at most 127 and a little.
                *q = unsafe { (v * inv).round_ties_even().to_int_unchecked::<i32>() } as i8;
            }
        } else {
            q.fill(0);
        }
    }
    for (words, q) in out.words.chunks_exact_mut(4).zip(out.q.chunks_exact(4)) {
        words.copy_from_slice(&[q[0], q[2], q[1], q[3]].map(i16::from));
    }
}

/// What is summed up of the codes from `from` on, a multiple of 256.
#[inline(always)]
fn sums(isa: Isa, out: &mut RowOut<'_>, from: usize) {
    let q = &out.q[from..];
    for (s, q) in out.sums32[from / 32..].iter_mut().zip(q.chunks_exact(32)) {
        *s = q.iter().map(|&v| i16::from(v)).sum();
    }
    if out.narrow.is_empty() {
        return;
    }
    for (narrow, q) in out.narrow[from / 256..].iter_mut().zip(q.chunks_exact(256)) {
        let sums = q.chunks_exact(16).map(|q| q.iter().map(|q| u16::from(q.unsigned_abs())).sum());
        *narrow = sums.fold(0, u16::max) <= NARROW;
    }
    let groups = out.sums16[from / 16..].iter_mut().zip(out.center[from / 8..].chunks_exact_mut(2));
    for ((s, center), q) in groups.zip(q.chunks_exact(16)) {
        let (mut first, mut last) = (0i16, 0i16);
        for q in q.chunks_exact(4) {
            first += i16::from(q[0]) + i16::from(q[1]);
            last += i16::from(q[2]) + i16::from(q[3]);
        }
        *s = first + last;
        // Each at most 32 * 8 * 127 = 32512 in magnitude.
        let (first, last) = (-32 * first, -32 * last);
        let all = i32::from(first) + i32::from(last);
        (center[0], center[1]) =
            if isa == Isa::Avx2 { (first, last) } else { (all as i16, (all >> 16) as i16) };
    }
}

/// The same with AVX2: the compiler makes vectors of [`codes`], with the same bits, but gathers bytes one by one for the sums.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Isa, NARROW, RowOut};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn round(isa: Isa, block: usize, x: &[f32], out: &mut RowOut<'_>) {
        super::codes(block, x, out);
        let whole = out.q.len() / 256;
        for b in 0..whole {
            sums(isa, out, b);
        }
        super::sums(isa, out, whole * 256);
    }

    /// [`super::sums`] of 256 codes, the block `b` of that many.
    #[target_feature(enable = "avx2")]
    fn sums(isa: Isa, out: &mut RowOut<'_>, b: usize) {
        let q = out.q[b * 256..][..256].as_ptr().cast::<__m256i>();
        // SAFETY: eight times 32 codes.
        let q: [__m256i; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_si256(q.add(i)) });
        let (bytes, words) = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
        let pairs = q.map(|q| _mm256_maddubs_epi16(bytes, q));
        let of_16 = of_16(pairs.map(|pairs| _mm256_madd_epi16(pairs, words)));
        let of_32 = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(of_16[0], of_16[1]));
        let of_32 = _mm_packs_epi32(_mm256_castsi256_si128(of_32), _mm256_extracti128_si256::<1>(of_32));
        let to = out.sums32[b * 8..][..8].as_mut_ptr();
        // SAFETY: eight words.
        unsafe { _mm_storeu_si128(to.cast(), of_32) };
        if out.narrow.is_empty() {
            return;
        }
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(of_16[0], of_16[1]));
        let to = out.sums16[b * 16..][..16].as_mut_ptr();
        // SAFETY: sixteen words.
        unsafe { _mm256_storeu_si256(to.cast(), packed) };

        let magnitudes = q.map(|q| {
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), bytes);
            _mm256_madd_epi16(pairs, words)
        });
        let over = self::of_16(magnitudes)
            .map(|sums| _mm256_cmpgt_epi32(sums, _mm256_set1_epi32(i32::from(NARROW))));
        out.narrow[b] = _mm256_testz_si256(over[0], over[0]) & _mm256_testz_si256(over[1], over[1]) == 1;

        let center = if isa == Isa::Avx2 {
            // Of each four codes the first two in the low words, the last two in the high ones.
            let firsts = self::of_16(pairs.map(|pairs| _mm256_madd_epi16(pairs, _mm256_set1_epi32(1))));
            std::array::from_fn(|i| {
                let lasts = _mm256_slli_epi32::<16>(_mm256_sub_epi32(of_16[i], firsts[i]));
                let both = _mm256_blend_epi16::<0b1010_1010>(firsts[i], lasts);
                _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16::<5>(both))
            })
        } else {
            of_16.map(|sums| _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32::<5>(sums)))
        };
        let to = out.center[b * 32..][..32].as_mut_ptr().cast::<__m256i>();
        for (i, center) in center.into_iter().enumerate() {
            // SAFETY: twice sixteen words.
            unsafe { _mm256_storeu_si256(to.add(i), center) };
        }
    }

    /// The sum of each half of eight registers, in their order.
    #[target_feature(enable = "avx2")]
    fn of_16(fours: [__m256i; 8]) -> [__m256i; 2] {
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        std::array::from_fn(|i| {
            let [a, b, c, d] = std::array::from_fn(|j| fours[4 * i + j]);
            let sums = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
            _mm256_permutevar8x32_epi32(sums, order)
        })
    }
}
