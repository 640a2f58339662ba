//! softmax(scale * q K^T) V over the paged cache.
//!
//! The positions of a query are cut into chunks of [`CHUNK`], counted from position 0 (or from the first chosen one), and each
//! chunk into spans. Within a chunk the online softmax goes on span by span; what chunks gathered is added up in their order.
//! So one query's result is one fixed sum whatever the tasks are: tiles of queries in a prompt; heads and, where those are too
//! few for the threads, single chunks in decoding (Dao et al. 2023, "Flash-Decoding").

use std::ops::Range;

use super::tile::{
    AsF16, AsF32, Entry, Keys, Queries, SPAN, Scratch, Span, State, merge, step, with_scratch,
};
use super::{AttentionContext, Selection};
use crate::cache::{CacheDType, EntryOrder};
use crate::simd::LANES;
use crate::tensor::SharedOut;
use crate::{CacheSpec, Tensor};

/// Positions whose results are gathered before they are added to those of earlier ones.
const CHUNK: usize = 512;

/// Queries a task, where there are enough tasks: they share what is read of the cache.
const QUERIES: usize = 64;
/// The least that a task is cut down to.
const QUERIES_MIN: usize = 8;
/// Elements that the results of single chunks may take: 256 MiB.
const PARTIAL_MAX: usize = 1 << 26;

/// Some rows of one sequence, and the query heads of one key head that a task computes.
#[derive(Clone, Debug)]
struct Tile {
    rows: Range<usize>,
    kv_head: usize,
    /// Counted over all query heads.
    heads: Range<usize>,
    /// Chunks that the last row sees.
    chunks: usize,
}

impl Tile {
    /// How many queries.
    fn len(&self) -> usize {
        self.rows.len() * self.heads.len()
    }

    /// Row and head of each query, heads within rows.
    fn queries(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.rows.clone().flat_map(|row| self.heads.clone().map(move |head| (row, head)))
    }
}

/// One call, as its tasks see it.
struct Attention<'a> {
    ctx: &'a AttentionContext<'a>,
    layer: usize,
    q: &'a Tensor,
    scale: f32,
    keys: &'a CacheSpec,
    values: &'a CacheSpec,
    value_spec: usize,
    value_width: usize,
    selection: Option<&'a Selection>,
}

impl AttentionContext<'_> {
    /// Causal attention with grouped heads (Ainslie et al. 2023): q [T, Nq * D] -> [T, Nq * Dv]; kind 0 holds K, kind 1 V.
    ///
    /// # Panics
    /// If the queries are of another shape or batch, the layer keeps values for another number of heads than keys, or values
    /// in columns.
    pub fn attend_gqa(&self, layer: usize, q: &Tensor, scale: f32) -> Tensor {
        let value_width = self.cache.spec(layer, 1).width;
        self.attend(layer, q, scale, 1, value_width, None)
    }

    /// Multi-head latent attention in the absorbed form (DeepSeek-V2, section 2.1): q [T, Nq * (R + rope)] ->
    /// [T, Nq * v_width]. Kind 0 holds latent and rope key; the values are its first `v_width` columns.
    ///
    /// # Panics
    /// If the queries are of another shape or batch, `v_width` is beyond the entries' width, the entries lie in columns, or
    /// `selection` was made for another batch.
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
        let (keys, values) = (self.cache.spec(layer, 0), self.cache.spec(layer, value_spec));
        let kv_heads = keys.heads;
        // The places of values are computed from their own kind: with fewer heads or columns they would lie outside.
        assert_eq!(values.heads, kv_heads, "values of another number of heads than keys");
        assert!(
            value_width <= values.width,
            "values of {value_width} columns from entries of {}",
            values.width
        );
        assert!(values.order == EntryOrder::Rows, "values in columns");
        if let Some(selection) = selection {
            assert_eq!(selection.rows.len(), self.positions.len(), "a selection of another batch");
            // Ascending, so that the last is the largest.
            let within =
                |(chosen, position): (&Vec<u32>, &u32)| chosen.last().is_none_or(|last| last <= position);
            assert!(selection.rows.iter().zip(&self.positions).all(within), "a selection beyond the row");
            assert!(keys.order == EntryOrder::Rows, "a selection of keys in columns");
        }
        let heads = q.cols() / keys.width;
        let group = heads / kv_heads;
        assert!(q.cols() == heads * keys.width && heads == group * kv_heads, "queries of another shape");
        assert_eq!(q.rows(), self.positions.len(), "queries of another batch");
        let attention =
            Attention { ctx: self, layer, q, scale, keys, values, value_spec, value_width, selection };
        match self.cache.dtype() {
            CacheDType::F32 => attention.run::<AsF32>(group),
            CacheDType::F16 => attention.run::<AsF16>(group),
        }
    }
}

