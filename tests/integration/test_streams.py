"""The standard streams of a worker are text streams; and what a handler does to its process is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.test_faults import dead, outputs, run
from tests.integration.test_raised import HEAD, lines_of

STREAMS = (
    HEAD
    + """
import codecs, contextlib, faulthandler, io, logging, subprocess
logging.basicConfig(level="INFO", format="logged %(message)s")
assert isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stderr, io.TextIOWrapper)

def show(line):
    out = sys.stdout
    if line == "attributes":
        assert (out.encoding, out.errors, out.fileno(), sys.stderr.fileno()) == ("utf-8", "backslashreplace", 1, 2)
        assert not out.isatty() and out.writable() and not out.readable() and not out.closed
        assert (out.line_buffering, out.name, out.mode, out.newlines) == (True, "<stdout>", "w", None)
        assert out is sys.__stdout__ and out.buffer.fileno() == 1
    if line == "buffer":
        out.buffer.write(b"from the buffer\\nand \\xff more\\n")
        out.buffer.flush()
    if line == "half":
        print("half ", end="", flush=True)
        print("and half")
    if line == "writelines":
        out.writelines(["written\\n", "in lines\\n"])
    if line == "surrogates":
        print("caf\\udce9", file=sys.stdout)
        sys.stderr.write("caf\\udce9 on stderr\\n")
    if line == "reconfigure":
        out.reconfigure(errors="replace", line_buffering=False)
        print("re\\udce9configured")
        out.reconfigure(errors="backslashreplace", line_buffering=True)
    if line == "redirect":
        with contextlib.redirect_stdout(io.StringIO()) as text:
            print("redirected")
        return text.getvalue().strip()
    if line == "wrapped":
        print("wrapped é", file=codecs.getwriter("utf-8")(out.buffer), flush=True)
    if line == "logging":
        logging.info("by a handler of the app")
    if line == "sub":
        subprocess.run(["echo", "from a subprocess"], check=True)
    if line == "fault":
        faulthandler.enable()
        faulthandler.disable()
    if line == "long":
        print("x" * 300_000)
    if line == "input":
        try:
            input()
        except EOFError:
            return "no input"
    return line

@t.slot("line", emits="out", retries=0)
def work(line: str) -> str:
    return show(line)
"""
)
WAYS = ["attributes", "buffer", "half", "writelines", "surrogates", "reconfigure", "redirect", "wrapped", "logging"]
WAYS += ["sub", "fault", "long", "input"]


def test_the_standard_streams_of_a_worker_are_text_streams(tmp_path: Path) -> None:
    done = run(tmp_path, STREAMS, WAYS, "--take", "out=out.jsonl", "--workers", 1)
    assert done.returncode == 0, done.stderr
    given = {"redirect": "redirected", "input": "no input"}
    assert sorted(outputs(tmp_path / "out.jsonl")) == sorted(given.get(way, way) for way in WAYS)
    for said in (
        "from the buffer", "and \ufffd more", "half and half", "written", "in lines", "caf\\udce9",
        "caf\\udce9 on stderr", "re?configured", "wrapped é", "logged by a handler of the app",
    ):  # fmt: skip
        assert lines_of(done, f"[work main.0] {said}"), said
    assert lines_of(done, "from a subprocess")
    assert sum(line.count("x") for line in lines_of(done, "xxxx")) == 300_000


def test_what_is_printed_without_its_end_is_shown_if_the_worker_dies(tmp_path: Path) -> None:
    code = HEAD + (
        "@t.slot('line', retries=0, backoff=0.01)\ndef work(line: str) -> None:\n"
        "    print('the last words', end='', flush=True)\n    os._exit(3)\n"
    )
    done = run(tmp_path, code, ["a"])
    assert "[work main.0] the last words" in done.stderr


CLOSED = (
    HEAD
    + """
def work_on(line):
    if line == "zero":
        os.close(0); os.read(0, 1)
    if line == "one":
        os.close(1); print("into nothing")
    if line == "two":
        os.close(2); print("into nothing", file=sys.stderr)
    if line == "closed":
        sys.stdout.close(); print("into nothing")
    if line == "none":
        sys.stdout = sys.stderr = None; print("to nobody")
    if line == "file":
        sys.stdout = open(os.devnull, "w"); sys.stdout.close(); print("into nothing")
    return line

