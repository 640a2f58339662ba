//! A small engine for tests: sequences with block tables over one cache, and batches of any mix of them.

#![allow(dead_code)] // Each test file uses a part.

use std::path::Path;
use std::sync::Arc;

use deephold_kernels::{AttentionContext, CacheDType, Isa, KvCache, Ops, PoolOptions, SeqRows, ThreadPool};
use deephold_models::{LoadOptions, Model, ModelError};
use deephold_testkit::{Rng, argmax};
use deephold_weights::Checkpoint;

/// Small and odd in relation to chunks, so that most chunks end within a block.
const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 128;

/// Kernels on `threads` threads, with what this machine has.
pub(crate) fn ops(threads: usize) -> Ops {
    Ops::new(Isa::detect(), Arc::new(ThreadPool::new(PoolOptions { threads, pin: false })))
}

/// Loads a folder or file.
pub(crate) fn load(path: &Path, ops: &Ops, options: &LoadOptions) -> Result<Box<dyn Model>, ModelError> {
    let checkpoint = Arc::new(Checkpoint::open(path)?);
    deephold_models::load(&checkpoint, ops, options, &mut |_| {})
}

/// One sequence: all its tokens, and how many are in the cache.
struct Sequence {
    tokens: Vec<u32>,
    computed: usize,
    table: Vec<u32>,
}

/// A model, its cache and the sequences that share it.
pub(crate) struct Driver<'a> {
    model: &'a dyn Model,
    ops: &'a Ops,
    cache: KvCache,
    free: Vec<u32>,
    sequences: Vec<Sequence>,
}

impl<'a> Driver<'a> {
    /// An f32 cache whose blocks are handed out in a shuffled order.
    pub(crate) fn new(model: &'a dyn Model, ops: &'a Ops) -> Self {
        let cache =
            KvCache::new(&model.cache_layers(), NUM_BLOCKS, BLOCK_SIZE, CacheDType::F32).expect("a cache");
        let mut free: Vec<u32> = (0..NUM_BLOCKS as u32).collect();
        let mut rng = Rng::new(42);
        for i in (1..free.len()).rev() {
            free.swap(i, rng.below(i + 1));
        }
        Self { model, ops, cache, free, sequences: Vec::new() }
    }

    /// Adds a sequence; returns its number.
    pub(crate) fn add(&mut self, tokens: &[u32]) -> usize {
        self.sequences.push(Sequence { tokens: tokens.to_vec(), computed: 0, table: Vec::new() });
        self.sequences.len() - 1
    }

    /// Appends a token to a sequence.
    pub(crate) fn push(&mut self, sequence: usize, token: u32) {
        self.sequences[sequence].tokens.push(token);
    }

    /// Tokens of a sequence that are not in the cache yet.
    pub(crate) fn pending(&self, sequence: usize) -> usize {
        let s = &self.sequences[sequence];
        s.tokens.len() - s.computed
    }

    /// One batch: the next `n` tokens of each (sequence, n). Logits of every row, in the order of the parts.
    pub(crate) fn step(&mut self, parts: &[(usize, usize)]) -> Vec<Vec<f32>> {
        let (mut tokens, mut seqs) = (Vec::new(), Vec::new());
        for (sequence, n) in parts {
            let s = &mut self.sequences[*sequence];
            let needed = (s.computed + n).div_ceil(BLOCK_SIZE);
            while s.table.len() < needed {
                s.table.push(self.free.pop().expect("a free block"));
            }
            let start = tokens.len();
            tokens.extend_from_slice(&s.tokens[s.computed..s.computed + n]);
            seqs.push(SeqRows {
                rows: start..tokens.len(),
                num_computed: s.computed,
                block_table: s.table.clone(),
            });
            s.computed += n;
        }
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let ctx = AttentionContext::new(self.ops, &self.cache, &seqs);
        let logits = self.model.forward(&ctx, &tokens, &rows).expect("a forward pass");
        rows.iter().map(|r| logits.row(*r).to_vec()).collect()
    }

    /// Computes all pending tokens of one sequence in chunks of at most `chunk`.
    pub(crate) fn finish(&mut self, sequence: usize, chunk: usize) -> Vec<Vec<f32>> {
        let mut out = Vec::new();
        while self.pending(sequence) > 0 {
            out.extend(self.step(&[(sequence, self.pending(sequence).min(chunk))]));
        }
        out
    }

    /// Appends `n` greedy tokens; `self.finish` must not have run for the sequence.
    pub(crate) fn greedy(&mut self, sequence: usize, n: usize) -> Vec<u32> {
        let mut logits = self.finish(sequence, usize::MAX);
        let mut ids = Vec::new();
        while ids.len() < n {
            let id = argmax(logits.last().expect("a row"));
            ids.push(id);
            self.push(sequence, id);
            logits = self.step(&[(sequence, 1)]);
        }
        ids
    }
}

/// Logits of one prompt computed in chunks of at most `chunk`.
pub(crate) fn logits(model: &dyn Model, ops: &Ops, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let mut driver = Driver::new(model, ops);
    let s = driver.add(tokens);
    driver.finish(s, chunk)
}
