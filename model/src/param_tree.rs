//! The parameters of a LLaMA: a table with one row for each, and a tree with one value for each.
//!
//! Names, shapes, counts, starting values and weight decay all follow from `TABLE`. Weights,
//! gradients and moments are trees of tensors; whatever else belongs to every parameter is another
//! column of the table or another tree.

use std::convert::Infallible;
use std::fmt;

use burn::tensor::{Tensor, TensorData};

use crate::config::LlamaConfig;

/// One value for every parameter of a layer: a `V` for a norm gain, an `M` for a matrix. Matrices
/// are (out, in).
#[derive(Debug, Clone, Copy)]
pub struct LayerTree<V, M> {
    /// Gain of the norm before attention, (C).
    pub input_layernorm: V,
    /// Queries, (H·D, C).
    pub q_proj: M,
    /// Keys, (K·D, C).
    pub k_proj: M,
    /// Values, (K·D, C).
    pub v_proj: M,
    /// Attention output, (C, H·D).
    pub o_proj: M,
    /// Gain of the norm before the feed-forward, (C).
    pub post_attention_layernorm: V,
    /// Gate of SwiGLU, (F, C).
    pub gate_proj: M,
    /// The other factor of SwiGLU, (F, C).
    pub up_proj: M,
    /// Feed-forward output, (C, F).
    pub down_proj: M,
}

/// One value for every parameter of a model: a `V` for a norm gain, an `M` for a matrix.
#[derive(Debug, Clone)]
pub struct ParamTree<V, M> {
    /// Token embedding, (V, C).
    pub embed_tokens: M,
    /// The layers, first to last.
    pub layers: Vec<LayerTree<V, M>>,
    /// Gain of the last norm, (C).
    pub norm: V,
    /// Output head, (V, C); none where it is the token embedding (tied).
    pub lm_head: Option<M>,
}

/// The value of one parameter of a tree.
#[derive(Debug, Clone, Copy)]
pub enum Leaf<V, M> {
    /// Of a norm gain.
    Vector(V),
    /// Of a matrix.
    Matrix(M),
}

/// What is known of a parameter whatever the size of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    /// Hugging Face's name, of a layer's parameter behind `model.layers.<n>.`; `.weight` follows.
    name: &'static str,
    shape: &'static [Size],
    decays: bool,
    init: Init,
}

/// A length in the shape of a parameter, by the legend of the crate. Ranks split all of them but `C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// Channels.
    C,
    /// Feed-forward.
    F,
    /// Vocabulary.
    V,
    /// H·D, the queries of a token.
    HD,
    /// K·D, the keys or the values of a token.
    KD,
}

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// All ones.
    Ones,
    /// Normal with standard deviation `init_std`.
    Normal,
    /// Normal with standard deviation `init_std` / √(2L): the parameter writes into the residual
    /// stream, whose variance would otherwise grow with the 2L writers.
    ResidualNormal,
}

struct Table {
    embed_tokens: Row,
    layer: LayerTree<Row, Row>,
    norm: Row,
    lm_head: Row,
}

const fn row(name: &'static str, shape: &'static [Size], decays: bool, init: Init) -> Row {
    Row { name, shape, decays, init }
}

use Init::{Normal, Ones, ResidualNormal};
use Size::{C, F, HD, KD, V};

/// Every parameter, in the order of the checkpoint.
#[rustfmt::skip]
const TABLE: Table = Table {
    //                             Hugging Face's name         shape     decays  starts as
    embed_tokens:             row("model.embed_tokens",        &[V, C],  true,   Normal),
    layer: LayerTree {
        input_layernorm:      row("input_layernorm",           &[C],     false,  Ones),
        q_proj:               row("self_attn.q_proj",          &[HD, C], true,   Normal),
        k_proj:               row("self_attn.k_proj",          &[KD, C], true,   Normal),
        v_proj:               row("self_attn.v_proj",          &[KD, C], true,   Normal),
        o_proj:               row("self_attn.o_proj",          &[C, HD], true,   ResidualNormal),
        post_attention_layernorm:
                              row("post_attention_layernorm",  &[C],     false,  Ones),
        gate_proj:            row("mlp.gate_proj",             &[F, C],  true,   Normal),
        up_proj:              row("mlp.up_proj",               &[F, C],  true,   Normal),
        down_proj:            row("mlp.down_proj",             &[C, F],  true,   ResidualNormal),
    },
    norm:                     row("model.norm",                &[C],     false,  Ones),
    lm_head:                  row("lm_head",                   &[V, C],  true,   Normal),
};

