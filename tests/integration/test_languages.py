"""Workers in JavaScript, Perl, C++ and of lines: real interpreters and compilers, SDKs installed by their own tools."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from tests.command import GRAPE
from tests.command import grape as command
from tests.jails import NOBODY, environment, python_of_nobody
from tests.jails import ROOT as IS_ROOT

import grape
from grape.errors import Unsupported
from grape.isolates import cgroups
from grape.testing.conformance.cases import all_cases
from grape.testing.conformance.run import conform, lines_subject, worker_subject

ROOT: Final = Path(__file__).parents[2]
SDKS: Final = ROOT / ".cache" / "sdks"
CONFORMANCE: Final = ROOT / "conformance"
CHAPTERS: Final = tuple(dict.fromkeys(case.chapter for case in all_cases()))


# ------------------------------------------------------------------ conformance

SPEAKERS: Final[dict[str, list[str]]] = {
    "python": [sys.executable, "-m", "grape.worker", "--target", "grape.testing.conformance.app:topology"],
    "node": ["node", str(CONFORMANCE / "worker.js")],
    "cpp": [str(SDKS / "cpp" / "worker")],
    "perl": ["perl", str(CONFORMANCE / "worker.pl")],
    "ruby": ["ruby", str(CONFORMANCE / "ruby" / "worker.rb")],
    "lines": [str(CONFORMANCE / "lines.py")],
}


LACKS: Final = {
    "python": {"base"},
    "node": {"base"},
    "cpp": {"base"},
    "ruby": {"timers", "calls", "peers", "objects", "logs"},
    "lines": {"base", "calls"},
}
"""Chapters about a capability that the speaker does not have; of messages: `lines` has none."""


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("speaker", SPEAKERS)
def test_every_speaker_conforms(speaker: str, chapter: str, sdk_env: dict[str, str]) -> None:
    env = {**os.environ, **sdk_env}
    file = CONFORMANCE / f"known-{speaker}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    words = SPEAKERS[speaker]
    subject = lines_subject(words) if speaker == "lines" else worker_subject(words, env=env)
    outcomes = list(conform(subject, env=env, known=known, chapters=[chapter]))
    assert bool(outcomes) == subject.is_asked(chapter) == (chapter not in LACKS.get(speaker, ()))
    bad = [f"{o.case.title}: {o.error or 'known to fail, but does not'}" for o in outcomes if not o.is_good]
    assert not bad, "\n".join(bad)


def test_the_table_of_capabilities_says_what_is_tested() -> None:
    """docs/languages.md, beside LACKS: "no" is what a speaker lacks."""
    columns = ("python", "node", "cpp", None, "perl", "lines")  # C has what C++ has, or says "no"
    for chapter in ("timers", "calls", "peers", "rates", "objects", "logs", "chain"):
        (row,) = re.findall(rf"^\| `{chapter}`: .*$", (ROOT / "docs" / "languages.md").read_text(), re.MULTILINE)
        said = [cell.strip() == "no" for cell in row.strip("|").split("|")[1:]]
        for speaker, is_lacking in zip(columns, said, strict=True):
            assert speaker is None or is_lacking == (chapter in LACKS.get(speaker, ())), (chapter, speaker)


def test_the_command_tells_a_third_party_what_is_wrong(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    text = (CONFORMANCE / "lines.py").read_text()
    broken.write_text(text.replace('state.get("count", 0) + 1', 'state.get("count", 0) + 2', 1))
    broken.chmod(0o755)
    command = [GRAPE, "conformance", "worker", "--lines", "--chapter", "state", "--", str(broken)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "fails  state is kept by key" in done.stderr
    assert "not [['out', 'a', 1]" in done.stderr
    known = tmp_path / "known.json"
    known.write_text('{"state: state is kpt by key": "a typo"}')
    done = subprocess.run(
        [*command[:4], "--known", str(known), "--", str(broken)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "there is no case 'state: state is kpt by key'" in done.stderr
    mute = ["--", sys.executable, "-S", "-c", "import sys, os, time; os.close(int(sys.argv[4])); time.sleep(100)"]
    done = subprocess.run([*command[:3], *mute], check=False, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "it has closed its socket, but goes on" in done.stderr
    done = subprocess.run([*command[:6], "--", "/bin/false"], check=False, capture_output=True, text=True)
    assert done.returncode in (2, 3), done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------ handlers that ask

SHOP: Final = """
from grape import Node, Topology

