//! Tensor ranks and data ranks: who is in which group.
//!
//! ```text
//! world rank = data rank · tensor + tensor rank
//! ```
//!
//! Tensor ranks are adjacent, so a launcher that fills hosts one after the other puts the ranks
//! that exchange most on one host.

use crate::error::{CommError, Result};

/// How the ranks of a run are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RankGrid {
    tensor: usize,
    data: usize,
}

impl RankGrid {
    /// `tensor` ranks that split every matrix times `data` copies of the model; without `data`, as
    /// many copies as the `world` ranks give.
    ///
    /// # Errors
    /// The product is not `world`.
    pub fn new(tensor: usize, data: Option<usize>, world: usize) -> Result<Self> {
        if tensor == 0 || !world.is_multiple_of(tensor) {
            let divisors: Vec<String> =
                (1..=world).filter(|t| world.is_multiple_of(*t)).map(|t| t.to_string()).collect();
            return Err(CommError::Layout {
                key: "parallel.tensor",
                message: format!(
                    "found {tensor} with {world} ranks started; expected a divisor of {world}: {}",
                    divisors.join(", ")
                ),
            });
        }
        let fitting = world / tensor;
        match data {
            Some(data) if data != fitting => Err(CommError::Layout {
                key: "parallel.data",
                message: format!(
                    "parallel.tensor {tensor} x parallel.data {data} = {} ranks, but {world} were \
                     started; write `parallel.data={fitting}` ({tensor} x {fitting} = {world}), or \
                     start `mpirun -n {}`",
                    tensor.saturating_mul(data),
                    tensor.saturating_mul(data).max(1)
                ),
            }),
            _ => Ok(Self { tensor, data: fitting }),
        }
    }

    /// One rank.
    pub fn single() -> Self {
        Self { tensor: 1, data: 1 }
    }

    /// Ranks that split every matrix.
    pub fn tensor(&self) -> usize {
        self.tensor
    }

    /// Copies of the model.
    pub fn data(&self) -> usize {
        self.data
    }

    /// All ranks.
    pub fn ranks(&self) -> usize {
        self.tensor * self.data
    }

    /// Place of a world rank among the ranks that split its copy.
    pub fn tensor_rank(&self, rank: usize) -> usize {
        rank % self.tensor
    }

    /// The copy of the model that a world rank works on.
    pub fn data_rank(&self, rank: usize) -> usize {
        rank / self.tensor
    }

    /// World ranks that split the copy `rank` works on: they exchange activations.
    pub fn tensor_group(&self, rank: usize) -> Vec<usize> {
        let first = self.data_rank(rank) * self.tensor;
        (first..first + self.tensor).collect()
    }

    /// World ranks with the same part of the model as `rank`: they exchange gradients and weights.
    pub fn data_group(&self, rank: usize) -> Vec<usize> {
        (0..self.data).map(|data| data * self.tensor + self.tensor_rank(rank)).collect()
    }

    /// World ranks that hold the same head of keys and values as `rank`, in its copy. Alone unless
    /// there are more tensor ranks than such heads.
    ///
    /// `kv_heads` divides the number of tensor ranks or is a multiple of it.
    pub fn kv_group(&self, rank: usize, kv_heads: usize) -> Vec<usize> {
        let holders = (self.tensor / kv_heads.max(1)).max(1);
        let first = rank - self.tensor_rank(rank) % holders;
        (first..first + holders).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tensor_ranks_are_adjacent() {
        let grid = RankGrid::new(4, Some(2), 8).unwrap();
        assert_eq!((grid.tensor_rank(6), grid.data_rank(6)), (2, 1));
        assert_eq!(grid.tensor_group(6), [4, 5, 6, 7]);
        assert_eq!(grid.data_group(6), [2, 6]);
        for (heads, group) in [(8, vec![6]), (4, vec![6]), (2, vec![6, 7]), (1, vec![4, 5, 6, 7])] {
            assert_eq!(grid.kv_group(6, heads), group, "{heads} heads");
        }
        assert_eq!(RankGrid::new(2, None, 6).unwrap().data(), 3);
    }

    #[test]
    fn every_rank_is_in_the_groups_of_its_members() {
        for (tensor, data) in [(1, 1), (1, 5), (4, 1), (2, 3), (8, 2)] {
            let grid = RankGrid::new(tensor, Some(data), tensor * data).unwrap();
            for rank in 0..grid.ranks() {
                assert_eq!(grid.data_rank(rank) * tensor + grid.tensor_rank(rank), rank);
                let kv: Vec<usize> = (1..=8).filter(|k| tensor.is_multiple_of(*k)).collect();
                let kv_groups = kv.iter().map(|k| grid.kv_group(rank, *k));
                let groups = kv_groups.chain([grid.tensor_group(rank), grid.data_group(rank)]);
                for group in groups {
                    assert!(group.contains(&rank) && group.is_sorted(), "{group:?}");
                }
                for other in grid.tensor_group(rank) {
                    assert_eq!(grid.tensor_group(other), grid.tensor_group(rank));
                    for k in &kv {
                        let same = grid.kv_group(rank, *k).contains(&other);
                        assert_eq!(grid.kv_group(other, *k) == grid.kv_group(rank, *k), same);
                    }
                }
            }
        }
    }

    #[test]
    fn a_wrong_product_names_both_and_what_is_right() {
        let message = RankGrid::new(2, Some(4), 4).unwrap_err().to_string();
        for part in [
            "parallel.data",
            "2 x parallel.data 4 = 8",
            "4 were started",
            "parallel.data=2",
            "-n 8",
        ] {
            assert!(message.contains(part), "{message}");
        }
        let message = RankGrid::new(3, None, 4).unwrap_err().to_string();
        assert!(message.contains("parallel.tensor") && message.contains("1, 2, 4"), "{message}");
        assert!(RankGrid::new(0, None, 4).unwrap_err().is_usage());
    }
}
