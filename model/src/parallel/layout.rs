//! Who holds which rows and columns of every parameter.
//!
//! | parameter | whole | rank r of t |
//! |---|---|---|
//! | embed_tokens, lm_head | (V, C) | rows ⌊rV/t⌋ .. ⌊(r+1)V/t⌋ |
//! | q_proj | (H·D, C) | rows of the heads from rH/t on |
//! | k_proj, v_proj, K ≥ t | (K·D, C) | rows of the heads from rK/t on |
//! | k_proj, v_proj, K < t | (K·D, C) | rows of head ⌊rK/t⌋, as t/K − 1 other ranks |
//! | o_proj | (C, H·D) | columns of the heads of q_proj |
//! | gate_proj, up_proj | (F, C) | rows from rF/t on |
//! | down_proj | (C, F) | columns from rF/t on |
//! | norm gains | (C) | all |
//!
//! A head is a block of D rows, so the order of pairs that RoPE rotates needs nothing here.

use std::ops::Range;

use altiplano_comm::Rows;
use burn::tensor::Tensor;

use crate::config::LlamaConfig;
use crate::error::{ModelError, Result};
use crate::param_tree::{Param, ParamTree, Size};

/// A rank's place among those that split every matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorRank {
    rank: usize,
    ranks: usize,
}

/// Rows and columns of a whole parameter. A norm gain is one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Rows.
    pub rows: Range<usize>,
    /// Columns, each a stretch of every row.
    pub columns: Range<usize>,
}

impl Slice {
    /// The elements of the slice, of a whole matrix of `width` columns.
    pub fn take<T: Copy>(&self, whole: Vec<T>, width: usize) -> Vec<T> {
        if self.rows.len() * self.columns.len() == whole.len() {
            return whole;
        }
        let rows = whole.chunks_exact(width).skip(self.rows.start).take(self.rows.len());
        rows.flat_map(|row| &row[self.columns.clone()]).copied().collect()
    }

    /// Writes the elements of the slice, `part`, to their places in a whole matrix of `width` columns.
    ///
    /// # Panics
    /// When there are fewer than the slice has.
    pub fn put<T: Copy>(&self, part: &[T], whole: &mut [T], width: usize) {
        let rows = whole.chunks_exact_mut(width).skip(self.rows.start).take(self.rows.len());
        for (n, row) in rows.enumerate() {
            let columns = self.columns.len();
            row[self.columns.clone()].copy_from_slice(&part[n * columns..(n + 1) * columns]);
        }
    }
}

impl TensorRank {
    /// A rank that holds everything.
    pub const ONLY: Self = Self { rank: 0, ranks: 1 };

    /// Rank `rank` of `ranks`, of a model that can be split so.
    ///
    /// # Errors
    /// As [`TensorRank::all`].
    ///
    /// # Panics
    /// When there is no such rank.
    pub fn new(rank: usize, ranks: usize, config: &LlamaConfig) -> Result<Self> {
        assert!(rank < ranks, "rank {rank} of {ranks} tensor ranks");
        check(ranks, config)?;
        Ok(Self { rank, ranks })
    }

    /// All ranks that split a model, in order.
    ///
    /// # Errors
    /// [`ModelError::TensorRanks`] when heads, feed-forward or vocabulary cannot be split by so
    /// many, with the numbers that would fit.
    pub fn all(ranks: usize, config: &LlamaConfig) -> Result<Vec<Self>> {
        check(ranks, config)?;
        Ok((0..ranks).map(|rank| Self { rank, ranks }).collect())
    }

    /// Place among the ranks, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The configuration whose shapes are those of this rank's parts: its heads, its columns of the
    /// feed-forward, its words. Its `vocab_size` is the number of words held here.
    pub fn local_config(&self, config: &LlamaConfig) -> LlamaConfig {
        LlamaConfig {
            n_heads: config.n_heads / self.ranks,
            n_kv_heads: Some((config.kv_heads() / self.ranks).max(1)),
            head_dim: Some(config.head_dim()),
            hidden_dim: Some(config.ffn_dim() / self.ranks),
            vocab_size: self.words(config.vocab_size).len(),
            ..config.clone()
        }
    }

