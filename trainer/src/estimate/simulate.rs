//! The order of a step on very many ranks, with a clock in place of computing and exchange.
//!
//! Every rank goes through the same list of actions: it computes, starts exchanges with its groups
//! and waits for them. Ranks compute at their own pace: times are drawn with a spread, and a few
//! ranks are slow altogether. An exchange ends when its last member has come and the bytes have gone
//! over the link, one exchange after the other where a group has several under way. What comes out
//! is how the ranks wait for each other, which no formula of means shows; a rank that would wait
//! for ever is an error.

use std::collections::VecDeque;

use altiplano_comm::RankGrid;
use altiplano_comm::check::pieces_under_way;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::layout::{Layout, RankParameters};
use super::time::{Exchange, Parts, Profile};
use crate::config::{Shard, TrainConfig};
use crate::error::{Result, TrainerError};

/// How unequal ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Standard deviation of a rank's computing time in a step, as a share of it.
    pub deviation: f64,
    /// One rank in so many is slow; 0 is none.
    pub slow_one_in: usize,
    /// Its computing time as a multiple of the others'.
    pub slow_factor: f64,
    /// Of the drawing.
    pub seed: u64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { deviation: 0.03, slow_one_in: 512, slow_factor: 1.5, seed: 1 }
    }
}

/// What a simulation found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulation {
    /// Ranks.
    pub ranks: usize,
    /// Seconds of each step, from the end of the one before to that of the slowest rank.
    pub step_seconds: Vec<f64>,
    /// Their mean.
    pub mean_step_seconds: f64,
    /// The same with ranks of one speed.
    pub even_step_seconds: f64,
    /// The rank that computes longest, and how much longer than the mean of all.
    pub slowest_rank: usize,
    /// Its computing time over the mean.
    pub slowest_over_mean: f64,
    /// Share of a rank's time that it waits, the mean over ranks.
    pub waiting_share: f64,
    /// Exchanges of a rank in a step.
    pub exchanges_per_step: usize,
    /// Most pieces of buffers that a rank has sent and nobody has taken.
    pub longest_queue: usize,
    /// Most entries of a table that a rank holds: the members of its groups.
    pub largest_table: usize,
}

/// The groups of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tensor,
    Data,
    World,
}

const KINDS: usize = 3;

/// What a rank does next.
#[derive(Debug, Clone, Copy)]
enum Action {
    Compute(f64),
    /// Starts an exchange that takes so long once all are there.
    Start(Kind, f64),
    /// Waits for the exchange of the group that was started so many before its newest.
    Wait(Kind, usize),
}

/// A list of actions as it is written.
struct Writer {
    list: Vec<Action>,
    /// Exchanges between copies started so far in the step.
    started: isize,
    overlap: bool,
}

impl Writer {
    fn compute(&mut self, seconds: f64) {
        self.list.push(Action::Compute(seconds));
    }

    /// An exchange of tensor ranks: what comes next needs it.
    fn exchange(&mut self, seconds: f64) {
        self.list.push(Action::Start(Kind::Tensor, seconds));
        self.list.push(Action::Wait(Kind::Tensor, 0));
    }

    /// Starts an exchange between copies; its number in the step. Without overlap it is waited for
    /// at once.
    fn start(&mut self, seconds: f64) -> isize {
        self.list.push(Action::Start(Kind::Data, seconds));
        if !self.overlap {
            self.list.push(Action::Wait(Kind::Data, 0));
        }
        self.started += 1;
        self.started - 1
    }

    /// Waits for the exchange of this number; those of the step before have negative ones.
    fn wait(&mut self, number: isize) {
        if self.overlap {
            let before = (self.started - 1 - number).unsigned_abs();
            self.list.push(Action::Wait(Kind::Data, before));
        }
    }
}

