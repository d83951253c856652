"""What the levels ``sandbox`` and ``container`` have in common: a jail of namespaces, built by another program.

Who the worker is: never root, also not in a user namespace of its own. A process whose user is root outside has root's
right to whatever the namespace lets in, and no limit on processes binds it. So an engine that is root gives each worker
a user that nobody else on the host is, in a range that nobody uses, and the jail is built by that user; what it may not
enter, an interpreter below /root, is handed to it (`Stage`). An engine that is an ordinary user stays that user.

What a worker uses is limited by a control group. Where there is none, each of its processes is limited, and what a
process can use without that it is counted is denied.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import signal
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Final, cast

from msgspec import Meta
from msgspec.structs import replace

from grape.abc.isolate import Ability, Command, Ending
from grape.errors import Unsupported
from grape.isolates import landlock, seccomp, users
from grape.isolates.cgroup import CgroupConfig
from grape.isolates.cgroups import Events, Group, Leaf, Limits, check, end, open_group
from grape.isolates.launch import Child, Handle, attempt, find_tool, worker_env
from grape.isolates.parent import reap_orphans
from grape.isolates.process import ProcessConfig, ProcessIsolate, resource_limits
from grape.isolates.procs import TAG, children, end_strays, stat
from grape.isolates.scratch import Scratch
from grape.isolates.stage import Stage
from grape.isolates.users import Users
from grape.isolates.view import DEVICES, GRAPE, TEMP, View, can_reach, is_open_to, is_readable_by
from grape.model.section import Size, show_size

_NOBODY: Final = 65534
_FEW: Final = 8
_PATIENCE: Final = 10.0
_BUFFER: Final = 212_992
"""What one end of a pair of sockets may have under way, unless the host says otherwise; the last piece may go over."""
_OVER: Final = 64 << 10
_FEW_FILES: Final = 32
"""What a worker needs at least."""


class JailConfig(CgroupConfig, frozen=True, kw_only=True, rename="kebab"):
    """What can be set of the levels before, with limits for everything that somebody could use up.

    Where the host has no control groups, ``memory`` is one of each process, and there are no more processes than
    would together use half of the host's memory.

    memory: bytes of memory that a worker may use, with its files in memory; 512 MiB
    pids: processes and threads of a worker, with those that hold the jail; 64
    temp: bytes that a worker may keep in /tmp, and as many in /dev/shm; 64 MiB
    readable: further files and directories that workers may read
    uid: user of the workers on the host, not root; by default each worker of an engine that is root has one of its own
    """

    memory: Size | None = Size(512 << 20)
    pids: Annotated[int, Meta(ge=16, le=1 << 22)] = 64
    temp: Size = Size(64 << 20)
    readable: tuple[str, ...] = ()


class Jail(ProcessIsolate, ABC):
    """An isolate that builds jails. ``layers``: with one of them gone a level is weaker than its name; for tests that
    find out what each is worth."""

    Config: ClassVar[type[ProcessConfig]] = JailConfig
    config: JailConfig

    def __init__(self, pool: str, config: JailConfig) -> None:
        super().__init__(pool, config)
        self.layers = frozenset({"namespaces", "seccomp", "landlock"})
        self.limits: list[tuple[str, int, int]] = []
        self.rules: list[seccomp.Rule] = []
        self.setpriv = ""
        self.counts = True
        """Whether somebody counts what the kernel keeps for a worker: buffers of sockets, files in memory."""
        self._group: Group | None = None
        self._users: Users | None = None
        self._stages: dict[tuple[str, ...], Stage] = {}

    # ------------------------------------------------------------------ prepare

    @classmethod
    def abilities(cls) -> list[Ability]:
        rows = cls.tools()
        abi = landlock.abi()
        rows.append(
            Ability("Landlock", True, f"ABI {abi}")
            if abi
            else Ability(
                "Landlock",
                False,
                "this kernel does not have it, or not switched on; jails work without, with one layer less",
                "a kernel from 5.13 on, and landlock in its parameter lsm=",
            )
        )
        try:
            rows.append(Ability("limits of a worker as a whole", True, f"control groups, version {check()[0]}"))
        except Unsupported as e:
            why, _, remedy = str(e).partition("; ")
            rows.append(Ability("limits of a worker as a whole", False, f"{why}; they are those of a process", remedy))
        isolate = cls("NAME", cast(JailConfig, cls.Config()))
        try:
            isolate.prepare()
            rows.append(Ability(f"a {cls.name}", True, isolate.how()))
        except Unsupported as e:
            rows.append(Ability(f"a {cls.name}", False, str(e), "what it says there"))
        finally:
            isolate.close()
        return rows

    @classmethod
    @abstractmethod
    def tools(cls) -> list[Ability]:
        """What has to be installed."""

    @abstractmethod
    def how(self) -> str:
        """Of one that is prepared: with what it works."""

    @abstractmethod
    def find_tools(self) -> None:
        """
        Raises:
            Unsupported: something has to be installed.
        """

    def prepare(self) -> None:
        """
        Raises:
            Unsupported: the host cannot do it; the text says what to do.
        """
        try:
            self.setpriv = find_tool("setpriv", "util-linux")
            self._find_user()
            if 0 in (self.uid, self.gid):
                raise self.refusal(
                    "uid, gid: what is jailed is not root; leave them out: each worker is a user of its own then"
                )
            if os.geteuid() == 0 and self.uid == -1:
                found = users.find()
                if found is not None:
                    self._users = Users(*found)
                    self.uid = found[0]
                elif users.has(_NOBODY):
                    self.uid = _NOBODY
            place = tempfile.gettempdir()
            if self.uid != -1 and not can_reach(os.path.join(place, "any"), self.uid, self.gid):
                raise self.refusal(
                    f"TMPDIR: the workers' user may not enter {place}; set it to a directory open to everybody"
                )
            self._scratch = Scratch()
            self._find_limits()
            end_strays()
            self.find_tools()
            self.try_one()
        except Unsupported as e:
            self.close()
            raise e if str(e).startswith("[") else self.refusal(str(e)) from None
        except BaseException:
            self.close()
            raise

    def _find_limits(self) -> None:
        """Those of a worker as a whole by a control group; else by what each process has, times their number."""
        config, whole = self.config, True
        try:
            self._group = open_group()
        except Unsupported as e:
            whole = False
            for field, value in (("cpus", config.cpus), ("io-read", config.io_read), ("io-write", config.io_write)):
                if value is not None:
                    raise self.refusal(f"{field}: {e}; or leave {field} out") from None
        if self._group is not None:
            self._check_controllers(self._group)
        processes = min(config.pids, config.processes or config.pids)
        if not whole:
            if config.memory is None:
                raise self.refusal("memory: this host has no control groups, so it has to be limited")
            most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
            processes = min(processes, most // max(1, config.memory))
            if processes < _FEW:
                raise self.refusal(
                    f"memory: without control groups this is a limit of each process, and {_FEW} of "
                    f"{show_size(config.memory)} would use more than half of this host's {show_size(2 * most)}; set "
                    "memory lower, or give grape a control group"
                )
        self.counts = whole
        files = config.files if whole else min(config.files, _files(config.memory or 0))
        self.limits = resource_limits(
            replace(config, memory=None if whole else config.memory, processes=processes, files=files)
        )
        self.rules = seccomp.rules(shared_memory=whole)

    def _check_controllers(self, group: Group) -> None:
        config = self.config
        for field, value, controller in (
            ("cpus", config.cpus, "cpu"),
            ("io-read", config.io_read, "io"),
            ("io-write", config.io_write, "io"),
        ):
            if value is not None and controller not in group.controllers:
                raise self.refusal(
                    f"{field}: the engine's control group does not have the controller {controller!r}; delegate it, "
                    f"or leave {field} out"
                )

    def try_one(self) -> None:
        """A jail with a program in it that does nothing, and starts others, which is where a limit is felt.

        Raises:
            Unsupported: it does not work.
        """
        try:
            process = self.spawn(
                "trial", Command(argv=("/bin/sh", "-c", "true | true"), directory=os.path.join(GRAPE, "isolates"))
            )
        except OSError as e:
            raise self.refusal(f"{e.strerror or e}{self._why_no_namespaces()}") from None
        try:
            ended = wait_for(process.pidfd, _PATIENCE)
            said = read_pipe(process.stderr)
            process.kill()
            ending = process.reap()
        finally:
            os.close(process.pidfd)
            process.socket.close()
        if not ended or ending.code != 0:
            raise self.refusal(f"one was tried and failed: {said or ending}{self._why_no_namespaces()}")

    def _why_no_namespaces(self) -> str:
        """What to say if the worker's user gets no user namespace on this host; the usual reasons."""
        user = [self.setpriv, "--reuid", str(self.uid), "--clear-groups"] if self.uid != -1 else []
        unshare = find_tool("unshare", "util-linux")
        if attempt("", [*user, unshare, "--user", "/bin/true"]).works:
            return ""
        for path, wrong, remedy in (
            ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
            ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
            (
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1",
                "an AppArmor profile that allows `userns` to the program, or "
                "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
            ),
        ):
            with contextlib.suppress(OSError):
                if Path(path).read_text().strip() == wrong:
                    return f"; user namespaces are switched off for ordinary users ({path} is {wrong}): {remedy}"
        return (
            "; ordinary users get no user namespaces here: in a container, the profile of the outer one must allow them"
        )

    def refusal(self, text: str) -> Unsupported:
        return Unsupported(f"[pool.{self.pool}.isolate] {self.name}: {text}")

    # ------------------------------------------------------------------ spawn

    @abstractmethod
    def spawn(self, worker: str, command: Command) -> JailProcess: ...

    @contextlib.contextmanager
    def leaf(self, worker: str) -> Iterator[Leaf | None]:
        """A control group for a worker, if the host has any; it goes again if the worker does not come."""
        config = self.config
        if self._group is None:
            yield None
            return
        leaf = self._group.create(
            f"{re.sub('[^A-Za-z0-9_-]', '_', worker)}-{secrets.token_hex(4)}",
            Limits(
                pids=config.pids, memory=config.memory, cpus=config.cpus, read=config.io_read, write=config.io_write
            ),
        )
        try:
            yield leaf
        except BaseException:
            end(leaf)
            leaf.remove()
            raise

    @contextlib.contextmanager
    def user(self) -> Iterator[tuple[int, int]]:
        """User and group of the next worker on the host, and nobody else's until `give_back`; -1: the engine's own."""
        uid = self.uid if self._users is None else self._users.take()
        try:
            yield uid, self.gid if self.gid != -1 else uid
        except BaseException:
            self.give_back(uid)
            raise

    def give_back(self, uid: int) -> None:
        """Nothing runs as this user any more."""
        if self._users is not None:
            self._users.give_back(uid)

    def hand_over(self, seen: View, shown: Sequence[str], uid: int, gid: int) -> tuple[list[str], dict[str, str]]:
        """A command that runs the rest where a user finds what is to be seen, and its paths there.

        Args:
            shown: what the user has to be able to read.

        Raises:
            PermissionError: it is not.
        """
        here = dict(zip(seen.paths, seen.paths, strict=True))
        if uid == -1:
            return [], here
        for path in shown:
            if not is_readable_by(path, uid, gid):
                raise PermissionError(
                    13,
                    f"[pool.{self.pool}.isolate] the worker's user on the host, {uid}, may not read it; "
                    "chmod -R o+rX it (directories above may stay closed)",
                    path,
                )
        private = tuple(path for path in seen.paths if not is_open_to(path, uid, gid))
        if not private:
            return [], here
        if private not in self._stages:
            assert self._scratch is not None
            self._stages[private] = Stage(self._scratch.make("stage", -1, -1), private)
        here.update(self._stages[private].place)
        return list(self._stages[private].enter), here

    @property
    def inodes(self) -> int:
        """Files that a file system in memory may have: an empty one takes memory, too."""
        return max(1024, int(self.config.temp) >> 12)

    def limit_options(self) -> list[str]:
        """Of the last step."""
        return [word for name, soft, hard in self.limits for word in ("--limit", f"{name}={soft}:{hard}")]

    def env(self, command: Command, tag: str) -> dict[str, str]:
        return {**worker_env({}, tag), "HOME": TEMP, **command.env, "TMPDIR": TEMP, TAG: tag}

    def close(self) -> None:
        for stage in self._stages.values():
            stage.close()
        self._stages.clear()
        if self._group is not None:
            self._group.close()
            self._group = None
        if self._users is not None:
            self._users.close()
            self._users = None
        super().close()


