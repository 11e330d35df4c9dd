"""The Python part of scripts/bench_data: texts, datatrove's side, altiplano's side, the tables.

    bench_datatrove.py text OUT.jsonl FILE… [--bytes N]
    bench_datatrove.py datatrove c4|lines TEXT.jsonl KEPT.jsonl
    bench_datatrove.py altiplano c4|lines TEXT.jsonl KEPT.jsonl --binary PATH
    bench_datatrove.py steps TEXT.jsonl CONFIG… --binary PATH
    bench_datatrove.py table RESULTS.jsonl

`datatrove` and `altiplano` do the same work and print one JSON object:

- c4: the rules of C4 with datatrove's constants (C4QualityFilter; step `c4` with its preset);
- lines: of equal lines in the whole text one stays. Equal is equal in lower case without white
  space at the ends (SentenceDedup with single lines in place of spans of sentences; step
  `dedup_lines`). datatrove also takes runs of white space for one blank.

Times are of the processor, user and system, all threads. datatrove's begin when it is imported and
has cleaned one document, so that the start of Python and spaCy is left out; altiplano's are of the
whole process. Only `datatrove` needs datatrove.
"""

import argparse
import gzip
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Documents of datatrove's own pass before its clock starts.
WARM_UP = "A first sentence is here. A second one follows it. Then there is a third one.\n" * 4


def stop(message):
    sys.exit(f"bench_data: {message}")


# Text


def wet_records(file):
    """Address and text of the `conversion` records of a WET file."""
    while line := file.readline():
        if line.strip() != b"WARC/1.0":
            continue
        headers = {}
        while (line := file.readline().strip()):
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        block = file.read(int(headers.get(b"content-length", 0)))
        if headers.get(b"warc-type") == b"conversion":
            yield headers.get(b"warc-target-uri", b"").decode(), block.decode("utf-8", "replace")


def json_records(path, file):
    for number, line in enumerate(file, 1):
        try:
            record = json.loads(line)
            yield record.get("id") or f"{path.name}/{number}", record["text"]
        except (ValueError, KeyError, TypeError, AttributeError):
            stop(f"{path}, line {number}: no JSON object with text")


def texts(path):
    name = path.name.removesuffix(".gz")
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    with opened as file:
        if name.endswith((".wet", ".warc")):
            yield from wet_records(file)
        elif name.endswith((".jsonl", ".json")):
            yield from json_records(path, file)
        elif name.endswith(".txt"):
            yield path.name, file.read().decode("utf-8", "replace")
        else:
            stop(f"{path}: expected .jsonl, .json, .txt or .warc.wet, each also with .gz")


def text(options):
    """Gathers texts; ids are made unique, as both engines decide by them."""
    length, documents = 0, 0
    with options.out.open("w", encoding="utf-8") as out:
        for path in options.files:
            if not path.is_file():
                stop(f"{path}: no such file")
            for _, content in texts(path):
                if not content.strip() or length >= options.bytes:
                    continue
                record = {"id": f"{documents:08}", "text": content}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
                length += len(content.encode())
                documents += 1
    if not documents:
        stop("the files hold no text")
    print(json.dumps({"documents": documents, "bytes": length}))


def read(path):
    """Texts by id."""
    with path.open(encoding="utf-8") as file:
        records = map(json.loads, file)
        return {record["id"]: record["text"] for record in records}


def size(texts_by_id):
    return sum(len(text.encode()) for text in texts_by_id.values())


