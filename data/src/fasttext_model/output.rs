//! From scores to probabilities: softmax, hierarchical softmax and one logistic per label.
//!
//! fastText reports `exp(log(p + 1e-5))` and, for one logistic per label, looks the logistic up
//! in a table of 512 steps over -8 to 8. Both are kept, so that the scores are its scores.

use super::matrix::Matrix;

/// How the output layer turns scores into probabilities.
#[derive(Debug)]
pub(super) enum Output {
    Softmax,
    HierarchicalSoftmax(HuffmanTree),
    /// One against all, and negative sampling.
    Logistic,
}

/// A label's number and its probability.
pub(super) type Scored = (usize, f32);

impl Output {
    /// The `k` likeliest of `labels` labels, likeliest first; equal ones in the labels' order.
    pub fn predict(&self, matrix: &Matrix, hidden: &[f32], labels: usize, k: usize) -> Vec<Scored> {
        if let Self::HierarchicalSoftmax(tree) = self {
            return tree.predict(matrix, hidden, k);
        }
        let mut scores: Vec<f32> = (0..labels).map(|label| matrix.dot(label, hidden)).collect();
        match self {
            Self::Softmax => softmax(&mut scores),
            _ => scores.iter_mut().for_each(|score| *score = tabulated_logistic(*score)),
        }
        let mut best = Vec::new();
        for (label, score) in scores.into_iter().enumerate() {
            insert(&mut best, k, (label, score));
        }
        best.into_iter().map(|(label, score)| (label, smoothed_log(score).exp())).collect()
    }
}

/// Keeps the `k` largest of what it is given. What is not a number is left out.
fn insert(best: &mut Vec<Scored>, k: usize, new: Scored) {
    if new.1.is_nan() || (best.len() == k && best.last().is_none_or(|last| last.1 >= new.1)) {
        return;
    }
    let at = best.partition_point(|old| old.1 >= new.1);
    best.insert(at, new);
    best.truncate(k);
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    for score in scores {
        *score /= sum;
    }
}

fn smoothed_log(probability: f32) -> f32 {
    (probability + 1e-5).ln()
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn tabulated_logistic(x: f32) -> f32 {
    const STEPS: f32 = 512.0;
    const BOUND: f32 = 8.0;
    if x < -BOUND {
        0.0
    } else if x > BOUND {
        1.0
    } else {
        let step = ((x + BOUND) * STEPS / BOUND / 2.0).trunc();
        logistic(step * 2.0 * BOUND / STEPS - BOUND)
    }
}

/// The tree of hierarchical softmax. Nodes below `leaves` are labels; node `leaves + i` asks row
/// `i` of the output matrix.
#[derive(Debug)]
pub(super) struct HuffmanTree {
    leaves: usize,
    /// Left and right child of the inner nodes.
    children: Vec<[usize; 2]>,
}

impl HuffmanTree {
    /// The tree of the labels' counts. fastText writes them largest first; any order makes a
    /// tree. The counts' sum is below 10^15.
    pub fn new(counts: &[i64]) -> Self {
        const UNBUILT: i64 = 1_000_000_000_000_000;
        let leaves = counts.len();
        let inner = leaves.saturating_sub(1);
        let mut weights = counts.to_vec();
        weights.resize(leaves + inner, UNBUILT);
        let mut children = Vec::with_capacity(inner);
        // Two queues: the leaves from the rarest on, and the inner nodes as they are built.
        let (mut leaves_left, mut node) = (leaves, leaves);
        for built in leaves..leaves + inner {
            let mut next = || {
                if leaves_left > 0 && weights[leaves_left - 1] < weights[node] {
                    leaves_left -= 1;
                    leaves_left
                } else {
                    node += 1;
                    node - 1
                }
            };
            let pair = [next(), next()];
            weights[built] = weights[pair[0]] + weights[pair[1]];
            children.push(pair);
        }
        Self { leaves, children }
    }

    fn predict(&self, matrix: &Matrix, hidden: &[f32], k: usize) -> Vec<Scored> {
        let mut best: Vec<Scored> = Vec::new();
        let Some(root) = (self.leaves + self.children.len()).checked_sub(1) else {
            return best;
        };
        let floor = smoothed_log(0.0);
        let mut open = vec![(root, 0.0f32)];
        while let Some((node, score)) = open.pop() {
            let hopeless = best.len() == k && best.last().is_none_or(|last| score < last.1);
            if score.is_nan() || score < floor || hopeless {
                continue;
            }
            if node < self.leaves {
                insert(&mut best, k, (node, score));
                continue;
            }
            let right = logistic(matrix.dot(node - self.leaves, hidden));
            let [left_child, right_child] = self.children[node - self.leaves];
            // The left child is looked at first.
            open.push((right_child, score + smoothed_log(right)));
            open.push((left_child, score + smoothed_log(1.0 - right)));
        }
        best.into_iter().map(|(label, score)| (label, score.exp())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequent_labels_have_short_paths() {
        let tree = HuffmanTree::new(&[50, 20, 20, 6, 4]);
        assert_eq!(tree.children.len(), 4);
        // The two rarest meet first, the most frequent is a child of the root.
        assert_eq!(tree.children[0], [4, 3]);
        assert!(tree.children[3].contains(&0));
        // Every node but the root is a child once.
        let mut seen: Vec<usize> = tree.children.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..8).collect::<Vec<_>>());
        assert!(HuffmanTree::new(&[7]).children.is_empty());
        // Counts that are all zero still make a tree.
        assert_eq!(HuffmanTree::new(&[0; 1000]).children.len(), 999);
    }

    #[test]
    fn the_best_are_kept_in_order() {
        let mut best = Vec::new();
        for (label, score) in [0.1, 0.4, f32::NAN, 0.4, 0.2].into_iter().enumerate() {
            insert(&mut best, 3, (label, score));
        }
        assert_eq!(best, [(1, 0.4), (3, 0.4), (4, 0.2)]);
        let mut none = Vec::new();
        insert(&mut none, 0, (0, 1.0));
        assert!(none.is_empty());
    }

    #[test]
    fn the_logistic_is_tabulated() {
        assert_eq!(tabulated_logistic(-9.0), 0.0);
        assert_eq!(tabulated_logistic(9.0), 1.0);
        assert_eq!(tabulated_logistic(0.0), 0.5);
        // Inside one step of 1/32 the value does not change.
        assert_eq!(tabulated_logistic(1.001), tabulated_logistic(1.02));
        assert!((tabulated_logistic(1.02) - logistic(1.0)).abs() < 1e-6);
    }
}
