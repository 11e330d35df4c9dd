//! Blocks of the paged cache: who holds which, which are free, and which prefixes they hold.
//!
//! A block has room for the keys and values of `block_size` tokens in every layer. Sequences hold
//! blocks by count, so that samples of one prompt and requests with one prefix share them. A block
//! that nobody holds is free, but keeps its content and stays findable by the hash of the tokens up
//! to its end, until it is handed out again: the one freed longest ago first.

use std::collections::HashMap;

/// The place of a block in the pool.
pub type BlockId = u32;

/// What a full block holds: a hash of all tokens from the start of the text to the end of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// What precedes the first block of a text. Texts share blocks only when they have the same
    /// `salt` and the cache was not emptied between them (`epoch`).
    pub fn root(salt: Option<&str>, epoch: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&epoch.to_le_bytes());
        hasher.update(&[u8::from(salt.is_some())]);
        hasher.update(salt.unwrap_or_default().as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// The hash of a block with these tokens after the block with this hash.
    pub fn child(&self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// The end of the list of free blocks.
const NONE: BlockId = BlockId::MAX;

#[derive(Debug, Clone)]
struct Block {
    holders: u32,
    /// Set while the block is findable by it.
    hash: Option<BlockHash>,
    /// Neighbours in the list of free blocks.
    previous: BlockId,
    next: BlockId,
}

/// All blocks.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Ends of the doubly linked list of free blocks: the first is handed out next.
    first_free: BlockId,
    last_free: BlockId,
    free: usize,
    cached: HashMap<BlockHash, BlockId>,
}

impl BlockPool {
    /// `count` free blocks, fewer than 2³² − 1.
    pub fn new(count: usize) -> Self {
        let free = Block { holders: 0, hash: None, previous: NONE, next: NONE };
        let mut pool = Self {
            blocks: vec![free; count],
            first_free: NONE,
            last_free: NONE,
            free: 0,
            cached: HashMap::new(),
        };
        for id in 0..count {
            pool.push_free(id as BlockId);
        }
        pool
    }

    /// All blocks there are.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds.
    pub fn free(&self) -> usize {
        self.free
    }

    /// Blocks that can be found by their hash, held or free.
    pub fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Whether nobody holds the block.
    pub fn is_free(&self, id: BlockId) -> bool {
        self.block(id).holders == 0
    }

    /// Whether several hold the block, so that none may write to it.
    pub fn is_shared(&self, id: BlockId) -> bool {
        self.block(id).holders > 1
    }

    /// Hands out the block that was freed longest ago, with meaningless content; none when no block
    /// is free.
    pub fn take(&mut self) -> Option<BlockId> {
        let id = self.first_free;
        if id == NONE {
            return None;
        }
        self.unlink_free(id);
        self.forget(id);
        self.block_mut(id).holders = 1;
        Some(id)
    }

    /// One more holds the block.
    pub fn hold(&mut self, id: BlockId) {
        if self.is_free(id) {
            self.unlink_free(id);
        }
        self.block_mut(id).holders += 1;
    }

    /// One less holds the block. Of a whole sequence the last block is released first, so that it
    /// is handed out before those that more texts may begin with.
    ///
    /// # Panics
    /// When nobody held it.
    pub fn release(&mut self, id: BlockId) {
        let block = self.block_mut(id);
        assert!(block.holders > 0, "block {id} is released and nobody holds it");
        block.holders -= 1;
        if block.holders == 0 {
            self.push_free(id);
        }
    }

    /// The block that holds what `hash` says, if there is one.
    pub fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        self.cached.get(hash).copied()
    }

    /// Makes a held block, now full, findable. Where another block has the same content, the one
    /// that is held stays findable, because a free one may be handed out.
    pub fn register(&mut self, id: BlockId, hash: BlockHash) {
        if self.block(id).hash == Some(hash) {
            return;
        }
        if let Some(other) = self.find(&hash) {
            if !self.is_free(other) {
                return;
            }
            self.forget(other);
        }
        self.forget(id);
        self.block_mut(id).hash = Some(hash);
        self.cached.insert(hash, id);
    }

    /// Makes all blocks unfindable. Their holders keep them.
    pub fn forget_all(&mut self) {
        self.cached.clear();
        for block in &mut self.blocks {
            block.hash = None;
        }
    }

    fn forget(&mut self, id: BlockId) {
        if let Some(hash) = self.block_mut(id).hash.take() {
            self.cached.remove(&hash);
        }
    }

    fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id as usize]
    }

    fn block_mut(&mut self, id: BlockId) -> &mut Block {
        &mut self.blocks[id as usize]
    }

    /// Appends a block to the list of free ones.
    fn push_free(&mut self, id: BlockId) {
        let last = self.last_free;
        let block = self.block_mut(id);
        (block.previous, block.next) = (last, NONE);
        match last {
            NONE => self.first_free = id,
            last => self.block_mut(last).next = id,
        }
        self.last_free = id;
        self.free += 1;
    }

    /// Takes a block out of the list of free ones, wherever it is.
    fn unlink_free(&mut self, id: BlockId) {
        let Block { previous, next, .. } = *self.block(id);
        match previous {
            NONE => self.first_free = next,
            previous => self.block_mut(previous).next = next,
        }
        match next {
            NONE => self.last_free = previous,
            next => self.block_mut(next).previous = previous,
        }
        self.free -= 1;
    }

    /// Checks the pool against the blocks that sequences hold, each named once for every holder:
    /// every block is free or held exactly as often as it is counted, the list of free blocks holds
    /// exactly the free ones, and what is findable is found.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check_invariants(&self, held: impl Iterator<Item = BlockId>) -> Result<(), String> {
        let mut holders = vec![0u32; self.blocks.len()];
        for id in held {
            *holders.get_mut(id as usize).ok_or_else(|| format!("there is no block {id}"))? += 1;
        }
        for (id, (block, held)) in self.blocks.iter().zip(&holders).enumerate() {
            if block.holders != *held {
                let counted = block.holders;
                return Err(format!("block {id}: counted {counted} holders, found {held}"));
            }
        }
        let (mut id, mut previous, mut walked) = (self.first_free, NONE, 0);
        while id != NONE {
            let block = self.block(id);
            if block.holders != 0 || block.previous != previous || walked == self.free {
                return Err(format!("the list of free blocks is broken at block {id}"));
            }
            (previous, id) = (id, block.next);
            walked += 1;
        }
        let free = holders.iter().filter(|held| **held == 0).count();
        if walked != self.free || free != self.free || self.last_free != previous {
            let counted = self.free;
            return Err(format!("counted {counted} free blocks, listed {walked}, found {free}"));
        }
        let findable = self.blocks.iter().filter(|block| block.hash.is_some()).count();
        let found =
            |(hash, id): (&BlockHash, &BlockId)| self.block(*id).hash.as_ref() == Some(hash);
        if findable != self.cached.len() || !self.cached.iter().all(found) {
            return Err(format!("{findable} blocks have a hash, {} are found", self.cached.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_block_freed_longest_ago_is_handed_out_first() {
        let mut pool = BlockPool::new(3);
        let taken: Vec<_> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert_eq!((taken.as_slice(), pool.take()), (&[0, 1, 2][..], None));
        for id in [1, 2, 0] {
            pool.release(id);
        }
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(1), Some(2), Some(0)]);
    }

    #[test]
    fn a_free_block_is_found_until_it_is_handed_out() {
        let mut pool = BlockPool::new(2);
        let hash = BlockHash::root(None, 0).child(&[1, 2, 3]);
        let id = pool.take().unwrap();
        pool.register(id, hash);
        pool.release(id);
        assert_eq!(pool.find(&hash), Some(id));
        // Found and held again, it is not handed out.
        pool.hold(id);
        assert_ne!(pool.take(), Some(id));
        assert_eq!(pool.take(), None);
        pool.release(id);
        assert_eq!(pool.take(), Some(id));
        assert_eq!((pool.find(&hash), pool.cached()), (None, 0));
    }

    #[test]
    fn hashes_depend_on_salt_epoch_parent_and_tokens() {
        let hashes = [
            BlockHash::root(None, 0),
            BlockHash::root(None, 1),
            BlockHash::root(Some(""), 0),
            BlockHash::root(Some("a"), 0),
            BlockHash::root(None, 0).child(&[1, 2]),
            BlockHash::root(None, 0).child(&[2, 1]),
            BlockHash::root(Some("a"), 0).child(&[1, 2]),
            BlockHash::root(None, 0).child(&[1, 2]).child(&[1, 2]),
        ];
        for (n, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..n].contains(hash), "{n}");
        }
    }

    proptest! {
        /// Random holders take, share, register and release: the counts stay true.
        #[test]
        fn counts_stay_true(actions in prop::collection::vec((0u8..6, any::<u16>()), 0..200)) {
            let mut pool = BlockPool::new(8);
            let mut held: Vec<BlockId> = Vec::new();
            let hash = |n: u16| BlockHash::root(None, 0).child(&[u32::from(n % 12)]);
            for (action, n) in actions {
                let pick = |held: &[BlockId]| {
                    (!held.is_empty()).then(|| usize::from(n) % held.len())
                };
                match action {
                    0 | 1 => held.extend(pool.take()),
                    2 => if let Some(i) = pick(&held) { pool.release(held.swap_remove(i)) },
                    3 => if let Some(i) = pick(&held) { pool.register(held[i], hash(n)) },
                    4 => if let Some(id) = pool.find(&hash(n)) {
                        pool.hold(id);
                        held.push(id);
                    },
                    _ if n % 16 == 0 => pool.forget_all(),
                    _ => {}
                }
                prop_assert_eq!(pool.check_invariants(held.iter().copied()), Ok(()));
            }
            held.drain(..).for_each(|id| pool.release(id));
            prop_assert_eq!(pool.free(), pool.len());
        }
    }
}