/// The actions of one step, equal on all ranks.
fn actions(config: &TrainConfig, layout: &Layout, parts: &Parts) -> Vec<Action> {
    let layers = config.model.n_layers;
    let micro_batches = layout.micro_batches(config);
    // A third of the computing goes forward, and four exchanges of a layer. The six exchanges that
    // are not a layer's belong to the embedding and the head.
    let third = parts.computing() / 3.0 / layers as f64;
    let per_layer = ((parts.tensor_exchanges - 6.0) / layers as f64).round() as usize;
    let (tensor, copies) = (layout.tensor > 1, layout.data > 1);
    let half = |write: &mut Writer, exchanges: usize, computing: f64| {
        for _ in 0..exchanges {
            write.compute(computing / exchanges as f64);
            if tensor {
                write.exchange(parts.tensor.seconds());
            }
        }
    };
    let share = |exchange: Exchange| exchange.seconds() / layers as f64;
    let (scatter, gather) = (share(parts.scatter), share(parts.gather));
    // Copies that split the weights gather a layer's while the layer before is computed.
    let gathers = copies && layout.shard == Shard::Parameters;
    let scatters_every = matches!(layout.shard, Shard::Gradients | Shard::Parameters);
    let mut write = Writer { list: Vec::new(), started: 0, overlap: layout.overlap };
    for micro_batch in 0..micro_batches {
        let scatters = copies && (scatters_every || micro_batch + 1 == micro_batches);
        half(&mut write, 3, 0.0);
        let mut ahead = gathers.then(|| write.start(gather));
        for layer in 0..layers {
            if let Some(own) = ahead {
                ahead = (layer + 1 < layers).then(|| write.start(gather));
                write.wait(own);
            } else if copies && micro_batch == 0 && !gathers {
                // What the step before has updated: the first layer's was started first.
                write.wait(layer as isize - layers as isize);
            }
            half(&mut write, 4, third);
        }
        half(&mut write, 3, 0.0);
        let mut scattered = Vec::new();
        let mut ahead = gathers.then(|| write.start(gather));
        for layer in 0..layers {
            if let Some(own) = ahead {
                ahead = (layer + 1 < layers).then(|| write.start(gather));
                write.wait(own);
            }
            half(&mut write, per_layer.saturating_sub(4).max(1), 2.0 * third);
            if scatters {
                scattered.push(write.start(scatter));
            }
        }
        scattered.into_iter().for_each(|number| write.wait(number));
    }
    // The step record, over all ranks: as many rounds as the number has bits.
    let rounds = f64::from(layout.ranks().next_power_of_two().trailing_zeros());
    let latency = parts.scatter.latency / layers as f64;
    write.list.push(Action::Start(Kind::World, rounds * latency.max(parts.tensor.latency)));
    write.list.push(Action::Wait(Kind::World, 0));
    write.compute(parts.optimizer);
    if copies && !gathers {
        for _ in 0..layers {
            write.start(gather);
        }
    }
    write.list
}

/// An exchange of a group.
#[derive(Debug, Clone, Copy, Default)]
struct Operation {
    arrived: u32,
    left: u32,
    latest: f64,
    seconds: f64,
    end: f64,
}

#[derive(Debug, Default)]
struct Members {
    ranks: Vec<u32>,
    /// Number of the first exchange in `under_way`.
    first: u64,
    under_way: VecDeque<Operation>,
    /// When the group's link is free.
    link: f64,
    /// Members that wait, with the exchange.
    waiting: Vec<(u32, u64)>,
}

#[derive(Debug, Clone)]
struct Rank {
    clock: f64,
    step: u32,
    next: u32,
    groups: [u32; KINDS],
    started: [u64; KINDS],
    pace: f64,
    computed: f64,
    waited: f64,
}

struct Clockwork {
    actions: Vec<Action>,
    ranks: Vec<Rank>,
    groups: Vec<Members>,
    steps: u32,
    spread: Spread,
    /// When the last rank ended each step.
    ends: Vec<f64>,
}

impl Clockwork {
    fn new(actions: Vec<Action>, grid: RankGrid, steps: u32, spread: Spread) -> Self {
        let (tensor, data) = (grid.tensor(), grid.data());
        let mut groups: Vec<Members> = Vec::new();
        groups.resize_with(data + tensor + 1, Members::default);
        let ranks = (0..grid.ranks()).map(|rank| {
            let of = [grid.data_rank(rank), data + grid.tensor_rank(rank), data + tensor];
            for group in of {
                groups[group].ranks.push(rank as u32);
            }
            Rank {
                clock: 0.0,
                step: 0,
                next: 0,
                groups: of.map(|group| group as u32),
                started: [0; KINDS],
                pace: 1.0,
                computed: 0.0,
                waited: 0.0,
            }
        });
        let ranks = ranks.collect();
        Self { actions, ranks, groups, steps, spread, ends: vec![0.0; steps as usize] }
    }

    /// How long `rank` computes in a step, as a multiple of the mean.
    fn pace(&self, rank: usize, step: u32) -> f64 {
        let Spread { deviation, slow_one_in, slow_factor, seed } = self.spread;
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ (rank as u64) << 32 ^ u64::from(step));
        // The sum of twelve is as good as normal, and bounded.
        let normal = (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
        let slow = slow_one_in > 0 && rank % slow_one_in == slow_one_in - 1;
        let factor = if slow { slow_factor } else { 1.0 };
        factor * (1.0 + deviation * normal).max(0.0)
    }

