//! Loss on held-out documents during training, over all sources and for each.

use altiplano_data::ValidationSet;

use crate::error::Result;
use crate::metrics::ValidationMetrics;
use crate::train_step::Trainer;

/// Validates on at most `max_batches` batches of each source, spread evenly over it.
///
/// The loss over all sources weights each source by its targets. `None` when `interrupted` said so
/// before a batch.
///
/// # Errors
/// When a shard cannot be read or holds an id outside the vocabulary.
pub fn validate(
    trainer: &Trainer,
    set: &ValidationSet,
    max_batches: usize,
    interrupted: impl Fn() -> bool,
) -> Result<Option<ValidationMetrics>> {
    let mut metrics = ValidationMetrics::default();
    let (mut all_nats, mut all_bits, mut all_targets, mut all_bytes) = (0.0, 0.0, 0, 0);
    for (index, source) in set.sources().iter().enumerate() {
        let (mut nats, mut targets) = (0.0, 0);
        for batch in set.batches(index, Some(max_batches)) {
            if interrupted() {
                return Ok(None);
            }
            let batch = batch?;
            targets += batch.valid_targets() as u64;
            nats += trainer.losses(&batch)?.into_iter().map(f64::from).sum::<f64>();
        }
        let mean = nats / targets.max(1) as f64;
        let bits_per_byte = source.bits_per_byte(nats, targets);
        metrics.val_loss_per_source.insert(source.name.clone(), mean);
        metrics.bits_per_byte_per_source.insert(source.name.clone(), bits_per_byte);
        all_nats += mean * source.targets as f64;
        all_targets += source.targets;
        all_bits += bits_per_byte * source.bytes as f64;
        all_bytes += source.bytes;
    }
    metrics.val_loss = all_nats / all_targets.max(1) as f64;
    metrics.bits_per_byte = all_bits / all_bytes.max(1) as f64;
    Ok(Some(metrics))
}

/// One line: the loss over all sources and the bits per byte of each.
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