class JailProcess(Handle):
    """A worker in a jail: a monitor outside (``pid``), an init, which is 1 in there, and below that the worker.

    The monitor ends with the worker and init dies with the monitor, and with init everything that is left inside.
    """

    def __init__(
        self,
        child: Child,
        leaf: Leaf | None,
        config: JailConfig,
        *,
        find_init: Callable[[], int | None],
        done: Callable[[], None],
        wake: int = -1,
    ) -> None:
        """Waits until there is an init, some ms.

        Args:
            find_init: its pid on the host, or None.
            done: called when the worker has gone.
            wake: a descriptor that becomes readable when it is worth looking; else one looks every 2 ms.

        Raises:
            OSError: there is none; what the monitor said.
        """
        super().__init__(child)
        self._leaf = leaf
        self._config = config
        self._done = done
        self._is_over = False
        self._is_killed = False
        self._lock = threading.Lock()
        """Of what another thread may not use any more once the worker was collected."""
        self._since = time.monotonic()
        try:
            self._init_pid = self._wait_for_init(find_init, wake)
            self._init = self._open_init()
        except OSError as e:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            wait_for(self.pidfd, _PATIENCE)
            said = read_pipe(self.stderr)
            child.wait()
            done()
            os.close(self.pidfd)
            self.socket.close()
            raise OSError(1, f"the jail cannot be built: {said or e}") from None

    def _open_init(self) -> int:
        """A pidfd, or -1: it has come and gone already."""
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(self._init_pid)
            one = stat(self._init_pid)
            if one is not None and (one.parent == self.pid or wait_for(self.pidfd, 0)):
                return fd  # the child of the monitor, or an orphan if that has ended
            os.close(fd)
        return -1

    def _wait_for_init(self, find_init: Callable[[], int | None], wake: int) -> int:
        deadline = time.monotonic() + _PATIENCE
        watched = [self.pidfd] if wake == -1 else [self.pidfd, wake]
        while (found := find_init()) is None:
            if select.select([self.pidfd], [], [], 0)[0] and find_init() is None:
                raise ChildProcessError(10, "its program ended before it had started anything")
            if time.monotonic() > deadline:
                raise TimeoutError(110, "its program does not say that it has started")
            select.select(watched, [], [], 0.002 if wake == -1 else 1.0)
        return found

    def terminate(self) -> None:
        """Through /proc: what is inside has other pids there than here."""
        with self._lock:
            found = [] if self._is_over else children(self._init_pid)
            if not found:  # it has not come to the worker yet, or is gone
                self._kill()
                return
            with contextlib.suppress(OSError):
                worker = os.pidfd_open(found[0])
                one = stat(found[0])
                if one is not None and one.parent == self._init_pid:
                    signal.pidfd_send_signal(worker, signal.SIGTERM)
                os.close(worker)

    def kill(self) -> None:
        with self._lock:
            self._kill()

    def _kill(self) -> None:
        if not self._is_over:
            self._is_killed = True
            for fd in {self.pidfd, self._init} - {-1}:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)

    def reap(self) -> Ending:
        left = []
        if self._init != -1:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            if not wait_for(self._init, _PATIENCE):
                left.append(self._init_pid)
        events = Events(0, 0)
        if self._leaf is not None:
            left += end(self._leaf)
            events = self._leaf.events()
        with self._lock:
            self._is_over = True
            if self._init != -1:
                os.close(self._init)
            code = worker_code(self._child.wait()[0])
        reap_orphans()
        reasons = [self._why(code, events)]
        if left:
            reasons.append(f"processes that it started could not be ended: {', '.join(map(str, left))}")
        elif self._leaf is not None:
            try:
                self._leaf.remove()
            except OSError as e:
                reasons.append(f"its control group could not be removed: {e}")
        self._done()
        return Ending(code, "; ".join(filter(None, reasons)))

    def _why(self, code: int, events: Events) -> str:
        """What its end has to do with a limit."""
        config, unasked = self._config, code == -signal.SIGKILL and not self._is_killed
        seconds = (time.monotonic() - self._since) * (os.cpu_count() or 1)  # it cannot have used more
        if config.memory is not None and events.oom:
            who = "the worker" if unasked else "a process of the worker was ended when it"
            return f"out of memory: {who} reached its limit of {show_size(config.memory)} (isolate.memory)"
        if config.cpu is not None and (code == -signal.SIGXCPU or (unasked and seconds >= config.cpu)):
            return f"out of CPU time: it reached its limit of {config.cpu:g} s (isolate.cpu)"
        if config.file_size is not None and code == -signal.SIGXFSZ:
            return f"a file became too large: its limit is {show_size(config.file_size)} (isolate.file-size)"
        if code == -signal.SIGSYS:
            return "it made a system call that nothing harmless makes, and was ended for it (seccomp)"
        if events.pids and code != 0:
            return f"it reached its limit of {config.pids} processes and threads (isolate.pids)"
        return ""


