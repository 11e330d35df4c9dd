"""A soak of `altiplano serve`: see scripts/soak_serve.

    python3 scripts/soak_serve.py ALTIPLANO CHECKPOINT MINUTES
"""

import collections
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

SEQUENCES, QUEUED = 8, 8
# Ten times what is let in.
CLIENTS = 10 * (SEQUENCES + QUEUED)
PROMPTS = ["The people", "Call me", "The whale", "In the beginning", "Congress shall", "It is a truth"]
TEMPERATURES = [0, 0.8]
# Seconds without a byte after which the server counts as hung, long enough for a machine that is busy otherwise.
PATIENCE = 600
# Memory that may be there after the first quarter more than before: a tenth, and this many bytes.
MEMORY_SLACK = 64 << 20


def body(case, stream):
    prompt, temperature = case
    return dict(
        prompt=prompt, temperature=temperature, seed=11, max_tokens=24, logprobs=1, stream=stream, stop=[" of"]
    )


class Server:
    def __init__(self, altiplano, checkpoint):
        command = [altiplano, "serve", "--checkpoint", checkpoint, "--port", "0", "--kv-cache-memory", "64MB"]
        command += ["--max-num-seqs", str(SEQUENCES), "--max-num-queued-reqs", str(QUEUED)]
        environment = {**os.environ, "RUST_LOG": "warn"}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.port, self.log = None, collections.deque(maxlen=50)
        for line in self.process.stderr:
            self.log.append(line)
            if line.startswith("serving "):
                self.port = int(line.rstrip().rstrip("/").rsplit(":", 1)[1])
                break
        assert self.port, "".join(self.log)
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()

    def ask(self, method, path, request=None):
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, None if request is None else json.dumps(request))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def go_away(self, request, after):
        """Sends a request, reads some bytes and closes."""
        text = json.dumps(request)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: soak\r\nContent-Length: {len(text)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall((head + text).encode())
            if after:
                connection.recv(after)

    def metric(self, name):
        _, text = self.ask("GET", "/metrics")
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))

    def wait_until_idle(self):
        for _ in range(600):
            running = self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting")
            if running == 0 and json.loads(self.ask("GET", "/load")[1])["server_load"] == 0:
                return
            time.sleep(0.1)
        raise AssertionError("requests are still open a minute after the last client")


def whole(server, case):
    """The text and the probabilities of an answer, or the status of another."""
    status, text = server.ask("POST", "/v1/completions", body(case, False))
    if status != 200:
        return status
    choice = json.loads(text)["choices"][0]
    return choice["text"], choice["logprobs"]["token_logprobs"]


def streamed(server, case):
    status, text = server.ask("POST", "/v1/completions", body(case, True))
    if status != 200:
        return status
    events = [line[len("data: ") :] for line in text.splitlines() if line.startswith("data: ")]
    assert events.pop() == "[DONE]", text
    choices = [json.loads(event)["choices"][0] for event in events]
    scores = [score for choice in choices for score in choice["logprobs"]["token_logprobs"]]
    return "".join(choice["text"] for choice in choices), scores


def client(server, expected, number, end, counts, faults):
    draw = random.Random(number)
    while time.monotonic() < end and not faults:
        case = draw.choice(list(expected))
        try:
            kind = draw.choice(["whole", "stream", "gone", "gone", "wrong"])
            if kind == "gone":
                server.go_away(body(case, draw.random() < 0.5), draw.choice([0, 1, 200, 2000]))
            elif kind == "wrong":
                status, _ = server.ask("POST", "/v1/completions", {"prompt": case[0], "top_p": 7})
                assert status in (400, 429), status
            else:
                found = whole(server, case) if kind == "whole" else streamed(server, case)
                if found == 429:
                    kind = "turned away"
                    time.sleep(draw.random() / 5)
                else:
                    assert found == expected[case], f"{case}: {found}, expected {expected[case]}"
            counts[kind] += 1
        except Exception as error:  # Whatever it is, it is a fault of the server.
            faults.append(f"{type(error).__name__}: {error}")


def main():
    altiplano, checkpoint, minutes = sys.argv[1:]
    server = Server(altiplano, checkpoint)
    try:
        soak(server, 60 * float(minutes))
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(60)
        assert status == 0, f"the server ended with status {status}"
    except BaseException:
        print("".join(server.log), file=sys.stderr)
        raise
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
    print("no wrong answer, no leak")


def soak(server, seconds):
    cases = [(prompt, temperature) for prompt in PROMPTS for temperature in TEMPERATURES]
    expected = {case: whole(server, case) for case in cases}
    descriptors = server.descriptors()
    begun = time.monotonic()
    counts, faults = collections.Counter(), []
    threads = [
        threading.Thread(target=client, args=(server, expected, number, begun + seconds, counts, faults))
        for number in range(CLIENTS)
    ]
    [thread.start() for thread in threads]
    settled = None
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(10, seconds / 8))
        if settled is None and time.monotonic() - begun > seconds / 4:
            settled = server.memory()
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        print(f"{time.monotonic() - begun:6.0f} s: {said}; {server.memory() >> 20} MiB", flush=True)
        assert server.process.poll() is None, "the server has ended"
    assert not faults, faults[:5]
    assert counts["turned away"] > 0, "the server was never full"
    server.wait_until_idle()
    usage = server.metric("vllm:kv_cache_usage_perc")
    assert usage == 0, f"{usage:.3f} of the blocks are still held"
    for _ in range(100):
        if server.descriptors() <= descriptors:
            break
        time.sleep(0.1)
    assert server.descriptors() <= descriptors, f"{server.descriptors()} descriptors, {descriptors} before"
    most = settled + settled // 10 + MEMORY_SLACK
    assert server.memory() <= most, f"{server.memory()} bytes of memory, {settled} after a quarter of the time"
    after = {case: whole(server, case) for case in cases}
    assert after == expected, "answers are other ones than before"


main()
