"""Measures altiplano and llama.cpp on the same models: see scripts/bench_vs_llama_cpp.

    python3 scripts/bench_vs_llama_cpp.py FOLDER MODELS TYPES SEQUENCES PROMPT NEW REPEATS
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 32000
MODELS = {
    "110m": dict(dim=640, layers=14, heads=10, kv_heads=10, hidden=1792),
    "1.1b": dict(dim=2048, layers=22, heads=32, kv_heads=4, hidden=5632),
}
# The high byte of a bf16: either sign, 0.008 to 0.031.
HIGH_BYTE = bytes(0x3C | (n & 0x80) for n in range(256))


def say(text):
    print(f"bench_vs_llama_cpp: {text}", file=sys.stderr, flush=True)


def tensors(shape):
    """Names and shapes of the parameters, in the order of the file."""
    dim, hidden = shape["dim"], shape["hidden"]
    kv = dim // shape["heads"] * shape["kv_heads"]
    yield "model.embed_tokens", [VOCABULARY, dim]
    for n in range(shape["layers"]):
        for name, dims in [
            ("input_layernorm", [dim]),
            ("self_attn.q_proj", [dim, dim]),
            ("self_attn.k_proj", [kv, dim]),
            ("self_attn.v_proj", [kv, dim]),
            ("self_attn.o_proj", [dim, dim]),
            ("post_attention_layernorm", [dim]),
            ("mlp.gate_proj", [hidden, dim]),
            ("mlp.up_proj", [hidden, dim]),
            ("mlp.down_proj", [dim, hidden]),
        ]:
            yield f"model.layers.{n}.{name}", dims
    yield "model.norm", [dim]
    yield "lm_head", [VOCABULARY, dim]


def write_model(folder, shape):
    """A Hugging Face directory with random weights in bf16."""
    folder.mkdir()
    config = dict(
        model_type="llama",
        hidden_size=shape["dim"],
        intermediate_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
    )
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(ROOT / "tests/golden/tokenizer/tokenizer.model", folder / "tokenizer.model")
    header, end = {}, 0
    for name, dims in tensors(shape):
        begin, end = end, end + 2 * count(dims)
        header[f"{name}.weight"] = dict(dtype="BF16", shape=dims, data_offsets=[begin, end])
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, dims in tensors(shape):
            file.write(values(dims))


def count(dims):
    product = 1
    for dim in dims:
        product *= dim
    return product


def values(dims):
    if len(dims) == 1:
        return b"\x80\x3f" * count(dims)
    out = bytearray(2 * count(dims))
    out[0::2] = random.randbytes(count(dims))
    out[1::2] = random.randbytes(count(dims)).translate(HIGH_BYTE)
    return out


def output(*command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def altiplano(file, sequences, prompt, new):
    command = [os.environ["ALTIPLANO"], "bench", "generate", "--checkpoint", file, "--json", "--repeats", 1]
    command += ["--threads", os.environ["THREADS"], "--sequences", sequences]
    found = json.loads(output(*command, "--prompt-tokens", prompt, "--new-tokens", new).splitlines()[-1])
    return (
        found["prefill_tokens_per_second"],
        found["decode_tokens_per_second"],
        found["peak_memory_bytes"],
        found["seconds_to_open"],
    )


def llama_cpp(file, sequences, prompt, new):
    tokens = int(sequences) * (int(prompt) + int(new))
    command = [os.environ["LLAMA_BENCH"], "-m", file, "-t", os.environ["THREADS"], "--output-format", "jsonl"]
    command += ["-c", max(tokens, 512), "-b", 2048, "-ub", 512, "-npl", sequences, "-npp", prompt, "-ntg", new]
    lines = output(*command).splitlines()
    found = next(json.loads(line) for line in lines if line.startswith("{"))
    return found["speed_pp"], found["speed_tg"]


def main():
    work, models, types, sequences, prompt, new, repeats = sys.argv[1:]
    rows = []
    for model in models.split():
        folder = Path(work) / model
        say(f"{model}: random weights")
        random.seed(1)
        write_model(folder, MODELS[model])
        for kind in types.split():
            file = Path(work) / f"{model}-{kind}.gguf"
            export = ["export", "--checkpoint", folder, "--format", "gguf", "--type", kind, "--output", file]
            output(os.environ["ALTIPLANO"], *export)
            for count in sequences.split():
                ours, theirs = [], []
                for n in range(int(repeats)):
                    say(f"{model} {kind} × {count}: measurement {n + 1}")
                    ours.append(altiplano(file, count, prompt, new))
                    theirs.append(llama_cpp(file, count, prompt, new))
                rows.append(row(model, kind, count, ours, theirs, file.stat().st_size))
            file.unlink()
        shutil.rmtree(folder)
    print("| model | type | sequences | prefill, tokens/s | llama.cpp | ratio | decode, tokens/s | llama.cpp "
          "| ratio | memory ÷ file | s to open |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    print("\n".join(rows))


def row(model, kind, sequences, ours, theirs, size):
    """A row of the table, of the best of each: what disturbs a measurement only makes it slower."""
    prefill, decode = (max(column) for column in list(zip(*ours))[:2])
    memory, opened = (min(column) for column in list(zip(*ours))[2:])
    their_prefill, their_decode = (max(column) for column in zip(*theirs))
    return (
        f"| {model} | {kind} | {sequences} | {prefill:.1f} | {their_prefill:.1f} | {prefill / their_prefill:.2f} "
        f"| {decode:.1f} | {their_decode:.1f} | {decode / their_decode:.2f} "
        f"| {memory / size:.2f} | {opened:.3f} |"
    )


if __name__ == "__main__":
    main()
