//! Which tokens of which sequences the next pass computes, and in which blocks.
//!
//! There are no phases: each sequence has tokens, of prompt and answer, and a number of them whose
//! keys and values are computed, and a step lets the second catch up with the first under a budget
//! of tokens. Sequences that run go first, in their order; when blocks run out, the last of them
//! loses its own and waits to be computed anew. Waiting sequences are then admitted in order, never
//! at the cost of a running one.
//!
//! What always holds: the budget is kept; the first in order is never preempted, so it ends, and so
//! does everybody behind it; a block is written only by a sequence that holds it alone.

use std::collections::BTreeMap;

use super::block_pool::{BlockHash, BlockId, BlockPool};
use super::options::{EngineOptions, SchedulingPolicy};
use super::request::{RequestId, SequenceId};

/// The place of a sequence among all, smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn {
    /// 0 under [`SchedulingPolicy::Fcfs`].
    priority: i64,
    /// Requests before this one.
    arrival: u64,
    /// Which of the request's sequences.
    index: usize,
}

/// A sequence that waits or runs.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Its name outside.
    pub id: SequenceId,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Tokens whose keys and values are in the blocks.
    pub computed: usize,
    /// The blocks of the computed tokens, in order.
    pub blocks: Vec<BlockId>,
    /// Tokens of the prompt that were found in the cache when it was first admitted.
    pub cached_tokens: Option<usize>,
    /// Tokens from the beginning that may be found in the cache: the hidden states of the others are
    /// needed.
    pub reusable: usize,
    /// Of what precedes the first block, and of each full block so far.
    hashes: Vec<BlockHash>,
}

impl Sequence {
    /// Extends the hashes to the full blocks among the first `tokens` tokens.
    fn hash_blocks(&mut self, tokens: usize, block_size: usize) {
        while self.hashes.len() <= tokens / block_size {
            let n = self.hashes.len() - 1;
            let block = &self.tokens[n * block_size..(n + 1) * block_size];
            self.hashes.push(self.hashes[n].child(block));
        }
    }
}

/// What a sequence does in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// Which.
    pub turn: Turn,
    /// The position of its first token in the pass.
    pub start: usize,
    /// How many tokens.
    pub count: usize,
}

/// A step.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// In the order of the rows of the pass.
    pub scheduled: Vec<Scheduled>,
    /// Blocks whose content is copied, from and to, before the pass.
    pub copies: Vec<(BlockId, BlockId)>,
    /// Sequences that lost their blocks.
    pub preempted: Vec<SequenceId>,
    /// Sequences that began to run.
    pub admitted: Vec<SequenceId>,
}

impl StepPlan {
    /// Tokens of the pass.
    pub fn tokens(&self) -> usize {
        self.scheduled.iter().map(|scheduled| scheduled.count).sum()
    }
}

/// All sequences and blocks.
#[derive(Debug)]
pub struct Scheduler {
    options: EngineOptions,
    pool: BlockPool,
    waiting: BTreeMap<Turn, Sequence>,
    running: BTreeMap<Turn, Sequence>,
    arrivals: u64,
    /// How often the cache was emptied.
    epoch: u64,
    /// Counters since the start.
    pub preemptions: u64,
    /// Tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Tokens found there.
    pub prefix_hits: u64,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub fn new(options: EngineOptions) -> Self {
        let pool = BlockPool::new(options.num_blocks);
        Self {
            options,
            pool,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            arrivals: 0,
            epoch: 0,
            preemptions: 0,
            prefix_queries: 0,
            prefix_hits: 0,
        }
    }

