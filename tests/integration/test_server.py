"""`grape serve`: apps are deployed, started, upgraded and brought back, each in an engine of its own."""

from __future__ import annotations

import asyncio
import configparser
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.jails import ROOT as IS_ROOT
from tests.jails import environment, open_to_all, python_of_nobody

from command import GRAPE, grape
from grape.apps.package import pack
from grape.server.beside import SideProcess
from grape.server.home import Home, Installed, with_version
from grape.server.hosted import Hosted
from grape.server.neighbours import Neighbours
from grape.server.users import AppUsers
from serving import COUNT, Server, count_app, is_alive, serving, until, write_app


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "home") as server:
        yield server


def test_an_app_is_deployed_called_upgraded_and_rolled_back(server: Server, tmp_path: Path) -> None:
    app = count_app(tmp_path / "count")
    assert server.grape("app", "deploy", app).split()[::3] == ["count", "running"]
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
    count_app(app, "2")
    server.grape("app", "deploy", app)
    assert server.call("count", "add", params={"key": "a"}) == ["2", 2]
    server.grape("app", "rollback", "count")
    assert server.call("count", "add", params={"key": "a"}) == ["1", 3]
    server.grape("app", "upgrade", "count")  # the newest
    assert server.call("count", "add", params={"key": "a"}) == ["2", 4]
    server.grape("app", "upgrade", "count", "1")
    info = server.info("count")
    assert [version["version"] for version in info["versions"]] == ["1", "2"]
    assert info["version"] == "1"
    assert info["numbers"]["pools"]["main"]["state"]


def test_what_is_installed_and_stored_is_there_after_a_stop_and_after_a_kill(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        for name in ("one", "other", "third"):
            write_app(tmp_path / name, f"VERSION = '1'\n{COUNT}", name=name)
            server.grape("app", "deploy", tmp_path / name)
            server.call(name, "add", params={"key": "a"})
        server.grape("app", "stop", "third")
        assert server.stop() == 0
    with serving(tmp_path / "home") as server:
        until(lambda: [server.info(name)["state"] for name in ("one", "other")] == ["running"] * 2)
        assert server.info("third")["state"] == "stopped"
        assert server.call("one", "add", params={"key": "a"}) == ["1", 2]
        server.kill()
    with serving(tmp_path / "home") as server:
        assert server.call("one", "add", params={"key": "a"}) == ["1", 3]
        assert server.call("other", "add", params={"key": "a"}) == ["1", 2]


# F6
def test_an_engine_that_is_killed_is_brought_back_and_the_others_do_not_notice(server: Server, tmp_path: Path) -> None:
    for name in ("one", "other"):
        write_app(tmp_path / name, f"VERSION = '1'\n{COUNT}", name=name)
        server.grape("app", "deploy", tmp_path / name)
        assert server.call(name, "add", params={"key": "a"}) == ["1", 1]
    other = server.engine("other")
    for count in (2, 3):
        engine = server.engine("one")
        os.kill(engine, signal.SIGKILL)
        assert server.call("one", "add", params={"key": "a"}, headers={"idempotency-key": f"i{count}"}) == ["1", count]
        assert server.engine("one") != engine
    assert server.engine("other") == other
    assert server.info("one")["deaths"] == 2
    assert server.info("other")["deaths"] == 0


# F1
def test_who_ends_while_he_is_written_to_does_not_end_the_server(server: Server) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    ignored = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn"))
    assert ignored & 1 << signal.SIGPIPE - 1


def test_an_app_that_cannot_run_is_broken_and_says_why(server: Server, tmp_path: Path) -> None:
    app = write_app(tmp_path / "bad", "import nothing_of_that_name\n")
    said = server.grape("app", "deploy", app, code=2)
    assert "nothing_of_that_name" in said
    assert server.info("bad")["state"] == "broken"
    answer = server.post("/apps/bad/events/add")
    assert answer.status_code == 503
    assert "nothing_of_that_name" in answer.json()["detail"]
    write_app(app, f"VERSION = '1'\n{COUNT}", version="2")
    server.grape("app", "deploy", app)
    assert server.call("bad", "add", params={"key": "a"}) == ["1", 1]


# F92
@pytest.mark.slow
def test_an_upgrade_that_cannot_run_changes_nothing(server: Server, tmp_path: Path) -> None:
    app = count_app(tmp_path / "count")
    server.grape("app", "deploy", app)
    engine = server.engine("count")
    for code in (
        "import nothing_of_that_name\n",
        "topology = 3\n",
        "def topology(config):\n    raise ValueError('x')\n",
    ):
        write_app(app, code, version="2")
        server.grape("app", "deploy", app, code=2)
        assert server.engine("count") == engine
        assert server.call("count", "add", params={"key": code[:9]}) == ["1", 1]
    assert server.info("count")["version"] == "1"


# F93
@pytest.mark.slow
def test_events_of_a_removed_slot_hold_an_upgrade_until_it_is_said_what_becomes_of_them(
    server: Server, tmp_path: Path
) -> None:
    slow = "import time\n" + COUNT.replace(
        "    return t", "    t.add_slot('late', lambda data: time.sleep(60), name='late', pool='late')\n    return t"
    )
    app = write_app(tmp_path / "count", f"VERSION = '1'\n{slow}")
    server.grape("app", "deploy", app)
    for i in range(5):
        assert server.post("/apps/count/events/late", i).status_code == 202
    write_app(app, f"VERSION = '2'\n{COUNT}", version="2")
    said = server.grape("app", "deploy", app, code=2)
    assert "late" in said
    assert "--drop-slot" in said
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]  # the old one goes on
    assert server.info("count")["version"] == "1"
    server.grape("app", "deploy", app, "--drop-slot", "late>late")
    assert server.call("count", "add", params={"key": "a"}) == ["2", 2]


