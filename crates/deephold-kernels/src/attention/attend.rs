//! softmax(scale * q K^T) V, 16 positions at a time.
//!
//! For one query and one span of 16 positions: 16 scores, each a dot product in 16 lanes over the width; the new maximum;
//! e^(score - maximum); the values' weighted sum, positions in order, on top of the rescaled accumulator. A task is a tile
//! of queries of one sequence and one key head, so that a span of the cache stays in L1 for all that read it.

use super::{AttentionContext, Selection};
use crate::Tensor;
use crate::cache::CacheDType;
use crate::simd::{LANES, Simd, dispatch, exp, load_n, store_n};
use crate::tensor::SharedOut;

/// Queries a task: enough to reuse a span, few enough to balance.
const TILE: usize = 16;

/// How a cached vector is read.
pub(super) trait Entry: Copy {
    /// # Safety
    /// See [`Simd`]; `i` is in elements and the slab reaches `n` of them from there.
    unsafe fn load<S: Simd>(slab: *const u8, i: usize, n: usize) -> S::V;
}
#[derive(Clone, Copy)]
pub(super) struct AsF32;
#[derive(Clone, Copy)]
struct AsF16;

impl Entry for AsF32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(slab: *const u8, i: usize, n: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { load_n::<S>(slab.cast::<f32>().add(i), n) }
    }
}
impl Entry for AsF16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(slab: *const u8, i: usize, n: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe {
            let p = slab.cast::<u16>().add(i);
            if n >= LANES {
                return S::load_f16(p);
            }
            let mut lanes = [0u16; LANES];
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            S::load_f16(lanes.as_ptr())
        }
    }
}

/// One query against one span of at most 16 positions.
pub(super) struct Span<'a> {
    pub(super) keys: *const u8,
    pub(super) values: *const u8,
    /// Element index of each position's key.
    pub(super) key_at: &'a [usize],
    /// Element index of each position's value.
    pub(super) value_at: &'a [usize],
    pub(super) key_width: usize,
    pub(super) value_width: usize,
    pub(super) scale: f32,
}

/// A query's state between spans.
pub(super) struct State {
    max: f32,
    pub(super) sum: f32,
}

impl Default for State {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

#[inline(always)]
unsafe fn span_body<S: Simd, E: Entry>(span: &Span<'_>, q: *const f32, out: *mut f32, state: &mut State) {
    let n = span.key_at.len();
    // SAFETY: the caller's: places lie in the slabs, q reaches key_width and out value_width elements.
    unsafe {
        // 1. Scores; lanes beyond n stay at minus infinity.
        let mut scores = [f32::NEG_INFINITY; LANES];
        for (score, at) in scores.iter_mut().zip(span.key_at) {
            let mut acc = S::splat(0.0);
            for i in (0..span.key_width).step_by(LANES) {
                let left = span.key_width - i;
                acc = S::fma(load_n::<S>(q.add(i), left), E::load::<S>(span.keys, at + i, left), acc);
            }
            *score = S::sum(acc) * span.scale;
        }
        // 2. The maximum so far. NaN passes through: it wins no comparison, and e^NaN below is NaN.
        let max = scores[..n].iter().copied().fold(state.max, |m, s| if s > m { s } else { m });
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        // 3. Weights.
        let mut weights = [0f32; LANES];
        S::store(weights.as_mut_ptr(), exp::<S>(S::sub(S::load(scores.as_ptr()), S::splat(shift))));
        let mut sum = 0.0;
        for w in &weights[..n] {
            sum += w;
        }
        let mut old = [0f32; LANES];
        S::store(old.as_mut_ptr(), exp::<S>(S::splat(state.max - shift)));
        let rescale = old[0];
        state.sum = state.sum.mul_add(rescale, sum);
        state.max = max;
        // 4. Values, positions in order.
        for i in (0..span.value_width).step_by(LANES) {
            let left = span.value_width - i;
            let mut acc = S::mul(load_n::<S>(out.add(i), left), S::splat(rescale));
            for (w, at) in weights.iter().zip(span.value_at) {
                acc = S::fma(S::splat(*w), E::load::<S>(span.values, at + i, left), acc);
            }
            store_n::<S>(out.add(i), left, acc);
        }
    }
}
dispatch!(pub(super) fn span_step[E: Entry](span: &Span<'_>, q: *const f32, out: *mut f32, state: &mut State) = span_body);

impl AttentionContext<'_> {
    /// Causal attention with grouped heads (Ainslie et al. 2023): q [T, Nq * D] -> [T, Nq * Dv]; kind 0 holds K, kind 1 V.
    ///
    /// # Panics
    /// If the queries are of another shape or batch, or the layer keeps values for another number of heads than keys.
    pub fn attend_gqa(&self, layer: usize, q: &Tensor, scale: f32) -> Tensor {
        let value_width = self.cache.spec(layer, 1).width;
        self.attend(layer, q, scale, 1, value_width, None)
    }

    /// Multi-head latent attention in the absorbed form (DeepSeek-V2, section 2.1): q [T, Nq * (R + rope)] ->
    /// [T, Nq * v_width]. Kind 0 holds latent and rope key; the values are its first `v_width` columns.
    ///
    /// # Panics
    /// If the queries are of another shape or batch, `v_width` is beyond the entries' width, or `selection` was made for
    /// another batch.
    pub fn attend_mla(
        &self,
        layer: usize,
        q: &Tensor,
        v_width: usize,
        scale: f32,
        selection: Option<&Selection>,
    ) -> Tensor {
        self.attend(layer, q, scale, 0, v_width, selection)
    }

    fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        scale: f32,
        value_spec: usize,
        value_width: usize,
        selection: Option<&Selection>,
    ) -> Tensor {
        let spec = self.cache.spec(layer, 0);
        let kv_heads = spec.heads;
        // The places of values are computed from their own kind: with fewer heads or columns they would lie outside.
        let values = self.cache.spec(layer, value_spec);
        assert_eq!(values.heads, kv_heads, "values of another number of heads than keys");
        assert!(
            value_width <= values.width,
            "values of {value_width} columns from entries of {}",
            values.width
        );
        if let Some(selection) = selection {
            assert_eq!(selection.rows.len(), self.positions.len(), "a selection of another batch");
            // Ascending, so that the last is the largest.
            let within =
                |(chosen, position): (&Vec<u32>, &u32)| chosen.last().is_none_or(|last| last <= position);
            assert!(selection.rows.iter().zip(&self.positions).all(within), "a selection beyond the row");
        }
        let heads = q.cols() / spec.width;
        let group = heads / kv_heads;
        assert!(q.cols() == heads * spec.width && heads == group * kv_heads, "queries of another shape");
        assert_eq!(q.rows(), self.positions.len(), "queries of another batch");
        let mut out = self.ops.zeros(q.rows(), heads * value_width);
        let shared = SharedOut::new(out.data_mut());
        let tasks = self.tasks(kv_heads);
        self.ops.pool().run(tasks.len(), &|task, _| {
            let (rows, head) = tasks[task].clone();
            let attention = AttentionTasks {
                ctx: self,
                layer,
                q,
                scale,
                value_spec,
                value_width,
                selection,
                head,
                group,
            };
            let cols = heads * value_width;
            // SAFETY: a task owns its rows' columns of its heads; tasks of other heads of the same rows own the others.
            let out = |row: usize, h: usize| unsafe {
                shared.slice(row * cols + (head * group + h) * value_width, value_width)
            };
            match self.cache.dtype() {
                CacheDType::F32 => attention.run::<AsF32>(rows, out),
                CacheDType::F16 => attention.run::<AsF16>(rows, out),
            }
        });
        out
    }

    /// Tiles of rows of one sequence, times key heads; the longest first, so that the last to finish is short.
    fn tasks(&self, kv_heads: usize) -> Vec<(std::ops::Range<usize>, usize)> {
        let mut tasks = Vec::new();
        for s in self.seqs {
            for start in s.rows.clone().step_by(TILE) {
                let rows = start..(start + TILE).min(s.rows.end);
                tasks.extend((0..kv_heads).map(|h| (rows.clone(), h)));
            }
        }
        tasks.sort_by_key(|(rows, _)| std::cmp::Reverse(self.positions[rows.start]));
        tasks
    }
}

struct AttentionTasks<'a> {
    ctx: &'a AttentionContext<'a>,
    layer: usize,
    q: &'a Tensor,
    scale: f32,
    value_spec: usize,
    value_width: usize,
    selection: Option<&'a Selection>,
    head: usize,
    group: usize,
}

