//! The parameters of a LLaMA under the names of three families of files.

use altiplano_model::LlamaConfig;

/// Which parameter of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    row: &'static Row,
    /// Its layer, for a parameter of a layer.
    layer: Option<usize>,
}

/// What is known of a parameter whatever the size of the model.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    /// Hugging Face's name, of a layer's parameter behind `model.layers.N.`; `.weight` follows.
    hugging_face: &'static str,
    /// Meta's name, of a layer's parameter behind `layers.N.`; `.weight` follows.
    meta: &'static str,
    /// The name in GGUF, of a layer's parameter behind `blk.N.`; `.weight` follows.
    gguf: &'static str,
    size: Size,
    split: Split,
}

/// Shape by the legend of the model crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// (C), a norm gain.
    C,
    /// (V, C)
    VC,
    /// (H·D, C), rows in the order of the rotary embedding.
    Queries,
    /// (K·D, C), rows in the order of the rotary embedding.
    Keys,
    /// (K·D, C)
    Values,
    /// (C, H·D)
    Output,
    /// (F, C)
    FC,
    /// (C, F)
    CF,
}

/// How Meta's model-parallel files share a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Each file has all of it.
    Copied,
    /// Each file has some of the rows.
    Rows,
    /// Each file has some of the columns.
    Columns,
}

/// Shape of a parameter: a norm gain is one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows, that is outputs.
    pub rows: usize,
    /// Columns, that is inputs.
    pub columns: usize,
    /// Whether it is a norm gain, which files store with one dimension.
    pub is_vector: bool,
}

impl Shape {
    /// The dimensions as safetensors and PyTorch name them, slowest first.
    pub fn dimensions(&self) -> Vec<usize> {
        if self.is_vector { vec![self.columns] } else { vec![self.rows, self.columns] }
    }
}

const fn row(
    hugging_face: &'static str,
    meta: &'static str,
    gguf: &'static str,
    size: Size,
    split: Split,
) -> Row {
    Row { hugging_face, meta, gguf, size, split }
}

#[rustfmt::skip]
static EMBEDDING: Row = row("model.embed_tokens", "tok_embeddings", "token_embd", Size::VC, Split::Columns);
#[rustfmt::skip]
static NORM: Row = row("model.norm", "norm", "output_norm", Size::C, Split::Copied);
#[rustfmt::skip]
static HEAD: Row = row("lm_head", "output", "output", Size::VC, Split::Rows);
/// The parameters of a layer, in the order of the checkpoint.
#[rustfmt::skip]
static LAYER: [Row; 9] = [
    row("input_layernorm",          "attention_norm",  "attn_norm",   Size::C,       Split::Copied),
    row("self_attn.q_proj",         "attention.wq",    "attn_q",      Size::Queries, Split::Rows),
    row("self_attn.k_proj",         "attention.wk",    "attn_k",      Size::Keys,    Split::Rows),
    row("self_attn.v_proj",         "attention.wv",    "attn_v",      Size::Values,  Split::Rows),
    row("self_attn.o_proj",         "attention.wo",    "attn_output", Size::Output,  Split::Columns),
    row("post_attention_layernorm", "ffn_norm",        "ffn_norm",    Size::C,       Split::Copied),
    row("mlp.gate_proj",            "feed_forward.w1", "ffn_gate",    Size::FC,      Split::Rows),
    row("mlp.up_proj",              "feed_forward.w3", "ffn_up",      Size::FC,      Split::Rows),
    row("mlp.down_proj",            "feed_forward.w2", "ffn_down",    Size::CF,      Split::Columns),
];

impl Parameter {
    /// The parameters of a model, in the order of the checkpoint: no output head where it is the
    /// token embedding.
    pub fn all(config: &LlamaConfig) -> impl Iterator<Item = Self> + use<> {
        let of_layer = |n: usize| LAYER.iter().map(move |row| Self { row, layer: Some(n) });
        let alone = |row| std::iter::once(Self { row, layer: None });
        let head = (!config.tie_word_embeddings).then_some(Self::head());
        alone(&EMBEDDING)
            .chain((0..config.n_layers).flat_map(of_layer))
            .chain(alone(&NORM))
            .chain(head)
    }

