"""A pool whose workers misbehave, at every level of confinement: the other pool is done with all it got, the engine
goes on, and the failure says what happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from tests.jails import open_to_all

import grape
from grape.testing.contracts.isolate import python_for

LEVELS: Final = ("process", "cgroup", "sandbox", "container")
CONFINED: Final = LEVELS[1:]
SOME: Final = [
    pytest.param(level, marks=pytest.mark.slow) if level in ("cgroup", "container") else level for level in LEVELS
]
"""For what is the engine's business, and so the same at every level."""
GOOD: Final = 60
NOBODY: Final = 65534

APP: Final = Path(__file__).parents[2] / "benchmarks" / "neighbours.py"

ISOLATES: Final = {
    "process": 'type = "process"\nfile-size = "64 MiB"\nmemory = "300 MiB"\n',
    "cgroup": f'type = "cgroup"\nuid = {NOBODY}\nfile-size = "64 MiB"\nmemory = "200 MiB"\npids = 40\n',
    "sandbox": 'type = "sandbox"\nmemory = "200 MiB"\npids = 40\n',
    "container": 'type = "container"\nmemory = "200 MiB"\npids = 40\n',
}


@cache
def python() -> str:
    """One that an ordinary user may run, as the workers of a level will be."""
    try:
        return python_for(NOBODY if os.geteuid() == 0 else None, "grape.cli.main", environment())
    except AssertionError as e:
        pytest.skip(str(e))


