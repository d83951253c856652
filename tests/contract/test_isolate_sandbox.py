"""The level "sandbox" against the contract, and what is particular to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.jails import ROOT, as_nobody, without

from grape.abc.isolate import Ending, Isolate
from grape.errors import Unsupported
from grape.isolates.cgroups import check
from grape.isolates.procs import children
from grape.isolates.sandbox import SandboxConfig, SandboxIsolate
from grape.model.section import Size
from grape.testing.contracts.isolate import MIB, ConfinedContract, IsolateContract

as_root = pytest.mark.skipif(not ROOT, reason="only root can set this up")

PREPARE = """
from grape.isolates.{level} import {name}Config, {name}Isolate
from grape.errors import Unsupported
isolate = {name}Isolate("main", {name}Config({fields}))
try:
    isolate.prepare()
    print("works")
except Unsupported as e:
    print(e)
isolate.close()
"""
SANDBOX = PREPARE.format(level="sandbox", name="Sandbox", fields="")


def has_cgroups() -> bool:
    try:
        check()
    except Unsupported:
        return False
    return True


class TestSandbox(ConfinedContract if has_cgroups() else IsolateContract):  # type: ignore[misc]
    def isolate(self, **fields: Any) -> SandboxIsolate:
        return SandboxIsolate("main", SandboxConfig(**fields))

    @pytest.mark.slow  # that nothing is left is asserted after every other test as well
    def test_two_hundred_workers_leave_nothing(self) -> None:
        super().test_two_hundred_workers_leave_nothing()

    def test_other_languages_run(self) -> None:
        script = """
set -e
cd "$TMPDIR"
printf '#include <pthread.h>\\n#include <stdio.h>\\nvoid *f(void *x) { puts("thread"); return 0; }\\n' > t.c
printf 'int main() { pthread_t t; pthread_create(&t, 0, f, 0); return pthread_join(t, 0); }\\n' >> t.c
cc -pthread t.c -o t && ./t
perl -e 'my $pid = fork(); exit(3) if !$pid; waitpid($pid, 0); print $? >> 8, "\\n"'
if command -v node > /dev/null; then
    node -e 'new (require("worker_threads").Worker)("console.log(1 + 1)", {eval: true})'
else
    echo 2
fi
"""
        with self.engine(memory=Size(1 << 30)) as engine:
            worker = engine.shell(script)
            assert worker.reap().code == 0, worker.errors
            assert worker.printed == b"thread\n3\n2\n"

    def test_what_python_programs_do(self) -> None:
        code = """
import asyncio, ctypes, hashlib, mmap, multiprocessing, sqlite3, ssl, subprocess, tempfile, threading
import concurrent.futures as futures
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
with futures.ThreadPoolExecutor(2) as pool:
    assert list(pool.map(abs, [-1])) == [1]
async def main():
    process = await asyncio.create_subprocess_exec("echo", "hi", stdout=subprocess.PIPE)
    assert (await process.communicate())[0] == b"hi\\n"
asyncio.run(main())
with tempfile.TemporaryDirectory() as path:
    sqlite3.connect(path + "/db").execute("create table t (a)")
say(os.listdir("/dev/shm"))
"""
        with self.engine() as engine:
            argv = list(engine.python_argv(code))
            argv.remove("-S")
            worker = engine._spawn("main.0", engine.command(tuple(argv)))
            assert worker.reap().code == 0, worker.errors

    def test_who_a_worker_is_inside(self) -> None:
        code = """
import pwd
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
say([os.getresuid(), os.getresgid(), pwd.getpwuid(os.getuid())[0], socket.gethostname(), os.environ["HOME"],
     os.environ["TMPDIR"], PARENT, {status[name].strip() for name in status if name.startswith("Cap")} == {"0" * 16},
     os.listdir("/sys") if os.path.exists("/sys") else None])
