//! AVX2 where many rows meet a panel of signed 8-bit codes: codes and activations are words of 16 bits, so that one `madd` gives
//! exact 32-bit sums of two products. `maddubs` would need the codes' absolute values, activations that take their signs, and a
//! `madd` with ones behind it: three instructions of which Zen 3 starts two in a cycle, where the two `madd` of this form do
//! (docs/lab.md, 2026-12-01). Bytes become words by shifts, which part even columns from odd ones: the activations' words
//! (`QuantizedActivations::words`) stand in the same order.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::offset_of;
use std::thread::LocalKey;

use super::act::WORDS_FROM;
use super::avx2::{add_scaled, finished, halves, load, quad, row_ptrs, store};
use super::avx2_many::{TakenApart, get, put};
use super::layout::{Block32Int8, Block32Int8Min};
use super::{Layout, PANEL, QuantizedActivations};

/// 32 columns of a panel, codes as words, in halves of 8 rows.
#[repr(C, align(64))]
#[derive(Clone)]
pub(super) struct Words {
    /// Of each four columns the first and the third of all 16 rows, then the second and the fourth.
    codes: [[[i16; 16]; 2]; 16],
    d: [[f32; 8]; 2],
    dmin: [[f32; 8]; 2],
}

/// Whether blocks of `layout` become words for so many rows of `act`.
pub(super) fn takes(layout: Layout, act: &QuantizedActivations, rows: usize) -> bool {
    matches!(layout, Layout::Block32Int8 | Layout::Block32Int8Min)
        && rows >= WORDS_FROM
        && !act.words.is_empty()
}

thread_local! {
    static WORDS: RefCell<Vec<Words>> = const { RefCell::new(Vec::new()) };
}

impl TakenApart for Words {
    const ZERO: Self = Self { codes: [[[0; 16]; 2]; 16], d: [[0.0; 8]; 2], dmin: [[0.0; 8]; 2] };
    const ROWS: usize = 4;
    const BLOCKS_MAX: usize = 180;

    fn scratch() -> &'static LocalKey<RefCell<Vec<Self>>> {
        &WORDS
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn take_apart(layout: Layout, blocks: &[u8], out: &mut [Self]) {
        debug_assert_eq!(blocks.len(), out.len() * layout.block_bytes());
        for (block, out) in blocks.chunks_exact(layout.block_bytes()).zip(out) {
            let p = block.as_ptr();
            for h in 0..2 {
                // SAFETY: all offsets stay within the block.
                unsafe {
                    for (l, two) in out.codes.chunks_exact_mut(2).enumerate() {
                        let codes = load(p.add(l * 64 + h * 32));
                        put(&mut two[0][h], _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(codes)));
                        put(&mut two[1][h], _mm256_srai_epi16::<8>(codes));
                    }
                    let d = halves(p.add(offset_of!(Block32Int8, d) + h * PANEL));
                    _mm256_storeu_ps(out.d[h].as_mut_ptr(), d);
                    if layout == Layout::Block32Int8Min {
                        let dmin = halves(p.add(offset_of!(Block32Int8Min, dmin) + h * PANEL));
                        _mm256_storeu_ps(out.dmin[h].as_mut_ptr(), dmin);
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile(
        layout: Layout,
        blocks: &[Self],
        first: usize,
        act: &QuantizedActivations,
        rows: &[usize],
        y: &mut [[f32; PANEL]],
    ) {
        debug_assert!((first + blocks.len()) * 32 <= act.k);
        let mins = layout == Layout::Block32Int8Min;
        // SAFETY: the caller's promise is handed on.
        unsafe {
            match (rows.len(), mins) {
                (4, false) => products::<4, false>(blocks, first, act, rows, y),
                (4, true) => products::<4, true>(blocks, first, act, rows, y),
                (3, false) => products::<3, false>(blocks, first, act, rows, y),
                (3, true) => products::<3, true>(blocks, first, act, rows, y),
                (2, false) => products::<2, false>(blocks, first, act, rows, y),
                (2, true) => products::<2, true>(blocks, first, act, rows, y),
                (_, false) => products::<1, false>(blocks, first, act, rows, y),
                (_, true) => products::<1, true>(blocks, first, act, rows, y),
            }
        }
    }
}

/// A sum of two products is at most 2 * 128 * 127, one over a block 16 times that.
///
/// # Safety
/// As [`TakenApart::tile`].
#[allow(clippy::needless_range_loop, reason = "a row and a half of a panel index several arrays")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products<const T: usize, const MINS: bool>(
    blocks: &[Words],
    first: usize,
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
) {
    let words = row_ptrs::<T, _>(&act.words, act.k, rows);
    let sums = row_ptrs::<T, _>(&act.sums32, act.k / 32, rows);
    let dx = row_ptrs::<T, _>(&act.d, act.k / 32, rows);
    // SAFETY: `y` has T rows of 16; all other offsets stay within block b of the rows.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 2]; T];
        if first > 0 {
            acc = std::array::from_fn(|t| [0, 8].map(|h| _mm256_loadu_ps(y[t].as_ptr().add(h))));
        }
        for (b, block) in (first..).zip(blocks) {
            let mut sum = [[_mm256_setzero_si256(); 2]; T];
            for (i, codes) in block.codes.iter().enumerate() {
                let codes = [0, 1].map(|h| get(&codes[h]));
                for t in 0..T {
                    let x = quad(words[t].add(b * 32 + i * 2));
                    for h in 0..2 {
                        sum[t][h] = finished(_mm256_add_epi32(sum[t][h], _mm256_madd_epi16(codes[h], x)));
                    }
                }
            }
            for t in 0..T {
                let dx = *dx[t].add(b);
                for h in 0..2 {
                    acc[t][h] = add_scaled(acc[t][h], dx, _mm256_loadu_ps(block.d[h].as_ptr()), sum[t][h]);
                    if MINS {
                        let sum = _mm256_set1_epi32(i32::from(*sums[t].add(b)));
                        let dmin = _mm256_loadu_ps(block.dmin[h].as_ptr());
                        acc[t][h] = add_scaled(acc[t][h], -dx, dmin, sum);
                    }
                }
            }
        }
        store(acc, y);
    }
}