    /// The token embedding.
    pub fn embedding() -> Self {
        Self { row: &EMBEDDING, layer: None }
    }

    /// The output head.
    pub fn head() -> Self {
        Self { row: &HEAD, layer: None }
    }

    /// The gate of the feed-forward of a layer.
    pub fn gate(layer: usize) -> Self {
        Self { row: &LAYER[6], layer: Some(layer) }
    }

    /// Its layer, for a parameter of a layer.
    pub fn layer(&self) -> Option<usize> {
        self.layer
    }

    /// Hugging Face's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub fn hugging_face(&self) -> String {
        self.name("model.layers.", self.row.hugging_face)
    }

    /// Meta's name, such as `layers.0.attention.wq.weight`.
    pub fn meta(&self) -> String {
        self.name("layers.", self.row.meta)
    }

    /// The name in GGUF, such as `blk.0.attn_q.weight`.
    pub fn gguf(&self) -> String {
        self.name("blk.", self.row.gguf)
    }

    fn name(&self, layers: &str, name: &str) -> String {
        match self.layer {
            Some(n) => format!("{layers}{n}.{name}.weight"),
            None => format!("{name}.weight"),
        }
    }

    /// How Meta's model-parallel files share it.
    pub fn split(&self) -> Split {
        self.row.split
    }

    /// Whether it gives the logits: the output head, or the embedding that is also one.
    pub fn is_head(&self, config: &LlamaConfig) -> bool {
        self.row == &HEAD || (config.tie_word_embeddings && self.row == &EMBEDDING)
    }

    /// Whether it is the projection to values, or the one out of the feed-forward.
    pub fn is_value_or_down(&self) -> bool {
        matches!(self.row.size, Size::Values | Size::CF)
    }

    /// Shape in a model of this configuration.
    pub fn shape(&self, config: &LlamaConfig) -> Shape {
        let (c, f, v) = (config.dim, config.ffn_dim(), config.vocab_size);
        let (hd, kd) = (config.attention_dim(), config.kv_heads() * config.head_dim());
        let (rows, columns) = match self.row.size {
            Size::C => (1, c),
            Size::VC => (v, c),
            Size::Queries => (hd, c),
            Size::Keys | Size::Values => (kd, c),
            Size::Output => (c, hd),
            Size::FC => (f, c),
            Size::CF => (c, f),
        };
        Shape { rows, columns, is_vector: self.is_vector() }
    }

    /// Whether it is a norm gain, which files store with one dimension.
    pub fn is_vector(&self) -> bool {
        self.row.size == Size::C
    }

    /// Whether its rows are in the order of the rotary embedding.
    pub fn is_rotary(&self) -> bool {
        matches!(self.row.size, Size::Queries | Size::Keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use altiplano_model::param_tree::ParamTree;

    /// Hugging Face's names and the shapes are those of the model crate, in its order.
    #[test]
    fn names_and_shapes_are_those_of_the_model() {
        let config = LlamaConfig {
            dim: 24,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: Some(2),
            hidden_dim: Some(40),
            multiple_of: 256,
            vocab_size: 30,
            max_seq_len: 8,
            rope_theta: 10_000.0,
            head_dim: None,
            tie_word_embeddings: false,
            rope_scaling: None,
            norm_eps: 1e-6,
            init_std: 0.02,
        };
        let tied = LlamaConfig { tie_word_embeddings: true, head_dim: Some(10), ..config.clone() };
        for config in [config, tied] {
            let ours: Vec<_> = Parameter::all(&config)
                .map(|parameter| (parameter.hugging_face(), parameter.shape(&config).dimensions()))
                .collect();
            let model: Vec<_> = ParamTree::of_model(&config)
                .into_iter()
                .map(|(param, _)| (param.to_string(), param.shape(&config)))
                .collect();
            assert_eq!(ours, model);
        }
    }
}
