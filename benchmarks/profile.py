"""Where the time of a row goes: ``python -m benchmarks.profile ROW [SIZE]`` (``make profile ROW=chain-nodes``) prints a
table in Markdown: CPU nanoseconds an event, by process as the kernel counts them, and in each the functions in which
py-spy has found it most often (200 looks a second, shares of the whole). C code counts to whoever called it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.about import interpreter

ROOT: Final = Path(__file__).parents[1]
SIZES: Final = {
    "keyed-1k": 4_000_000,
    "keyed-1m": 2_000_000,
    "chain-functions": 3_000_000,
    "chain-nodes": 1_500_000,
    "wordcount": 50,
}
MOST: Final = 6
"""Functions of a process that are named."""
PROCESS: Final = re.compile(r"(?:^|;)process \d+:")
FRAME: Final = re.compile(r"(?:^|;)([^;()]+) \(([^;()]+?)(?::\d+)?\)(?=;|$)")
OURS: Final = re.compile(r"^.*/(?=grape/|benchmarks/)")
WAITS: Final = frozenset({"wait", "Condition.wait", "_worker", "Store._wait", "Connection._read", "select"})


class Thread(NamedTuple):
    """``seconds``: of CPU."""

    process: str
    pid: int
    tid: int
    seconds: float


def role_of(command: str) -> str:
    if "grape.worker" in command:
        return "workers"
    return "client" if "benchmarks.rows" in command else "engine"


class Watch:
    """The threads of a process and its descendants, as long as they live."""

    def __init__(self, pid: int) -> None:
        self._family = {pid}
        self.threads: dict[tuple[int, int], Thread] = {}

    def look(self) -> None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                pid = int(process.name)
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if pid not in self._family and parent not in self._family:
                    continue
                self._family.add(pid)
                role = role_of((process / "cmdline").read_text().replace("\0", " "))
                for task in (process / "task").iterdir():
                    spent = int((task / "schedstat").read_text().split()[0])
                    self.threads[pid, int(task.name)] = Thread(role, pid, int(task.name), spent / 1e9)
            except (OSError, IndexError, ValueError):  # it has ended
                continue


def stacks(path: Path) -> Counter[tuple[str, str]]:
    """Looks by (process, function); not those at which a thread waits."""
    found: Counter[tuple[str, str]] = Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        role = role_of(PROCESS.split(stack)[-1].partition(";thread ")[0])
        frames = FRAME.findall(stack)
        if frames and frames[-1][0] not in WAITS:
            function, module = frames[-1]
            found[role, f"{function} ({OURS.sub('', module)})"] += int(count)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=SIZES)
    parser.add_argument("size", type=int, nargs="?", help="events, or megabytes of wordcount")
    options = parser.parse_args()
    size = options.size or SIZES[options.row]
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if spy is None:
        parser.error("py-spy is not here: make profile installs it")
    with tempfile.TemporaryDirectory(prefix="grape-bench-") as directory:
        raw = Path(directory, "stacks")
        run = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.rows", options.row, str(size), f"{directory}/row"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        looks = subprocess.Popen(
            [spy, "record", "-p", str(run.pid), "--subprocesses", "-t", "-r", "200", "-f", "raw", "-o", str(raw)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        watch = Watch(run.pid)
        while run.poll() is None:
            watch.look()
            time.sleep(0.05)
        looks.wait()
        assert run.stdout is not None
        found: dict[str, Any] = json.loads(run.stdout.read().splitlines()[-1])
        print_table(options.row, found, list(watch.threads.values()), stacks(raw))


def print_table(row: str, found: dict[str, Any], threads: list[Thread], looks: Counter[tuple[str, str]]) -> None:
    events = found["events"]
    spent: dict[str, float] = defaultdict(float)
    for thread in threads:
        spent[thread.process] += thread.seconds
    total = sum(spent.values())
    print(f"{row}: {events:,} events in {found['seconds']:.1f} s; {interpreter()}\n")
    print("| where | ns an event | of all |\n|---|---|---|")
    for role, seconds in sorted(spent.items()):
        print(f"| **{role}** | **{1e9 * seconds / events:.0f}** | **{seconds / total:.0%}** |")
        here = Counter({name: count for (its, name), count in looks.items() if its == role})
        whole = here.total() or 1
        for name, count in here.most_common(MOST):
            share = count / whole
            print(f"| {name} | {1e9 * seconds * share / events:.0f} | {share * seconds / total:.0%} |")
    print(f"| **all** | **{1e9 * total / events:.0f}** | |")


if __name__ == "__main__":
    main()
