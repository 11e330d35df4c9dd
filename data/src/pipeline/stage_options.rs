//! What a run gives to the tasks of a stage.

use crate::progress::Progress;

/// What all tasks of a stage share.
pub(super) struct StageOptions<'a> {
    pub progress: &'a Progress,
    /// Most memory that one task may hold, in bytes.
    pub memory_bytes: u64,
    /// Dropped documents whose text is kept in the drop log, per reason.
    pub samples_per_reason: u64,
    /// Whether the documents of one task are spread over threads.
    pub parallel: bool,
}
