"""Authors get help from mypy: right topologies pass in strict mode, wrong ones are reported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RIGHT = Path(__file__).parent.parent / "typing" / "authoring_ok.py"

WRONG = """
from grape import Context, Event, Node, State, Topology

class Count(Node):
    seen = State(int, default=0)
    last = State(str)
    words = State(list[str])

    def process(self, event: Event) -> None:
        self.seen += "x"  # wrong
        self.last.upper()  # wrong
        self.words.append(1)  # wrong
        self.emit("total", key=5)  # wrong
        event.idd  # wrong
        self.seen = "x"  # wrong
        self.last = 5  # wrong
        self.words = [1]  # wrong
        self.last = None
        self.words = ["a"]

def count(word: str, context: Context, seen: State[int] = State(str, default="")) -> None:  # wrong
    seen.value += "x"  # wrong
    context.emit("x", delay="soon")  # wrong

t = Topology("orders")
t.add_slot("word", Count)
t.add_slot("word", Count(), retry=1)  # wrong
t.slot("word", on_fail="dead", retries="3")  # wrong
t.slot("word", on_fail="ignore")  # wrong
t.add_slot("word", 5)  # wrong
t.add_slot("word", Count(), emits="total", key=5)  # wrong
t.add_slot("word", Count(), emits="total", key="id")
State(int, defualt=0)  # wrong
Count(nmae="x")  # wrong
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def mypy(file: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(cache), str(file)],
        capture_output=True,
        text=True,
        cwd=file.parent,
        env={**os.environ, "MYPY_FORCE_COLOR": "0"},
        check=False,
    )


def test_what_an_author_may_write_passes(cache: Path) -> None:
    done = mypy(RIGHT, cache)
    assert done.returncode == 0, done.stdout


def test_mistakes_are_reported_in_their_lines(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    reported = {int(line) for line in re.findall(r"wrong\.py:(\d+): error", mypy(file, cache).stdout)}
    assert reported == {number for number, line in enumerate(WRONG.split("\n"), 1) if line.endswith("# wrong")}
