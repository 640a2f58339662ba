//! Products with quantized matrices: y[T, N] = x[T, K] W^T, activations rounded to int8.
//!
//! A matrix is stored in panels of 16 output rows. A 64-byte line holds 4 consecutive k of all 16 rows, one 32-bit lane
//! a row: 4 bytes of an activation are broadcast against it, and every lane adds up its own row, so that nothing is summed
//! across lanes. 4-bit codes put two such lines into one (low nibbles first); 6-bit codes take three lines for four.
//!
//! | layout (`layout.rs`) | formats | block of 16 rows |
//! |---|---|---|
//! | Block32Int8 | Q8_0, Q5_0 and IQ4_NL widened | 32 k: 8 lines of i8, f16 d\[16\] |
//! | Block32Int8Min | Q4_1 and Q5_1 widened | Block32Int8, then f16 dmin\[16\] |
//! | Block32Int4 | Q4_0 | 32 k: 4 lines, f16 d\[16\] |
//! | Block256Int4Min | Q4_K | 256 k: 32 lines, scales u8 \[8\]\[16\], mins u8 \[4\]\[16\]\[2\], f16 d\[16\], dmin\[16\] |
//! | Block256Int6 | Q6_K, Q3_K widened | 256 k: 48 lines, scales i8 \[16\]\[16\], f16 d\[16\] |
//! | Block256Int6Min | Q5_K and Q2_K widened | Block256Int6, then mins u8 \[8\]\[16\]\[2\], f16 dmin\[16\] |
//!
//! Sums within a block are exact integers. One f32 per output element then runs over the blocks in the order of k:
//! `acc = fma(d_x * d_w, sum, acc)` and, with mins, `acc = fma(-(d_x * dmin), min_sum, acc)`. Every instruction set does
//! just this, so all give the same bits, for any number of tokens, threads and any split of the panels.

mod act;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_many;
#[cfg(target_arch = "x86_64")]
mod avx2_words;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
mod layout;
#[cfg(all(test, target_arch = "x86_64"))]
mod modelled;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(any(test, target_arch = "x86_64", target_arch = "aarch64"))]
mod wide;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as x86;
use std::ops::Range;

use deephold_quant::DType;

pub(crate) use act::{ActivationBlocks, QuantizedActivations};

use super::{PANEL, Part};
use crate::memory::Memory;
use crate::tensor::Window;
use crate::{Isa, KernelError, ThreadPool};

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Signed 8-bit codes and a scale for each 32 columns.
    Block32Int8,
    /// The same with a minimum for each 32 columns.
    Block32Int8Min,
    /// 4-bit codes and a scale for each 32 columns.
    Block32Int4,
    /// 4-bit codes in 8 groups of 32 columns, a scale and a minimum for each.
    Block256Int4Min,
    /// 6-bit codes in 16 groups of 16 columns, a scale for each.
    Block256Int6,
    /// The same with a minimum for each group.
    Block256Int6Min,
}

impl Layout {
    fn of(dtype: DType) -> Option<Layout> {
        Some(match dtype {
            DType::Q8_0 | DType::Q5_0 | DType::IQ4NL => Layout::Block32Int8,
            DType::Q4_1 | DType::Q5_1 => Layout::Block32Int8Min,
            DType::Q4_0 => Layout::Block32Int4,
            DType::Q4K => Layout::Block256Int4Min,
            DType::Q6K | DType::Q3K => Layout::Block256Int6,
            DType::Q5K | DType::Q2K => Layout::Block256Int6Min,
            _ => return None,
        })
    }

    fn block_len(self) -> usize {
        if matches!(self, Layout::Block32Int8 | Layout::Block32Int8Min | Layout::Block32Int4) {
            32
        } else {
            256
        }
    }

    /// Bytes of one block of 16 rows.
    fn block_bytes(self) -> usize {
        match self {
            Layout::Block32Int8 => size_of::<layout::Block32Int8>(),
            Layout::Block32Int8Min => size_of::<layout::Block32Int8Min>(),
            Layout::Block32Int4 => size_of::<layout::Block32Int4>(),
            Layout::Block256Int4Min => size_of::<layout::Block256Int4Min>(),
            Layout::Block256Int6 => size_of::<layout::Block256Int6>(),
            Layout::Block256Int6Min => size_of::<layout::Block256Int6Min>(),
        }
    }
}

/// Whether matrices of this type are multiplied in int8.
pub(crate) fn supports(dtype: DType) -> bool {
    Layout::of(dtype).is_some()
}

/// Bytes of a packed matrix [n, k]; 0 for a type that has no integer layout.
pub(crate) fn bytes_for(dtype: DType, n: usize, k: usize) -> usize {
    let Some(layout) = Layout::of(dtype) else { return 0 };
    n.div_ceil(PANEL).saturating_mul(k / layout.block_len() * layout.block_bytes())
}

/// A packed quantized matrix [N, K].
pub(crate) struct QuantMatrix {
    layout: Layout,
    n: usize,
    k: usize,
    data: Memory,
}

