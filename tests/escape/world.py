"""What there is to get at, and what happens when a worker tries: ``python -m tests.escape.world LEVEL [WITHOUT]``
prints the outcome of everything at a level, without one of its layers, as JSON.

A program of its own, so that an ordinary user can be the engine as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pty
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from grape import builtins
from grape.abc.isolate import Command, Isolate
from grape.errors import Unsupported
from grape.isolates.jail import Jail
from grape.model.section import Size
from grape.testing.contracts.isolate import MIB, Started, eventually, processes, python_for
from tests.jails import NOBODY, PROJECT, ROOT

HERE: Final = Path(__file__).parent
IPC_CREAT_ALL: Final = 0o1666
MEMORY: Final = 96 * MIB
PIDS: Final = 40
FILES: Final = 100
TEMP: Final = 16 * MIB


class World:
    """The host, as far as somebody in a jail could be after it. Everything in it is the engine's user's."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._name = f"grape-escape-{secrets.token_hex(6)}"
        self.base = Path(tempfile.mkdtemp(prefix="grape-escape-", dir="/var/tmp"))
        self._stack.callback(shutil.rmtree, self.base)
        self.base.chmod(0o755)
        self.app = self.base / "app"
        self.app.mkdir(mode=0o755)
        shutil.copy(HERE / "probes.py", self.app)
        self.home = self.base / "home"
        self.home.mkdir(mode=0o700)
        self.targets: dict[str, Any] = {
            "app": str(self.app),
            "home": str(self.home),
            "secret": self._file(self.home / "id_secret", 0o600),
            "other_app": self._file(self.base / "other" / "app.py"),
            "foreign_temp": self._file(self.base / "temp" / "file"),
            "project": str(PROJECT / "pyproject.toml"),
            "runtime": sys.prefix,
            "shm": self._file(Path("/dev/shm") / self._name),
            "planted": f"/tmp/{self._name}",
            "engine": os.getpid(),
            "key": secrets.randbits(31),
            "abstract": self._name,
            "listener": str(self.base / "listener"),
        }
        self._stack.callback(Path(self.targets["shm"]).unlink)
        self._system_v()
        self._listeners()
        self._in_the_app()
        self._terminal()
        self._victim()
        self._privileged()

    def _file(self, path: Path, mode: int = 0o644) -> str:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text("precious")
        path.chmod(mode)
        return str(path)

    def _system_v(self) -> None:
        libc = ctypes.CDLL(None)
        segment = libc.shmget(self.targets["key"], 4096, IPC_CREAT_ALL)
        queue = libc.msgget(self.targets["key"], IPC_CREAT_ALL)
        assert segment >= 0
        assert queue >= 0
        self._stack.callback(libc.shmctl, segment, 0, None)
        self._stack.callback(libc.msgctl, queue, 0, None)

    def _listeners(self) -> None:
        tcp = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.targets["port"] = tcp.getsockname()[1]
        udp = self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", self.targets["port"]))
        udp.setblocking(False)
        self.udp = udp
        for address in ("\0" + self.targets["abstract"], self.targets["listener"]):
            unix = self._stack.enter_context(socket.socket(socket.AF_UNIX))
            unix.bind(address)
            unix.listen()
        os.chmod(self.targets["listener"], 0o777)

    def _in_the_app(self) -> None:
        """What the app's directory may hold beside files: everybody may use it."""
        kinds = {"app_socket": socket.SOCK_STREAM, "app_datagram": socket.SOCK_DGRAM}
        for name, kind in kinds.items():
            sock = self._stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            self.targets[name] = str(self.app / name)
            sock.bind(self.targets[name])
            if kind == socket.SOCK_STREAM:
                sock.listen()
            os.chmod(self.targets[name], 0o777)
        for name in ("app_fifo", "app_fifo_full"):
            self.targets[name] = str(self.app / name)
            os.mkfifo(self.targets[name])
            os.chmod(self.targets[name], 0o666)
            self._stack.callback(os.close, fifo := os.open(self.targets[name], os.O_RDWR))
        os.write(fifo, b"for the host")
        self.targets["app_file"] = self._file(self.app / "app_file")

    def _terminal(self) -> None:
        main, second = pty.openpty()
        self.targets["terminal"] = os.ttyname(second)
        self._stack.callback(os.close, main)
        self._stack.callback(os.close, second)

    def _victim(self) -> None:
        """Another process of the engine's user, with something in its environment."""
        self.targets["variable"] = f"SECRET={secrets.token_hex(8)}"
        name, _, value = self.targets["variable"].partition("=")
        victim = subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE, env={name: value})
        self._stack.callback(victim.wait)
        self._stack.callback(victim.kill)

    def _privileged(self) -> None:
        """Programs that give privileges. Only root can make some that give what the engine does not have."""
        for name in ("setuid", "capable"):
            path = self.base / "app" / name
            shutil.copy(python_for(NOBODY) if ROOT else sys.executable, path)
            path.chmod(0o755)
            self.targets[name] = str(path)
        os.chmod(self.targets["setuid"], 0o4755)
        if ROOT:
            effective, version = 1, 0x02000000
            override = (1 << 1).to_bytes(4, "little") + bytes(12)
            capability = (version | effective).to_bytes(4, "little") + override
            os.setxattr(self.targets["capable"], "security.capability", capability)

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.targets["planted"])
        self._stack.close()


