//! Loss on held-out documents during training, of the mixture and of each source.

use altiplano_data::{IGNORED_TARGET, Share, ValidationSet};

use crate::error::Result;
use crate::metrics::ValidationMetrics;
use crate::train_step::Trainer;
use crate::world::Ranks;

/// Validates on at most `max_sequences` sequences of each source, spread evenly over it.
///
/// The loss over all sources is the one that training text would have: each source counts by its
/// share of the mixture, whatever was held out of it. Targets are those of training: the end mark of
/// a document is one, and so is the begin mark of the next unless the mixture masks it.
/// `None` when `interrupted` said so before a batch. Several ranks share the batches, and none of them
/// is interrupted.
///
/// # Errors
/// When a shard cannot be read or holds an id outside the vocabulary; when an exchange between ranks
/// fails.
pub fn validate(
    trainer: &Trainer,
    set: &ValidationSet,
    max_sequences: usize,
    interrupted: impl Fn() -> bool,
) -> Result<Option<ValidationMetrics>> {
    let mut metrics = ValidationMetrics::default();
    // Of a target drawn from the mixture: its loss, and the bytes of text it stands for.
    let (mut mean_nats, mut mean_bytes) = (0.0, 0.0);
    for (index, source) in set.sources().iter().enumerate() {
        let mut own = Vec::new();
        let share = trainer.ranks().share();
        for batch in set.batches_of(index, Some(max_sequences), share) {
            if trainer.ranks().is_alone() && interrupted() {
                return Ok(None);
            }
            let batch = batch?;
            let losses = trainer.losses(&batch)?;
            let nats = losses.into_iter().map(f64::from).sum::<f64>();
            own.push((nats, batch.valid_targets() as u64));
        }
        if trainer.gathers_weights() {
            // The first copy has one more where they do not come out even, and passes are made together.
            let first = Share { index: 0, ..share };
            let mut of_first = set.batches_of(index, Some(max_sequences), first);
            if of_first.size_hint().0 > own.len()
                && let Some(batch) = of_first.next()
            {
                let mut batch = batch?;
                batch.targets.fill(IGNORED_TARGET);
                trainer.losses(&batch)?;
            }
        }
        let (mut nats, mut targets) = (0.0, 0);
        for (batch_nats, batch_targets) in in_order(trainer.ranks(), own)? {
            nats += batch_nats;
            targets += batch_targets;
        }
        let mean = nats / targets.max(1) as f64;
        metrics.val_loss_per_source.insert(source.name.clone(), mean);
        let bits_per_byte = source.bits_per_byte(nats, targets);
        metrics.bits_per_byte_per_source.insert(source.name.clone(), bits_per_byte);
        mean_nats += source.share * mean;
        mean_bytes += source.share * source.bytes as f64 / source.targets.max(1) as f64;
    }
    metrics.val_loss = mean_nats;
    metrics.bits_per_byte = mean_nats / mean_bytes / std::f64::consts::LN_2;
    Ok(Some(metrics))
}

/// The sums of every batch of a source, in the order of the batches, from those that each copy of the
/// model has looked at.
fn in_order(ranks: &Ranks, own: Vec<(f64, u64)>) -> Result<Vec<(f64, u64)>> {
    if ranks.is_alone() {
        return Ok(own);
    }
    // The first copy has one more where they do not come out even.
    let counts = ranks.gather("validation", &[own.len() as u64])?;
    let most = counts.iter().copied().max().unwrap_or(0) as usize;
    let mut told: Vec<u64> =
        own.iter().flat_map(|(nats, targets)| [nats.to_bits(), *targets]).collect();
    told.resize(2 * most, 0);
    let all = ranks.gather("validation", &told)?;
    let (tensor, copies) = (ranks.grid().tensor(), ranks.grid().data());
    let batches = (0..most).flat_map(|round| (0..copies).map(move |copy| (round, copy * tensor)));
    let there = batches.filter(|(round, rank)| (*round as u64) < counts[*rank]);
    Ok(there
        .map(|(round, rank)| {
            let at = rank * told.len() + 2 * round;
            (f64::from_bits(all[at]), all[at + 1])
        })
        .collect())
}

/// One line: loss and bits per byte of the mixture, and the bits per byte of each source.
pub fn summary(metrics: &ValidationMetrics) -> String {
    let per_source = metrics.bits_per_byte_per_source.iter();
    let parts: Vec<String> = per_source.map(|(name, bits)| format!("{name} {bits:.3}")).collect();
    format!(
        "validation: loss {:.4}, {:.4} bits per byte ({})",
        metrics.val_loss,
        metrics.bits_per_byte,
        parts.join(", ")
    )
}
