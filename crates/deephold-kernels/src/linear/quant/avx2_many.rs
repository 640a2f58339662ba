//! AVX2 where many rows meet a panel: its codes are taken apart once, before all of them, and scales and minimums are spread as the
//! products want them. That leaves fewer instructions, and registers for both halves of a panel at once, so that an activation is
//! read once for both: with 512 rows 1.05 to 1.09 times as fast for 4-bit codes, 1.2 to 1.3 times for 6-bit ones (docs/lab.md,
//! 2026-12-01). Sums are those of `avx2.rs`, where their ranges are derived. Codes of eight bits: `avx2_words.rs`.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::offset_of;
use std::thread::LocalKey;

use super::avx2::{add_products, add_scaled, finished, halves, load, quad, row_ptrs, six_bits, store};
use super::layout::{Block256Int4Min, Block256Int6, Block256Int6Min};
use super::{Layout, PANEL, QuantizedActivations};

/// A block of a panel in the form in which many rows meet it.
pub(super) trait TakenApart: Clone + 'static {
    const ZERO: Self;
    /// Rows of a tile.
    const ROWS: usize;
    /// Blocks that are taken apart at a time, some 200 KiB: for each tile they are read again, out of the second cache.
    const BLOCKS_MAX: usize;

    /// A thread's blocks, kept for the next product.
    fn scratch() -> &'static LocalKey<RefCell<Vec<Self>>>;

    /// Takes blocks apart, as many as `out` has.
    ///
    /// # Safety
    /// The machine has AVX2, FMA and F16C; `blocks` has `out.len()` blocks of a layout that the type takes.
    unsafe fn take_apart(layout: Layout, blocks: &[u8], out: &mut [Self]);

    /// As [`super::avx2::tile`], for up to `ROWS` rows, over the blocks from `first` on that `blocks` has; sums go on from those of
    /// the blocks before, which `y` has.
    ///
    /// # Safety
    /// The machine has AVX2, FMA and F16C; `act.k` has these blocks of a layout that the type takes, and `rows` are below `act.rows`.
    unsafe fn tile(
        layout: Layout,
        blocks: &[Self],
        first: usize,
        act: &QuantizedActivations,
        rows: &[usize],
        y: &mut [[f32; PANEL]],
    );
}

thread_local! {
    static UNPACKED: RefCell<Vec<Unpacked>> = const { RefCell::new(Vec::new()) };
}

/// 256 columns of a panel taken apart, in halves of 32 bytes.
#[repr(C, align(64))]
#[derive(Clone)]
pub(super) struct Unpacked {
    /// Of each four columns the codes of all 16 rows.
    codes: [[[u8; 32]; 2]; 64],
    /// Of each group of 16 columns, or 32, every row's scale twice.
    scales: [[[i16; 16]; 2]; 16],
    /// Of each two groups every row's two minimums.
    mins: [[[i16; 16]; 2]; 8],
    d: [[f32; 8]; 2],
    dmin: [[f32; 8]; 2],
}

/// Whether blocks of `layout` are taken apart for so many rows. Below, it costs more than it saves, codes of six bits being the
/// longer to take apart (docs/lab.md, 2026-12-01).
pub(super) fn takes(layout: Layout, rows: usize) -> bool {
    match layout {
        Layout::Block256Int4Min => rows >= 48,
        Layout::Block256Int6 | Layout::Block256Int6Min => rows >= 24,
        _ => false,
    }
}

#[inline(always)]
pub(super) unsafe fn put<E>(to: &mut E, value: __m256i) {
    const { assert!(size_of::<E>() == 32) };
    // SAFETY: 32 bytes; AVX2 is the kernels' own promise.
    unsafe { _mm256_storeu_si256(std::ptr::from_mut(to).cast(), value) }
}