    fn run(&mut self) -> Result<()> {
        let mut ready: Vec<u32> = (0..self.ranks.len() as u32).rev().collect();
        while let Some(rank) = ready.pop() {
            self.advance(rank as usize, &mut ready);
        }
        let stuck = self.ranks.iter().position(|rank| rank.step < self.steps);
        match stuck {
            None => Ok(()),
            Some(rank) => Err(TrainerError::Usage {
                message: format!(
                    "rank {rank} waits for ever in step {} (action {} of {}): a bug of the order of \
                     exchanges, please report it",
                    self.ranks[rank].step,
                    self.ranks[rank].next,
                    self.actions.len()
                ),
            }),
        }
    }

    /// Goes on with a rank until it waits or has done all steps.
    fn advance(&mut self, index: usize, ready: &mut Vec<u32>) {
        loop {
            let rank = &self.ranks[index];
            if rank.next as usize == self.actions.len() {
                let step = rank.step as usize;
                self.ends[step] = self.ends[step].max(rank.clock);
                let rank = &mut self.ranks[index];
                (rank.step, rank.next) = (rank.step + 1, 0);
                continue;
            }
            if rank.step == self.steps {
                return;
            }
            if rank.next == 0 {
                let pace = self.pace(index, rank.step);
                self.ranks[index].pace = pace;
            }
            let rank = &mut self.ranks[index];
            match self.actions[rank.next as usize] {
                Action::Compute(seconds) => {
                    let seconds = seconds * rank.pace;
                    rank.clock += seconds;
                    rank.computed += seconds;
                }
                Action::Start(kind, seconds) => {
                    let number = rank.started[kind as usize];
                    rank.started[kind as usize] += 1;
                    let (clock, group) = (rank.clock, rank.groups[kind as usize] as usize);
                    self.start(group, number, seconds, clock, ready);
                }
                Action::Wait(kind, before) => {
                    let started = rank.started[kind as usize];
                    // In the first step there are no weights of a step before.
                    if let Some(number) = started.checked_sub(before as u64 + 1) {
                        let group = &mut self.groups[rank.groups[kind as usize] as usize];
                        let place = (number - group.first) as usize;
                        let operation = group.under_way[place];
                        if (operation.arrived as usize) < group.ranks.len() {
                            group.waiting.push((index as u32, number));
                            return;
                        }
                        rank.waited += (operation.end - rank.clock).max(0.0);
                        rank.clock = rank.clock.max(operation.end);
                        leave(group, place);
                    }
                }
            }
            self.ranks[index].next += 1;
        }
    }

    fn start(&mut self, group: usize, number: u64, seconds: f64, clock: f64, ready: &mut Vec<u32>) {
        let group = &mut self.groups[group];
        let place = (number - group.first) as usize;
        if place == group.under_way.len() {
            group.under_way.push_back(Operation { seconds, ..Operation::default() });
        }
        let operation = &mut group.under_way[place];
        operation.arrived += 1;
        operation.latest = operation.latest.max(clock);
        if operation.arrived as usize == group.ranks.len() {
            // The others of the group end in their order, so the one before has.
            operation.end = operation.latest.max(group.link) + operation.seconds;
            group.link = operation.end;
            group.waiting.retain(|(rank, waits_for)| {
                let go = *waits_for == number;
                if go {
                    ready.push(*rank);
                }
                !go
            });
        }
    }
}

/// A member has waited; what all have waited for is forgotten.
fn leave(group: &mut Members, place: usize) {
    group.under_way[place].left += 1;
    let members = group.ranks.len() as u32;
    while group.under_way.front().is_some_and(|first| first.left >= members) {
        group.under_way.pop_front();
        group.first += 1;
    }
}

