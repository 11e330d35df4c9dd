"""Writes blocks of quantized formats made and read by the Python package gguf.

    venv/bin/pip install gguf safetensors
    venv/bin/python scripts/golden/make_gguf.py

The seed is fixed; with the same versions the script writes the same bytes.
"""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

OUTPUT = Path(__file__).resolve().parents[2] / "tests/golden/gguf"


def values(rng):
    """Numbers as weights are, and the corners: zeros, ties, one large number, powers of two."""
    small = rng.normal(0, 0.02, 2048).astype(np.float32)
    heavy = (rng.standard_t(3, 1024) * 0.05).astype(np.float32)
    zeros = np.zeros(64, np.float32)
    ties = (np.arange(-32, 32) / 2).astype(np.float32)
    equal = np.concatenate([np.full(32, 0.75), np.full(32, -0.75)]).astype(np.float32)
    both = np.tile(np.array([-1.5, 1.5], np.float32), 32)
    tiny = (rng.normal(0, 1, 64) * 1e-7).astype(np.float32)
    wide = (2.0 ** rng.integers(-20, 12, 128) * rng.choice([-1, 1], 128)).astype(np.float32)
    lone = np.zeros(64, np.float32)
    lone[40] = 3.0
    return np.concatenate([small, heavy, zeros, ties, equal, both, tiny, wide, lone])


def random_blocks(rng, kind, count, scales):
    """Blocks of random bits whose f16 scales, at the byte offsets `scales`, are ordinary numbers."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for offset in scales:
        scale = rng.normal(0, 0.01, count).astype(np.float16)
        blocks[:, offset : offset + 2] = scale.reshape(-1, 1).view(np.uint8)
    return blocks.reshape(-1)


def main():
    rng = np.random.default_rng(7)
    row = values(rng)
    tensors = {"values": row}
    for kind in (Type.Q8_0, Type.Q5_0, Type.Q4_0):
        tensors[f"{kind.name.lower()}.blocks"] = gguf.quantize(row.reshape(1, -1), kind).reshape(-1)
    # gguf reads these two and does not write them.
    tensors["q4_k.blocks"] = random_blocks(rng, Type.Q4_K, 8, (0, 2))
    tensors["q6_k.blocks"] = random_blocks(rng, Type.Q6_K, 8, (208,))
    for kind in (Type.Q8_0, Type.Q5_0, Type.Q4_0, Type.Q4_K, Type.Q6_K):
        name = kind.name.lower()
        blocks = tensors[f"{name}.blocks"].reshape(1, -1)
        tensors[f"{name}.values"] = gguf.dequantize(blocks, kind).reshape(-1)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUTPUT / "blocks.safetensors")


if __name__ == "__main__":
    main()
