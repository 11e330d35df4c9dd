#!/usr/bin/env python3
"""Writes the golden values under tests/golden. Run by hand; its output is committed.

    python3 -m venv venv && venv/bin/pip install torch numpy safetensors transformers
    venv/bin/python scripts/golden/make_golden.py --check-transformers

Everything is computed in float64 from weights rounded to float32, so the stored values are exact to
about 1e-14 and serve float64, float32 and bfloat16 implementations alike. With `--check-transformers`
the model is compared with transformers' LlamaForCausalLM and the optimizer with torch.optim.AdamW;
a difference above 1e-12 fails.
"""

import argparse
import functools
import json
import math
import platform
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import llama

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
SEED = 20230227
BATCH, TIME = 2, 19
STEPS = 10

CONFIG = llama.Config(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=88, vocab_size=67, max_seq_len=64,
    norm_eps=1e-6, rope_theta=10000.0,
)  # fmt: skip
OPTIMIZER = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}
SCHEDULE = {"lr": 0.01, "min_lr_ratio": 0.1, "warmup_steps": 3, "total_steps": STEPS}


def learning_rate(step, lr, min_lr_ratio, warmup_steps, total_steps):
    """Rate of the 1-based `step`: linear to `lr` at `warmup_steps`, then a cosine to
    `lr * min_lr_ratio` at `total_steps` and constant beyond."""
    if step <= warmup_steps:
        return lr * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    low = lr * min_lr_ratio
    return low + (lr - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_weights(generator):
    """Random weights, exact in float32. Larger than a real initialisation, so that attention is far
    from uniform and every gradient is of a size that a test can see."""
    weights = {}
    for name, shape in llama.weight_shapes(CONFIG).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        w = 1.0 + 0.1 * noise if len(shape) == 1 else 0.25 * noise
        weights[name] = w.float()
    return weights


def make_batch(generator):
    """Inputs and targets of one token stream per row. The last 3 targets of row 0 and one target
    inside row 1 are ignored; `first_visible` cuts row 0 into three documents and row 1 into two."""
    stream = torch.randint(3, CONFIG.vocab_size, (BATCH, TIME + 1), generator=generator)
    inputs, targets = stream[:, :-1].clone(), stream[:, 1:].clone()
    targets[0, -3:] = llama.IGNORED
    targets[1, 4] = llama.IGNORED
    first_visible = torch.zeros(BATCH, TIME, dtype=torch.int64)
    first_visible[0, 5:] = 5
    first_visible[0, 6:] = 6  # the second document is one token long
    first_visible[1, 11:] = 11
    return {"inputs": inputs, "targets": targets, "first_visible": first_visible}


def forward_backward(weights, batch, packed=False):
    """(logits, per-token losses, mean loss, gradients) of the mean loss."""
    weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
    first_visible = batch["first_visible"] if packed else None
    logits = llama.logits(CONFIG, weights, batch["inputs"], first_visible)
    losses = llama.token_losses(logits, batch["targets"])
    loss = llama.mean_loss(losses, batch["targets"])
    loss.backward()
    gradients = {name: w.grad for name, w in weights.items()}
    return logits.detach(), losses.detach(), loss.item(), gradients


def global_norm(gradients):
    return math.sqrt(sum(g.double().pow(2).sum().item() for g in gradients.values()))


def clip_factor(norm):
    """The factor of torch.nn.utils.clip_grad_norm_."""
    return min(1.0, OPTIMIZER["grad_clip"] / (norm + 1e-6))


def decays(weight):
    """Weight decay is for matrices (embedding and head too), not for norm weights."""
    return weight.dim() == 2


def train(weights, batch):
    """Ten AdamW steps on the same batch. Returns the steps and the final weights."""
    weights = {name: w.clone() for name, w in weights.items()}
    m = {name: torch.zeros_like(w) for name, w in weights.items()}
    v = {name: torch.zeros_like(w) for name, w in weights.items()}
    beta1, beta2 = OPTIMIZER["beta1"], OPTIMIZER["beta2"]
    steps = []
    for step in range(1, STEPS + 1):
        _, _, loss, gradients = forward_backward(weights, batch)
        lr = learning_rate(step, **SCHEDULE)
        norm = global_norm(gradients)
        scale = clip_factor(norm)
        for name, w in weights.items():
            g = gradients[name] * scale
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g * g
            m_hat = m[name] / (1 - beta1**step)
            v_hat = v[name] / (1 - beta2**step)
            decay = OPTIMIZER["weight_decay"] if decays(w) else 0.0
            weights[name] = w - lr * decay * w - lr * m_hat / (v_hat.sqrt() + OPTIMIZER["eps"])
        steps.append({"step": step, "loss": loss, "grad_norm": norm, "lr": lr})
    return steps, weights


def greedy(weights, prompt, count):
    """Greedy continuation of `prompt`, and the smallest gap between the two best logits on the way."""
    ids, gap = list(prompt), math.inf
    with torch.no_grad():
        for _ in range(count):
            best = llama.logits(CONFIG, weights, torch.tensor([ids]))[0, -1].topk(2)
            gap = min(gap, (best.values[0] - best.values[1]).item())
            ids.append(best.indices[0].item())
    return {"prompt": list(prompt), "continuation": ids[len(prompt) :], "smallest_logit_gap": gap}


def largest_difference(a, b):
    if isinstance(a, dict):
        return max(largest_difference(a[name], b[name]) for name in a)
    return (a.double() - b.double()).abs().max().item()


def check_transformers(weights, batch, expected_logits, expected_gradients, final_weights):
    """Compares with LlamaForCausalLM (logits, gradients) and torch.optim.AdamW (final weights)."""
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(
        GOLDEN / "llama_tiny", dtype=torch.float64, attn_implementation="sdpa"
    ).train()
    stock = largest_difference(model(batch["inputs"]).logits, expected_logits)
    # transformers works out rotary angles and norms in float32 whatever the dtype: redo both in float64.
    rotary = model.model.rotary_emb
    half = CONFIG.head_dim // 2
    frequencies = CONFIG.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    rotary.forward = lambda x, position_ids: (
        (position_ids[..., None] * frequencies.repeat(2)).cos(),
        (position_ids[..., None] * frequencies.repeat(2)).sin(),
    )
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = functools.partial(
                torch.nn.functional.rms_norm, normalized_shape=(CONFIG.dim,),
                weight=module.weight, eps=CONFIG.norm_eps,
            )  # fmt: skip
    named = dict(model.named_parameters())
    assert named.keys() == weights.keys(), "tensor names differ"

    def loss_of(logits):
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=llama.IGNORED
        )

    logits = model(batch["inputs"]).logits
    loss_of(logits).backward()
    report = {
        "logits, float32 rotary and norms": stock,
        "logits": largest_difference(logits.detach(), expected_logits),
        "gradients": largest_difference({n: p.grad for n, p in named.items()}, expected_gradients),
    }
    groups = [
        {"params": [p for p in named.values() if decays(p)], "weight_decay": OPTIMIZER["weight_decay"]},
        {"params": [p for p in named.values() if not decays(p)], "weight_decay": 0.0},
    ]
    betas = (OPTIMIZER["beta1"], OPTIMIZER["beta2"])
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=OPTIMIZER["eps"])
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(model(batch["inputs"]).logits).backward()
        torch.nn.utils.clip_grad_norm_(named.values(), OPTIMIZER["grad_clip"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, **SCHEDULE)
        optimizer.step()
    report["weights after ten steps"] = largest_difference(
        {n: p.detach() for n, p in named.items()}, final_weights
    )
    print(f"transformers {transformers.__version__}, torch {torch.__version__}: largest differences")
    for what, difference in report.items():
        print(f"  {what}: {difference:.2e}")
        limit = 1e-5 if "float32" in what else 1e-12
        assert difference < limit, f"{what} differs by {difference}"


def report_float32(weights, batch, expected, steps, final_weights):
    """What PyTorch itself loses in float32: a guide for the tolerance of a test."""
    logits, losses, loss, gradients = forward_backward(weights, batch)
    steps32, final32 = train(weights, batch)
    differences = {
        "logits": largest_difference(logits, expected["logits"]),
        "losses": largest_difference(losses, expected["losses"]),
        "gradients": max(largest_difference(g, expected[f"grad.{n}"]) for n, g in gradients.items()),
        "loss of a step": max(abs(a["loss"] - b["loss"]) for a, b in zip(steps32, steps)),
        "grad_norm of a step": max(abs(a["grad_norm"] - b["grad_norm"]) for a, b in zip(steps32, steps)),
        "weights after ten steps": largest_difference(final32, final_weights),
    }
    print("float32 in PyTorch: largest absolute differences from float64")
    for what, difference in differences.items():
        print(f"  {what}: {difference:.2e}")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_llama_tiny(check):
    folder = GOLDEN / "llama_tiny"
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(SEED)
    weights32, batch = make_weights(generator), make_batch(generator)
    weights = {name: w.double() for name, w in weights32.items()}

    logits, losses, loss, gradients = forward_backward(weights, batch)
    _, packed_losses, packed_loss, packed_gradients = forward_backward(weights, batch, packed=True)
    steps, final_weights = train(weights, batch)

    tensors = {name: t.to(torch.int32) for name, t in batch.items()}
    tensors |= {"logits": logits, "losses": losses, "packed.losses": packed_losses}
    tensors |= {f"grad.{name}": g for name, g in gradients.items()}
    tensors |= {f"packed.grad.{name}": g for name, g in packed_gradients.items()}
    tensors |= {f"final.{name}": w for name, w in final_weights.items()}
    expected = {
        "made_with": {"torch": torch.__version__, "python": platform.python_version(), "seed": SEED},
        "mean_loss": loss,
        "valid_targets": (batch["targets"] != llama.IGNORED).sum().item(),
        "grad_norm": global_norm(gradients),
        "packed": {"mean_loss": packed_loss, "grad_norm": global_norm(packed_gradients)},
        "optimizer": OPTIMIZER,
        "schedule": SCHEDULE,
        "steps": steps,
        "final_loss": forward_backward(final_weights, batch)[2],
        "greedy": greedy(weights, batch["inputs"][0, :5].tolist(), 12),
    }

    save_file(weights32, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(tensors, folder / "expected.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG.to_hugging_face())
    write_json(folder / "expected.json", expected)

    report_float32(weights32, batch, load_file(folder / "expected.safetensors"), steps, final_weights)
    if check:
        check_transformers(weights, batch, logits, gradients, final_weights)


def write_lr_schedule():
    """Learning rates at chosen steps: the paper's schedule, a short one, none of warm-up, no decay."""
    cases = []
    for lr, min_lr_ratio, warmup_steps, total_steps in [
        (3e-4, 0.1, 2000, 250_000),
        (1e-2, 0.1, 3, 10),
        (1.5e-4, 0.0, 0, 100),
        (1e-3, 1.0, 10, 50),
    ]:
        case = {"lr": lr, "min_lr_ratio": min_lr_ratio, "warmup_steps": warmup_steps, "total_steps": total_steps}
        middle = (warmup_steps + total_steps) // 2
        at = {1, 2, warmup_steps // 2, warmup_steps, warmup_steps + 1, middle, total_steps - 1}
        at |= {total_steps, total_steps + 1, 2 * total_steps}
        case["rates"] = [
            {"step": step, "lr": learning_rate(step, lr, min_lr_ratio, warmup_steps, total_steps)}
            for step in sorted(at) if step >= 1
        ]  # fmt: skip
        cases.append(case)
    write_json(GOLDEN / "lr_schedule.json", cases)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check-transformers", action="store_true", help="also compare with transformers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    write_llama_tiny(arguments.check_transformers)
    write_lr_schedule()


if __name__ == "__main__":
    main()
