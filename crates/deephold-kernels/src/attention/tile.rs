//! The arithmetic of attention: a tile of queries against a span of positions.
//!
//! Positions stand in lanes while scores are computed: a score is one chain of fused multiply-adds over the columns of its key,
//! so that six queries share every key that is loaded and nothing is summed across lanes. Values stand with their columns in
//! lanes: an output is one chain over the positions. How many queries share a load changes speed, never bits.

#![allow(clippy::needless_range_loop, reason = "loops over registers, counted by constants")]

use std::cell::RefCell;

use crate::simd::{LANES, Simd, dispatch, exp, load_n, store_n};

/// Positions that one step of the online softmax takes.
pub(super) const SPAN: usize = 64;

/// Queries that share a load: their sums fill the registers of AVX2.
const TOGETHER: usize = 6;

/// How a cached vector is read.
pub(super) trait Entry: Copy {
    /// Bytes of an element.
    const SIZE: usize;
    /// # Safety
    /// See [`Simd`]; `i` is in elements and `p` reaches `n` of them from there.
    unsafe fn load<S: Simd>(p: *const u8, i: usize, n: usize) -> S::V;
}
#[derive(Clone, Copy)]
pub(super) struct AsF32;
#[derive(Clone, Copy)]
pub(super) struct AsF16;

impl Entry for AsF32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8, i: usize, n: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe { load_n::<S>(p.cast::<f32>().add(i), n) }
    }
}
impl Entry for AsF16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8, i: usize, n: usize) -> S::V {
        // SAFETY: the caller's.
        unsafe {
            let p = p.cast::<u16>().add(i);
            if n >= LANES {
                return S::load_f16(p);
            }
            let mut lanes = [0u16; LANES];
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            S::load_f16(lanes.as_ptr())
        }
    }
}

/// Where the keys of a span lie.
#[derive(Clone, Copy)]
pub(super) enum Keys<'a> {
    /// Groups of sixteen positions, each [width][16]; what lies behind the last position is read and not used.
    Columns(&'a [*const u8]),
    /// A key of `width` elements for each position.
    Rows(&'a [*const u8]),
}

/// At most [`SPAN`] positions, all of which the queries see.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) keys: Keys<'a>,
    /// The value of each position.
    pub(super) values: &'a [*const u8],
    /// The group, or up to sixteen rows, that follow the keys, where they are known: a hint.
    pub(super) next: &'a [*const u8],
    pub(super) key_width: usize,
    pub(super) value_width: usize,
    pub(super) scale: f32,
}

/// What the softmax has seen of one query.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) max: f32,
    pub(super) sum: f32,
}

impl Default for State {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0 }
    }
}

/// Queries and what they gather.
pub(super) struct Queries<'a> {
    /// Of each query, `key_width` elements.
    pub(super) q: &'a [*const f32],
    /// Of each query, the weighted sum so far, `value_width` elements.
    pub(super) out: &'a [*mut f32],
    pub(super) states: &'a mut [State],
    /// Nothing was gathered yet: `out` holds anything and is written only.
    pub(super) fresh: bool,
}

/// Memory that a thread keeps between tasks.
#[derive(Default)]
pub(super) struct Scratch {
    /// Scores, then weights, [queries][SPAN].
    weights: Vec<f32>,
    /// What the sums so far are multiplied with, [queries].
    rescale: Vec<f32>,
    /// Sixteen keys, column by column.
    columns: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Runs `f` with this thread's scratch memory.
pub(super) fn with_scratch<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(f)
}

/// `len` elements, whatever they hold.
fn at_least(v: &mut Vec<f32>, len: usize) -> *mut f32 {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    v.as_mut_ptr()
}

/// Calls `$body` with a constant T, 1 to [`TOGETHER`], and the range of queries, for parts of nearly equal size.
macro_rules! in_parts {
    ($count:expr, |$at:ident, $t:ident| $body:expr) => {{
        let count = $count;
        let parts = count.div_ceil(TOGETHER).max(1);
        let mut $at = 0;
        for part in 0..parts {
            let end = count * (part + 1) / parts;
            macro_rules! with {
                ($n:literal) => {{
                    const $t: usize = $n;
                    $body
                }};
            }
            match end - $at {
                0 => {}
                1 => with!(1),
                2 => with!(2),
                3 => with!(3),
                4 => with!(4),
                5 => with!(5),
                _ => with!(6),
            }
            $at = end;
        }
    }};
}

/// What is asked for while scores are computed.
trait Ahead: Copy {
    /// At column `d`.
    ///
    /// # Safety
    /// See [`Simd`].
    unsafe fn ask<S: Simd>(self, d: usize);
}

impl Ahead for () {
    #[inline(always)]
    unsafe fn ask<S: Simd>(self, _: usize) {}
}

