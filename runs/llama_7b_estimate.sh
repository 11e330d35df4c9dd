#!/usr/bin/env bash
# What LLaMA's models need before they are trained: parameters, memory by part, FLOPs and days.
#
#   runs/llama_7b_estimate.sh [DEVICES]        DEVICES: GPUs of 80 GB, 2048 by default as in the paper
#
# LLaMA 7B: 6 x 6.7e9 parameters x 1e12 tokens = 4.0e22 FLOPs, and attention on top. An A100 multiplies
# bf16 at 312 TFLOP/s; at half of that 4.0e22 / 156e12 = 2.6e8 seconds = 71 000 GPU hours. The paper
# reports 82 432 (table 15).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --release --locked
for size in 7b 13b 33b 65b; do
    "${CARGO_TARGET_DIR:-target}/release/altiplano" estimate "configs/train/llama_$size.yaml" \
        --devices "${1:-2048}" --device-memory 80GB
done