class Price(Node):
    def process(self, event):
        self.reply({"tea": 3}[event.data])

topology = Topology("shop")
topology.add_output("sold")
topology.add_output("lost")
topology.add_pool("js", runtime="node", entry="order.js")
topology.add_pool("pl", runtime="perl", entry="order.pl")
topology.add_slot("price", Price(), retries=0)
"""
IN_JAVASCRIPT: Final = """
const { CallFailed, Worker } = require("grape-worker");
const worker = new Worker();
function order(event) {
  event.state.n = (event.state.n ?? 0) + 1;
  try {
    event.emit("sold", [event.name, event.call("price", event.data), event.state.n]);
  } catch (error) {
    if (!(error instanceof CallFailed)) throw error;
    event.emit("lost", [event.name, error.code], { delay: 60, timer: "lost" });
    event.cancelTimer("lost");
    event.emit("lost", [event.name, error.code], { delay: 0.01, timer: "lost" });
  }
}
worker.slot("js", { node: "Sync", states: ["n"] }, order);
worker.slot("async", { node: "Async", states: ["n"] }, async (event) => order(event));
worker.run();
"""
IN_PERL: Final = """
use strict; use warnings; use Grape::Worker;
my $worker = Grape::Worker->new;
$worker->slot(perl => { node => 'Perl', states => ['n'] }, sub {
    my ($event) = @_;
    my $n = ++$event->state->{n};
    my $price;
    return $event->emit(sold => ['perl', $price, $n]) if eval { $price = $event->call(price => $event->data); 1 };
    die $@ if !ref $@ || !$@->isa('Grape::CallFailed');
    my $code = $@->code;
    $event->emit(lost => ['perl', $code], delay => 60, timer => 'lost');
    $event->cancel_timer('lost');
    $event->emit(lost => ['perl', $code], delay => 0.01, timer => 'lost');
});
exit $worker->run;
"""


def test_handlers_ask_a_node_in_another_language(
    tmp_path: Path, sdk_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"app.py": SHOP, "order.js": IN_JAVASCRIPT, "order.pl": IN_PERL}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    askers = ("js", "async", "perl")
    found: list[Any] = []
    with grape.open("app.py:topology", env=sdk_env, data=tmp_path / "data") as engine:
        for event in askers:
            for data in ("tea", "wine", "tea"):
                engine.emit(event, data, key=event)
        for name, count in (("sold", 6), ("lost", 3)):
            found += [event.data for event in islice(engine.outputs(name, timeout=60), count)]
    wanted = [[event, 3, n] for event in askers for n in (1, 3)] + [[event, "KeyError"] for event in askers]
    assert sorted(found, key=str) == sorted(wanted, key=str)


# ------------------------------------------------------------------ one app in four languages

RUNNERS: Final = 60
ROUNDS: Final = 30
KILLS: Final = 30


def test_a_relay_through_four_languages_counts_exactly_while_all_are_killed(
    tmp_path: Path, sdk_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python, JavaScript, Perl and C++ in one cycle, with keyed state in each."""
    here = shutil.copytree(ROOT / "examples" / "03-relay", tmp_path / "relay")
    monkeypatch.chdir(here)
    profile = {pool: {"pool-limit": 1} for pool in ("main", "js", "pl", "cpp")}
    config = {"rounds": ROUNDS}
    rng = random.Random(4)
    over = threading.Event()
    killed: list[str] = []

    def kill() -> None:
        """One worker or all, whenever some work was done since."""
        before = 0
        while not over.wait(0.01) and len(killed) < KILLS:
            done = sum(pool.finished for pool in engine.numbers().pools.values())
            workers = [p for p in psutil.Process().children(recursive=True) if "--parent" in _words(p)]
            if done - before < 60 or not workers:
                continue
            before = done
            for victim in workers if rng.random() < 0.3 else [rng.choice(workers)]:
                killed.append(" ".join(_words(victim)))
                _kill(victim)

    finished: dict[str, Any] = {}
    with grape.open("app.py:topology", config=config, profile=profile, env=sdk_env, data=tmp_path / "data") as engine:
        for n in range(RUNNERS):
            engine.emit("start", {"name": f"r{n}"}, key=f"r{n}")
        killer = threading.Thread(target=kill)
        killer.start()
        for event in engine.outputs("finished", timeout=60):
            assert event.key not in finished
            finished[str(event.key)] = event.data
            if len(finished) == RUNNERS:
                break
        over.set()
        killer.join()
    assert len(finished) == RUNNERS
    wrong = {key: data for key, data in finished.items() if (data["js"], data["perl"], data["cpp"]) != (ROUNDS,) * 3}
    assert not wrong
    assert len(killed) >= 8
    for language in ("grape.worker ", "relay.js", "relay.pl", "build/relay"):
        assert any(language in words for words in killed), f"{language} was never killed: {killed}"


