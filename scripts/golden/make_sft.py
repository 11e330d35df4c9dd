"""Masks of fine-tuning as FastChat and Stanford Alpaca make them.

    venv/bin/pip install --no-deps fschat==0.2.36
    venv/bin/python scripts/golden/make_sft.py

Writes tests/golden/sft/expected.json: conversations, each with the ids and the trained places of FastChat's
own `preprocess` (Vicuna v1.1) in the tokenizer's legacy mode, and instructions with those of Alpaca's loader.
Alpaca is in no package: `alpaca` below does what its `train.py` does, which is prompt and output joined,
encoded with `<s>`, and as many tokens left out as the prompt alone has. The tokenizer is that of
tests/golden/tokenizer. Packages: transformers, torch, fschat (its training module alone is read).
"""

import importlib.util
import json
import random
import sys
import types
from pathlib import Path

import transformers

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"
IGNORED = -100
LONGEST = 2048

TEXTS = [
    "Hello!", "Hi there.", "How are you?", "Fine, thanks.", "What is 12 + 30?", "42", "Write a list:\n1. a\n2. b",
    "1. one\n2. two\n\nThat is all.", "naïve café", "日本語 text", "🙂", "  two blanks in front", "a trailing blank ",
    ": a colon", "</s>", "<s> is a mark", "fn main() {\n    println!(\"hi\");\n}", "\n\nline feeds", "x" * 80,
    "The quick brown fox jumps over the lazy dog.", "USER: not a role", "tab\there", "(parentheses)", "...",
]
# FastChat cuts at these texts wherever they stand.
MISTAKEN = ["</s>", "<s>", " ASSISTANT: "]

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:"
)
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "### Input:\n{input}\n\n### Response:"
)


def preprocess_of_fastchat():
    """FastChat's training module without the model code that it imports beside."""
    from fastchat.conversation import get_conv_template

    adapter = types.ModuleType("fastchat.model.model_adapter")
    adapter.get_conversation_template = lambda name: get_conv_template("vicuna_v1.1")
    package = types.ModuleType("fastchat.model")
    package.__path__ = []
    sys.modules["fastchat.model"] = package
    sys.modules["fastchat.model.model_adapter"] = adapter
    from fastchat.train import train

    return train.preprocess


def trained_places(labels):
    return [n for n, label in enumerate(labels) if label != IGNORED]


def vicuna(preprocess, tokenizer, texts):
    roles = ["human", "gpt"]
    turns = [{"from": roles[n % 2], "value": text} for n, text in enumerate(texts)]
    made = preprocess([turns], tokenizer)
    length = int(made["attention_mask"][0].sum())
    ids = made["input_ids"][0][:length].tolist()
    trained = trained_places(made["labels"][0].tolist())
    assert all(place < length for place in trained)
    return {"conversations": turns, "ids": ids, "trained": trained}


def alpaca(tokenizer, instruction, input_text, output):
    template = PROMPT if input_text == "" else PROMPT_WITH_INPUT
    prompt = template.replace("{instruction}", instruction).replace("{input}", input_text)
    ids = tokenizer(prompt + output).input_ids + [tokenizer.eos_token_id]
    begin = len(tokenizer(prompt).input_ids)
    record = {"instruction": instruction, "input": input_text, "output": output}
    return {"record": record, "ids": ids, "trained": list(range(begin, len(ids)))}


def main():
    random.seed(1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(GOLDEN / "tokenizer", split_special_tokens=False)
    tokenizer.model_max_length = LONGEST
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.legacy = True
    preprocess = preprocess_of_fastchat()
    cases = []
    while len(cases) < 30:
        texts = [random.choice(TEXTS) for _ in range(2 * random.randint(1, 4))]
        # What FastChat takes for marks in a message is not compared: it trains nothing or something else.
        if any(mark in text for text in texts for mark in MISTAKEN):
            continue
        case = vicuna(preprocess, tokenizer, texts)
        assert case["trained"], texts
        cases.append(case)
    plain = [text for text in TEXTS if not any(mark in text for mark in MISTAKEN)]
    instructions = []
    for _ in range(30):
        instruction, output = random.choice(plain), random.choice(plain)
        input_text = random.choice(["", random.choice(plain), " "])
        instructions.append(alpaca(tokenizer, instruction, input_text, output))
    path = GOLDEN / "sft/expected.json"
    path.parent.mkdir(exist_ok=True)
    lines = [
        f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]"
        for name, cases in [("vicuna", cases), ("alpaca", instructions)]
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path}: {len(cases)} conversations, {len(instructions)} instructions")


if __name__ == "__main__":
    main()