#[inline(always)]
pub(super) unsafe fn get<E>(from: &E) -> __m256i {
    const { assert!(size_of::<E>() == 32) };
    // SAFETY: 32 bytes; AVX2 is the kernels' own promise.
    unsafe { load(std::ptr::from_ref(from).cast()) }
}

impl TakenApart for Unpacked {
    const ZERO: Self = Self {
        codes: [[[0; 32]; 2]; 64],
        scales: [[[0; 16]; 2]; 16],
        mins: [[[0; 16]; 2]; 8],
        d: [[0.0; 8]; 2],
        dmin: [[0.0; 8]; 2],
    };
    const ROWS: usize = 3;
    const BLOCKS_MAX: usize = 36;

    fn scratch() -> &'static LocalKey<RefCell<Vec<Self>>> {
        &UNPACKED
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn take_apart(layout: Layout, blocks: &[u8], out: &mut [Self]) {
        debug_assert_eq!(blocks.len(), out.len() * layout.block_bytes());
        let low = _mm256_set1_epi8(15);
        for (block, out) in blocks.chunks_exact(layout.block_bytes()).zip(out) {
            let p = block.as_ptr();
            for h in 0..2 {
                // SAFETY: all offsets stay within the block.
                unsafe {
                    let (words, bytes) = (h * 16, h * 8);
                    if layout == Layout::Block256Int4Min {
                        for (i, two) in out.codes.chunks_exact_mut(2).enumerate() {
                            let codes = load(p.add(i * 64 + h * 32));
                            put(&mut two[0][h], _mm256_and_si256(codes, low));
                            put(&mut two[1][h], _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low));
                        }
                        for (g, scale) in out.scales[..8].iter_mut().enumerate() {
                            let scales = _mm_loadl_epi64(
                                p.add(offset_of!(Block256Int4Min, scales) + g * PANEL + bytes).cast(),
                            );
                            put(&mut scale[h], _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(scales, scales)));
                        }
                        for (pair, min) in out.mins[..4].iter_mut().enumerate() {
                            let mins = p.add(offset_of!(Block256Int4Min, mins) + pair * 2 * PANEL + words);
                            put(&mut min[h], _mm256_cvtepu8_epi16(_mm_loadu_si128(mins.cast())));
                        }
                        _mm256_storeu_ps(
                            out.d[h].as_mut_ptr(),
                            halves(p.add(offset_of!(Block256Int4Min, d) + words)),
                        );
                        let dmin = halves(p.add(offset_of!(Block256Int4Min, dmin) + words));
                        _mm256_storeu_ps(out.dmin[h].as_mut_ptr(), dmin);
                        continue;
                    }
                    for (i, four) in out.codes.chunks_exact_mut(4).enumerate() {
                        let quads = six_bits([0, 64, 128].map(|line| load(p.add(i * 192 + line + h * 32))));
                        four.iter_mut().zip(quads).for_each(|(to, quad)| put(&mut to[h], quad));
                    }
                    for (g, scale) in out.scales.iter_mut().enumerate() {
                        let scales = _mm_loadl_epi64(
                            p.add(offset_of!(Block256Int6, scales) + g * PANEL + bytes).cast(),
                        );
                        put(&mut scale[h], _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(scales, scales)));
                    }
                    _mm256_storeu_ps(
                        out.d[h].as_mut_ptr(),
                        halves(p.add(offset_of!(Block256Int6, d) + words)),
                    );
                    if layout == Layout::Block256Int6Min {
                        for (pair, min) in out.mins.iter_mut().enumerate() {
                            let mins = p.add(offset_of!(Block256Int6Min, mins) + pair * 2 * PANEL + words);
                            put(&mut min[h], _mm256_cvtepu8_epi16(_mm_loadu_si128(mins.cast())));
                        }
                        let dmin = halves(p.add(offset_of!(Block256Int6Min, dmin) + words));
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
        debug_assert!((first + blocks.len()) * 256 <= act.k);
        macro_rules! tile_of {
            ($rows:literal) => {
                // SAFETY: the caller's promise is handed on.
                unsafe {
                    match layout {
                        Layout::Block256Int4Min => {
                            products::<$rows, 8, false, true>(blocks, first, act, rows, y)
                        }
                        Layout::Block256Int6Min => {
                            products::<$rows, 16, false, true>(blocks, first, act, rows, y)
                        }
                        _ => products::<$rows, 16, true, false>(blocks, first, act, rows, y),
                    }
                }
            };
        }
        match rows.len() {
            3 => tile_of!(3),
            2 => tile_of!(2),
            _ => tile_of!(1),
        }
    }
}

/// `GROUPS` groups in a block; `CENTER`: 32 is taken off each code, as the activations' sums say.
///
/// # Safety
/// As [`TakenApart::tile`].
#[allow(clippy::needless_range_loop, reason = "a row and a half of a panel index several arrays")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn products<const T: usize, const GROUPS: usize, const CENTER: bool, const MINS: bool>(
    unpacked: &[Unpacked],
    first: usize,
    act: &QuantizedActivations,
    rows: &[usize],
    y: &mut [[f32; PANEL]],
) {
    let quads = 64 / GROUPS;
    let q = row_ptrs::<T, _>(&act.q, act.k, rows);
    let center = row_ptrs::<T, _>(&act.center, act.k / 8, rows);
    let sums = if GROUPS == 8 { &act.sums32 } else { &act.sums16 };
    let sums = row_ptrs::<T, _>(sums, act.k / 256 * GROUPS, rows);
    let dx = row_ptrs::<T, _>(&act.d, act.k / 256, rows);
    // SAFETY: `y` has T rows of 16; all other offsets stay within block b of the rows.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 2]; T];
        if first > 0 {
            acc = std::array::from_fn(|t| [0, 8].map(|h| _mm256_loadu_ps(y[t].as_ptr().add(h))));
        }
        for (b, block) in (first..).zip(unpacked) {
            let mut sum = [[_mm256_setzero_si256(); 2]; T];
            for (g, scale) in block.scales[..GROUPS].iter().enumerate() {
                let mut part = [[_mm256_setzero_si256(); 2]; T];
                if CENTER {
                    for t in 0..T {
                        part[t] = [quad(center[t].add(b * 32 + g * 2)); 2];
                    }
                }
                for i in g * quads..(g + 1) * quads {
                    let codes = [0, 1].map(|h| get(&block.codes[i][h]));
                    for t in 0..T {
                        add_products(&mut part[t], &codes, quad(q[t].add(b * 256 + i * 4)));
                        part[t] = part[t].map(|sum| finished(sum));
                    }
                }
                for t in 0..T {
                    for h in 0..2 {
                        let scaled = _mm256_madd_epi16(part[t][h], get(&scale[h]));
                        sum[t][h] = _mm256_add_epi32(sum[t][h], scaled);
                    }
                }
            }
            let mut min_sum = [[_mm256_setzero_si256(); 2]; T];
            if MINS {
                for (pair, min) in block.mins[..GROUPS / 2].iter().enumerate() {
                    for t in 0..T {
                        let x = quad(sums[t].add(b * GROUPS + pair * 2));
                        for h in 0..2 {
                            let product = _mm256_madd_epi16(get(&min[h]), x);
                            min_sum[t][h] = _mm256_add_epi32(min_sum[t][h], product);
                        }
                    }
                }
            }
            for t in 0..T {
                let dx = *dx[t].add(b);
                for h in 0..2 {
                    let (d, dmin) =
                        (_mm256_loadu_ps(block.d[h].as_ptr()), _mm256_loadu_ps(block.dmin[h].as_ptr()));
                    acc[t][h] = add_scaled(acc[t][h], dx, d, sum[t][h]);
                    if MINS {
                        acc[t][h] = add_scaled(acc[t][h], -dx, dmin, min_sum[t][h]);
                    }
                }
            }
        }
        store(acc, y);
    }
}
