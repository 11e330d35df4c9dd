"""What scripts/verify_eval compares: every example of tests/fixtures/eval_tasks by `altiplano eval tasks` and by
lm_eval, in process and over HTTP.

    verify_eval.py ALTIPLANO WORK URL [TASK...]

WORK/model is a checkpoint, WORK/hf its export, URL an `altiplano serve` of it. TASK: these alone.

lm_eval judges programs by a metric that `evaluate` downloads; here `Programs` stands for it.
"""

import csv
import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import lm_eval
import lm_eval.tasks
import pyarrow.parquet
from lm_eval_tasks import local_task

ALTIPLANO, WORK, URL, ONLY = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
DATA = Path("tests/fixtures/eval_tasks")
CONTEXT = json.loads((WORK / "hf/config.json").read_text())["max_position_embeddings"]
MANAGER = lm_eval.tasks.TaskManager()


class Programs:
    """Programs with tests behind them, run: what `evaluate.load("code_eval")` gives."""

    def compute(self, references, predictions, k):
        assert k == [1]
        passed = total = 0
        for tests, candidates in zip(references, predictions, strict=True):
            for candidate in candidates:
                command = [sys.executable, "-I", "-c", f"{candidate}\n{tests}"]
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                passed += subprocess.run(command, timeout=20, check=False, **quiet).returncode == 0
                total += 1
        return {"pass@1": passed / total}, {}


evaluate.load = lambda name, *_, **__: {"code_eval": Programs()}[name]


def jsonl(name):
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def labelled(name):
    labels = (DATA / name.replace(".jsonl", "-labels.lst")).read_text().split()
    return [row | {"label": label} for row, label in zip(jsonl(name), labels)]


def arc(row):
    choices = row["question"]["choices"]
    return {
        "question": row["question"]["stem"],
        "question_stem": row["question"]["stem"],
        "choices": {key: [choice[key] for choice in choices] for key in ("text", "label")},
        "answerKey": row["answerKey"],
    }


def race(path):
    row = json.loads(path.read_text())
    problems = [
        {"question": q, "options": o, "answer": a}
        for q, o, a in zip(row["questions"], row["options"], row["answers"])
    ]
    return {"article": row["article"], "problems": repr(problems)}


def mmlu(split, subject):
    rows = csv.reader((DATA / f"mmlu/{split}/{subject}_{split}.csv").open(newline=""))
    return [
        {"question": r[0], "choices": r[1:5], "answer": "ABCD".index(r[5]), "subject": subject} for r in rows
    ]


def winogender():
    rows = []
    for line in (DATA / "winogender/all_sentences.tsv").read_text().splitlines()[1:]:
        number, sentence = line.split("\t")
        occupation, participant, label, gender, _ = number.split(".")
        words = {"male": "he his", "female": "she her", "neutral": "they their"}[gender].split()
        pronoun = next(word for word in sentence.rstrip(".").split() if word in words)
        rows.append(
            {
                "sentence": sentence,
                "pronoun": pronoun,
                "occupation": occupation,
                "participant": participant,
                "gender": gender,
                "label": int(label),
            }
        )
    return rows


def truthful():
    rows = json.loads((DATA / "truthfulqa/mc_task.json").read_text())
    lists = lambda answers: {"choices": list(answers), "labels": list(answers.values())}
    return [{key: value if key == "question" else lists(value) for key, value in row.items()} for row in rows]


def wikitext():
    pages, page = [], []
    for line in (DATA / "wikitext/wiki.test.raw").read_text().split("\n"):
        if line.startswith(" = ") and not line.startswith(" = = "):
            pages.append("\n".join(page))
            page = []
        page.append(line)
    pages.append("\n".join(page))
    return [{"page": page} for page in pages if page.strip()]


def trivia():
    data = json.loads((DATA / "triviaqa/unfiltered-web-dev.json").read_text())["Data"]
    return [{"question": row["Question"], "answer": {"aliases": row["Answer"]["Aliases"]}} for row in data]


