"""Pieces that SentencePiece's trainer makes, for the test of the trainer here.

    venv/bin/python scripts/golden/make_bpe_trainer.py

Writes tests/golden/bpe_trainer: mixed.txt, lines of scripts, spaces and marks put together at random, and
the pieces behind the byte pieces, a line each, of that text and of the speeches in tests/fixtures.
Package: sentencepiece 0.2.3 or later; those before it merge pairs in another order.
"""

import io
import random
from pathlib import Path

import sentencepiece

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "tests/golden/bpe_trainer"
# 3 marks and the bytes.
FIRST = 3 + 256
# File of the pieces, text, pieces, share of the characters. The test has the same list.
CASES = [
    ("speeches.pieces", "speeches", 2000, 0.9999),
    ("mixed.pieces", "mixed", 800, 1.0),
    ("mixed_covered.pieces", "mixed", 600, 0.98),
]
PARTS = [
    " ", "  ", "   ", "\u2581", " \u2581", "\t", "\x01", "\x1f", "\x7f", "\x85", "\xa0", "\u200b", "\ufeff", "\ufffd",
    "\U0010ffff", "<s>", "</s>", "<unk>", "<0x0A>", "<0x0a>", "<|end|>", "of the", "the", "日本", "日本語", "カタカナー",
    "ひらがな", "1776", "１２", "3.14", "é", "e\u0301", "👩\u200d👩", "ﬁ", "данные", "한국어", "ไทย", "नमस्ते", "مرحبا",
    "https://x.org/?a=1", "    return x;", "________", "aaaaaaaaaaaaaaaaaaaaaaaa", "aaa", "ab", "ba", "abab",
    "\u0301a", "日\u0301",
]


def mixed():
    random.seed(3)
    lines = ["".join(random.choice(PARTS) for _ in range(random.randint(1, 12))) for _ in range(600)]
    return "\n".join(lines) + "\n"


def pieces(text, vocab_size, coverage):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in text.split("\n") if line]),
        model_writer=model, model_type="bpe", vocab_size=vocab_size, character_coverage=coverage,
        split_digits=True, byte_fallback=True, normalization_rule_name="identity",
        add_dummy_prefix=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1, max_sentence_length=4096, minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [processor.id_to_piece(id) for id in range(FIRST, processor.get_piece_size())]


def main():
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "mixed.txt").write_text(mixed(), newline="\n")
    speeches = sorted((ROOT / "tests/fixtures/plain/speeches").glob("*.txt"))
    texts = {
        "mixed": mixed(),
        # A speech is one line, longer than the trainer takes.
        "speeches": "".join(path.read_bytes().decode().replace(". ", ".\n") for path in speeches),
    }
    for file, text, vocab_size, coverage in CASES:
        (OUTPUT / file).write_text("\n".join(pieces(texts[text], vocab_size, coverage)) + "\n", newline="\n")


if __name__ == "__main__":
    main()
