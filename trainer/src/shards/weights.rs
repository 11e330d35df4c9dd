//! Weights of which each copy of a model has a part: a pass gathers a bucket before it reads it, and the
//! next one meanwhile, and drops it after.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use altiplano_comm::Group;
use altiplano_model::LlamaConfig;
use altiplano_model::error::Result;
use altiplano_model::parallel::{self, Pending};
use altiplano_model::param_tree::{Param, ParamTree};
use altiplano_model::params::ModelPart;
use altiplano_model::pass_weights::{GatheredPass, WeightSource};
use burn::tensor::Tensor;

use super::layout::{FlatLayout, matrices};

/// What a copy has of the weights that the forward pass reads, in the precision of the run.
#[derive(Debug)]
pub(crate) struct ShardedWeights {
    /// Of this tensor rank's part.
    config: LlamaConfig,
    layout: Arc<FlatLayout>,
    params: ParamTree<Param, Param>,
    group: Group,
    overlap: bool,
    /// This copy's part of each bucket. They change between passes.
    parts: Mutex<Vec<Tensor<1>>>,
}

impl ShardedWeights {
    /// The parts that the copy which `group` says has of the buckets of `layout`.
    pub fn new(
        config: &LlamaConfig,
        layout: Arc<FlatLayout>,
        group: Group,
        overlap: bool,
        parts: Vec<Tensor<1>>,
    ) -> Self {
        let params = ParamTree::of_model(config);
        let parts = Mutex::new(parts);
        Self { config: config.clone(), layout, params, group, overlap, parts }
    }

    /// Replaces this copy's part of a bucket.
    pub fn set(&self, bucket: usize, part: Tensor<1>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts[bucket] = part;
    }

    /// What this copy has of a matrix.
    pub fn own(&self, param: Param) -> Option<Tensor<1>> {
        let (bucket, number) = self.layout.place(param)?;
        let segment = self.layout.segment(bucket, number, self.group.rank())?;
        Some(self.part(bucket).slice([segment.in_part]))
    }

    fn part(&self, bucket: usize) -> Tensor<1> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)[bucket].clone()
    }

    /// The matrix that is the embedding or the head.
    fn table(&self, part: ModelPart) -> Param {
        match part {
            ModelPart::Head => *self.params.head(),
            _ => self.params.embed_tokens,
        }
    }

    /// The buckets of the matrices of a part. A part is never spread over two.
    fn bucket_of(&self, part: ModelPart) -> Option<usize> {
        let param = match part {
            ModelPart::Layer(n) => self.params.layers[n].q_proj,
            ModelPart::Norm => return None,
            table => self.table(table),
        };
        self.layout.place(param).map(|(bucket, _)| bucket)
    }

    /// Starts to bring all parts of a bucket together.
    fn gather(&self, bucket: usize) -> Pending<Tensor<3>> {
        let copies = self.layout.copies();
        let part = self.part(bucket).reshape([1, 1, self.layout.part_length(bucket)]);
        let group = match copies {
            1 => parallel::Group::Single,
            _ => parallel::Group::Host(self.group.of(self.layout.describe("weights", bucket))),
        };
        group.start_all_gather(part, copies)
    }
}

impl WeightSource for ShardedWeights {
    fn begin_pass(&self, parts: &[ModelPart]) -> Box<dyn GatheredPass + '_> {
        let buckets = parts.iter().filter_map(|part| self.bucket_of(*part));
        let mut buckets: Vec<usize> = buckets.collect();
        // Neighbours in a bucket are read from one that is gathered once.
        buckets.dedup();
        Box::new(Pass { weights: self, order: buckets.into(), here: None, ahead: None })
    }
}

/// A pass over the buckets.
struct Pass<'a> {
    weights: &'a ShardedWeights,
    /// Buckets that no gathering has been started of, in the order in which the pass reads them.
    order: VecDeque<usize>,
    /// The bucket that the pass reads, whole.
    here: Option<(usize, Tensor<1>)>,
    /// The next one, on its way.
    ahead: Option<(usize, Pending<Tensor<3>>)>,
}

impl Pass<'_> {
    /// The whole bucket, which is the one that the pass reads or the next one.
    fn bucket(&mut self, bucket: usize) -> Result<Tensor<1>> {
        if let Some((here, whole)) = &self.here
            && *here == bucket
        {
            return Ok(whole.clone());
        }
        self.here = None;
        let (number, pending) = match self.ahead.take() {
            Some(ahead) => ahead,
            None => self.start_next().unwrap_or_else(|| (bucket, self.weights.gather(bucket))),
        };
        debug_assert_eq!(number, bucket, "a pass reads its parts in the order it was begun with");
        let whole: Tensor<1> = pending.wait()?.flatten(0, 2);
        if self.weights.overlap {
            self.ahead = self.start_next();
        }
        self.here = Some((bucket, whole.clone()));
        Ok(whole)
    }

    fn start_next(&mut self) -> Option<(usize, Pending<Tensor<3>>)> {
        let next = self.order.pop_front()?;
        Some((next, self.weights.gather(next)))
    }

    /// A matrix where it lies in its bucket.
    fn matrix(&mut self, param: Param) -> Result<Tensor<2>> {
        let weights = self.weights;
        let (bucket, number) = weights.layout.place(param).unwrap_or_default();
        let placed = weights.layout.buckets()[bucket].matrices[number];
        let whole = self.bucket(bucket)?;
        let shape = param.shape(&weights.config);
        Ok(whole.narrow(0, placed.start, placed.count).reshape([shape[0], shape[1]]))
    }
}

impl GatheredPass for Pass<'_> {
    fn layer(&mut self, n: usize) -> Result<[Tensor<2>; 7]> {
        let weights = self.weights;
        let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] =
            matrices(&weights.params.layers[n]).map(|param| self.matrix(*param));
        Ok([q_proj?, k_proj?, v_proj?, o_proj?, gate_proj?, up_proj?, down_proj?])
    }

    fn table(&mut self, part: ModelPart) -> Result<Tensor<2>> {
        self.matrix(self.weights.table(part))
    }
}