def processor_seconds(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


# datatrove


def datatrove(options):
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import SentenceDedupFilter, SentenceDedupSignature, SentenceFindDedups
    from datatrove.pipeline.dedup.sentence_dedup import SentDedupConfig
    from datatrove.pipeline.filters import C4QualityFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.text import TextNormConfig

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "in").mkdir()
        shutil.copyfile(options.text, folder / "in" / "text.jsonl")

        def run(number, *steps):
            LocalPipelineExecutor(
                pipeline=list(steps), tasks=1, workers=1, logging_dir=str(folder / f"log{number}")
            ).run()

        reader = lambda: JsonlReader(str(folder / "in"))
        writer = JsonlWriter(str(folder / "out"), compression=None)
        warm_up = C4QualityFilter()
        warm_up.filter(Document(text=WARM_UP, id="warm-up"))
        result = {}
        if options.work == "c4":
            documents = [Document(text=text, id=id) for id, text in read(options.text).items()]
            start = time.process_time()
            for document in documents:
                warm_up.filter(document)
            result["step_seconds"] = time.process_time() - start
            del documents
            start = processor_seconds(resource.RUSAGE_SELF)
            run(0, reader(), C4QualityFilter(), writer)
        else:
            config = SentDedupConfig(
                n_sentences=1, split_sentences=False, min_doc_words=0, min_num_sentences=0,
                norm_config=TextNormConfig(
                    remove_punctuation=False, norm_unicode_diacritics=False, norm_numbers=False
                ),
            )
            hashes, duplicates = str(folder / "hashes"), str(folder / "duplicates")
            start = processor_seconds(resource.RUSAGE_SELF)
            run(0, reader(), SentenceDedupSignature(hashes, config=config))
            run(1, SentenceFindDedups(hashes, duplicates, config=config))
            run(2, reader(), SentenceDedupFilter(duplicates, config=config), writer)
        result["cpu_seconds"] = processor_seconds(resource.RUSAGE_SELF) - start
        result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with options.kept.open("wb") as kept:
            for path in sorted((folder / "out").glob("*.jsonl")):
                kept.write(path.read_bytes())
    print(json.dumps(result))


# altiplano