"""
        with self.engine() as engine:
            argv = list(engine.python_argv(code))
            argv.remove("-S")
            worker = engine._spawn("main.0", engine.command(tuple(argv)))
            assert json.loads(worker.line()) == [
                [1000] * 3,
                [1000] * 3,
                "grape",
                "grape",
                "/tmp/worker",
                "/tmp/worker",
                0,
                True,
                None,
            ]

    def test_workers_of_root_are_users_of_their_own(self) -> None:
        with self.engine() as engine:
            users = set()
            for number in range(3):
                worker = engine.run('say("ready"); wait()', f"main.{number}")
                worker.line()
                for pid in engine.left():
                    status = Path(f"/proc/{pid}/status").read_text().splitlines()
                    (line,) = [line for line in status if line.startswith("Uid:")]
                    users.add(tuple(line.split()[1:]))
        if ROOT:
            assert len(users) == 3
            assert all(len(set(ids)) == 1 and int(ids[0]) >= 0x70000000 for ids in users)
        else:
            assert users == {(str(os.geteuid()),) * 4}

    @as_root
    def test_a_user_may_be_given_but_not_root(self) -> None:
        with self.engine(uid="nobody") as engine:
            worker = engine.run('say("ready"); wait()')
            worker.line()
            assert {os.stat(f"/proc/{pid}").st_uid for pid in engine.left()} <= {65534, 0}  # undumpable ones are root's
        for fields in ({"uid": 0}, {"gid": 0}):
            with pytest.raises(Unsupported, match="uid, gid: what is jailed is not root; leave them out"):
                self.isolate(**fields).prepare()

    @as_root
    def test_what_only_root_may_enter_is_handed_over_and_what_only_root_may_read_is_refused(self) -> None:
        with self.engine() as engine, tempfile.TemporaryDirectory(prefix="grape-private-") as private:  # mode 0700
            app = Path(private, "app")
            app.mkdir(mode=0o755)
            (app / "file").write_text("seen")
            (app / "file").chmod(0o644)
            code = f"say([open({str(app)!r} + '/file').read(), os.listdir({private!r})])"
            argv = engine.python_argv(code.replace(f"os.listdir({private!r})", "os.getcwd()"))
            worker = engine._spawn("main.0", engine.command(argv, directory=str(app)))
            assert json.loads(worker.line()) == ["seen", str(app)]
            with pytest.raises(PermissionError, match="may not read it; chmod"):
                engine._spawn("main.1", engine.command(argv, directory=private))

    def test_what_is_more_than_an_app_is_not_shown(self) -> None:
        with self.engine() as engine:
            for path in ("/", "/etc", "/tmp", "/proc/self", "/home", os.path.expanduser("~root")):
                for fields in ({"directory": path}, {"readable": (path,)}):
                    with pytest.raises(PermissionError, match="directory of its own"):
                        engine._spawn("main.0", engine.command(("/bin/true",), **fields))

    def test_paths_through_links_lead_where_they_did(self) -> None:
        with self.engine() as engine, tempfile.TemporaryDirectory(prefix="grape-links-") as place:
            os.chmod(place, 0o755)
            Path(place, "one").symlink_to("two")
            Path(place, "two").symlink_to(engine.app)
            Path(place, "program").symlink_to("/bin/sh")
            link = f"{place}/one"
            argv = (f"{place}/program", "-c", f"cat {link}/app.txt {engine.app}/app.txt; pwd -P", "sh")
            worker = engine._spawn("main.0", engine.command(argv, directory=link))
            assert worker.reap().code == 0, worker.errors
            assert worker.printed.decode() == f"the appthe app{engine.app}\n"

    def test_a_key_shows_more(self) -> None:
        with tempfile.TemporaryDirectory(prefix="grape-more-") as more:
            os.chmod(more, 0o755)
            Path(more, "model").write_text("weights")
            os.chmod(Path(more, "model"), 0o644)
            with self.engine(readable=(more, "/etc/hostname")) as engine:
                worker = engine.run(f"say([open({more!r} + '/model').read(), open('/etc/hostname').read()])")
                assert json.loads(worker.line()) == ["weights", Path("/etc/hostname").read_text()]

    def test_its_own_directory(self) -> None:
        with self.engine(working_directory="own") as engine:
            assert json.loads(engine.run("say(os.getcwd())").line()) == "/tmp/worker"

    def test_nothing_can_be_written_but_temporary_files_and_those_are_limited(self) -> None:
        find = """
found = []
for top, directories, files in os.walk("/"):
    directories[:] = [name for name in directories if top + name not in ("/proc", "/usr")]
    found.append(top)
say(found)
"""
        write = """
written, told = [], b""
while not told.endswith(b"]"):
    told += SOCKET.recv(1 << 16)
for top in json.loads(told):
    try:
        open(top + "/probe", "w").close()
        written.append(top)
    except OSError:
        pass
full = []
for path in ("/tmp", "/dev/shm"):
    try:
        with open(path + "/large", "wb") as file:
            for i in range(100):
                file.write(bytes(1 << 20))
    except OSError as e:
        full.append([path, e.strerror, os.stat(path + "/large").st_size <= 8 << 20])
