#!/usr/bin/env python3
"""Raw files from a server on this machine, by ranges, against the same files from its disk.

    scripts/bench_storage.py [--megabytes 400] [--rounds 3] [--binary target/release/altiplano]

Makes gzipped JSON lines of so many megabytes, reads them by turns as text without steps (`data run`) from the
disk and from a server by HTTP, and prints the megabytes of compressed input a second and the processor seconds
of altiplano, the fewest of all rounds each. The server is a process of its own and is not counted, but shares
the cores.
"""

import argparse
import functools
import gzip
import http.server
import multiprocessing
import os
import random
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

FILES = 8


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files with ranges, by sendfile."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = Path(self.translate_path(self.path))
        size = path.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)
        self.send_response(206 if found else 200)
        self.send_header("ETag", f'"{size}"')
        self.send_header("Content-Length", str(end - start))
        if found:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        self.wfile.flush()
        if body:
            with path.open("rb") as file:
                while start < end:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)


def serve(folder, port):
    handler = functools.partial(Ranges, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port.value = server.server_port
    server.serve_forever()


def make(folder, megabytes):
    """FILES gzipped files of JSON lines, `megabytes` together."""
    source = random.Random(1)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 10))) for _ in range(5000)]
    lines = (f'{{"id": "{n}", "text": "{" ".join(source.choices(words, k=400))}"}}\n' for n in range(4000))
    block = gzip.compress("".join(lines).encode(), 6)
    blocks = max(1, megabytes * 1000000 // FILES // len(block))
    for number in range(FILES):
        with open(folder / f"{number}.jsonl.gz", "wb") as file:
            for _ in range(blocks):
                file.write(block)
    return blocks * FILES * len(block) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--binary", default="target/release/altiplano")
    options = parser.parse_args()
    binary = Path(options.binary).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        raw = scratch / "raw"
        raw.mkdir()
        megabytes = make(raw, options.megabytes)
        port = multiprocessing.Value("i", 0)
        server = multiprocessing.Process(target=serve, args=(str(raw), port), daemon=True)
        server.start()
        while port.value == 0:
            time.sleep(0.01)
        places = {"disk": str(raw), "http": f"http://127.0.0.1:{port.value}"}
        best = {name: (float("inf"), float("inf")) for name in places}
        for number in range(options.rounds):
            for name, place in places.items():
                paths = ", ".join(f'"{place}/{file}.jsonl.gz"' for file in range(FILES))
                config = scratch / "data.yaml"
                config.write_text(
                    f"output: {name}{number}\nsources: [{{name: text, duplicate_ids: drop,"
                    f" text: {{paths: [{paths}], format: jsonl}}}}]\n"
                )
                before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                subprocess.run([binary, "data", "run", config], check=True, capture_output=True)
                wall = time.perf_counter() - start
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
                best[name] = (min(best[name][0], wall), min(best[name][1], used))
        server.terminate()
    print(f"{'':6} {'MB/s':>8} {'CPU s':>8}   of {megabytes:.0f} MB compressed")
    for name, (wall, used) in best.items():
        print(f"{name:6} {megabytes / wall:8.0f} {used:8.2f}")
    print(f"processor seconds from the server: {best['http'][1] / best['disk'][1]:.2f} of those from the disk")


if __name__ == "__main__":
    main()