/// What lies at `N` places, `stride` bytes for each column.
#[derive(Clone, Copy)]
struct Along<const N: usize> {
    at: [*const u8; N],
    stride: usize,
}

impl<const N: usize> Ahead for Along<N> {
    #[inline(always)]
    unsafe fn ask<S: Simd>(self, d: usize) {
        for at in self.at {
            // SAFETY: the caller's; asking for memory that is not there does nothing.
            unsafe { S::ask_for(at.wrapping_add(d * self.stride)) };
        }
    }
}

/// Sixteen rows of as many elements of `size` bytes as there are columns: a piece of one row at each column.
#[derive(Clone, Copy)]
struct Across<'a> {
    rows: &'a [*const u8; LANES],
    size: usize,
}

impl Ahead for Across<'_> {
    #[inline(always)]
    unsafe fn ask<S: Simd>(self, d: usize) {
        let at = self.rows[d % LANES].wrapping_add(d / LANES * LANES * self.size);
        // SAFETY: as above.
        unsafe { S::ask_for(at) };
    }
}

/// Scores of `T` queries with `P` groups of sixteen positions: `out[t][16 * p ..]`, rows [`SPAN`] apart.
///
/// # Safety
/// See [`Simd`]; each group is [width][16], each query has `width` elements, `out` reaches the last row.
#[inline(always)]
unsafe fn scores<S: Simd, E: Entry, A: Ahead, const T: usize, const P: usize>(
    groups: &[*const u8],
    q: &[*const f32],
    (width, scale): (usize, f32),
    out: *mut f32,
    ahead: A,
) {
    // SAFETY: the caller's.
    unsafe {
        let groups: [*const u8; P] = std::array::from_fn(|p| groups[p]);
        let q: [*const f32; T] = std::array::from_fn(|t| q[t]);
        let mut acc = [[S::splat(0.0); P]; T];
        for d in 0..width {
            ahead.ask::<S>(d);
            let keys: [S::V; P] = std::array::from_fn(|p| E::load::<S>(groups[p], d * LANES, LANES));
            for t in 0..T {
                let x = S::splat(*q[t].add(d));
                for p in 0..P {
                    acc[t][p] = S::fma(x, keys[p], acc[t][p]);
                }
            }
        }
        for t in 0..T {
            for p in 0..P {
                S::store(out.add(t * SPAN + p * LANES), S::mul(acc[t][p], S::splat(scale)));
            }
        }
    }
}

/// Scores of `T` queries with all groups of `span`; few queries take several groups at once, so that enough sums are in flight.
/// With `FETCH` the values and the groups that follow are asked for: for the first queries that meet a span.
///
/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn all_scores<S: Simd, E: Entry, const T: usize, const FETCH: bool>(
    span: &Span<'_>,
    groups: &[*const u8],
    q: &[*const f32],
    out: *mut f32,
) {
    let shape = (span.key_width, span.scale);
    let mut p = 0;
    while p < groups.len() {
        let (rest, to) = (&groups[p..], out.wrapping_add(p * LANES));
        let taken = match (T, rest.len()) {
            (1, 4..) => 4,
            (1..=3, 2..) => 2,
            _ => 1,
        };
        let next = rest.get(taken).copied().or(span.next.first().copied()).unwrap_or(rest[0]);
        let stride = taken * LANES * E::SIZE;
        // SAFETY: the caller's.
        unsafe {
            if FETCH {
                let ahead = Along { at: [next, span.values[p * LANES]], stride };
                match taken {
                    4 => scores::<S, E, _, T, 4>(rest, q, shape, to, ahead),
                    2 => scores::<S, E, _, T, 2>(rest, q, shape, to, ahead),
                    _ => scores::<S, E, _, T, 1>(rest, q, shape, to, ahead),
                }
            } else {
                match taken {
                    4 => scores::<S, E, _, T, 4>(rest, q, shape, to, ()),
                    2 => scores::<S, E, _, T, 2>(rest, q, shape, to, ()),
                    _ => scores::<S, E, _, T, 1>(rest, q, shape, to, ()),
                }
            }
        }
        p += taken;
    }
}

