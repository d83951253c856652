"""The command line at its edges: signals at any moment, pipes that nobody reads, all kinds of terminals and texts."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from tests.command import grape

from grape.processes.crashes import Crash, CrashLog

GRAPE = str(Path(sys.executable).parent / "grape")
EVIL = "\x1b[31m[red]\n\r\x07\u202e\u2066\x9b\x7f"

APP = """
from grape import Topology
t = Topology("plain")
t.add_output("out")
@t.slot("line", emits="out")
def work(data: str) -> str:
    return data
"""


def write_app(path: Path, body: str = APP) -> Path:
    app = path / "app.py"
    app.write_text(body)
    return app


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [GRAPE, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, **options)


def is_printable(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


class Terminal:
    """A command on a terminal of its own."""

    def __init__(
        self, *arguments: object, columns: int = 80, env: dict[str, str] | None = None, **options: Any
    ) -> None:
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        whole = {**os.environ, "TERM": "xterm-256color", **(env or {})}
        streams: dict[str, Any] = {"stdin": slave, "stdout": slave, "stderr": slave}
        self.process = subprocess.Popen([GRAPE, *map(str, arguments)], env=whole, start_new_session=True, **streams)
        os.close(slave)
        self.text = ""

    def read(self, until: str = "", seconds: float = 30) -> str:
        """What it shows, to its end or until ``until`` stands there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not (until and until in self.text):
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    break
        if not until:
            self.process.wait(10)
            os.close(self._master)
        return self.text

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())


# ------------------------------------------------------------------ Ctrl-C


