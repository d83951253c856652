"""The contract of `grape.abc.isolate.Isolate`, as tests.

A level's test file is a constructor and little more::

    class TestMine(IsolateContract):
        def isolate(self, **fields: Any) -> Isolate:
            return MyIsolate("main", MyIsolate.Config(**fields))

A level that holds a worker with everything it starts, whatever it does, subclasses `ConfinedContract` instead. The
methods named ``test_...`` need nothing but an `assert` that raises; pytest finds them by their names. Workers are small
scripts: no level knows what language they are in.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from grape.abc.isolate import Command, Ending, Isolate, Process
from grape.model.section import Duration, Size

MIB: Final = 1 << 20
PATIENCE: Final = 20.0
KEPT: Final = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "VIRTUAL_ENV", "GRAPE_PURE", "TMPDIR", "PWD", "SHLVL"}
)


def eventually(what: str, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """
    Raises:
        AssertionError: it does not come true in time.
    """
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.005)


def processes(marker: str) -> list[int]:
    """Pids of what has ``marker`` in its command line and is alive."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if marker.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.append(int(name))
    return found


def descriptors() -> list[str]:
    """Of this process: what each one is."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(f"{name}: {os.readlink(f'/proc/self/fd/{name}')}")
    return sorted(found)


def python_for(uid: int | None, module: str = "socket", env: dict[str, str] | None = None) -> str:
    """A Python that this user can execute, and that can import ``module`` with ``env`` (None: without anything); only
    root may ask for another user.

    Raises:
        AssertionError: there is none.
    """
    bare = ["-I", "-S"] if env is None else []
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [python, "-B", *bare, "-c", f"import {module}"],
                user=uid,
                group=uid,
                extra_groups=None if uid is None else [],
                env=env,
                cwd="/",
                capture_output=True,
                check=False,
            )
            if done.returncode == 0:
                return python
    raise AssertionError(f"no Python that the user {uid} can execute: install one in /usr (apt-get install python3)")


class Started:
    """A worker, seen from the engine: its process, and what it has printed."""

    def __init__(self, process: Process, marker: str) -> None:
        self.process = process
        self.marker = marker
        self.printed = b""
        self.errors = b""

    def line(self) -> str:
        """The next line that it prints."""
        eventually("a line from the worker", lambda: self._read() or b"\n" in self.printed or self.has_ended)
        self._read()
        assert b"\n" in self.printed, f"the worker ended without a word; it said {self.errors.decode()!r}"
        line, _, self.printed = self.printed.partition(b"\n")
        return line.decode()

    @property
    def has_ended(self) -> bool:
        return bool(select.select([self.process.pidfd], [], [], 0)[0])

    def reap(self, patience: float = PATIENCE) -> Ending:
        """Wait for its end."""
        deadline = time.monotonic() + patience
        while not self.has_ended:  # it may have more to say than fits into a pipe
            assert time.monotonic() < deadline, f"the worker does not end; it said {self.errors.decode()!r}"
            select.select([self.process.pidfd, self.process.stdout, self.process.stderr], [], [], 0.05)
            self._read()
        self._read()
        ending = self.process.reap()
        os.close(self.process.pidfd)
        self.process.socket.close()
        return ending

    def _read(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.process.stderr, 1 << 16):
                self.errors += data
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.process.stdout, 1 << 16):
                self.printed += data
        return False


class Engine:
    """An isolate in use, and an app that every user may read; ``temporary`` is where temporary files go."""

    def __init__(self, isolate: Isolate, python: str, place: str) -> None:
        self.isolate = isolate
        self.python = python
        self.app = os.path.join(place, "app")
        self.temporary = os.path.join(place, "tmp")
        self._marker = secrets.token_hex(8)
        self._started: list[Started] = []

    def command(self, argv: tuple[str, ...], **more: Any) -> Command:
        return Command(**{"argv": argv, "directory": self.app, **more})

    def python_argv(self, code: str) -> tuple[str, ...]:
        return (self.python, "-I", "-S", "-c", _PRELUDE + code, self._marker)

    def run(self, code: str, worker: str = "main.0", **more: Any) -> Started:
        """Start a worker from Python code. ``say(value)`` prints JSON, ``SOCKET`` is its socket, MARKER in the command
        line of whatever has to be found again."""
        return self._spawn(worker, self.command(self.python_argv(code), **more))

    def shell(self, code: str, worker: str = "main.0", **more: Any) -> Started:
        """Start a worker from a shell script."""
        return self._spawn(worker, self.command(("/bin/sh", "-c", code, self._marker), **more))

    def _spawn(self, worker: str, command: Command) -> Started:
        started = Started(self.isolate.spawn(worker, command), self._marker)
        self._started.append(started)
        return started

    def left(self) -> list[int]:
        """Every process of every worker that is alive."""
        return processes(self._marker)

    def close(self) -> None:
        for started in self._started:
            if started.process.socket.fileno() != -1:
                started.process.kill()
                started.reap()
        self.isolate.close()


_PRELUDE: Final = """
import json, os, signal, socket, sys, time
MARKER = sys.argv[1]
FD = int(sys.argv[sys.argv.index("--fd") + 1])
PARENT = int(sys.argv[sys.argv.index("--parent") + 1])
SOCKET = socket.socket(fileno=FD)
def say(value):
    print(json.dumps(value), flush=True)
