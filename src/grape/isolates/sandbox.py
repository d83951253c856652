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
import select
import signal
import time
from pathlib import Path
from typing import ClassVar, Final

from grape.abc.isolate import Ability, Command, Ending
from grape.errors import Unsupported
from grape.isolates import landlock, seccomp
from grape.isolates.launch import Child, find_tool, new_tag, start, worker_env
from grape.isolates.parent import reap_orphans
from grape.isolates.process import ProcessConfig, resource_limits
from grape.isolates.procs import TAG, children, end_strays, stat
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
_PATIENCE: Final = 10.0


class SandboxConfig(ProcessConfig, frozen=True, kw_only=True, rename="kebab"):
    """
    temp: bytes that a worker may keep in /tmp, and as many in /dev/shm; 64 MiB
    readable: further files and directories that workers may read
    """

    temp: Size = Size(64 << 20)
    readable: tuple[str, ...] = ()


class SandboxIsolate:
    """Bubblewrap, with everything that can be taken away taken away; see `view` for what is left to see."""

    name: ClassVar[str] = "sandbox"
    Config: ClassVar[type[SandboxConfig]] = SandboxConfig

    def __init__(self, pool: str, config: SandboxConfig) -> None:
        self.pool = pool
        self.config = config
        self.layers = frozenset({"seccomp", "landlock"})
        """Without one of them a level is weaker than its name: for tests that find out what each is worth."""
        self._bwrap = ""
        self._setpriv = ""
        self._filter = b""
        self._started = 0
        self._uid = -1
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
        isolate = cls("abilities", cls.Config())
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
            self._filter = seccomp.compile_bpf(seccomp.rules())
        except Unsupported as e:
            raise self._refusal(str(e)) from None
        self._uid = self._find_uid()
        end_strays()
        self._try()

    def _try(self) -> None:
        """A jail with nothing in it but a program that does nothing."""
        try:
            process = self.spawn("trial", Command(argv=("/bin/true",), directory="/usr/lib"))
        except OSError as e:
            raise self._refusal(f"{e.strerror or e}{_why_no_namespaces()}") from None
        try:
            ended = _wait(process.pidfd, _PATIENCE)
            said = _read(process.stderr)
            process.kill()
            ending = process.reap()
        finally:
            os.close(process.pidfd)
            process.socket.close()
        if not ended or ending.code != 0:
            raise self._refusal(f"a sandbox was tried and failed: {said or ending}{_why_no_namespaces()}")

    def _refusal(self, text: str) -> Unsupported:
        return Unsupported(f"[pool.{self.pool}.isolate] {self.name}: {text}")

    def _find_uid(self) -> int:
        return _UIDS + os.getpid() * 64 if os.geteuid() == 0 else -1

    # ------------------------------------------------------------------ spawn

    def spawn(self, worker: str, command: Command) -> SandboxProcess:
        """
        Raises:
            OSError: it cannot be started now; PermissionError: nor may the user of the workers read what they need.
        """
        seen = view(command, self.config.readable)
        uid = -1
        before: list[str] = []
        sources = dict(zip(seen.paths, seen.paths, strict=True))
        if self._uid != -1:
            uid = self._uid + self._started % 64
            for path in (command.directory, *command.readable, *self.config.readable):
                self._check_readable(path, uid)
            private = tuple(path for path in seen.paths if not is_open_to(path, uid, uid))
            if private:
                stage = self._stages.get(private) or self._stages.setdefault(private, Stage(private))
                sources.update(stage.place)
                before += stage.enter
            before += [self._setpriv, "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
        self._started += 1
        tag = new_tag()
        with contextlib.ExitStack() as fds:

            def given(data: bytes) -> str:
                fd = os.memfd_create("grape-jail")
                fds.callback(os.close, fd)
                inherit.append(fd)
                os.write(fd, data)
                os.lseek(fd, 0, os.SEEK_SET)
                return str(fd)

            inherit: list[int] = []
            status, status_end = os.pipe()
            os.set_blocking(status, False)
            fds.callback(os.close, status_end)
            inherit.append(status_end)
            options = [*self._namespaces(), *self._mounts(seen, sources)]
            for name, text in ETC.items():
                options += ["--perms", "0444", "--file", given(text.encode()), f"/etc/{name}"]
            options += ["--remount-ro", "/"]
            for name, value in self._env(command, tag).items():
                options += ["--setenv", name, value]
            options += ["--chdir", TEMP if self.config.working_directory == "own" else command.directory]
            if "seccomp" in self.layers:
                options += ["--seccomp", given(self._filter)]
            options += ["--json-status-fd", str(status_end)]
            args = given(b"\0".join(os.fsencode(option) for option in options) + b"\0")
            try:
                child = start(
                    [*before, self._bwrap, "--args", args, "--", *self._step(seen), seen.program, *command.argv[1:]],
                    directory="/",
                    env={TAG: tag},
                    umask=self.config.umask,
                    parent=0,
                    inherit=tuple(inherit),
                )
            except BaseException:
                os.close(status)
                raise
        return SandboxProcess(child, status, self.config)

    def _check_readable(self, path: str, uid: int) -> None:
        if not is_readable_by(path, uid, uid):
            raise PermissionError(
                13,
                f"[pool.{self.pool}.isolate] a sandboxed worker of an engine that is root is a user of its own, which may "
                "not read it; chmod -R o+rX it (directories above may stay closed), or set uid",
                path,
            )

    def _namespaces(self) -> list[str]:
        return [
            *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
            *("--disable-userns", "--new-session", "--die-with-parent", "--cap-drop", "ALL", "--clearenv"),
            *("--hostname", HOSTNAME, "--uid", str(UID), "--gid", str(UID)),
        ]

    def _mounts(self, seen: View, sources: dict[str, str]) -> list[str]:
        size = str(int(self.config.temp))
        options = ["--perms", "1777", "--size", size, "--tmpfs", "/tmp", "--perms", "0700", "--dir", TEMP]
        for path in seen.paths:
            options += ["--ro-bind", sources[path], path]
        for link, target in seen.links:
            options += ["--symlink", target, link]
        for name in DEVICES:
            options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
        for name, target in DEVICE_LINKS.items():
            options += ["--symlink", target, f"/dev/{name}"]
        options += ["--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"]
        return [*options, "--proc", "/proc", "--remount-ro", "/proc"]

    def _env(self, command: Command, tag: str) -> dict[str, str]:
        return {**worker_env({}, tag), "HOME": TEMP, **command.env, "TMPDIR": TEMP, TAG: tag}

    def _step(self, seen: View) -> list[str]:
        """What runs in the jail, up to the worker's own command line."""
        options = []
        for name, soft, hard in resource_limits(self.config):
            options += ["--limit", f"{name}={soft}:{hard}"]
        if "landlock" in self.layers and landlock.abi():
            for path in (*seen.paths, "/etc", "/proc", "/dev"):
                options += ["--read", path]
            options += ["--names", "/"]
            for path in ("/tmp", "/dev/shm"):
                options += ["--write", path]
            for name in DEVICES:
                options += ["--device", f"/dev/{name}"]
        return landlock.step(os.path.join(GRAPE, "isolates"), python=PYTHON, options=options)

    def close(self) -> None:
        for stage in self._stages.values():
            stage.close()
        self._stages.clear()


class SandboxProcess:
    """A worker in bubblewrap: its monitor outside (``pid``), its init, which is 1 in there, and below that the worker.

    The monitor ends with the worker and init dies with the monitor, and with init everything that is left inside.
    """

    def __init__(self, child: Child, status: int, config: SandboxConfig) -> None:
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
        gone = _wait(self._init, _PATIENCE)
        self._is_over = True
        os.close(self._init)
        os.close(self._status)
        code, _ = self._child.wait()
        reap_orphans()
        code = worker_code(code)
        reasons = [self.why(code)]
        if not gone:
            reasons.append(f"processes that it started could not be ended: those below {self._init_pid}")
        return Ending(code, "; ".join(filter(None, reasons)))

    def why(self, code: int) -> str:
        """What its end has to do with a limit."""
        cpu, size = self._config.cpu, self._config.file_size
        if code == -signal.SIGSYS:
            return "it made a system call that nothing harmless makes; the sandbox ended it (seccomp)"
        if size is not None and code == -signal.SIGXFSZ:
            return f"a file became too large: its limit is {show_size(size)} (isolate.file-size)"
        if cpu is not None and (
            code == -signal.SIGXCPU
            or (
                code == -signal.SIGKILL
                and not self._is_killed
                and (time.monotonic() - self._since) * (os.cpu_count() or 1) >= cpu
            )
        ):
            return f"out of CPU time: it reached its limit of {cpu:g} s (isolate.cpu)"
        return ""


def worker_code(code: int) -> int:
    """From what bubblewrap and OCI runtimes end with, as shells do: 128 and the signal. That of a worker which ended
    with such a number by itself is taken for the signal."""
    return 128 - code if 128 < code <= 128 + 64 else code


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
