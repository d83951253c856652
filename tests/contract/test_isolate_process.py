"""The level "process" against the contract, and what is its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grape.errors import Unsupported
from grape.isolates.process import ProcessConfig, ProcessIsolate
from grape.model.section import Duration, Size, read_section
from grape.testing.contracts.isolate import MIB, IsolateContract, eventually, python_for

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start workers as another user")


class TestProcess(IsolateContract):
    def isolate(self, **fields: Any) -> ProcessIsolate:
        return ProcessIsolate("main", ProcessConfig(**fields))

    def test_umask(self) -> None:
        with self.engine(umask=0o027) as engine:
            worker = engine.run('open(os.environ["TMPDIR"] + "/f", "w"); say(oct(os.umask(0)))')
            assert json.loads(worker.line()) == "0o27"

    def test_own_working_directory(self) -> None:
        with self.engine(working_directory="own") as engine:
            here, temporary = json.loads(engine.run('say([os.getcwd(), os.environ["TMPDIR"]])').line())
        assert here == temporary

    def test_limits_that_no_other_level_shares(self) -> None:
        code = """
import resource
say([resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in ("AS", "DATA", "STACK", "CPU")])
"""
        fields = {
            "address_space": Size(900 * MIB),
            "memory": Size(300 * MIB),
            "stack": Size(4 * MIB),
            "cpu": Duration(50),
        }
        with self.engine(**fields) as engine:
            limits = json.loads(engine.run(code).line())
        assert limits == [[900 * MIB] * 2, [300 * MIB] * 2, [4 * MIB] * 2, [50, 51]]

    def test_a_limit_above_that_of_the_engine_is_the_engines(self) -> None:
        with self.engine(files=2**40) as engine:
            worker = engine.run("import resource; say(resource.getrlimit(resource.RLIMIT_NOFILE))")
            assert json.loads(worker.line()) == [resource.getrlimit(resource.RLIMIT_NOFILE)[1]] * 2

    def test_memory_that_fails_is_an_error_inside_the_worker(self) -> None:
        with self.engine(memory=Size(64 * MIB)) as engine:
            worker = engine.run(f"""
try:
    data = b"x" * (256 * {MIB})
except MemoryError:
    say("no memory")
""")
            assert json.loads(worker.line()) == "no memory"

    def test_it_goes_before_the_engine_when_the_host_is_out_of_memory(self) -> None:
        with self.engine() as engine:
            worker = engine.run('say("ready"); wait()')
            worker.line()
            assert Path(f"/proc/{worker.process.pid}/oom_score_adj").read_text() == "500\n"

    def test_processes_needs_a_user_of_the_workers_own(self) -> None:
        with pytest.raises(Unsupported, match=r"\[pool.main.isolate\] processes: .*set uid"):
            self.isolate(processes=10).prepare()

    def test_temporary_directories_of_a_living_engine_stay(self) -> None:
        with self.engine() as engine:
            worker = engine.run('open(os.environ["TMPDIR"] + "/f", "w"); say(os.environ["TMPDIR"]); wait()')
            path = json.loads(worker.line())
            other = self.isolate()
            other.prepare()
            other.close()
            assert os.listdir(path) == ["f"]

    def test_two_hundred_thousand_files_do_not_keep_others_waiting(self) -> None:
        with self.engine() as engine:
            code = """
os.chdir(os.environ["TMPDIR"])
for directory in range(20):
    os.mkdir("d%d" % directory)
    open("d%d/0" % directory, "w").close()
    for i in range(1, 10000):
        os.link("d%d/0" % directory, "d%d/%d" % (directory, i))
say(os.getcwd())
"""
            worker = engine.run(code)
            eventually("the files are there", lambda: worker.has_ended, 120)
            path = json.loads(worker.line())
            begun = time.monotonic()
            worker.reap()
            assert engine.run("sys.exit(3)").reap().code == 3
            assert time.monotonic() - begun < 10
            assert not os.path.exists(path)  # moved away at once; `engine` asserts that nothing is left in the end


@as_root
class TestAnotherUser(IsolateContract):
    python = python_for(NOBODY) if os.geteuid() == 0 else ""

    def isolate(self, **fields: Any) -> ProcessIsolate:
        return ProcessIsolate("main", ProcessConfig(**{"uid": NOBODY, **fields}))

    def test_a_worker_is_that_user_alone(self) -> None:
        code = """
