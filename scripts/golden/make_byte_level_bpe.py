"""A small byte-level BPE tokenizer as LLaMA 3's, and the ids that tokenizers gives with it.

    venv/bin/pip install tokenizers
    venv/bin/python scripts/golden/make_byte_level_bpe.py

Trains on the documentation of this repository and writes tests/golden/byte_level_bpe. With the same
versions and the same text the script writes the same bytes; another text makes another vocabulary.
"""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "tests/golden/byte_level_bpe"
VOCABULARY = 400
# How LLaMA 3 cuts a text into words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEXTS = [
    "", "a", " a", "a ", "  a", "a  b", " " * 37, "\n", "\n\n", "a\nb", " \n ", "\t\ta\t", "\r\n",
    "12345 6789", "3.14159", "it's we'll IT'S", "The people of the United States.", "naïve café",
    "日本語のテキスト", "Ελληνικά", "עברית", "🙂🙃👩‍👩‍👧", "e\u0301", "\u00a0\u3000\u200b\ufeff", "\u0000\u0001\u007f",
    "<|begin_of_text|>", "a<|eot_id|>b", "<|end_of_text|> <tool>", "<tool>", "x<tool>y", "fn main() { let x = 1; }",
    "//! Markdown `code` | table |", "www.example.org/path?a=1&b=2",
]  # fmt: skip


def make():
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    files = sorted(str(path) for path in (ROOT / "docs/backward").glob("*.md"))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train(files, trainer)
    tokenizer.add_special_tokens([
        AddedToken(name, special=True) for name in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
    ])  # fmt: skip
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    return tokenizer


def main():
    OUTPUT.mkdir(parents=True, exist_ok=True)
    make().save(str(OUTPUT / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"__type": "AddedToken", "content": "<|eot_id|>", "special": True},
        "clean_up_tokenization_spaces": False,
    }
    (OUTPUT / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    tokenizer = Tokenizer.from_file(str(OUTPUT / "tokenizer.json"))
    # Text that looks like a special token is text.
    tokenizer.encode_special_tokens = True
    random.seed(1)
    alphabet = list("ab cde\n\t.,'0123éß日🙂 ") + ["<|eot_id|>", "<tool>", "  "]
    texts = TEXTS + ["".join(random.choices(alphabet, k=random.randrange(1, 40))) for _ in range(40)]
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    size = tokenizer.get_vocab_size()
    # Any ids at all, whose bytes are often not UTF-8.
    for _ in range(40):
        chosen = [random.randrange(size) for _ in range(random.randrange(1, 12))]
        ids.append(chosen)
        texts.append(None)
    entries = [
        {"text": text, "ids": chosen, "decoded": tokenizer.decode(chosen)} for text, chosen in zip(texts, ids)
    ]
    expected = {"made_with": {"tokenizers": tokenizers.__version__}, "vocab_size": size, "entries": entries}
    (OUTPUT / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
