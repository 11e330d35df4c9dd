//! Where the matrices of a model lie in buckets, and which elements a copy has.
//!
//! The layout follows from the configuration and the number of copies. It is never stored.

use std::ops::Range;

use altiplano_model::LlamaConfig;
use altiplano_model::param_ops::PIECE;
use altiplano_model::param_tree::{LayerTree, Param, ParamTree};

/// A matrix in a bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlacedMatrix {
    /// Which.
    pub param: Param,
    /// Its first element in the bucket: a multiple of the piece in which squares are summed.
    pub start: usize,
    /// Its elements.
    pub count: usize,
}

/// Matrices whose gradients are exchanged together.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// The matrices, in order.
    pub matrices: Vec<PlacedMatrix>,
    /// Elements, a multiple of the copies times the piece. Between matrices and behind the last there
    /// are zeros.
    pub length: usize,
}

/// The part of a matrix that a copy has.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// The matrix.
    pub param: Param,
    /// Elements of the matrix.
    pub in_matrix: Range<usize>,
    /// Where they lie in the copy's part of the bucket.
    pub in_part: Range<usize>,
}

/// All buckets of a model, in the order in which the backward pass completes them.
#[derive(Debug, Clone, PartialEq)]
pub struct FlatLayout {
    buckets: Vec<Bucket>,
    copies: usize,
    /// Place of each matrix, by the index of the parameter: its bucket and its number there.
    places: Vec<Option<(usize, usize)>>,
}

/// The matrices of a layer, in the order of the checkpoint.
pub(super) fn matrices<V, M>(layer: &LayerTree<V, M>) -> [&M; 7] {
    [
        &layer.q_proj,
        &layer.k_proj,
        &layer.v_proj,
        &layer.o_proj,
        &layer.gate_proj,
        &layer.up_proj,
        &layer.down_proj,
    ]
}

/// The same, to be changed.
pub(super) fn matrices_mut<V, M>(layer: &mut LayerTree<V, M>) -> [&mut M; 7] {
    [
        &mut layer.q_proj,
        &mut layer.k_proj,
        &mut layer.v_proj,
        &mut layer.o_proj,
        &mut layer.gate_proj,
        &mut layer.up_proj,
        &mut layer.down_proj,
    ]
}

impl FlatLayout {
    /// The layout for `copies` of a model; layers are joined until a bucket has `bucket_bytes` of f32.
    pub fn new(config: &LlamaConfig, copies: usize, bucket_bytes: usize) -> Self {
        let params = ParamTree::of_model(config);
        let mut groups: Vec<Vec<Param>> = Vec::new();
        groups.extend(params.lm_head.map(|head| vec![head]));
        let (mut joined, mut elements) = (Vec::new(), 0);
        for layer in params.layers.iter().rev() {
            let params = matrices(layer).map(|param| *param);
            elements += params.iter().map(|param| param.count(config)).sum::<usize>();
            joined.extend(params);
            if elements.saturating_mul(size_of::<f32>()) >= bucket_bytes {
                groups.push(std::mem::take(&mut joined));
                elements = 0;
            }
        }
        groups.push(joined);
        groups.push(vec![params.embed_tokens]);
        groups.retain(|group| !group.is_empty());

        let mut places = vec![None; params.iter().len()];
        let buckets = groups.into_iter().enumerate().map(|(bucket, group)| {
            let mut end = 0;
            let place = |(number, param): (usize, Param)| {
                places[param.index()] = Some((bucket, number));
                let (start, count) = (end, param.count(config));
                end = (start + count).next_multiple_of(PIECE);
                PlacedMatrix { param, start, count }
            };
            let matrices = group.into_iter().enumerate().map(place).collect();
            Bucket { matrices, length: end.next_multiple_of(copies * PIECE) }
        });
        Self { buckets: buckets.collect(), copies, places }
    }

    /// The buckets.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Copies of the model.
    pub fn copies(&self) -> usize {
        self.copies
    }

    /// The bucket of a matrix, and its number there; none of a norm gain.
    pub fn place(&self, param: Param) -> Option<(usize, usize)> {
        self.places.get(param.index()).copied().flatten()
    }

    /// What a bucket holds, for messages.
    pub(super) fn describe(&self, what: &str, bucket: usize) -> String {
        match &self.buckets[bucket].matrices[..] {
            [only] => format!("{what} of {}", only.param),
            [first, .., last] => format!("{what} of {} to {}", first.param, last.param),
            [] => what.to_owned(),
        }
    }

