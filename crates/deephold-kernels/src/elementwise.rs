//! What touches each element once: SwiGLU's product, GELU, sums, embeddings, copies of rows and columns.

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

/// A slice of each head of a row: `width` columns from `col0` on, `stride` from one head to the next.
#[derive(Clone, Copy)]
pub struct HeadColumns<'a> {
    /// The rows, [T, at least col0 + (heads - 1) * stride + width].
    pub x: &'a Tensor,
    /// Of the first head's slice.
    pub col0: usize,
    /// From one head to the next.
    pub stride: usize,
    /// Columns of a slice.
    pub width: usize,
}

#[inline(always)]
unsafe fn silu_mul_body<S: Simd>(gate: *const f32, up: *mut f32, n: usize) {
    // SAFETY: both pointers reach n elements.
    unsafe {
        for i in (0..n).step_by(LANES) {
            let g = load_n::<S>(gate.add(i), n - i);
            let u = load_n::<S>(up.add(i), n - i);
            let denominator = S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), g)));
            store_n::<S>(up.add(i), n - i, S::mul(S::div(g, denominator), u));
        }
    }
}
dispatch!(
    /// silu(gate) * up, silu(x) = x / (1 + e^-x) (Shazeer 2020), in place of `up`.
    pub(crate) fn silu_mul(gate: *const f32, up: *mut f32, n: usize) = silu_mul_body
);

/// x * Phi(x) as max(x, 0) - tail, tail = |x| / 2 * erfc(|x| / sqrt 2), so that nothing cancels on either side. erfc is
/// Abramowitz and Stegun's 7.1.26, whose absolute error is below 1.5e-7.
#[inline(always)]
unsafe fn gelu_body<S: Simd>(x: *const f32, out: *mut f32, n: usize) {
    const P: f32 = 0.327_591_1;
    const A: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    // SAFETY: both pointers reach n elements.
    unsafe {
        for i in (0..n).step_by(LANES) {
            let x = load_n::<S>(x.add(i), n - i);
            let negated = S::sub(S::splat(0.0), x);
            let size = S::max(negated, x);
            let z = S::mul(size, S::splat(std::f32::consts::FRAC_1_SQRT_2));
            let t = S::div(S::splat(1.0), S::fma(z, S::splat(P), S::splat(1.0)));
            let mut series = S::splat(A[0]);
            for a in &A[1..] {
                series = S::fma(series, t, S::splat(*a));
            }
            let erfc = S::mul(S::mul(series, t), exp::<S>(S::sub(S::splat(0.0), S::mul(z, z))));
            let tail = S::mul(S::mul(size, S::splat(0.5)), erfc);
            store_n::<S>(out.add(i), n - i, S::sub(S::max(S::splat(0.0), x), tail));
        }
    }
}
dispatch!(fn gelu(x: *const f32, out: *mut f32, n: usize) = gelu_body);

impl Ops {
    /// gelu(x) = x * Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016); in place.
    pub fn gelu(&self, x: &mut Tensor) {
        let isa = self.isa();
        self.for_rows(x, |_, row| {
            let p = row.as_mut_ptr();
            // SAFETY: the row has that many elements, and each vector is read before it is written; `isa` is available.
            unsafe { gelu(isa, p.cast_const(), p, row.len()) }
        });
    }

    /// [`silu_mul`] of tensors of one shape; what [`Ops::gated`] does part by part.
    pub(crate) fn silu_mul(&self, gate: &Tensor, up: &mut Tensor) {
        assert!(gate.rows() == up.rows() && gate.cols() == up.cols(), "gate and up differ in shape");
        let isa = self.isa();
        self.for_rows(up, |i, up| {
            // SAFETY: the rows agree in length; `isa` is available.
            unsafe { silu_mul(isa, gate.row(i).as_ptr(), up.as_mut_ptr(), up.len()) }
        });
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

    /// The slices of all parts side by side, head by head: [T, heads * (sum of widths)].
    ///
    /// # Panics
    /// If the parts differ in rows, or a slice lies beyond them.
    pub fn join_heads(&self, heads: usize, parts: &[HeadColumns<'_>]) -> Tensor {
        let rows = parts.first().map_or(0, |p| p.x.rows());
        assert!(parts.iter().all(|p| p.x.rows() == rows), "parts differ in rows");
        let width: usize = parts.iter().map(|p| p.width).sum();
        let mut y = self.dirty(rows, heads * width);
        self.for_rows(&mut y, |row, out| {
            for (head, mut out) in out.chunks_exact_mut(width.max(1)).enumerate() {
                for p in parts {
                    let (to, rest) = out.split_at_mut(p.width);
                    to.copy_from_slice(&p.x.row(row)[p.col0 + head * p.stride..][..p.width]);
                    out = rest;
                }
            }
        });
        y
    }
}
