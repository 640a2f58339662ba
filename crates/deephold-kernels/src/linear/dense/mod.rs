//! Products with F32, F16, BF16 and FP8 matrices in f32: acc = fma(w, x, acc), k from first to last, then the result.
//!
//! Panel: for each k the 16 rows' values side by side. FP8 panels carry their factors as f32 \[blocks of k\]\[16\] behind
//! the codes; a weight is code * factor rounded to f32, as the decoded matrix holds it.

mod tile;

use deephold_quant::DType;

use super::quant::InputRows;
use super::{Activations, PANEL, Part};
use crate::memory::Memory;
use crate::tensor::Window;
use crate::{Isa, KernelError, ThreadPool};

/// Bytes of a packed matrix [n, k] of `size` bytes an element, with `factors` f32 factors a row.
pub(super) fn bytes_for(n: usize, k: usize, size: usize, factors: usize) -> usize {
    n.div_ceil(PANEL).saturating_mul(PANEL * (k * size + factors * 4))
}

pub(super) struct DenseMatrix {
    dtype: DType,
    n: usize,
    k: usize,
    /// Columns that share an FP8 factor.
    block_k: usize,
    panel_bytes: usize,
    data: Memory,
}

impl DenseMatrix {
    pub(super) fn pack(
        pool: &ThreadPool,
        dtype: DType,
        n: usize,
        k: usize,
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        check(dtype, n, k, bytes)?;
        let size = dtype.block_bytes();
        let mut m = Self::alloc(dtype, n, k, k, size)?;
        m.each_panel(pool, |p, out| {
            for r in 0..PANEL.min(n - p * PANEL) {
                let row = &bytes[(p * PANEL + r) * k * size..][..k * size];
                for (c, v) in row.chunks_exact(size).enumerate() {
                    out[(c * PANEL + r) * size..][..size].copy_from_slice(v);
                }
            }
        });
        Ok(m)
    }

    pub(super) fn pack_f32(pool: &ThreadPool, n: usize, k: usize, x: &[f32]) -> Result<Self, KernelError> {
        if n.checked_mul(k) != Some(x.len()) {
            let expected = n.checked_mul(k).and_then(|e| e.checked_mul(4));
            return Err(KernelError::Size { dtype: DType::F32, n, k, expected, actual: 4 * x.len() });
        }
        let mut m = Self::alloc(DType::F32, n, k, k, 4)?;
        m.each_panel(pool, |p, out| {
            for r in 0..PANEL.min(n - p * PANEL) {
                scatter_f32(&x[(p * PANEL + r) * k..][..k], r, out);
            }
        });
        Ok(m)
    }