COMMANDS = (["run", "app.py", "--feed", "line=-"], ["dead", "list", "--data", "data"], ["doctor"], ["state", "list"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("delay", [0.08, 0.15, 0.25])
def test_ctrl_c_at_any_moment_shows_no_frames(tmp_path: Path, command: list[str], delay: float) -> None:
    write_app(tmp_path)
    process = subprocess.Popen(
        [GRAPE, *command],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(delay)  # the moment is what is tried
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert f"{os.sep}grape{os.sep}" not in said
    had_begun = "Failed checking if argv[0]" not in said and process.returncode != -signal.SIGINT  # Python itself
    assert "Traceback" not in said or not had_begun
    assert process.returncode in (130, -signal.SIGINT, *(() if command[0] == "run" else (0, 2)))


def test_ctrl_c_where_nothing_can_be_raised(tmp_path: Path) -> None:
    """While a run starts: what is raised in a finalizer, or in a callback of the import system, is heard by nobody."""
    write_app(tmp_path)
    (tmp_path / "keys.py").write_text(
        "import os, signal\nclass Interrupted:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "Interrupted()\ndef key(line):\n    return line\n"
    )
    process = subprocess.Popen(
        [GRAPE, "run", "app.py", "--feed", "line=-,key=keys:key"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,  # which does not end
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert "ignored" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_with_nothing_queued_keeps_no_directory(tmp_path: Path) -> None:
    app = write_app(tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [GRAPE, "run", str(app), "--feed", "line=-", "--take", "out"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("one\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["data"] == "one"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130  # its input has not ended
    _, said = process.communicate()
    assert "Resume" not in said
    assert [path.name for path in temporary.iterdir() if (path / "data.mdb").exists()] == []


# ------------------------------------------------------------------ pipes


def test_a_reader_that_goes_ends_a_list(tmp_path: Path) -> None:
    app = write_app(tmp_path)
    lines = tmp_path / "in.txt"
    lines.write_text("x\n" * 5_000)
    body = APP.replace('@t.slot("line", emits="out")', '@t.slot("line", retries=0)').replace(
        "return data", "raise ValueError"
    )
    write_app(tmp_path, body)
    run("run", app, "--feed", f"line={lines}", "--data", tmp_path / "data", "--max-dead", 6_000)
    shell = f"set -o pipefail; {GRAPE} dead list --data {tmp_path}/data | head -n 1; echo code ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] in ("code 0", "code 141")
    assert done.stderr == ""


def test_a_reader_that_goes_ends_a_run(tmp_path: Path) -> None:
    app = write_app(tmp_path)
    lines = tmp_path / "in.txt"
    lines.write_text("".join(f"{n}\n" for n in range(200_000)))
    command = f"{GRAPE} run {app} --feed line={lines} --take out --data {tmp_path}/data"
    shell = f"{command} | head -n 1; echo code ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] in ("code 0", "code 141")
    assert "Traceback" not in done.stderr
    assert "error:" not in done.stderr
    again = run("run", app, "--feed", f"line={lines}", "--take", "out", "--data", tmp_path / "data")
    assert again.returncode == 0


def test_a_reader_of_messages_that_goes_does_not_stop_a_run(tmp_path: Path) -> None:
    app = write_app(tmp_path, APP.replace("return data", "print(data); return data"))
    lines = tmp_path / "in.txt"
    lines.write_text("".join(f"{n}\n" for n in range(20_000)))
    taken = tmp_path / "out.jsonl"
    shell = f"{GRAPE} run {app} --feed line={lines} --take out={taken} 2>&1 | head -n 1; echo code ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] in ("code 0", "code 141")
    assert taken.read_bytes().count(b"\n") == 20_000


# ------------------------------------------------------------------ terminals


SLOW = APP.replace("return data", "import time; time.sleep(1.2); return data")
SPINNER = re.compile("[\u2800-\u28ff]")


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_plain_terminal_gets_plain_text(tmp_path: Path, env: dict[str, str]) -> None:
    app = write_app(tmp_path, SLOW)
    (tmp_path / "in.txt").write_text("one\n")
    shown = Terminal("run", app, "--feed", f"line={tmp_path}/in.txt", env=env).read()
    assert "1 event processed" in shown
    assert not SPINNER.search(shown)
    assert "\x1b" not in shown


@pytest.mark.parametrize("columns", [40, 80])
def test_the_progress_line_is_one_line(tmp_path: Path, columns: int) -> None:
    app = write_app(tmp_path, SLOW.replace('Topology("plain")', 'Topology("a-rather-long-name-of-an-app-and-more")'))
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    shown = Terminal("run", app, "--feed", f"line={tmp_path}/in.txt", columns=columns).read()
    assert SPINNER.search(shown)
    assert "1 workers" not in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", shown)
    moving = [part for part in re.split(r"[\r\n]+", plain) if SPINNER.search(part)]
    assert max(map(len, moving)) <= columns
    assert shown.count("\x1b[1A") <= 1  # at the end; else it goes up over the lines of one that wrapped


def test_input_and_output_on_a_terminal_share_no_line_with_the_progress(tmp_path: Path) -> None:
    app = write_app(tmp_path, SLOW)
    terminal = Terminal("run", app, "--feed", "line=-", "--take", "out")
    terminal.type("typed\n")
    terminal.read(until='"data":"typed"')
    terminal.type("\x04")
    shown = terminal.read()
    assert not SPINNER.search(shown)
    assert terminal.process.returncode == 0


# ------------------------------------------------------------------ texts of others


def test_whatever_others_have_written_is_shown_as_text(tmp_path: Path) -> None:
    body = f"""
from grape import Event, Node, State, Topology
EVIL = {EVIL!r}
t = Topology("evil")
class Work(Node):
    seen = State(str, default="")
    def process(self, event):
        self.seen = EVIL
        print(EVIL)
        if event.data == "stop":
            raise ValueError(EVIL + chr(0xd800))
t.add_slot("line", Work(), retries=0)
t.add_slot("late", Work(), name="Late", retries=1, backoff=3600, backoff_max=3600)
"""
    app = write_app(tmp_path, body)
    rows = tmp_path / "in.jsonl"
    rows.write_text("".join(json.dumps({"key": EVIL + str(n), "v": v}) + "\n" for n, v in enumerate(("go", "stop"))))
    app.write_text(body.replace("event.data ==", "event.data['v'] =="))
    feeds = ["--feed", f"line={rows},key=key", "--feed", f"late={rows},key=key"]
    shown = [Terminal("run", app, *feeds, "--data", tmp_path / "data", "--no-wait", env={"NO_COLOR": "1"}).read()]
    CrashLog(tmp_path / "data").add(Crash(1.0, EVIL, 1, 0.0, EVIL, [(EVIL, EVIL, EVIL)]))
    ids = [json.loads(line)["id"] for line in run("dead", "list", "--data", tmp_path / "data").stdout.splitlines()]
    assert len(ids) == 1
    for command in (
        ["dead", "list"], ["dead", "show", ids[0]], ["held", "list"], ["state", "list"], ["crashes", "list"],
        ["crashes", "show", "1"], ["doctor"], ["dead", "show", EVIL], ["state", "list", "--node", EVIL],
    ):  # fmt: skip
        shown.append(Terminal(*command, "--data", tmp_path / "data", env={"NO_COLOR": "1"}).read())
        done = grape(*command, "--data", tmp_path / "data")
        shown.append(done.stdout + done.stderr)
    for wrong in (["run", EVIL], ["run", app, "--feed", EVIL], ["doctor", "--data", EVIL], ["run", app, "--set", EVIL]):
        done = grape(*wrong)
        shown.append(done.stdout + done.stderr)
    for text in shown:
        text = re.sub(r"\x1b\[\?25[hl]|\x1b\[2K|\x1b\[1A", "", text).replace("\r\n", "\n").replace("\r", "")
        assert is_printable(text), [c for c in text if not c.isprintable() and c not in "\n\t"]
        assert "Traceback (most" not in text or "ValueError" in text


def test_nothing_of_a_closed_terminal_is_an_error(tmp_path: Path) -> None:
    app = write_app(tmp_path)
    (tmp_path / "in.txt").write_text("one\n")
    shell = f"{GRAPE} run {app} --feed line={tmp_path}/in.txt >&- 2>&-; echo code $?"
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True, timeout=60)
    assert done.stdout == "code 0\n"
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "core").unlink()