def wait():
    while SOCKET.recv(100):
        pass
    while True:
        signal.pause()
def daemon(argv):  # forked twice, in a session of its own
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(argv[0], argv)
        os._exit(0)
    os.wait()
"""

_DAEMON: Final = 'daemon(["/bin/sh", "-c", "while :; do sleep 1000; done", MARKER])\n'


class IsolateContract(ABC):
    """Of any level."""

    python: str = sys.executable
    """A Python that the workers' user can execute."""

    limits: frozenset[str] = frozenset({"cpu", "file_size", "files", "memory"})
    """The fields of its `Config` that the level has of these."""

    @abstractmethod
    def isolate(self, **fields: Any) -> Isolate:
        """An isolate that is not prepared, with these fields in its `Config`."""

    @contextlib.contextmanager
    def engine(self, **fields: Any) -> Iterator[Engine]:
        """An isolate, prepared, in a place of its own; nothing is in its temporary directory afterwards."""
        with _place() as place:
            isolate = self.isolate(**fields)
            isolate.prepare()
            engine = Engine(isolate, self.python, place)
            try:
                yield engine
            finally:
                engine.close()
            left = os.listdir(engine.temporary)
            assert left == [], left

    # ------------------------------------------------------------------ abilities

    def test_what_this_host_lacks_has_a_reason_and_a_remedy(self) -> None:
        rows = type(self.isolate()).abilities()
        assert rows
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            assert row.name
            assert row.works or (row.why and row.remedy), row

    # ------------------------------------------------------------------ what a worker has

    def test_the_socket_and_the_pipes_connect_worker_and_engine(self) -> None:
        with self.engine() as engine:
            worker = engine.run('data = SOCKET.recv(5); SOCKET.sendall(b"pong:" + data); print("out"); sys.exit("err")')
            worker.process.socket.send(b"hello")
            assert worker.reap().code == 1
            assert worker.printed == b"out\n"
            assert worker.errors == b"err\n"

    def test_the_answer_on_the_socket_survives_the_worker(self) -> None:
        with self.engine() as engine:
            worker = engine.run('SOCKET.sendall(b"last words")')
            eventually("the worker ends", lambda: worker.has_ended)
            assert worker.process.socket.recv(100) == b"last words"
            assert worker.process.socket.recv(100) == b""

    def test_nothing_of_it_blocks_the_engine(self) -> None:
        with self.engine() as engine:
            process = engine.run("wait()").process
            for fd in (process.stdout, process.stderr, process.socket.fileno()):
                assert not os.get_blocking(fd)
                assert not os.get_inheritable(fd)
            assert not os.get_inheritable(process.pidfd)

    def test_a_worker_has_the_variables_it_was_given_and_none_of_the_engines_own(self) -> None:
        os.environ["GRAPE_CONTRACT_SECRET"] = "secret"
        try:
            with self.engine() as engine:
                env = json.loads(engine.run("say(dict(os.environ))", env={"GREETING": "hello = world"}).line())
        finally:
            del os.environ["GRAPE_CONTRACT_SECRET"]
        assert env["GREETING"] == "hello = world"
        assert "secret" not in json.dumps(env)
        inherited = {name for name, value in os.environ.items() if env.get(name) == value}
        finds_code = {name for name in inherited if name.startswith("PYTHON")}  # the level `process` keeps them
        assert inherited - finds_code <= KEPT, inherited

    def test_a_worker_has_no_descriptors_but_stdio_and_the_socket(self) -> None:
        with self.engine() as engine, open("/etc/hostname") as secret:
            os.set_inheritable(secret.fileno(), True)
            code = """
fds = {}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[name] = os.readlink("/proc/self/fd/" + name)
    except FileNotFoundError:
        pass
say([fds, FD, sys.stdin.read()])
"""
            fds, fd, stdin = json.loads(engine.run(code).line())
        assert sorted(map(int, fds)) == [0, 1, 2, fd], fds
        assert stdin == ""
        assert fds["1"].startswith("pipe:")
        assert fds["2"].startswith("pipe:")
        assert fds[str(fd)].startswith("socket:")

    def test_a_worker_reads_its_input_which_nobody_else_can_and_it_cannot_change(self) -> None:
        code = """
def fails(function, *arguments):
    try:
        function(*arguments)
    except OSError:
        return True
    return False
text = sys.stdin.read()
say([text, fails(os.write, 0, b"x"), fails(os.ftruncate, 0, 1 << 30)])
wait()
"""
        with self.engine() as engine:
            started = engine.run(code, input=b"a secret" * 100_000)
            text, *changes = json.loads(started.line())
            assert text == "a secret" * 100_000
            assert changes == [True, True]
            for pid in processes(started.marker):
                assert b"a secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
                assert b"a secret" not in Path(f"/proc/{pid}/environ").read_bytes()

    def test_a_worker_has_a_session_no_terminal_no_core_dumps_and_gains_no_privileges(self) -> None:
        code = """
import resource
try:
    terminal = os.open("/dev/tty", os.O_RDWR)
except OSError:
    terminal = -1
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
say([os.getsid(0) != PARENT, terminal, resource.getrlimit(resource.RLIMIT_CORE), status["NoNewPrivs"].strip(),
     os.umask(0) & 0o022])
"""
        with self.engine() as engine:
            worker = engine.run(code)
            own_session, terminal, core, no_new_privileges, umask = json.loads(worker.line())
            assert worker.reap().code == 0
        assert own_session
        assert terminal == -1
        assert core == [0, 0]
        assert no_new_privileges == "1"
        assert umask == 0o022

    def test_a_worker_reads_its_app_and_what_the_runtime_needs_from_where_it_starts(self) -> None:
        with self.engine() as engine, tempfile.TemporaryDirectory(prefix="grape-contract-") as more:
            os.chmod(more, 0o755)
            Path(more, "lib.txt").write_text("the runtime")
            os.chmod(Path(more, "lib.txt"), 0o644)
            code = f'say([open({engine.app!r} + "/app.txt").read(), open({more!r} + "/lib.txt").read(), os.getcwd()])'
            worker = engine.run(code, readable=(more,))
            assert json.loads(worker.line()) == ["the app", "the runtime", engine.app]

    # ------------------------------------------------------------------ temporary directory

    def test_each_worker_has_a_temporary_directory_of_its_own(self) -> None:
        code = """
path = os.environ["TMPDIR"]
open(path + "/" + MARKER, "w").write("mine")
say([path, oct(os.stat(path).st_mode & 0o777), os.stat(path).st_uid == os.getuid(), os.listdir(path)])
wait()
"""
        with self.engine() as engine:
            workers = [engine.run(code, f"main.{i}") for i in range(3)]
            paths = []
            for worker in workers:
                path, mode, own, files = json.loads(worker.line())
                assert mode == "0o700"
                assert own
                assert files == [worker.marker]
                paths.append(path)
            for worker, path in zip(workers, paths, strict=True):
                worker.process.kill()
                worker.reap()
                assert not os.path.exists(os.path.join(path, worker.marker))

    def test_a_temporary_directory_is_removed_whatever_is_in_it_and_nothing_else(self) -> None:
        with self.engine() as engine, tempfile.TemporaryDirectory(prefix="grape-victim-") as victim:
            os.chmod(victim, 0o777)
            Path(victim, "file").write_text("precious")
            os.chmod(Path(victim, "file"), 0o666)
            code = f"""
victim = {victim!r}
os.chdir(os.environ["TMPDIR"])
os.mkdir("locked")
open("locked/file", "w").close()
os.mkdir("locked/inner")
os.symlink(victim, "locked/inner/link")
os.symlink(victim, "directory")
os.symlink(victim + "/file", "file")
os.symlink("/", "root")
os.symlink("..", "up")
os.symlink("loop", "loop")
for i in range(3000):
    open("%d" % i, "w").close()
open("-rf \\n *", "w").close()
for i in range(600):
    os.mkdir("deep")
    os.chdir("deep")
    os.symlink(victim, "link")
os.chdir(os.environ["TMPDIR"])
try:
    os.link(victim + "/file", "hard")
except OSError:
    pass
os.mkfifo("fifo")
os.chmod("locked/inner", 0)
os.chmod("locked", 0)
os.chmod(".", 0o500)
say(os.getcwd())
"""
            worker = engine.run(code)
            path = json.loads(worker.line())
            ending = worker.reap()
            assert ending.code == 0, worker.errors
            assert ending.reason == ""
            assert not os.path.exists(os.path.join(path, "locked"))
            assert Path(victim, "file").read_text() == "precious"
            assert os.stat(victim).st_mode & 0o777 == 0o777

    def test_a_temporary_directory_that_became_a_link_is_not_followed(self) -> None:
        with self.engine() as engine, tempfile.TemporaryDirectory(prefix="grape-victim-") as victim:
            os.chmod(victim, 0o777)
            Path(victim, "file").write_text("precious")
            code = f"""
path = os.environ["TMPDIR"]
os.mkdir(path + "/moved")
try:
    os.rename(path, path + ".away")
    os.symlink({victim!r}, path)
except OSError:
    pass
"""
            assert engine.run(code).reap().code == 0
            assert Path(victim, "file").read_text() == "precious"

    # ------------------------------------------------------------------ endings

    def test_the_exit_code_is_the_workers_own(self) -> None:
        with self.engine() as engine:
            assert engine.run("sys.exit(3)").reap() == Ending(3)
            assert engine.shell("exit 44").reap() == Ending(44)
            for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM):
                code = f"signal.signal({number:d}, signal.SIG_DFL); os.kill(os.getpid(), {number:d}); wait()"
                assert engine.run(code).reap() == Ending(-number)

    def test_terminate_asks(self) -> None:
        with self.engine() as engine:
            # A handler of Python that is due just before a blocking call would run behind it: so there is none.
            code = "signal.pthread_sigmask(signal.SIG_BLOCK, asked); say('ready'); signal.sigwait(asked); sys.exit(7)"
            worker = engine.run(f"asked = {{signal.SIGTERM}}\n{code}")
            worker.line()
            worker.process.terminate()
            assert worker.reap().code == 7

    def test_kill_does_not_ask(self) -> None:
        code = """
signal.pthread_sigmask(signal.SIG_BLOCK, set(range(1, 65)))
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
say("ready")
while data := SOCKET.recv(100):
    SOCKET.sendall(data)
while True:
    time.sleep(1)
"""
        with self.engine() as engine:
            worker = engine.run(code)
            worker.line()
            worker.process.terminate()
            worker.process.socket.send(b"still there?")
            assert select.select([worker.process.socket], [], [], PATIENCE)[0]
            assert worker.process.socket.recv(100) == b"still there?"
            worker.process.kill()
            assert worker.reap().code == -signal.SIGKILL

    def test_a_stopped_worker_can_be_killed(self) -> None:
        with self.engine() as engine:
            worker = engine.run('say("ready"); os.kill(os.getpid(), signal.SIGSTOP); wait()')
            worker.line()
            worker.process.kill()
            assert worker.reap().code == -signal.SIGKILL

    def test_terminate_and_kill_do_no_harm_once_it_has_ended(self) -> None:
        with self.engine() as engine:
            worker = engine.run("sys.exit(5)")
            eventually("the worker ends", lambda: worker.has_ended)
            worker.process.terminate()
            worker.process.kill()
            assert worker.reap().code == 5

    def test_nothing_of_a_worker_is_left_when_it_ended_by_itself(self) -> None:
        with self.engine() as engine:
            assert engine.run(_DAEMON + 'os.system("sleep 1000 &")').reap().code == 0
            assert engine.left() == []

    def test_nothing_of_a_worker_is_left_when_it_was_killed(self) -> None:
        code = """
import subprocess
subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1000; done", MARKER])
subprocess.Popen(["/bin/sh", "-c", "while :; do sleep 1000; done", MARKER], start_new_session=True)
say("ready")
wait()
"""
        with self.engine() as engine:
            worker = engine.run(_DAEMON + code)
            worker.line()
            worker.process.kill()
            assert worker.reap().code == -signal.SIGKILL
            assert engine.left() == []

    def test_the_end_of_one_worker_leaves_the_others(self) -> None:
        with self.engine() as engine:
            other = engine.run("SOCKET.sendall(SOCKET.recv(5)); sys.exit(4)", "main.1")
            one = engine.run(_DAEMON + 'say("ready"); wait()')
            one.line()
            one.process.kill()
            one.reap()
            other.process.socket.send(b"hello")
            assert other.reap().code == 4

    def test_a_worker_of_the_same_name_may_start_before_the_last_one_is_collected(self) -> None:
        with self.engine() as engine:
            first = engine.run("pass")
            eventually("the worker ends", lambda: first.has_ended)
            second = engine.run("sys.exit(SOCKET.recv(1)[0])")
            assert first.reap().code == 0
            second.process.socket.send(b"\x09")
            assert second.reap().code == 9

    def test_a_worker_dies_with_its_engine_and_the_next_engine_ends_the_rest(self) -> None:
        with self.engine() as engine:  # of which only place and marker are used
            before = _entries(engine.temporary)
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    isolate = self.isolate()
                    isolate.prepare()
                    engine.isolate = isolate
                    engine.run(_DAEMON + 'say("ready"); signal.pause()').line()
                    os.write(writing, b"1")
                    signal.pause()
                finally:
                    os._exit(1)
            os.close(writing)
            try:
                assert os.read(reading, 1) == b"1"
                of_worker = [p for p in engine.left() if p != pid]
                assert of_worker
            finally:
                os.close(reading)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

            def python_is_gone() -> bool:
                return not any(_PRELUDE.encode() in _cmdline(p) for p in engine.left())

            eventually("the worker dies with its engine", python_is_gone)
            left = _entries(engine.temporary)
            next_one = self.isolate()
            next_one.prepare()
            assert engine.left() == []
            assert not left - before & _entries(engine.temporary)
            next_one.close()

    # ------------------------------------------------------------------ starting

    def test_what_cannot_be_started_is_an_os_error_and_leaves_nothing(self) -> None:
        with self.engine() as engine:
            engine.run("pass").reap()
            before, files = descriptors(), _entries(engine.temporary)
            for command in (
                engine.command(("/no/such/program",)),
                engine.command(("no-such-program",)),
                engine.command((os.path.join(engine.app, "app.txt"),)),
                engine.command((engine.app,)),
                engine.command(engine.python_argv("pass"), directory=os.path.join(engine.app, "no-such-directory")),
            ):
                try:
                    process = engine.isolate.spawn("main.0", command)
                except OSError as e:
                    assert str(e)  # noqa: PT017
                else:
                    raise AssertionError(f"{command} was started as {process.pid}")
            assert descriptors() == before
            assert _entries(engine.temporary) == files
            assert engine.run("sys.exit(2)").reap().code == 2

    def test_two_hundred_workers_leave_nothing(self) -> None:
        with self.engine() as engine:
            engine.shell("exit 0").reap()
            before, files = descriptors(), _entries(engine.temporary)
            for i in range(200):
                worker = engine.shell("exit 0" if i % 2 else "while :; do sleep 1000; done", f"main.{i % 5}")
                if i % 2 == 0:
                    worker.process.kill()
                worker.reap()
            assert descriptors() == before
            assert _entries(engine.temporary) == files
            assert engine.left() == []

    def test_workers_may_be_collected_on_any_thread_while_others_start(self) -> None:
        with self.engine() as engine, ThreadPoolExecutor(4) as reapers:
            before = descriptors()
            endings = []
            for i in range(60):
                worker = engine.shell(f"sleep 1000 & exit {i}", f"main.{i % 5}")
                endings.append(reapers.submit(worker.reap))
            assert [ending.result() for ending in endings] == [Ending(i) for i in range(60)]
            assert descriptors() == before
            assert engine.left() == []

    # ------------------------------------------------------------------ limits

    def test_limit_on_open_files(self) -> None:
        if "files" in self.limits:
            code = """
files = []
try:
    for i in range(1000):
        files.append(os.open("/dev/null", os.O_RDONLY))
except OSError as e:
    say([len(files), e.strerror])
"""
            with self.engine(files=64) as engine:
                count, error = json.loads(engine.run(code).line())
            assert 50 < count < 64
            assert error == "Too many open files"

    def test_limit_on_file_size(self) -> None:
        if "file_size" in self.limits:
            code = """
path = os.environ["TMPDIR"] + "/file"
try:
    with open(path, "wb") as file:
        file.truncate(1 << 50)
except OSError as e:
    say(e.strerror)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
with open(path, "wb") as file:
    for _ in range(1000):
        file.write(bytes(1000))
"""
            with self.engine(file_size=Size(64 << 10)) as engine:
                worker = engine.run(code)
                assert json.loads(worker.line()) == "File too large"
                ending = worker.reap()
            assert ending.code == -signal.SIGXFSZ
            assert "64 KiB (isolate.file-size)" in ending.reason

    def test_limit_on_cpu_time(self) -> None:
        if "cpu" in self.limits:
            with self.engine(cpu=Duration(1)) as engine:
                polite = engine.shell("while :; do :; done")
                stubborn = engine.run("signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "main.1")
                for worker in (polite, stubborn):
                    ending = worker.reap()
                    assert ending.code in (-signal.SIGXCPU, -signal.SIGKILL)
                    assert "1 s (isolate.cpu)" in ending.reason

    def test_limit_on_memory(self) -> None:
        if "memory" in self.limits:
            with self.engine(memory=Size(64 * MIB)) as engine:
                small = engine.run(f"data = b'x' * (16 * {MIB}); sys.exit(3)")
                large = engine.run(f'say("ready")\ndata = b"x" * (256 * {MIB}); sys.exit(3)', "main.1")
                assert small.reap().code == 3
                assert large.line()
                assert large.reap().code != 3


class ConfinedContract(IsolateContract):
    """Of a level that holds a worker with everything it starts, whatever it does; it has the limits ``memory`` (of all
    of a worker) and ``pids``."""

    def test_a_daemon_that_hides_is_gone_as_well(self) -> None:
        code = 'daemon(["/usr/bin/env", "-i", "/bin/sh", "-c", "while :; do sleep 1000; done", MARKER])\n'
        with self.engine() as engine:
            worker = engine.run(code + 'say("ready"); wait()')
            worker.line()
            eventually("the daemon runs", lambda: len(engine.left()) > 1)
            worker.process.kill()
            worker.reap()
            assert engine.left() == []
            assert engine.run(code).reap().code == 0
            assert engine.left() == []

    def test_a_memory_bomb_ends_that_worker_and_says_why(self) -> None:
        bomb = f"blocks = []\nwhile True: blocks.append(b'x' * {MIB})"
        with self.engine(memory=Size(96 * MIB)) as engine:
            other = engine.run("SOCKET.sendall(SOCKET.recv(5)); sys.exit(4)", "main.1")
            worker = engine.run(bomb)
            ending = worker.reap(60)
            assert ending.code != 0
            assert "out of memory" in ending.reason
            assert "96 MiB (isolate.memory)" in ending.reason
            other.process.socket.send(b"hello")
            assert other.reap() == Ending(4)

    def test_the_limit_on_memory_is_one_of_all_processes_of_a_worker(self) -> None:
        code = f"""
for i in range(8):
    if os.fork() == 0:
        data = b"x" * (40 * {MIB})
        time.sleep(1000)
os.wait()
sys.exit(9)
"""
        with self.engine(memory=Size(96 * MIB)) as engine:
            ending = engine.run(code).reap(60)
            assert ending.code in (9, -signal.SIGKILL)
            assert "out of memory" in ending.reason
            assert "96 MiB (isolate.memory)" in ending.reason
            assert engine.left() == []

    def test_a_fork_bomb_stays_in_its_worker(self) -> None:
        bomb = """
import errno
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        SOCKET.send(b"full")
"""
        with self.engine(pids=40, memory=Size(256 * MIB)) as engine:
            worker = engine.run(bomb)
            assert select.select([worker.process.socket], [], [], PATIENCE)[0]
            assert worker.process.socket.recv(4) == b"full"
            begun = time.monotonic()
            assert engine.shell("exit $(echo 1 | wc -l)", "main.1").reap().code == 1
            assert time.monotonic() - begun < PATIENCE
            worker.process.kill()
            ending = worker.reap()
            assert ending.code == -signal.SIGKILL
            assert engine.left() == []
            assert engine.shell("exit $(echo 1 | wc -l)").reap().code == 1

    def test_a_shell_fork_bomb(self) -> None:
        with self.engine(pids=40, memory=Size(256 * MIB)) as engine:
            worker = engine.shell("bomb() { bomb | bomb & }; bomb; while :; do sleep 1000; done")
            eventually("it fails to fork", lambda: worker._read() or b"fork" in worker.errors or worker.has_ended)
            worker.process.kill()
            worker.reap()
            assert engine.left() == []


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


@contextlib.contextmanager
def _place() -> Iterator[str]:
    """A directory with an app, and with this process's temporary directory."""
    place = tempfile.mkdtemp(prefix="grape-contract-")
    try:
        for name, mode in (("", 0o755), ("app", 0o755), ("tmp", 0o1777)):
            path = os.path.join(place, name)
            os.makedirs(path, exist_ok=True)
            os.chmod(path, mode)
        Path(place, "app", "app.txt").write_text("the app")
        os.chmod(Path(place, "app", "app.txt"), 0o644)
        before, tempfile.tempdir = tempfile.tempdir, os.path.join(place, "tmp")
        try:
            yield place
        finally:
            tempfile.tempdir = before
    finally:
        shutil.rmtree(place)


def _entries(path: str) -> set[str]:
    """Every path below."""
    return {os.path.join(where, name) for where, more, files in os.walk(path) for name in (*more, *files)}
