//! The lightning indexer (DeepSeek-V3.2): which positions a query attends to.
//!
//! score\[s\] = scale * sum over heads h of w\[h\] * relu(q\[h\] . k\[s\]), heads in order. The `topk` best positions are chosen;
//! of equal scores the lower position, and -0 equals 0, so that the choice does not depend on the rows beside it.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::AttentionContext;
use super::tile::{AsF16, AsF32, Entry, index_scores};
use crate::Tensor;
use crate::cache::{CacheDType, EntryOrder};
use crate::simd::LANES;
use crate::tensor::SharedOut;

/// Positions a task scores, where the rows alone are too few for the threads.
const CHUNK: usize = 1024;

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
    /// q [T, heads * D], w [T, heads]; kind `spec` of `layer` holds the index keys, in columns.
    ///
    /// # Panics
    /// If the queries or weights are of another shape or batch, the keys lie in rows, or `topk` is 0.
    pub fn index_select(
        &self,
        layer: usize,
        spec: usize,
        q: &Tensor,
        w: &Tensor,
        topk: usize,
        scale: f32,
    ) -> Selection {
        let keys = self.cache.spec(layer, spec);
        assert!(
            q.cols() == w.cols() * keys.width && q.rows() == self.positions.len() && w.rows() == q.rows(),
            "index queries of another shape"
        );
        assert!(topk > 0, "a selection of nothing");
        assert!(
            keys.order == EntryOrder::Columns && keys.heads == 1,
            "index keys in rows or of several heads"
        );
        let scores = |row: usize, positions: Range<usize>, out: &mut [f32]| match self.cache.dtype() {
            CacheDType::F32 => self.index_scores::<AsF32>((layer, spec), q, w, (row, scale), positions, out),
            CacheDType::F16 => self.index_scores::<AsF16>((layer, spec), q, w, (row, scale), positions, out),
        };
        let pool = self.ops.pool();
        // Rows whose positions all fit need no scores.
        let longest = self.positions.iter().map(|p| *p as usize + 1).filter(|n| *n > topk).max().unwrap_or(0);
        let by_chunk = self.positions.len() < 2 * pool.threads();
        let mut all = self.ops.dirty(if by_chunk { self.positions.len() } else { 0 }, longest);
        if by_chunk {
            let shared = SharedOut::new(all.data_mut());
            let tasks: Vec<(usize, Range<usize>)> = (self.positions.iter().enumerate())
                .map(|(row, last)| (row, *last as usize + 1))
                .filter(|(_, n)| *n > topk)
                .flat_map(|(row, n)| (0..n).step_by(CHUNK).map(move |at| (row, at..(at + CHUNK).min(n))))
                .collect();
            pool.run(tasks.len(), &|task, _| {
                let (row, positions) = tasks[task].clone();
                // SAFETY: a task owns its positions of its row.
                let out = unsafe { shared.slice(row * longest + positions.start, positions.len()) };
                scores(row, positions, out);
            });
        }
        let rows: Vec<Mutex<Vec<u32>>> = self.positions.iter().map(|_| Mutex::default()).collect();
        pool.run(rows.len(), &|row, _| {
            let n = self.positions[row] as usize + 1;
            let chosen = if n <= topk {
                (0..n as u32).collect()
            } else if by_chunk {
                best(&all.row(row)[..n], topk)
            } else {
                let mut own = vec![0f32; n];
                scores(row, 0..n, &mut own);
                best(&own, topk)
            };
            *rows[row].lock().unwrap_or_else(PoisonError::into_inner) = chosen;
        });
        let take = |m: Mutex<Vec<u32>>| m.into_inner().unwrap_or_else(PoisonError::into_inner);
        Selection { rows: rows.into_iter().map(take).collect() }
    }

    /// The scores that row `row` gives to `positions`, which begin with a whole group.
    fn index_scores<E: Entry>(
        &self,
        (layer, spec): (usize, usize),
        q: &Tensor,
        w: &Tensor,
        (row, scale): (usize, f32),
        positions: Range<usize>,
        out: &mut [f32],
    ) {
        let keys = self.cache.spec(layer, spec);
        let slab = self.cache.slab(layer, spec).cast_const();
        let queries: Vec<*const f32> = q.row(row).chunks_exact(keys.width).map(<[f32]>::as_ptr).collect();
        for (start, out) in positions.step_by(LANES).zip(out.chunks_mut(LANES)) {
            let group = slab.wrapping_add(self.place(row, keys, 0, start) * E::SIZE);
            let mut lanes = [0f32; LANES];
            // SAFETY: the group is a place of this slab, which this context holds; queries have the keys' width; `isa` is
            // available.
            unsafe {
                let isa = self.ops.isa();
                index_scores::<E>(isa, group, &queries, w.row(row), keys.width, scale, lanes.as_mut_ptr());
            }
            out.copy_from_slice(&lanes[..out.len()]);
        }
    }
}

/// The `topk` best positions, ascending; the lower one of equals.
fn best(scores: &[f32], topk: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
    let mut chosen: Vec<u32> = (0..scores.len() as u32).collect();
    chosen.select_nth_unstable_by(topk - 1, order);
    chosen.truncate(topk);
    chosen.sort_unstable();
    chosen
}
