"""Kill the engine and its workers with SIGKILL at random moments, restart, and count at the end.

    python -m tests.crash.run [--megabytes 20] [--kills 50] [--seed N] [--app wordcount|cycle|both]

Every count must equal the straight Python count, and every output must stand in its file exactly once.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.crash import cycle

ROOT = Path(__file__).parents[2]
GRAPE = Path(sys.executable).parent / "grape"


def make_text(path: Path, size: int, rng: random.Random) -> None:
    """Lines of words, Zipf-like; every line is unique, so that outputs can be told apart."""
    words = [f"w{i}" for i in range(20_000)]
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(len(words))))
    with path.open("w") as f:
        written = number = 0
        while written < size:
            for _ in range(1000):
                line = f"n{number} " + " ".join(rng.choices(words, cum_weights=weights, k=11)) + "\n"
                written += f.write(line)
                number += 1


def run_killing(command: list[str], kills: int, rng: random.Random, log: Path, expected_seconds: float) -> int:
    """Run ``command`` again and again until it ends by itself; returns how often something was killed."""
    done = 0
    while True:
        with log.open("ab") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
        if done < kills:
            # early kills find start-up and recovery, late ones find the middle of the work
            delay = rng.uniform(0.05, max(0.5, 2.5 * expected_seconds / max(kills, 1)))
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                engine = rng.random() < 0.6
                victims = [] if engine else psutil.Process(process.pid).children(recursive=True)
                if victims:
                    with_kill(rng.choice(victims).pid)
                    done += 1
                    if rng.random() < 0.5:
                        continue_until(process, rng.uniform(0.05, 1.0))
                with_kill(process.pid)
                process.wait()
                done += not victims
                print(f"\r{done}/{kills} kills", end="", flush=True)
                continue
        code = process.wait(timeout=1800)
        if code == 0:
            print()
            if done < kills:
                print(f"the work was done after {done} kills", flush=True)
            return done
        if code != -signal.SIGKILL:
            raise SystemExit(f"the run ended with {code}:\n{log.read_text()[-4000:]}")


def continue_until(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def with_kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def state_of(data: Path, node: str, name: str) -> dict[str, int]:
    listed = subprocess.run(
        [GRAPE, "state", "list", "--data", data, "--node", node], check=True, capture_output=True, text=True
    ).stdout
    rows = [json.loads(line) for line in listed.splitlines()]
    return {row["key"]: row["state"][name] for row in rows}


def no_doubt(what: str, got: dict[str, int], want: dict[str, int]) -> None:
    wrong = {k: (got.get(k), want.get(k)) for k in got.keys() | want.keys() if got.get(k) != want.get(k)}
    if wrong:
        raise SystemExit(f"{what}: {len(wrong)} of {len(want)} differ (got, want): {dict(list(wrong.items())[:10])}")
    print(f"{what}: all {len(want)} equal, sum {sum(want.values())}")


def check_wordcount(text: Path, work: Path, kills: int, rng: random.Random) -> int:
    data, out = work / "data", work / "total.jsonl"
    command = [str(GRAPE), "run", "examples/01-wordcount/wordcount.py", "--feed", f"line={text}", "--data", str(data)]
    command += ["--take", f"total={out}", "--workers", "2"]
    killed = run_killing(command, kills, rng, work / "log", text.stat().st_size / 2e6)
    want = dict(collections.Counter(text.read_text().split()))
    no_doubt("wordcount, state", state_of(data, "Count", "seen"), want)
    last: dict[str, int] = {}
    ids = set()
    lines = 0
    with out.open() as f:
        for line in f:
            row = json.loads(line)
            lines += 1
            ids.add(row["id"])
            word, count = row["data"]["word"], row["data"]["count"]
            if last.get(word, 0) + 1 != count:
                raise SystemExit(f"wordcount, outputs: {word} went from {last.get(word, 0)} to {count}")
            last[word] = count
    if len(ids) != lines:
        raise SystemExit(f"wordcount, outputs: {lines} lines, {len(ids)} ids")
    no_doubt("wordcount, outputs", last, want)
    return killed


def check_cycle(text: Path, work: Path, kills: int, rng: random.Random) -> int:
    data, out = work / "data", work / "done.jsonl"
    command = [str(GRAPE), "run", "tests/crash/cycle.py", "--feed", f"line={text}", "--data", str(data)]
    command += ["--take", f"done={out}", "--workers", "2"]
    killed = run_killing(command, kills, rng, work / "log", text.stat().st_size / 1e6)
    visits: collections.Counter[str] = collections.Counter()
    lines = text.read_text().splitlines()
    for line in lines:
        key = cycle.start_of(line)
        for hop in range(cycle.HOPS + 1):
            visits[f"k{key}"] += 1
            if hop < cycle.HOPS:
                key = cycle.step(key, line)
    no_doubt("cycle, state", state_of(data, "Walk", "visits"), dict(visits))
    with out.open() as f:
        got = collections.Counter(json.loads(line)["data"] for line in f)
    no_doubt("cycle, outputs", dict(got), dict(collections.Counter(lines)))
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--app", choices=["wordcount", "cycle", "both"], default="both")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    work = Path(tempfile.mkdtemp(prefix="grape-crash-", dir=ROOT))
    try:
        text = work / "text"
        make_text(text, int(options.megabytes * 1e6), rng)
        killed = 0
        for name, check in (("wordcount", check_wordcount), ("cycle", check_cycle)):
            if options.app in (name, "both"):
                (work / name).mkdir()
                share = options.kills if options.app == name else -(-options.kills // 2)
                killed += check(text, work / name, share, rng)
    finally:
        if not os.environ.get("GRAPE_KEEP"):
            shutil.rmtree(work, ignore_errors=True)
    print(f"{killed} kills survived")


if __name__ == "__main__":
    main()