own = os.stat(os.environ["TMPDIR"])
say([os.getresuid(), os.getresgid(), os.getgroups(), os.environ["HOME"] == os.environ["TMPDIR"],
     [own.st_uid, own.st_gid], [line for line in open("/proc/self/status") if line.startswith("CapEff")]])
"""
        with self.engine() as engine:
            worker = engine.run(code)
            assert json.loads(worker.line()) == [
                [NOBODY] * 3,
                [NOBODY] * 3,
                [],
                True,
                [NOBODY] * 2,
                ["CapEff:\t0000000000000000\n"],
            ]
        for fields, expected in (
            ({"uid": 12345}, [12345, 12345]),
            ({"uid": "nobody", "gid": 7}, [NOBODY, 7]),
            ({"uid": "nobody", "gid": "daemon"}, [NOBODY, 1]),
            ({"uid": None, "gid": 7}, [0, 7]),
        ):
            with self.engine(**fields) as engine:
                worker = engine.run("say([os.getuid(), os.getgid()])")
                assert json.loads(worker.line()) == expected

    def test_limit_on_processes(self) -> None:
        code = """
started = 0
try:
    for _ in range(30):
        if os.fork() == 0:
            time.sleep(1000)
        started += 1
except OSError as e:
    say([started, e.strerror])
wait()
"""
        with self.engine(uid=54321, processes=10) as engine:
            started, error = json.loads(engine.run(code).line())
            assert started == 9
            assert error == "Resource temporarily unavailable"

    def test_users_and_groups_that_do_not_exist_are_refused(self) -> None:
        with pytest.raises(Unsupported, match=r"no user 'nosuchuser'.*useradd"):
            self.isolate(uid="nosuchuser").prepare()
        with pytest.raises(Unsupported, match=r"no group 'nosuchgroup'.*groupadd"):
            self.isolate(gid="nosuchgroup").prepare()

    def test_what_the_user_may_not_read_is_said_before_it_fails(self) -> None:
        with self.engine() as engine, tempfile.TemporaryDirectory() as private:
            secret = Path(private, "lib")
            secret.mkdir()
            for command in (
                engine.command((self.python, "-c", "pass"), directory=private),
                engine.command((self.python, "-c", "pass"), readable=(str(secret),)),
            ):
                with pytest.raises(
                    PermissionError, match=f"user {NOBODY} .* may not read or enter it; give it the right"
                ):
                    engine.isolate.spawn("main.0", command)
            assert engine.run("sys.exit(3)").reap().code == 3


def in_a_process(code: str, *before: str) -> Any:
    """What code prints as JSON. It has `isolate` and `Engine` of the contract."""
    prelude = """
import ctypes, json, os, psutil, signal, subprocess, sys, tempfile, time
from pathlib import Path
from grape.errors import Unsupported
from grape.isolates.parent import become_subreaper_and_undumpable, reap_orphans
from grape.isolates.process import ProcessConfig, ProcessIsolate
from grape.isolates.procs import children
from grape.testing.contracts.isolate import Engine, _DAEMON, eventually
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*before, sys.executable, "-c", prelude + textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


AS_NOBODY = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"


@as_root
def test_only_root_may_start_workers_as_another_user() -> None:
    text = in_a_process(
        AS_NOBODY
        + """
try:
    ProcessIsolate("main", ProcessConfig(uid=1)).prepare()
except Unsupported as e:
    print(json.dumps(str(e)))
"""
    )
    assert text.startswith("[pool.main.isolate] uid, gid: only root may")


@as_root
def test_a_host_without_util_linux_is_refused_by_name_and_remedy() -> None:
    code = """
subprocess.run(["mount", "--bind", "/dev/null", __import__("shutil").which("prlimit")], check=True)
try:
    ProcessIsolate("main", ProcessConfig()).prepare()
except Unsupported as e:
    print(json.dumps(str(e)))
"""
    text = in_a_process(code, "unshare", "--mount")
    assert "the program prlimit is not on this host" in text
    assert "install util-linux" in text


