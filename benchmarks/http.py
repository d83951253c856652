"""A server over HTTP, beside its limits: one event a request, calls, and batches.

    python -m benchmarks.http [--seconds 10] [--rounds 2]

wrk is the client. *events*: 64 connections, one event a request, durable; beside uvicorn and Starlette that just read
the body. *calls*: answered after five hops, each durable or all chained; alone, and 64 at a time. Each without keys,
and (*keyed*) with 997 of them, where each event goes to its key's partition. *batches*: lines of JSON in bodies of
20,000, beside `grape run` with the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.about import interpreter

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
RESULTS = ROOT / "benchmarks" / "results-http.json"
CODE = """
from grape import Node, State, Topology

class Hop(Node):
    def __init__(self, kind, number):
        self.kind, self.number = kind, number

    def process(self, event):
        if self.number < 5:
            self.emit(f"{self.kind}{self.number + 1}", event.data)
        else:
            self.reply(event.data)

def drop(data):
    pass

def topology(config):
    t = Topology("bench")
    t.add_slot("one", drop, name="drop")
    for i in range(1, 6):
        for kind, chain in (("hop", False), ("step", True)):
            then = f"{kind}{i + 1}" if i < 5 else ()
            t.add_slot(f"{kind}{i}", Hop(kind, i), name=f"{kind}-{i}", emits=then, chain=chain)
    return t
