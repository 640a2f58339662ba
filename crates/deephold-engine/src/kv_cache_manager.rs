//! Which blocks a sequence holds, and which of its tokens need no computing.

use std::sync::Arc;

use deephold_base::TokenId;
use sha2::{Digest, Sha256};

use crate::block_pool::{BlockHash, BlockId, BlockPool};

/// A sequence's part of the cache.
#[derive(Debug, Default)]
pub struct SeqBlocks {
    /// Blocks in the order of positions.
    pub table: Vec<BlockId>,
    /// What the first block's hash begins with: who may share the prefix.
    salt: Arc<[u8]>,
    /// Hashes of the leading full blocks of the sequence's tokens, as far as they were needed. They follow from tokens and
    /// salt alone, so they outlive the blocks.
    hashes: Vec<BlockHash>,
    /// Leading blocks of `table` that the pool knows by their hash.
    num_published: usize,
}

impl SeqBlocks {
    /// No blocks yet; prefixes are shared with sequences of the same salt.
    pub fn new(salt: Arc<[u8]>) -> Self {
        Self { salt, ..Self::default() }
    }

    /// The hash of block `i` of `tokens`, which must be full.
    fn hash(&mut self, i: usize, tokens: &[TokenId], block_size: usize) -> BlockHash {
        while self.hashes.len() <= i {
            let chunk = &tokens[self.hashes.len() * block_size..][..block_size];
            let hash = chain(self.hashes.last(), &self.salt, chunk);
            self.hashes.push(hash);
        }
        self.hashes[i]
    }
}

/// Gives blocks to sequences.
pub struct KvCacheManager {
    pool: BlockPool,
    block_size: usize,
    prefix_cache: bool,
    hit_tokens: u64,
    query_tokens: u64,
}

impl KvCacheManager {
    /// A manager of `num_blocks` blocks.
    pub fn new(num_blocks: usize, block_size: usize, prefix_cache: bool) -> Self {
        let pool = BlockPool::new(num_blocks);
        Self { pool, block_size, prefix_cache, hit_tokens: 0, query_tokens: 0 }
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Blocks that hold `tokens` positions.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Prompt tokens found in the cache, and prompt tokens looked for, as [`Self::count_query`] was told.
    pub fn hits(&self) -> (u64, u64) {
        (self.hit_tokens, self.query_tokens)
    }

    /// Counts a prompt that was looked up and admitted.
    pub fn count_query(&mut self, prompt: usize, cached: usize) {
        self.query_tokens += prompt as u64;
        self.hit_tokens += cached as u64;
    }

    /// How many leading tokens lie in the cache, in whole blocks; takes nothing. At least one token is left to compute,
    /// so that there are logits. Asked again, it looks up and does not hash again.
    pub fn cached_prefix(&self, blocks: &mut SeqBlocks, tokens: &[TokenId]) -> usize {
        if !self.prefix_cache {
            return 0;
        }
        let whole = tokens.len().saturating_sub(1) / self.block_size;
        let cached =
            (0..whole).take_while(|i| self.pool.lookup(&blocks.hash(*i, tokens, self.block_size)).is_some());
        cached.count() * self.block_size
    }

    /// Blocks for a sequence that has none: the `cached` tokens that [`Self::cached_prefix`] found, and new ones up to `tokens`
    /// positions; false, and nothing taken, where too few are free.
    pub fn admit(&mut self, blocks: &mut SeqBlocks, cached: usize, tokens: usize) -> bool {
        debug_assert!(blocks.table.is_empty(), "a prefix goes first");
        let hashes = &blocks.hashes[..cached / self.block_size];
        let Some(prefix) = hashes.iter().map(|h| self.pool.lookup(h)).collect::<Option<Vec<BlockId>>>()
        else {
            return false;
        };
        // A cached block that nobody uses is among the free ones until it is taken.
        let unused = prefix.iter().filter(|b| self.pool.references(**b) == 0).count();
        let more = self.blocks_for(tokens).saturating_sub(prefix.len());
        if unused + more > self.pool.num_free() {
            return false;
        }
        prefix.iter().for_each(|b| self.pool.reuse(*b));
        blocks.num_published = prefix.len();
        blocks.table = prefix;
        blocks.table.extend((0..more).map_while(|_| self.pool.allocate()));
        true
    }

    /// Blocks for `tokens` positions in all; false, and nothing taken, where too few are free.
    pub fn grow(&mut self, blocks: &mut SeqBlocks, tokens: usize) -> bool {
        let more = self.blocks_for(tokens).saturating_sub(blocks.table.len());
        if more > self.pool.num_free() {
            return false;
        }
        blocks.table.extend((0..more).map_while(|_| self.pool.allocate()));
        true
    }

    /// Makes the blocks that `computed` tokens fill known to later requests.
    pub fn publish(&mut self, blocks: &mut SeqBlocks, tokens: &[TokenId], computed: usize) {
        if !self.prefix_cache {
            return;
        }
        for i in blocks.num_published..computed / self.block_size {
            let hash = blocks.hash(i, tokens, self.block_size);
            self.pool.insert_hash(blocks.table[i], hash);
            blocks.num_published = i + 1;
        }
    }

    /// Gives all blocks back; the last go first among equals, since a prefix is worth more than what follows it.
    pub fn free(&mut self, blocks: &mut SeqBlocks) {
        for block in blocks.table.drain(..).rev() {
            self.pool.release(block);
        }
        blocks.num_published = 0;
    }
}

/// SHA-256 of the parent's hash (of the salt, for a first block) and the tokens.
fn chain(parent: Option<&BlockHash>, salt: &[u8], tokens: &[TokenId]) -> BlockHash {
    let mut hasher = Sha256::new();
    match parent {
        Some(hash) => hasher.update(hash),
        // A length first, so that no salt can imitate another with tokens behind it.
        None => {
            hasher.update((salt.len() as u64).to_le_bytes());
            hasher.update(salt);
        }
    }
    for t in tokens {
        hasher.update(t.to_le_bytes());
    }
    hasher.finalize().into()
}
