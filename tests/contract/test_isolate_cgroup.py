"""The level "cgroup" against the contract, on whatever control groups this host has, and what is its own.

`make test-cgroup2` runs this file where the host has version 2, as root and as a user.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from grape.errors import Unsupported
from grape.isolates.cgroup import CgroupConfig, CgroupIsolate
from grape.isolates.cgroups import check, disks, locate
from grape.model.section import Size
from grape.testing.contracts.isolate import MIB, PATIENCE, ConfinedContract, eventually, python_for

NOBODY = 65534
ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root can set this up")

try:
    VERSION, CONTROLLERS = check()
    LACKING = ""
except Unsupported as e:
    VERSION, CONTROLLERS, LACKING = 0, frozenset(), str(e)


@pytest.mark.skipif(not LACKING, reason="this host has control groups")
def test_a_host_without_control_groups_is_refused_with_the_remedy() -> None:
    with pytest.raises(Unsupported, match=r"\[pool.main.isolate\] .*; ."):
        CgroupIsolate("main", CgroupConfig(uid=NOBODY if ROOT else None)).prepare()


@pytest.mark.skipif(bool(LACKING), reason=LACKING)
class TestCgroup(ConfinedContract):
    python = python_for(NOBODY) if ROOT else sys.executable

    def isolate(self, **fields: Any) -> CgroupIsolate:
        return CgroupIsolate("main", CgroupConfig(**{"uid": NOBODY if ROOT else None, **fields}))

    def test_what_a_worker_has_used_is_limited_by_the_kernel(self) -> None:
        fields: dict[str, Any] = {"memory": Size(100 * MIB), "pids": 33}
        expected = {1: {"memory.limit_in_bytes": 100 * MIB, "pids.max": 33}}
        expected[2] = {"memory.max": 100 * MIB, "memory.oom.group": 1, "pids.max": 33}
        if os.path.exists("/proc/swaps"):
            expected[1] |= {"memory.memsw.limit_in_bytes": 100 * MIB}
            expected[2] |= {"memory.swap.max": 0}
        if "cpu" in CONTROLLERS:
            fields["cpus"] = 1.5
            expected[1] |= {"cpu.cfs_quota_us": 150_000, "cpu.cfs_period_us": 100_000}
            expected[2] |= {"cpu.max": "150000 100000"}
        if "io" in CONTROLLERS:
            disk = disks()[0]
            fields |= {"io_read": Size(5 * MIB), "io_write": Size(7 * MIB)}
            expected[1] |= {
                "blkio.throttle.read_bps_device": f"{disk} {5 * MIB}",
                "blkio.throttle.write_bps_device": f"{disk} {7 * MIB}",
            }
            expected[2] |= {"io.max": f"{disk} rbps={5 * MIB} wbps={7 * MIB} riops=max wiops=max"}
        with self.engine(**fields) as engine:
            worker = engine.run('say("ready"); wait()')
            worker.line()
            for name, value in expected[VERSION].items():
                assert str(value) in files(worker.process.pid, name), name
            rlimits = Path(f"/proc/{worker.process.pid}/limits").read_text()
            assert "Max data size             unlimited" in rlimits

    def test_a_core_is_a_core(self) -> None:
        if "cpu" not in CONTROLLERS:
            with pytest.raises(Unsupported, match=r"cpus: .* controller 'cpu'; .*Delegate"):
                self.isolate(cpus=1.0).prepare()
            return
        with self.engine(cpus=0.2) as engine:
            code = """
begun = time.monotonic()
while time.monotonic() < begun + 2:
    pass
say(time.process_time())
"""
            used = json.loads(engine.run(code).line())
            assert 0.05 < used < 1.3  # without a limit: 2

    def test_what_goes_to_disk_is_slowed_down(self) -> None:
        if "io" not in CONTROLLERS:
            with pytest.raises(Unsupported, match=r"io-write: .* controller 'io'; .*Delegate"):
                self.isolate(io_write=Size(MIB)).prepare()
            return
        with self.engine(io_write=Size(MIB)) as engine:
            code = """
