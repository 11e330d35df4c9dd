//! Layouts of a number of ranks, fastest first, and one layout on growing numbers of ranks.

use altiplano_model::config::ActivationCheckpointing;
use altiplano_model::parallel::divisors;
use serde::Serialize;

use super::layout::{Layout, RankMemory, sequences_per_step};
use super::time::{Profile, StepTime};
use crate::config::{Shard, TrainConfig};

/// A layout with what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Candidate {
    /// The layout.
    #[serde(flatten)]
    pub layout: Layout,
    /// Memory of a rank.
    pub memory_bytes: RankMemory,
    /// Time of a step.
    pub seconds: StepTime,
}

impl Candidate {
    /// Of `config` in this layout, which has passed [`Layout::check`].
    pub fn new(config: &TrainConfig, layout: Layout, profile: &Profile) -> Self {
        let memory_bytes = RankMemory::new(config, &layout);
        Self { layout, memory_bytes, seconds: StepTime::new(config, &layout, profile) }
    }

    /// Whether a rank's memory is within what a run may use of a device.
    pub fn fits(&self, profile: &Profile) -> bool {
        self.memory_bytes.total as f64 <= profile.usable_bytes()
    }
}

/// All layouts of `ranks` ranks that can be trained and fit the memory, fastest first: tensor ranks over the divisors,
/// micro-batches over powers of two, every policy and what the copies split. Of equally fast ones
/// the one with less memory comes first.
pub fn layouts(config: &TrainConfig, ranks: u64, profile: &Profile) -> Vec<Candidate> {
    let policies = [
        ActivationCheckpointing::None,
        ActivationCheckpointing::Selective,
        ActivationCheckpointing::Full,
    ];
    let shards = [Shard::None, Shard::Optimizer, Shard::Gradients, Shard::Parameters];
    let sequences = sequences_per_step(config);
    let micro_batches = || {
        std::iter::successors(Some(1u64), |batch| Some(batch * 2))
            .take_while(|batch| *batch <= sequences)
    };
    let mut found = Vec::new();
    let tensors = divisors(config.model.n_heads).into_iter().map(|tensor| tensor as u64);
    for tensor in tensors.filter(|tensor| ranks.is_multiple_of(*tensor)) {
        for micro_batch in micro_batches() {
            for policy in policies {
                for shard in shards {
                    let data = ranks / tensor;
                    let layout = Layout {
                        tensor,
                        data,
                        sequence: tensor > 1,
                        shard,
                        overlap: true,
                        micro_batch,
                        policy,
                    };
                    if layout.check(config).is_ok() {
                        let candidate = Candidate::new(config, layout, profile);
                        found.extend(candidate.fits(profile).then_some(candidate));
                    }
                }
            }
        }
    }
    found.sort_by(|a, b| {
        let (first, second) = (&a.seconds, &b.seconds);
        second
            .tokens_per_second_per_rank
            .total_cmp(&first.tokens_per_second_per_rank)
            .then(a.memory_bytes.total.cmp(&b.memory_bytes.total))
    });
    found
}

/// One number of ranks in [`scale`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScaleRow {
    /// Ranks.
    pub ranks: u64,
    /// At the sequences per step of the configuration: with fewer for each copy the more there are.
    pub fixed_step: Option<Candidate>,
    /// At as many sequences for each copy as on the number of ranks that was started from.
    pub fixed_copy: Candidate,
}

