"""How much handlers log: said by the app, changed while it runs, remembered; and what a record knows of its event."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import grape as engine
from command import grape
from grape.errors import UsageError
from grape.worker.logs import fields_of
from serving import Server, serving, until, write_app

APP = """
import logging
from grape import Node, Topology

log = logging.getLogger("own")


class Count(Node):
    def process(self, event):
        log.debug("count %s", event.data, extra={"n": event.data, "who": "ann", "self": self})
        log.info("counted %s", event.data)
        print("printed", event.data)
        self.emit("told", event.data)


class Tell(Node):
    async def process(self, event):
        log.debug("tell %s", event.data)
        log.warning("told %s", event.data)


class Sync(Node):
    def process(self, event):
        log.warning("beside %s", event.data)


def topology(config):
    t = Topology("count")
    t.add_slot("add", Count(), emits=["told"])
    t.add_slot("beside", Sync())
    t.add_slot("told", Tell())
    return t
"""


def records(home: Path, app: str = "count") -> list[dict[str, Any]]:
    path = home / "apps" / app / "log" / "app.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def texts(home: Path, *, of: str) -> list[str]:
    """What handlers have logged and printed of one value, until the last of it."""
    found: list[str] = []

    def is_there() -> bool:
        found[:] = [r["text"] for r in records(home) if r["part"] == "app" and r["text"].endswith(f" {of}")]
        return f"told {of}" in found and f"printed {of}" in found

    until(is_there)
    return sorted(text.rpartition(" ")[0] for text in found)


USUAL = ["counted", "printed", "told"]


def written(path: Path, version: str = "1", more: str = "") -> Path:
    """The app; ``more``: at the end of its manifest."""
    app = write_app(path, APP, version=version)
    with open(app / "grape.toml", "a") as file:
        file.write(more)
    return app


def deployed(server: Server, path: Path, version: str = "1", more: str = "") -> None:
    server.grape("app", "deploy", written(path, version, more))


def test_a_level_is_changed_while_it_runs_and_outlives_everything(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home, "--log-format", "json") as server:
        deployed(server, tmp_path / "count")
        server.grape("emit", "count@add", "1")
        assert texts(home, of="1") == USUAL
        assert server.grape("app", "level", "count") == "count: info\n"

        done = server.grape("app", "level", "count", "debug", "--slot", "Count")
        assert done == "Count: debug (ordered)\n"
        assert server.grape("app", "level", "count") == "count: info\nCount: debug (ordered)\n"
        server.grape("emit", "count@add", "2")
        assert texts(home, of="2") == ["count", *USUAL]

        done = server.grape("app", "level", "count", "error", "--slot", "Cont", code=2)
        assert "did you mean 'Count'?" in done
        assert "debug" in server.grape("app", "level", "count", "debg", code=2)
        assert server.post("/apps/count/level?level=debg").status_code == 400
        assert server.post("/apps/count/level?level=warning").json() == {
            "levels": {"": "warning", "Count": "debug"},
            "orders": {"": "warning", "Count": "debug"},
        }
        server.grape("emit", "count@add", "3")
        assert texts(home, of="3") == ["count", *USUAL]
        server.grape("app", "level", "count", "default", "--slot", "Count")
        server.grape("emit", "count@add", "4")
        assert texts(home, of="4") == ["printed", "told"]

        deployed(server, tmp_path / "count", "2")
        server.grape("emit", "count@add", "5")
        assert texts(home, of="5") == ["printed", "told"]
        server.kill()
    with serving(home, "--log-format", "json") as server:
        server.grape("emit", "count@add", "6")
        assert texts(home, of="6") == ["printed", "told"]
        found = json.loads(server.grape("app", "level", "count", "--json"))
        assert found == {"levels": {"": "warning"}, "orders": {"": "warning"}} == server.get("/apps/count/level").json()
        server.grape("app", "stop", "count")
        server.grape("app", "level", "count", "default")
        assert server.grape("app", "level", "count") == "count: info\n"
        audit = [json.loads(line) for line in server.grape("audit", "--app", "count").splitlines()]
        assert [(a["by"], a["detail"], a["result"]) for a in audit if a["verb"] == "level"][:2] == [
            ("socket", "debug at Count", "ok"),
            ("socket", "error at Cont", "bad-argument"),
        ]
        assert ("http", "warning", "ok") in [(a["by"], a.get("detail"), a["result"]) for a in audit]


def test_the_app_says_its_levels_and_its_operator_goes_before(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home, "--log-format", "json") as server:
        more = '[log]\nlevel = "error"\n[log.slots]\nCount = "debug"\n'
        deployed(server, tmp_path / "count", more=more)
        server.grape("emit", "count@add", "1")
        until(lambda: any(r["text"] == "printed 1" for r in records(home)))
        server.grape("app", "level", "count", "warning")  # also before that of its nodes
        server.grape("emit", "count@add", "2")
        assert texts(home, of="2") == ["printed", "told"]
        assert [r["text"] for r in records(home) if r["text"].endswith(" 1")] == ["count 1", "counted 1", "printed 1"]
        broken = tmp_path / "broken"
        written(broken, more='[log]\nlevel = "lots"\n')
        assert "log.level: debug, info, warning" in server.grape("app", "deploy", broken, code=2)
        written(broken, "3", '[log.slots]\nCuont = "debug"\n')
        assert "did you mean 'Count'?" in server.grape("app", "deploy", broken, code=2)


def test_a_record_knows_its_event_its_trace_and_what_its_author_says(tmp_path: Path) -> None:
    home = tmp_path / "home"
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with serving(home, "--log-format", "json") as server:
        deployed(server, tmp_path / "count", more='[log]\nlevel = "debug"\n')
        server.grape("emit", "count@add", "1", "--id", "e17")
        texts(home, of="1")
        header = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
        assert server.post("/apps/count/events/add?key=k", 2, headers=header).status_code == 202
        texts(home, of="2")
        server.grape("emit", "count@beside", "3", "--id", "e18")
        until(lambda: any(r["text"] == "beside 3" for r in records(home)))
        found = {r["text"]: r for r in records(home)}
    one = found["count 1"]
    assert "Count object" in one["fields"].pop("self")
    about = {name: one[name] for name in ("level", "part", "app", "worker", "slot", "event", "fields")}
    assert about == {
        "level": "debug",
        "part": "app",
        "app": "count",
        "worker": "main.0",
        "slot": "Count",
        "event": "e17",
        "fields": {"n": 1, "who": "ann"},
    }
    assert one["version"].startswith("1 (")
    assert found["printed 1"]["event"] == "e17"
    assert "trace" not in one
    assert found["told 1"]["slot"] == "Tell"
    assert found["told 1"]["event"]
    assert {found[text]["trace"] for text in ("count 2", "printed 2", "told 2")} == {trace}
    assert (found["beside 3"]["slot"], found["beside 3"]["event"]) == ("Sync", "e18")


ALONE = """
import logging
from grape import Topology
{configured}
t = Topology("alone")