    /// Elements of a bucket that one copy has.
    pub fn part_length(&self, bucket: usize) -> usize {
        self.buckets[bucket].length / self.copies
    }

    /// What the copy `copy` has of a bucket.
    pub fn segments(&self, bucket: usize, copy: usize) -> Vec<Segment> {
        let numbers = 0..self.buckets[bucket].matrices.len();
        numbers.filter_map(|number| self.segment(bucket, number, copy)).collect()
    }

    /// What the copy `copy` has of the matrix `number` of a bucket, if anything.
    pub fn segment(&self, bucket: usize, number: usize, copy: usize) -> Option<Segment> {
        let length = self.part_length(bucket);
        let part = copy * length..(copy + 1) * length;
        let matrix = self.buckets[bucket].matrices[number];
        let start = matrix.start.max(part.start);
        let end = (matrix.start + matrix.count).min(part.end);
        (start < end).then(|| Segment {
            param: matrix.param,
            in_matrix: start - matrix.start..end - matrix.start,
            in_part: start - part.start..end - part.start,
        })
    }

    /// Elements of matrices that a copy has.
    pub fn elements_of(&self, copy: usize) -> usize {
        let segments = (0..self.buckets.len()).flat_map(|bucket| self.segments(bucket, copy));
        segments.map(|segment| segment.in_matrix.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(tied: bool) -> LlamaConfig {
        LlamaConfig {
            dim: 96,
            n_layers: 5,
            n_heads: 4,
            n_kv_heads: Some(2),
            hidden_dim: Some(200),
            multiple_of: 256,
            vocab_size: 333,
            max_seq_len: 8,
            rope_theta: 10_000.0,
            head_dim: None,
            tie_word_embeddings: tied,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        }
    }

    /// Every element of every matrix is in one segment of one copy, which begins where squares do.
    #[test]
    fn copies_have_every_element_once() {
        for (tied, copies, bytes) in
            [(false, 1, 1), (false, 3, 1 << 20), (true, 4, 400_000), (false, 64, usize::MAX)]
        {
            let config = config(tied);
            let layout = FlatLayout::new(&config, copies, bytes);
            let mut seen: Vec<Vec<u8>> = ParamTree::of_model(&config)
                .iter()
                .map(|(p, _)| vec![0; p.count(&config)])
                .collect();
            let mut total = 0;
            for copy in 0..copies {
                total += layout.elements_of(copy);
                for bucket in 0..layout.buckets().len() {
                    for segment in layout.segments(bucket, copy) {
                        assert_eq!(segment.in_matrix.start % PIECE, 0);
                        assert_eq!(segment.in_part.len(), segment.in_matrix.len());
                        assert!(segment.in_part.end <= layout.part_length(bucket));
                        let elements = &mut seen[segment.param.index()][segment.in_matrix];
                        elements.iter_mut().for_each(|count| *count += 1);
                    }
                }
            }
            assert_eq!(total, config.matrix_parameter_count());
            for (param, _) in ParamTree::of_model(&config).iter() {
                let expected = u8::from(param.shape(&config).len() == 2);
                assert!(seen[param.index()].iter().all(|count| *count == expected), "{param}");
            }
        }
    }

    #[test]
    fn buckets_are_in_the_order_of_the_backward_pass() {
        let names = |bytes| -> Vec<Vec<String>> {
            let layout = FlatLayout::new(&config(false), 2, bytes);
            let buckets = layout.buckets().iter();
            buckets
                .map(|bucket| bucket.matrices.iter().map(|m| m.param.to_string()).collect())
                .collect()
        };
        let each = names(1);
        assert_eq!(each.len(), 7);
        assert_eq!(each[0], ["lm_head.weight"]);
        assert_eq!(each[1][0], "model.layers.4.self_attn.q_proj.weight");
        assert_eq!(each[6], ["model.embed_tokens.weight"]);
        // Two layers have 681 984 bytes, three are the first with more than 700 000.
        let joined: Vec<usize> = names(700_000).iter().map(Vec::len).collect();
        assert_eq!(joined, [1, 21, 14, 1]);
        assert_eq!(names(usize::MAX).len(), 3);
    }
}
