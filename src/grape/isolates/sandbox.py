"""A worker in a sandbox of bubblewrap: for code that one does not trust.

Three layers, of which each alone stops most of what is tried, and which fail in different ways: namespaces (there is
nothing to reach: no host files, processes, network), a list of system calls (little of the kernel to attack), and
Landlock (what the namespaces let in by mistake cannot be written).

Who the worker is: never root, also not in a user namespace of its own. A process whose user is root outside has root's
right to whatever the namespace lets in, and no limit on processes binds it. So an engine that is root gives each worker
a user that nobody else on the host is, in a range that nobody uses, and bubblewrap is run as that user; what it may not
enter, an interpreter below /root, is handed to it (`Stage`). An engine that is an ordinary user stays that user.

Mount points are made on bubblewrap's own tmpfs only, never below what is shown of the host: bubblewrap before 0.12
followed symbolic links there, onto the host (CVE-2026-87766).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Final

from msgspec import Meta
from msgspec.structs import replace

from grape.abc.isolate import Ability, Command, Ending
from grape.errors import Unsupported
from grape.isolates import landlock, seccomp
from grape.isolates.cgroup import CgroupConfig
from grape.isolates.cgroups import Events, Group, Leaf, Limits, end, open_group
from grape.isolates.launch import Child, find_tool, new_tag, start, worker_env
from grape.isolates.parent import reap_orphans
from grape.isolates.process import ProcessConfig, ProcessIsolate, resource_limits
from grape.isolates.procs import TAG, children, end_strays, stat
from grape.isolates.scratch import Scratch
from grape.isolates.stage import Stage
from grape.isolates.view import (
    DEVICE_LINKS,
    DEVICES,
    ETC,
    GRAPE,
    HOSTNAME,
    PYTHON,
    TEMP,
    UID,
    View,
    is_open_to,
    is_readable_by,
    view,
)
from grape.model.section import Size, show_size

_INSTALL: Final = "apt-get install bubblewrap"
_UIDS: Final = 0x70000000
"""Of the workers of an engine that is root: 64 for each pid there can be, up to 0x80000000. Neither people nor
containers have them (systemd.io/UIDS-GIDS)."""
_FEW: Final = 8
_PATIENCE: Final = 10.0


class SandboxConfig(CgroupConfig, frozen=True, kw_only=True, rename="kebab"):
    """What can be set of the levels before, with limits for everything that somebody could use up.

    Where the host has no control groups, ``memory`` is one of each process, and there are no more processes than
    would together use half of the host's memory.

    memory: bytes of memory that a worker may use, with its files in memory; 512 MiB
    pids: processes and threads of a worker, of which bubblewrap has two; 64
    temp: bytes that a worker may keep in /tmp, and as many in /dev/shm; 64 MiB
    readable: further files and directories that workers may read
    uid: user of the workers on the host, not root; by default each worker of an engine that is root has one of its own
    """

    memory: Size | None = Size(512 << 20)
    pids: Annotated[int, Meta(ge=8, le=1 << 22)] = 64
    temp: Size = Size(64 << 20)
    readable: tuple[str, ...] = ()


class SandboxIsolate(ProcessIsolate):
    """Bubblewrap, with everything that can be taken away taken away; see `view` for what is left to see."""

    name: ClassVar[str] = "sandbox"
    Config: ClassVar[type[ProcessConfig]] = SandboxConfig
    config: SandboxConfig

    def __init__(self, pool: str, config: SandboxConfig) -> None:
        super().__init__(pool, config)
        self.layers = frozenset({"namespaces", "seccomp", "landlock"})
        """With one of them gone a level is weaker than its name: for tests that find out what each is worth."""
        self._bwrap = ""
        self._setpriv = ""
        self._filter = b""
        self._limits: list[str] = []
        self._group: Group | None = None
        self._own_users = False
        self._started = 0
        self._stages: dict[tuple[str, ...], Stage] = {}

    # ------------------------------------------------------------------ prepare

    @classmethod
    def abilities(cls) -> list[Ability]:
        rows = []
        try:
            rows.append(Ability("bubblewrap", True, find_tool("bwrap", "bubblewrap")))
        except Unsupported as e:
            rows.append(Ability("bubblewrap", False, str(e), _INSTALL))
        try:
            seccomp.compile_bpf(seccomp.rules())
            rows.append(Ability("system call list", True, f"libseccomp {seccomp.version()}"))
        except Unsupported as e:
            rows.append(Ability("system call list", False, str(e), "apt-get install libseccomp2"))
        abi = landlock.abi()
        rows.append(
            Ability("Landlock", True, f"ABI {abi}")
            if abi
            else Ability(
                "Landlock",
                False,
                "this kernel does not have it, or not switched on; sandboxes work without, with one layer less",
                "a kernel from 5.13 on, and landlock in its parameter lsm=",
            )
        )
        try:
            group = open_group()
            rows.append(Ability("control groups", True, f"version {group.version}"))
            group.close()
        except Unsupported as e:
            rows.append(
                Ability("control groups", False, f"{e}. Without, limits are those of each process", "see there")
            )
        isolate = cls("abilities", SandboxConfig())
        try:
            isolate.prepare()
            rows.append(Ability("a sandbox", True, "tried"))
        except Unsupported as e:
            rows.append(Ability("a sandbox", False, str(e), "see there"))
        finally:
            isolate.close()
        return rows

    def prepare(self) -> None:
        """
        Raises:
            Unsupported: the host cannot do it; the text says what to do.
        """
        try:
            self._bwrap = find_tool("bwrap", "bubblewrap")
            self._setpriv = find_tool("setpriv", "util-linux")
            seccomp.version()
        except Unsupported as e:
            raise self.refusal(str(e)) from None
        self._find_user()
        if self.uid == 0:
            raise self.refusal(
                "uid: what is sandboxed is not root; leave uid out, and each worker is a user of its own"
            )
        if os.geteuid() == 0 and self.uid == -1:
            self.uid = _own_users()
            self._own_users = self.uid >= _UIDS
        self._find_limits()
        self._scratch = Scratch() if self.uid != -1 else None
        end_strays()
        try:
            self._try()
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
        limits = replace(config, memory=None if whole else config.memory, processes=processes)
        self._limits = []
        for name, soft, hard in resource_limits(limits):
            self._limits += ["--limit", f"{name}={soft}:{hard}"]
        self._filter = seccomp.compile_bpf(seccomp.rules(shared_memory=whole))

    def _try(self) -> None:
        """A jail with a program in it that does nothing, and starts others, which is where a limit is felt."""
        try:
            process = self.spawn("trial", Command(argv=("/bin/sh", "-c", "true | true"), directory="/usr/lib"))
        except OSError as e:
            raise self.refusal(f"{e.strerror or e}{_why_no_namespaces()}") from None
        try:
            ended = _wait(process.pidfd, _PATIENCE)
            said = _read(process.stderr)
            process.kill()
            ending = process.reap()
        finally:
            os.close(process.pidfd)
            process.socket.close()
        if not ended or ending.code != 0:
            raise self.refusal(f"a sandbox was tried and failed: {said or ending}{_why_no_namespaces()}")

    def refusal(self, text: str) -> Unsupported:
        return Unsupported(f"[pool.{self.pool}.isolate] {self.name}: {text}")

    # ------------------------------------------------------------------ spawn

    def spawn(self, worker: str, command: Command) -> SandboxProcess:
        """
        Raises:
            OSError: it cannot be started now; PermissionError: nor may the user of the workers read what they need.
        """
        seen = view(command, self.config.readable)
        before, sources = self._become_user(seen, (command.directory, *command.readable, *self.config.readable))
        tag = new_tag()
        leaf = self._leaf(worker)
        try:
            with contextlib.ExitStack() as undo:
                reading, writing = os.pipe()
                undo.callback(os.close, writing)
                given = [writing]

                def give(data: bytes) -> str:
                    """A descriptor to read it from."""
                    fd = os.memfd_create("grape-jail")
                    undo.callback(os.close, fd)
                    given.append(fd)
                    os.write(fd, data)
                    os.lseek(fd, 0, os.SEEK_SET)
                    return str(fd)

                options = self._options(command, seen, sources, give)
                for name, value in self._env(command, tag).items():
                    options += ["--setenv", name, value]
                options += ["--json-status-fd", str(writing)]
                args = give(b"\0".join(map(os.fsencode, options)) + b"\0")
                try:
                    child = start(
                        [
                            *(leaf.enter if leaf is not None else ()),
                            *before,
                            *(self._bwrap, "--args", args, "--"),
                            *self._step(seen),
                            *(seen.program, *command.argv[1:]),
                        ],
                        directory="/",
                        env={TAG: tag},
                        umask=self.config.umask,
                        parent=0,
                        inherit=tuple(given),
                    )
                except BaseException:
                    os.close(reading)
                    raise
            return SandboxProcess(child, reading, leaf, self.config)
        except BaseException:
            if leaf is not None:
                end(leaf)
                leaf.remove()
            raise

    def _leaf(self, worker: str) -> Leaf | None:
        config = self.config
        if self._group is None:
            return None
        return self._group.create(
            f"{re.sub('[^A-Za-z0-9_-]', '_', worker)}-{secrets.token_hex(4)}",
            # bubblewrap has two processes
            Limits(
                pids=config.pids + 2, memory=config.memory, cpus=config.cpus, read=config.io_read, write=config.io_write
            ),
        )

    def _become_user(self, seen: View, shown: Iterable[str]) -> tuple[list[str], dict[str, str]]:
        """A command that runs the rest as the worker's user, and where that user finds what is to be seen."""
        here = dict(zip(seen.paths, seen.paths, strict=True))
        if self.uid == -1:
            return [], here
        self._started += 1
        uid = self.uid + self._started % 64 if self._own_users else self.uid
        gid = self.gid if self.gid != -1 else uid
        for path in shown:
            if not is_readable_by(path, uid, gid):
                raise PermissionError(
                    13,
                    f"[pool.{self.pool}.isolate] the worker's user on the host, {uid}, may not read it; "
                    "chmod -R o+rX it (directories above may stay closed)",
                    path,
                )
        private = tuple(path for path in seen.paths if not is_open_to(path, uid, gid))
        before: list[str] = []
        if private:
            if private not in self._stages:
                assert self._scratch is not None
                self._stages[private] = Stage(self._scratch.make("stage", -1, -1), private)
            here.update(self._stages[private].place)
            before += self._stages[private].enter
        return [*before, self._setpriv, "--reuid", str(uid), "--regid", str(gid), "--clear-groups"], here

    def _options(
        self, command: Command, seen: View, sources: dict[str, str], give: Callable[[bytes], str]
    ) -> list[str]:
        options = ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
        if "namespaces" in self.layers:
            options += [f"--unshare-{kind}" for kind in ("user", "pid", "net", "ipc", "uts", "cgroup")]
            options += ["--disable-userns", "--hostname", HOSTNAME, "--uid", str(UID), "--gid", str(UID)]
            options += self._mounts(seen, sources, give)
        else:
            options += ["--dev-bind", "/", "/", "--perms", "1777", "--tmpfs", "/tmp", "--perms", "0700", "--dir", TEMP]
            for path in seen.paths:
                options += ["--ro-bind", sources[path], path]
        options += ["--chdir", TEMP if self.config.working_directory == "own" else command.directory]
        if "seccomp" in self.layers:
            options += ["--seccomp", give(self._filter)]
        return options

    def _mounts(self, seen: View, sources: dict[str, str], give: Callable[[bytes], str]) -> list[str]:
        size = str(int(self.config.temp))
        options = ["--perms", "1777", "--size", size, "--tmpfs", "/tmp", "--perms", "0700", "--dir", TEMP]
        options += ["--perms", "0755", "--dir", "/etc", "--perms", "0755", "--dir", "/dev"]
        for path in seen.paths:
            options += ["--ro-bind", sources[path], path]
        for link, target in seen.links:
            options += ["--symlink", target, link]
        for name, text in ETC.items():
            options += ["--perms", "0444", "--file", give(text.encode()), f"/etc/{name}"]
        for name in DEVICES:
            options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        for name, target in DEVICE_LINKS.items():
            options += ["--symlink", target, f"/dev/{name}"]
        options += ["--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"]
        return [*options, "--proc", "/proc", "--remount-ro", "/proc", "--remount-ro", "/"]

    def _env(self, command: Command, tag: str) -> dict[str, str]:
        return {**worker_env({}, tag), "HOME": TEMP, **command.env, "TMPDIR": TEMP, TAG: tag}

    def _step(self, seen: View) -> list[str]:
        """What runs in the jail, up to the worker's own command line."""
        options = list(self._limits)
        if "landlock" in self.layers and landlock.abi():
            options += ["--names", "/"]
            for path in (*seen.paths, "/etc", "/proc", "/dev"):
                options += ["--read", path]
            for path in ("/tmp", "/dev/shm"):
                options += ["--write", path]
            for name in DEVICES:
                options += ["--device", f"/dev/{name}"]
        return landlock.step(os.path.join(GRAPE, "isolates"), python=PYTHON, options=options)

    def close(self) -> None:
        for stage in self._stages.values():
            stage.close()
        self._stages.clear()
        if self._group is not None:
            self._group.close()
            self._group = None
        super().close()


