"""Ids that transformers gives with the tokenizer files of a checkpoint.

    venv/bin/python scripts/golden/make_tokenizer.py CHECKPOINT

Copies the tokenizer files of a checkpoint that altiplano wrote to tests/golden/tokenizer and writes
expected.json beside them: texts that are easily got wrong, each with the ids of `AutoTokenizer`.
Fails where the packages sentencepiece and tokenizers do not give the same ids, on these texts or on
any of 20000 random ones. Packages: transformers, tokenizers, sentencepiece, protobuf.
"""

import json
import random
import shutil
import sys
from pathlib import Path

import sentencepiece
import tokenizers
import transformers

OUTPUT = Path(__file__).resolve().parents[2] / "tests/golden/tokenizer"
FILES = ["tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
RANDOM_TEXTS = 20000

TEXTS = [
    # Spaces: none, leading, trailing, repeated, alone.
    "", "a", " a", "a ", "  a", "   a", "a  b", "a   b", " ", "  ", "    ", " " * 37, "ab " * 20,
    "\u00a0", "a\u00a0b", "\u3000", "\u200b", "\ufeff", "\ufeffa", " .", "! ?",
    # Line ends and tabs.
    "\n", "\n\n", "\n" * 9, "a\nb", "\na", "a\n", " \n ", "\t", "\ta\tb", "a\t ", "\t" * 9, "\r\n",
    "a\r\nb", "\u0085", "\u2028", "  indented\n    more\n", 'fn main() {\n    println!("hi");\n}\n',
    # Emoji, combining marks, forms of one character.
    "🙂", "a 🙂 b", "👩‍👩‍👧", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "e\u0301", "é", "naïve café", "a\u0300\u0301\u0302", "ÅÅ", "ﬁ", "²", "Ⅷ",
    "ß", "İ", "ı",
    # Scripts.
    "日本語", "日本 語 テスト", "한국어", "Ω≈ç√∫", "مرحبا", "שלום", "नमस्ते", "ไทย",
    # Bytes and what is no character.
    "\x00", "a\x00b", "\x01\x1f", "\x7f", "\ufffd", "\uffff", "\U0010ffff",
    # Digits.
    "0", "12", "1234567890", "3.14", "1,000", "a1b2", "٣", "１２",
    # Marks as text.
    "<s>", "</s>", "<unk>", "<s>a</s>", " <s> ", "a<s>b", "<pad>", "[INST]", "<|endoftext|>",
    "<0x0A>", "<0x41>", "▁", "a▁b", "▁a", " ▁ ",
    # Repeated characters.
    "x" * 100, "-" * 37, "=====", "................", "aaaa", "aaaaaaa", "abababab",
    # Text.
    "The quick brown fox.", "https://example.org/a?b=c&d=e#f", "I'm don't", "\\n", "\"'`", "{}[]()",
    "mixed 日本 text 123 <s> \n\t 🙂 end  ",
]


def random_texts():
    random.seed(1)
    parts = list("ab- \n\t=x日本1.e▁é🙂") + ["the", " the ", "  ", "   ", "--", "---", "<s>", "ing"]
    for _ in range(RANDOM_TEXTS):
        yield "".join(random.choice(parts) for _ in range(random.randint(1, 30)))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    checkpoint = Path(sys.argv[1])
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(checkpoint / name, OUTPUT / name)

    auto = transformers.AutoTokenizer.from_pretrained(OUTPUT)
    plain = tokenizers.Tokenizer.from_file(str(OUTPUT / "tokenizer.json"))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(OUTPUT / "tokenizer.model"))
    marks = (auto.bos_token_id, auto.eos_token_id, auto.unk_token_id)
    assert marks == (reference.bos_id(), reference.eos_id(), reference.unk_id()), marks

    def ids_of(text):
        ids = auto(text, add_special_tokens=False).input_ids
        assert ids == reference.encode(text), (text, ids, reference.encode(text))
        assert ids == plain.encode(text, add_special_tokens=False).ids, text
        assert auto(text).input_ids == [reference.bos_id()] + ids, text
        decoded = auto.decode([reference.bos_id()] + ids + [reference.eos_id()], skip_special_tokens=True)
        assert decoded == text.replace("▁", " "), (text, decoded)
        return ids

    cases = [{"text": text, "ids": ids_of(text)} for text in TEXTS]
    for text in random_texts():
        ids_of(text)
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    (OUTPUT / "expected.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(cases)} texts and {RANDOM_TEXTS} random ones: the same ids")


if __name__ == "__main__":
    main()