def environment() -> dict[str, str]:
    packages = [path for path in sys.path if path.endswith("site-packages")]
    path = ":".join([str(Path(grape.__file__).parents[1]), *packages])
    return {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", "PYTHONPATH": path}


class Run:
    """One run of the app with one misbehaviour at one level."""

    def __init__(self, tmp_path: Path, level: str, what: str, timeout: float = 3.0) -> None:
        if level == "cgroup" and os.geteuid() != 0:
            pytest.skip("control groups of another user need root here")
        open_to_all(tmp_path)
        self.mark = f"grape-daemon-{os.getpid()}-{time.time_ns()}"
        (tmp_path / "app.py").write_text(APP.read_text())
        (tmp_path / "good.jsonl").write_text("".join(f'{{"k": "k{i}"}}\n' for i in range(GOOD)))
        (tmp_path / "bad.jsonl").write_text(f'"{what}"\n')
        isolate = ISOLATES[level]
        (tmp_path / "profile.toml").write_text(
            f"[pool.main]\npool-limit = 1\n[pool.main.isolate]\n{isolate}\n"
            f'[pool.other]\npool-limit = 1\ntermination-timeout = "500 ms"\n[pool.other.isolate]\n{isolate}'
        )
        command = [python(), "-m", "grape", "run", "app.py", "--profile", "profile.toml", "--data", "data"]
        command += [
            "--feed",
            "good=good.jsonl,key=k",
            "--feed",
            "bad=bad.jsonl",
            "--take",
            "out=out.jsonl",
            "--take",
            "done=done.jsonl",
        ]
        env = environment()
        command += [
            "--env",
            "PYTHONPATH",
            "--summary",
            "json",
            "--set",
            f"mark={self.mark}",
            "--set",
            f"timeout={timeout}",
            "--set",
            "pause=0.01",
        ]
        self.path = tmp_path
        self.done = subprocess.run(
            command, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
        assert self.done.stdout, self.done.stderr
        self.summary: dict[str, Any] = json.loads(self.done.stdout)

    def taken(self, event: str) -> list[Any]:
        return [json.loads(line)["data"] for line in (self.path / f"{event}.jsonl").read_text().splitlines()]

    def check_neighbour(self) -> None:
        """The good pool did everything, once, and nothing of the bad one is left."""
        assert sorted(self.taken("out")) == sorted([f"k{i}", 1] for i in range(GOOD))
        assert self.summary["pools"]["main"]["workers_spawned"] == 1
        assert "the engine failed" not in self.done.stderr
        left = [p for p in psutil.process_iter(["cmdline"]) if self.mark in " ".join(p.info["cmdline"] or [])]
        assert not left
        assert str(self.path) not in "".join(os.listdir("/tmp"))

    def dead(self) -> str:
        command = [python(), "-m", "grape", "dead", "list", "--data", "data"]
        return subprocess.run(
            command, check=False, cwd=self.path, env=environment(), capture_output=True, text=True
        ).stdout


@pytest.mark.parametrize("level", LEVELS)
def test_a_full_temporary_directory(tmp_path: Path, level: str) -> None:
    """F54: also that it was wiped: the next worker finds it empty."""
    run = Run(tmp_path, level, "full_temp", 20.0)
    run.check_neighbour()
    said = run.dead() + run.done.stderr
    assert "No space left" in said or "File too large" in said or "file-size" in said


@pytest.mark.parametrize("level", SOME)
def test_garbage_on_the_socket(tmp_path: Path, level: str) -> None:
    """F55"""
    run = Run(tmp_path, level, "garbage")
    run.check_neighbour()
    assert "it broke the protocol" in run.dead()
    assert run.done.returncode == 1


@pytest.mark.parametrize("level", SOME)
def test_an_answer_that_comes_twice(tmp_path: Path, level: str) -> None:
    """F56: it counts once."""
    run = Run(tmp_path, level, "twice")
    run.check_neighbour()
    assert run.taken("done") == ["twice"]
    assert run.done.returncode == 0
    assert "it broke the protocol" in run.done.stderr


@pytest.mark.parametrize("level", SOME)
def test_an_answer_for_a_partition_that_was_lost(tmp_path: Path, level: str) -> None:
    """F56: dropped, and counted."""
    run = Run(tmp_path, level, "lost")
    run.check_neighbour()
    assert run.taken("done") == ["lost"]
    assert run.done.returncode == 0
    assert run.summary["stale_frames"] >= 2


@pytest.mark.parametrize("level", SOME)
def test_one_that_ignores_sigterm(tmp_path: Path, level: str) -> None:
    """F49: and hangs: its timeout ends it all the same."""
    run = Run(tmp_path, level, "stubborn", 1.0)
    run.check_neighbour()
    assert "ran over its timeout of 1 s" in run.dead()


@pytest.mark.parametrize("level", LEVELS)
def test_a_double_forked_daemon(tmp_path: Path, level: str) -> None:
    """F52: it ends with its worker."""
    run = Run(tmp_path, level, "daemon", 20.0)
    assert run.taken("done") == ["daemon"]
    run.check_neighbour()


@pytest.mark.parametrize("level", CONFINED)
def test_a_daemon_that_hides(tmp_path: Path, level: str) -> None:
    """F52: with a session of its own, and without anything in its environment that tells whose it is. (As a plain
    process it is not found: docs/isolation.md says so.)"""
    run = Run(tmp_path, level, "hidden_daemon", 20.0)
    assert run.taken("done") == ["hidden_daemon"]
    run.check_neighbour()


@pytest.mark.parametrize("level", CONFINED)
def test_a_fork_bomb(tmp_path: Path, level: str) -> None:
    """F51"""
    run = Run(tmp_path, level, "fork_bomb")
    run.check_neighbour()
    assert run.summary["dead"] == 1
    assert psutil.Process().pid  # the host still forks
    subprocess.run(["/bin/true"], check=True)


@pytest.mark.parametrize("level", CONFINED)
def test_a_memory_bomb(tmp_path: Path, level: str) -> None:
    """F50: it ends that worker alone, and the limit is named."""
    run = Run(tmp_path, level, "memory_bomb", 30.0)
    run.check_neighbour()
    said = run.dead()
    assert "out of memory" in said or "MemoryError" in said
    assert "200 MiB" in said or "MemoryError" in said