    /// A block format without an integer layout, decoded to f32.
    pub(super) fn pack_decoded(
        pool: &ThreadPool,
        dtype: DType,
        n: usize,
        k: usize,
        bytes: &[u8],
    ) -> Result<Self, KernelError> {
        check(dtype, n, k, bytes)?;
        let row_bytes = bytes.len() / n.max(1);
        let mut m = Self::alloc(DType::F32, n, k, k, 4)?;
        let failed = std::sync::Mutex::new(None);
        m.each_panel(pool, |p, out| {
            let mut row = vec![0f32; k];
            for r in 0..PANEL.min(n - p * PANEL) {
                let source = &bytes[(p * PANEL + r) * row_bytes..][..row_bytes];
                match deephold_quant::dequantize(dtype, source, &mut row) {
                    Ok(()) => scatter_f32(&row, r, out),
                    Err(e) => *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(e),
                }
            }
        });
        match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(e) => Err(e.into()),
            None => Ok(m),
        }
    }

    pub(super) fn pack_fp8(
        pool: &ThreadPool,
        n: usize,
        k: usize,
        bytes: &[u8],
        scale_inv: &[f32],
        block: (usize, usize),
    ) -> Result<Self, KernelError> {
        check(DType::F8E4M3, n, k, bytes)?;
        let (block_n, block_k) = block;
        if block_n == 0 || block_k == 0 {
            return Err(KernelError::Invalid { what: "FP8 blocks", problem: "have a side of 0".into() });
        }
        let across = k.div_ceil(block_k);
        let expected = n.div_ceil(block_n).saturating_mul(across);
        if scale_inv.len() != expected {
            return Err(KernelError::Scales { what: "weight_scale_inv", expected, actual: scale_inv.len() });
        }
        let mut m = Self::alloc(DType::F8E4M3, n, k, block_k, 1)?;
        m.each_panel(pool, |p, out| {
            let (codes, factors) = out.split_at_mut(k * PANEL);
            for r in 0..PANEL.min(n - p * PANEL) {
                let row = p * PANEL + r;
                for (c, v) in bytes[row * k..][..k].iter().enumerate() {
                    codes[c * PANEL + r] = *v;
                }
                let scales = &scale_inv[row / block_n * across..][..across];
                scatter_f32(scales, r, factors);
            }
        });
        Ok(m)
    }

    fn alloc(dtype: DType, n: usize, k: usize, block_k: usize, size: usize) -> Result<Self, KernelError> {
        let factors = if dtype == DType::F8E4M3 { k.div_ceil(block_k) } else { 0 };
        let panel_bytes = bytes_for(PANEL, k, size, factors);
        let bytes = bytes_for(n, k, size, factors);
        let data = Memory::zeroed("a packed matrix", bytes)?;
        Ok(Self { dtype, n, k, block_k, panel_bytes, data })
    }

    fn each_panel(&mut self, pool: &ThreadPool, f: impl Fn(usize, &mut [u8]) + Sync) {
        if self.panel_bytes == 0 {
            return;
        }
        let panels: Vec<_> =
            self.data.chunks_exact_mut(self.panel_bytes).map(std::sync::Mutex::new).collect();
        pool.run(panels.len(), &|p, _| {
            // Each task locks its own panel: never contended.
            f(p, &mut panels[p].lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        });
    }

    pub(super) fn bytes(&self) -> usize {
        self.data.len()
    }

    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// As `QuantMatrix::gemm`, on f32 activations.
    pub(super) fn gemm(
        &self,
        isa: Isa,
        x: &Activations<'_>,
        rows: InputRows<'_>,
        part: &Part,
        window: Window,
    ) {
        let row = |i: usize| match rows {
            InputRows::All => x.row(i),
            InputRows::List(list) => x.row(list[i] as usize),
        };
        for panel in part.panels.clone() {
            let width = PANEL.min(self.n - panel * PANEL);
            let bytes = &self.data[panel * self.panel_bytes..][..self.panel_bytes];
            let mut i = part.rows.start;
            while i < part.rows.end {
                let tile = (part.rows.end - i).min(tile::TOKENS);
                let mut y = [[0f32; PANEL]; tile::TOKENS];
                let mut xs: [&[f32]; tile::TOKENS] = [&[]; tile::TOKENS];
                for (j, x) in xs[..tile].iter_mut().enumerate() {
                    *x = row(i + j);
                }
                tile::run(isa, self.dtype, bytes, self.k, self.block_k, &xs[..tile], &mut y);
                for (j, y) in y[..tile].iter().enumerate() {
                    // SAFETY: each output element belongs to one panel and row, and panels to one task.
                    unsafe { window.slice(i + j, panel * PANEL, width) }.copy_from_slice(&y[..width]);
                }
                i += tile;
            }
        }
    }
}

fn check(dtype: DType, n: usize, k: usize, bytes: &[u8]) -> Result<(), KernelError> {
    let expected = dtype.bytes_for(k).and_then(|row| row.checked_mul(n));
    if expected != Some(bytes.len()) {
        return Err(KernelError::Size { dtype, n, k, expected, actual: bytes.len() });
    }
    Ok(())
}

fn scatter_f32(row: &[f32], r: usize, out: &mut [u8]) {
    for (c, v) in row.iter().enumerate() {
        out[(c * PANEL + r) * 4..][..4].copy_from_slice(&v.to_ne_bytes());
    }
}