FIVE: Final = """
from grape import Topology
t = Topology("five")
t.add_output("done")
t.add_pool("p", runtime={runtime!r}, entry={entry!r})
"""
FIVE_NODES: Final = {
    "node": """
const { Worker } = require("grape-worker");
const worker = new Worker();
const names = ["a", "b", "c", "d", "e", "done"];
names.slice(0, 5).forEach((name, i) => {
  worker.slot(name, { node: name.toUpperCase(), states: ["n"], emits: [names[i + 1]] }, (event) => {
    event.state.n = (event.state.n ?? 0) + 1;
    event.emit(names[i + 1], [...event.data, event.state.n]);
  });
});
worker.run();
""",
    "exec": """
#include <grape/worker.hpp>
#include <string>
#include <vector>
int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  const std::vector<std::string> names{"a", "b", "c", "d", "e", "done"};
  for (std::size_t i = 0; i < 5; ++i) {
    const std::string next = names[i + 1];
    const std::string node(1, static_cast<char>('A' + i));
    worker.slot(names[i], grape::Slot(node).state("n").emits(next), [next](grape::Event& event) {
      auto n = event.state("n");
      n.set(n.get<std::int64_t>(0) + 1);
      auto seen = event.as<std::vector<std::int64_t>>();
      seen.push_back(n.get<std::int64_t>());
      event.emit(next, seen);
    });
  }
  return worker.run();
}
""",
}


