"""The tools that scripts/bench_data measures altiplano against, besides datatrove.

    bench_peers.py works
    bench_peers.py packages WORK
    bench_peers.py prepare TEXT.jsonl FOLDER
    bench_peers.py measure WORK ENGINE FOLDER --binary PATH
    bench_peers.py table RESULTS.jsonl

`measure` does one work with one engine on one core and prints one JSON object. What it makes goes to
FOLDER/WORK-ENGINE. Works:

- documents: of equal documents one stays; JSON lines to Parquet with zstd at level 3;
- training: 8000 BPE pieces of the text;
- encoding: the text to ids of SentencePiece's model of those pieces;
- wet: the records of a WET file to documents.

Times are of the processor, user and system, all threads; a peer's begin when it is imported,
altiplano's are of the whole process.
"""

import argparse
import gzip
import importlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PIECES = 8000
COVERAGE = 0.9999
# Longest line that SentencePiece trains on; altiplano cuts longer ones.
SENTENCE_BYTES = 4096


def stop(message):
    sys.exit(f"bench_data: {message}")


def seconds():
    """Processor seconds of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def since(start):
    """Processor seconds since `start`, and the most memory that was held."""
    return seconds() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def records(path):
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def prepare(options):
    """What the works read: the text with a fifth of its documents twice, its lines, a WET file."""
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "text.jsonl").open("w", encoding="utf-8") as twice, \
            (folder / "lines.txt").open("w", encoding="utf-8") as lines, \
            gzip.open(folder / "text.warc.wet.gz", "wb", 6) as wet:
        wet.write(wet_record("warcinfo", "", b"software: bench\r\n"))
        for number, record in enumerate(records(options.text)):
            text = record["text"]
            for copy in range(2 if number % 5 == 0 else 1):
                copied = {"id": f"{number}-{copy}", "text": text}
                twice.write(json.dumps(copied, ensure_ascii=False) + "\n")
            wet.write(wet_record("conversion", f"http://example.org/{number}", text.encode()))
            for line in text.replace("\r", "").split("\n"):
                if line and len(line.encode()) <= SENTENCE_BYTES and "\u2585" not in line:
                    lines.write(line + "\n")


def wet_record(kind, address, block):
    headers = ["WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {address}" if address else "",
               "WARC-Date: 2019-02-15T18:33:19Z", "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>",
               "Content-Type: text/plain", f"Content-Length: {len(block)}"]
    return ("\r\n".join(filter(None, headers)) + "\r\n\r\n").encode() + block + b"\r\n\r\n"


# altiplano


def command(*arguments, stdin=None, stdout=subprocess.DEVNULL):
    """Runs a command; its processor seconds and peak memory."""
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen([str(part) for part in arguments], stdin=stdin, stdout=stdout, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            sys.stderr.buffer.write(said.read()[-4000:])
            stop(f"failed: {' '.join(map(str, arguments))}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def configuration(out, source):
    config = {"output": str(out), "sources": [{"name": "text", **source}],
              "tokenizer": {"vocab_size": PIECES, "character_coverage": COVERAGE, "input_bytes": 2**31 - 1}}
    path = out.with_suffix(".yaml")
    # JSON is YAML.
    path.write_text(json.dumps(config))
    return path


def documents_altiplano(options, out):
    paths = [str((options.folder / "text.jsonl").resolve())]
    config = configuration(out, {"text": {"paths": paths, "format": "jsonl"},
                                 "steps": [{"dedup_documents": {"key": "text"}}]})
    return command(options.binary, "data", "run", config, "--threads", 1, "--sample-dropped", 0)


def training_altiplano(options, out):
    paths = [str((options.folder / "lines.txt").resolve())]
    config = configuration(out, {"text": {"paths": paths}})
    command(options.binary, "data", "run", config, "--threads", 1)
    return command(options.binary, "tokenizer", "train", config)


def encoding_altiplano(options, out):
    with (options.folder / "lines.txt").open("rb") as lines, out.open("wb") as ids:
        return command(options.binary, "tokenizer", "encode", "--model", model(options), stdin=lines, stdout=ids)


def wet_altiplano(options, out):
    paths = [str((options.folder / "text.warc.wet.gz").resolve())]
    config = configuration(out, {"web_archive": {"paths": paths}})
    return command(options.binary, "data", "run", config, "--threads", 1, "--sample-dropped", 0)


# Peers. Each imports its package first, then starts its clock.


def documents_polars(options, out):
    import polars

    start = seconds()
    rows = polars.scan_ndjson(options.folder / "text.jsonl")
    rows = rows.unique(subset=["text"], keep="first", maintain_order=True)
    rows.sink_parquet(out, compression="zstd", compression_level=3)
    return since(start)


def documents_duckdb(options, out):
    import duckdb

    start = seconds()
    database = duckdb.connect()
    database.execute("SET threads = 1")
    database.execute(
        f"COPY (SELECT DISTINCT ON (text) * FROM read_json('{options.folder / 'text.jsonl'}', "
        "format = 'newline_delimited', maximum_object_size = 268435456)) "
        f"TO '{out}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3)"
    )
    return since(start)


def train_sentencepiece(options):
    import sentencepiece

    with (options.folder / "lines.txt").open(encoding="utf-8", newline="\n") as file:
        lines = [line.rstrip("\n") for line in file]
    trained = io.BytesIO()
    start = seconds()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=trained, model_type="bpe", vocab_size=PIECES,
        character_coverage=COVERAGE, split_digits=True, byte_fallback=True,
        normalization_rule_name="identity", add_dummy_prefix=True, remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1,
        max_sentence_length=SENTENCE_BYTES, minloglevel=2,
    )
    return since(start), trained.getvalue()


def training_sentencepiece(options, out):
    taken, trained = train_sentencepiece(options)
    out.write_bytes(trained)
    return taken


def model(options):
    path = options.folder / "bench.model"
    if not path.exists():
        path.write_bytes(train_sentencepiece(options)[1])
    return path


def encoding_sentencepiece(options, out):
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model(options)))
    text = (options.folder / "lines.txt").read_text(encoding="utf-8")
    start = seconds()
    with out.open("w") as ids:
        # The same ids in parts: a line feed stands alone.
        for line in text.split("\n"):
            ids.write(" ".join(map(str, processor.encode(line))) + "\n")
    return since(start)


def wet_fastwarc(options, out):
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    start = seconds()
    with (options.folder / "text.warc.wet.gz").open("rb") as archive, out.open("w", encoding="utf-8") as lines:
        for record in ArchiveIterator(archive, record_types=WarcRecordType.conversion):
            text = record.reader.read().decode("utf-8", "replace")
            row = {"id": record.record_id, "url": record.headers["WARC-Target-URI"], "text": text}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return since(start)


# Engine: function, and the package a peer needs with the module by which it is known to be there.
WORKS = {
    "documents": {
        "altiplano": (documents_altiplano, None, None),
        "polars": (documents_polars, "polars", "polars"),
        "duckdb": (documents_duckdb, "duckdb", "duckdb"),
    },
    "training": {
        "altiplano": (training_altiplano, None, None),
        "sentencepiece": (training_sentencepiece, "sentencepiece>=0.2.3", "sentencepiece"),
    },
    "encoding": {
        "altiplano": (encoding_altiplano, "sentencepiece>=0.2.3", "sentencepiece"),
        "sentencepiece": (encoding_sentencepiece, "sentencepiece>=0.2.3", "sentencepiece"),
    },
    "wet": {
        "altiplano": (wet_altiplano, None, None),
        "fastwarc": (wet_fastwarc, "fastwarc", "fastwarc"),
    },
}


def packages(options):
    """A line for each engine: its name, package and module."""
    for engine, (_, package, module) in WORKS[options.work].items():
        print(engine, package or "-", module or "-")


def measure(options):
    function, _, module = WORKS[options.work][options.engine]
    if module is not None:
        importlib.import_module(module)
    out = options.folder / f"{options.work}-{options.engine}"
    taken, peak = function(options, out)
    length = sum(len(record["text"].encode()) for record in records(options.folder / "text.jsonl"))
    if options.work != "documents":
        length = (options.folder / "lines.txt").stat().st_size
    print(json.dumps({
        "work": options.work, "engine": options.engine, "cpu_seconds": taken, "bytes": length,
        "peak_bytes": peak,
    }))


def table(options):
    results = {}
    for result in records(options.results):
        results.setdefault((result["work"], result["engine"]), []).append(result)
    print("| work | engine | MB | CPU s | MB/s per core | peak MB | peer's time ÷ altiplano's |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for work, engines in WORKS.items():
        own = results.get((work, "altiplano"))
        for engine in engines:
            runs = results.get((work, engine))
            if not runs:
                continue
            taken = statistics.median(run["cpu_seconds"] for run in runs)
            length = runs[0]["bytes"] / 1e6
            ratio = ""
            if own and engine != "altiplano":
                ratio = f"{taken / statistics.median(run['cpu_seconds'] for run in own):.2f}"
            peak = max(run["peak_bytes"] for run in runs) / 1e6
            print(f"| {work} | {engine} | {length:.1f} | {taken:.2f} | {length / taken:.1f} | {peak:.0f} | {ratio} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("works")
    commands.add_parser("packages").add_argument("work", choices=WORKS)
    prepared = commands.add_parser("prepare")
    prepared.add_argument("text", type=Path)
    prepared.add_argument("folder", type=Path)
    measured = commands.add_parser("measure")
    measured.add_argument("work", choices=WORKS)
    measured.add_argument("engine")
    measured.add_argument("folder", type=Path)
    measured.add_argument("--binary", required=True)
    commands.add_parser("table").add_argument("results", type=Path)
    options = parser.parse_args()
    if options.command == "works":
        print(*WORKS)
    else:
        {"packages": packages, "prepare": prepare, "measure": measure, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
