"""Logits that transformers gives with small random models of every kind of LLaMA.

    venv/bin/pip install torch transformers safetensors sentencepiece protobuf
    venv/bin/python scripts/golden/make_llama_kinds.py

Writes a Hugging Face directory for each kind to tests/golden/llama_kinds, as transformers saves it,
with weights in bf16, and the ids and f32 logits of a few positions beside it. The vocabulary is that of
tests/golden/tokenizer, so that a directory with its tokenizer is whole. The seed is fixed; with the same
versions the script writes the same bytes.
"""

import shutil
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"
TIME = 40
# Positions whose logits are kept: the scaled frequencies make the late ones differ.
KEPT = [0, 5, 17, 39]

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # So short that the frequencies of a small head are low, high and in between.
    "original_max_position_embeddings": 64,
}
KINDS = {
    # Grouped-query attention.
    "llama2": dict(num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5),
    # Another base of the rotary embedding, scaled by LLaMA 3's rule.
    "llama3": dict(num_attention_heads=2, num_key_value_heads=1, head_dim=16, rope_parameters=LLAMA3),
    # One matrix as embedding and output head, and a width that is no power of two.
    "smollm": dict(hidden_size=24, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
                   intermediate_size=40),
    # Heads wider than hidden_size / num_attention_heads, linear scaling, tied.
    "wide_heads": dict(num_attention_heads=2, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True,
                       rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}),
}  # fmt: skip


def make(name, settings):
    vocabulary = sentencepiece.SentencePieceProcessor(str(GOLDEN / "tokenizer/tokenizer.model"))
    config = LlamaConfig(
        **{
            "vocab_size": vocabulary.get_piece_size(),
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            **settings,
        }
    )
    torch.manual_seed(sorted(KINDS).index(name))
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    # What is saved in bf16 is what the logits are computed from.
    model = model.to(torch.bfloat16)
    folder = GOLDEN / "llama_kinds" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    ids = torch.randint(3, config.vocab_size, (1, TIME))
    # Loaded anew: a cast to bf16 rounds the rotary frequencies too.
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(ids).logits[0, KEPT].contiguous()
    expected = {"ids": ids[0].to(torch.int32), "positions": torch.tensor(KEPT, dtype=torch.int32), "logits": logits}
    save_file(expected, folder / "expected.safetensors")
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, settings in KINDS.items():
        make(name, settings)