@pytest.mark.parametrize("runtime", FIVE_NODES)
def test_a_chain_of_five_counts_exactly_while_its_worker_is_killed(
    tmp_path: Path, sdk_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    """Keyed state in each: an event is done at all of its nodes, or will be done again at all of them."""
    entry = {"node": "five.js", "exec": "five"}[runtime]
    (tmp_path / "app.py").write_text(FIVE.format(runtime=runtime, entry=entry))
    (tmp_path / {"node": "five.js", "exec": "five.cpp"}[runtime]).write_text(FIVE_NODES[runtime])
    monkeypatch.chdir(tmp_path)
    if runtime == "exec":
        words = ["c++", "-std=c++17", "-I", SDKS / "cpp" / "include", "five.cpp", "-o", "five", "-pthread"]
        subprocess.run(words, check=True)
    keys, rounds = 20, 100
    profile = {"p": {"pool-limit": 1}}
    killed = 0
    found: dict[str, list[list[int]]] = {}
    with grape.open("app.py:t", profile=profile, env=sdk_env, data=tmp_path / "data") as engine:
        outputs = engine.outputs("done", timeout=60)
        for n in range(rounds):
            for key in range(keys):
                engine.emit("a", [n], key=f"k{key}")
            if n % 20 == 10:  # some of it is in work, and some is done
                for event in islice(outputs, keys):
                    found.setdefault(str(event.key), []).append(event.data)
                for worker in psutil.Process().children(recursive=True):
                    if "--parent" in _words(worker) and entry in " ".join(_words(worker)):
                        _kill(worker)
                        killed += 1
        while sum(map(len, found.values())) < keys * rounds:
            event = next(outputs)
            found.setdefault(str(event.key), []).append(event.data)
        processed = engine.numbers().pools["p"].finished
    assert killed >= 4
    assert found == {f"k{key}": [[n, *[n + 1] * 5] for n in range(rounds)] for key in range(keys)}
    assert processed < 2 * keys * rounds  # of the log: b to e are not in it


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass


# ------------------------------------------------------------------ streams of replies

PING_JS: Final = """
const { Worker } = require("grape-worker");
const worker = new Worker();
worker.slot("ping", { node: "Ping" }, async (event) => {
  const { n, name } = event.data;
  await new Promise((resolve) => setTimeout(resolve, 1));
  if (n < 10) event.emit("pong", { n: n + 1, name });
  event.reply({ n, name }, { final: n === 10 });
});
worker.run();
"""
PING_PY: Final = """
from grape import Node

class Begin(Node):
    def process(self, event):
        self.emit("ping", {"n": 0, "name": event.data}, key=event.data)

class Pong(Node):
    def process(self, event):
        self.reply({**event.data, "from": "python"}, final=False)
        self.emit("ping", event.data)

t.add_pool("js", runtime="node", entry="w.js")
t.add_slot("word", Begin())
t.add_slot("pong", Pong())
"""


def test_a_hundred_streams_of_replies_interleave(tmp_path: Path, sdk_env: dict[str, str]) -> None:
    """H78: through two languages and a cycle, each caller gets the parts of its own answer, in their order."""
    (tmp_path / "w.js").write_text(PING_JS)
    (tmp_path / "names.txt").write_text("".join(f"caller-{i}\n" for i in range(100)))
    done = run(
        tmp_path,
        PING_PY,
        *("--replies", "replies.jsonl", "--env", f"NODE_PATH={sdk_env['NODE_PATH']}"),
        feed="word=names.txt",
    )
    assert done.returncode == 0, done.stderr
    streams: dict[str, list[dict[str, Any]]] = {}
    begun_before_any_ended = 0
    for line in (tmp_path / "replies.jsonl").read_text().splitlines():
        reply = json.loads(line)
        streams.setdefault(reply["id"], []).append(reply)
        if not any(parts[-1]["final"] for parts in streams.values()):
            begun_before_any_ended = len(streams)
    assert len(streams) == 100
    assert begun_before_any_ended > 50
    assert len({parts[0]["data"]["name"] for parts in streams.values()}) == 100
    for parts in streams.values():
        assert len({part["data"]["name"] for part in parts}) == 1
        steps = [(part["data"]["n"], "from" in part["data"]) for part in parts]
        assert steps == [(0, False), *((n, python) for n in range(1, 11) for python in (True, False))]
        assert [part["final"] for part in parts] == [False] * 20 + [True]


# ------------------------------------------------------------------ confined

HOSTILE: Final = {
    "node": ("node", "hostile.js"),
    "perl": ("perl", "hostile.pl"),
    "cpp": ("exec", "hostile"),
    "lines": ("lines", "hostile.sh"),
}
APP: Final = """
from grape import External, Topology
t = Topology("hostile")
t.add_output("out")
t.add_pool("other", runtime={runtime!r}, entry={entry!r})
if {runtime!r} == "lines":
    t.add_slot("good", External("Good"), pool="other")
    t.add_slot("bomb", External("Bomb"), pool="other", retries=0, timeout=3)

@t.slot("near", emits=["out"])
def near(line: str) -> str:
    return line
"""
ISOLATES: Final[dict[str, dict[str, Any]]] = {
    "sandbox": {"type": "sandbox", "pids": 40, "memory": "512 MiB"},
    "container": {"type": "container", "pids": 40, "memory": "512 MiB"},
}


def hostile(tmp_path: Path, language: str) -> Path:
    """A directory with the app; its processes have a name of their own."""
    runtime, name = HOSTILE[language]
    entry = f"{secrets.token_hex(8)}-{name}"
    tmp_path.chmod(0o755)
    where = tmp_path / "app"
    where.mkdir()
    source = SDKS / "cpp" / name if language == "cpp" else ROOT / "tests" / "speakers" / name
    shutil.copy(source, where / entry)
    (where / "app.py").write_text(APP.format(runtime=runtime, entry=entry))
    return where


@pytest.mark.parametrize("level", ["process", "sandbox", "container"])
@pytest.mark.parametrize("language", HOSTILE)
def test_workers_of_every_language_run_at_every_level(
    tmp_path: Path, language: str, level: str, sdk_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hostile(tmp_path, language))
    profile = {"other": {"pool-limit": 1, "isolate": ISOLATES.get(level, {"type": level})}}
    with grape.open("app.py:t", profile=profile, env=sdk_env) as engine:
        engine.emit("good", 1, key="k")
        assert [event.data for event in _some(engine.outputs("out", timeout=30), 1)] == [1]


@pytest.fixture
def public_path() -> Iterator[Path]:
    """Another user may come to it, unlike to pytest's own."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place)


@pytest.mark.parametrize("language", HOSTILE)
def test_workers_of_every_language_run_in_a_control_group(
    public_path: Path, language: str, sdk_env: dict[str, str]
) -> None:
    """As another user, if this is root: so by a Python which that user may run."""
    try:
        cgroups.check()
    except Unsupported as e:
        pytest.skip(str(e))
    here = hostile(public_path, language)
    (here / "in.jsonl").write_text("1\n")
    uid = f"uid = {NOBODY}\n" if IS_ROOT else ""
    (here / "p.toml").write_text(f'[pool.other.isolate]\ntype = "cgroup"\npids = 40\n{uid}')
    python, env = python_of_nobody() if IS_ROOT else sys.executable, environment()
    for_workers = {**sdk_env, "PYTHONPATH": env["PYTHONPATH"]}
    options = [word for name, value in for_workers.items() for word in ("--env", f"{name}={value}")]
    command = [python, "-B", "-m", "grape", "run", "app.py:t", "--feed", "good=in.jsonl", "--take", "out=-"]
    done = subprocess.run(
        [*command, "--profile", "p.toml", *options],
        check=False, cwd=here, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"] == 1


@pytest.mark.parametrize("language", HOSTILE)
def test_a_fork_bomb_of_every_language_is_contained(
    tmp_path: Path, language: str, sdk_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """F51: the limit holds, the failure is named, all of it is gone, others go on."""
    here = hostile(tmp_path, language)
    (entry,) = (path.name for path in here.iterdir() if path.name.endswith(HOSTILE[language][1]))
    monkeypatch.chdir(here)
    profile = {"other": {"pool-limit": 1, "isolate": ISOLATES["sandbox"]}, "main": {"pool-limit": 1}}
    data = tmp_path / "data"
    with grape.open("app.py:t", profile=profile, env=sdk_env, data=data) as engine:
        outputs = engine.outputs("out", timeout=60)
        engine.emit("good", 1, key="a")
        assert next(outputs).data == 1
        engine.emit("bomb", 1, key="b")
        for i in range(20):
            engine.emit("near", f"{i}", key="c")
            assert next(outputs).data == f"{i}"
        assert any(entry in " ".join(_words(p)) for p in psutil.process_iter())
        most = 0
        until = time.monotonic() + 60
        while not _letters(data):
            most = max(most, len(psutil.Process().children(recursive=True)))
            assert time.monotonic() < until
        assert most < 120
        engine.emit("near", "after", key="c")
        assert next(outputs).data == "after"
    left = [p for p in psutil.process_iter() if entry in " ".join(_words(p))]
    assert not left


def _letters(data: Path) -> list[str]:
    return command("dead", "list", "--data", data).stdout.splitlines()


def _some(events: Any, count: int) -> list[Any]:
    return [next(events) for _ in range(count)]


# ------------------------------------------------------------------ mistakes


def run(tmp_path: Path, text: str, *options: str, feed: str = "word=in.txt") -> subprocess.CompletedProcess[str]:
    (tmp_path / "app.py").write_text(f"from grape import External, Topology\nt = Topology('mistake')\n{text}\n")
    (tmp_path / "in.txt").write_text("x\n")
    return command("run", "app.py:t", "--feed", feed, *options, cwd=tmp_path)


BROKEN: Final = {
    "node": ("js", 'const x = require("./nowhere");\n', "Cannot find module './nowhere'"),
    "perl": ("pl", "use No::Such::Module;\n", "Can't locate No/Such/Module.pm"),
    "lines": ("sh", "#!/no/such/interpreter\n", "the interpreter in its first line is missing: '/no/such/interpreter'"),
    "exec": ("sh", "#!/bin/sh\necho it is broken >&2\nexit 7\n", "it exited with code 7"),
}


@pytest.mark.parametrize("runtime", BROKEN)
def test_a_worker_that_cannot_start_says_why(tmp_path: Path, runtime: str) -> None:
    """F59: a bad import, a missing interpreter, a program that ends."""
    suffix, text, why = BROKEN[runtime]
    (tmp_path / f"w.{suffix}").write_text(text)
    (tmp_path / f"w.{suffix}").chmod(0o755)
    slot = "t.add_slot('word', External('W'), pool='other')" if runtime == "lines" else ""
    done = run(tmp_path, f"t.add_pool('other', runtime={runtime!r}, entry='w.{suffix}')\n{slot}")
    assert done.returncode == 2, done.stderr
    assert why in done.stderr
    assert "error: pool 'other'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("t.add_pool('p', runtime='ruby', entry='x')", "runtime= is"),
        ("t.add_pool('p', runtime='node')", "needs entry="),
        ("t.add_pool('p', entry='x.js')", "entry= is for other runtimes"),
        ("t.add_pool('p', runtime='node', entry='missing.js')", "no file 'missing.js'"),
        ("t.add_pool('p', runtime='exec', entry='in.txt')", "is not executable"),
        (
            "t.add_pool('p', runtime='lines', entry='in.txt')\n@t.slot('word', pool='p')\ndef f(x: str) -> None: ...",
            "is Python, but pool 'p' has runtime='lines'",
        ),
        (
            "t.add_pool('p', runtime='node', entry='in.txt')\n@t.slot('word', pool='p')\ndef f(x: str) -> None: ...",
            "declare their slots themselves",
        ),
        ("t.add_slot('word', External('W'))", "a node of a pool with runtime='lines'"),
    ],
)
def test_mistakes_are_explained_where_they_are(tmp_path: Path, text: str, why: str) -> None:
    done = run(tmp_path, text)
    assert done.returncode == 2, done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_interpreter_in_a_first_line_is_thought_of(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("#!/no/such/interpreter\n")
    (tmp_path / "w").chmod(0o755)
    done = run(tmp_path, "t.add_pool('p', runtime='exec', entry='w')")
    assert done.returncode == 2, done.stderr
    assert "code 127: the program was not found, or what its first line names" in done.stderr


def test_a_missing_interpreter_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.js").write_text("")
    done = run(tmp_path, "t.add_pool('p', runtime='node', entry='w.js')", "--env", "PATH=/nowhere")
    assert done.returncode == 2, done.stderr
    assert "no such program" in done.stderr
    assert "'node'" in done.stderr


SETUP: Final = """
use strict; use warnings;
use Grape::Worker;
my $worker = Grape::Worker->new;
$worker->on_setup(sub { die "the model is not there\\n" });
$worker->slot(word => { node => 'W' }, sub { });
exit $worker->run;
"""


def test_a_setup_that_fails_ends_the_run_with_what_it_said(tmp_path: Path, sdk_env: dict[str, str]) -> None:
    (tmp_path / "w.pl").write_text(SETUP)
    done = run(tmp_path, "t.add_pool('p', runtime='perl', entry='w.pl')", "--env", f"PERL5LIB={sdk_env['PERL5LIB']}")
    assert done.returncode == 2, done.stderr
    assert "the model is not there" in done.stderr
    assert "3 times in a row" in done.stderr


HANGS: Final = {
    "node": ("js", 'const { Worker } = require("grape-worker");\nconst w = new Worker();\n'
             'w.setup(() => { for (;;); });\nw.slot("word", { node: "W" }, () => {});\nw.run();\n'),
    "perl": ("pl", SETUP.replace('die "the model is not there\\n"', "sleep 1000")),
}  # fmt: skip


@pytest.mark.parametrize("runtime", HANGS)
def test_a_setup_that_hangs_is_a_failed_start(tmp_path: Path, runtime: str, sdk_env: dict[str, str]) -> None:
    suffix, text = HANGS[runtime]
    (tmp_path / f"w.{suffix}").write_text(text)
    (tmp_path / "p.toml").write_text('[pool.p]\nstartup-timeout = "1 s"\n')
    options = [word for name, value in sdk_env.items() for word in ("--env", f"{name}={value}")]
    done = run(tmp_path, f"t.add_pool('p', runtime={runtime!r}, entry='w.{suffix}')", *options, "--profile", "p.toml")
    assert done.returncode == 2, done.stderr
    assert "it was not ready within 1 s (startup-timeout)" in done.stderr


NOT_READY: Final = f"""#!{sys.executable} -S
import os, socket, sys
sys.path[:0] = {sys.path!r}
from grape.protocol.framing import frame
from grape.protocol.base import Ran
from grape.protocol.messages import VERSION, Hello
from grape.model.topology import NodeSpec, SlotSpec, TopologySpec
sock = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1]))
app = TopologySpec("", (NodeSpec("W"),), (SlotSpec("word", "W"),), ())
sock.sendall(frame(Hello(VERSION, os.getpid(), "odd", app, ["base"])))
sock.recv(1)
sock.sendall(frame(Ran(1)))
sock.recv(1 << 20)
"""


def test_a_base_speaker_that_does_not_say_that_it_is_ready_breaks_the_protocol(tmp_path: Path) -> None:
    (tmp_path / "w").write_text(NOT_READY)
    (tmp_path / "w").chmod(0o755)
    done = run(tmp_path, "t.add_pool('p', runtime='exec', entry='w')")
    assert done.returncode == 2, done.stderr
    assert "w broke the protocol: Ran in answer to Welcome, not Beat: it is ready" in done.stderr


# ------------------------------------------------------------------ what handlers start

BESIDE: Final = {
    "perl": """
