//! Cache blocks: who uses them, which hold a known prefix, and which go first.
//!
//! A block is either used (reference count above 0) or free. A free block keeps its content and its hash until it is taken
//! again, so a later request may find it:
//!
//! ```text
//!            allocate                         release (count 0)
//!   free ───────────────► used (no hash) ───────────────────────► free
//!                            │ full: insert_hash                    ▲
//!                            ▼                                      │ release (count 0)
//!                         used (hash) ◄──── reuse (count + 1) ──── free (hash)
//!                                                                   │ allocate: evicted
//!                                                                   ▼
//!                                                                used (no hash)
//! ```

use std::collections::HashMap;

/// A block's number.
pub type BlockId = u32;

/// The chained hash of a block: of its tokens, all before them, and the salt.
pub(crate) type BlockHash = [u8; 32];

const NONE: u32 = u32::MAX;

#[derive(Clone)]
struct Block {
    references: u32,
    hash: Option<BlockHash>,
    /// Neighbours in the free list, from least to most recently used.
    previous: u32,
    next: u32,
}

/// All blocks of a cache.
pub struct BlockPool {
    blocks: Vec<Block>,
    cached: HashMap<BlockHash, BlockId>,
    oldest: u32,
    newest: u32,
    num_free: usize,
    evictions: u64,
}

impl BlockPool {
    /// `num_blocks` free blocks.
    pub fn new(num_blocks: usize) -> Self {
        let mut pool = Self {
            blocks: vec![Block { references: 0, hash: None, previous: NONE, next: NONE }; num_blocks],
            cached: HashMap::new(),
            oldest: NONE,
            newest: NONE,
            num_free: 0,
            evictions: 0,
        };
        (0..num_blocks as u32).for_each(|b| pool.push_free(b));
        pool
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody uses, cached ones included.
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// Cached blocks that were taken for other content.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Users of a block.
    pub fn references(&self, block: BlockId) -> u32 {
        self.blocks[block as usize].references
    }

    /// Takes the least recently used free block; its old content is forgotten.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.oldest;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        let b = &mut self.blocks[block as usize];
        b.references = 1;
        if let Some(hash) = b.hash.take() {
            self.cached.remove(&hash);
            self.evictions += 1;
        }
        Some(block)
    }

    /// The block with this content, if there is one, without taking it.
    pub(crate) fn lookup(&self, hash: &BlockHash) -> Option<BlockId> {
        self.cached.get(hash).copied()
    }

    /// One more user of a block that `lookup` found.
    pub fn reuse(&mut self, block: BlockId) {
        if self.blocks[block as usize].references == 0 {
            self.unlink(block);
        }
        self.blocks[block as usize].references += 1;
    }

    /// One user less; the last one makes it free, as the most recently used.
    ///
    /// # Panics
    /// If nobody uses it: a defect of the caller.
    pub fn release(&mut self, block: BlockId) {
        let b = &mut self.blocks[block as usize];
        assert!(b.references > 0, "block {block} is released twice");
        b.references -= 1;
        if b.references == 0 {
            self.push_free(block);
        }
    }

    /// Makes a full block known; of two blocks with the same content the first stays the known one.
    pub(crate) fn insert_hash(&mut self, block: BlockId, hash: BlockHash) {
        let b = &mut self.blocks[block as usize];
        if b.hash.is_none() && !self.cached.contains_key(&hash) {
            b.hash = Some(hash);
            self.cached.insert(hash, block);
        }
    }

    fn push_free(&mut self, block: u32) {
        let newest = self.newest;
        let b = &mut self.blocks[block as usize];
        (b.previous, b.next) = (newest, NONE);
        if newest == NONE {
            self.oldest = block;
        } else {
            self.blocks[newest as usize].next = block;
        }
        self.newest = block;
        self.num_free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        match previous {
            NONE => self.oldest = next,
            p => self.blocks[p as usize].next = next,
        }
        match next {
            NONE => self.newest = previous,
            n => self.blocks[n as usize].previous = previous,
        }
        self.num_free -= 1;
    }
}