    /// The words of a vocabulary that this rank holds.
    pub fn words(&self, vocab_size: usize) -> Range<usize> {
        Rows::single(vocab_size).part(self.rank, self.ranks)
    }

    /// What this rank holds of a parameter.
    pub fn slice(&self, param: Param, config: &LlamaConfig) -> Slice {
        match *param.sizes() {
            [rows, columns] => {
                Slice { rows: self.range(rows, config), columns: self.range(columns, config) }
            }
            _ => Slice { rows: 0..1, columns: 0..param.count(config) },
        }
    }

    /// Whether no rank before this one holds the same part of a parameter: it is the one that
    /// counts in a norm and that writes.
    pub fn is_first_holder(&self, param: Param, config: &LlamaConfig) -> bool {
        let before = self.rank.checked_sub(1).map(|rank| Self { rank, ..*self });
        before.is_none_or(|before| before.slice(param, config) != self.slice(param, config))
    }

    /// Whether some of `ranks` ranks hold the same part of a parameter.
    pub fn is_shared(ranks: usize, param: Param, config: &LlamaConfig) -> bool {
        let mut all = (0..ranks).map(|rank| Self { rank, ranks });
        all.any(|rank| !rank.is_first_holder(param, config))
    }

    /// This rank's part of whole parameters, each in storage of its own.
    pub fn split(
        &self,
        whole: &ParamTree<Tensor<1>, Tensor<2>>,
        config: &LlamaConfig,
    ) -> ParamTree<Tensor<1>, Tensor<2>> {
        let params = ParamTree::of_model(config);
        params.zip(whole.each_ref()).map(
            |(_, gain)| copied(gain.clone()),
            |(param, matrix)| {
                let Slice { rows, columns } = self.slice(param, config);
                copied(matrix.clone().slice([rows, columns]))
            },
        )
    }

    /// Whole parameters of the parts of all ranks, which are in their order. Of a part that several
    /// ranks hold the first is taken.
    ///
    /// # Panics
    /// When `parts` are not of as many ranks as this one is of.
    pub fn join(
        parts: &[ParamTree<Tensor<1>, Tensor<2>>],
        config: &LlamaConfig,
    ) -> ParamTree<Tensor<1>, Tensor<2>> {
        let ranks = parts.len();
        let mut of_ranks =
            parts.iter().map(|part| part.each_ref().map(|gain| vec![gain], |m| vec![m]));
        let first = of_ranks.next().expect("a model is held by one rank at least");
        let all = of_ranks.fold(first, |all, part| {
            let both = |(mut all, part): (Vec<_>, Vec<_>)| {
                all.extend(part);
                all
            };
            all.zip(part).map(
                |(mut all, part)| {
                    all.extend(part);
                    all
                },
                both,
            )
        });
        ParamTree::of_model(config).zip(all).map(
            |(_, gains): (Param, Vec<&Tensor<1>>)| gains[0].clone(),
            |(param, matrices): (Param, Vec<&Tensor<2>>)| {
                let held = matrices
                    .into_iter()
                    .enumerate()
                    .filter(|(rank, _)| Self { rank: *rank, ranks }.is_first_holder(param, config));
                let held: Vec<Tensor<2>> = held.map(|(_, matrix)| matrix.clone()).collect();
                let by_columns = matches!(*param.sizes(), [Size::C, _]);
                if held.len() == 1 {
                    return held[0].clone();
                }
                Tensor::cat(held, usize::from(by_columns))
            },
        )
    }