/// Which rows of the activations a call reads.
#[derive(Clone, Copy)]
pub(crate) enum InputRows<'a> {
    /// All, in order.
    All,
    /// These, in this order.
    List(&'a [u32]),
}

impl InputRows<'_> {
    /// Puts the rows of the activations that the rows from `first` on are into `at`, as many as it has. (Not an array as a result:
    /// it would be read in longer words than it was written in, for which a core waits until all it did before has ended.)
    fn put(self, first: usize, act: &QuantizedActivations, at: &mut [usize]) {
        for (j, row) in at.iter_mut().enumerate() {
            *row = match self {
                InputRows::All => first + j,
                InputRows::List(list) => list[first + j] as usize,
            };
            assert!(*row < act.rows, "row outside the activations");
        }
    }
}

/// Asks for these of `count` parts of the bytes, into the second cache.
fn ask_for(bytes: &[u8], parts: Range<usize>, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes[bytes.len() * parts.start / count..bytes.len() * parts.end / count].chunks(64) {
        // SAFETY: a prefetch touches nothing.
        unsafe { x86::_mm_prefetch::<{ x86::_MM_HINT_T1 }>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, parts, count);
}

/// Copies a row's part of a panel, which mostly is whole: then the compiler knows its length.
fn copy(to: &mut [f32], from: &[f32]) {
    /// Apart, or the compiler would make one call of both ways, for any length.
    #[cold]
    #[inline(never)]
    fn copy_less(to: &mut [f32], from: &[f32]) {
        to.copy_from_slice(from);
    }
    match (to.first_chunk_mut::<PANEL>(), from.first_chunk::<PANEL>()) {
        (Some(to), Some(from)) => *to = *from,
        _ => copy_less(to, from),
    }
}

impl QuantMatrix {
    /// Packs row-major blocks as stored, panel by panel in parallel.
    ///
    /// # Errors
    /// The format has no integer layout, the bytes do not fit the shape, or memory is short.
    pub(crate) fn pack(
        pool: &ThreadPool,
        dtype: DType,
        n: usize,
        k: usize,
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        let layout = Layout::of(dtype).ok_or(KernelError::Format { dtype })?;
        let expected = dtype.bytes_for(k).and_then(|row| row.checked_mul(n));
        if expected != Some(bytes.len()) {
            return Err(KernelError::Size { dtype, n, k, expected, actual: bytes.len() });
        }
        let size = bytes_for(dtype, n, k);
        let mut data = Memory::zeroed("a packed matrix", size)?;
        let panel_bytes = (size / n.div_ceil(PANEL).max(1)).max(1);
        let panels: Vec<_> = data.chunks_exact_mut(panel_bytes).map(std::sync::Mutex::new).collect();
        pool.run(panels.len(), &|p, _| {
            // Each task locks its own panel: never contended.
            let mut out = panels[p].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            pack::panel(layout, dtype, n, k, bytes, p, &mut out);
        });
        drop(panels);
        Ok(Self { layout, n, k, data })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Number of panels, the unit of work.
    pub(crate) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// The form of activations that [`Self::gemm`] takes.
    pub(crate) fn activation_blocks(&self) -> ActivationBlocks {
        if self.layout.block_len() == 32 { ActivationBlocks::Of32 } else { ActivationBlocks::Of256 }
    }

    /// Computes the part's panels of 16 output columns for its rows out of `rows`, which go to the window's rows of the same numbers.
    pub(crate) fn gemm(
        &self,
        isa: Isa,
        act: &QuantizedActivations,
        rows: InputRows<'_>,
        part: &Part,
        window: Window,
    ) {
        assert!(act.kind == self.activation_blocks() && act.k == self.k, "activations of another shape");
        assert!(act.isa == isa, "activations for another instruction set");
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx2 && self.k > 0 {
            if avx2_many::takes(self.layout, part.rows.len()) {
                return self.gemm_apart::<avx2_many::Unpacked>(act, rows, part, window);
            }
            if avx2_words::takes(self.layout, act, part.rows.len()) {
                return self.gemm_apart::<avx2_words::Words>(act, rows, part, window);
            }
        }
        let panel_bytes = self.k / self.layout.block_len() * self.layout.block_bytes();
        // Each tile writes its part whole.
        let (mut at, mut y) = ([0; 8], [[0f32; PANEL]; 8]);
        for panel in part.panels.clone() {
            let bytes = &self.data[panel * panel_bytes..][..panel_bytes];
            // What comes next is asked for while this panel, then in a cache, meets later rows: memory would rest meanwhile.
            let next = if panel + 1 < part.panels.end { (panel + 1) * panel_bytes } else { self.data.len() };
            let next = &self.data[next..self.data.len().min(next + panel_bytes)];
            let width = PANEL.min(self.n - panel * PANEL);
            let (mut i, mut head) = (part.rows.start, 0);
            while i < part.rows.end {
                let first = i == part.rows.start;
                let tile = match part.rows.end - i {
                    // A panel that comes from memory serves eight rows at once: 32 registers hold their sums. For later rows it
                    // lies in the caches, and four at a time are a little faster.
                    8.. if isa == Isa::Avx512 && first => 8,
                    4.. => 4,
                    2 | 3 => 2,
                    _ => 1,
                };
                let at = &mut at[..tile];
                rows.put(i, act, at);
                // With one row AVX-512 is as fast as memory without being told (docs/lab.md, 2026-11-27 and 2026-12-01).
                let fetch = first && (isa != Isa::Avx512 || tile == 8);
                if first {
                    head = tile;
                } else {
                    let done = i - part.rows.start - head;
                    ask_for(next, done..done + tile, part.rows.len() - head);
                }
                self.tile(isa, bytes, act, at, &mut y[..tile], fetch);
                for (j, y) in y[..tile].iter().enumerate() {
                    // SAFETY: each output element belongs to one panel and row, and panels to one task.
                    copy(unsafe { window.slice(i + j, panel * PANEL, width) }, &y[..width]);
                }
                i += tile;
            }
        }
    }

    /// As [`Self::gemm`] with AVX2, for many rows: blocks are taken apart once for all of them.
    #[cfg(target_arch = "x86_64")]
    fn gemm_apart<B: avx2_many::TakenApart>(
        &self,
        act: &QuantizedActivations,
        rows: InputRows<'_>,
        part: &Part,
        window: Window,
    ) {
        let (panels, count) = (part.panels.clone(), part.rows.len());
        let block_bytes = self.layout.block_bytes();
        let blocks = self.k / self.layout.block_len();
        let at_once = blocks.div_ceil(blocks.div_ceil(B::BLOCKS_MAX));
        // Short panels are taken apart together, so that an activation comes from afar once for all of them.
        let together = (B::BLOCKS_MAX / at_once).clamp(1, 2);
        let tiles = count.div_ceil(B::ROWS);
        let (mut at, mut y) = ([0; 4], [[0f32; PANEL]; 4]);
        B::scratch().with_borrow_mut(|apart| {
            apart.resize(apart.len().max(together * at_once), B::ZERO);
            for group in panels.clone().step_by(together) {
                let group = group..panels.end.min(group + together);
                for first in (0..blocks).step_by(at_once) {
                    let length = at_once.min(blocks - first);
                    for (panel, apart) in group.clone().zip(apart.chunks_exact_mut(length)) {
                        let bytes =
                            &self.data[(panel * blocks + first) * block_bytes..][..length * block_bytes];
                        // SAFETY: `Ops` takes only an available set; the layout and the sizes are these blocks'.
                        unsafe { B::take_apart(self.layout, bytes, apart) };
                    }
                    // What is taken apart next comes while products are computed: the next part, or the next panels.
                    let next = (group.start * blocks + first + group.len() * length) * block_bytes;
                    let next = next..(next + group.len() * length * block_bytes).min(self.data.len());
                    for tile in 0..tiles {
                        ask_for(self.data.get(next.clone()).unwrap_or_default(), tile..tile + 1, tiles);
                        let i = part.rows.start + tile * B::ROWS;
                        let y = &mut y[..B::ROWS.min(part.rows.end - i)];
                        let at = &mut at[..y.len()];
                        rows.put(i, act, at);
                        for (panel, apart) in group.clone().zip(apart.chunks_exact(length)) {
                            let width = PANEL.min(self.n - panel * PANEL);
                            // SAFETY: each output element belongs to one panel and row, and panels to one task.
                            let out = |j| unsafe { window.slice(i + j, panel * PANEL, width) };
                            if first > 0 {
                                y.iter_mut().enumerate().for_each(|(j, y)| copy(&mut y[..width], out(j)));
                            }
                            // SAFETY: as above, and the rows were checked.
                            unsafe { B::tile(self.layout, apart, first, act, at, y) };
                            y.iter().enumerate().for_each(|(j, y)| copy(out(j), &y[..width]));
                        }
                    }
                }
            }
        });
    }

    fn tile(
        &self,
        isa: Isa,
        panel: &[u8],
        act: &QuantizedActivations,
        rows: &[usize],
        y: &mut [[f32; PANEL]],
        fetch: bool,
    ) {
        // Not every set takes the hint.
        let _ = fetch;
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                // SAFETY: `Ops` takes only an available set; `panel` and `act` have this layout's sizes by
                // construction and the rows were checked.
                unsafe { avx2::tile(self.layout, panel, act, rows, y, fetch) }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::AvxVnni => unsafe { avx_vnni::tile(self.layout, panel, act, rows, y, fetch) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { avx512::tile(self.layout, panel, act, rows, y, fetch) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Isa::Neon => unsafe { neon::tile(self.layout, panel, act, rows, y) },
            _ => scalar::tile(self.layout, panel, act, rows, y),
        }
    }
}