/// `layout` on every doubling of ranks from `from` to `to`. Micro-batches shrink to what a copy has.
pub fn scale(
    config: &TrainConfig,
    layout: &Layout,
    profile: &Profile,
    from: u64,
    to: u64,
) -> Vec<ScaleRow> {
    let per_copy = (sequences_per_step(config) / layout.data).max(1);
    let doublings = std::iter::successors(Some(from.max(1)), |ranks| ranks.checked_mul(2));
    let rows = doublings
        .take_while(|ranks| *ranks <= to)
        .filter(|ranks| ranks.is_multiple_of(layout.tensor) && *ranks >= layout.tensor);
    rows.map(|ranks| {
        let data = ranks / layout.tensor;
        let of_step = sequences_per_step(config) / data;
        let with = |micro_batch: u64| Layout { data, micro_batch, ..*layout };
        let spread = with(layout.micro_batch.min(of_step));
        let fixed_step = (of_step > 0 && spread.check(config).is_ok())
            .then(|| Candidate::new(config, spread, profile));
        let mut weak = config.clone();
        weak.batch.micro_batch = 1;
        weak.batch.grad_accum_steps = usize::try_from(per_copy * data).unwrap_or(usize::MAX);
        let fixed_copy = Candidate::new(&weak, with(layout.micro_batch), profile);
        ScaleRow { ranks, fixed_step, fixed_copy }
    })
    .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::layout::tests::{config, eight_by};
    use super::*;
    use crate::config::ConfigFile;

    fn a100() -> Profile {
        Profile::named("a100-80gb").unwrap()
    }

    #[test]
    fn the_papers_layout_of_65b_is_among_the_fastest() {
        let found = layouts(&config("llama_65b.yaml"), 2048, &a100());
        let rate = |found: &Candidate| found.seconds.tokens_per_second_per_rank;
        // With one micro-batch for a copy it costs nothing to split the gradients, and then half the
        // tensor ranks fit, which exchange less.
        let best = &found[0];
        assert_eq!((best.layout.tensor, best.layout.data, best.layout.micro_batch), (4, 512, 4));
        assert_eq!(best.layout.shard, Shard::Gradients);
        assert!((rate(best) / 409.0 - 1.0).abs() < 0.01, "{best:?}");
        let papers = found.iter().find(|found| found.layout == eight_by(256, 4)).unwrap();
        assert!(rate(papers) > 0.98 * rate(best), "{papers:?}");
        let rates = found.iter().map(|found| found.seconds.tokens_per_second_per_rank);
        assert!(rates.is_sorted_by(|a, b| a >= b));
        assert!(found.iter().all(|found| found.memory_bytes.total < 76_000_000_000));
        // With half the tensor ranks it fits only where the copies split the gradients.
        let mut fours = found.iter().filter(|found| found.layout.tensor == 4);
        assert!(
            fours.all(|four| matches!(four.layout.shard, Shard::Gradients | Shard::Parameters))
        );
    }

    /// What is listed is what a run of these settings accepts.
    #[test]
    fn every_layout_that_is_listed_can_be_trained() {
        let mut config = config("llama_33b.yaml");
        config.batch.grad_accum_steps = 24;
        config.batch.micro_batch = 1;
        let found = layouts(&config, 24, &Profile { memory_bytes: 1e13, ..a100() });
        let tensors: std::collections::BTreeSet<u64> =
            found.iter().map(|found| found.layout.tensor).collect();
        // 52 heads and 24 ranks; micro-batches of 1, 2, 4 and 8 sequences for the copies that are left.
        assert_eq!(tensors.into_iter().collect::<Vec<_>>(), [1, 2, 4]);
        for Candidate { layout, .. } in &found {
            let mut run = config.clone();
            run.batch.micro_batch = layout.micro_batch as usize;
            run.batch.grad_accum_steps = 24 / layout.micro_batch as usize;
            run.parallel.tensor = layout.tensor as usize;
            run.parallel.data = Some(layout.data as usize);
            run.parallel.shard = layout.shard;
            assert!(run.check().is_ok(), "{layout:?}");
        }
        assert!(found.iter().any(|found| found.layout.shard == Shard::Parameters));
    }

    #[test]
    fn a_model_of_52_heads_takes_four_tensor_ranks() {
        let found = layouts(&config("llama_33b.yaml"), 2048, &a100());
        let best = &found[0];
        assert_eq!((best.layout.tensor, best.layout.data, best.layout.micro_batch), (4, 512, 4));
        let rate = best.seconds.tokens_per_second_per_rank;
        assert!((rate / 813.0 - 1.0).abs() < 0.02, "{rate}");
    }

    #[test]
    fn more_ranks_than_a_step_has_sequences_for_are_slow() {
        let config = config("llama_65b.yaml");
        let rows = scale(&config, &eight_by(256, 4), &a100(), 512, 16_384);
        let expected = [405.0, 404.0, 403.0, 400.0, 205.0, 103.0];
        assert_eq!(
            rows.iter().map(|row| row.ranks).collect::<Vec<_>>(),
            [512, 1024, 2048, 4096, 8192, 16_384]
        );
        for (row, expected) in rows.iter().zip(expected) {
            let rate = row.fixed_step.unwrap().seconds.tokens_per_second_per_rank;
            assert!((rate / expected - 1.0).abs() < 0.02, "{rate} for {expected}");
            let weak = row.fixed_copy.seconds.tokens_per_second_per_rank;
            assert!((weak / 403.0 - 1.0).abs() < 0.02, "{weak}");
        }
        let most = scale(&config, &eight_by(256, 4), &a100(), 32_768, 32_768);
        assert!(most[0].fixed_step.is_none());
    }
}
