"""A worker in a control group of its own: what it and all it started use is limited together, and ended together."""

from __future__ import annotations

import os
import re
import secrets
import signal
from typing import Annotated, ClassVar, Final

from msgspec import Meta
from msgspec.structs import replace

from grape.abc.isolate import Ability, Command, Ending
from grape.errors import Unsupported
from grape.isolates.cgroups import Group, Leaf, Limits, check, end, open_group
from grape.isolates.process import ProcessConfig, ProcessIsolate, WorkerProcess
from grape.model.section import Size, show_size

_MORE: Final = (
    "with systemd: Delegate=yes in the unit or scope, and for users Delegate=cpu io memory pids in user@.service "
    "(`systemctl edit user@.service`)"
)


class CgroupConfig(ProcessConfig, frozen=True, kw_only=True, rename="kebab"):
    """Limits of a worker with everything it started, beside those that each of its processes has.

    memory: bytes of memory that a worker may use, swap and files in memory included; none by default. A worker that
        needs more is ended (version 1 of control groups: the process of it that needs more)
    pids: processes and threads of a worker; 256
    cpus: cores that a worker may use, 0.5 is half of one; none by default
    io-read: bytes per second that a worker may read from each disk; none by default
    io-write: bytes per second that a worker may write to each disk; none by default. (Version 1 does not count what
        goes through the page cache)
    """

    pids: Annotated[int, Meta(ge=1, le=1 << 22)] = 256
    cpus: Annotated[float, Meta(ge=0.01, le=10_000)] | None = None
    io_read: Size | None = None
    io_write: Size | None = None


class CgroupIsolate(ProcessIsolate):
    """What the level ``process`` does, and a control group for each worker, of version 2 or 1, whatever the host has.

    Nothing that a worker started is missed: whatever session it is in and whatever it did to its environment, it is in
    the worker's group. Root could leave the group, so workers that are root are refused. Where the engine is an
    ordinary user, to whom a group was delegated, workers are that user as well and could do so, too: it is a guard
    against accidents then.
    """

    name: ClassVar[str] = "cgroup"
    finds_code: ClassVar[bool] = False
    Config: ClassVar[type[ProcessConfig]] = CgroupConfig
    config: CgroupConfig

    def __init__(self, pool: str, config: CgroupConfig) -> None:
        super().__init__(pool, config)
        self._group: Group | None = None

    # ------------------------------------------------------------------ prepare

    @classmethod
    def abilities(cls) -> list[Ability]:
        rows = super().abilities()
        try:
            version, controllers = check()
        except Unsupported as e:
            found, _, remedy = str(e).partition("; ")
            rows.append(Ability("control groups with memory and pids", False, found, remedy))
        else:
            rows.append(Ability("control groups with memory and pids", True, f"version {version}"))
            rows += [
                Ability(f"control groups with {name}", True, f"version {version}")
                if name in controllers
                else Ability(f"control groups with {name}", False, "the engine's group does not have it", _MORE)
                for name in ("cpu", "io")
            ]
        return rows

    def prepare(self) -> None:
        super().prepare()
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def _prepare(self) -> None:
        config = self.config
        if (self.uid if self.uid != -1 else os.geteuid()) == 0:
            raise self.refusal(
                "a worker that is root could leave its control group; give the workers a user of their own: "
                'uid = "nobody", or a number'
            )
        try:
            self._group = open_group()
        except Unsupported as e:
            raise self.refusal(str(e)) from None
        for field, value, controller in (
            ("cpus", config.cpus, "cpu"),
            ("io-read", config.io_read, "io"),
            ("io-write", config.io_write, "io"),
        ):
            if value is not None and controller not in self._group.controllers:
                raise self.refusal(
                    f"{field}: the engine's control group does not have the controller {controller!r}; {_MORE}, or "
                    f"leave {field} out"
                )

    def process_limits(self) -> ProcessConfig:
        return replace(self.config, memory=None)  # that is the group's

    # ------------------------------------------------------------------ spawn

    def spawn(self, worker: str, command: Command) -> CgroupProcess:
        assert self._group is not None, "prepare comes first"
        config = self.config
        name = f"{re.sub('[^A-Za-z0-9_-]', '_', worker)}-{secrets.token_hex(4)}"
        leaf = self._group.create(
            name,
            Limits(
                pids=config.pids, memory=config.memory, cpus=config.cpus, read=config.io_read, write=config.io_write
            ),
        )
        try:
            return CgroupProcess(self.launch(worker, command, leaf.enter), leaf, config)
        except BaseException:
            leaf.remove()
            raise

    def close(self) -> None:
        super().close()
        if self._group is not None:
            self._group.close()
            self._group = None


class CgroupProcess:
    """A worker in its leaf."""

    def __init__(self, process: WorkerProcess, leaf: Leaf, config: CgroupConfig) -> None:
        self.pid = process.pid
        self.pidfd = process.pidfd
        self.socket = process.socket
        self.stdout = process.stdout
        self.stderr = process.stderr
        self._process = process
        self._leaf = leaf
        self._config = config
        self._was_killed = False

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._was_killed = True
        self._process.kill_alone()  # it may not be in there yet
        self._leaf.kill()

    def reap(self) -> Ending:
        left = end(self._leaf)
        events = self._leaf.events()
        ending = self._process.collect(left)
        reasons = [ending.reason]
        if self._config.memory is not None and events.oom:
            whole = ending.code == -signal.SIGKILL and not self._was_killed
            who = "the worker" if whole else "a process of the worker was ended when it"
            limit = show_size(self._config.memory)
            reasons.append(f"out of memory: {who} reached its limit of {limit} (isolate.memory)")
        if events.pids and ending.code != 0:
            reasons.append(f"it reached its limit of {self._config.pids} processes and threads (isolate.pids)")
        try:
            self._leaf.remove()
        except OSError as e:
            reasons.append(f"its control group could not be removed: {e}")
        return Ending(ending.code, "; ".join(filter(None, reasons)))