class SandboxProcess:
    """A worker in bubblewrap: its monitor outside (``pid``), its init, which is 1 in there, and below that the worker.

    The monitor ends with the worker and init dies with the monitor, and with init everything that is left inside.
    """

    def __init__(self, child: Child, status: int, leaf: Leaf | None, config: SandboxConfig) -> None:
        """Waits for bubblewrap to say that the namespaces are there, some ms.

        Raises:
            OSError: they are not.
        """
        self.pid = child.pid
        self.pidfd = child.pidfd
        self.socket = child.socket
        self.stdout = child.stdout
        self.stderr = child.stderr
        self._child = child
        self._leaf = leaf
        self._config = config
        self._is_over = False
        self._is_killed = False
        self._since = time.monotonic()
        self._init = -1
        self._init_pid = -1
        self._status = status  # open as long as bubblewrap may write to it
        try:
            self._init_pid = _child_pid(status, child.pidfd)
            self._init = os.pidfd_open(self._init_pid)
        except OSError as e:
            self._give_up(str(e))

    def _give_up(self, what: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        _wait(self.pidfd, _PATIENCE)
        said = _read(self.stderr)
        self._child.wait()
        os.close(self._status)
        os.close(self.pidfd)
        self.socket.close()
        raise OSError(1, f"the sandbox cannot be built: {said or what}")

    def terminate(self) -> None:
        """Through /proc: what is inside has other pids there than here."""
        if self._is_over:
            return
        found = children(self._init_pid)
        if not found:  # it has not come to the worker yet
            self.kill()
            return
        with contextlib.suppress(OSError):
            worker = os.pidfd_open(found[0])
            one = stat(found[0])
            if one is not None and one.parent == self._init_pid:
                signal.pidfd_send_signal(worker, signal.SIGTERM)
            os.close(worker)

    def kill(self) -> None:
        if not self._is_over:
            self._is_killed = True
            for fd in (self.pidfd, self._init):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)

    def reap(self) -> Ending:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._init, signal.SIGKILL)
        left = [] if _wait(self._init, _PATIENCE) else [self._init_pid]
        events = Events(0, 0)
        if self._leaf is not None:
            left += end(self._leaf)
            events = self._leaf.events()
        self._is_over = True
        os.close(self._init)
        os.close(self._status)
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


