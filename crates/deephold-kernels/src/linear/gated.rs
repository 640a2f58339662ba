//! Gated products: silu(x Wg^T) * (x Wu^T), SwiGLU's hidden values (Shazeer 2020).
//!
//! A task computes some columns of the gate, then the same of the other product, and puts one into the other while both lie in the
//! caches: neither goes to memory alone, and a feed-forward block has a region less. The bits are those of the two products and of
//! [`silu_mul`] after them.

use std::cell::RefCell;

use super::{Activations, PANEL, PairRows, Part, Product, Weight};
use crate::elementwise::silu_mul;
use crate::linear::quant::InputRows;
use crate::route::ExpertPlan;
use crate::tensor::{SharedOut, Window};
use crate::{Ops, PackedMatrix, Tensor};

/// Elements of the gate that are computed at a time, 64 KiB: long runs of panels where rows are few and come from memory.
const GATES: usize = 1 << 14;
/// The least panels at a time: what kernels take apart together.
const PANELS_MIN: usize = 2;

thread_local! {
    /// Columns of a gate, kept for the next ones.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Ops {
    /// silu(x Wg^T + bg) * (x Wu^T + bu), [T, N], for two matrices of one shape.
    ///
    /// # Panics
    /// If the matrices differ in shape, or a bias or the activations are of another length.
    pub fn gated(&self, gate: Weight<'_>, up: Weight<'_>, x: &Activations<'_>) -> Tensor {
        let mut y = self.dirty(x.rows, up.0.n);
        let window = Window::whole(&mut y);
        self.run_products(&[Product { w: up, gate: Some(gate), x, rows: InputRows::All, window }]);
        y
    }

    /// The same for each pair of `plan` with its expert's matrices: [pairs, N], rows in the plan's order. A pair reads its token's
    /// row of `x`.
    pub fn moe_gated(
        &self,
        gates: &[PackedMatrix],
        ups: &[PackedMatrix],
        x: &Activations<'_>,
        plan: &ExpertPlan,
    ) -> Tensor {
        self.moe(Some(gates), ups, x, plan, PairRows::PerToken)
    }

    /// A part of a product and of its gate, as a task that owns its panels.
    pub(super) fn multiply_gated(&self, product: &Product<'_>, gate: Weight<'_>, part: Part) {
        let rows = part.rows;
        let at_once = (GATES / (rows.len() * PANEL).max(1)).max(PANELS_MIN);
        SCRATCH.with_borrow_mut(|scratch| {
            for start in part.panels.clone().step_by(at_once) {
                let part = Part { rows: rows.clone(), panels: start..part.panels.end.min(start + at_once) };
                let columns = gate.0.columns(&part.panels);
                let (skip, stride) = (columns.start, columns.len());
                scratch.resize(scratch.len().max(rows.len() * stride), 0.0);
                let out = SharedOut::new(scratch);
                let gates = Window { out, row0: 0, col0: 0, skip: skip + rows.start * stride, stride };
                self.multiply(product, gate, &part, gates);
                self.multiply(product, product.w, &part, product.window);
                for row in rows.clone() {
                    // SAFETY: a task owns its panels' columns, and a thread its scratch memory; `isa` is available.
                    unsafe {
                        let gate = gates.slice(row, skip, stride);
                        let out = product.window.slice(row, skip, stride);
                        silu_mul(self.isa(), gate.as_ptr(), out.as_mut_ptr(), stride);
                    }
                }
            }
        });
    }
}
