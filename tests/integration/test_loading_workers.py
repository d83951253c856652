"""What happens when workers import an app: runs without a guard, and code or variables that only the engine has."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.integration.test_faults import GRAPE, outputs

from grape.processes.hints import hint_for

APP = """
import grape
t = grape.Topology("ng"); t.add_output("out")
@t.slot("x", emits="out")
def f(d: dict) -> dict: return d
def read(pos): return ([{"a": 1}], 1) if not pos else ([], pos)
"""
RUN = 'print(grape.run(t, feed={"x": read}, workers=1).fed)\n'
INDIRECT = """
import grape
from app import t, read
print(grape.run(t, feed={"x": read}, workers=1).fed)
"""
SPAWN = """
import multiprocessing
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
    raise SystemExit(process.exitcode)
"""


def python(tmp_path: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30, cwd=tmp_path)


@pytest.mark.parametrize("way", ["direct", "open", "indirect", "spawn", "command"])
def test_a_run_without_a_guard_is_refused(tmp_path: Path, way: str) -> None:
    code = APP + (RUN if way != "open" else "with grape.open(t, workers=1) as e: e.emit('x', {})\n")
    if way == "indirect":
        (tmp_path / "other.py").write_text(INDIRECT)
        code = APP + "import other\n"
    if way == "spawn":
        code = APP + SPAWN + f"else:\n    {RUN}"
    (tmp_path / "app.py").write_text(code)
    began = time.monotonic()
    if way == "command":
        done = subprocess.run([GRAPE, "run", "app.py"], check=False, capture_output=True, text=True, cwd=tmp_path)
    else:
        done = python(tmp_path, "app.py")
    assert done.returncode != 0
    assert 'if __name__ == "__main__":' in done.stderr
    assert time.monotonic() - began < 10  # 1 s on a quiet machine


def test_a_guarded_run_runs(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP + 'if __name__ == "__main__":\n    ' + RUN)
    done = python(tmp_path, "app.py")
    assert done.stdout == "{'x': 1}\n", done.stderr


LIB = """
import os
from grape import Topology
t = Topology("l"); t.add_output("out")
@t.slot("x", emits="out", retries=0)
def f(n: int) -> int:
    BODY
"""


def grape_run(tmp_path: Path, code: str, env: dict[str, str], *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "app.py").write_text(code)
    (tmp_path / "in.jsonl").write_text("1\n")
    command = [GRAPE, "run", str(tmp_path / "app.py"), "--feed", "x=in.jsonl", "--take", "out=out.jsonl", *more]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, **env}
    )


@pytest.mark.parametrize("directory", ["app", "own"])
def test_workers_find_what_the_engine_finds_on_its_pythonpath(tmp_path: Path, directory: str) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mylib.py").write_text("V = 5\n")
    (tmp_path / "p.toml").write_text(f'[pool.main.isolate]\ntype = "process"\nworking-directory = "{directory}"\n')
    code = "import mylib\n" + LIB.replace("BODY", "return mylib.V")
    done = grape_run(tmp_path, code, {"PYTHONPATH": "lib"}, "--profile", "p.toml")
    assert done.returncode == 0, done.stderr
    assert outputs(tmp_path / "out.jsonl") == [5]


def test_a_variable_that_only_the_engine_has_is_pointed_out(tmp_path: Path) -> None:
    code = "import os\nurl = os.environ['DB_URL_OF_MINE']\n" + LIB.replace("BODY", "return 1")
    done = grape_run(tmp_path, code, {"DB_URL_OF_MINE": "secret"})
    assert done.returncode == 2
    assert "--env DB_URL_OF_MINE" in done.stderr
    assert "secret" not in done.stderr
    without = grape_run(tmp_path, code, {})
    assert without.returncode == 2
    assert "--env" not in without.stderr


def test_hints() -> None:
    trace = 'File "app.py", line 3, in f\n    x\n  File "<frozen os>", line 679, in __getitem__\nKeyError: \'HOST\'\n'
    assert "--env HOST " in hint_for(trace, {"HOST": "h"}, [])
    assert "--env HOST " in hint_for(trace.replace("<frozen os>", "/usr/lib/python3.13/os.py"), {"HOST": "h"}, [])
    assert not hint_for(trace, {}, [])
    assert not hint_for(trace.replace("<frozen os>", "/my/dict.py"), {"HOST": "h"}, [])
    here = str(Path(__file__).parent)
    missing = "ModuleNotFoundError: No module named 'test_loading_workers'"
    assert f"--env PYTHONPATH={here}" in hint_for(missing, {}, ["/nowhere", here])
    assert not hint_for(missing, {}, ["/nowhere"])