def worker_code(code: int) -> int:
    """From what bubblewrap and OCI runtimes end with, as shells do: 128 and the signal. That of a worker which ended
    with such a number by itself is taken for the signal."""
    return 128 - code if 128 < code <= 128 + 64 else code


def _own_users() -> int:
    """The first of the users that no one else on this host is; where the engine is root of a container that does not
    have so many: nobody; and where it has but one, that one (-1), who is no root outside."""
    for uid in (_UIDS + os.getpid() * 64, 65534):
        if all(_is_mapped(uid, f"/proc/self/{kind}_map") for kind in ("uid", "gid")):
            return uid
    return -1


def _is_mapped(number: int, path: str) -> bool:
    """Whether a user or group exists in this process's user namespace."""
    ranges = [list(map(int, line.split())) for line in Path(path).read_text().splitlines()]
    return any(first <= number < first + count for first, _, count in ranges)


def _child_pid(status: int, pidfd: int) -> int:
    """What bubblewrap tells first: the pid of its init.

    Raises:
        OSError: it did not come to that.
    """
    said = b""
    deadline = time.monotonic() + _PATIENCE
    while b"\n" not in said:
        if not select.select([status, pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError("bubblewrap does not say that it has started")
        with contextlib.suppress(BlockingIOError):
            data = os.read(status, 4096)
            if not data:
                raise ChildProcessError("bubblewrap ended before it had started anything")
            said += data
    return int(json.loads(said.partition(b"\n")[0])["child-pid"])


def _wait(pidfd: int, patience: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def _read(pipe: int) -> str:
    """What is there, as text."""
    with contextlib.suppress(BlockingIOError):
        return os.read(pipe, 1 << 16).decode("utf-8", "replace").strip()
    return ""


def _why_no_namespaces() -> str:
    """The usual reasons for a host on which an ordinary user gets no user namespace."""
    for path, wrong, remedy in (
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "an AppArmor profile with `userns` for bwrap, or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ):
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == wrong:
                return f"; user namespaces are switched off for ordinary users ({path} is {wrong}): {remedy}"
    return "; it needs user namespaces for ordinary users: in a container, the profile of the outer one must allow them"