impl Row {
    fn shape(&self, config: &LlamaConfig) -> Vec<usize> {
        let length = |size: &Size| match size {
            C => config.dim,
            F => config.ffn_dim(),
            V => config.vocab_size,
            HD => config.attention_dim(),
            KD => config.kv_heads() * config.head_dim(),
        };
        self.shape.iter().map(length).collect()
    }

    fn count(&self, config: &LlamaConfig) -> usize {
        self.shape(config).iter().product()
    }
}

/// Which parameter of a model. Displayed as Hugging Face's name, such as
/// `model.layers.0.self_attn.q_proj.weight`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Param {
    row: Row,
    layer: Option<usize>,
    index: usize,
}

impl Param {
    /// Place in the order of the checkpoint, counted from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Shape in a model of this configuration, of rank 1 or 2.
    pub fn shape(&self, config: &LlamaConfig) -> Vec<usize> {
        self.row.shape(config)
    }

    /// What the lengths of its shape are.
    pub(crate) fn sizes(&self) -> &'static [Size] {
        self.row.shape
    }

    /// Elements in a model of this configuration.
    pub fn count(&self, config: &LlamaConfig) -> usize {
        self.row.count(config)
    }

    /// Whether AdamW's weight decay applies.
    pub fn decays(&self) -> bool {
        self.row.decays
    }

    /// How it starts.
    pub fn init(&self) -> Init {
        self.row.init
    }
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, "model.layers.{layer}.")?;
        }
        write!(f, "{}.weight", self.row.name)
    }
}

impl LlamaConfig {
    /// Number of trained parameters. A matrix with two uses counts once.
    pub fn parameter_count(&self) -> usize {
        self.count(|_| true)
    }

    /// Number of trained parameters in matrices: all but the norm gains.
    pub fn matrix_parameter_count(&self) -> usize {
        self.count(|row| row.shape.len() == 2)
    }

    /// Floating-point operations of one forward and backward pass per token at context `seq_len`:
    /// 6 per weight that takes part in a matrix product, plus causal attention
    /// (forward 2 · 2 · T/2 · H·D, backward twice that). The embedding is looked up; one that is tied
    /// takes part as the output head.
    pub fn train_flops_per_token(&self, seq_len: usize) -> f64 {
        let looked_up = if self.tie_word_embeddings { 0 } else { self.vocab_size * self.dim };
        let weights = self.parameter_count() - looked_up;
        let attention = 6 * self.n_layers * self.attention_dim() * seq_len;
        (6 * weights + attention) as f64
    }

    /// Elements of the parameters whose row `counts`.
    fn count(&self, counts: impl Fn(&Row) -> bool) -> usize {
        let elements = |row: Row| if counts(&row) { row.count(self) } else { 0 };
        let mut layer = 0;
        TABLE.layer.map_each(|row| layer += elements(row));
        let head = if self.tie_word_embeddings { 0 } else { elements(TABLE.lm_head) };
        let outside = [TABLE.embed_tokens, TABLE.norm].map(elements);
        self.n_layers * layer + outside.iter().sum::<usize>() + head
    }
}

impl<V, M> LayerTree<V, M> {
    fn each_ref(&self) -> LayerTree<&V, &M> {
        LayerTree {
            input_layernorm: &self.input_layernorm,
            q_proj: &self.q_proj,
            k_proj: &self.k_proj,
            v_proj: &self.v_proj,
            o_proj: &self.o_proj,
            post_attention_layernorm: &self.post_attention_layernorm,
            gate_proj: &self.gate_proj,
            up_proj: &self.up_proj,
            down_proj: &self.down_proj,
        }
    }