@t.slot("line", emits="out", retries=0)
def work(line: str) -> str:
    return work_on(line)
"""
)


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("zero", "OSError", "Bad file descriptor"),
        ("one", "OSError", "Bad file descriptor"),
        ("two", "OSError", "Bad file descriptor"),
        ("closed", "ValueError", "closed file"),
        ("none", "", ""),
        ("file", "ValueError", "closed file"),
    ],
)
def test_closed_streams_are_the_failure_of_who_uses_them(tmp_path: Path, what: str, kind: str, text: str) -> None:
    done = run(tmp_path, CLOSED, ["a", what, "b"], "--take", "out=out.jsonl", "--workers", 1)
    assert "is replaced" not in done.stderr
    letters = dead(tmp_path)
    assert [letter["kind"] for letter in letters] == [kind] * bool(kind)
    assert all(text in letter["text"] for letter in letters)
    assert set(outputs(tmp_path / "out.jsonl")) >= {"a", "b"}


ENDS = (
    HEAD
    + """
import resource, time
def end(line):
    if line.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, line)); time.sleep(0.2)
    if line == "alarm":
        signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(5)
    if line == "handler":
        signal.signal(signal.SIGALRM, raise_timeout); signal.setitimer(signal.ITIMER_REAL, 0.01); time.sleep(5)
    if line == "ignored":
        signal.signal(signal.SIGTERM, signal.SIG_IGN); os.kill(os.getpid(), signal.SIGTERM)
    if line == "abort":
        os.abort()
    if line == "exit":
        os._exit(3)
    if line == "exit-0":
        os._exit(0)
    if line == "thread":
        thread = threading.Thread(target=sys.exit, args=(5,)); thread.start(); thread.join()
    if line == "range":
        os.closerange(3, 4096)
    if line == "all":
        os.closerange(0, 4096)
    return line

def raise_timeout(number, frame):
    raise TimeoutError("the alarm went off")
"""
)
SLOT = "@t.slot('line', emits='out', retries=0, backoff=0.01, backoff_max=0.01)\n"
ASYNC = f"{SLOT}async def work(line: str) -> str:\n    await asyncio.sleep(0)\n    return end(line)\n"
SYNC = f"{SLOT}def work(line: str) -> str:\n    return end(line)\n"


DEATHS = {
    "SIGTERM": "(SIGTERM)",
    "SIGSEGV": "(SIGSEGV)",
    "SIGKILL": "(SIGKILL)",
    "alarm": "(SIGALRM)",
    "abort": "(SIGABRT)",
    "exit": "exited with code 3",
    "exit-0": "exited with code 0",
    "range": "its socket to the engine was closed",
    "all": "its socket to the engine was closed",
}
IN_A_LOOP = [
    what if what in ("SIGSEGV", "exit", "range") else pytest.param(what, marks=pytest.mark.slow) for what in DEATHS
]


@pytest.mark.parametrize("what", DEATHS)
def test_a_death_has_the_name_of_its_cause(tmp_path: Path, what: str) -> None:
    check_death(tmp_path, ENDS + SYNC, what)


@pytest.mark.parametrize("what", IN_A_LOOP)
def test_a_death_of_an_event_loop_has_the_name_of_its_cause(tmp_path: Path, what: str) -> None:
    check_death(tmp_path, ENDS + ASYNC, what)


def check_death(tmp_path: Path, code: str, what: str) -> None:
    done = run(tmp_path, code, ["a", what, "b"], "--take", "out=out.jsonl", "--workers", 1)
    assert done.returncode == 1, done.stderr
    (letter,) = dead(tmp_path)
    assert (letter["kind"], letter["attempts"]) == ("worker-died", 3)
    assert DEATHS[what] in letter["text"]
    assert sorted(outputs(tmp_path / "out.jsonl")) == ["a", "b"]


def test_signals_that_end_nothing(tmp_path: Path) -> None:
    lines = ["a", "SIGINT", "ignored", "thread", "handler", "b"]
    done = run(tmp_path, ENDS + SYNC, lines, "--take", "out=out.jsonl", "--workers", 1)
    assert "is replaced" not in done.stderr
    (letter,) = dead(tmp_path)
    assert letter["text"] == "TimeoutError: the alarm went off"
    assert sorted(outputs(tmp_path / "out.jsonl")) == sorted({*lines} - {"handler"})