def crows_pairs():
    # The first column has no name and holds the row's number, which lm_eval takes for the prompt "".
    rows = csv.DictReader((DATA / "crows_pairs/crows_pairs_anonymized.csv").open(newline=""))
    return [{name: value for name, value in row.items() if name} for row in rows]


def human_eval():
    with gzip.open(DATA / "humaneval/HumanEval.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


ANATOMY, POLICY = "anatomy", "us_foreign_policy"
# What lm_eval calls measures that have other names here.
MEASURES = {"pass@1,create_test": "pass@1,none", "pass_at_1,none": "pass@1,none"}
# Of each task here: the task of lm_eval, its examples, those from which shots are taken, and how many.
TASKS = [
    ("boolq", "boolq", [row | {"label": int(row["answer"])} for row in jsonl("boolq/dev.jsonl")], [], 0),
    (
        "boolq",
        "boolq",
        [row | {"label": int(row["answer"])} for row in jsonl("boolq/dev.jsonl")],
        [row | {"label": int(row["answer"])} for row in jsonl("boolq/train.jsonl")],
        2,
    ),
    ("piqa", "piqa", [row | {"label": int(row["label"])} for row in labelled("piqa/valid.jsonl")], [], 0),
    ("social_iqa", "social_iqa", labelled("social_iqa/dev.jsonl"), [], 0),
    (
        "hellaswag",
        "hellaswag",
        [row | {"label": str(row["label"])} for row in jsonl("hellaswag/hellaswag_val.jsonl")],
        [],
        0,
    ),
    ("winogrande", "winogrande", jsonl("winogrande/dev.jsonl"), [], 0),
    ("arc_easy", "arc_easy", [arc(row) for row in jsonl("arc_easy/ARC-Easy-Test.jsonl")], [], 0),
    (
        "arc_challenge",
        "arc_challenge",
        pyarrow.parquet.read_table(next((DATA / "arc_challenge").glob("*.parquet"))).to_pylist(),
        [],
        0,
    ),
    ("openbookqa", "openbookqa", [arc(row) for row in jsonl("openbookqa/test.jsonl")], [], 0),
    ("race_high", "race", [race(path) for path in sorted((DATA / "race/test/high").glob("*.txt"))], [], 0),
    ("mmlu", f"mmlu_{ANATOMY}", mmlu("test", ANATOMY), mmlu("dev", ANATOMY), 5),
    ("mmlu", f"mmlu_{POLICY}", mmlu("test", POLICY), mmlu("dev", POLICY), 5),
    (
        "crows_pairs",
        "crows_pairs_english",
        crows_pairs(),
        [],
        0,
    ),
    ("winogender", "winogender_all", winogender(), [], 0),
    ("truthfulqa_mc1", "truthfulqa_mc1", truthful(), [], 0),
    ("truthfulqa_mc2", "truthfulqa_mc2", truthful(), [], 0),
    ("wikitext", "wikitext", wikitext(), [], 0),
    ("nq_open", "nq_open", jsonl("nq_open/NQ-open.dev.jsonl"), [], 0),
    ("nq_open", "nq_open", jsonl("nq_open/NQ-open.dev.jsonl"), jsonl("nq_open/NQ-open.train.jsonl"), 5),
    ("triviaqa", "triviaqa", trivia(), [], 0),
    ("gsm8k", "gsm8k", jsonl("gsm8k/test.jsonl"), jsonl("gsm8k/train.jsonl"), 3),
    (
        "math",
        "hendrycks_math_algebra",
        [json.loads(path.read_text()) for path in sorted((DATA / "math/test").glob("*/*.json"))],
        [],
        0,
    ),
    ("humaneval", "humaneval", human_eval(), [], 0),
    (
        "mbpp",
        "mbpp",
        [row for row in jsonl("mbpp/mbpp.jsonl") if 11 <= row["task_id"] <= 510],
        [row | {"is_fewshot": True} for row in jsonl("mbpp/mbpp.jsonl") if 2 <= row["task_id"] <= 4],
        3,
    ),
]


def ours(task, shots):
    """Samples and results of a task by altiplano."""
    folder = WORK / f"ours_{task}_{shots}"
    command = [ALTIPLANO, "eval", "tasks", "--checkpoint", str(WORK / "model"), "--data", str(DATA)]
    command += ["--tasks", task, "--rules", "harness", "--shots", str(shots), "--output", str(folder), "--json"]
    command += ["--allow-code-execution"] if task in ("humaneval", "mbpp") else []
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    samples = [json.loads(line) for line in (folder / f"samples_{task}.jsonl").read_text().splitlines()]
    return json.loads(out.splitlines()[-1])["results"], samples


def theirs(model, n, name, examples, shots, count):
    """Samples and results of a task by lm_eval, from local files."""
    task = local_task(MANAGER, name, WORK / str(n), examples, shots, count)
    if task.OUTPUT_TYPE == "generate_until":
        # As much of the model's context as altiplano leaves for an answer.
        task.config.generation_kwargs["max_gen_toks"] = CONTEXT // 2
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[task],
        num_fewshot=count,
        log_samples=True,
        bootstrap_iters=0,
        batch_size=8,
        confirm_run_unsafe_code=True,
    )
    samples = sorted(next(iter(found["samples"].values())), key=lambda sample: (sample["doc_id"], sample["filter"]))
    return next(iter(found["results"].values())), samples


