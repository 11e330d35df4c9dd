//! Which share of the work is done here.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::lock::{FolderLock, lock, lock_share};

/// One of several processes that share the work: it does every `world_size`-th task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    rank: usize,
    world_size: usize,
}

impl Default for Rank {
    fn default() -> Self {
        Self { rank: 0, world_size: 1 }
    }
}

impl Rank {
    /// Rank `rank` of `world_size`.
    ///
    /// # Errors
    /// [`DataError::Config`] unless `rank < world_size`.
    pub fn new(rank: usize, world_size: usize) -> Result<Self> {
        if rank >= world_size {
            return Err(DataError::config(
                "rank",
                format!("{rank} of world size {world_size}"),
                "a rank from 0 to the world size less 1",
            ));
        }
        Ok(Self { rank, world_size })
    }

    /// The numbers below `count`, beginning at this rank's share of them.
    pub(super) fn order(self, count: usize) -> impl Iterator<Item = usize> {
        let first = (self.rank * count) / self.world_size.max(1);
        (first..count).chain(0..first)
    }

    /// The rank a Slurm job array gives, from `variable` (the environment): task id less the
    /// smallest task id, of the number of tasks.
    ///
    /// # Errors
    /// [`DataError::Config`] when the variables are there but make no rank.
    pub fn from_slurm(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| match variable(name) {
            None => Ok(None),
            Some(text) => text
                .parse::<usize>()
                .map(Some)
                .map_err(|_| DataError::config(name, format!("{text:?}"), "a number")),
        };
        let (Some(id), Some(count)) =
            (number("SLURM_ARRAY_TASK_ID")?, number("SLURM_ARRAY_TASK_COUNT")?)
        else {
            return Ok(None);
        };
        let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let rank = id.checked_sub(first).ok_or_else(|| {
            DataError::config("SLURM_ARRAY_TASK_ID", id, format!("{first} or more"))
        })?;
        Self::new(rank, count).map(Some)
    }

    /// Whether there is only this process.
    pub fn is_alone(self) -> bool {
        self.world_size == 1
    }

    /// Locks `output` for this process: alone, or beside the other ranks.
    pub(super) fn lock(self, output: &Path) -> Result<FolderLock> {
        match self.is_alone() {
            true => lock(output),
            false => lock_share(output, self.rank, self.world_size),
        }
    }

    /// Whether task number `task` is done here.
    pub(crate) fn does(self, task: usize) -> bool {
        task % self.world_size == self.rank
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_one_rank() {
        let ranks: Vec<_> = (0..3).map(|rank| Rank::new(rank, 3).unwrap()).collect();
        for task in 0..20 {
            assert_eq!(ranks.iter().filter(|rank| rank.does(task)).count(), 1);
        }
        assert!(Rank::new(3, 3).is_err());
    }

    #[test]
    fn slurm_arrays_may_start_anywhere() {
        let variables = |id: &str| {
            let id = id.to_owned();
            move |name: &str| match name {
                "SLURM_ARRAY_TASK_ID" => Some(id.clone()),
                "SLURM_ARRAY_TASK_COUNT" => Some("4".to_owned()),
                "SLURM_ARRAY_TASK_MIN" => Some("1".to_owned()),
                _ => None,
            }
        };
        assert_eq!(Rank::from_slurm(variables("4")).unwrap(), Some(Rank::new(3, 4).unwrap()));
        assert!(Rank::from_slurm(variables("5")).is_err());
        assert!(Rank::from_slurm(variables("x")).is_err());
        assert_eq!(Rank::from_slurm(|_| None).unwrap(), None);
    }
}