    /// Blocks that a sequence needs when it alone runs and keys and values of `tokens` tokens are
    /// computed.
    pub fn blocks_of(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.options.block_size)
    }

    /// Lets sequence 0 of a request wait.
    pub fn add(
        &mut self,
        request: RequestId,
        prompt: &[u32],
        priority: i64,
        salt: Option<&str>,
        reusable: usize,
    ) -> Turn {
        let priority = match self.options.policy {
            SchedulingPolicy::Fcfs => 0,
            SchedulingPolicy::Priority => priority,
        };
        let turn = Turn { priority, arrival: self.arrivals, index: 0 };
        self.arrivals += 1;
        let sequence = Sequence {
            id: SequenceId { request, index: 0 },
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            computed: 0,
            blocks: Vec::new(),
            cached_tokens: None,
            reusable,
            hashes: vec![BlockHash::root(salt, self.epoch)],
        };
        self.waiting.insert(turn, sequence);
        turn
    }

    /// Sequence `index` of a request begins with all that sequence `turn` has, and shares its blocks
    /// while there is a seat for it; otherwise it waits to be computed by itself.
    /// Gives its turn and whether it runs.
    pub fn fork(&mut self, turn: Turn, index: usize) -> Option<(Turn, bool)> {
        let mut sequence = self.running.get(&turn)?.clone();
        sequence.id.index = index;
        let turn = Turn { index, ..turn };
        let runs = self.running.len() < self.options.max_num_seqs;
        if runs {
            sequence.blocks.iter().for_each(|block| self.pool.hold(*block));
            self.running.insert(turn, sequence);
        } else {
            (sequence.computed, sequence.blocks) = (0, Vec::new());
            self.waiting.insert(turn, sequence);
        }
        Some((turn, runs))
    }

    /// A running sequence.
    pub fn running(&self, turn: Turn) -> Option<&Sequence> {
        self.running.get(&turn)
    }

    /// Sequences that run.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The next token of a running sequence.
    pub fn append(&mut self, turn: Turn, token: u32) {
        if let Some(sequence) = self.running.get_mut(&turn) {
            sequence.tokens.push(token);
        }
    }

    /// Ends a sequence and releases its blocks.
    pub fn finish(&mut self, turn: Turn) {
        let sequence = self.running.remove(&turn).or_else(|| self.waiting.remove(&turn));
        if let Some(sequence) = sequence {
            self.release(&sequence.blocks);
        }
    }

    /// Ends the sequences that `ends` chooses and says which they were.
    pub fn abort(&mut self, ends: impl Fn(SequenceId) -> bool) -> Vec<(Turn, SequenceId)> {
        let sequences = self.running.iter().chain(&self.waiting);
        let chosen = sequences.filter(|(_, sequence)| ends(sequence.id));
        let ended: Vec<_> = chosen.map(|(turn, sequence)| (*turn, sequence.id)).collect();
        ended.iter().for_each(|(turn, _)| self.finish(*turn));
        ended
    }

    /// Room for tokens in the blocks of running sequences that no token has taken.
    pub fn unused_slots(&self) -> usize {
        let room = |x: &Sequence| x.blocks.len() * self.options.block_size - x.computed;
        self.running.values().map(room).sum()
    }

    /// Forgets what blocks hold: sequences that come from now on find nothing of what was computed
    /// before.
    pub fn reset_prefix_cache(&mut self) {
        self.epoch += 1;
        self.pool.forget_all();
        for sequence in self.running.values_mut().chain(self.waiting.values_mut()) {
            // What they computed or will mix with it stays theirs.
            sequence.hashes.clear();
        }
    }

    /// Releases blocks of a sequence, the last first.
    fn release(&mut self, blocks: &[BlockId]) {
        blocks.iter().rev().for_each(|block| self.pool.release(*block));
    }

    /// Chooses what the next pass computes and hands out the blocks for it.
    pub fn schedule(&mut self) -> StepPlan {
        let mut plan = StepPlan::default();
        let mut budget = self.options.max_num_batched_tokens;
        self.schedule_running(&mut plan, &mut budget);
        if plan.preempted.is_empty() {
            self.admit_waiting(&mut plan, &mut budget);
        }
        plan
    }

    fn schedule_running(&mut self, plan: &mut StepPlan, budget: &mut usize) {
        let turns: Vec<Turn> = self.running.keys().copied().collect();
        for turn in turns {
            // Nothing left, or preempted for one before it, as are all after it.
            let Some(sequence) = self.running.get(&turn).filter(|_| *budget > 0) else { break };
            let start = sequence.computed;
            let count = self.chunk(sequence.tokens.len() - start, *budget);
            while !self.allocate(turn, count, plan) {
                let Some((last, _)) = self.running.last_key_value() else { return };
                let last = *last;
                self.preempt(last, plan);
                if last == turn {
                    return;
                }
            }
            plan.scheduled.push(Scheduled { turn, start, count });
            *budget -= count;
        }
    }

    /// Tokens of a sequence in this step, of `left` that are not computed.
    fn chunk(&self, left: usize, budget: usize) -> usize {
        match self.options.long_prefill_token_threshold {
            threshold if threshold > 0 && self.options.enable_chunked_prefill => {
                left.min(threshold).min(budget)
            }
            _ => left.min(budget),
        }
    }

    /// Gives a running sequence the blocks that its next `count` tokens are written to, all or none.
    fn allocate(&mut self, turn: Turn, count: usize, plan: &mut StepPlan) -> bool {
        let block_size = self.options.block_size;
        let Some(sequence) = self.running.get_mut(&turn) else { return false };
        let needed = (sequence.computed + count).div_ceil(block_size) - sequence.blocks.len();
        // The block that is partly full is written to, so nobody else may hold it.
        let partial = sequence.computed / block_size;
        let shared = sequence.blocks.get(partial).copied().filter(|id| self.pool.is_shared(*id));
        if needed + usize::from(shared.is_some()) > self.pool.free() {
            return false;
        }
        if let (Some(from), Some(to)) = (shared, shared.and_then(|_| self.pool.take())) {
            self.pool.release(from);
            sequence.blocks[partial] = to;
            plan.copies.push((from, to));
        }
        sequence.blocks.extend((0..needed).filter_map(|_| self.pool.take()));
        true
    }

    /// A running sequence loses its blocks and waits to be computed anew.
    fn preempt(&mut self, turn: Turn, plan: &mut StepPlan) {
        let Some(mut sequence) = self.running.remove(&turn) else { return };
        self.release(&std::mem::take(&mut sequence.blocks));
        sequence.computed = 0;
        plan.preempted.push(sequence.id);
        self.preemptions += 1;
        self.waiting.insert(turn, sequence);
    }

    fn admit_waiting(&mut self, plan: &mut StepPlan, budget: &mut usize) {
        while *budget > 0 && self.running.len() < self.options.max_num_seqs {
            let Some(mut entry) = self.waiting.first_entry() else { return };
            let turn = *entry.key();
            let hits = find_prefix(entry.get_mut(), &self.pool, &self.options);
            let (found, length) = (hits.len() * self.options.block_size, entry.get().tokens.len());
            let count = self.chunk(length - found, *budget);
            if !self.options.enable_chunked_prefill && count < length - found {
                return;
            }
            // Blocks that are found and free leave the free ones too. A few stay free, so that those
            // that run can go on for a while; without any that run, nobody needs them.
            let revived = hits.iter().filter(|block| self.pool.is_free(**block)).count();
            let needed = self.blocks_of(found + count) - hits.len() + revived;
            let reserve = if self.running.is_empty() { 0 } else { self.pool.len().div_ceil(100) };
            if needed + reserve > self.pool.free() {
                return;
            }
            let Some((_, mut sequence)) = self.waiting.pop_first() else { return };
            if sequence.cached_tokens.is_none() {
                if self.options.enable_prefix_caching && sequence.reusable > 0 {
                    self.prefix_queries += length as u64;
                    self.prefix_hits += found as u64;
                }
                sequence.cached_tokens = Some(found);
            }
            hits.iter().for_each(|block| self.pool.hold(*block));
            (sequence.computed, sequence.blocks) = (found, hits);
            plan.admitted.push(sequence.id);
            self.running.insert(turn, sequence);
            if !self.allocate(turn, count, plan) {
                return;
            }
            plan.scheduled.push(Scheduled { turn, start: found, count });
            *budget -= count;
        }
    }

    /// Counts the tokens of a pass as computed and makes blocks that became full findable. Says of
    /// which sequences the next token follows: those whose tokens are all computed.
    pub fn computed(&mut self, plan: &StepPlan) -> Vec<Turn> {
        let block_size = self.options.block_size;
        let mut complete = Vec::new();
        for scheduled in &plan.scheduled {
            let Some(sequence) = self.running.get_mut(&scheduled.turn) else { continue };
            sequence.computed += scheduled.count;
            if self.options.enable_prefix_caching && !sequence.hashes.is_empty() {
                sequence.hash_blocks(sequence.computed, block_size);
                let full = scheduled.start / block_size..sequence.computed / block_size;
                for n in full {
                    self.pool.register(sequence.blocks[n], sequence.hashes[n + 1]);
                }
            }
            if sequence.computed == sequence.tokens.len() {
                complete.push(scheduled.turn);
            }
        }
        complete
    }

    /// Checks the counts of blocks, and that sequences hold exactly the blocks of their computed
    /// tokens.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check_invariants(&self) -> Result<(), String> {
        let held = self.running.values().flat_map(|sequence| sequence.blocks.iter().copied());
        self.pool.check_invariants(held)?;
        for sequence in self.running.values() {
            let (held, computed) = (sequence.blocks.len(), sequence.computed);
            if held != self.blocks_of(computed) {
                return Err(format!("{:?} holds {held} blocks for {computed} tokens", sequence.id));
            }
        }
        if self.waiting.values().any(|sequence| !sequence.blocks.is_empty()) {
            return Err("a waiting sequence holds blocks".into());
        }
        if self.running.len() > self.options.max_num_seqs {
            return Err(format!("{} sequences run", self.running.len()));
        }
        Ok(())
    }
}

/// The blocks that hold the beginning of a waiting sequence. Its last token is never among them:
/// the token after it follows from a pass over it.
fn find_prefix(sequence: &mut Sequence, pool: &BlockPool, options: &EngineOptions) -> Vec<BlockId> {
    if !options.enable_prefix_caching || sequence.hashes.is_empty() {
        return Vec::new();
    }
    let most = sequence.reusable.min(sequence.tokens.len() - 1);
    sequence.hash_blocks(most, options.block_size);
    let hashes = &sequence.hashes[1..=most / options.block_size];
    hashes.iter().map_while(|hash| pool.find(hash)).collect()
}
