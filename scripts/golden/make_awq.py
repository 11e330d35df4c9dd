"""A matrix packed in AWQ's layout, by numpy.

    venv/bin/pip install numpy safetensors
    venv/bin/python scripts/golden/make_awq.py

Writes tests/golden/awq/packed.safetensors: `weight` (out, in) and its `qweight`, `qzeros` and `scales` in
groups of 32, from the definition alone. The seed is fixed.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

OUTPUT = Path(__file__).resolve().parents[2] / "tests/golden/awq"
GROUP = 32
# Place 4·s of an integer has the output ORDER[s] of its eight.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(values):
    """(rows, out) integers of 4 bits to (rows, out / 8) of 32."""
    rows, outputs = values.shape
    packed = np.zeros((rows, outputs // 8), np.uint32)
    for place, n in enumerate(ORDER):
        packed |= values[:, n::8].astype(np.uint32) << np.uint32(4 * place)
    return packed.view(np.int32)


def main():
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.02, (24, 96)).astype(np.float32)
    weight[3] = 0
    weight[4] = np.abs(weight[4])
    weight[5, :32] = 0.75
    weight[6, 7] = 5.0
    weight[7] *= 1e-6
    groups = weight.reshape(24, -1, GROUP)
    least = np.minimum(groups.min(-1), 0)
    most = np.maximum(groups.max(-1), 0)
    scales = (np.maximum(most - least, np.float32(1e-5)) / np.float32(15)).astype(np.float16)
    wide = scales.astype(np.float32)
    zeros = np.clip(-np.round(least / wide), 0, 15)
    integers = np.clip(np.round(groups / wide[..., None]) + zeros[..., None], 0, 15)
    tensors = {
        "weight": weight,
        "qweight": pack(integers.reshape(24, 96).T),
        "qzeros": pack(zeros.T),
        "scales": np.ascontiguousarray(scales.T),
    }
    OUTPUT.mkdir(parents=True, exist_ok=True)
    save_file(tensors, OUTPUT / "packed.safetensors")
    (OUTPUT / "packed.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
