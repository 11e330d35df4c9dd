"""Measures servers under load on the same models: see scripts/bench_serve.

    python3 scripts/bench_serve.py FOLDER MODELS TYPES CLIENTS PROMPTS NEW
"""

import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import bench_vs_llama_cpp as models

SHAPES = {"58m": dict(dim=512, layers=8, heads=8, kv_heads=8, hidden=1408), **models.MODELS}
# Requests of a client: the first warms up nothing, because the server was asked before.
REQUESTS = 2
SHARED_PREFIX = 512


def say(text):
    print(f"bench_serve: {text}", file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server on a free port of this machine, until the end of the block."""

    def __init__(self, name, command):
        self.name, self.port = name, free_port()
        self.command = [part.replace("PORT", str(self.port)) for part in command]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            try:
                if self.ask("GET", "/v1/models")[0] == 200:
                    return self
            except OSError:
                pass
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended with status {self.process.returncode}: {self.command}")
            time.sleep(0.2)
        raise SystemExit(f"{self.name} is not ready after two minutes")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def times(self, prompt, new):
        """When each part of a streamed answer came, in seconds after it was asked for."""
        body = dict(prompt=prompt, max_tokens=new, temperature=0, stream=True, logit_bias={"2": -100})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        begun, times = time.monotonic(), []
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise SystemExit(f"{self.name}: {answer.status}: {answer.read().decode()[:300]}")
            for line in answer:
                if line.startswith(b"data: {"):
                    times.append(time.monotonic() - begun)
        finally:
            connection.close()
        return times


def commands(file):
    threads = os.environ["THREADS"]
    ours = [os.environ["ALTIPLANO"], "serve", "--checkpoint", str(file), "--port", "PORT", "--threads", threads]
    yield "altiplano", ours
    if os.environ["LLAMA_SERVER"]:
        options = ["-m", str(file), "--host", "127.0.0.1", "--port", "PORT", "-t", threads, "-tb", threads]
        # A slot for each client, with room for a prompt and its answer.
        options += ["-np", "32", "-c", str(32 * 1024)]
        yield "llama.cpp", [os.environ["LLAMA_SERVER"], *options]


def words(seed, tokens):
    """A text of about so many tokens: the tokenizer has a piece for every letter and no word of these."""
    draw = random.Random(seed)
    return "".join(draw.choice("bcdfghjklmnpqrstvwxz") for _ in range(tokens - 2))


def load(server, clients, prompt, new):
    """The times of all answers, and the seconds they took together."""
    answers, lock = [], threading.Lock()

    def client(number):
        for request in range(REQUESTS):
            found = server.times(words(f"{number} {request} {clients} {prompt}", prompt), new)
            with lock:
                answers.append(found)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    begun = time.monotonic()
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    if len(answers) < clients * REQUESTS:
        raise SystemExit(f"{server.name} did not answer every client")
    return answers, time.monotonic() - begun


def figures(values):
    """Mean, median and 99th percentile in milliseconds."""
    values = sorted(values) or [0.0]
    last = values[min(len(values) - 1, int(len(values) * 0.99))]
    return " / ".join(f"{1000 * value:.0f}" for value in (statistics.mean(values), statistics.median(values), last))


def prefix(server):
    """Seconds to the first token of prompts with nothing in common, and of such that share a prefix."""
    shared = words("shared", SHARED_PREFIX)
    server.times(shared, 1)
    first = lambda text: server.times(text, 1)[0]
    apart = [first(words(f"apart {n}", SHARED_PREFIX)) for n in range(3)]
    together = [first(shared + words(f"end {n}", 10)) for n in range(3)]
    return statistics.median(apart), statistics.median(together)


def main():
    work, names, types, clients, prompts, new = sys.argv[1:]
    rows, prefixes = [], []
    for name in names.split():
        folder = Path(work) / name
        say(f"{name}: random weights")
        random.seed(1)
        models.write_model(folder, SHAPES[name])
        for kind in types.split():
            file = Path(work) / f"{name}-{kind}.gguf"
            export = ["export", "--checkpoint", folder, "--format", "gguf", "--type", kind, "--output", file]
            models.output(os.environ["ALTIPLANO"], *export)
            for server_name, command in commands(file):
                with Server(server_name, command) as server:
                    server.times(words("warm", 16), 2)
                    apart, together = prefix(server)
                    prefixes.append(
                        f"| {name} | {kind} | {server_name} | {1000 * apart:.0f} | {1000 * together:.0f} "
                        f"| {apart / together:.1f} |"
                    )
                    for prompt in map(int, prompts.split()):
                        for count in map(int, clients.split()):
                            say(f"{name} {kind} {server_name}: {count} clients, prompts of {prompt}")
                            answers, seconds = load(server, count, prompt, int(new))
                            tokens = sum(map(len, answers)) / seconds
                            between = [b - a for times in answers for a, b in zip(times, times[1:])]
                            first = figures([times[0] for times in answers])
                            rows.append(
                                f"| {name} | {kind} | {prompt} | {count} | {server_name} | {tokens:.1f} "
                                f"| {first} | {figures(between)} |"
                            )
            file.unlink()
    times = "mean / median / p99, ms"
    print(f"| model | type | prompt | clients | server | tokens/s | first token ({times}) | between tokens ({times}) |")
    print("|---|---|---:|---:|---|---:|---:|---:|")
    print("\n".join(rows))
    print(f"\n| model | type | server | {SHARED_PREFIX} tokens, ms | shared, ms | times |\n|---|---|---|---:|---:|---:|")
    print("\n".join(prefixes))


main()