/// Turns `n` scores into e^(score - maximum so far), and says what earlier sums are to be multiplied with.
///
/// # Safety
/// See [`Simd`]; `scores` reaches `n` elements rounded up to sixteen.
#[inline(always)]
unsafe fn weigh<S: Simd>(scores: *mut f32, n: usize, state: &mut State, fresh: bool) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        for i in n..n.next_multiple_of(LANES) {
            *scores.add(i) = f32::NEG_INFINITY;
        }
        // NaN passes through: it wins no comparison, and e^NaN below is NaN.
        let mut top = S::splat(state.max);
        for i in (0..n).step_by(LANES) {
            top = S::max(S::load(scores.add(i)), top);
        }
        let max = S::fold_max(top);
        let shift = S::splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
        let mut sum = S::splat(0.0);
        for i in (0..n).step_by(LANES) {
            let weights = exp::<S>(S::sub(S::load(scores.add(i)), shift));
            S::store(scores.add(i), weights);
            sum = S::add(sum, weights);
        }
        let rescale = if fresh { 0.0 } else { first::<S>(exp::<S>(S::sub(S::splat(state.max), shift))) };
        state.sum = state.sum.mul_add(rescale, S::sum(sum));
        state.max = max;
        rescale
    }
}

#[inline(always)]
unsafe fn first<S: Simd>(v: S::V) -> f32 {
    let mut lanes = [0f32; LANES];
    // SAFETY: sixteen elements.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    lanes[0]
}

/// out[t] = rescale[t] out[t] + the weighted values, of `C` vectors of columns from `i` on; the last has `n` columns.
///
/// # Safety
/// See [`Simd`]; `weights` has rows [`SPAN`] apart of as many elements as there are values, values and outputs reach the
/// columns.
#[inline(always)]
unsafe fn values<S: Simd, E: Entry, const T: usize, const C: usize>(
    values: &[*const u8],
    (i, n): (usize, usize),
    weights: *const f32,
    rescale: Option<&[f32]>,
    out: &[*mut f32],
) {
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[S::splat(0.0); C]; T];
        if let Some(rescale) = rescale {
            for t in 0..T {
                for c in 0..C {
                    acc[t][c] = S::mul(load_n::<S>(out[t].add(i + c * LANES), n), S::splat(rescale[t]));
                }
            }
        }
        for (p, at) in values.iter().enumerate() {
            let v: [S::V; C] = std::array::from_fn(|c| E::load::<S>(*at, i + c * LANES, n));
            for t in 0..T {
                let w = S::splat(*weights.add(t * SPAN + p));
                for c in 0..C {
                    acc[t][c] = S::fma(w, v[c], acc[t][c]);
                }
            }
        }
        for t in 0..T {
            for c in 0..C {
                store_n::<S>(out[t].add(i + c * LANES), n, acc[t][c]);
            }
        }
    }
}

/// All columns of [`values`].
///
/// # Safety
/// As [`values`].
#[inline(always)]
unsafe fn all_values<S: Simd, E: Entry, const T: usize>(
    at: &[*const u8],
    width: usize,
    weights: *const f32,
    rescale: Option<&[f32]>,
    out: &[*mut f32],
) {
    let mut i = 0;
    // SAFETY: the caller's.
    unsafe {
        while i < width {
            i += match (T, (width - i) / LANES) {
                (1, 4..) => {
                    values::<S, E, T, 4>(at, (i, LANES), weights, rescale, out);
                    4 * LANES
                }
                (1..=3, 2..) => {
                    values::<S, E, T, 2>(at, (i, LANES), weights, rescale, out);
                    2 * LANES
                }
                (_, 1..) => {
                    values::<S, E, T, 1>(at, (i, LANES), weights, rescale, out);
                    LANES
                }
                _ => {
                    values::<S, E, T, 1>(at, (i, width - i), weights, rescale, out);
                    LANES
                }
            };
        }
    }
}

/// Sixteen keys that lie in rows, column by column: [width][16]. Fewer than sixteen are filled up with the last.
///
/// # Safety
/// See [`Simd`]; each row has `width` elements, `out` has 16 * `width` rounded up to sixteen.
#[inline(always)]
unsafe fn turn<S: Simd, E: Entry>(rows: &[*const u8], width: usize, out: *mut f32) {
    let rows: [*const u8; LANES] = std::array::from_fn(|p| rows[p.min(rows.len() - 1)]);
    for i in (0..width).step_by(LANES) {
        // SAFETY: the caller's.
        unsafe {
            let n = width - i;
            let block = rows.map(|row| E::load::<S>(row, i, n.min(LANES)));
            for (j, column) in S::transpose(block).into_iter().enumerate() {
                S::store(out.add((i + j) * LANES), column);
            }
        }
    }
}