impl Attention<'_> {
    fn run<E: Entry>(&self, group: usize) -> Tensor {
        let ops = self.ctx.ops;
        let threads = ops.pool().threads();
        let mut tiles = self.tiles(group, QUERIES);
        let mut by_chunk = false;
        if threads > 1 && tiles.len() < 2 * threads {
            let partial: usize = tiles.iter().map(|t| t.len() * t.chunks * self.value_width).sum();
            by_chunk = tiles.iter().any(|t| t.chunks > 1) && partial <= PARTIAL_MAX;
            let tasks = |tiles: &[Tile]| match by_chunk {
                true => tiles.iter().map(|t| t.chunks).sum(),
                false => tiles.len(),
            };
            let mut queries = QUERIES;
            while tasks(&tiles) < 2 * threads && queries > QUERIES_MIN {
                queries /= 2;
                tiles = self.tiles(group, queries);
            }
        }
        // The longest first, so that the last to finish is short.
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile.chunks));
        let mut out = ops.dirty(self.q.rows(), self.q.cols() / self.keys.width * self.value_width);
        let shared = SharedOut::new(out.data_mut());
        if by_chunk {
            self.by_chunk::<E>(&tiles, shared);
        } else {
            ops.pool().run(tiles.len(), &|task, _| self.whole::<E>(&tiles[task], shared));
        }
        out
    }

    /// How many positions row `row` sees.
    fn seen(&self, row: usize) -> usize {
        match self.selection {
            Some(selection) => selection.row(row).len(),
            None => self.ctx.positions[row] as usize + 1,
        }
    }

    fn tiles(&self, group: usize, queries: usize) -> Vec<Tile> {
        let (rows, heads) = ((queries / group).max(1), group.min(queries));
        let mut tiles = Vec::new();
        for s in self.ctx.seqs {
            for start in s.rows.clone().step_by(rows) {
                let rows = start..(start + rows).min(s.rows.end);
                let chunks = rows.clone().map(|row| self.seen(row)).max().unwrap_or(0).div_ceil(CHUNK);
                for kv_head in 0..self.keys.heads {
                    for first in (0..group).step_by(heads) {
                        let heads = kv_head * group + first..kv_head * group + (first + heads).min(group);
                        tiles.push(Tile { rows: rows.clone(), kv_head, heads, chunks });
                    }
                }
            }
        }
        tiles
    }

    /// Where the result of a query belongs.
    ///
    /// # Safety
    /// As [`SharedOut::slice`].
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    unsafe fn place<'o>(&self, out: &'o SharedOut, row: usize, head: usize) -> &'o mut [f32] {
        let cols = self.q.cols() / self.keys.width * self.value_width;
        // SAFETY: the caller's.
        unsafe { out.slice(row * cols + head * self.value_width, self.value_width) }
    }

    /// All chunks of a tile.
    fn whole<E: Entry>(&self, tile: &Tile, out: SharedOut) {
        let width = self.value_width;
        // SAFETY: a task owns its rows' columns of its heads.
        let places: Vec<*mut f32> =
            tile.queries().map(|(row, head)| unsafe { self.place(&out, row, head) }.as_mut_ptr()).collect();
        let mut states = vec![State::default(); tile.len()];
        let mut part = vec![0f32; if tile.chunks > 1 { tile.len() * width } else { 0 }];
        let parts: Vec<*mut f32> = part.chunks_exact_mut(width.max(1)).map(|p| p.as_mut_ptr()).collect();
        with_scratch(|scratch| {
            for chunk in 0..tile.chunks {
                if chunk == 0 {
                    self.chunk::<E>(tile, chunk, &places, &mut states, scratch);
                    continue;
                }
                let mut later = vec![State::default(); tile.len()];
                self.chunk::<E>(tile, chunk, &parts, &mut later, scratch);
                for (i, (row, _)) in tile.queries().enumerate() {
                    if self.seen(row) > chunk * CHUNK {
                        // SAFETY: both are of `width` elements, and this task's own.
                        unsafe {
                            merge(self.ctx.ops.isa(), places[i], &mut states[i], parts[i], later[i], width);
                        }
                    }
                }
            }
        });
        for ((row, head), state) in tile.queries().zip(&states) {
            // SAFETY: as above.
            let out = unsafe { self.place(&out, row, head) };
            finish(out, state, self.seen(row));
        }
    }

    /// Each chunk of each tile a task, then their sums.
    fn by_chunk<E: Entry>(&self, tiles: &[Tile], out: SharedOut) {
        let (ops, width) = (self.ctx.ops, self.value_width);
        // A tile's chunks lie one after the other, its queries side by side.
        let mut tasks = Vec::new();
        let mut merges = Vec::new();
        let mut at = 0;
        for tile in tiles {
            let n = tile.len();
            tasks.extend((0..tile.chunks).map(|chunk| (tile, chunk, at + chunk * n)));
            merges.extend(tile.queries().enumerate().map(|(i, (row, head))| (row, head, at + i, n)));
            at += tile.chunks * n;
        }
        let mut partial = ops.dirty(at, width);
        let mut states = ops.dirty(at, 2);
        let (parts, of_parts) = (SharedOut::new(partial.data_mut()), SharedOut::new(states.data_mut()));
        ops.pool().run(tasks.len(), &|task, _| {
            let (tile, chunk, at) = tasks[task];
            let n = tile.len();
            // SAFETY: a task owns the places of its tile's chunk.
            let (part, kept) = unsafe { (parts.slice(at * width, n * width), of_parts.slice(at * 2, n * 2)) };
            let places: Vec<*mut f32> = part.chunks_exact_mut(width.max(1)).map(|p| p.as_mut_ptr()).collect();
            let mut states = vec![State::default(); n];
            with_scratch(|scratch| self.chunk::<E>(tile, chunk, &places, &mut states, scratch));
            for (kept, state) in kept.chunks_exact_mut(2).zip(states) {
                kept.copy_from_slice(&[state.max, state.sum]);
            }
        });
        ops.pool().run(merges.len(), &|task, _| {
            let (row, head, at, stride) = merges[task];
            // SAFETY: a task owns its query's place.
            let out = unsafe { self.place(&out, row, head) };
            let state = |i: usize| State { max: states.data()[i * 2], sum: states.data()[i * 2 + 1] };
            let mut sum = State::default();
            for chunk in 0..self.seen(row).div_ceil(CHUNK) {
                let i = at + chunk * stride;
                if chunk == 0 {
                    out.copy_from_slice(partial.row(i));
                    sum = state(i);
                } else {
                    // SAFETY: both are of `width` elements; the parts are only read now.
                    unsafe {
                        let part = partial.row(i).as_ptr();
                        merge(ops.isa(), out.as_mut_ptr(), &mut sum, part, state(i), width);
                    }
                }
            }
            finish(out, &sum, self.seen(row));
        });
    }

    /// What the queries of a tile gather in one chunk; those that see nothing of it are left alone.
    fn chunk<E: Entry>(
        &self,
        tile: &Tile,
        chunk: usize,
        out: &[*mut f32],
        states: &mut [State],
        scratch: &mut Scratch,
    ) {
        let (heads, width) = (tile.heads.len(), self.keys.width);
        let q: Vec<*const f32> =
            (tile.queries()).map(|(row, head)| self.q.row(row)[head * width..][..width].as_ptr()).collect();
        let first_sees = self.seen(tile.rows.start);
        let last_sees = self.seen(tile.rows.end - 1);
        let end = (chunk + 1) * CHUNK;
        for start in (chunk * CHUNK..end.min(last_sees.max(first_sees))).step_by(SPAN) {
            let span_end = (start + SPAN).min(end);
            let fresh = start == chunk * CHUNK;
            // Rows stand at ascending positions: what the first one sees, all see.
            if self.selection.is_none() && span_end <= first_sees {
                let mut queries = Queries { q: &q, out, states, fresh };
                self.span::<E>(tile, tile.rows.start, start..span_end, &mut queries, scratch);
                continue;
            }
            for (i, row) in tile.rows.clone().enumerate() {
                let span = start..span_end.min(self.seen(row));
                if !span.is_empty() {
                    let of = i * heads..(i + 1) * heads;
                    let mut queries =
                        Queries { q: &q[of.clone()], out: &out[of.clone()], states: &mut states[of], fresh };
                    self.span::<E>(tile, row, span, &mut queries, scratch);
                }
            }
        }
    }

    /// Where entries lie, counted in positions or in the row's chosen ones: each of them or, in columns, each group.
    fn places<E: Entry>(
        &self,
        tile: &Tile,
        row: usize,
        (kind, spec): (usize, &CacheSpec),
        entries: Range<usize>,
        places: &mut [*const u8],
    ) {
        let (ctx, cache) = (self.ctx, self.ctx.cache);
        let slab = cache.slab(self.layer, kind).cast_const();
        let at = |position| slab.wrapping_add(ctx.place(row, spec, tile.kv_head, position) * E::SIZE);
        let mut places = places.iter_mut();
        if let Some(selection) = self.selection {
            let chosen = &selection.row(row)[entries];
            places.zip(chosen).for_each(|(place, position)| *place = at(*position as usize));
            return;
        }
        let each = if spec.order == EntryOrder::Columns { LANES } else { 1 };
        let mut start = entries.start;
        while start < entries.end {
            // Those of one block follow each other: one division for all of them.
            let end = (start / cache.block_size() + 1) * cache.block_size();
            let first = at(start);
            for (i, place) in (start..end.min(entries.end)).step_by(each).zip(&mut places) {
                *place = first.wrapping_add((i - start) * spec.width * E::SIZE);
            }
            start = end;
        }
    }

    /// One span, counted in positions or in the row's chosen ones.
    fn span<E: Entry>(
        &self,
        tile: &Tile,
        row: usize,
        span: Range<usize>,
        queries: &mut Queries<'_>,
        scratch: &mut Scratch,
    ) {
        // The span's keys, and those of sixteen positions behind it.
        let known = span.start..(span.end + LANES).min(self.seen(row));
        let mut keys = [std::ptr::null(); SPAN + LANES];
        let mut values = [std::ptr::null(); SPAN];
        let (count, groups) = (span.len(), |n: usize| match self.keys.order {
            EntryOrder::Columns => n.div_ceil(LANES),
            EntryOrder::Rows => n,
        });
        let (keys_used, known_used) = (groups(count), groups(known.len()));
        self.places::<E>(tile, row, (0, self.keys), known, &mut keys);
        self.places::<E>(tile, row, (self.value_spec, self.values), span, &mut values);
        let (keys, next) = keys[..known_used].split_at(keys_used);
        let span = Span {
            keys: if self.keys.order == EntryOrder::Columns { Keys::Columns(keys) } else { Keys::Rows(keys) },
            values: &values[..count],
            next,
            key_width: self.keys.width,
            value_width: self.value_width,
            scale: self.scale,
        };
        // SAFETY: places are inside the slabs (`AttentionContext::new` checked the block tables; blocks are whole groups of
        // sixteen where keys lie in columns), queries and outputs have their widths, the slabs are held by this context, and
        // `isa` is available.
        unsafe { step::<E>(self.ctx.ops.isa(), &span, queries, scratch) };
    }
}

/// Divides by the weights' sum; a query that sees nothing has none, and an average of nothing.
fn finish(out: &mut [f32], state: &State, seen: usize) {
    if seen == 0 {
        out.fill(f32::NAN);
        return;
    }
    let inverse = 1.0 / state.sum;
    out.iter_mut().for_each(|x| *x *= inverse);
}
