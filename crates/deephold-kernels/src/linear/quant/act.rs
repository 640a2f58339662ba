//! Activations as int8: `x ~ d * q`, d shared by 32 or 256 elements, q in -127..=127.

use crate::{Isa, ThreadPool};

/// Rows from which on AVX2 multiplies 8-bit codes as words; below, making words of a panel's costs more than it saves (docs/lab.md,
/// 2026-12-01).
pub(super) const WORDS_FROM: usize = 48;

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
            kind,
            rows,
            k,
            d: vec![0.0; x.len() / block],
            q: vec![0; x.len()],
            sums32: vec![0; x.len() / 32],
            sums16: vec![0; extra],
            center: vec![0; 2 * extra],
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
        let mut words = act.words.chunks_mut(cut(words));
        let mut tasks = Vec::new();
        let rest = act.d.chunks_mut(cut(x.len() / block)).zip(act.q.chunks_mut(cut(x.len())));
        for ((d, q), sums32) in rest.zip(act.sums32.chunks_mut(cut(x.len() / 32))) {
            let (sums16, center) = (sums16.next().unwrap_or_default(), center.next().unwrap_or_default());
            let words = words.next().unwrap_or_default();
            tasks.push(std::sync::Mutex::new(RowOut { d, q, sums32, sums16, center, words }));
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
        return unsafe { round_avx2(isa, block, x, out) };
    }
    round_plain(isa, block, x, out);
}

/// The plain loops, compiled for AVX2: the compiler vectorizes them, with the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn round_avx2(isa: Isa, block: usize, x: &[f32], out: &mut RowOut<'_>) {
    round_plain(isa, block, x, out);
}

#[inline(always)]
fn round_plain(isa: Isa, block: usize, x: &[f32], out: &mut RowOut<'_>) {
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
    for (s, q) in out.sums32.iter_mut().zip(out.q.chunks_exact(32)) {
        *s = q.iter().map(|&v| i16::from(v)).sum();
    }
    for (words, q) in out.words.chunks_exact_mut(4).zip(out.q.chunks_exact(4)) {
        words.copy_from_slice(&[q[0], q[2], q[1], q[3]].map(i16::from));
    }
    let groups = out.sums16.iter_mut().zip(out.center.chunks_exact_mut(2)).zip(out.q.chunks_exact(16));
    for ((s, center), q) in groups {
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
