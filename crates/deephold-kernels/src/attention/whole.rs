//! Attention of encoders: every row of a text sees every row of it, and nothing is cached.
//!
//! The arithmetic of one query is that of the cached kinds, span by span in order, with the online softmax.

use std::ops::Range;

use super::tile::{AsF32, Keys, Queries, SPAN, Span, State, step, with_scratch};
use crate::tensor::SharedOut;
use crate::{Ops, Tensor};

/// Queries a task.
const TILE: usize = 32;

impl Ops {
    /// softmax(scale * q K^T) V within each text (Vaswani et al. 2017): q, k, v [T, heads * D] -> [T, heads * D]. `texts` are
    /// the rows of each text.
    ///
    /// # Panics
    /// If the tensors differ in shape, `heads` does not divide their columns, or the texts do not cover the rows once, in order.
    pub fn attend_whole(
        &self,
        [q, k, v]: [&Tensor; 3],
        texts: &[Range<usize>],
        heads: usize,
        scale: f32,
    ) -> Tensor {
        let (rows, cols) = (q.rows(), q.cols());
        assert!([k, v].iter().all(|t| t.rows() == rows && t.cols() == cols), "q, k and v differ in shape");
        assert!(heads > 0 && cols.is_multiple_of(heads), "heads of another width");
        let end = texts.iter().fold(0, |at, text| {
            assert!(text.start == at && text.end >= at, "texts that do not cover the rows");
            text.end
        });
        assert_eq!(end, rows, "texts that do not cover the rows");
        let width = cols / heads;
        let mut tasks = Vec::new();
        for text in texts {
            for start in text.clone().step_by(TILE) {
                let tile = start..(start + TILE).min(text.end);
                tasks.extend((0..heads).map(|head| (text.clone(), tile.clone(), head)));
            }
        }
        let mut out = self.dirty(rows, cols);
        let shared = SharedOut::new(out.data_mut());
        let isa = self.isa();
        self.pool().run(tasks.len(), &|task, _| {
            let (text, tile, head) = tasks[task].clone();
            let part = |t: &Tensor, row: usize| t.row(row)[head * width..][..width].as_ptr();
            let q: Vec<*const f32> = tile.clone().map(|row| part(q, row)).collect();
            // SAFETY: a task owns its rows' columns of its head.
            let place = |row: usize| unsafe { shared.slice(row * cols + head * width, width) };
            let places: Vec<*mut f32> = tile.clone().map(|row| place(row).as_mut_ptr()).collect();
            let mut states = vec![State::default(); tile.len()];
            with_scratch(|scratch| {
                for start in text.clone().step_by(SPAN) {
                    let span = start..(start + SPAN).min(text.end);
                    let rows = |t: &Tensor| -> Vec<*const u8> {
                        span.clone().map(|row| part(t, row).cast()).collect()
                    };
                    let (keys, values) = (rows(k), rows(v));
                    let span = Span {
                        keys: Keys::Rows(&keys),
                        values: &values,
                        next: &[],
                        key_width: width,
                        value_width: width,
                        scale,
                    };
                    let fresh = start == text.start;
                    let mut queries = Queries { q: &q, out: &places, states: &mut states, fresh };
                    // SAFETY: keys, values, queries and outputs have `width` elements, and `isa` is available.
                    unsafe { step::<AsF32>(isa, &span, &mut queries, scratch) };
                }
            });
            for (row, state) in tile.zip(&states) {
                let inverse = 1.0 / state.sum;
                place(row).iter_mut().for_each(|x| *x *= inverse);
            }
        });
        out
    }
}
