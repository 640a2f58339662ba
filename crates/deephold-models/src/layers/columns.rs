//! Moving columns and rows; no arithmetic.

use deephold_kernels::{Ops, Tensor};

/// `heads` slices of `width` columns, the first at `col0`, each `stride` after the one before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) col0: usize,
    pub(crate) stride: usize,
    pub(crate) heads: usize,
    pub(crate) width: usize,
}

/// Copies every slice of `from` in `x` to the same slice of `to` in `out`, row by row.
pub(crate) fn copy_heads(x: &Tensor, from: Heads, out: &mut Tensor, to: Heads) {
    debug_assert!(from.heads == to.heads && from.width == to.width && x.rows() == out.rows());
    for t in 0..x.rows() {
        let (source, target) = (x.row(t), out.row_mut(t));
        for h in 0..from.heads {
            let (a, b) = (from.col0 + h * from.stride, to.col0 + h * to.stride);
            target[b..b + to.width].copy_from_slice(&source[a..a + from.width]);
        }
    }
}

/// The rows `rows` of `x`, in that order.
pub(crate) fn select_rows(ops: &Ops, x: &Tensor, rows: &[usize]) -> Tensor {
    let mut out = ops.zeros(rows.len(), x.cols());
    for (i, row) in rows.iter().enumerate() {
        out.row_mut(i).copy_from_slice(x.row(*row));
    }
    out
}
