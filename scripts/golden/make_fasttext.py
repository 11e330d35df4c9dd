"""Trains small fastText models with fastText's own Python package and writes what they predict.

    venv/bin/pip install fasttext-wheel 'numpy<2'
    venv/bin/python scripts/golden/make_fasttext.py

The models tell the sources of tests/fixtures apart. Between them they have every loss, character
and word n-grams, pruned buckets and quantised matrices. One thread, fixed seed.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import fasttext

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "tests/golden/fasttext"


def lines():
    """Label and line of every fixture, the sources taking turns."""
    sources = {}
    for path in sorted((ROOT / "tests/fixtures").glob("*/**/*")):
        if not path.is_file():
            continue
        text = path.read_text("utf-8")
        if path.suffix == ".jsonl":
            text = "\n".join(json.loads(line)["text"] for line in text.splitlines())
        source = path.relative_to(ROOT / "tests/fixtures").parts[0]
        found = [" ".join(line.split()) for line in text.splitlines()]
        sources.setdefault(source, []).extend(line for line in found if len(line) > 40)
    return [
        (source, line[:400])
        for turn in zip(*(found[:600] for found in sources.values()))
        for source, line in zip(sources, turn)
    ]


def main():
    OUTPUT.mkdir(parents=True, exist_ok=True)
    examples = lines()
    texts = [line for _, line in examples[::23]]
    texts += ["", "été à Noël", "日本語 текст", "a </s> of the", "__label__books the sea", "x" * 300]
    texts += ["tab\there\vand\fthere", "no\u00a0break\u2003space", " ".join(texts[:8])]
    subwords = dict(minn=2, maxn=4, bucket=2000, minCount=30)
    models = {
        "softmax.bin": dict(loss="softmax", wordNgrams=3, bucket=1500, minCount=60),
        "hs.ftz": dict(loss="hs", **subwords),
        "ova.ftz": dict(loss="ova", **subwords),
        "ns.bin": dict(loss="ns", minn=1, maxn=2, bucket=500, minCount=100),
    }
    expected = {}
    with TemporaryDirectory() as folder:
        train = Path(folder) / "train"
        train.write_text("".join(f"__label__{label} {line}\n" for label, line in examples), "utf-8")
        for name, options in models.items():
            model = fasttext.train_supervised(
                str(train), dim=5, epoch=100, lr=0.5, thread=1, seed=1, verbose=0, **options
            )
            if name.endswith(".ftz"):
                pruned = dict(cutoff=500) if name == "hs.ftz" else {}
                model.quantize(str(train), qnorm=name == "hs.ftz", dsub=2, thread=1, **pruned)
            model.save_model(str(OUTPUT / name))
            model = fasttext.load_model(str(OUTPUT / name))
            expected[name] = []
            for text in texts:
                labels, probabilities = model.predict(text, k=2)
                pairs = zip(labels, probabilities.tolist())
                expected[name].append([[label.removeprefix("__label__"), p] for label, p in pairs])
    with open(OUTPUT / "expected.json", "w", encoding="utf-8") as file:
        json.dump({"texts": texts, "models": expected}, file, ensure_ascii=False, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
