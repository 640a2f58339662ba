//! Attention over the paged cache: grouped queries, the absorbed form of MLA, and the lightning indexer's choice. And that of
//! encoders, which need no cache.
//!
//! One query's result is one pass over its positions in fixed spans and chunks from position 0, with the online softmax of
//! FlashAttention (Dao et al. 2022): nothing else enters, so neither batch nor tasks nor threads can change a bit.

mod attend;
mod select;
mod tile;
mod whole;

use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};

use crate::{KvCache, Ops, Tensor};
pub use select::Selection;

/// The rows of one sequence in a batch.
#[derive(Clone, Debug)]
pub struct SeqRows {
    /// Which rows of the batch.
    pub rows: Range<usize>,
    /// Positions already in the cache; the first row stands at this position.
    pub num_computed: usize,
    /// Blocks that hold positions 0 .. num_computed + rows.
    pub block_table: Vec<u32>,
}

/// What a model sees of a batch: positions, and attention over a cache whose blocks it does not know.
pub struct AttentionContext<'a> {
    ops: &'a Ops,
    cache: &'a KvCache,
    seqs: &'a [SeqRows],
    positions: Vec<u32>,
    /// Index into `seqs` of each row.
    owner: Vec<u32>,
    _in_use: MutexGuard<'a, ()>,
}

impl<'a> AttentionContext<'a> {
    /// Takes hold of the cache for one batch; waits while another batch holds it.
    ///
    /// # Panics
    /// If the sequences' rows do not cover 0 .. T once, or a block table is too short, names a block beyond the cache, or two
    /// rows would be written to one place: the scheduler makes them and never does.
    pub fn new(ops: &'a Ops, cache: &'a KvCache, seqs: &'a [SeqRows]) -> Self {
        let rows: usize = seqs.iter().map(|s| s.rows.len()).sum();
        let mut positions = vec![u32::MAX; rows];
        let mut owner = vec![0; rows];
        let mut written = Vec::new();
        for (i, s) in seqs.iter().enumerate() {
            let blocks = (s.num_computed + s.rows.len()).div_ceil(cache.block_size());
            assert!(s.block_table.len() >= blocks, "a block table is too short");
            assert!(
                s.block_table.iter().all(|b| (*b as usize) < cache.num_blocks()),
                "a block beyond the cache"
            );
            let first = s.num_computed / cache.block_size();
            written.extend_from_slice(&s.block_table[first.min(blocks)..blocks]);
            for (j, row) in s.rows.clone().enumerate() {
                assert!(positions[row] == u32::MAX, "a row belongs to two sequences");
                positions[row] = (s.num_computed + j) as u32;
                owner[row] = i as u32;
            }
        }
        written.sort_unstable();
        assert!(written.windows(2).all(|w| w[0] != w[1]), "a block is written at two places");
        let in_use = cache.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        Self { ops, cache, seqs, positions, owner, _in_use: in_use }
    }

    /// The arithmetic to use.
    pub fn ops(&self) -> &'a Ops {
        self.ops
    }

    /// Position of each row, \[T\].
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Stores the rows' entries, x [T, heads * width], for kind `spec` of `layer`; to be called before attending.
    pub fn write(&self, layer: usize, spec: usize, x: &Tensor) {
        let s = self.cache.spec(layer, spec);
        assert!(
            x.cols() == s.heads * s.width && x.rows() == self.positions.len(),
            "entries of another shape"
        );
        let block_size = self.cache.block_size();
        let body = |row: usize, _: usize| {
            let position = self.positions[row] as usize;
            let block = self.seqs[self.owner[row] as usize].block_table[position / block_size];
            for head in 0..s.heads {
                let at = self.cache.at(s, block, head, position % block_size);
                // SAFETY: `in_use` is held; the place belongs to this row's position alone (blocks that are written are
                // never shared between sequences).
                unsafe { self.cache.store(layer, spec, at, &x.row(row)[head * s.width..][..s.width]) };
            }
        };
        if x.rows() * x.cols() < 1 << 14 {
            (0..x.rows()).for_each(|row| body(row, 0));
        } else {
            self.ops.pool().run(x.rows(), &body);
        }
    }

    /// Where the entries of `position` of row `row`'s sequence start, in elements.
    fn place(&self, row: usize, spec: &crate::CacheSpec, head: usize, position: usize) -> usize {
        let block_size = self.cache.block_size();
        let block = self.seqs[self.owner[row] as usize].block_table[position / block_size];
        self.cache.at(spec, block, head, position % block_size)
    }
}