import mmap
block = mmap.mmap(-1, 1 << 16)
try:
    fd = os.open(os.environ["TMPDIR"] + "/file", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    begun = time.monotonic()
    for _ in range(24):
        os.write(fd, block)
    say(time.monotonic() - begun)
except OSError:
    say("no direct writes here")
"""
            said = json.loads(engine.run(code).line())
            assert said == "no direct writes here" or said > 1

    @as_root
    def test_a_worker_cannot_change_its_group(self) -> None:
        with self.engine(memory=Size(100 * MIB)) as engine:
            worker = engine.run('say("ready"); wait()')
            worker.line()
            directories = groups(worker.process.pid)
            code = f"""
for directory in {directories!r}:
    for name in os.listdir(directory):
        try:
            os.close(os.open(directory + "/" + name, os.O_WRONLY))
            say(name)
        except OSError:
            pass
    for place in (directory, os.path.dirname(directory)):
        try:
            os.mkdir(place + "/mine")
            say(place)
        except OSError:
            pass
say("done")
"""
            assert json.loads(engine.run(code, "main.1").line()) == "done"

    @as_root
    def test_a_worker_that_is_root_is_refused(self) -> None:
        for fields in ({"uid": None}, {"uid": 0}, {"uid": "root"}):
            with pytest.raises(Unsupported, match=r'worker that is root could leave .*uid = "nobody"'):
                self.isolate(**fields).prepare()

    # ------------------------------------------------------------------ reasons

    def test_the_reason_says_who_ran_out_of_memory(self) -> None:
        bomb = "tail /dev/zero"
        with self.engine(memory=Size(48 * MIB)) as engine:
            ending = engine.shell(f"exec {bomb}").reap()
            assert ending.code == -signal.SIGKILL
            assert ending.reason == "out of memory: the worker reached its limit of 48 MiB (isolate.memory)"
            ending = engine.shell(f"{bomb}; exit 5").reap()
            if VERSION == 1:
                assert ending.code == 5
                assert ending.reason == (
                    "out of memory: a process of the worker was ended when it reached its limit of 48 MiB "
                    "(isolate.memory)"
                )
            else:
                assert ending.code == -signal.SIGKILL
                assert ending.reason == "out of memory: the worker reached its limit of 48 MiB (isolate.memory)"

    def test_the_reason_names_the_limit_on_processes(self) -> None:
        code = """
for _ in range(10):
    if os.fork() == 0:
        signal.pause()
"""
        with self.engine(pids=6) as engine:
            ending = engine.run(code).reap()
            assert ending.code == 1
            assert ending.reason == "it reached its limit of 6 processes and threads (isolate.pids)"
            assert engine.left() == []
            assert engine.run("sys.exit(1)").reap().reason == ""

    # ------------------------------------------------------------------ groups

    def test_two_pools_of_one_engine(self) -> None:
        with self.engine(pids=10) as one, self.engine(pids=20) as other:
            workers = [engine.run('say("ready"); wait()') for engine in (one, other)]
            for worker, limit in zip(workers, (10, 20), strict=True):
                worker.line()
                assert files(worker.process.pid, "pids.max") == f"{limit}\n"

    def test_groups_are_removed_with_worker_and_engine(self) -> None:
        with self.engine() as engine:
            worker = engine.run('say("ready"); wait()')
            worker.line()
            leaves = groups(worker.process.pid)
            assert all(os.path.isdir(leaf) for leaf in leaves)
            worker.process.kill()
            worker.reap()
            assert not any(os.path.exists(leaf) for leaf in leaves)
            assert all(os.path.isdir(os.path.dirname(leaf)) for leaf in leaves)
        assert not any(os.path.exists(os.path.dirname(leaf)) for leaf in leaves)

    def test_groups_of_a_killed_engine_are_cleaned_by_the_next_one_and_those_of_a_living_one_stay(self) -> None:
        with self.engine() as living:
            other = living.run("sys.exit(SOCKET.recv(1)[0])")
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    isolate = self.isolate()
                    isolate.prepare()
                    living.isolate = isolate
                    code = 'daemon(["/usr/bin/env", "-i", "/bin/sh", "-c", "while :; do sleep 1000; done", MARKER])\n'
                    worker = living.run(code + 'say("ready"); signal.pause()')
                    worker.line()
                    os.write(writing, json.dumps(groups(worker.process.pid)).encode())
                    signal.pause()
                finally:
                    os._exit(1)
            os.close(writing)
            try:
                leaves = json.loads(os.read(reading, 10_000))
            finally:
                os.close(reading)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            assert leaves
            next_one = self.isolate()
            next_one.prepare()
            assert not any(os.path.exists(os.path.dirname(leaf)) for leaf in leaves)
            assert living.left() == [other.process.pid]
            next_one.close()
            other.process.socket.send(b"\x07")
            assert other.reap().code == 7

    def test_what_cannot_be_started_leaves_no_group(self) -> None:
        with self.engine() as engine:
            worker = engine.run('say("ready"); wait()')
            worker.line()
            parents = [os.path.dirname(leaf) for leaf in groups(worker.process.pid)]

            def leaves() -> list[str]:
                return [e.path for parent in parents for e in os.scandir(parent) if e.is_dir()]

            before = leaves()
            with pytest.raises(FileNotFoundError):
                engine.isolate.spawn("main.1", engine.command(("/no/such/program",)))
            assert leaves() == before

    def test_a_storm_of_processes_keeps_nobody_waiting_and_is_over_at_once(self) -> None:
        bomb = """
while True:
    try:
        if os.fork() == 0:
            os.setsid()
        else:
            SOCKET.setblocking(False)
            SOCKET.send(b"x")
    except OSError:
        pass
"""
        with self.engine(pids=200) as engine:
            worker = engine.run(bomb)
            eventually("it has spread", lambda: len(files(worker.process.pid, "cgroup.procs").split()) > 150)
            begun = time.monotonic()
            assert engine.run("sys.exit(3)", "main.1").reap().code == 3
            worker.process.kill()
            worker.reap()
            assert time.monotonic() - begun < PATIENCE
            assert engine.left() == []


def groups(pid: int) -> list[str]:
    """Directories of the control groups that are a process's own."""
    found = locate(Path(f"/proc/{pid}/cgroup").read_text(), Path(f"/proc/{pid}/mountinfo").read_text())
    return sorted({path for path in [found.unified or "", *found.split.values()] if "/grape-" in path})


def files(pid: int, name: str) -> str:
    """The file of this name in a process's own control groups; "" before it has entered them."""
    return next((text for group in groups(pid) if (text := _text(f"{group}/{name}"))), "")


def _text(path: str) -> str:
    return Path(path).read_text() if os.path.exists(path) else ""


# ---------------------------------------------------------------------- what is refused


def refusal(code: str, *before: str) -> str:
    """With which words `prepare` refuses, in a process of its own."""
    prelude = """
import os, subprocess
from grape.errors import Unsupported
from grape.isolates.cgroup import CgroupConfig, CgroupIsolate
uid = 65534
"""
    attempt = """
try:
    CgroupIsolate("main", CgroupConfig(uid=uid)).prepare()
except Unsupported as e:
    print(e)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [*before, sys.executable, "-c", prelude + textwrap.dedent(code) + attempt]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@as_root
def test_control_groups_that_are_not_mounted() -> None:
    text = refusal('subprocess.run(["umount", "-R", "/sys/fs/cgroup"], check=True)', "unshare", "--mount")
    assert "control groups are not mounted on this host: mount -t cgroup2" in text


@as_root
@pytest.mark.skipif(bool(LACKING), reason=LACKING)
def test_control_groups_that_are_read_only() -> None:
    code = """
for line in open("/proc/self/mountinfo").readlines():
    if " - cgroup" in line:
        subprocess.run(["mount", "-o", "remount,bind,ro", line.split()[4]], check=True)
"""
    assert "Read-only file system" in refusal(code, "unshare", "--mount")
    assert "in a container, let it have" in refusal(code, "unshare", "--mount")


@as_root
@pytest.mark.skipif(bool(LACKING), reason=LACKING)
def test_control_groups_that_belong_to_root() -> None:
    text = refusal("os.setgroups([]); os.setgid(65534); os.setuid(65534); uid = None")
    assert "Permission denied" in text
    assert "run grape as root" in text if VERSION == 1 else "Delegate=yes" in text


@as_root
@pytest.mark.skipif(VERSION != 2, reason="of version 2 only")
def test_a_control_group_that_is_not_the_engines_alone() -> None:
    code = """
stranger = os.getpid()
top = "/sys/fs/cgroup/not-delegated"
os.makedirs(top, exist_ok=True)
with open(top + "/cgroup.procs", "w") as file:
    file.write("0")
if os.fork() != 0:  # the child is the engine
    os.wait()
    os._exit(0)
"""
    text = refusal(code)
    assert "/not-delegated has other processes than grape's in it (pid " in text
    assert "systemd-run --scope -p Delegate=yes grape run" in text
    os.rmdir("/sys/fs/cgroup/not-delegated")


# ---------------------------------------------------------------------- configuration


def test_every_field_is_documented() -> None:
    lines = [line.strip() for kind in CgroupConfig.__mro__ for line in (kind.__doc__ or "").splitlines()]
    for field in msgspec.structs.fields(CgroupConfig):
        assert any(line.startswith(f"{field.encode_name}: ") for line in lines), field.encode_name
