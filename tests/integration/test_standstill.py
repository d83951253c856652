"""A worker process that loses what it was given: the run ends all the same, and says what it saw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HASTY = """
import grape.engine.standstill
grape.engine.standstill.STANDSTILL = 2_000_000  # it is ten seconds
import grape_command
grape_command.main()
"""

APP = """
import os
from pathlib import Path
from grape import Topology
from grape.worker.dispatcher import Dispatcher
from grape.protocol.messages import Work

do = Dispatcher._do

def lose(self, message):
    lost = Path(os.environ["LOST"])
    if isinstance(message, Work) and not lost.exists():
        lost.touch()
        return
    do(self, message)

Dispatcher._do = lose
t = Topology("loses")
t.add_output("out")

@t.slot("x", emits="out")
{how} f(n: int) -> int:
    return n
"""


@pytest.mark.parametrize("how", ["def", "async def"])
def test_a_work_that_is_lost_in_a_worker_is_done_again(tmp_path: Path, how: str) -> None:
    (tmp_path / "app.py").write_text(APP.format(how=how))
    (tmp_path / "in.jsonl").write_text("".join(f"{i}\n" for i in range(100)))
    (tmp_path / "profile.toml").write_text('[pool.main]\nheartbeat-timeout = "2 s"\n')
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-c",
                HASTY,
                "run",
                "app.py",
                "--feed",
                "x=in.jsonl",
                "--take",
                "out=out.jsonl",
                "--data",
                "d",
            ),
            *("--workers", "1", "--profile", "profile.toml", "--env", f"LOST={tmp_path / 'lost'}"),
        ],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "worker main.0 has stood still for 2 s although work waits" in done.stderr
    assert "partition main/" in done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 100