def compare(task, name, own, own_results, found, results):
    """Differences of all likelihoods, texts and scores; the largest difference of a likelihood."""
    if task == "mmlu":
        own = [sample for sample in own if f"{name}" in sample["groups"]]
    by_doc = {}
    for sample in found:
        by_doc.setdefault(sample["doc_id"], []).append(sample)
    assert len(own) == len(by_doc), (task, len(own), len(by_doc))
    largest = 0.0
    for ours, samples in zip(own, by_doc.values()):
        for sample in samples:
            for a, b in zip(ours["resps"], sample["resps"], strict=True):
                b = b[0]
                if isinstance(b, str):
                    assert a.strip() == b.strip(), (task, a, b)
                    continue
                a, b = (a, b) if isinstance(a, list) else ([a, None], [b, None])
                difference = abs(a[0] - float(b[0])) / max(1.0, abs(a[0]))
                largest = max(largest, difference)
                assert difference < 1e-5, (task, ours["arguments"], a, b)
                assert b[1] is None or a[1] == (str(b[1]) == "True"), (task, a, b)
            if task in ("humaneval", "mbpp"):
                # What stands behind the text: the tests.
                assert ours["target"].strip() == sample["target"].strip(), (task, ours["target"])
    part = own_results[name if task == "mmlu" else task]
    results = {MEASURES.get(key, key): value for key, value in results.items()}
    for key, value in results.items():
        if isinstance(value, float) and "stderr" not in key and key in part:
            assert abs(part[key] - value) <= 1e-5 * max(1.0, abs(value)), (task, key, part[key], value)
    shared = [key for key in part if key in results and "stderr" not in key and key != "alias"]
    assert shared, (task, part, results)
    return largest, {key: round(part[key], 6) for key in shared}


def main():
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    in_process = HFLM(pretrained=str(WORK / "hf"), dtype="float32", device="cpu", batch_size=8)
    over_http = LocalCompletionsAPI(
        model="model",
        base_url=f"{URL}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(WORK / "hf"),
        add_bos_token=True,
        num_concurrent=4,
        batch_size=4,
        max_length=in_process.max_length,
    )
    seconds = {"altiplano": 0.0, "transformers": 0.0}
    for n, (task, name, examples, shots, count) in enumerate(TASKS):
        if ONLY and task not in ONLY:
            continue
        start = time.time()
        own_results, own = ours(task, count)
        seconds["altiplano"] += time.time() - start
        for way, model in (("transformers", in_process), ("http", over_http)):
            start = time.time()
            results, found = theirs(model, n, name, examples, shots, count)
            seconds[way] = seconds.get(way, 0.0) + time.time() - start
            largest, scores = compare(task, name, own, own_results, found, results)
            print(f"{task:<16} {count} shots, {way:<12} largest difference {largest:.1e} {scores}", flush=True)
    print(json.dumps({"seconds": seconds}))
    print("every likelihood and every score agrees")


main()
