use std::collections::HashMap;

use deephold_testkit::Rng;

use crate::block_pool::BlockPool;
use crate::kv_cache_manager::{KvCacheManager, SeqBlocks};

#[test]
fn random_use_keeps_every_block_in_one_place() {
    for seed in 0..50 {
        let mut rng = Rng::new(seed);
        let mut pool = BlockPool::new(8);
        // The naive model: users of each block, and blocks by content with their last use.
        let mut users: HashMap<u32, u32> = HashMap::new();
        let mut content: HashMap<u8, u32> = HashMap::new();
        for _ in 0..500 {
            match rng.next_u64() % 4 {
                0 => match pool.allocate() {
                    Some(b) => {
                        assert_eq!(users.insert(b, 1), None, "a used block was given away");
                        content.retain(|_, block| *block != b);
                    }
                    None => assert_eq!(users.len(), 8),
                },
                1 => {
                    let Some(b) = users.keys().min().copied() else { continue };
                    pool.release(b);
                    let left = users[&b] - 1;
                    if left == 0 {
                        users.remove(&b)
                    } else {
                        users.insert(b, left)
                    };
                }
                2 => {
                    let tag = (rng.next_u64() % 12) as u8;
                    let Some(b) = users.keys().max().copied() else { continue };
                    if !content.contains_key(&tag) && !content.values().any(|c| *c == b) {
                        content.insert(tag, b);
                    }
                    pool.insert_hash(b, [tag; 32]);
                }
                _ => {
                    let tag = (rng.next_u64() % 12) as u8;
                    let found = pool.lookup(&[tag; 32]);
                    assert_eq!(found, content.get(&tag).copied());
                    if let Some(b) = found {
                        pool.reuse(b);
                        *users.entry(b).or_default() += 1;
                    }
                }
            }
            assert_eq!(pool.num_free(), 8 - users.len());
            for b in 0..8 {
                assert_eq!(pool.references(b), users.get(&b).copied().unwrap_or(0));
            }
        }
    }
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut pool = BlockPool::new(3);
    let blocks: Vec<u32> = (0..3).filter_map(|_| pool.allocate()).collect();
    for (i, b) in blocks.iter().enumerate() {
        pool.insert_hash(*b, [i as u8; 32]);
    }
    for i in [1, 0, 2] {
        pool.release(blocks[i]);
    }
    assert_eq!(pool.allocate(), Some(blocks[1]));
    assert_eq!(pool.lookup(&[1; 32]), None);
    assert_eq!(pool.evictions(), 1);
    // A lookup that is used makes a block young again.
    pool.reuse(blocks[0]);
    pool.release(blocks[0]);
    assert_eq!(pool.allocate(), Some(blocks[2]));
}

#[test]
fn a_prefix_is_shared_with_its_own_salt_only() {
    let salted = |salt: &[u8]| SeqBlocks::new(salt.into());
    let take = |kv: &mut KvCacheManager, blocks: &mut SeqBlocks, tokens: &[u32]| {
        let cached = kv.cached_prefix(blocks, tokens);
        assert!(kv.admit(blocks, cached, cached));
        cached
    };
    let mut kv = KvCacheManager::new(10, 4, true);
    let tokens: Vec<u32> = (0..11).collect();
    let mut first = salted(b"a");
    assert_eq!(take(&mut kv, &mut first, &tokens), 0);
    assert!(kv.grow(&mut first, 11));
    kv.publish(&mut first, &tokens, 11);
    let mut second = salted(b"a");
    assert_eq!(take(&mut kv, &mut second, &tokens), 8);
    assert_eq!(second.table, first.table[..2]);
    let mut other = salted(b"b");
    assert_eq!(take(&mut kv, &mut other, &tokens), 0);
    // A whole prompt in the cache still leaves a token to compute.
    let mut whole = salted(b"a");
    assert_eq!(take(&mut kv, &mut whole, &tokens[..8]), 4);
    // A different second block shares the first alone.
    let mut branch = tokens.clone();
    branch[5] = 99;
    let mut third = salted(b"a");
    assert_eq!(take(&mut kv, &mut third, &branch), 4);
    assert!(!kv.grow(&mut third, 100), "more than there is");
    for seq in [&mut first, &mut second, &mut whole, &mut third] {
        kv.free(seq);
    }
    assert_eq!(kv.pool().num_free(), 10);
}

/// Cached blocks that nobody uses are free and found at once: admitting must not count them twice.
#[test]
fn a_prefix_among_the_free_blocks_leaves_fewer_for_the_rest() {
    let mut kv = KvCacheManager::new(4, 4, true);
    let tokens: Vec<u32> = (0..40).collect();
    let mut first = SeqBlocks::new(b"a".as_slice().into());
    assert!(kv.admit(&mut first, 0, 12));
    kv.publish(&mut first, &tokens, 12);
    kv.free(&mut first);
    assert_eq!(kv.pool().num_free(), 4);
    let mut second = SeqBlocks::new(b"a".as_slice().into());
    assert_eq!(kv.cached_prefix(&mut second, &tokens), 12);
    // Three cached blocks and two new ones are one too many; a failed admission takes nothing and forgets nothing.
    assert!(!kv.admit(&mut second, 12, 20));
    assert_eq!((kv.pool().num_free(), kv.hits()), (4, (0, 0)));
    assert_eq!(kv.cached_prefix(&mut second, &tokens), 12);
    assert!(kv.admit(&mut second, 12, 16));
    assert_eq!(kv.pool().num_free(), 0);
}
