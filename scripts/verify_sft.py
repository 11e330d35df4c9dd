"""Holds fine-tuned models against transformers and PEFT.

    scripts/verify_sft [VENV]
    venv/bin/python scripts/verify_sft.py target/release/altiplano FOLDER

Trains a small model in FOLDER, teaches it a few answers, once all of it and once by adapters, and compares: the
ids of the chat template, greedy answers, and logits of the adapters beside their weights and merged. Prints one
line for each comparison and fails at the first that does not hold.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[1]
ANSWERS = {"Who?": "Captain Ahab.", "What?": "A white whale!", "Where?": "At sea, near Japan."}
TOLERANCE = 1e-4


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    altiplano, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()

    def run(*arguments, text=None):
        command = [str(altiplano), *map(str, arguments)]
        done = subprocess.run(command, check=True, cwd=folder, input=text, stdout=subprocess.PIPE, text=True)
        return done.stdout

    speeches = ROOT / "tests/fixtures/plain/speeches/19[5-7]*.txt"
    (folder / "data.yaml").write_text(
        f"output: .\nsources:\n- name: speeches\n  text: {{ paths: ['{speeches}'], format: files }}\n"
        "holdout: { bytes_per_source: 8000 }\ntokenizer: { vocab_size: 512, input_bytes: 300000 }\n"
    )
    for command in (["data", "run"], ["tokenizer", "train"], ["tokenize"]):
        run(*command, "data.yaml")
    (folder / "train.yaml").write_text(
        "name: base\nprecision: f32\nmodel: { dim: 64, n_layers: 2, n_heads: 4, hidden_dim: 128, vocab_size: 512,\n"
        "  max_seq_len: 256 }\ntokenizer: tokenizer.model\ndata: { sources: [{ path: tokens/speeches, weight: 1 }] }\n"
        "batch: { micro_batch: 8, seq_len: 64 }\nsteps: 60\noptimizer: { lr: 5.0e-3, warmup_steps: 5 }\n"
        "validate: { every: 0 }\n"
    )
    run("train", "train.yaml")
    records = [{"instruction": question, "output": answer} for question, answer in ANSWERS.items()]
    (folder / "examples.json").write_text(json.dumps(records))
    (folder / "sft.yaml").write_text(
        "name: taught\nbase: runs/base\nprecision: f32\ntemplate: vicuna_v1.1\ndata: [{ path: examples.json }]\n"
        "max_length: 256\nsteps: 150\nbatch: { examples: 3, micro_batch: 1 }\nvalidate: { examples: 0 }\n"
        "optimizer: { lr: 5.0e-3, beta2: 0.99 }\n"
    )
    run("sft", "sft.yaml")
    adapters = "lora={r: 8, alpha: 32, targets: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}"
    run("sft", "sft.yaml", "name=adapted", "steps=60", adapters)
    run("export", "--checkpoint", "runs/adapted", "--merge", "--format", "hf", "--output", "merged")

    taught = max((folder / "runs/taught/checkpoints").iterdir())
    adapted = max((folder / "runs/adapted/checkpoints").iterdir())
    tokenizer = AutoTokenizer.from_pretrained(taught)
    model = AutoModelForCausalLM.from_pretrained(taught, dtype=torch.float32)
    for question, answer in ANSWERS.items():
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        theirs = model.generate(ids, max_new_tokens=40, do_sample=False)[0][ids.shape[1] :]
        assert theirs[-1] == tokenizer.eos_token_id, theirs
        theirs = tokenizer.decode(theirs[:-1]).strip()
        ours = run("generate", "--chat", "--temperature", 0, "--checkpoint", taught, text=question + "\n").strip()
        assert ours == theirs == answer, (ours, theirs, answer)
    print(f"transformers: {len(ANSWERS)} answers by the chat template are the same")

    run("sft", "sft.yaml", "name=padded", "steps=2", "add_pad_token=true")
    padded = max((folder / "runs/padded/checkpoints").iterdir())
    tokenizer = AutoTokenizer.from_pretrained(padded)
    model = AutoModelForCausalLM.from_pretrained(padded, dtype=torch.float32)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("[PAD]", 512), tokenizer
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 513
    print("transformers: the added [PAD] is a token of tokenizer and model")

    tokenizer = AutoTokenizer.from_pretrained(taught)
    base = json.loads((adapted / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, adapted)
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
    for question in ANSWERS:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            difference = (peft(ids).logits - merged(ids).logits).abs().max().item()
        assert difference < TOLERANCE, difference
        theirs = tokenizer.decode(peft.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0][ids.shape[1] :])
        theirs = theirs.removesuffix(tokenizer.eos_token).strip()
        ours = run(
            "generate", "--chat", "--temperature", 0, "--max-tokens", 12, "--checkpoint", adapted, text=question + "\n"
        )
        assert ours.strip() == theirs, (ours, theirs)
    print(f"PEFT: logits of {len(ANSWERS)} prompts are those of the merged export, and so are the answers")


if __name__ == "__main__":
    main()