@t.slot("one")
def one(line):
    logging.debug("debug %s", line)
    logging.getLogger("a.b").info("info %s", line, extra={{"n": 1}})

@t.slot("two")
def two(line):
    logging.debug("debug %s", line)
"""


@pytest.mark.parametrize(
    ("configured", "options", "wanted"),
    [
        ("", [], {"INFO info 1"}),
        ("", ["--log-level", "debug"], {"DEBUG debug 1", "INFO info 1", "DEBUG debug 2"}),
        ("", ["--log-level", "error", "--log-level", "two=debug"], {"DEBUG debug 2"}),
        (
            "logging.basicConfig(format='own %(message)s', level='DEBUG')",
            [],
            {"own debug 1", "own info 1", "own debug 2"},
        ),
        ("logging.basicConfig(format='own %(message)s')", ["--log-level", "warning"], set()),
        ("logging.getLogger('a').setLevel('WARNING')", ["--log-level", "debug"], {"DEBUG debug 1", "DEBUG debug 2"}),
    ],
)
def test_a_run_is_told_how_much(tmp_path: Path, configured: str, options: list[str], wanted: set[str]) -> None:
    (tmp_path / "alone.py").write_text(ALONE.format(configured=configured))
    for name in ("1", "2"):
        (tmp_path / name).write_text(f"{name}\n")
    done = grape("run", "alone.py", "--feed", "one=1,text", "--feed", "two=2,text", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = {line.partition("] ")[2] for line in done.stderr.splitlines() if line.startswith("[")}
    assert {text.removesuffix(' {"n":1}') for text in said if "debug" in text or "info" in text} == wanted


def test_a_run_is_told_a_level_that_there_is(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(ALONE.format(configured=""))
    for words, text in ((["oen=debug"], "did you mean 'one'?"), (["lots"], "debug, info, warning, error, critical")):
        done = grape("run", "alone.py", "--log-level", *words, cwd=tmp_path)
        assert (done.returncode, text in done.stderr) == (2, True), done.stderr


def test_what_a_record_has_beside_its_text_is_bounded() -> None:
    class Bad:
        def __str__(self) -> str:
            raise ValueError("no")

    extra = {f"f{i}": "x" * 5_000 for i in range(100)}
    record = logging.getLogger("a").makeRecord("a", 20, "", 0, "t", (), None, extra={**extra})
    text = fields_of(record)
    assert len(text) <= 6 << 10
    assert all(len(value) <= 1_000 for value in json.loads(text).values())
    odd = {"big": 1 << 80, "bad": Bad(), "nan": float("nan"), "lone": "\udc80\x1e\n", "\x1e": None, "t": True}
    record = logging.getLogger("a").makeRecord("a", 20, "", 0, "t", (), None, extra=odd)
    text = fields_of(record)
    assert set(text).isdisjoint("\x1e\n")
    found = json.loads(text)
    assert (found["big"], found["t"], found["nan"], found["\x1e"]) == (str(1 << 80), True, None, None)
    assert "ValueError" in found["bad"]
    assert fields_of(logging.makeLogRecord({"msg": "t"})) == ""


SPEAKS_ITSELF = """
import os
from grape import Topology

