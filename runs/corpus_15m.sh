#!/usr/bin/env bash
# From nothing to a model of 15M parameters on 185 MB of prose, code and manuals.
#
#   runs/corpus_15m.sh [KEY=VALUE…]        more overrides of the training run, such as steps=100
#
# At about 4 bytes a token the corpus has some 46M tokens. Two epochs are 90M tokens, and a token
# costs 6 FLOPs a parameter besides attention: 6 x 15e6 x 90e6 = 8e15 FLOPs. Two cores with AMX or
# AVX512-BF16 reach 0.3 TFLOP/s (docs/benchmarks.md): 8 hours. In steps of 16384 tokens: 5500 steps.
#
# Every stage skips what is finished, so the script may be stopped and started again.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo build --release --locked
altiplano=${CARGO_TARGET_DIR:-target}/release/altiplano
run=runs/corpus_15m

scripts/fetch_corpus runs/corpus/raw
"$altiplano" data run configs/data/corpus.yaml
"$altiplano" tokenizer train configs/data/corpus.yaml
"$altiplano" tokenize configs/data/corpus.yaml

if [ ! -e "$run/config.yaml" ]; then
    mkdir -p runs/corpus
    cat >runs/corpus/train.yaml <<YAML
name: corpus_15m
output: ..
model: ../../configs/model/15m.yaml
tokenizer: data/tokenizer.model
data:
  sources:
  - {path: data/tokens/reference, weight: 0.3}
  - {path: data/tokens/books, weight: 0.3}
  - {path: data/tokens/documentation, weight: 0.2}
  - {path: data/tokens/code, weight: 0.1}
  - {path: data/tokens/manuals, weight: 0.1}
batch: {micro_batch: 8, grad_accum_steps: 4, seq_len: 512}
steps: 5500
optimizer: {lr: 1.0e-3, warmup_steps: 300}
validate: {every: 500, max_sequences: 64}
checkpoint: {every: 250, keep_last: 2}
YAML
    "$altiplano" train runs/corpus/train.yaml "$@"
else
    "$altiplano" train --resume "$run" "$@"
fi
"$altiplano" generate --checkpoint "$run" --prompt "The history of" --max-tokens 100