def command(*arguments):
    """Runs a command; its output, processor seconds and, if it is the largest so far, memory."""
    before = processor_seconds(resource.RUSAGE_CHILDREN)
    done = subprocess.run([str(part) for part in arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.stderr.buffer.write(done.stderr[-4000:])
        stop(f"failed: {' '.join(map(str, arguments))}")
    return done.stdout, processor_seconds(resource.RUSAGE_CHILDREN) - before


def last_object(output):
    """The JSON object that ends the output, which may have lines for people before it."""
    output = output.decode()
    start = 0 if output.startswith("{") else output.index("\n{") + 1
    return json.loads(output[start:])


def bench_step(binary, step, step_options, inputs, folder):
    arguments = [binary, "bench", "data", step, *inputs, "--json"]
    if step_options:
        path = folder / "step.yaml"
        path.write_text(json.dumps(step_options))
        arguments += ["--config", path]
    return last_object(command(*arguments)[0])


def altiplano(options):
    steps = {
        "c4": {"c4": {"preset": "c4-datatrove"}},
        "lines": {"dedup_lines": {"min_sentences": 0}},
    }
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        config = {
            "output": str(folder / "out"),
            "sources": [{
                "name": "text",
                "text": {"paths": [str(options.text.resolve())], "format": "jsonl"},
                "steps": [steps[options.work]],
            }],
            # Both sides are read again below; neither may be empty.
            "holdout": {"fraction": 0.2},
        }
        # JSON is YAML.
        path = folder / "config.yaml"
        path.write_text(json.dumps(config))
        result = {}
        if options.work == "c4":
            bench = bench_step(options.binary, "c4", steps["c4"]["c4"], [options.text], folder)
            result["step_seconds"] = bench["cpu_seconds"] / bench["repetitions"]
        _, result["cpu_seconds"] = command(
            options.binary, "data", "run", path, "--threads", 1, "--sample-dropped", 0, "--json"
        )
        result["peak_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        kept, _ = command(
            options.binary, "data", "cat", folder / "out" / "documents", "--format", "jsonl"
        )
        options.kept.write_bytes(kept)
    print(json.dumps(result))


def steps(options):
    """Speed of every step: those of the configurations on their own sources, others on the text."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        alone = [
            ("c4", {"preset": "c4-tfds"}),
            ("c4", {"preset": "c4-datatrove"}),
            ("ccnet_normalize", None),
            ("ccnet_hash", None),
            ("language", None),
        ]
        print("| step | of | MB in | documents in | documents out | CPU s | MB/s per core |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for step, step_options in alone:
            bench = bench_step(options.binary, step, step_options, [options.text], folder)
            name = step if step_options is None else f"{step}, {', '.join(step_options.values())}"
            print_step(name, "the text", bench["bytes"], bench["documents"], bench["documents_kept"],
                       bench["cpu_seconds"] / bench["repetitions"])
        for number, config in enumerate(options.configs):
            output, _ = command(
                options.binary, "data", "run", config, f"output={folder / str(number)}",
                "--threads", 1, "--json",
            )
            report = last_object(output)
            for row in report["waterfall"]["rows"]:
                for step in row["steps"]:
                    stats = step["stats"]
                    print_step(step["step"], f"{config.stem}: {row['source']}", stats["bytes_in"],
                               stats["docs_in"], stats["docs_out"], stats["cpu_seconds"])


def print_step(step, source, bytes_in, documents_in, documents_out, seconds):
    speed = bytes_in / 1e6 / seconds if seconds > 0 else float("inf")
    print(f"| {step} | {source} | {bytes_in / 1e6:.2f} | {documents_in} | {documents_out} | "
          f"{seconds:.3f} | {speed:.1f} |")


# Tables


def table(options):
    results = {}
    with options.results.open() as file:
        for line in file:
            result = json.loads(line)
            results.setdefault((result["work"], result["engine"]), []).append(result)
    source = read(options.text)
    length = size(source)
    print(f"{len(source)} documents, {length / 1e6:.1f} MB of text\n")
    print("| work | engine | documents kept | MB kept | CPU s | MB/s per core | altiplano ÷ datatrove |")
    print("|---|---|---:|---:|---:|---:|---:|")
    names = {
        ("c4", "step_seconds"): "rules of C4, documents in memory",
        ("c4", "cpu_seconds"): "rules of C4, JSON lines to files",
        ("lines", "cpu_seconds"): "equal lines, JSON lines to files",
    }
    kept = {key: read(Path(runs[-1]["kept"])) for key, runs in results.items()}
    for (work, measure), name in names.items():
        seconds = {}
        for engine in ("altiplano", "datatrove"):
            runs = results.get((work, engine))
            if runs:
                seconds[engine] = statistics.median(run["result"][measure] for run in runs)
        for engine, time_of_it in seconds.items():
            texts_kept = kept[work, engine]
            ratio = ""
            if engine == "altiplano" and "datatrove" in seconds:
                ratio = f"{seconds['datatrove'] / time_of_it:.1f}"
            print(f"| {name} | {engine} | {len(texts_kept)} | {size(texts_kept) / 1e6:.2f} | {time_of_it:.3f} | "
                  f"{length / 1e6 / time_of_it:.1f} | {ratio} |")
    print()
    if ("c4", "altiplano") in kept and ("c4", "datatrove") in kept:
        compare_documents(kept["c4", "altiplano"], kept["c4", "datatrove"])
    if ("lines", "altiplano") in kept and ("lines", "datatrove") in kept:
        compare_lines(source, kept["lines", "altiplano"], kept["lines", "datatrove"])


def compare_documents(ours, theirs):
    both = ours.keys() & theirs.keys()
    equal = sum(ours[id] == theirs[id] for id in both)
    print(f"Rules of C4: {len(both)} documents kept by both, {equal} of them with the same text; "
          f"{len(ours) - len(both)} by altiplano alone, {len(theirs) - len(both)} by datatrove alone.")


def compare_lines(source, ours, theirs):
    """Each engine by what it takes for equal."""
    engines = {
        "altiplano": (ours, lambda text: (line.strip().lower() for line in text.split("\n"))),
        "datatrove": (theirs, lambda text: (" ".join(line.lower().split()) for line in text.splitlines())),
    }
    for engine, (texts_by_id, lines_of) in engines.items():
        wanted = {line for text in source.values() for line in lines_of(text) if line}
        found = [line for text in texts_by_id.values() for line in lines_of(text) if line]
        print(f"Equal lines: {len(wanted)} different ones by {engine}, which keeps {len(found)} lines; "
              f"{len(wanted - set(found))} of the different ones are lost.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    gather = commands.add_parser("text")
    gather.add_argument("out", type=Path)
    gather.add_argument("files", type=Path, nargs="+")
    gather.add_argument("--bytes", type=int, default=sys.maxsize)
    for engine in ("datatrove", "altiplano"):
        measured = commands.add_parser(engine)
        measured.add_argument("work", choices=["c4", "lines"])
        measured.add_argument("text", type=Path)
        measured.add_argument("kept", type=Path)
        if engine == "altiplano":
            measured.add_argument("--binary", required=True)
    every = commands.add_parser("steps")
    every.add_argument("text", type=Path)
    every.add_argument("configs", type=Path, nargs="*")
    every.add_argument("--binary", required=True)
    shown = commands.add_parser("table")
    shown.add_argument("text", type=Path)
    shown.add_argument("results", type=Path)
    options = parser.parse_args()
    functions = {"text": text, "datatrove": datatrove, "altiplano": altiplano, "steps": steps, "table": table}
    functions[options.command](options)


if __name__ == "__main__":
    main()