#[inline(always)]
unsafe fn step_body<S: Simd, E: Entry>(span: &Span<'_>, queries: &mut Queries<'_>, scratch: &mut Scratch) {
    let (n, count, width) = (span.values.len(), queries.q.len(), span.key_width);
    let weights = at_least(&mut scratch.weights, count * SPAN);
    let rescale = at_least(&mut scratch.rescale, count);
    // SAFETY: the caller's: places, queries and outputs reach their widths; scratch was made large enough.
    unsafe {
        // 1. Scores.
        match span.keys {
            Keys::Columns(groups) => in_parts!(count, |at, T| {
                let (q, out) = (&queries.q[at..], weights.add(at * SPAN));
                match at {
                    0 => all_scores::<S, E, T, true>(span, groups, q, out),
                    _ => all_scores::<S, E, T, false>(span, groups, q, out),
                }
            }),
            Keys::Rows(keys) => {
                let columns = at_least(&mut scratch.columns, width.next_multiple_of(LANES) * LANES);
                for (g, rows) in keys.chunks(LANES).enumerate() {
                    turn::<S, E>(rows, width, columns);
                    let group = [columns.cast_const().cast::<u8>()];
                    // Turning reads sixteen rows side by side, which no processor foresees.
                    let next =
                        keys.get((g + 1) * LANES..).filter(|rows| !rows.is_empty()).unwrap_or(span.next);
                    let next = std::array::from_fn(|p| next.get(p).copied().unwrap_or(rows[0]));
                    let ahead = Across { rows: &next, size: E::SIZE };
                    in_parts!(count, |at, T| {
                        let out = weights.add(at * SPAN + g * LANES);
                        let (q, shape) = (&queries.q[at..], (width, span.scale));
                        match at {
                            0 => scores::<S, AsF32, _, T, 1>(&group, q, shape, out, ahead),
                            _ => scores::<S, AsF32, _, T, 1>(&group, q, shape, out, ()),
                        }
                    });
                }
            }
        }
        // 2. Weights.
        for (i, state) in queries.states.iter_mut().enumerate() {
            *rescale.add(i) = weigh::<S>(weights.add(i * SPAN), n, state, queries.fresh);
        }
        // 3. Values.
        let rescale = std::slice::from_raw_parts(rescale, count);
        in_parts!(count, |at, T| {
            let rescale = (!queries.fresh).then_some(&rescale[at..]);
            let weights = weights.add(at * SPAN);
            all_values::<S, E, T>(span.values, span.value_width, weights, rescale, &queries.out[at..]);
        });
    }
}
dispatch!(
    /// All queries against one span.
    pub(super) fn step[E: Entry](span: &Span<'_>, queries: &mut Queries<'_>, scratch: &mut Scratch) = step_body
);

/// Adds what was gathered of later positions: both sides as [`step`] leaves them, [width].
#[inline(always)]
unsafe fn merge_body<S: Simd>(into: *mut f32, state: &mut State, part: *const f32, of: State, width: usize) {
    // SAFETY: the caller's: both reach `width` elements.
    unsafe {
        let max = if of.max > state.max { of.max } else { state.max };
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let mut lanes = [0f32; LANES];
        (lanes[0], lanes[1]) = (state.max - shift, of.max - shift);
        S::store(lanes.as_mut_ptr(), exp::<S>(S::load(lanes.as_ptr())));
        let [a, b] = [lanes[0], lanes[1]];
        state.sum = state.sum.mul_add(a, of.sum * b);
        state.max = max;
        for i in (0..width).step_by(LANES) {
            let n = width - i;
            let later = S::mul(load_n::<S>(part.add(i), n), S::splat(b));
            store_n::<S>(into.add(i), n, S::fma(load_n::<S>(into.add(i), n), S::splat(a), later));
        }
    }
}
dispatch!(
    pub(super) fn merge(into: *mut f32, state: &mut State, part: *const f32, of: State, width: usize) = merge_body
);

/// The lightning indexer's scores of sixteen positions: sum over heads of w[h] relu(q[h] . k), heads in order.
#[inline(always)]
unsafe fn index_scores_body<S: Simd, E: Entry>(
    group: *const u8,
    q: &[*const f32],
    w: &[f32],
    width: usize,
    scale: f32,
    out: *mut f32,
) {
    // SAFETY: the caller's: the group is [width][16], each query has `width` elements, `out` has 16.
    unsafe {
        let mut sum = S::splat(0.0);
        in_parts!(q.len(), |at, T| {
            let mut dots = [0f32; TOGETHER * SPAN];
            scores::<S, E, _, T, 1>(&[group], &q[at..], (width, 1.0), dots.as_mut_ptr(), ());
            for t in 0..T {
                let positive = S::max(S::load(dots[t * SPAN..].as_ptr()), S::splat(0.0));
                sum = S::fma(S::splat(w[at + t]), positive, sum);
            }
        });
        // Adding 0 turns -0 into 0.
        S::store(out, S::add(S::mul(sum, S::splat(scale)), S::splat(0.0)));
    }
}
dispatch!(
    pub(super) fn index_scores[E: Entry](
        group: *const u8,
        q: &[*const f32],
        w: &[f32],
        width: usize,
        scale: f32,
        out: *mut f32,
    ) = index_scores_body
);
