"""What a run gives away of itself, and what its code may choose, with real jails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from tests.jails import ROOT, as_nobody, open_to_all

GRAPE: Final = str(Path(sys.executable).parent / "grape")
SANDBOX: Final = '[pool.main.isolate]\ntype = "sandbox"\n'


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A directory for an app that everybody may read, beside a secret."""
    open_to_all(tmp_path)
    (tmp_path / "secret").write_text("precious")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "app").mkdir(mode=0o755)
    (tmp_path / "in.jsonl").write_text(json.dumps(str(tmp_path / "secret")) + "\n")
    (tmp_path / "strict.toml").write_text(SANDBOX)
    return tmp_path / "app"


def run(app: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    (app / "app.py").write_text("from grape import Topology\n" + code)
    argv = [GRAPE, "run", "app.py", "--workers", "1", "--partitions", "1", "--data", str(app.parent / "data"), *options]
    return subprocess.run(argv, cwd=app, check=False, capture_output=True, text=True, timeout=60)


LOOK: Final = """
def topology(config):
    t = Topology("plugin")
    t.add_output("found")
    @t.slot("look", emits="found", retries=0, pool={pool!r})
    def look(path: str) -> str:
        return open(path).read()
    return t
"""
READ: Final = ("--feed", "look=../in.jsonl", "--take", "found")


@pytest.mark.parametrize("options", [(), ("--set", 'grape.pool.helper.isolate={"type":"process"}')])
def test_a_pool_that_the_profile_does_not_name_is_confined_as_well(app: Path, options: tuple[str, ...]) -> None:
    done = run(app, LOOK.format(pool="helper"), "--profile", "../strict.toml", *READ, *options)
    assert done.returncode == 1, done.stderr
    assert "precious" not in done.stdout


def test_the_first_worker_is_confined_whatever_pool_the_profile_names(app: Path) -> None:
    (app.parent / "strict.toml").write_text(SANDBOX.replace("main", "helper"))
    code = f"import os\nassert not os.path.exists({str(app.parent / 'secret')!r})\n" + LOOK.format(pool="helper")
    done = run(app, code, "--profile", "../strict.toml", *READ)
    assert done.returncode == 1, done.stderr
    assert "AssertionError" not in done.stderr


def test_a_program_of_the_host_is_no_entry(app: Path) -> None:
    ran = app.parent / "ran"
    code = f't = Topology("p")\nt.add_pool("helper", runtime="exec", entry=["/bin/sh", "-c", "id > {ran}"])\n'
    for options in ((), ("--profile", "../strict.toml")):
        done = run(app, code, "--feed", "look=../in.jsonl", *options)
        assert done.returncode == 2, done.stderr
        assert "leads out of the app's directory" in done.stderr
        assert not ran.exists()


def test_a_pool_in_another_language_is_described_in_the_jail(app: Path) -> None:
    ran = app.parent / "ran"
    (app / "w.sh").write_text(f"#!/bin/sh\nid > {ran}; exit 3\n")
    (app / "w.sh").chmod(0o755)
    code = 't = Topology("p")\nt.add_pool("helper", runtime="exec", entry="w.sh")\n'
    done = run(app, code, "--profile", "../strict.toml", "--feed", "look=../in.jsonl")
    assert done.returncode == 2, done.stderr
    assert not ran.exists()


# ---------------------------------------------------------------------- what is stored

CRASH: Final = """
import os
from grape import State
t = Topology("p")
t.add_output("found")
@t.slot("look", emits="found", retries=0)
def look(path: str, last: State[str] = State(str, default="")) -> str:
    last.value = path
    return path
@t.slot("die", retries=0)
def die(path: str) -> None:
    os._exit(3)
"""


@pytest.mark.parametrize(("umask", "made"), [(0o000, True), (0o277, False)])
def test_what_is_stored_is_the_owners_alone(app: Path, umask: int, made: bool) -> None:
    data = app.parent / "deep" / "data"
    if made:
        data.mkdir(parents=True, mode=0o755)
    before = os.umask(umask if ROOT or umask != 0o277 else 0o077)
    try:
        (app / "app.py").unlink(missing_ok=True)
        out = app.parent / "out.jsonl"
        options = ["--data", str(data), "--feed", "look=../in.jsonl", "--feed", "die=../in.jsonl"]
        done = run(app, CRASH, "--take", f"found={out}", *options)
    finally:
        os.umask(before)
    assert done.returncode == 1, done.stderr
    files = list(data.rglob("*"))
    assert {path.name for path in files} >= {"data.mdb", "lock.mdb", "format", "lock", "crashes", "00000001.json"}
    for path in (data, *files):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask, "what one asks for is a file like any other"


@pytest.mark.skipif(not ROOT, reason="there is another user for root only")
def test_who_may_not_read_the_data_is_told_so(app: Path) -> None:
    run(app, CRASH, "--feed", "look=../in.jsonl")
    done = as_nobody(["-m", "grape", "state", "list", "--data", str(app.parent / "data")])
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "ermission denied" in done.stderr


# ---------------------------------------------------------------------- what others see

PEEK: Final = """
import subprocess
def topology(config):
    t = Topology("p")
    t.add_output("found")
    assert config == {"token": "can" + "ary", "long": "x" * 200_000}
    @t.slot("look", emits="found", retries=0)
    def look(path: str) -> int:
        host = subprocess.run(["cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ"], shell=True, stdout=-1, stderr=-1)
        return host.stdout.count(b"can" + b"ary")
    return t
"""


@pytest.mark.parametrize("options", [(), ("--profile", "../strict.toml")])
def test_the_apps_configuration_is_on_no_command_line(app: Path, options: tuple[str, ...]) -> None:
    config = app.parent / "config.json"
    config.write_text(json.dumps({"token": "canary", "long": "x" * 200_000}))  # longer than an argument may be
    done = run(app, PEEK, *READ, "--config", str(config), *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"] == 0


FORGED: Final = f"""#!{sys.executable} -S
import os, socket, sys
sys.path[:0] = {sys.path!r}
from grape.protocol.framing import frame
from grape.protocol.messages import VERSION, Hello
from grape.model.topology import NodeSpec, SlotSpec, TopologySpec
sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
name = "\\x1b]0;owned\\x07[/]"
topology = TopologySpec("", (NodeSpec(name),), (SlotSpec(name, name),))
sock.sendall(frame(Hello(VERSION, os.getpid(), "odd", topology, [])))
sock.recv(1)
"""


def test_a_name_that_cannot_be_shown_is_refused(app: Path) -> None:
    (app / "w").write_text(FORGED)
    (app / "w").chmod(0o755)
    done = run(app, 't = Topology("p")\nt.add_pool("helper", runtime="exec", entry="w")\n', "--feed", "x=../in.jsonl")
    assert done.returncode == 2, done.stderr
    assert r"a name that cannot be shown: '\x1b]0;owned\x07[/]'" in done.stderr
    assert "\x1b" not in done.stderr