/// Simulates `steps` steps of `config` in a layout that has passed [`Layout::check`].
///
/// # Errors
/// A rank waits for ever.
pub fn simulate(
    config: &TrainConfig,
    layout: &Layout,
    profile: &Profile,
    steps: u32,
    spread: Spread,
) -> Result<Simulation> {
    let ranks = layout.ranks() as usize;
    let grid = RankGrid::new(layout.tensor as usize, Some(layout.data as usize), ranks)?;
    let parts = Parts::new(config, layout, profile);
    let list = actions(config, layout, &parts);
    let exchanges_per_step = list.iter().filter(|it| matches!(it, Action::Start(..))).count();
    let run = |steps: u32, spread: Spread| {
        let mut clockwork = Clockwork::new(list.clone(), grid, steps, spread);
        clockwork.run().map(|()| clockwork)
    };
    // With one speed no rank waits for another: what two steps take says what any step does.
    let even = run(2, Spread { deviation: 0.0, slow_one_in: 0, ..spread })?;
    let done = run(steps.max(1), spread)?;
    let durations = |ends: &[f64]| {
        let starts = std::iter::once(0.0).chain(ends.iter().copied());
        ends.iter().zip(starts).map(|(end, start)| end - start).collect::<Vec<f64>>()
    };
    let step_seconds = durations(&done.ends);
    let computed: Vec<f64> = done.ranks.iter().map(|rank| rank.computed).collect();
    let mean = computed.iter().sum::<f64>() / ranks as f64;
    let slowest_rank =
        (0..ranks).max_by(|a, b| computed[*a].total_cmp(&computed[*b])).unwrap_or_default();
    let waiting = done.ranks.iter().map(|rank| rank.waited / rank.clock.max(f64::MIN_POSITIVE));
    let parameters = RankParameters::new(&config.model, layout.tensor);
    let bucket = 4 * parameters.layer as usize;
    let activations = layout.tokens(config) as usize * config.model.dim * config.precision.bytes();
    let (tensor, data) = (grid.tensor(), grid.data());
    Ok(Simulation {
        ranks,
        mean_step_seconds: step_seconds.iter().sum::<f64>() / step_seconds.len() as f64,
        step_seconds,
        even_step_seconds: durations(&even.ends)[1],
        slowest_rank,
        slowest_over_mean: computed[slowest_rank] / mean.max(f64::MIN_POSITIVE),
        waiting_share: waiting.sum::<f64>() / ranks as f64,
        exchanges_per_step,
        longest_queue: pieces_under_way(bucket, data) + pieces_under_way(activations, tensor),
        largest_table: ranks + tensor + data,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::layout::tests::{config, eight_by};
    use super::super::time::StepTime;
    use super::*;

    fn a100() -> Profile {
        Profile::named("a100-80gb").unwrap()
    }

    fn even() -> Spread {
        Spread { deviation: 0.0, slow_one_in: 0, ..Spread::default() }
    }

    /// 65B with so many sequences in a step.
    fn step_of(sequences: usize) -> TrainConfig {
        let mut config = config("llama_65b.yaml");
        config.batch.grad_accum_steps = sequences;
        config
    }

    #[test]
    fn even_ranks_take_as_long_as_the_formula_says() {
        for (sequences, layout) in [
            (128, eight_by(16, 4)),
            (64, eight_by(32, 1)),
            (64, Layout { overlap: false, ..eight_by(8, 4) }),
            (128, Layout { shard: Shard::Gradients, ..eight_by(16, 4) }),
        ] {
            let config = step_of(sequences);
            let formula = StepTime::new(&config, &layout, &a100()).step;
            let found = simulate(&config, &layout, &a100(), 1, even()).unwrap().even_step_seconds;
            assert!((found / formula - 1.0).abs() < 0.05, "{found} for {formula}, {layout:?}");
        }
    }

    #[test]
    fn a_slow_rank_holds_all_others_up() {
        let spread = Spread { deviation: 0.0, slow_one_in: 64, ..Spread::default() };
        let found = simulate(&step_of(128), &eight_by(16, 4), &a100(), 3, spread).unwrap();
        assert_eq!(found.slowest_rank % 64, 63);
        assert!(found.slowest_over_mean > 1.45, "{found:?}");
        assert!(found.mean_step_seconds > 1.3 * found.even_step_seconds, "{found:?}");
        assert!(found.waiting_share > 0.25, "{found:?}");
        assert_eq!(found.step_seconds.len(), 3);
    }

    #[test]
    fn a_rank_that_others_wait_for_in_vain_is_an_error() {
        let grid = RankGrid::new(1, Some(2), 2).unwrap();
        // Waits for the exchange after the newest: nobody ever starts it on the other rank.
        let actions = vec![Action::Start(Kind::Data, 1.0), Action::Wait(Kind::Data, 0)];
        let mut clockwork = Clockwork::new(actions, grid, 1, even());
        clockwork.ranks[1].step = 1;
        let message = clockwork.run().unwrap_err().to_string();
        assert!(message.contains("rank 0 waits for ever in step 0"), "{message}");
    }
}