    /// What this rank holds of a length.
    fn range(&self, size: Size, config: &LlamaConfig) -> Range<usize> {
        let Self { rank, ranks } = *self;
        let even = |length: usize| rank * (length / ranks)..(rank + 1) * (length / ranks);
        match size {
            Size::C => 0..config.dim,
            Size::V => self.words(config.vocab_size),
            Size::F => even(config.ffn_dim()),
            Size::HD => even(config.attention_dim()),
            Size::KD => {
                let heads = config.kv_heads();
                let first = rank * heads / ranks;
                let width = config.head_dim();
                first * width..(first + (heads / ranks).max(1)) * width
            }
        }
    }
}

/// The same elements in storage of their own, in order: a view keeps all of the whole alive.
fn copied<const D: usize>(view: Tensor<D>) -> Tensor<D> {
    let (dtype, device) = (view.dtype(), view.device());
    Tensor::from_data(view.into_data(), (&device, dtype))
}

/// Whether a model can be split by `ranks`.
fn check(ranks: usize, config: &LlamaConfig) -> Result<()> {
    let wrong = |expected: String| Err(ModelError::TensorRanks { ranks, expected });
    let divides = |length: usize| ranks != 0 && length.is_multiple_of(ranks);
    let (heads, kv_heads, hidden) = (config.n_heads, config.kv_heads(), config.ffn_dim());
    if !divides(heads) {
        let divisors = list(&divisors(heads));
        return wrong(format!("a divisor of model.n_heads ({heads}): {divisors}"));
    }
    if !divides(kv_heads) && !ranks.is_multiple_of(kv_heads) {
        return wrong(format!("a divisor or a multiple of model.n_kv_heads ({kv_heads})"));
    }
    if !divides(hidden) {
        let divisors = list(&divisors(hidden));
        return wrong(format!("a divisor of model.hidden_dim ({hidden}): {divisors}"));
    }
    if config.vocab_size < ranks {
        let words = config.vocab_size;
        return wrong(format!("at most model.vocab_size ({words}), a word for each rank"));
    }
    Ok(())
}