impl AttentionTasks<'_> {
    fn run<'o, E: Entry>(&self, rows: std::ops::Range<usize>, out: impl Fn(usize, usize) -> &'o mut [f32]) {
        let mut states: Vec<State> = (0..rows.len() * self.group).map(|_| State::default()).collect();
        let last = self.ctx.positions[rows.end - 1] as usize;
        match self.selection {
            None => {
                let all: Vec<u32> = (0..=last as u32).collect();
                for span in all.chunks(LANES) {
                    for (i, row) in rows.clone().enumerate() {
                        // Causal: a query sees positions up to its own.
                        let seen = (self.ctx.positions[row] + 1).saturating_sub(span[0]) as usize;
                        let span = &span[..seen.min(span.len())];
                        self.step::<E>(row, span, &mut states[i * self.group..][..self.group], &out);
                    }
                }
            }
            Some(selection) => {
                for (i, row) in rows.clone().enumerate() {
                    for span in selection.row(row).chunks(LANES) {
                        self.step::<E>(row, span, &mut states[i * self.group..][..self.group], &out);
                    }
                }
            }
        }
        for (i, row) in rows.enumerate() {
            for h in 0..self.group {
                let inverse = 1.0 / states[i * self.group + h].sum;
                out(row, h).iter_mut().for_each(|x| *x *= inverse);
            }
        }
    }

    /// All heads of this task's group for one row and one span.
    fn step<'o, E: Entry>(
        &self,
        row: usize,
        span: &[u32],
        states: &mut [State],
        out: &impl Fn(usize, usize) -> &'o mut [f32],
    ) {
        if span.is_empty() {
            return;
        }
        let (ctx, cache) = (self.ctx, self.ctx.cache);
        let key_spec = cache.spec(self.layer, 0);
        let value_spec = cache.spec(self.layer, self.value_spec);
        let mut key_at = [0usize; LANES];
        let mut value_at = [0usize; LANES];
        for (i, position) in span.iter().enumerate() {
            key_at[i] = ctx.place(row, key_spec, self.head, *position as usize);
            value_at[i] = ctx.place(row, value_spec, self.head, *position as usize);
        }
        let span = Span {
            keys: cache.slab(self.layer, 0),
            values: cache.slab(self.layer, self.value_spec),
            key_at: &key_at[..span.len()],
            value_at: &value_at[..span.len()],
            key_width: key_spec.width,
            value_width: self.value_width,
            scale: self.scale,
        };
        for (h, state) in states.iter_mut().enumerate() {
            let q = &self.q.row(row)[(self.head * self.group + h) * key_spec.width..][..key_spec.width];
            // SAFETY: places are inside the slabs (`AttentionContext::new` checked the block tables), q and out have
            // key_width and value_width elements, the slabs are held by this context, and `isa` is available.
            unsafe { span_step::<E>(ctx.ops.isa(), &span, q.as_ptr(), out(row, h).as_mut_ptr(), state) };
        }
    }
}