class Level:
    """Workers at a level: with limits, and, if asked for, with one on the size of files as well."""

    def __init__(self, name: str, without: str, world: World) -> None:
        self.name = name
        self.world = world
        self.python = python_for(NOBODY) if name == "cgroup" and ROOT else sys.executable
        self._without = without
        self._isolates: dict[bool, Isolate] = {}
        self._started: list[Started] = []

    def start(self, *argv: str, readable: tuple[str, ...] = (), small_files: bool = False) -> Started:
        """A worker, from its command line."""
        marker = secrets.token_hex(8)
        command = Command(argv=(*argv, marker), directory=str(self.world.app), readable=readable)
        worker = Started(self._isolate(small_files).spawn(f"main.{len(self._started)}", command), marker)
        self._started.append(worker)
        return worker

    def forget(self) -> None:
        """All workers have been reaped."""
        self._started.clear()

    def _isolate(self, small_files: bool) -> Isolate:
        if small_files not in self._isolates:
            kind = builtins.isolate(self.name)
            fields: dict[str, Any] = {"memory": Size(MEMORY), "pids": PIDS, "files": FILES, "temp": Size(TEMP)}
            fields["working_directory"] = "own"
            if small_files:
                fields["file_size"] = Size(MIB)
            if self.name == "cgroup" and ROOT:
                fields["uid"] = NOBODY
            known = set(kind.Config.__struct_fields__)
            isolate: Isolate = kind("main", kind.Config(**{name: fields[name] for name in known & set(fields)}))
            if self._without:
                assert isinstance(isolate, Jail)
                isolate.layers -= {self._without}
            isolate.prepare()
            self._isolates[small_files] = isolate
        return self._isolates[small_files]

    def close(self) -> None:
        for worker in self._started:
            if worker.process.socket.fileno() != -1:
                worker.process.kill()
                worker.reap()
        for isolate in self._isolates.values():
            isolate.close()

    def script(self, code: str) -> tuple[str, ...]:
        return (self.python, "-I", "-c", _PRELUDE + code)


_PRELUDE: Final = """
import ctypes, json, mmap, os, signal, sys, time
FD = int(sys.argv[sys.argv.index("--fd") + 1])
TEMP = os.environ["TMPDIR"]
def say(value):
    print(json.dumps(value), flush=True)
def wait():
    while True:
        time.sleep(1000)
"""


# ---------------------------------------------------------------------- what needs nothing but a worker


def calm(level: Level) -> dict[str, str]:
    """Everything in probes.py, beside a sibling."""
    targets = level.world.targets
    sibling = level.start(
        *level.script('buffer = ctypes.create_string_buffer(b"precious")\nsay(ctypes.addressof(buffer))\nwait()')
    )
    targets["sibling_address"] = int(sibling.line())
    targets["sibling"] = max(processes(sibling.marker))
    path = level.world.app / "targets.json"
    path.write_text(json.dumps(targets))
    path.chmod(0o644)
    worker = level.start(level.python, "-I", str(level.world.app / "probes.py"), str(path))
    said = json.loads(worker.line())
    assert worker.reap().code == 0, worker.errors
    found = {name: outcome for name, (outcome, _) in said.items()}
    for name, (outcome, how) in said.items():
        print(f"{name}: {outcome}: {how}", file=sys.stderr)
    if not os.path.lexists(targets["planted"]):  # in a /tmp of its own
        found["planted-temp"] = "denied"
    try:
        level.world.udp.recv(100)
    except BlockingIOError:  # sent in a network of its own
        found["udp"] = "denied"
    return found


# ---------------------------------------------------------------------- what needs somebody outside


def ignores_signals(level: Level) -> str:
    """F49: it lives on after SIGTERM, and is ended nevertheless."""
    code = """
for number in set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
say(1)
wait()
"""
    worker = level.start(*level.script(code))
    worker.line()
    worker.process.terminate()
    worker.process.kill()
    worker.reap()
    return "killed" if not processes(worker.marker) else "open"


def memory(level: Level, code: str) -> str:
    """F50: whether it comes to its end; all of them use more than twice the limit."""
    worker = level.start(*level.script(code + '\nsay("done")'))
    ending = worker.reap(60)
    if ending.code == 0:
        return "open" if b"done" in worker.printed else "denied"
    if "out of memory" in ending.reason:
        return "killed"
    assert b"MemoryError" in worker.errors or b"OSError" in worker.errors, (ending, worker.errors)
    return "denied"


