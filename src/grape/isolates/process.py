"""A worker as a process of its own: a guard against accidents, no boundary.

It keeps a worker from what happens by mistake: descriptors and variables of the engine, a core dump, files left in
/tmp, limits that run away, processes that stay. A worker that wants to can still read and change whatever its user can.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import resource
import shutil
import signal
import subprocess
import threading
from typing import Annotated, ClassVar, Final, Literal

from msgspec import Meta, Struct

from grape.abc.isolate import Ability, Command, Ending, Process
from grape.errors import Unsupported
from grape.isolates.launch import Child, Handle, attempt, code_env, find_tool, new_tag, start, worker_env
from grape.isolates.parent import reap_orphans
from grape.isolates.procs import descendants, end_descendants, end_strays, stat
from grape.isolates.scratch import Scratch
from grape.model.section import Duration, Size, show_size

_UTIL_LINUX: Final = "install util-linux 2.33 or later"
_Id = Annotated[int, Meta(ge=0, le=2**32 - 2)]


class ProcessConfig(Struct, frozen=True, kw_only=True, rename="kebab"):
    """Every limit is one of each process, not of a worker with all its descendants. Above what the engine itself is
    allowed, that holds. Core dumps are always off.

    memory: bytes of data a process may have (RLIMIT_DATA: heap, private mappings, stacks of threads); none by default
    address-space: bytes of address space (RLIMIT_AS); none by default: Node and Java need very much at their start
    cpu: seconds of CPU time that a process may use in its life; none by default
    files: open files of a process; 4096
    processes: processes and threads of the user ``uid``, all of its workers together; none by default
    file-size: bytes of a file that is written; none by default
    stack: bytes of stack of the main thread; the engine's own by default
    uid: user of the workers, number or name; the engine's own by default. Only root can give another one
    gid: group, number or name; that of the user ``uid`` by default. There are no supplementary groups then
    umask: of what workers create; 0o077
    working-directory: ``app`` (where the app is) or ``own`` (the worker's temporary directory, empty at its start)
    """

    memory: Size | None = None
    address_space: Size | None = None
    cpu: Duration | None = None
    files: Annotated[int, Meta(ge=16)] = 4096
    processes: Annotated[int, Meta(ge=1)] | None = None
    file_size: Size | None = None
    stack: Size | None = None
    uid: _Id | str | None = None
    gid: _Id | str | None = None
    umask: Annotated[int, Meta(ge=0, le=0o777)] = 0o077
    working_directory: Literal["app", "own"] = "app"


class ProcessIsolate:
    """Each worker has a session, an environment and a temporary directory of its own, limits, and dies with the engine.

    What a worker started is ended with it: its session, what was below it when it was killed, and what carries its tag
    (the variable GRAPE_WORKER), in whatever session. A process that left the session *and* removed the variable from
    its environment when it was executed is not found at this level; a cgroup finds it.
    """

    name: ClassVar[str] = "process"
    finds_code: ClassVar[bool] = True
    """Its Python looks where the engine's does (PYTHONPATH)."""
    Config: ClassVar[type[ProcessConfig]] = ProcessConfig

    def __init__(self, pool: str, config: ProcessConfig) -> None:
        self.pool = pool
        self.config = config
        self.uid = -1
        self.gid = -1
        self._confine: list[str] = []
        self._scratch: Scratch | None = None
        self._readable: set[tuple[str, ...]] = set()

    # ------------------------------------------------------------------ prepare

    @classmethod
    def abilities(cls) -> list[Ability]:
        rows = []
        try:
            setpriv = find_tool("setpriv", "util-linux")
            prlimit = find_tool("prlimit", "util-linux")
        except Unsupported as e:
            return [Ability("limits, no new privileges, death with the engine", False, str(e), _UTIL_LINUX)]
        rows.append(
            attempt("no new privileges, death with the engine", [*_privileges(setpriv), "/bin/true"], _UTIL_LINUX)
        )
        rows.append(attempt("limits", [prlimit, "--core=0", "--nofile=64", "/bin/true"], _UTIL_LINUX))
        root = os.geteuid() == 0
        rows.append(
            attempt("another user (uid)", [*_privileges(setpriv, 65534, 65534), "/bin/true"], "run grape as root")
            if root
            else Ability("another user (uid)", False, "the engine is not root", "run grape as root, or leave uid out")
        )
        return rows

    def prepare(self) -> None:
        """
        Raises:
            Unsupported: the host or the engine's user cannot do it; the text says what to do.
        """
        for ability in ProcessIsolate.abilities()[:2]:
            if not ability.works:
                raise self.refusal(f"this host lacks: {ability.name} ({ability.why}); {ability.remedy}")
        self._find_user()
        if self.config.processes is not None and self.uid in (-1, 0, os.geteuid()):
            raise self.refusal(
                "processes: the kernel counts all processes of a user, so the workers need one of their own: set uid, "
                'or use the level "cgroup", whose limit is `pids`'
            )
        self._confine = [
            *_privileges(find_tool("setpriv", "util-linux"), self.uid, self.gid),
            *_limits(find_tool("prlimit", "util-linux"), self.process_limits()),
        ]
        try:
            self._scratch = Scratch()
        except OSError as e:
            raise self.refusal(f"there is no place for temporary directories: {e}; set TMPDIR to one") from e
        end_strays()

    def process_limits(self) -> ProcessConfig:
        """Those that each process of a worker has."""
        return self.config

    def refusal(self, text: str) -> Unsupported:
        return Unsupported(f"[pool.{self.pool}.isolate] {text}")

    def _find_user(self) -> None:
        uid, gid = self.config.uid, self.config.gid
        if uid is None and gid is None:
            return
        if os.geteuid() != 0:
            raise self.refusal(
                "uid, gid: only root may start workers as another user; run grape as root, or leave both out"
            )
        if isinstance(gid, str):
            try:
                gid = grp.getgrnam(gid).gr_gid
            except KeyError:
                raise self.refusal(
                    f"gid: this host has no group {gid!r}; create it (groupadd), or give a number"
                ) from None
        if uid is not None:
            try:
                user = pwd.getpwnam(uid) if isinstance(uid, str) else pwd.getpwuid(uid)
                self.uid, own = user.pw_uid, user.pw_gid
            except KeyError:
                if isinstance(uid, str):
                    raise self.refusal(
                        f"uid: this host has no user {uid!r}; create it (useradd --system {uid}), or give a number"
                    ) from None
                self.uid = own = uid
            gid = own if gid is None else gid
        assert gid is not None
        self.gid = gid

    # ------------------------------------------------------------------ spawn

    def spawn(self, worker: str, command: Command) -> Process:
        """
        Raises:
            OSError: it cannot be started now; PermissionError: nor may the user of the workers read what they need.
        """
        return self.launch(worker, command, ())

    def launch(self, worker: str, command: Command, before: tuple[str, ...]) -> WorkerProcess:
        """Start a worker; ``before``: a command that runs the rest, before any privilege is gone."""
        assert self._scratch is not None, "prepare comes first"
        tag = new_tag()
        env = {**(code_env() if self.finds_code else {}), **worker_env(command.env, tag)}
        program = shutil.which(command.argv[0], path=env.get("PATH", os.defpath))
        if program is None and os.path.dirname(command.argv[0]):
            program = shutil.which(os.path.join(command.directory, command.argv[0]))
        if program is None:
            raise FileNotFoundError(2, "no such program, or it is not executable", command.argv[0])
        self._check_readable(command, program)
        own = self._scratch.make(worker, self.uid, self.gid)
        try:
            env["TMPDIR"] = own
            if self.uid != -1:
                env["HOME"] = own
            child = start(
                [*before, *self._confine, program, *command.argv[1:]],
                directory=own if self.config.working_directory == "own" else command.directory,
                env=env,
                umask=self.config.umask,
                given=command.input,
            )
        except BaseException:
            self._scratch.remove(own)
            raise
        return WorkerProcess(child, tag, self.config, self._scratch, own)

    def _check_readable(self, command: Command, program: str) -> None:
        """Asked as the user that the workers will be, once per command; as it is said best before they fail."""
        key = (program, command.directory, *command.readable)
        if self.uid == self.gid == -1 or key in self._readable:
            return
        tests = [(program, "-x"), (command.directory, "-r"), (command.directory, "-x")]
        tests += [(path, "-r") for path in command.readable]
        as_user = _privileges(find_tool("setpriv", "util-linux"), self.uid, self.gid)
        for path, flag in tests:
            argv = [*as_user, find_tool("test", "coreutils"), flag, path]
            if subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode != 0:
                raise PermissionError(
                    13,
                    f"[pool.{self.pool}.isolate] uid: the user {self.uid} (group {self.gid}) may not read or enter it; "
                    "give it the right to, with all directories above, or install it elsewhere",
                    path,
                )
        self._readable.add(key)

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None


class WorkerProcess(Handle):
    """A worker of this level, and what belongs to it."""

    def __init__(self, child: Child, tag: str, config: ProcessConfig, scratch: Scratch, own: str) -> None:
        super().__init__(child)
        self._tag = tag
        self._config = config
        self._scratch = scratch
        self._own = own
        started = stat(child.pid)
        self._since = started.start if started is not None else 0
        self._is_over = False
        self._lock = threading.Lock()
        """Its pid is another's once it was waited for: nobody signals it then."""

    def terminate(self) -> None:
        self._signal(self.pidfd, signal.SIGTERM)

    def kill(self) -> None:
        with self._lock:
            if self._is_over:
                return
            below = descendants(self.pid)
            self._signal(self.pidfd, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            for fd in below:
                self._signal(fd, signal.SIGKILL)
                os.close(fd)

    def kill_alone(self) -> None:
        """Without what it started."""
        self._signal(self.pidfd, signal.SIGKILL)

    def _signal(self, pidfd: int, number: int) -> None:
        if not self._is_over:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)

    def reap(self) -> Ending:
        return self.collect(end_descendants(self.pid, self._tag, self._since))

    def collect(self, left: list[int]) -> Ending:
        """The part of `reap` that comes when descendants have ended but for ``left``."""
        with self._lock:
            self._is_over = True
            code, seconds = self._child.wait()
        reap_orphans()
        self._scratch.remove(self._own)
        reasons = [self.why(code, seconds)]
        if left:
            reasons.append(f"processes that it started could not be ended: {', '.join(map(str, left))}")
        return Ending(code, "; ".join(filter(None, reasons)))

    def why(self, code: int, seconds: float) -> str:
        """What its end has to do with a limit."""
        cpu, size = self._config.cpu, self._config.file_size
        over = cpu is not None and seconds >= _cpu_seconds(cpu)
        if cpu is not None and (code == -signal.SIGXCPU or (code == -signal.SIGKILL and over)):
            return f"out of CPU time: it reached its limit of {cpu:g} s (isolate.cpu)"
        if size is not None and code == -signal.SIGXFSZ:
            return f"a file became too large: its limit is {show_size(size)} (isolate.file-size)"
        return ""


def _privileges(setpriv: str, uid: int = -1, gid: int = -1) -> list[str]:
    """The parent-death signal is the last that setpriv sets: a change of user clears it."""
    argv = [setpriv, "--no-new-privs", "--pdeathsig", "KILL"]
    if uid != -1:
        argv += ["--reuid", str(uid)]
    if gid != -1:
        argv += ["--regid", str(gid), "--clear-groups"]
    return argv


def _limits(prlimit: str, config: ProcessConfig) -> list[str]:
    return [prlimit, *(f"--{name}={soft}:{hard}" for name, soft, hard in resource_limits(config))]


def resource_limits(config: ProcessConfig) -> list[tuple[str, int, int]]:
    """Name (``nofile``: RLIMIT_NOFILE), soft and hard limit, none above what the engine has itself."""
    found = [("core", 0, 0)]
    wanted = (
        ("data", resource.RLIMIT_DATA, config.memory),
        ("as", resource.RLIMIT_AS, config.address_space),
        ("cpu", resource.RLIMIT_CPU, None if config.cpu is None else _cpu_seconds(config.cpu)),
        ("nofile", resource.RLIMIT_NOFILE, config.files),
        ("nproc", resource.RLIMIT_NPROC, config.processes),
        ("fsize", resource.RLIMIT_FSIZE, config.file_size),
        ("stack", resource.RLIMIT_STACK, config.stack),
    )
    for name, number, limit in wanted:
        if limit is not None:
            most = resource.getrlimit(number)[1]
            soft = int(limit) if most == resource.RLIM_INFINITY else min(int(limit), most)
            # one second between SIGXCPU, which says why, and SIGKILL
            found.append((name, soft, soft + 1 if name == "cpu" and soft != most else soft))
    return found


def _cpu_seconds(limit: float) -> int:
    """The kernel knows whole seconds, one at least."""
    return max(1, round(limit))
