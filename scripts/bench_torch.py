"""PyTorch's side of scripts/bench_vs_torch and scripts/bench_gpu: LLaMA training steps, causal
attention, a large matrix product.

    bench_torch.py train --dim 512 --layers 8 --heads 8 --hidden 1376 --vocab 32000 \\
        --seq-len 512 --batch 8 --precision bf16 --compile --checkpoint
    bench_torch.py attention --heads 8 --head-dim 64 --seq-len 4096 --precision f32
    bench_torch.py matmul --device cuda
    bench_torch.py table RESULTS.jsonl

`train`, `attention` and `matmul` measure in a process of their own and print one JSON object with
the keys of `altiplano bench`; `--device cuda` measures on the first GPU. `table` prints the comparison in Markdown from lines
{"case", "engine", "precision", "checkpointing", "result"}; it needs no PyTorch.

The model is the one of altiplano: pre-norm RMSNorm, RoPE with rotated halves, SwiGLU, no biases,
an untied head. A step is forward, backward, clipping of the global norm, and AdamW.
"""

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time


def peak_memory_bytes():
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def wait(args):
    """Until the GPU has done what it was given."""
    if args.device != "cpu":
        import torch

        torch.cuda.synchronize()


def build_model(args):
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    head_dim = args.dim // args.heads

    def rotate(x, cos, sin):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            linear = lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)
            self.attention_norm = nn.RMSNorm(args.dim, eps=1e-6)
            self.q, self.k, self.v, self.o = (linear(args.dim, args.dim) for _ in range(4))
            self.ffn_norm = nn.RMSNorm(args.dim, eps=1e-6)
            self.gate, self.up = (linear(args.dim, args.hidden) for _ in range(2))
            self.down = linear(args.hidden, args.dim)

        def forward(self, x, cos, sin):
            batch, time_, _ = x.shape
            n = self.attention_norm(x)
            heads = lambda y: y.view(batch, time_, args.heads, head_dim).transpose(1, 2)
            q, k, v = heads(self.q(n)), heads(self.k(n)), heads(self.v(n))
            cos, sin = cos.to(q.dtype), sin.to(q.dtype)
            o = F.scaled_dot_product_attention(
                rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
            )
            x = x + self.o(o.transpose(1, 2).reshape(batch, time_, args.dim))
            n = self.ffn_norm(x)
            return x + self.down(F.silu(self.gate(n)) * self.up(n))

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(args.vocab, args.dim)
            self.layers = nn.ModuleList(Layer() for _ in range(args.layers))
            self.norm = nn.RMSNorm(args.dim, eps=1e-6)
            self.head = nn.Linear(args.dim, args.vocab, bias=False)
            frequency = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
            angle = torch.outer(torch.arange(args.seq_len), frequency)
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, inputs, targets):
            x = self.embedding(inputs)
            for layer in self.layers:
                if args.checkpoint:
                    x = checkpoint(layer, x, self.cos, self.sin, use_reentrant=False)
                else:
                    x = layer(x, self.cos, self.sin)
            logits = self.head(self.norm(x))
            return F.cross_entropy(logits.view(-1, args.vocab), targets.view(-1))

    return Llama()