def memory_bomb(level: Level) -> str:
    return memory(level, f"data = [bytes(range(256)) * {MIB // 256} for i in range(256)]")


def memory_of_children(level: Level) -> str:
    """Each has less than the limit."""
    code = f"""
pids = []
for i in range(4):
    pid = os.fork()
    if pid == 0:
        data = bytes(range(256)) * {64 * MIB // 256}
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    pids.append(pid)
for pid in pids:
    os.kill(pid, signal.SIGCONT)
if not all(os.waitpid(pid, 0)[1] == 0 for pid in pids):
    raise MemoryError
"""
    return memory(level, code)


def hidden_memory(level: Level) -> str:
    """What limits of processes do not count: shared mappings, files in memory that have no name."""
    code = f"""
shared = mmap.mmap(-1, {128 * MIB})
for i in range(0, {128 * MIB}, 4096):
    shared[i] = 1
fd = os.memfd_create("hidden")
for i in range(128):
    os.write(fd, bytes({MIB}))
"""
    return memory(level, code)


def memory_of_sockets(level: Level) -> str:
    """What waits in buffers of sockets, as large as they may be."""
    code = f"""
import socket
total, keep = 0, []
for _ in range(40):
    for sock in socket.socketpair():
        keep.append(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * {MIB})
        try:
            while True:
                total += sock.send(bytes({MIB} // 16))
        except BlockingIOError:
            pass
if total < {2 * MEMORY}:
    raise MemoryError
"""
    return memory(level, code)


def memory_of_files(level: Level) -> str:
    """Empty files in memory: each is about 1 KiB of the kernel's. Elsewhere they are on the disk, see `full_temp`."""
    if level.name in ("process", "cgroup"):
        return "open"
    code = f"""
for i in range({2 * MEMORY} // 1024):
    os.close(os.open("%s/%d" % (TEMP, i), os.O_CREAT | os.O_WRONLY))
"""
    return memory(level, code)


def fork_bomb(level: Level) -> str:
    """F51, as Python: bounded, as there are levels that it would take down with the host."""
    code = """
pids = []
try:
    for i in range(3 * %d):
        pid = os.fork()
        if pid == 0:
            wait()
        pids.append(pid)
    say("open")
except OSError:
    say("denied")
for pid in pids:
    os.kill(pid, signal.SIGKILL)
"""
    return str(json.loads(level.start(*level.script(code % PIDS)).line()))


def shell_fork_bomb(level: Level) -> str:
    """F51, as a shell script."""
    code = f"i=0; while [ $i -lt {3 * PIDS} ]; do sleep 1000 & i=$((i + 1)); done; kill -9 $(jobs -p); echo open"
    worker = level.start("/bin/sh", "-c", code, "sh")
    worker.reap()
    return "open" if worker.printed == b"open\n" else "denied"


_HIDE: Final = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sh", ["/bin/sh", "-c", "while :; do sleep 1000; done", sys.argv[1]], {})
    os._exit(0)
os.wait()
say(1)
wait()
"""


def hidden_daemon(level: Level) -> str:
    """F52: forked twice, in a session of its own, with nothing in its environment."""
    worker = level.start(*level.script(_HIDE))
    worker.line()
    eventually("the daemon runs", lambda: any(_is_shell(pid) for pid in processes(worker.marker)))
    worker.process.kill()
    worker.reap()
    left = processes(worker.marker)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return "open" if left else "killed"


def daemon_of_dead_engine(level: Level) -> str:
    """F52: the same when nobody is left to end it: the engine is killed."""
    marker = secrets.token_hex(8)
    argv = [sys.executable, "-m", "tests.escape.world", "--engine", level.name, str(level.world.app), marker]
    with subprocess.Popen(argv, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == b"ready\n"
        eventually("the daemon runs", lambda: any(_is_shell(pid) for pid in processes(marker)))
        engine.kill()
    deadline = time.monotonic() + 3.0
    while (left := [pid for pid in processes(marker) if _is_shell(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return "open" if left else "killed"


def be_engine(name: str, app: str, marker: str) -> None:
    """One with a worker, whose daemon is to be found by ``marker``; until it is killed."""

    class Place:
        def __init__(self) -> None:
            self.app = Path(app)

    level = Level(name, "", Place())  # type: ignore[arg-type]
    worker = level.start(*level.script(_HIDE.replace("sys.argv[1]", repr(marker))))
    worker.line()
    print("ready", flush=True)
    sys.stdin.read()


def _is_shell(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/bin/sh\0-c\0while")
    return False


def many_files(level: Level) -> str:
    """F53: what it leaves in its temporary directory is there when it has gone."""
    code = """
