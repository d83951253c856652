"""What a server and its apps log, as JSON; settings from a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import otlp
from command import grape
from grape.server.log import AppLog, LogKind
from grape.server.telling import listen
from serving import serving, until, write_app

LOUD = """
import logging
from grape import Topology

t = Topology("loud")

@t.slot("say", retries=0)
def say(text):
    print("printed", text)
    logging.getLogger("own").warning("logged %s", text)
    if text == "fail":
        raise ValueError("no")
"""


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_everything_is_json_by_the_line_if_the_file_of_the_server_says_so(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "grape-server.toml").write_text('log-format = "json"\ngateways = 2\n')
    with serving(home, env={"GRAPE_SERVER_LOG_SIZE": "64 KiB"}) as server:
        server.grape("app", "deploy", write_app(tmp_path / "loud", LOUD))
        server.grape("emit", "loud@say", '"fail"', "--id", "e17")
        log = home / "apps" / "loud" / "log" / "app.log"
        until(lambda: all(text in log.read_text() for text in ("failed at event", "logged fail", "printed fail")))
        found = records(log)
        assert {"level": "stdout", "part": "app", "app": "loud", "slot": "say"}.items() <= next(
            r for r in found if r["text"] == "printed fail"
        ).items()
        warned = next(r for r in found if "logged fail" in r["text"])
        assert (warned["level"], warned["worker"]) == ("warning", "main.0")
        failed = next(r for r in found if "failed at event" in r["text"])
        assert failed["event"] == "e17"
        assert any(r["part"] == "server" and r["text"] == "loud 1 runs" for r in found)
        gateways = [pid for pid in server.pids() if b"gateway.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(gateways) == 2
        os.kill(gateways[0], signal.SIGKILL)
        until(lambda: "started again" in server.said.read_text())
    said = records(server.said)
    assert {r["part"] for r in said} == {"server"}
    assert any(r["level"] == "warning" and "started again" in r["text"] for r in said)


def test_the_server_has_a_log_of_its_own_with_what_its_processes_say(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home, "--log-file", str(tmp_path / "server.log")):
        pass
    lines = (tmp_path / "server.log").read_text().splitlines()
    assert any("[server] listening at http" in line for line in lines)
    assert lines[0].startswith("20")


def test_what_a_process_beside_engines_logs_comes_with_its_level() -> None:
    code = (
        "import logging; from grape.server.telling import begin_logging; begin_logging()\n"
        "logging.warning('a\\nb')\ntry:\n    1/0\nexcept ZeroDivisionError:\n    logging.exception('no')\n"
        "raise SystemExit('over')"
    )
    said: list[tuple[str, str]] = []

    async def hear() -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
        assert process.stderr is not None
        await listen(process.stderr, lambda text, level: said.append((level, text)))
        await process.wait()

    asyncio.run(hear())
    assert said[0] == ("warning", "a\nb")
    assert said[1][0] == "error"
    assert said[1][1].endswith("ZeroDivisionError: division by zero")
    assert said[2] == ("error", "over")


def test_a_log_is_turned_over(tmp_path: Path) -> None:
    log = AppLog(tmp_path / "app.log", "a", LogKind(is_json=True, size=2_000, older=2))
    for i in range(100):
        log.note(f"{i}: " + "\x1b\udc80\n" * 2)
    log.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["app.log", "app.log.1", "app.log.2"]
    assert all(p.stat().st_size <= 2_000 for p in tmp_path.iterdir())
    for part in tmp_path.iterdir():
        assert all(record["app"] == "a" for record in records(part))
        assert "\x1b" not in part.read_text()


def test_records_go_wherever_the_server_says_and_whoever_is_away_stops_nobody(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog,
        otlp.strict() as collector,
    ):
        journal.bind(str(tmp_path / "journal"))
        syslog.bind(("127.0.0.1", 0))
        collector.status = 503
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_TRACES_EXPORTER": "none",
            "GRAPE_SERVER_LOG_JOURNALD": str(tmp_path / "journal"),
        }
        url = f"udp://127.0.0.1:{syslog.getsockname()[1]}"
        options = ("--log-to", "console,journald,syslog,otlp", "--log-syslog", url, "--log-format", "json")
        with serving(home, *options, env=env) as server:
            server.grape("app", "deploy", write_app(tmp_path / "loud", LOUD))
            server.grape("emit", "loud@say", '"fail"', "--id", "e17")
            for taker in (journal, syslog):
                taker.settimeout(60)
                while b"logged fail" not in (message := taker.recv(1 << 16)):
                    pass
                assert b"e17" in message
            until(lambda: any(r["text"] == "logged fail" and r["event"] == "e17" for r in records(server.said)))
            until(lambda: any("takes no records: it answers 503" in r["text"] for r in records(server.said)))
            collector.status = 0
            until(lambda: any(each.body.string_value == "logged fail" for each in collector.records), 90)
            assert collector.problems == []
            assert not (home / "apps" / "loud" / "log" / "app.log").exists()
            server.grape("app", "logs", "loud", code=2)


def test_a_server_does_not_start_without_what_it_is_to_log_to(tmp_path: Path) -> None:
    for words, text in (
        (["--log-to", "otlp"], "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (["--log-to", "paper"], "file, console, syslog, journald, otlp"),
        (["--log-syslog", "h:514"], "udp://HOST:514"),
    ):
        done = grape("serve", tmp_path / "home", "--no-http", *words)
        assert (done.returncode, text in done.stderr) == (2, True), done.stderr
