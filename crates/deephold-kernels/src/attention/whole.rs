//! Attention of encoders: every row of a text sees every row of it, and nothing is cached.
//!
//! The arithmetic of one query is that of the cached kinds: 16 positions at a time in order, with the online softmax.

use std::ops::Range;

use super::attend::{AsF32, Span, State, span_step};
use crate::simd::LANES;
use crate::tensor::SharedOut;
use crate::{Ops, Tensor};

/// Queries a task.
const TILE: usize = 16;

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
        let mut out = self.zeros(rows, cols);
        let shared = SharedOut::new(out.data_mut());
        let isa = self.isa();
        self.pool().run(tasks.len(), &|task, _| {
            let (text, tile, head) = tasks[task].clone();
            for row in tile {
                // SAFETY: a task owns its rows' columns of its head.
                let out = unsafe { shared.slice(row * cols + head * width, width) };
                let mut state = State::default();
                for start in text.clone().step_by(LANES) {
                    let count = LANES.min(text.end - start);
                    let mut at = [0; LANES];
                    (0..count).for_each(|i| at[i] = (start + i) * cols + head * width);
                    let span = Span {
                        keys: k.data().as_ptr().cast(),
                        values: v.data().as_ptr().cast(),
                        key_at: &at[..count],
                        value_at: &at[..count],
                        key_width: width,
                        value_width: width,
                        scale,
                    };
                    let q = &q.row(row)[head * width..][..width];
                    // SAFETY: places are rows of k and v, q and out have `width` elements, and `isa` is available.
                    unsafe { span_step::<AsF32>(isa, &span, q.as_ptr(), out.as_mut_ptr(), &mut state) };
                }
                let inverse = 1.0 / state.sum;
                out.iter_mut().for_each(|x| *x *= inverse);
            }
        });
        out
    }
}