def _files(memory: int) -> int:
    """Open files of a process, where nothing counts what is in the buffers of sockets: a quarter of its memory then."""
    try:
        buffer = int(Path("/proc/sys/net/core/wmem_default").read_text())
    except OSError:
        buffer = _BUFFER
    return max(_FEW_FILES, memory // 4 // (buffer + _OVER))


def worker_code(code: int) -> int:
    """From what bubblewrap and OCI runtimes end with, as shells do: 128 and the signal. That of a worker which ended
    with such a number by itself is taken for the signal."""
    return 128 - code if 128 < code <= 128 + 64 else code


def landlock_options(read: tuple[str, ...], is_grape_shown: bool = True) -> list[str]:
    """What of a jail Landlock leaves, beside its temporary directories; nothing where the kernel does not have it."""
    if not landlock.abi():
        return []
    options = ["--names", os.path.dirname(GRAPE)] if is_grape_shown else []  # Python lists what it imports from
    for path in read:
        options += ["--read", path]
    for path in ("/tmp", "/dev/shm"):
        options += ["--write", path]
    for name in DEVICES:
        options += ["--device", f"/dev/{name}"]
    return options


def wait_for(pidfd: int, patience: float) -> bool:
    """Whether a process ends in so many seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def read_pipe(pipe: int) -> str:
    """What is there, as text."""
    with contextlib.suppress(BlockingIOError):
        return os.read(pipe, 1 << 16).decode("utf-8", "replace").strip()
    return ""
