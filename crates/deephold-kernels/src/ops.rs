//! The seam itself: what a model may compute. Each op's method lives in its own folder.

use std::sync::Arc;

use crate::tensor::{Buffers, SharedOut};
use crate::{Isa, Tensor, ThreadPool};

/// Elements below which an elementwise op stays on the caller's thread: a fork costs about as much as these.
const PARALLEL_MIN: usize = 1 << 14;

/// Arithmetic on one machine: an instruction set, threads, and recycled buffers.
pub struct Ops {
    isa: Isa,
    pool: Arc<ThreadPool>,
    buffers: Arc<Buffers>,
}

impl Ops {
    /// Where the machine lacks `isa`, the widest available one is taken instead (see [`Ops::isa`]).
    pub fn new(isa: Isa, pool: Arc<ThreadPool>) -> Self {
        let isa = if isa.is_available() { isa } else { Isa::detect() };
        Self { isa, pool, buffers: Arc::default() }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads in use.
    pub fn pool(&self) -> &Arc<ThreadPool> {
        &self.pool
    }

    /// A tensor of zeros.
    pub fn zeros(&self, rows: usize, cols: usize) -> Tensor {
        let mut t = self.dirty(rows, cols);
        t.data_mut().fill(0.0);
        t
    }

    /// A copy of `data`, [rows * cols].
    pub fn tensor_from(&self, rows: usize, cols: usize, data: &[f32]) -> Tensor {
        let mut t = self.dirty(rows, cols);
        t.data_mut().copy_from_slice(data);
        t
    }

    /// Arbitrary contents; every element is to be written.
    pub(crate) fn dirty(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::dirty(&self.buffers, rows, cols)
    }

    /// Calls `f(row, its elements)` for each row of `out`, in parallel where it is worth it.
    pub(crate) fn for_rows(&self, out: &mut Tensor, f: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, cols) = (out.rows(), out.cols());
        let chunk = (PARALLEL_MIN / 2 / cols.max(1)).max(1);
        let shared = SharedOut::new(out.data_mut());
        let body = |task: usize, _worker: usize| {
            for row in task * chunk..((task + 1) * chunk).min(rows) {
                // SAFETY: each row belongs to one task.
                f(row, unsafe { shared.slice(row * cols, cols) });
            }
        };
        let tasks = rows.div_ceil(chunk);
        if rows * cols < PARALLEL_MIN {
            (0..tasks).for_each(|t| body(t, 0));
        } else {
            self.pool.run(tasks, &body);
        }
    }
}