/// The divisors of `n`, ascending: the numbers of ranks that can split `n` things.
pub fn divisors(n: usize) -> Vec<usize> {
    let small: Vec<usize> =
        (1..).take_while(|d| *d <= n / *d).filter(|d| n.is_multiple_of(*d)).collect();
    let large = small.iter().rev().filter(|d| **d != n / **d).map(|d| n / d);
    small.iter().copied().chain(large).collect()
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;
    use crate::param_tree::Leaf;
    use crate::params::Weights;

    fn config(kv_heads: usize) -> LlamaConfig {
        LlamaConfig {
            dim: 24,
            n_layers: 2,
            n_heads: 8,
            n_kv_heads: Some(kv_heads),
            hidden_dim: Some(40),
            multiple_of: 256,
            vocab_size: 37,
            max_seq_len: 8,
            rope_theta: 10_000.0,
            head_dim: Some(4),
            tie_word_embeddings: kv_heads == 2,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    /// Every way to split gives trees of the shapes of the local configuration, which join to the
    /// whole, bit for bit.
    #[test]
    fn parts_have_local_shapes_and_join_to_the_whole() {
        for kv_heads in [8, 4, 2, 1] {
            let config = config(kv_heads);
            let whole = Weights::init(&config, 3, DType::F32, &Device::flex());
            for ranks in [1, 2, 4, 8] {
                let all = TensorRank::all(ranks, &config).unwrap();
                let parts: Vec<Weights> = all.iter().map(|r| r.split(&whole, &config)).collect();
                for (rank, part) in all.iter().zip(&parts) {
                    let local = rank.local_config(&config);
                    local.validate().unwrap();
                    for (param, leaf) in part.iter() {
                        let shape = leaf.to_data().shape().to_vec();
                        assert_eq!(shape, param.shape(&local), "{param} on {rank:?}");
                    }
                }
                let joined = TensorRank::join(&parts, &config);
                for ((param, found), (_, expected)) in joined.iter().zip(whole.iter()) {
                    assert_eq!(found.to_data(), expected.to_data(), "{param} of {ranks} ranks");
                }
            }
        }
    }

    /// A part put where it was taken from is the whole again.
    #[test]
    fn slices_are_taken_and_put_back() {
        let whole: Vec<i32> = (0..40).collect();
        for (rows, columns) in
            [(0..5, 0..8), (1..3, 0..8), (0..5, 6..8), (2..5, 3..4), (1..1, 0..8)]
        {
            let slice = Slice { rows: rows.clone(), columns: columns.clone() };
            let part = slice.take(whole.clone(), 8);
            let expected: Vec<i32> = rows
                .flat_map(|row| columns.clone().map(move |column| (8 * row + column) as i32))
                .collect();
            assert_eq!(part, expected, "{slice:?}");
            let mut found = vec![-1; 40];
            slice.put(&part, &mut found, 8);
            for (n, x) in found.into_iter().enumerate() {
                let inside = slice.rows.contains(&(n / 8)) && slice.columns.contains(&(n % 8));
                assert_eq!(x, if inside { n as i32 } else { -1 });
            }
        }
    }

    /// The slices of first holders are every element of a parameter once; each other rank has the
    /// slice of a first holder.
    #[test]
    fn every_element_has_one_first_holder() {
        for (kv_heads, ranks) in [(8, 8), (2, 8), (1, 4), (4, 2)] {
            let config = config(kv_heads);
            let all = TensorRank::all(ranks, &config).unwrap();
            for (param, leaf) in ParamTree::of_model(&config).iter() {
                let mut holders = vec![0; param.count(&config)];
                let (mut copies, width) = (0, *param.shape(&config).last().unwrap());
                for rank in &all {
                    let Slice { rows, columns } = rank.slice(param, &config);
                    if !rank.is_first_holder(param, &config) {
                        copies += 1;
                        continue;
                    }
                    for row in rows {
                        columns.clone().for_each(|column| holders[row * width + column] += 1);
                    }
                }
                assert!(holders.iter().all(|holders| *holders == 1), "{param}");
                let name = param.to_string();
                let expected = match leaf {
                    Leaf::Vector(_) => ranks - 1,
                    Leaf::Matrix(_) if name.contains("k_proj") || name.contains("v_proj") => {
                        ranks - ranks.min(kv_heads)
                    }
                    Leaf::Matrix(_) => 0,
                };
                assert_eq!(copies, expected, "{param} with {kv_heads} heads on {ranks}");
            }
        }
    }

    #[test]
    fn divisors_are_all_there() {
        for n in 1..200 {
            let slow: Vec<usize> = (1..=n).filter(|d| n % d == 0).collect();
            assert_eq!(divisors(n), slow, "{n}");
        }
        assert!(divisors(0).is_empty());
        assert_eq!(divisors((1 << 40) + 15).len() % 2, 0);
    }

    #[test]
    fn what_does_not_split_is_named_with_what_would() {
        let message =
            |ranks, config: &LlamaConfig| TensorRank::all(ranks, config).unwrap_err().to_string();
        let of_33b = LlamaConfig { n_heads: 52, n_kv_heads: None, ..config(8) };
        let heads = message(8, &of_33b);
        for part in ["parallel.tensor: found 8", "n_heads (52)", "1, 2, 4, 13, 26, 52"] {
            assert!(heads.contains(part), "{heads}");
        }
        let twelve = LlamaConfig { n_heads: 12, n_kv_heads: Some(6), ..config(8) };
        assert!(message(4, &twelve).contains("n_kv_heads (6)"));
        let hidden = LlamaConfig { hidden_dim: Some(42), ..config(8) };
        assert!(message(4, &hidden).contains("hidden_dim (42): 1, 2, 3, 6, 7, 14, 21, 42"));
        let words = LlamaConfig { vocab_size: 3, ..config(8) };
        assert!(message(4, &words).contains("vocab_size (3)"));
        assert!(message(0, &config(8)).contains("n_heads"));
    }
}