def train(args):
    import torch

    import_memory = peak_memory_bytes()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = build_model(args).to(args.device)
    parameters = list(model.parameters())
    decayed = [p for p in parameters if p.dim() == 2]
    gains = [p for p in parameters if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=3e-4,
        betas=(0.9, 0.95),
        # One pass over memory instead of a dozen.
        fused=True,
    )
    forward = torch.compile(model) if args.compile else model
    bf16 = args.precision == "bf16"
    shape = (args.batch, args.seq_len)

    def step():
        inputs = torch.randint(args.vocab, shape, device=args.device)
        targets = torch.randint(args.vocab, shape, device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            loss = forward(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    seconds = []
    for n in range(args.warmup + args.steps):
        start = time.perf_counter()
        loss = step()
        wait(args)
        if n >= args.warmup:
            seconds.append(time.perf_counter() - start)
    count = sum(p.numel() for p in parameters)
    step_seconds = statistics.median(seconds)
    rate = args.batch * args.seq_len / step_seconds
    # As altiplano counts: 6 per weight in a matrix product, and causal attention.
    weights = count - args.vocab * args.dim
    flops = 6 * weights + 6 * args.layers * args.dim * args.seq_len
    return {
        "tokens_per_second": rate,
        "step_seconds": step_seconds,
        "model_flops_per_second": flops * rate,
        "peak_memory_bytes": peak_memory_bytes(),
        "import_memory_bytes": import_memory,
        "threads": torch.get_num_threads(),
        "parameters": count,
        "loss": loss,
        "torch": torch.__version__,
    }


def attention(args):
    import torch
    import torch.nn.functional as F

    import_memory = peak_memory_bytes()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    shape = (args.batch, args.heads, args.seq_len, args.head_dim)
    options = {"dtype": dtype, "device": args.device}
    q, k, v = (torch.randn(shape, requires_grad=True, **options) for _ in range(3))
    dout = torch.randn(shape, **options)
    kernel = contextlib.nullcontext
    if args.device != "cpu" and dtype == torch.bfloat16:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        # FlashAttention-2, not cuDNN's.
        kernel = lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    forward, backward = [], []
    for n in range(args.warmup + args.steps):
        wait(args)
        start = time.perf_counter()
        with kernel():
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        wait(args)
        middle = time.perf_counter()
        torch.autograd.grad(o, (q, k, v), dout)
        wait(args)
        end = time.perf_counter()
        if n >= args.warmup:
            forward.append(middle - start)
            backward.append(end - middle)
    forward_seconds, backward_seconds = statistics.median(forward), statistics.median(backward)
    total = forward_seconds + backward_seconds
    # 3.5 · 2BHT²D, as altiplano counts.
    flops = 7 * args.batch * args.heads * args.seq_len**2 * args.head_dim
    return {
        "forward_seconds": forward_seconds,
        "backward_seconds": backward_seconds,
        "seconds": total,
        "flops_per_second": flops / total,
        "peak_memory_bytes": peak_memory_bytes(),
        "import_memory_bytes": import_memory,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def matmul(args):
    import torch

    size = 8192 if args.device != "cpu" else 2048
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    x, weight = (torch.randn(size, size, dtype=dtype, device=args.device) for _ in range(2))
    seconds = []
    for n in range(args.warmup + args.steps):
        wait(args)
        start = time.perf_counter()
        x @ weight.T
        wait(args)
        if n >= args.warmup:
            seconds.append(time.perf_counter() - start)
    return {"flops_per_second": 2 * size**3 / min(seconds), "torch": torch.__version__}


def read_results(path):
    """The results in the order they came, those of the same measurement in one list."""
    merged = {}
    with open(path, encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            key = (line["case"], line["precision"], line["engine"], line["checkpointing"])
            merged.setdefault(key, []).append(line["result"])
    return {
        key: {
            name: statistics.median(result[name] for result in results)
            for name, value in results[0].items()
            if isinstance(value, (int, float)) and all(name in r for r in results)
        }
        for key, results in merged.items()
    }


def ratio(value, base):
    return f"{value / base:.2f}" if base else "-"


def table(args):
    results = read_results(args.results)
    for case in dict.fromkeys(key[0] for key in results):
        rows = {key[1:]: result for key, result in results.items() if key[0] == case}
        has = lambda name: any(name in result for result in rows.values())
        if has("tokens_per_second"):
            lines = training_rows(rows)
        elif has("forward_seconds"):
            lines = attention_rows(rows)
        else:
            lines = matmul_rows(rows)
        print(f"\n### {case}\n")
        for n, cells in enumerate(lines):
            print("| " + " | ".join(cells) + " |")
            if n == 0:
                print("|" + "|".join("---" if i < 3 else "---:" for i in range(len(cells))) + "|")
    imports = [r["import_memory_bytes"] for r in results.values() if "import_memory_bytes" in r]
    if imports:
        print(f"\nOf PyTorch's peak memory {statistics.median(imports) / 1e6:.0f} MB are its import.")


def training_rows(rows):
    """Ratios are to PyTorch's fastest engine that is measured, torch.compile if it is, with the
    same precision and everything kept."""
    yield ["precision", "engine", "checkpointing", "tokens/s", "GFLOP/s", "mfu",
           "peak MB", "speed ÷ PyTorch", "memory ÷ PyTorch"]
    for (precision, engine, checkpointing), result in sorted(rows.items(), key=lambda row: row[0][0]):
        base = rows.get((precision, "torch.compile", "none"))
        base = base or rows.get((precision, "torch eager", "none"), {})
        mfu = result.get("mfu")
        yield [
            precision,
            engine,
            checkpointing,
            f"{result['tokens_per_second']:.0f}",
            f"{result['model_flops_per_second'] / 1e9:.0f}",
            "-" if mfu is None else f"{mfu:.2f}",
            f"{result['peak_memory_bytes'] / 1e6:.0f}",
            ratio(result["tokens_per_second"], base.get("tokens_per_second")),
            ratio(result["peak_memory_bytes"], base.get("peak_memory_bytes")),
        ]


def attention_rows(rows):
    yield ["precision", "engine", "", "forward s", "backward s", "GFLOP/s", "peak MB",
           "speed ÷ PyTorch"]
    for (precision, engine, _), result in sorted(rows.items(), key=lambda row: row[0][0]):
        base = rows.get((precision, "torch sdpa", "none"), {})
        yield [
            precision,
            engine,
            "",
            f"{result['forward_seconds']:.3f}",
            f"{result['backward_seconds']:.3f}",
            f"{result['flops_per_second'] / 1e9:.0f}",
            f"{result['peak_memory_bytes'] / 1e6:.0f}",
            ratio(result["flops_per_second"], base.get("flops_per_second")),
        ]


def matmul_rows(rows):
    yield ["precision", "engine", "", "TFLOP/s", "speed ÷ PyTorch"]
    for (precision, engine, _), result in sorted(rows.items(), key=lambda row: row[0][0]):
        base = rows.get((precision, "torch", "none"), {})
        rate = result["flops_per_second"]
        yield [precision, engine, "", f"{rate / 1e12:.1f}", ratio(rate, base.get("flops_per_second"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("train", "attention", "matmul"):
        command = commands.add_parser(name)
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        command.add_argument("--heads", type=int, default=8)
        command.add_argument("--seq-len", type=int, default=512 if name == "train" else 4096)
        command.add_argument("--batch", type=int, default=8 if name == "train" else 1)
        command.add_argument("--precision", choices=("f32", "bf16"), default="bf16")
        command.add_argument("--steps", type=int, default=5)
        command.add_argument("--warmup", type=int, default=2)
        command.add_argument("--threads", type=int, default=0, help="0 is all cores")
        if name == "train":
            command.add_argument("--dim", type=int, default=512)
            command.add_argument("--layers", type=int, default=8)
            command.add_argument("--hidden", type=int, default=1376)
            command.add_argument("--vocab", type=int, default=32000)
            command.add_argument("--compile", action="store_true")
            command.add_argument("--checkpoint", action="store_true")
        elif name == "attention":
            command.add_argument("--head-dim", type=int, default=64)
    commands.add_parser("table").add_argument("results")
    args = parser.parse_args()
    if args.command == "table":
        return table(args)
    measure = {"train": train, "attention": attention, "matmul": matmul}[args.command]
    print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
