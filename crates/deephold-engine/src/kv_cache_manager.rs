//! Which blocks a sequence holds, and which of its tokens need no computing.

use deephold_base::TokenId;
use sha2::{Digest, Sha256};

use crate::block_pool::{BlockHash, BlockId, BlockPool};

/// A sequence's part of the cache.
#[derive(Debug, Default)]
pub struct SeqBlocks {
    /// Blocks in the order of positions.
    pub table: Vec<BlockId>,
    /// Hashes of the blocks that are full, as far as computed.
    hashes: Vec<BlockHash>,
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

    /// Prompt tokens found in the cache, and prompt tokens looked for.
    pub fn hits(&self) -> (u64, u64) {
        (self.hit_tokens, self.query_tokens)
    }

    /// Takes hold of the cached blocks that `tokens` begins with; returns the tokens they hold. At least one token is
    /// left to compute, so that there are logits.
    pub fn take_prefix(&mut self, blocks: &mut SeqBlocks, tokens: &[TokenId], salt: &[u8]) -> usize {
        debug_assert!(blocks.table.is_empty(), "a prefix goes first");
        if !self.prefix_cache {
            return 0;
        }
        self.query_tokens += tokens.len() as u64;
        let whole = tokens.len().saturating_sub(1) / self.block_size;
        for chunk in tokens.chunks_exact(self.block_size).take(whole) {
            let hash = chain(blocks.hashes.last(), salt, chunk);
            let Some(block) = self.pool.lookup(&hash) else { break };
            self.pool.reuse(block);
            blocks.table.push(block);
            blocks.hashes.push(hash);
        }
        let cached = blocks.table.len() * self.block_size;
        self.hit_tokens += cached as u64;
        cached
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
    pub fn publish(&mut self, blocks: &mut SeqBlocks, tokens: &[TokenId], computed: usize, salt: &[u8]) {
        if !self.prefix_cache {
            return;
        }
        for i in blocks.hashes.len()..computed / self.block_size {
            let chunk = &tokens[i * self.block_size..][..self.block_size];
            let hash = chain(blocks.hashes.last(), salt, chunk);
            blocks.hashes.push(hash);
            self.pool.insert_hash(blocks.table[i], hash);
        }
    }

    /// Gives all blocks back; the last go first among equals, since a prefix is worth more than what follows it.
    pub fn free(&mut self, blocks: &mut SeqBlocks) {
        for block in blocks.table.drain(..).rev() {
            self.pool.release(block);
        }
        blocks.hashes.clear();
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