"""
LINES = 400_000
CALLS = ("call", "calls", "chained call", "chained calls")
ROWS = ("events", "keyed events", "echo", *CALLS, *(f"keyed {row}" for row in CALLS), "batches", "own")


@contextmanager
def grape_server(base: Path) -> Iterator[str]:
    app = base / "bench"
    app.mkdir()
    (app / "app.py").write_text(CODE)
    (app / "grape.toml").write_text('name = "bench"\napp = "app.py"\nworkers = 2\n')
    log = base / "said"
    with open(log, "wb") as said:
        server = subprocess.Popen([BIN / "grape", "serve", base / "home", "--listen", "127.0.0.1:0"], stderr=said)
    try:
        while not (found := re.search(r"listening at (\S+)\n", log.read_text())):
            time.sleep(0.05)
        subprocess.run(
            [BIN / "grape", "app", "deploy", app, "--home", base / "home"], check=True, stdout=subprocess.DEVNULL
        )
        yield found[1]
    finally:
        server.terminate()
        server.wait(60)


@contextmanager
def echo_server() -> Iterator[str]:
    command = [BIN / "uvicorn", "benchmarks.echo:app", "--port", "18999", "--no-access-log", "--log-level", "warning"]
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        while True:
            try:
                httpx.get("http://127.0.0.1:18999/")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield "http://127.0.0.1:18999"
    finally:
        server.terminate()
        server.wait(60)


def wrk(url: str, path: str, connections: int, seconds: int, base: Path, *, keyed: bool = False) -> dict[str, float]:
    """Requests a second, and latencies in ms."""
    target = f'"{path}key=k" .. (n % 997)' if keyed else f'"{path}"'
    script = base / "post.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\nlocal n = 0\n'
        "request = function()\n  n = n + 1\n"
        f'  return wrk.format(nil, {target}, nil, \'{{"n": \' .. n .. "}}")\nend\n'
        "done = function(summary, latency)\n"
        '  print(string.format("FOUND %d %d %d %f %f", summary.requests, summary.duration, '
        "summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout, "
        "latency:percentile(50), latency:percentile(99)))\nend\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    requests, duration, errors, p50, p99 = map(float, done.stdout.rpartition("FOUND ")[2].split())
    if errors:
        raise SystemExit(f"{errors:.0f} of {requests:.0f} requests failed: {done.stdout}")
    return {"rate": requests / duration * 1e6, "p50_ms": p50 / 1e3, "p99_ms": p99 / 1e3}


def batches(url: str, lines: Path) -> float:
    """Events a second."""
    body: list[bytes] = []
    began = time.perf_counter()
    with httpx.Client(base_url=url, timeout=120) as client, open(lines, "rb") as file:

        def send() -> None:
            answer = client.post(
                "/apps/bench/events/one?key-field=k",
                content=b"".join(body),
                headers={"content-type": "application/x-ndjson"},
            )
            answer.raise_for_status()
            body.clear()

        for line in file:
            body.append(line)
            if len(body) == 20_000:
                send()
        if body:
            send()
    return LINES / (time.perf_counter() - began)


def own_ingest(base: Path, lines: Path) -> float:
    """Events a second of `grape run` with the same file, as far as they are taken in and dropped."""
    data = tempfile.mkdtemp(dir=base)
    command = [BIN / "grape", "run", str(base / "bench" / "app.py"), "--feed", f"one={lines},jsonl,key=k"]
    command += ["--data", data, "--workers", "2", "--summary", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return LINES / float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    found: dict[str, list[Any]] = {name: [] for name in ROWS}
    base = Path(tempfile.mkdtemp(prefix="grape-bench-", dir=ROOT))
    try:
        lines = base / "lines.jsonl"
        with open(lines, "w") as file:
            for i in range(LINES):
                file.write(f'{{"k": "k{i % 1000}", "n": {i}, "text": "{"x" * 60}"}}\n')
        one, call, chained = (f"/apps/bench/events/{what}" for what in ("one?", "hop1?wait=30&", "step1?wait=30&"))
        for _ in range(options.rounds):
            with echo_server() as url:
                found["echo"].append(wrk(url, one, 64, options.seconds, base))
            shutil.rmtree(base / "bench", ignore_errors=True)
            shutil.rmtree(base / "home", ignore_errors=True)
            with grape_server(base) as url:
                for keyed in (False, True):
                    begin = "keyed " if keyed else ""
                    found[f"{begin}events"].append(wrk(url, one, 64, options.seconds, base, keyed=keyed))
                    for name, path in (("", call), ("chained ", chained)):
                        for row, at_once in (("call", 1), ("calls", 64)):
                            measured = wrk(url, path, at_once, options.seconds, base, keyed=keyed)
                            found[f"{begin}{name}{row}"].append(measured)
                found["batches"].append(batches(url, lines))
            found["own"].append(own_ingest(base, lines))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    shown = {name: _median(values) for name, values in found.items()}
    echo = shown["echo"]["rate"]
    print(f"{interpreter()}, {os.cpu_count()} cores")
    for begin in ("", "keyed "):
        print("with keys" if begin else "without keys")
        events = shown[f"{begin}events"]["rate"]
        ratio = f"{events / echo:.2f} x echo ({echo:,.0f}/s); floor 0.6 x"
        print(f"  one event a request, 64 connections: {events:,.0f}/s, {ratio}")
        for name, what in (("", "each hop durable"), ("chained ", "chained, as they are unless it is said otherwise")):
            calls, alone = shown[f"{begin}{name}calls"], shown[f"{begin}{name}call"]["p50_ms"]
            print(f"  a call through five hops, {what}, alone: p50 {alone:.2f} ms (floor 2 ms)")
            times = f"p50 {calls['p50_ms']:.1f}, p99 {calls['p99_ms']:.1f} ms"
            print(f"    64 at a time: {calls['rate']:,.0f}/s, {times} (3,000, 60)")
    ratio = shown["batches"] / shown["own"]
    print(f"lines in batches: {shown['batches']:,.0f}/s, {ratio:.2f} x grape run ({shown['own']:,.0f}/s); floor 0.5 x")
    RESULTS.write_text(
        json.dumps({"interpreter": interpreter(), "rounds": options.rounds, "median": shown, "all": found}, indent=1)
        + "\n"
    )


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: statistics.median(value[name] for value in values) for name in values[0]}
    return statistics.median(values)


if __name__ == "__main__":
    main()
