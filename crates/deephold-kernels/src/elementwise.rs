//! What touches each element once: SwiGLU's product, sums, embeddings, copies of rows and columns.

use deephold_base::TokenId;
use deephold_quant::DType;

use crate::simd::{LANES, Simd, dispatch, exp, load_n, store_n};
use crate::{Ops, Tensor};

/// A row-major table [rows, cols] as the checkpoint stores it; rows are decoded when they are looked up.
#[derive(Clone, Copy)]
pub struct EmbeddingTable<'a> {
    /// Storage format.
    pub dtype: DType,
    /// Vocabulary.
    pub rows: usize,
    /// Hidden size.
    pub cols: usize,
    /// All rows.
    pub bytes: &'a [u8],
}

#[inline(always)]
unsafe fn silu_mul_body<S: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let n = out.len();
    // SAFETY: all three have n elements, checked by the caller.
    unsafe {
        for i in (0..n).step_by(LANES) {
            let g = load_n::<S>(gate.as_ptr().add(i), n - i);
            let u = load_n::<S>(up.as_ptr().add(i), n - i);
            let denominator = S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), g)));
            store_n::<S>(out.as_mut_ptr().add(i), n - i, S::mul(S::div(g, denominator), u));
        }
    }
}
dispatch!(fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_mul_body);

impl Ops {
    /// silu(gate) * up, silu(x) = x / (1 + e^-x) (Shazeer 2020).
    pub fn silu_mul(&self, gate: &Tensor, up: &Tensor) -> Tensor {
        assert!(gate.rows() == up.rows() && gate.cols() == up.cols(), "gate and up differ in shape");
        let mut y = self.dirty(gate.rows(), gate.cols());
        let isa = self.isa();
        self.for_rows(&mut y, |i, out| {
            // SAFETY: the rows agree in length; `isa` is available.
            unsafe { silu_mul(isa, gate.row(i), up.row(i), out) }
        });
        y
    }

    /// x += y.
    pub fn add(&self, x: &mut Tensor, y: &Tensor) {
        assert!(x.rows() == y.rows() && x.cols() == y.cols(), "summands differ in shape");
        self.for_rows(x, |i, row| row.iter_mut().zip(y.row(i)).for_each(|(x, y)| *x += y));
    }

    /// The rows of `table` for `tokens`: [T, cols].
    ///
    /// # Panics
    /// If a token is beyond the table or the table's bytes do not fit its shape: callers check both.
    pub fn embed(&self, tokens: &[TokenId], table: &EmbeddingTable<'_>) -> Tensor {
        let row_bytes = table.dtype.bytes_for(table.cols).unwrap_or(0);
        assert_eq!(Some(table.bytes.len()), row_bytes.checked_mul(table.rows), "a table of another size");
        let mut y = self.dirty(tokens.len(), table.cols);
        self.for_rows(&mut y, |i, out| {
            let bytes = &table.bytes[tokens[i] as usize * row_bytes..][..row_bytes];
            if deephold_quant::dequantize(table.dtype, bytes, out).is_err() {
                out.fill(f32::NAN);
            }
        });
        y
    }

    /// Rows `rows` of `x`, in that order.
    pub fn select_rows(&self, x: &Tensor, rows: &[usize]) -> Tensor {
        let mut y = self.dirty(rows.len(), x.cols());
        self.for_rows(&mut y, |i, out| out.copy_from_slice(x.row(rows[i])));
        y
    }
}
