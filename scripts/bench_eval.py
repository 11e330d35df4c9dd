"""What scripts/bench_eval measures: seconds of the processor for the same questions by `altiplano eval tasks` and by
lm_eval with transformers.

    bench_eval.py ALTIPLANO WORK ROUNDS THREADS MODEL...

WORK/MODEL is a checkpoint, WORK/MODEL-hf its export.
"""

import csv
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import lm_eval
import lm_eval.tasks
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval_tasks import local_task

ALTIPLANO, WORK = sys.argv[1], Path(sys.argv[2])
ROUNDS, THREADS, MODELS = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:]
DATA = WORK / "data"
MANAGER = lm_eval.tasks.TaskManager()
RANDOM = random.Random(1)
TEXT = " ".join(path.read_text() for path in sorted(Path("tests/fixtures/plain/speeches").glob("17*.txt"))).split()


def words(fewest, most):
    """A stretch of text."""
    count = RANDOM.randint(fewest, most)
    start = RANDOM.randrange(len(TEXT) - count)
    return " ".join(TEXT[start : start + count]).replace("[", "").replace("]", "")


def write(name, rows):
    path = DATA / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def boolq(count):
    rows = [
        {"passage": words(80, 160), "question": words(6, 12), "answer": bool(n % 2)} for n in range(count)
    ]
    write("boolq/dev.jsonl", rows)
    return [row | {"label": int(row["answer"])} for row in rows], [], 0


def piqa(count):
    rows = [
        {"goal": words(6, 14), "sol1": words(12, 24), "sol2": words(12, 24), "label": n % 2} for n in range(count)
    ]
    write("piqa/valid.jsonl", rows)
    return rows, [], 0


def hellaswag(count):
    rows = [
        {
            "ind": n,
            "activity_label": words(2, 3),
            "ctx_a": words(25, 45),
            "ctx_b": "they",
            "endings": [words(15, 30) for _ in range(4)],
            "label": n % 4,
        }
        for n in range(count)
    ]
    write("hellaswag/hellaswag_val.jsonl", rows)
    return [row | {"label": str(row["label"])} for row in rows], [], 0


def arc_easy(count):
    rows = []
    for n in range(count):
        choices = [{"text": words(1, 6), "label": letter} for letter in "ABCD"]
        question = {"stem": words(12, 30), "choices": choices}
        rows.append({"id": f"made_{n}", "question": question, "answerKey": "ABCD"[n % 4]})
    write("arc_easy/ARC-Easy-Test.jsonl", rows)
    keys = lambda choices: {key: [choice[key] for choice in choices] for key in ("text", "label")}
    theirs = [
        {
            "question": row["question"]["stem"],
            "choices": keys(row["question"]["choices"]),
            "answerKey": row["answerKey"],
        }
        for row in rows
    ]
    return theirs, [], 0


def mmlu(count):
    splits = []
    for split, rows in (("test", count), ("dev", 5)):
        rows = [[words(15, 35), *(words(2, 8) for _ in range(4)), "ABCD"[n % 4]] for n in range(rows)]
        path = DATA / f"mmlu/{split}/anatomy_{split}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        splits.append(
            [
                {"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5]), "subject": "anatomy"}
                for row in rows
            ]
        )
    return *splits, 5


# Of each task: the task of lm_eval, what makes its questions, and how many.
TASKS = {
    "boolq": ("boolq", boolq, 32),
    "piqa": ("piqa", piqa, 64),
    "hellaswag": ("hellaswag", hellaswag, 64),
    "arc_easy": ("arc_easy", arc_easy, 96),
    "mmlu": ("mmlu_anatomy", mmlu, 48),
}


def ours(model, task, shots):
    """Likelihoods and seconds of the processor by altiplano."""
    folder = WORK / f"out_{time.monotonic_ns()}"
    command = [ALTIPLANO, "eval", "tasks", "--checkpoint", str(WORK / model), "--data", str(DATA), "--tasks", task]
    command += ["--rules", "harness", "--shots", str(shots), "--output", str(folder), "--threads", str(THREADS)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = (folder / f"samples_{task}.jsonl").read_text().splitlines()
    found = [pair[0] for line in lines for pair in json.loads(line)["resps"]]
    return found, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def theirs(model, name, examples, shots, count):
    """The same by lm_eval."""
    task = local_task(MANAGER, name, WORK / name, examples, shots, count)
    start = time.process_time()
    found = lm_eval.simple_evaluate(
        model=model, tasks=[task], num_fewshot=count, log_samples=True, bootstrap_iters=0, batch_size=16
    )
    seconds = time.process_time() - start
    samples = sorted(next(iter(found["samples"].values())), key=lambda sample: sample["doc_id"])
    return [float(pair[0][0]) for sample in samples for pair in sample["resps"]], seconds


def main():
    torch.set_num_threads(THREADS)
    made = {task: make(count) for task, (_, make, count) in TASKS.items()}
    print("| model | task | examples | altiplano, s | lm_eval, s | ratio |")
    print("|---|---|---:|---:|---:|---:|")
    for name in MODELS:
        model = HFLM(pretrained=str(WORK / f"{name}-hf"), dtype="float32", device="cpu", batch_size=16)
        sums = [0.0, 0.0]
        for task, (their_task, _, count) in TASKS.items():
            examples, shots, shot_count = made[task]
            seconds = [[], []]
            for _ in range(ROUNDS):
                own, own_seconds = ours(name, task, shot_count)
                found, their_seconds = theirs(model, their_task, examples, shots, shot_count)
                for a, b in zip(own, found, strict=True):
                    assert abs(a - b) <= 1e-5 * max(1.0, abs(a)), (task, a, b)
                seconds[0].append(own_seconds)
                seconds[1].append(their_seconds)
            mine, other = (statistics.median(list) for list in seconds)
            sums = [sums[0] + mine, sums[1] + other]
            print(f"| {name} | {task} | {count} | {mine:.2f} | {other:.2f} | {other / mine:.1f} |", flush=True)
        print(f"| {name} | all | | {sums[0]:.2f} | {sums[1]:.2f} | {sums[1] / sums[0]:.1f} |", flush=True)


main()
