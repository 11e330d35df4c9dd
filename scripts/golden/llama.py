"""A LLaMA in plain PyTorch, written out step by step: the oracle of the golden values.

Shapes: B batch, T time, C channels, H query heads, K key/value heads, D head width,
F feed-forward width, V vocabulary, L layers. Weights are a dict from Hugging Face tensor
names to tensors of shape (outputs, inputs), so a linear layer is `x @ weight.T`.
The number format is that of the weights; the golden values use float64.
"""

from dataclasses import dataclass

import torch

IGNORED = -100  # target of a position that takes no part in the loss


@dataclass(frozen=True)
class Config:
    dim: int  # C
    n_layers: int  # L
    n_heads: int  # H
    n_kv_heads: int  # K
    hidden_dim: int  # F
    vocab_size: int  # V
    max_seq_len: int
    norm_eps: float
    rope_theta: float

    @property
    def head_dim(self):  # D
        return self.dim // self.n_heads

    def to_hugging_face(self):
        """The `config.json` of a Hugging Face LlamaForCausalLM of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_seq_len,
            "initializer_range": 0.02,
            "rms_norm_eps": self.norm_eps,
            "use_cache": True,
            "vocab_size": self.vocab_size,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None,
            "pretraining_tp": 1,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "torch_dtype": "float32",
            "dtype": "float32",
            "transformers_version": "4.46.0",
        }


def weight_shapes(config):
    """Every weight by its Hugging Face name, in the order of the forward pass."""
    c, f, v = config.dim, config.hidden_dim, config.vocab_size
    kv = config.n_kv_heads * config.head_dim
    shapes = {"model.embed_tokens.weight": (v, c)}
    for layer in range(config.n_layers):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (c,)
        shapes[prefix + "self_attn.q_proj.weight"] = (c, c)
        shapes[prefix + "self_attn.k_proj.weight"] = (kv, c)
        shapes[prefix + "self_attn.v_proj.weight"] = (kv, c)
        shapes[prefix + "self_attn.o_proj.weight"] = (c, c)
        shapes[prefix + "post_attention_layernorm.weight"] = (c,)
        shapes[prefix + "mlp.gate_proj.weight"] = (f, c)
        shapes[prefix + "mlp.up_proj.weight"] = (f, c)
        shapes[prefix + "mlp.down_proj.weight"] = (c, f)
    shapes["model.norm.weight"] = (c,)
    shapes["lm_head.weight"] = (v, c)
    return shapes


def rms_norm(x, weight, eps):
    """y = x / sqrt(mean(x^2) + eps) * weight, over the last axis."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rope(x, theta):
    """Rotates the pairs (i, i + D/2) of x (B, T, H, D) by the angle t * theta^(-2i/D)."""
    time, half = x.shape[1], x.shape[3] // 2
    i = torch.arange(half, dtype=x.dtype)
    t = torch.arange(time, dtype=x.dtype)
    angle = (t[:, None] * theta ** (-i / half)[None, :])[:, None, :]  # (T, 1, D/2)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def causal_attention(q, k, v, first_visible=None):
    """softmax(q kᵀ / sqrt(D)) v; query t sees the keys first_visible[t] ..= t.

    q (B, T, H, D); k, v (B, T, K, D): query head h reads key/value head h // (H / K).
    """
    group = q.shape[2] // k.shape[2]
    k = k.repeat_interleave(group, dim=2)
    v = v.repeat_interleave(group, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[3] ** -0.5
    position = torch.arange(q.shape[1])
    visible = (position[None, :] <= position[:, None])[None]  # (1, T, T)
    if first_visible is not None:
        visible = visible & (position[None, None, :] >= first_visible[:, :, None])
    scores = scores.masked_fill(~visible[:, None], float("-inf"))
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)


def logits(config, weights, ids, first_visible=None):
    """ids (B, T) -> logits (B, T, V)."""
    batch, time = ids.shape
    heads = (batch, time, config.n_heads, config.head_dim)
    kv_heads = (batch, time, config.n_kv_heads, config.head_dim)
    x = weights["model.embed_tokens.weight"][ids.long()]
    for layer in range(config.n_layers):
        w = lambda name: weights[f"model.layers.{layer}.{name}.weight"]

        a = rms_norm(x, w("input_layernorm"), config.norm_eps)
        q = rope((a @ w("self_attn.q_proj").T).view(heads), config.rope_theta)
        k = rope((a @ w("self_attn.k_proj").T).view(kv_heads), config.rope_theta)
        v = (a @ w("self_attn.v_proj").T).view(kv_heads)
        o = causal_attention(q, k, v, first_visible).reshape(batch, time, config.dim)
        x = x + o @ w("self_attn.o_proj").T

        b = rms_norm(x, w("post_attention_layernorm"), config.norm_eps)
        gate, up = b @ w("mlp.gate_proj").T, b @ w("mlp.up_proj").T
        x = x + (gate * torch.sigmoid(gate) * up) @ w("mlp.down_proj").T
    x = rms_norm(x, weights["model.norm.weight"], config.norm_eps)
    return x @ weights["lm_head.weight"].T


def token_losses(logits, targets):
    """Cross entropy of every position (B, T); 0 where the target is ignored."""
    valid = targets != IGNORED
    index = targets.long().clamp(min=0)[..., None]
    losses = logits.logsumexp(-1) - logits.gather(-1, index)[..., 0]
    return torch.where(valid, losses, torch.zeros_like(losses))


def mean_loss(losses, targets):
    """Sum of the losses over the number of valid targets."""
    return losses.sum() / (targets != IGNORED).sum()