t = Topology("own")

@t.slot("one")
def one(line):
    for level in ("debug", "info", "error"):
        os.write(2, f"\\x1e{level}\\x1eone\\x1f{line}\\x1e{level} of it\\n".encode())
"""


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], ["info", "error"]),
        (["--log-level", "one=debug"], ["debug", "info", "error"]),
        (["--log-level", "error"], ["error"]),
    ],
)
def test_what_a_worker_does_not_leave_out_the_engine_does(
    tmp_path: Path, options: list[str], wanted: list[str]
) -> None:
    (tmp_path / "own.py").write_text(SPEAKS_ITSELF)
    (tmp_path / "lines").write_text("a\n")
    done = grape("run", "own.py", "--feed", "one=lines,text", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.endswith(" of it")]
    assert said == [f"[one main.0] {level.upper()} {level} of it" for level in wanted]


def test_a_program_says_how_much_handlers_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As `grape run --log-level` does, with what is wrong told at the line of the call."""
    app = written(tmp_path / "count")
    (tmp_path / "in.jsonl").write_text("3\n")
    target = f"{app}/app.py"

    def logged(**options: Any) -> list[str]:
        engine.run(target, feed={"add": tmp_path / "in.jsonl"}, workers=1, **options)
        out, err = capfd.readouterr()
        return sorted(re.findall(r"\] ([A-Z]+ \w+) 3", out + err))

    assert logged() == ["INFO counted", "WARNING told"]
    assert logged(log_level="warning") == ["WARNING told"]
    assert logged(log_level={"Count": "debug", "": "error"}) == ["DEBUG count", "INFO counted"]
    assert logged(log_level={"Tell": "debug"}) == ["DEBUG tell", "INFO counted", "WARNING told"]
    with pytest.raises(UsageError, match="the node 'Tel', which the app does not have; did you mean 'Tell'"):
        logged(log_level={"Tel": "debug"})
    with engine.open(target, workers=1, log_level="error") as running:
        running.emit("add", 4)
    with pytest.raises(UsageError) as wrong:
        engine.aopen(target, log_level="loud")
    assert "log_level=: debug, info, warning" in str(wrong.value)
    assert next(frame.name for frame in wrong.traceback) == "test_a_program_says_how_much_handlers_log"
    assert len(wrong.traceback) <= 2
    assert "told 4" not in capfd.readouterr().err
