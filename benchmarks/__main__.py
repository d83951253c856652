"""Run every row beside its limits and peers, interleaved, several rounds; print ratios; write ``results.json``.

python -m benchmarks [--rounds 3] [--scale 1.0] [--only keyed-1k,latency,...]

Rows of work done a second: keyed-1k, keyed-1m, chain-functions, chain-nodes, wordcount. Others: latency (one event from
``emit`` to ``outputs``), latency-eager, latency-beside (a pool that is saturated), memory (1 GB of text with 10 M
distinct words), tenfold (ten times the events), keyed-20m (twenty million keys, some minutes). Of pools and
their confinement: start, isolates (events/s at each level), death (until the engine knows), neighbours (p99 of a pool
while another one misbehaves). Of languages: languages (keyed count with two workers of each, and Storm's way),
language-start.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import isolation
from benchmarks.about import interpreter

ROOT = Path(__file__).parent
RESULTS = ROOT / "results.json"

BYTEWAX = ("bytewax", "bytewax2")
RECOVERING = ("bytewax-recovery", "bytewax2-recovery")
LIMITS = ("plain", "plain2")

# row -> (size, the peers' name of it, who else runs, (what to beat, floor, aim))
ROWS: dict[str, tuple[int, str, tuple[str, ...], tuple[str, float, float]]] = {
    "keyed-1k": (4_000_000, "keyed-1k", (*BYTEWAX, *RECOVERING, *LIMITS, "lmdb"), ("recovery", 3.5, 4.2)),
    "keyed-1m": (2_000_000, "keyed-1m", (*BYTEWAX, *RECOVERING, *LIMITS, "lmdb"), ("recovery", 8.0, 12.0)),
    "chain-functions": (4_000_000, "chain", (*BYTEWAX, *LIMITS), ("memory", 0.72, 0.85)),
    "chain-nodes": (2_000_000, "chain", (*BYTEWAX, *LIMITS), ("memory", 0.42, 0.55)),
    "wordcount": (50, "wordcount", (*BYTEWAX, *RECOVERING, *LIMITS), ("memory", 3.5, 4.5)),
}


class Bench:
    """Where it runs, and how often."""

    def __init__(self, base: Path, rounds: int, scale: float) -> None:
        self.base = base
        self.rounds = rounds
        self.scale = scale

    def measure(self, module: str, name: str, size: int) -> dict[str, float]:
        """One run in a process of its own; what it prints."""
        return self.script(module, name, str(size))

    def script(self, module: str, *words: str) -> dict[str, float]:
        """``python -m module words directory``; what it prints."""
        directory = Path(tempfile.mkdtemp(dir=self.base))
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *words, str(directory)],
                cwd=ROOT.parent,
                check=True,
                capture_output=True,
                text=True,
            )
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return found
        except subprocess.CalledProcessError as e:
            raise SystemExit(f"{' '.join(words)} failed:\n{e.stderr[-3000:]}") from None
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def isolation(self, name: str, what: str) -> dict[str, float]:
        """One run of `benchmarks.isolation`, by an interpreter that workers of every level can run."""
        directory = Path(tempfile.mkdtemp(dir=self.base))
        directory.chmod(0o755)
        try:
            done = subprocess.run(
                [isolation.python(), "-m", "benchmarks.isolation", name, what, str(directory)],
                cwd=ROOT.parent,
                env=isolation.environment(),
                check=False,
                capture_output=True,
                text=True,
            )
            if done.returncode != 0:
                raise SystemExit(f"{name} {what} failed:\n{done.stderr[-3000:]}")
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            return found
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def rate(self, module: str, name: str, size: int) -> float:
        """Events a second."""
        found = self.measure(module, name, size)
        return found["events"] / found["seconds"]


def throughput(row: str) -> Callable[[Bench], dict[str, Any]]:
    size, name, peers, (kind, floor, aim) = ROWS[row]

    def run(bench: Bench) -> dict[str, Any]:
        count = int(size * bench.scale)
        figures: dict[str, list[float]] = {}
        for _ in range(bench.rounds):
            figures.setdefault("grape", []).append(bench.rate("benchmarks.rows", row, count))
            for peer in peers:
                figures.setdefault(peer, []).append(bench.rate("benchmarks.peers", f"{peer}:{name}", count))
        medians = {who: statistics.median(values) for who, values in figures.items()}
        rivals = {
            who: m for who, m in medians.items() if "bytewax" in who and ("recovery" in who) == (kind == "recovery")
        }
        best = max(rivals, key=lambda who: rivals[who])
        print(f"\n{row}: size {count:,}")
        for who, median in medians.items():
            print(f"  {who:18s} {median:12,.0f} /s   grape = {medians['grape'] / median:6.2f} x")
        ratio = medians["grape"] / rivals[best]
        verdict(f"{ratio:.2f} x {best}", ratio >= floor, ratio >= aim, f"floor {floor}, aim {aim}")
        limit = max(medians[who] for who in LIMITS)
        print(f"  -> {medians['grape'] / limit:.2f} x the limit: plain Python, nothing durable", flush=True)
        of_limit = medians["grape"] / limit
        return {"size": count, "median": medians, "all": figures, "against": best, "ratio": ratio, "limit": of_limit}

    return run


# row -> (commits of LMDB that one event needs at least, floor and aim of the ratio to them)
LATENCIES: dict[str, tuple[int, float, float]] = {"latency": (2, 2.0, 1.6), "latency-eager": (1, 1.5, 1.5)}


def latency(row: str) -> Callable[[Bench], dict[str, Any]]:
    """One event at a time: accepted, processed, visible in ``outputs``."""
    commits, floor, aim = LATENCIES[row]

    def run(bench: Bench) -> dict[str, Any]:
        count = max(100, int(500 * bench.scale))
        ours, limit = [], []
        for _ in range(bench.rounds):
            ours.append(bench.measure("benchmarks.rows", row, count))
            limit.append(bench.measure("benchmarks.peers", f"lmdb:{commits}", count))
        p50 = statistics.median(found["p50_ms"] for found in ours)
        p99 = statistics.median(found["p99_ms"] for found in ours)
        alone = statistics.median(found["p50_ms"] for found in limit)
        print(f"\n{row}: {count} events, one after the other")
        print(f"  grape              p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        print(f"  LMDB, {commits} commit(s)  p50 {alone:.2f} ms   grape = {p50 / alone:.2f} x")
        ratio = p50 / alone
        verdict(f"p50 {ratio:.2f} x", ratio <= floor, ratio <= aim, f"floor {floor}, aim {aim}")
        return {"p50_ms": p50, "p99_ms": p99, "lmdb_commits": commits, "lmdb_p50_ms": alone, "ratio": ratio}

    return run


def latency_beside(bench: Bench) -> dict[str, Any]:
    """As `latency`, while another pool always has something to do."""
    count = max(100, int(500 * bench.scale))
    found = [bench.measure("benchmarks.rows", "latency-beside", count) for _ in range(bench.rounds)]
    p50, p99 = (statistics.median(one[what] for one in found) for what in ("p50_ms", "p99_ms"))
    print(f"\nlatency-beside: {count} events, one after the other, beside a pool of two workers that is saturated")
    print(f"  grape              p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    verdict(f"p99 {p99:.1f} ms", p99 <= 10, p99 <= 5, "floor 10 ms, aim 5 ms")
    return {"p50_ms": p50, "p99_ms": p99}


def keyed_20m(bench: Bench) -> dict[str, Any]:
    """Each of 20 M keys is updated once, then once more: how much slower than with 1 M keys."""
    rates = {}
    for row, keys in (("keyed-1m", 1_000_000), ("keyed-20m", 20_000_000)):
        rates[row] = bench.rate("benchmarks.rows", row, 2 * int(keys * bench.scale))
    ratio = rates["keyed-20m"] / rates["keyed-1m"]
    print(f"\nkeyed-20m: {rates['keyed-20m']:,.0f} /s, with 1 M keys {rates['keyed-1m']:,.0f} /s")
    verdict(f"{ratio:.2f} x the row of 1 M keys", ratio >= 0.5, ratio >= 0.7, "floor 0.5, aim 0.7")
    return {"rates": rates, "ratio": ratio}


def memory(bench: Bench) -> dict[str, Any]:
    """Private memory of each process; once, as it takes minutes."""
    found = bench.measure("benchmarks.rows", "memory", int(1000 * bench.scale))
    peaks = {who: mb for who, mb in found.items() if who.startswith("mb:")}
    print(f"\nmemory: {found['events']:,.0f} words, {found['keys']:,.0f} distinct, {found['seconds']:.0f} s")
    for who, mb in peaks.items():
        print(f"  {who[3:]:18s} {mb:7.0f} MB")
    most = max(peaks.values())
    verdict(f"{most:.0f} MB", most <= 250, most <= 180, "floor 250 MB, aim 180 MB")
    return found


def tenfold(bench: Bench) -> dict[str, Any]:
    """Ten times the events take ten times as long."""
    small, large = int(1_000_000 * bench.scale), int(10_000_000 * bench.scale)
    rates: dict[int, list[float]] = {small: [], large: []}
    for _ in range(bench.rounds):
        for size, values in rates.items():
            values.append(bench.rate("benchmarks.rows", "keyed-1k", size))
    medians = {size: statistics.median(values) for size, values in rates.items()}
    took = (large / medians[large]) / (small / medians[small])
    print("\ntenfold: keyed-1k")
    for size, median in medians.items():
        print(f"  {size:12,} events {median:12,.0f} /s")
    print(f"  -> ten times the events take {took:.1f} times as long", flush=True)
    return {"rates": medians, "times": took}


def start(bench: Bench) -> dict[str, Any]:
    """From an event for an empty pool until its worker is ready."""
    took = levels(bench, "start", lambda found: 1e3 * found["seconds"])
    print("\nstart: a worker")
    for level, ms in took.items():
        print(f"  {level:18s} {ms:7.0f} ms   {ms / took['process']:5.2f} x process", flush=True)
    return {"ms": took}


def isolates(bench: Bench) -> dict[str, Any]:
    """The keyed count at each level."""
    rates = levels(bench, "rate", lambda found: found["events"] / found["seconds"])
    print("\nisolates: keyed-1k")
    for level, rate in rates.items():
        print(f"  {level:18s} {rate:12,.0f} /s   {rate / rates['process']:5.2f} x process")
    worst = min(rates[level] / rates["process"] for level in ("cgroup", "sandbox"))
    verdict(f"{worst:.2f} x process", worst >= 0.95, worst >= 0.95, "0.95 for cgroup and sandbox")
    return {"rates": rates}


def levels(bench: Bench, name: str, figure: Callable[[dict[str, float]], float]) -> dict[str, float]:
    """The median figure of each level; interleaved, by an interpreter that all of them can run."""
    figures: dict[str, list[float]] = {level: [] for level in isolation.LEVELS}
    for _ in range(bench.rounds):
        for level, values in figures.items():
            values.append(figure(bench.isolation(name, level)))
    return {level: statistics.median(values) for level, values in figures.items()}


def death(bench: Bench) -> dict[str, Any]:
    """From SIGKILL until the engine knows of it."""
    found = bench.isolation("death", "-")
    print(f"\ndeath: noticed after {found['p50_ms']:.1f} ms (median), {found['max_ms']:.1f} ms (longest)")
    verdict(f"{found['max_ms']:.1f} ms", found["max_ms"] <= 100, found["max_ms"] <= 100, "100 ms")
    return found


def neighbours(bench: Bench) -> dict[str, Any]:
    """The latency of one pool while another one misbehaves."""
    figures: dict[str, list[float]] = {what: [] for what in isolation.MISBEHAVIOURS}
    for _ in range(bench.rounds):
        for what, values in figures.items():
            values.append(bench.isolation("neighbours", what)["p99_ms"])
    p99 = {what: statistics.median(values) for what, values in figures.items()}
    print("\nneighbours: p99 of another pool")
    for what, ms in p99.items():
        print(f"  {what:18s} {ms:7.2f} ms   {ms / p99['nothing']:5.2f} x alone")
    worst = max(p99, key=lambda what: p99[what])
    ratio = p99[worst] / p99["nothing"]
    verdict(f"{ratio:.2f} x ({worst})", ratio <= 2, ratio <= 2, "at most 2 x")
    return {"p99_ms": p99}


FLOORS: dict[str, float] = {"node": 1.0, "cpp": 1.2, "perl": 0.3, "lines": 0.1}


def languages(bench: Bench) -> dict[str, Any]:
    """The keyed count in each language, beside Storm's way (which keeps nothing)."""
    names = ("python", *FLOORS, "storm")
    figures: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(bench.rounds):
        for name, values in figures.items():
            found = bench.script("benchmarks.languages", "rate", name)
            values.append(found["events"] / found["seconds"])
    rates = {name: statistics.median(values) for name, values in figures.items()}
    print("\nlanguages: keyed-1k, two workers")
    for name, rate in rates.items():
        goal = f"   (at least {FLOORS[name]:g})" if name in FLOORS else ""
        print(f"  {name:18s} {rate:12,.0f} /s   {rate / rates['python']:5.2f} x Python{goal}")
    missed = [name for name, floor in FLOORS.items() if rates[name] / rates["python"] < floor]
    verdict(f"missed: {', '.join(missed) or 'none'}", not missed, not missed, "each its floor")
    return {"rates": rates, "all": figures}