    fn each_mut(&mut self) -> LayerTree<&mut V, &mut M> {
        LayerTree {
            input_layernorm: &mut self.input_layernorm,
            q_proj: &mut self.q_proj,
            k_proj: &mut self.k_proj,
            v_proj: &mut self.v_proj,
            o_proj: &mut self.o_proj,
            post_attention_layernorm: &mut self.post_attention_layernorm,
            gate_proj: &mut self.gate_proj,
            up_proj: &mut self.up_proj,
            down_proj: &mut self.down_proj,
        }
    }

    fn zip<W, N>(self, other: LayerTree<W, N>) -> LayerTree<(V, W), (M, N)> {
        LayerTree {
            input_layernorm: (self.input_layernorm, other.input_layernorm),
            q_proj: (self.q_proj, other.q_proj),
            k_proj: (self.k_proj, other.k_proj),
            v_proj: (self.v_proj, other.v_proj),
            o_proj: (self.o_proj, other.o_proj),
            post_attention_layernorm: (
                self.post_attention_layernorm,
                other.post_attention_layernorm,
            ),
            gate_proj: (self.gate_proj, other.gate_proj),
            up_proj: (self.up_proj, other.up_proj),
            down_proj: (self.down_proj, other.down_proj),
        }
    }

    /// See [`ParamTree::try_map`].
    fn try_map<S, W, N, E>(
        self,
        state: &mut S,
        vector: impl Fn(&mut S, V) -> Result<W, E>,
        matrix: impl Fn(&mut S, M) -> Result<N, E>,
    ) -> Result<LayerTree<W, N>, E> {
        Ok(LayerTree {
            input_layernorm: vector(state, self.input_layernorm)?,
            q_proj: matrix(state, self.q_proj)?,
            k_proj: matrix(state, self.k_proj)?,
            v_proj: matrix(state, self.v_proj)?,
            o_proj: matrix(state, self.o_proj)?,
            post_attention_layernorm: vector(state, self.post_attention_layernorm)?,
            gate_proj: matrix(state, self.gate_proj)?,
            up_proj: matrix(state, self.up_proj)?,
            down_proj: matrix(state, self.down_proj)?,
        })
    }
}

impl<T> LayerTree<T, T> {
    /// What `f` makes of each value, in order.
    fn map_each<U>(self, mut f: impl FnMut(T) -> U) -> LayerTree<U, U> {
        let Ok(tree) = self.try_map(
            &mut f,
            |f, x| Ok::<U, Infallible>(f(x)),
            |f, x| Ok::<U, Infallible>(f(x)),
        );
        tree
    }
}

impl ParamTree<Param, Param> {
    /// The parameters of a model.
    pub fn of_model(config: &LlamaConfig) -> Self {
        Self::of_size(config.n_layers, config.tie_word_embeddings)
    }

    /// The parameters of a model of `n_layers` layers, without an output head if it is `tied`.
    fn of_size(n_layers: usize, tied: bool) -> Self {
        let mut count = 0;
        let mut next = |row: Row, layer: Option<usize>| {
            let index = count;
            count += 1;
            Param { row, layer, index }
        };
        let embed_tokens = next(TABLE.embed_tokens, None);
        let layers =
            (0..n_layers).map(|n| TABLE.layer.map_each(|row| next(row, Some(n)))).collect();
        let norm = next(TABLE.norm, None);
        let lm_head = (!tied).then(|| next(TABLE.lm_head, None));
        Self { embed_tokens, layers, norm, lm_head }
    }
}

