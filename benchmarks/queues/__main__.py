"""Grape beside task queues and streams, each set up as its documentation advises for who must not lose an event.

  make bench-peers                                       installs the peers, runs everything, writes results-peers.json
  python -m benchmarks.queues --only huey,dbos           Grape and these, once they are installed
  python -m benchmarks.queues --rounds 1 --scale 0.1     a quick look

Rows: keyed (a count of 1,000 keys, durable, by two workers: events a second, from the first that is sent until all are
counted) and latency (one event at a time, from sending it until its result is in the caller's hands). In each round
every peer runs once, and Grape beside them; figures are medians, and only ratios mean something: the machine's noise
is larger than most differences. What each was set to stands at the top of its file in benchmarks/queues, and in
docs/performance.md. Peers:

  {peers}
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.about import interpreter

ROOT: Final = Path(__file__).parent.parent.parent
RESULTS: Final = ROOT / "benchmarks" / "results-peers.json"
PEERS: Final = ROOT / ".cache" / "peers"
LIMIT_SECONDS: Final = 600.0


class Size(msgspec.Struct, frozen=True):
    """How many events make some seconds."""

    keyed: int
    latency: int


GRAPE: Final = "grape"
SIZES: Final = {
    GRAPE: Size(4_000_000, 500),
    "dramatiq": Size(10_000, 500),
    "dramatiq-everysec": Size(15_000, 500),
    "celery": Size(1_000, 300),
    "celery-everysec": Size(2_000, 500),
    "faststream": Size(6_000, 500),
    "huey": Size(1_000, 200),
    "pathway": Size(500_000, 500),
    "dbos": Size(200, 50),
}


class Found(msgspec.Struct):
    """What the rounds of one of them have given."""

    rates: list[float] = msgspec.field(default_factory=list)
    p50_ms: list[float] = msgspec.field(default_factory=list)
    p99_ms: list[float] = msgspec.field(default_factory=list)
    why_not: str = ""


class FailedError(Exception):
    """A run came to nothing."""


def run(base: Path, who: str, row: str, size: int) -> dict[str, float]:
    """One run in processes of its own, none of which is left when it is over, however it ends."""
    directory = Path(tempfile.mkdtemp(dir=base))
    if who == GRAPE:
        module = [sys.executable, "-m", "benchmarks.rows", "keyed-1k" if row == "keyed" else row]
    else:
        module = [str(PEERS / "bin" / "python"), "-m", "benchmarks.queues.run", who, row]
    command = [*module, str(size), str(directory / "run")]
    with (directory / "errors").open("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=LIMIT_SECONDS)
            if process.returncode != 0:
                errors.seek(0)
                raise FailedError(f"{row} failed: {(errors.read().splitlines() or ['it said nothing'])[-1]}")
            found: dict[str, float] = json.loads(out.splitlines()[-1])
            return found
        except subprocess.TimeoutExpired:
            raise FailedError(f"{row} took more than {LIMIT_SECONDS:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(directory, ignore_errors=True)


def missing(who: str) -> str:
    """Why it cannot run here; empty if it can."""
    peer = who.partition("-")[0]
    why = PEERS / "missing" / peer
    if why.exists():
        return why.read_text().strip()
    return "" if peer == GRAPE or (PEERS / "has" / peer).exists() else "not installed: make bench-peers does that"


def measure(base: Path, wanted: list[str], rounds: int, scale: float) -> dict[str, Found]:
    found = {who: Found(why_not=missing(who)) for who in wanted}
    for number in range(rounds):
        for who, its in found.items():
            if its.why_not:
                continue
            print(f"\r\033[Kround {number + 1} of {rounds}: {who}", end="", file=sys.stderr, flush=True)
            try:
                keyed = run(base, who, "keyed", max(100, int(SIZES[who].keyed * scale)))
                latency = run(base, who, "latency", max(20, int(SIZES[who].latency * scale)))
            except FailedError as e:
                its.why_not = str(e)
                continue
            its.rates.append(keyed["events"] / keyed["seconds"])
            its.p50_ms.append(latency["p50_ms"])
            its.p99_ms.append(latency["p99_ms"])
    print("\r\033[K", end="", file=sys.stderr)
    return found


def report(found: dict[str, Found]) -> dict[str, Any]:
    """Print the table; the same as data."""
    rows: dict[str, Any] = {}
    ours = found[GRAPE]
    print(f"{'':18s} {'keyed /s':>12s} {'grape is':>10s}   {'p50 ms':>8s} {'p99 ms':>8s} {'grape takes':>11s}")
    for who, its in found.items():
        if its.why_not:
            print(f"{who:18s} not here: {its.why_not}")
            rows[who] = {"not_here": its.why_not}
            continue
        rate, p50, p99 = (statistics.median(values) for values in (its.rates, its.p50_ms, its.p99_ms))
        line = f"{who:18s} {rate:12,.0f} "
        rows[who] = {"rate": rate, "p50_ms": p50, "p99_ms": p99, "all": msgspec.to_builtins(its)}
        if who == GRAPE or ours.why_not:
            print(f"{line}{'':10s}   {p50:8.2f} {p99:8.2f}")
            continue
        faster = statistics.median(ours.rates) / rate
        longer = statistics.median(ours.p50_ms) / p50
        rows[who] |= {"rate_ratio": faster, "p50_ratio": longer}
        print(f"{line}{faster:8,.1f} x   {p50:8.2f} {p99:8.2f} {longer:9.2f} x")
    return rows


def versions() -> dict[str, str]:
    lines = (Path(__file__).parent / "packages").read_text().splitlines()
    found = dict(line.split(maxsplit=1) for line in lines if not line.startswith("#"))
    with contextlib.suppress(OSError):
        found["redis-server"] = subprocess.run(
            ["redis-server", "--version"], check=False, capture_output=True, text=True
        ).stdout.strip()
    return found


def main() -> None:
    about = (__doc__ or "").format(peers=", ".join(list(SIZES)[1:]))
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes; results are written for 1.0 only")
    parser.add_argument("--only", default="", help="peers, with commas; results are written for all only")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(SIZES)
    if strange := set(wanted) - SIZES.keys():
        parser.error(f"no such peers: {', '.join(sorted(strange))}; there are {', '.join(SIZES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    base = Path(tempfile.mkdtemp(prefix="grape-bench-", dir=ROOT))
    print(interpreter(), flush=True)
    try:
        found = measure(base, list(dict.fromkeys([GRAPE, *wanted])), options.rounds, options.scale)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    rows = report(found)
    if options.scale == 1.0 and not options.only:
        machine = platform.processor() or platform.machine()
        about_run = {"rounds": options.rounds, "machine": machine, "interpreter": interpreter()}
        RESULTS.write_text(json.dumps({**about_run, "versions": versions(), "rows": rows}, indent=1) + "\n")
    failed = [who for who, its in found.items() if its.why_not and not missing(who)]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