def language_start(bench: Bench) -> dict[str, Any]:
    """From an event for an empty pool until its worker is ready."""
    figures: dict[str, list[float]] = {name: [] for name in ("python", *FLOORS)}
    for _ in range(bench.rounds):
        for name, values in figures.items():
            values.append(1e3 * bench.script("benchmarks.languages", "start", name)["seconds"])
    ms = {name: statistics.median(values) for name, values in figures.items()}
    print("\nlanguage-start: a worker")
    for name, took in ms.items():
        print(f"  {name:18s} {took:7.0f} ms   {took / ms['python']:5.2f} x Python", flush=True)
    return {"ms": ms}


def verdict(what: str, floor: bool, aim: bool, goals: str) -> None:
    print(
        f"  -> {what} ({goals}): {'aim reached' if aim else 'floor reached' if floor else 'BELOW THE FLOOR'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes; results.json is written for 1.0 only")
    parser.add_argument("--only", default="", help="rows, with commas")
    options = parser.parse_args()
    rows: dict[str, Callable[[Bench], dict[str, Any]]] = {row: throughput(row) for row in ROWS}
    rows |= {row: latency(row) for row in LATENCIES}
    rows |= {"latency-beside": latency_beside, "memory": memory, "tenfold": tenfold, "keyed-20m": keyed_20m}
    rows |= {"languages": languages, "language-start": language_start}
    rows |= {"start": start, "isolates": isolates, "death": death, "neighbours": neighbours}
    wanted = options.only.split(",") if options.only else list(rows)
    if strange := set(wanted) - rows.keys():
        parser.error(f"no such rows: {', '.join(sorted(strange))}; there are {', '.join(rows)}")
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    base = Path(tempfile.mkdtemp(prefix="grape-bench-", dir=ROOT.parent))
    print(interpreter(), flush=True)
    try:
        for row in wanted:
            found = rows[row](Bench(base, options.rounds, options.scale))
            about = {"machine": platform.processor() or platform.machine(), "interpreter": interpreter()}
            results[row] = {"rounds": options.rounds, **about, **found}
            if options.scale == 1.0:
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
