//! The lightning indexer (DeepSeek-V3.2): which positions a query attends to.
//!
//! score\[s\] = scale * sum over heads h of w\[h\] * relu(q\[h\] . k\[s\]), heads in order. The `topk` best positions are chosen;
//! of equal scores the lower position, and -0 equals 0, so that the choice does not depend on the rows beside it.

use super::AttentionContext;
use crate::Tensor;
use crate::cache::CacheDType;
use half::f16;
use std::sync::Mutex;

/// Chosen positions of each row, ascending.
pub struct Selection {
    pub(super) rows: Vec<Vec<u32>>,
}

impl Selection {
    /// Positions of row `row`.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.rows[row]
    }
}

impl AttentionContext<'_> {
    /// q [T, heads * D], w [T, heads]; kind `spec` of `layer` holds the index keys.
    ///
    /// # Panics
    /// If the queries or weights are of another shape or batch, or `topk` is 0.
    pub fn index_select(
        &self,
        layer: usize,
        spec: usize,
        q: &Tensor,
        w: &Tensor,
        topk: usize,
        scale: f32,
    ) -> Selection {
        let width = self.cache.spec(layer, spec).width;
        assert!(
            q.cols() == w.cols() * width && q.rows() == self.positions.len() && w.rows() == q.rows(),
            "index queries of another shape"
        );
        assert!(topk > 0, "a selection of nothing");
        let rows: Vec<Mutex<Vec<u32>>> = self.positions.iter().map(|_| Mutex::default()).collect();
        self.ops.pool().run(rows.len(), &|row, _| {
            let last = self.positions[row];
            let chosen = if (last as usize) < topk {
                (0..=last).collect()
            } else {
                best(&mut self.scores(layer, spec, q.row(row), w.row(row), row, scale), topk)
            };
            *rows[row].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = chosen;
        });
        let take = |m: Mutex<Vec<u32>>| m.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Selection { rows: rows.into_iter().map(take).collect() }
    }

    /// Every position that row `row` may see, with its score.
    fn scores(
        &self,
        layer: usize,
        spec: usize,
        q: &[f32],
        w: &[f32],
        row: usize,
        scale: f32,
    ) -> Vec<(f32, u32)> {
        let s = self.cache.spec(layer, spec);
        let mut key = vec![0f32; s.width];
        let mut scored: Vec<(f32, u32)> = Vec::with_capacity(self.positions[row] as usize + 1);
        for position in 0..=self.positions[row] {
            self.load(layer, spec, self.place(row, s, 0, position as usize), &mut key);
            let mut score = 0f32;
            for (q, w) in q.chunks_exact(s.width).zip(w) {
                score = w.mul_add(dot(q, &key).max(0.0), score);
            }
            // Adding 0 turns -0 into 0.
            scored.push((score * scale + 0.0, position));
        }
        scored
    }

    fn load(&self, layer: usize, spec: usize, at: usize, out: &mut [f32]) {
        let slab = self.cache.slab(layer, spec);
        for (i, x) in out.iter_mut().enumerate() {
            // SAFETY: `at` is a place of this slab, which this context holds.
            *x = unsafe {
                match self.cache.dtype() {
                    CacheDType::F32 => *slab.cast::<f32>().add(at + i),
                    CacheDType::F16 => (*slab.cast::<f16>().add(at + i)).to_f32(),
                }
            };
        }
    }
}

/// The `topk` best positions, ascending; the lower one of equals.
fn best(scored: &mut [(f32, u32)], topk: usize) -> Vec<u32> {
    let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    scored.select_nth_unstable_by(topk - 1, order);
    let mut chosen: Vec<u32> = scored[..topk].iter().map(|x| x.1).collect();
    chosen.sort_unstable();
    chosen
}

/// Sixteen partial sums, so that the compiler may use vectors without changing the result.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (a, b) in a.chunks(16).zip(b.chunks(16)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum()
}