@pytest.mark.parametrize("user", ["", pytest.param(AS_NOBODY, marks=as_root)], ids=["same", "nobody"])
def test_an_undumpable_engine_adopts_orphans_and_can_still_measure_itself(user: str) -> None:
    code = """
become_subreaper_and_undumpable()
place = tempfile.mkdtemp()
tempfile.tempdir = place
os.mkdir(place + "/app")
isolate = ProcessIsolate("main", ProcessConfig())
isolate.prepare()
engine = Engine(isolate, "/bin/false", place)
plain = subprocess.Popen(["/bin/true"])                # not the isolate's: left to who started it
worker = engine.shell("setsid sh -c 'sleep 1000 &'; setsid true & exit 6")
eventually("it ends", lambda: worker.has_ended)
other = engine.shell("setsid sh -c 'true & true & true &'; echo; sleep 1000")
other.line()
code = worker.reap().code
def zombies():
    return [p for p in children("self") if p not in (plain.pid, other.process.pid)]
eventually("orphans are collected", lambda: reap_orphans() >= 0 and not zombies())
other.process.kill()
other.reap()
engine.close()
me = psutil.Process()
spy = subprocess.run(["setpriv", "--no-new-privs", "cat", f"/proc/{os.getpid()}/environ"], capture_output=True)
print(json.dumps([code, plain.wait(), os.geteuid() == 0 or spy.returncode != 0, me.memory_full_info().uss > 0,
                  me.num_fds() > 0, me.cpu_times().user > 0, len(os.listdir("/proc/self/fd")) > 0,
                  os.listdir(place)]))
"""
    assert in_a_process(user + code) == [6, 0, True, True, True, True, True, ["app"]]


def test_an_engine_that_adopts_orphans_takes_no_worker_for_one() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
become_subreaper_and_undumpable()
place = tempfile.mkdtemp()
os.mkdir(place + "/app")
isolate = ProcessIsolate("main", ProcessConfig())
isolate.prepare()
engine = Engine(isolate, "/bin/false", place)
with ThreadPoolExecutor(4) as reapers:
    endings = []
    for i in range(150):
        worker = engine.shell(f"setsid true & setsid sleep 1000 & exit {i}")
        endings.append(reapers.submit(worker.reap))
    codes = [ending.result().code for ending in endings]
eventually("orphans are collected", lambda: reap_orphans() >= 0 and not children("self"))
engine.close()
print(json.dumps(codes))
"""
    assert in_a_process(code) == list(range(150))


def test_a_library_leaves_the_children_of_its_host_alone() -> None:
    code = """
foreign = subprocess.Popen(["/bin/sh", "-c", "exit 9"], start_new_session=True)
os.waitid(os.P_PID, foreign.pid, os.WEXITED | os.WNOWAIT)
isolate = ProcessIsolate("main", ProcessConfig())
isolate.prepare()
place = tempfile.mkdtemp()
os.mkdir(place + "/app")
Engine(isolate, "/bin/false", place).shell("exit 1").reap()
isolate.close()
print(foreign.wait())
"""
    assert in_a_process(code) == 9


# ---------------------------------------------------------------------- configuration


def test_configuration_has_units_and_near_misses() -> None:
    config = read_section(
        ProcessConfig,
        {"memory": "512 MiB", "cpu": "10 min", "file-size": 1000, "uid": "nobody", "umask": 0o27},
        "profile.toml [pool.main.isolate]",
    )
    assert config == ProcessConfig(
        memory=Size(512 * MIB), cpu=Duration(600), file_size=Size(1000), uid="nobody", umask=0o27
    )
    for values, text in (
        ({"file_size": 1}, "did you mean 'file-size'"),
        ({"memory": "much"}, "'much' is no size"),
        ({"umask": 0o1000}, "umask"),
        ({"uid": -1}, "uid"),
        ({"working-directory": "home"}, "working-directory"),
        ({"files": 3}, "files"),
    ):
        with pytest.raises(ValueError, match=text):
            read_section(ProcessConfig, values, "profile.toml [pool.main.isolate]")


def test_every_field_is_documented() -> None:
    lines = [line.strip() for line in (ProcessConfig.__doc__ or "").splitlines()]
    for field in msgspec.structs.fields(ProcessConfig):
        assert any(line.startswith(f"{field.encode_name}: ") for line in lines), field.encode_name