def test_under_load_an_upgrade_loses_nothing_and_refuses_nothing(server: Server, tmp_path: Path) -> None:
    app = count_app(tmp_path / "count")
    server.grape("app", "deploy", app)
    count_app(app, "2")
    answers: list[list[object]] = []
    wrong: list[str] = []
    is_over = threading.Event()

    def load(key: str) -> None:
        while not is_over.is_set():
            answer = server.post("/apps/count/events/add", 1, params={"key": key, "wait": "30"})
            if answer.status_code == 200:
                answers.append([key, *answer.json()])
            else:
                wrong.append(answer.text)

    threads = [threading.Thread(target=load, args=(f"k{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    try:
        for words in (["deploy", app], ["rollback", "count"], ["restart", "count"], ["upgrade", "count"]):
            seen = len(answers)
            until(lambda seen=seen: len(answers) > seen + 20)  # type: ignore[misc]
            server.grape("app", *words)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert {version for _, version, _ in answers} == {"1", "2"}
    for i in range(8):  # each once, in order, over all changes
        counts = [count for key, _, count in answers if key == f"k{i}"]
        assert counts == list(range(1, len(counts) + 1))


# F104
@pytest.mark.slow
def test_a_package_that_was_changed_in_the_store_does_not_run(server: Server, tmp_path: Path) -> None:
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    server.grape("app", "stop", "count")
    code = server.home / "packages" / server.info("count")["digest"] / "app.py"
    code.chmod(0o600)
    code.write_text(code.read_text().replace("VERSION = '1'", "VERSION = 'evil'"))
    assert "has been changed" in server.grape("app", "start", "count", code=2)
    assert server.info("count")["state"] in ("broken", "waiting")
    server.grape("app", "remove", "count", "--data")
    server.grape("app", "deploy", tmp_path / "count")
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]


# F102
def test_an_archive_that_leads_out_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    app = count_app(tmp_path / "count")
    evil = tmp_path / "evil.tar.gz"
    subprocess.run(
        ["tar", "-czf", evil, "--transform", f"s,app.py,../../../{outside.name},", "-C", app, "grape.toml", "app.py"],
        check=True,
    )
    assert "leads out" in server.grape("app", "upload", evil, code=2)
    assert not outside.exists()
    assert list((server.home / "packages").iterdir()) == []
    assert server.grape("app", "list") == ""


@pytest.mark.slow
def test_mistakes_of_an_operator_are_told(server: Server, tmp_path: Path) -> None:
    assert "there is no app 'cuont'" in server.grape("app", "start", "cuont", code=2)
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    assert "did you mean 'count'" in server.grape("app", "start", "cuont", code=2)
    assert "no version '7'" in server.grape("app", "upgrade", "count", "7", code=2)
    assert "no version ran before" in server.grape("app", "rollback", "count", code=2)
    assert "stop it first" in server.grape("app", "remove", "count", code=2)
    server.grape("app", "stop", "count")
    assert "--data" in server.grape("app", "remove", "count", code=2)
    assert "no such" in server.grape("app", "upload", tmp_path / "nothing", code=2).lower()
    assert "grape.toml" in server.grape("app", "upload", tmp_path, code=2)
    assert "another server has it" in grape("serve", server.home, "--no-http").stderr
    assert "needs tokens" in grape("serve", tmp_path / "other", "--listen", "0.0.0.0:0").stderr  # F99
    assert "grape serve" in grape("app", "list", "--home", tmp_path / "other").stderr


@pytest.mark.slow
def test_the_log_has_what_the_app_printed_and_how_it_went(server: Server, tmp_path: Path) -> None:
    code = COUNT.replace("self.n += 1", "self.n += 1; print('got', repr(event.data), '\\x1b[31m')")
    server.grape("app", "deploy", write_app(tmp_path / "count", f"VERSION = '1'\n{code}"))
    server.call("count", "add", "hello\n2026-01-01 [server] INFO a lie", params={"key": "a"})
    until(lambda: "got" in server.grape("app", "logs", "count"))
    lines = server.grape("app", "logs", "count").splitlines()
    assert any("[server] INFO count 1 runs" in line for line in lines)
    (said,) = [line for line in lines if "got" in line]  # F107
    assert "\x1b" not in said
    assert oct((server.home / "apps" / "count" / "log" / "app.log").stat().st_mode)[-3:] == "600"


@pytest.mark.slow
def test_a_secret_is_in_no_file_and_no_answer(tmp_path: Path) -> None:
    canary = "canary-0815-4711"
    code = COUNT.replace("self.n += 1", "import os; assert os.environ['API_KEY']; self.n += 1")
    app = write_app(tmp_path / "count", f"VERSION = '1'\n{code}")
    with open(app / "grape.toml", "a") as file:
        file.write('[secrets]\nAPI_KEY = { env = "CANARY" }\n')
    with serving(tmp_path / "home", env={"CANARY": canary}) as server:  # F108
        server.grape("app", "deploy", app)
        assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
        answers = [server.get(path).text for path in ("/apps", "/apps/count")]
        answers += [server.grape("app", "info", "count"), server.grape("app", "logs", "count")]
        gateways = [pid for pid in server.pids() if "grape.gateway.process" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert gateways
        assert not any(canary.encode() in Path(f"/proc/{pid}/environ").read_bytes() for pid in gateways)
    assert not any(canary in answer for answer in answers)
    for place in (tmp_path / "home").rglob("*"):
        if place.is_file():
            assert canary.encode() not in place.read_bytes(), place


def test_a_gateway_that_dies_is_started_again(server: Server, tmp_path: Path) -> None:
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    (gateway,) = [pid for pid in server.pids() if "grape.gateway.process" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(gateway, signal.SIGKILL)
    until(lambda: server.get("/readyz").status_code == 200)
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]


def test_ctrl_c_ends_it_in_order(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        pids = server.pids()
        os.kill(server.process.pid, signal.SIGINT)
        assert server.process.wait(30) == 0
        assert not any(map(is_alive, pids))
        assert not (server.home / "control").exists()


def test_a_damaged_app_is_left_alone_and_the_others_run(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
    damaged = tmp_path / "home" / "apps" / "damaged"
    damaged.mkdir()
    (damaged / "app.json").write_text('{"name": "da')
    with serving(tmp_path / "home") as server:
        assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
        assert "damaged is left alone" in server.said.read_text()


def test_an_app_is_packed_once_and_taken_by_any_server(server: Server, tmp_path: Path) -> None:
    app = count_app(tmp_path / "count")
    said = [grape("app", "pack", app, "-o", tmp_path / name).stdout.split() for name in ("a.tar.gz", "b.tar.gz")]
    assert said[0][1] == said[1][1]
    server.grape("app", "upload", tmp_path / "a.tar.gz")
    assert "known already" in server.grape("app", "upload", tmp_path / "b.tar.gz")
    assert server.info("count")["state"] == "stopped"
    server.grape("app", "start", "count")
    assert json.loads(server.grape("app", "list", "--json"))[0]["digest"] == said[0][1]


def test_help_teaches() -> None:
    said = subprocess.run([GRAPE, "app", "--help"], capture_output=True, text=True, check=True).stdout
    for word in ("deploy", "upload", "upgrade", "rollback", "logs", "remove"):
        assert word in said


def test_an_app_with_nothing_to_do_needs_no_process_until_somebody_wants_something(tmp_path: Path) -> None:
    late = "self.n += 1\n        if event.data == 'late':\n            self.emit('add', 1, delay=4)"
    app = write_app(tmp_path / "count", "VERSION = '1'\n" + COUNT.replace("self.n += 1", late, 1))
    with serving(tmp_path / "home", "--park-after", "1") as server:
        server.grape("app", "deploy", app)
        assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
        engine = server.engine("count")
        until(lambda: server.info("count")["state"] == "parked")
        assert not is_alive(engine)
        assert server.get("/apps/count/readyz").status_code == 200
        assert server.info("count")["state"] == "parked"  # to look at it does not wake it
        assert server.call("count", "add", params={"key": "a"}) == ["1", 2]
        until(lambda: server.info("count")["state"] == "parked")
        log = server.home / "apps" / "count" / "log" / "app.log"
        parked = log.read_text().count("is parked")
        server.grape("emit", "count@add", '"late"', "--key", "a")
        until(lambda: log.read_text().count("is parked") > parked)
        server.kill()
    with serving(tmp_path / "home", "--park-after", "1") as server:
        until(lambda: log.read_text().count("is parked") >= parked + 2)  # what was due woke it
        assert server.call("count", "add", params={"key": "a"}) == ["1", 5]
        server.grape("app", "stop", "count")
        assert server.post("/apps/count/events/add").status_code == 503


def test_systemd_hears_when_it_is_ready_lives_and_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(30)
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        with serving(tmp_path / "home", env=env) as server:
            heard = [told.recv(100) for _ in range(3)]
            assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            server.stop()
        while (said := told.recv(100)) == b"WATCHDOG=1":
            pass
        assert said == b"STOPPING=1"


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = (Path(__file__).parents[2] / "deploy" / "grape.service").read_text()
    assert "Type=notify" in unit
    verify = shutil.which("systemd-analyze")
    if verify is None:  # not on every machine: then at least its sections and keys can be read
        assert configparser.ConfigParser(strict=False, interpolation=None).read_string(unit) is None
        return
    place = tmp_path / "grape.service"
    place.write_text(unit.replace("/usr/local/bin/grape", GRAPE))
    done = subprocess.run([verify, "verify", place], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def wheel(folder: Path, name: str, version: str, code: str) -> None:
    """The smallest wheel there can be."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", code)
        file.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")


def test_each_version_of_an_app_has_what_it_requires(server: Server, tmp_path: Path) -> None:
    app = write_app(tmp_path / "count", f"import ripe\nVERSION = ripe.TASTE\n{COUNT}")
    wheel(app / "wheels", "ripe", "1.0", "TASTE = 'sour'")
    (app / "requirements.txt").write_text("--no-index\nripe==1.0\n")
    server.grape("app", "deploy", app)
    assert server.call("count", "add", params={"key": "a"}) == ["sour", 1]
    write_app(app, f"import ripe\nVERSION = ripe.TASTE\n{COUNT}", version="2")
    wheel(app / "wheels", "ripe", "2.0", "TASTE = 'sweet'")
    (app / "requirements.txt").write_text("--no-index\nripe==2.0\n")
    server.grape("app", "deploy", app)
    assert server.call("count", "add", params={"key": "a"}) == ["sweet", 2]
    assert len(list((server.home / "environments").iterdir())) == 2
    server.grape("app", "rollback", "count")
    assert server.call("count", "add", params={"key": "a"}) == ["sour", 3]
    (app / "requirements.txt").write_text("--no-index\nunripe==1\n")
    assert "unripe" in server.grape("app", "deploy", app, code=2)
    assert server.call("count", "add", params={"key": "a"}) == ["sour", 4]
    server.grape("app", "stop", "count")
    server.grape("app", "remove", "count", "--data")
    assert list((server.home / "environments").iterdir()) == []


def test_wheels_alone_or_a_project_say_what_is_required(server: Server, tmp_path: Path) -> None:
    app = write_app(tmp_path / "count", f"import ripe\nVERSION = ripe.TASTE\n{COUNT}")
    wheel(app / "wheels", "ripe", "1.0", "TASTE = 'sour'")
    server.grape("app", "deploy", app)
    assert server.call("count", "add", params={"key": "a"}) == ["sour", 1]
    wheel(app / "wheels", "ripe", "2.0", "TASTE = 'sweet'")
    (app / "pyproject.toml").write_text('[project]\nname = "count"\ndependencies = ["ripe<2"]\n')
    server.grape("app", "deploy", app)
    assert server.call("count", "add", params={"key": "a"}) == ["sour", 2]
    (app / "pyproject.toml").write_text('[project]\nname = "count"\ndynamic = ["dependencies"]\n')
    assert "pyproject.toml: its dependencies are dynamic" in server.grape("app", "deploy", app, code=2)
    assert server.call("count", "add", params={"key": "a"}) == ["sour", 3]


IN_ANOTHER_LANGUAGE = """
from grape import Topology
t = Topology("taste")
t.add_pool("other", runtime="RUNTIME", entry="ENTRY")
"""
ASK_RIPE = """
const { Worker } = require("grape-worker");
const ripe = require("ripe");
const worker = new Worker();
worker.slot("taste", { node: "Taste" }, (event) => event.reply([ripe.taste, event.data]));
worker.run();
"""


def foreign_app(directory: Path, runtime: str, entry: str, code: str, env: dict[str, str]) -> Path:
    app = write_app(directory, IN_ANOTHER_LANGUAGE.replace("RUNTIME", runtime).replace("ENTRY", entry))
    (app / entry).write_text(code)
    lines = [f"{name} = {json.dumps(value)}" for name, value in env.items() if name in ("NODE_PATH", "PERL5LIB")]
    with open(app / "grape.toml", "a") as manifest:
        manifest.write("\n".join(["[env]", *lines, ""]))
    return app


def test_an_app_in_javascript_has_what_its_package_json_asks_for(
    server: Server, tmp_path: Path, sdk_env: dict[str, str]
) -> None:
    """By the lock beside it, from a tarball in the package; its scripts are not run."""
    app = foreign_app(tmp_path / "taste", "node", "taste.js", ASK_RIPE, sdk_env)
    ripe = tmp_path / "ripe"
    ripe.mkdir()
    (ripe / "package.json").write_text(
        json.dumps({"name": "ripe", "version": "1.0.0", "scripts": {"install": f"touch {tmp_path}/was-run"}})
    )
    (ripe / "index.js").write_text("exports.taste = 'sweet';")
    subprocess.run(["npm", "pack", "--silent", "--pack-destination", app, ripe], check=True, capture_output=True)
    (app / "package.json").write_text(json.dumps({"name": "taste", "dependencies": {"ripe": "file:ripe-1.0.0.tgz"}}))
    server.grape("app", "deploy", app)
    assert server.call("taste", "taste", 1) == ["sweet", 1]
    assert not (tmp_path / "was-run").exists()
    (app / "package.json").write_text("{")
    assert "package.json" in server.grape("app", "deploy", app, code=2)


ASK_RIPE_IN_PERL = """
use strict; use warnings; use Grape::Worker; use Ripe;
my $worker = Grape::Worker->new;
$worker->slot(taste => { node => 'Taste' }, sub { $_[0]->reply([Ripe::taste(), $_[0]->data]) });
exit $worker->run;
"""
MAKEFILE_PL = """
use ExtUtils::MakeMaker;
open(my $file, ">", "TOUCHED") and print $file "built by $<";
open(my $secret, "<", "HOME/users.json") and die "it sees the server's home";
WriteMakefile(NAME => "Ripe", VERSION => "1.0", NO_META => 1);
"""


def test_an_app_in_perl_has_what_its_cpanfile_asks_for(server: Server, tmp_path: Path, sdk_env: dict[str, str]) -> None:
    """From the mirror in the package; it is built where neither the server nor anything else can be changed."""
    app = foreign_app(tmp_path / "taste", "perl", "taste.pl", ASK_RIPE_IN_PERL, sdk_env)
    mirror = app / "vendor" / "cache"
    author = mirror / "authors" / "id" / "G" / "GR" / "GRAPE"
    author.mkdir(parents=True)
    code = tmp_path / "Ripe-1.0"
    (code / "lib").mkdir(parents=True)
    (code / "lib" / "Ripe.pm").write_text("package Ripe;\nour $VERSION = '1.0';\nsub taste { 'sweet' }\n1;\n")
    touched = tmp_path / "touched"
    (code / "Makefile.PL").write_text(MAKEFILE_PL.replace("TOUCHED", str(touched)).replace("HOME", str(server.home)))
    with tarfile.open(author / "Ripe-1.0.tar.gz", "w:gz") as file:
        file.add(code, "Ripe-1.0")
    (mirror / "modules").mkdir()
    with gzip.open(mirror / "modules" / "02packages.details.txt.gz", "wt") as file:
        file.write("File: 02packages.details.txt\nLine-Count: 1\n\nRipe 1.0 G/GR/GRAPE/Ripe-1.0.tar.gz\n")
    (app / "cpanfile").write_text("requires 'Ripe', '1.0';\n")
    server.grape("app", "deploy", app)
    assert server.call("taste", "taste", 1) == ["sweet", 1]
    assert not touched.exists()


def test_the_operator_says_how_an_app_is_kept(server: Server, tmp_path: Path) -> None:
    server.grape("app", "deploy", count_app(tmp_path / "count"))
    strict = tmp_path / "strict.toml"
    strict.write_text("[pool.main]\npool-limit = 3\n")
    server.grape("profile", "set", "count", strict)
    assert "pool-limit = 3" in server.grape("profile", "show", "count")
    assert server.grape("profile", "list").split() == ["count"]
    server.grape("app", "restart", "count")
    assert server.info("count")["numbers"]["pools"]["main"]["workers_limit"] == 3
    strict.write_text("[pool.main]\npool-limt = 3\n")
    assert "pool-limit" in server.grape("profile", "set", "count", strict, code=2)
    assert "3" in server.grape("profile", "show", "count")
    server.grape("profile", "remove", "count")
    assert "no profile" in server.grape("profile", "show", "count", code=2)
    assert "cannot be the name" in server.grape("profile", "set", "../x", strict, code=2)


# F1
def test_an_app_that_is_stopped_before_it_has_a_process_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "home")
    home.open()
    pack(count_app(tmp_path / "count"), tmp_path / "packed")
    digest, _ = home.take_in(tmp_path / "packed")
    look = home.checked
    has_begun = threading.Event()

    def look_long(name: str, digest: str) -> Path:
        has_begun.set()
        time.sleep(0.3)
        return look(name, digest)

    monkeypatch.setattr(home, "checked", look_long)

    async def begin_and_close() -> None:
        alone = Neighbours({}, SideProcess("the bridge", "bridge.process", {}, lambda *said: None, lambda: None))
        installed = with_version(Installed("count", (), digest, wanted="running"), digest, "1")
        app = Hosted(home, installed, lambda: None, alone, AppUsers(home, is_wanted=True))
        app.begin()
        app.step()
        await asyncio.to_thread(has_begun.wait)
        await asyncio.wait_for(app.close(), 10)
        assert app.keeper.state == "stopped"

    asyncio.run(begin_and_close())
    assert not home.data("count").exists()
    home.close()


# F4
def test_a_home_that_cannot_be_written_is_told_of_and_nothing_hangs(server: Server, tmp_path: Path) -> None:
    app = count_app(tmp_path / "count")
    server.grape("app", "deploy", app)
    server.grape("app", "upload", count_app(app, "2"))
    processes = len(server.pids())
    in_the_way = server.home / "apps" / "count" / "app.json.new"
    in_the_way.mkdir()
    for words in (("stop", "count"), ("restart", "count"), ("upgrade", "count"), ("deploy", app)):
        assert "app.json.new" in server.grape("app", *words, code=3)
    assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
    assert len(server.pids()) == processes  # no engine is left of what could not be
    in_the_way.rmdir()
    server.grape("app", "upgrade", "count")
    assert server.call("count", "add", params={"key": "a"}) == ["2", 2]
    assert server.stop() == 0


def test_an_app_is_parked_and_woken_though_that_cannot_be_noted(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--park-after", "1") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        in_the_way = server.home / "apps" / "count" / "app.json.new"
        in_the_way.mkdir()
        until(lambda: server.info("count")["state"] == "parked")
        assert server.call("count", "add", params={"key": "a"}) == ["1", 1]
        in_the_way.rmdir()
        assert server.stop() == 0


VERSIONED = """
import os
import re
from grape import Node, State, Topology

def change(old, version):
    if old == 3:
        FATE
    return old

class Count(Node):
    n: int = State(int, default=0OPTIONS)

    def process(self, event):
        self.n += 1
        self.reply(self.n)

def topology(config):
    t = Topology("count")
    t.add_slot("add", Count(), retries=0)
    return t
"""


@pytest.mark.parametrize(
    ("fate", "said"), [("raise ValueError('three')", "three"), ("os._exit(3)", "dies when it reads")]
)
def test_a_version_that_cannot_read_the_state_does_not_take_over(tmp_path: Path, fate: str, said: str) -> None:
    app = tmp_path / "count"
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", write_app(app, VERSIONED.replace("OPTIONS", "").replace("FATE", "pass")))
        for i in range(60):
            server.post(f"/apps/count/events/add?key=k{i % 8}&wait=10")
        assert "state of Count: 8 records tried, all can be read" in server.grape(
            "app", "upgrade", "count", "--dry-run"
        )
        code = VERSIONED.replace("OPTIONS", ", version=2, upgrade=change").replace("FATE", fate)
        write_app(app, code.replace("old == 3", "old == 8"), version="2")  # four keys have 8, four 7
        server.grape("app", "upload", app)
        assert said in server.grape("app", "upgrade", "count", "2", code=2)
        assert server.call("count", "add", params={"key": "k7"}) == 8
        assert server.info("count")["version"] == "1"
        if "exit" in fate:
            return
        report = server.grape("app", "upgrade", "count", "2", "--dry-run", code=1, said=True)
        assert "state of Count: 8 records tried, 5 cannot be read" in report
        server.grape("app", "upgrade", "count", "2", "--unread")
        assert server.call("count", "add", params={"key": "k6"}) == 8
        server.post("/apps/count/events/add?key=k0&wait=10")
        assert "three" in server.grape_data("dead", "list", "count")


def test_top_shows_what_apps_do(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        server.call("count", "add", params={"key": "a"})
        server.grape("app", "deploy", count_app(tmp_path / "other" / "count"))
        (row,) = map(json.loads, server.grape("top", "--json", "--once", "--every", "0.2").splitlines())
        assert (row["name"], row["state"], row["waiting"], row["dead"]) == ("count", "running", 0, 0)
        assert row["done"] == 0.0
        parts = [json.loads(line) for line in server.grape("top", "count", "--json", "--once").splitlines()]
        assert [part["name"].strip() for part in parts] == ["count", "[main]", "add>Count"]
        shown = server.grape("top", "--once", "--every", "0.1")
        assert "WAITING" in shown
        assert "count" in shown
        assert "did you mean 'count'?" in server.grape("top", "cuont", "--once", code=2)


def test_dev_runs_what_lies_in_the_directory_as_it_changes(tmp_path: Path) -> None:
    app = count_app(tmp_path / "count")
    said = tmp_path / "said"
    home = ("--home", app / ".grape")
    with open(said, "wb") as file:
        command = [GRAPE, "app", "dev", str(app), "--listen", "127.0.0.1:0"]
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        until(lambda: len(re.findall(r"count 1 \w+ runs", said.read_text())) == 1)
        assert json.loads(grape("call", "count@add", "--key", "a", *home).stdout) == ["1", 1]
        count_app(app, "2")
        until(lambda: "count 2 " in said.read_text())
        assert json.loads(grape("call", "count@add", "--key", "a", *home).stdout) == ["2", 2]
        (app / "app.py").write_text("topology = 3")
        until(lambda: "error:" in said.read_text())
        assert json.loads(grape("call", "count@add", "--key", "a", *home).stdout) == ["2", 3]
        count_app(app, "3")
        until(lambda: "count 3 " in said.read_text())
        assert "print" not in said.read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "there is no grape.toml" in grape("app", "dev", tmp_path).stderr


def test_bench_loads_an_app(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.grape("app", "deploy", count_app(tmp_path / "count"))
        load = ("bench", "count@add", "{n}", "--url", server.url, "--keys", 10)
        found = json.loads(grape(*load, "-n", 200, "-c", 4, "-t", 2, "--call", "--json").stdout)
        assert (found["answered"], found["statuses"], found["errors"]) == (200, {"200": 200}, {})
        rows = map(json.loads, server.grape_data("state", "list", "count").splitlines())
        assert {row["key"]: row["state"]["n"] for row in rows} == {f"k{i}": 20 for i in range(10)}
        shown = grape(*load, "--seconds", 1, "--rate", 50)
        assert shown.returncode == 0, shown.stderr
        assert "answered in 1." in shown.stdout
        assert grape("bench", "count@nothing", "--url", server.url, "-n", 3).returncode == 1
    assert "nothing was answered" in grape(*load, "-s", 0.2).stderr


WHO = """
import os
from grape import Context, Topology

t = Topology("NAME")

@t.slot("who", name="who")
def who(paths: list, context: Context) -> None:
    found = {}
    for path in paths:
        try:
            found[path] = len(os.listdir(path))
        except OSError as e:
            found[path] = type(e).__name__
    context.reply([os.getuid(), os.getgid(), found])
"""


@pytest.mark.skipif(not IS_ROOT, reason="only root starts workers as other users")
def test_as_root_each_app_is_a_user_of_its_own(tmp_path: Path) -> None:
    python = python_of_nobody()
    open_to_all(tmp_path)
    for name in ("one", "two"):
        write_app(tmp_path / name, WHO.replace("NAME", name))
    home = tmp_path / "home"
    users = {}
    with serving(home, prefix=[python], env=environment()) as server:
        for name in ("one", "two"):
            server.grape("app", "deploy", tmp_path / name)
        packages = {server.info(name)["digest"]: name for name in ("one", "two")}
        places = [str(home), str(home / "apps"), *(str(home / "packages" / digest) for digest in packages)]
        for name in ("one", "two"):
            uid, gid, found = server.call(name, "who", places)
            users[name] = uid
            assert uid == gid > 60_000
            assert found.pop(str(home / "packages" / next(d for d, n in packages.items() if n == name))) == 2
            assert set(found.values()) == {"PermissionError"}
        assert users["one"] != users["two"]
        assert server.grape("doctor", "--home", home) is not None
        # An app cannot choose: not root, and not another one.
        (tmp_path / "one" / "grape.toml").open("a").write("[pool.main.isolate]\nuid = 0\n")
        assert "every app is a user of its own" in server.grape("app", "deploy", tmp_path / "one", code=2)
        # Who keeps the server can.
        strict = tmp_path / "operator.toml"
        strict.write_text("[pool.main.isolate]\nuid = 65534\n")
        server.grape("profile", "set", "two", strict)
        server.grape("app", "restart", "two")
        assert server.call("two", "who", [])[0] == 65534
    with serving(home, prefix=[python], env=environment()) as server:
        assert server.call("one", "who", [])[0] == users["one"]
    with serving(home, prefix=[python], env={**environment(), "GRAPE_SERVER_APP_USERS": "no"}) as server:
        assert server.call("one", "who", [])[0] == 0