impl<V, M> ParamTree<V, M> {
    /// The value of the matrix that gives the logits: of the output head, or of the token embedding
    /// where they are tied.
    pub fn head(&self) -> &M {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// As [`ParamTree::head`], to be changed.
    pub fn head_mut(&mut self) -> &mut M {
        self.lm_head.as_mut().unwrap_or(&mut self.embed_tokens)
    }

    /// A tree of references to the values, as [`array::each_ref`] is an array of them.
    pub fn each_ref(&self) -> ParamTree<&V, &M> {
        ParamTree {
            embed_tokens: &self.embed_tokens,
            layers: self.layers.iter().map(LayerTree::each_ref).collect(),
            norm: &self.norm,
            lm_head: self.lm_head.as_ref(),
        }
    }

    /// A tree of references through which the values can be changed.
    pub fn each_mut(&mut self) -> ParamTree<&mut V, &mut M> {
        ParamTree {
            embed_tokens: &mut self.embed_tokens,
            layers: self.layers.iter_mut().map(LayerTree::each_mut).collect(),
            norm: &mut self.norm,
            lm_head: self.lm_head.as_mut(),
        }
    }

    /// Both values of every parameter.
    ///
    /// # Panics
    /// When the trees are of models with different numbers of layers, or only one is tied.
    pub fn zip<W, N>(self, other: ParamTree<W, N>) -> ParamTree<(V, W), (M, N)> {
        assert_eq!(self.layers.len(), other.layers.len(), "trees of different models");
        assert_eq!(self.lm_head.is_some(), other.lm_head.is_some(), "trees of different models");
        let layers = self.layers.into_iter().zip(other.layers);
        ParamTree {
            embed_tokens: (self.embed_tokens, other.embed_tokens),
            layers: layers.map(|(x, y)| x.zip(y)).collect(),
            norm: (self.norm, other.norm),
            lm_head: self.lm_head.zip(other.lm_head),
        }
    }

    /// What `vector` makes of each norm gain's value and `matrix` of each matrix', in order, up to
    /// the first error. Both may change `state`.
    ///
    /// # Errors
    /// That of `vector` or `matrix`.
    pub fn try_map<S, W, N, E>(
        self,
        state: &mut S,
        vector: impl Fn(&mut S, V) -> Result<W, E>,
        matrix: impl Fn(&mut S, M) -> Result<N, E>,
    ) -> Result<ParamTree<W, N>, E> {
        let embed_tokens = matrix(state, self.embed_tokens)?;
        let layers = self.layers.into_iter().map(|layer| layer.try_map(state, &vector, &matrix));
        Ok(ParamTree {
            embed_tokens,
            layers: layers.collect::<Result<_, E>>()?,
            norm: vector(state, self.norm)?,
            lm_head: self.lm_head.map(|x| matrix(state, x)).transpose()?,
        })
    }

    /// What `vector` makes of each norm gain's value and `matrix` of each matrix'.
    pub fn map<W, N>(self, vector: impl Fn(V) -> W, matrix: impl Fn(M) -> N) -> ParamTree<W, N> {
        let Ok(tree) = self.try_map(
            &mut (),
            |(), x| Ok::<W, Infallible>(vector(x)),
            |(), x| Ok::<N, Infallible>(matrix(x)),
        );
        tree
    }

    /// Parameters and values, in the order of the checkpoint.
    pub fn iter(&self) -> std::vec::IntoIter<(Param, Leaf<&V, &M>)> {
        self.each_ref().into_iter()
    }

    /// Parameters and values that may be changed, in the order of the checkpoint.
    pub fn iter_mut(&mut self) -> std::vec::IntoIter<(Param, Leaf<&mut V, &mut M>)> {
        self.each_mut().into_iter()
    }
}

impl<V, M> IntoIterator for ParamTree<V, M> {
    type Item = (Param, Leaf<V, M>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        let mut leaves = Vec::with_capacity(3 + 9 * self.layers.len());
        let params = ParamTree::of_size(self.layers.len(), self.lm_head.is_none());
        let Ok(_) = params.zip(self).try_map(
            &mut leaves,
            |leaves, (param, x)| {
                leaves.push((param, Leaf::Vector(x)));
                Ok::<(), Infallible>(())
            },
            |leaves, (param, x)| {
                leaves.push((param, Leaf::Matrix(x)));
                Ok::<(), Infallible>(())
            },
        );
        leaves.into_iter()
    }
}

/// `$body` with `$x` the value of `$leaf`, of either rank: a closure cannot be generic over it.
macro_rules! with_leaf {
    ($leaf:expr, $x:pat => $body:expr) => {
        match $leaf {
            $crate::param_tree::Leaf::Vector($x) => $body,
            $crate::param_tree::Leaf::Matrix($x) => $body,
        }
    };
}
pub(crate) use with_leaf;

impl Leaf<&Tensor<1>, &Tensor<2>> {
    /// The values on the host.
    pub fn to_data(&self) -> TensorData {
        with_leaf!(self, x => x.to_data())
    }
}