os.chdir(TEMP)
for i in range(2000):
    open(str(i), "w").close()
say([os.getcwd(), os.stat(".").st_ino])
"""
    worker = level.start(*level.script(code))
    path, inode = json.loads(worker.line())
    worker.reap()
    eventually("it is removed", lambda: not os.path.exists(path) or os.stat(path).st_ino != inode)
    return "denied"


def many_descriptors(level: Level) -> str:
    """F53."""
    code = """
try:
    fds = [os.dup(0) for i in range(1000)]
    say("open")
except OSError:
    say("denied")
"""
    return str(json.loads(level.start(*level.script(code)).line()))


def full_temp(level: Level) -> str:
    """F54: more than `temp`, in many files."""
    code = f"""
try:
    for i in range(32):
        with open(TEMP + "/" + str(i), "wb") as file:
            file.write(bytes({MIB}))
    say("open")
except OSError:
    say("denied")
"""
    return str(json.loads(level.start(*level.script(code)).line()))


def sparse_file(level: Level) -> str:
    """F54: a petabyte of nothing."""
    code = """
try:
    with open(TEMP + "/sparse", "wb") as file:
        file.truncate(1 << 50)
    say("open")
except OSError:
    say("denied")
"""
    return str(json.loads(level.start(*level.script(code), small_files=True).line()))


def core_dump(level: Level) -> str:
    """F58: a native crash leaves what it had in memory on the disk."""
    code = "say(os.listdir(os.getcwd()))\nctypes.string_at(0)"
    worker = level.start(*level.script(code))
    before = json.loads(worker.line())
    ending = worker.reap()
    assert ending.code == -signal.SIGSEGV, ending
    cores = list(level.world.base.rglob("core*"))
    return "denied" if before == [] and not cores else "open"


def temp_as_link(level: Level) -> str:
    """F64: whoever cleans up after it follows a link that it planted in the place of its directory."""
    victim = level.world.base / "victim"
    victim.mkdir(mode=0o777)
    victim.chmod(0o777)
    (victim / "file").write_text("precious")
    code = f"""
os.symlink({str(victim)!r}, TEMP + "/link")
os.mkdir(TEMP + "/directory")
try:
    os.rename(TEMP, TEMP + ".away")
    os.symlink({str(victim)!r}, TEMP)
except OSError:
    pass
"""
    try:
        worker = level.start(*level.script(code))
        worker.reap()
        return "denied" if (victim / "file").exists() else "open"
    finally:
        shutil.rmtree(victim)


def link_at_mount_point(level: Level) -> str:
    """F65: a mount point below a link that the app has makes something on the host (CVE-2026-87766)."""
    victim = level.world.base / "mounts"
    victim.mkdir(mode=0o777)
    victim.chmod(0o777)
    inside = level.world.base / "inside"
    (inside / "data").mkdir(parents=True, exist_ok=True)
    app = level.world.app
    links = [app / "escape", app / "escape2"]
    links[0].symlink_to(f"/oldroot{victim}")
    links[1].symlink_to(victim)
    nested = app / "nested"
    nested.mkdir()
    try:
        for readable in (str(nested), str(links[1]), str(inside / "data")):
            with contextlib.suppress(OSError):
                level.start("/bin/sh", "-c", "exit 0", readable=(readable,)).reap()
        with contextlib.suppress(OSError):
            level.start("/bin/sh", "-c", "exit 0", readable=(str(links[0] / "made"),)).reap()
        return "open" if list(victim.iterdir()) else "denied"
    finally:
        for link in links:
            link.unlink()
        nested.rmdir()
        shutil.rmtree(victim)
        shutil.rmtree(inside)


OUTSIDE: Final[dict[str, Callable[[Level], str]]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        ignores_signals,
        memory_bomb,
        memory_of_children,
        hidden_memory,
        memory_of_sockets,
        memory_of_files,
        fork_bomb,
        shell_fork_bomb,
        hidden_daemon,
        daemon_of_dead_engine,
        many_files,
        many_descriptors,
        full_temp,
        sparse_file,
        core_dump,
        temp_as_link,
        link_at_mount_point,
    )
}


def outcomes(name: str, without: str = "") -> dict[str, str]:
    """Of everything at a level.

    Raises:
        Unsupported: this host does not have it.
    """
    world = World()
    try:
        level = Level(name, without, world)
        try:
            found = calm(level)
            if not without:
                found.update({key: function(level) for key, function in OUTSIDE.items()})
            return found
        finally:
            level.close()
    finally:
        world.close()


def main() -> None:
    if sys.argv[1] == "--engine":
        be_engine(*sys.argv[2:])
        return
    try:
        print(json.dumps(outcomes(*sys.argv[1:])))
    except Unsupported as e:
        print(json.dumps({"unsupported": str(e)}))


if __name__ == "__main__":
    main()