use strict; use warnings; use Grape::Worker;
my $worker = Grape::Worker->new;
$worker->slot(line => { node => 'Work', emits => ['out'], retries => 0 }, sub {
    my ($event) = @_;
    my $line = $event->data;
    my $pid = $line =~ /\\Afork/x ? fork : 1;
    if ($pid && $line eq 'fork') { waitpid $pid, 0; $line = 'fork ' . ($? >> 8) }
    if ($pid && $line eq 'fork-die') { waitpid $pid, 0; $line = 'fork-die ' . ($? >> 8) }
    die "the child fails\\n" if !$pid && $line eq 'fork-die';
    $event->emit(out => $line);
});
exit $worker->run;
""",
    "node": """
const { Worker } = require("grape-worker");
const worker = new Worker();
worker.slot("line", { node: "Work", emits: ["out"], retries: 0 }, async (event) => {
  if (event.data === "reject") Promise.reject(new Error("a promise fails"));
  if (event.data === "later") (async () => { await null; throw new TypeError("later"); })();
  await new Promise((done) => setTimeout(done, 50));
  event.emit("out", event.data);
});
worker.run();
""",
    "exec": """
#include <grape/worker.hpp>
#include <sys/wait.h>
#include <unistd.h>
#include <stdexcept>
int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  worker.slot("line", grape::Slot("Work").emits({"out"}).retries(0), [](grape::Event& event) {
    std::string line = event.as<std::string>();
    if (line.rfind("fork", 0) == 0) {
      const pid_t pid = ::fork();
      if (pid == 0) {
        if (line == "fork-throw") throw std::runtime_error("the child fails");
      } else {
        int status = 0;
        ::waitpid(pid, &status, 0);
        line += " " + std::to_string(WEXITSTATUS(status));
      }
    }
    event.emit("out", line);
  });
  return worker.run();
}
""",
}


@pytest.mark.parametrize(
    ("runtime", "lines", "taken", "said"),
    [
        ("perl", ["a", "fork", "fork-die", "b"], ["a", "b", "fork 0", "fork-die 1"], ["the child fails"]),
        ("exec", ["a", "fork", "fork-throw", "b"], ["a", "b", "fork 0", "fork-throw 1"], ["the child fails"]),
        (
            "node",
            ["a", "reject", "later", "b"],
            ["a", "b", "later", "reject"],
            ["Error: a promise fails", "TypeError"],
        ),
    ],
)
def test_what_a_handler_starts_does_not_speak_for_the_worker(
    tmp_path: Path, sdk_env: dict[str, str], runtime: str, lines: list[str], taken: list[str], said: list[str]
) -> None:
    entry = {"perl": "work.pl", "node": "work.js", "exec": "work"}[runtime]
    if runtime == "exec":
        (tmp_path / "work.cpp").write_text(BESIDE[runtime])
        include = SDKS / "cpp" / "include"
        subprocess.run(
            ["c++", "-std=c++17", "-I", include, "work.cpp", "-o", "work", "-pthread"], check=True, cwd=tmp_path
        )
    else:
        (tmp_path / entry).write_text(BESIDE[runtime])
    (tmp_path / "app.py").write_text(
        f"from grape import Topology\nt = Topology('beside')\nt.add_output('out')\n"
        f"t.add_pool('other', runtime={runtime!r}, entry={entry!r})\n"
    )
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in lines))
    command = [GRAPE, "run", "app.py", "--feed", "line=in.txt", "--take", "out=out.jsonl", "--workers", "1"]
    command += [word for name, value in sdk_env.items() for word in ("--env", f"{name}={value}")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(line)["data"] for line in (tmp_path / "out.jsonl").read_text().splitlines()) == taken
    assert "is replaced" not in done.stderr
    for text in said:
        assert done.stderr.count(text) == 1, done.stderr