say([written, full])
"""
        with self.engine(temp=Size(8 * MIB)) as engine:
            isolate = engine.isolate
            assert isinstance(isolate, SandboxIsolate)
            layers = isolate.layers
            isolate.layers = layers - {"landlock"}  # which would keep it from looking around
            found = json.loads(engine.run(find).line())
            assert {"/", "/dev", "/etc", "/tmp", os.path.dirname(engine.app)} <= set(found)
            for isolate.layers in (layers - {"landlock"}, layers):
                worker = engine.run(write)
                worker.process.socket.setblocking(True)
                worker.process.socket.sendall(json.dumps(found).encode())
                written, full = json.loads(worker.line())
                assert {"/tmp", "/tmp/worker", "/dev/shm"} <= set(written)
                assert all(f"{path}/".startswith(("/tmp/", "/dev/shm/")) for path in written), written
                assert full == [[path, "No space left on device", True] for path in ("/tmp", "/dev/shm")]

    def test_a_hostile_call_ends_a_worker_and_is_named(self) -> None:
        with self.engine() as engine:
            argv = list(engine.python_argv("import ctypes; ctypes.CDLL(None).syscall(169, 0, 0, 0, 0)"))
            argv.remove("-S")
            worker = engine._spawn("main.0", engine.command(tuple(argv)))
            assert worker.reap() == Ending(
                -signal.SIGSYS, "it made a system call that nothing harmless makes, and was ended for it (seccomp)"
            )

    def test_it_can_be_ended_before_it_has_begun(self) -> None:
        with self.engine() as engine:
            for end in ("terminate", "kill", "terminate"):
                worker = engine.run('say("ready"); wait()')
                getattr(worker.process, end)()
                assert worker.reap().code in (-signal.SIGTERM, -signal.SIGKILL)
            assert engine.left() == []

    @pytest.mark.skipif(not has_cgroups(), reason="without control groups it is otherwise")
    def test_a_group_holds_the_monitor_as_well(self) -> None:
        with self.engine() as engine:
            worker = engine.run('say("ready"); wait()')
            worker.line()
            pids = [worker.process.pid, *children(worker.process.pid)]
            groups = {Path(f"/proc/{pid}/cgroup").read_text() for pid in (*pids, *children(pids[1]))}
            assert len(groups) == 1
            assert groups != {Path("/proc/self/cgroup").read_text()}


# ---------------------------------------------------------------------- F74: what a host lacks is named


def test_without_bubblewrap_it_is_refused() -> None:
    said = without([shutil.which("bwrap") or ""], SANDBOX)
    assert said == (
        "[pool.main.isolate] sandbox: the program bwrap is not on this host; install the package bubblewrap\n"
    )


def test_without_libseccomp_it_is_refused() -> None:
    listed = subprocess.run(
        ["ldconfig", "-p"], capture_output=True, text=True, check=True, env={"PATH": "/sbin:/usr/sbin"}
    )
    (path,) = {line.split(" => ")[1] for line in listed.stdout.splitlines() if "libseccomp.so.2" in line}
    said = without([path], SANDBOX)
    assert said == (
        "[pool.main.isolate] sandbox: the library libseccomp.so.2 is not on this host; install it: "
        "apt-get install libseccomp2\n"
    )


def test_without_user_namespaces_it_is_refused() -> None:
    said = without([], SANDBOX, "echo 0 > /proc/sys/user/max_user_namespaces")
    assert said.startswith("[pool.main.isolate] sandbox: ")
    assert "user namespaces are switched off for ordinary users (/proc/sys/user/max_user_namespaces is 0)" in said
    assert said.endswith("sysctl user.max_user_namespaces=10000\n")


def test_an_engine_that_is_root_in_a_user_namespace_only() -> None:
    assert without([], SANDBOX) == "works\n"


@as_root
def test_without_control_groups_limits_are_those_the_host_can_bear() -> None:
    def said(fields: str) -> str:
        done = as_nobody(["-c", PREPARE.format(level="sandbox", name="Sandbox", fields=fields)])
        assert done.returncode == 0, done.stderr
        return done.stdout

    if not has_cgroups():
        pytest.skip("root has none either")
    if said("cpus=1.0, memory=64 << 20") == "works\n":
        pytest.skip("on this host nobody has control groups")
    assert said("memory=64 << 20") == "works\n"
    assert "memory: without control groups this is a limit of each process" in said("memory=1 << 50")
    assert "memory: this host has no control groups, so it has to be limited" in said("memory=None")
    assert "cpus: " in said("cpus=0.5")


@as_root
@pytest.mark.slow
def test_the_contract_as_an_ordinary_user() -> None:
    which = "TestSandbox and not hundred and not cpu"
    done = as_nobody(["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", which])
    assert done.returncode == 0, done.stdout


def test_a_level_says_what_it_needs() -> None:
    rows = {row.name: row for row in SandboxIsolate.abilities()}
    assert set(rows) == {
        "bubblewrap",
        "bubblewrap does not follow links",
        "a list of system calls",
        "Landlock",
        "limits of a worker as a whole",
        "a sandbox",
    }
    isolate: Isolate = SandboxIsolate("main", SandboxConfig())
    isolate.prepare()
    isolate.close()
    assert rows["a sandbox"].works
