"""Several groups: what is written to all of them and done when enough have it, and read from as many as it takes to
meet whatever was written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final, Generic, Literal, TypeVar

from msgspec import Struct

from grape.errors import Corrupt, StorageFailed
from grape.storage.elliptics.failures import Refusal, Status

T = TypeVar("T")
Success = Literal["any", "quorum", "all"]

_LOG: Final = logging.getLogger("grape.storage.elliptics")
LATE: Final = 256
"""Requests to groups for which nobody waits any more; beyond that the next one waits."""


def needed(success: Success, groups: int) -> int:
    """In how many groups a write has to be done."""
    return {"any": 1, "quorum": groups // 2 + 1, "all": groups}[success]


def asked(success: Success, groups: int) -> int:
    """How many groups a read has to hear so that one of them has what was written last."""
    return groups - needed(success, groups) + 1


class Found(Struct, Generic[T], frozen=True):
    """What has been read: the newest, and the group that has it.

    Args:
        behind: groups that have none, an older or a rotten one.
        is_all: whether all groups were asked.
    """

    group: int
    value: T
    behind: tuple[int, ...] = ()
    is_all: bool = True


class Groups:
    """
    Args:
        decides: the one that every write has to be in, first of ``groups``; so what it has is the newest.
    """

    def __init__(self, groups: Sequence[int], success: Success, decides: int | None = None) -> None:
        self.all = tuple(groups)
        self.needed = needed(success, len(groups))
        self.asked = asked(success, len(groups))
        self.decides = decides
        self.is_weak = success == "any"
        self._late: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    # ------------------------------------------------------------------ write

    async def write(
        self, what: str, do: Callable[[int], Awaitable[T]], done: Sequence[int] = (), leaves: bool = True
    ) -> list[T]:
        """Do it in all groups, at once, but for those in which it is ``done``. It goes on in the others when enough
        have it, if it ``leaves`` them; else they are waited for.

        Raises:
            StorageFailed: not enough do.
        """
        left = [group for group in self.all if group not in done]
        missing = self.needed - len(done)
        if len(self.all) == 1 and left:
            return [await do(left[0])]
        tasks: dict[asyncio.Task[T], int] = {asyncio.ensure_future(do(group)): group for group in left}
        found: list[T] = []
        failed: dict[int, StorageFailed] = {}
        pending = set(tasks)
        try:
            while pending and not (leaves and (len(found) >= missing or len(failed) > len(left) - missing)):
                ready, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in ready:
                    try:
                        found.append(task.result())
                    except StorageFailed as e:
                        failed[tasks[task]] = e
        except BaseException:
            for task in tasks:
                task.cancel()
            raise
        await self._let(pending)
        if len(found) < missing:
            raise StorageFailed(
                f"{what}: it is in {len(found) + len(done)} of {len(self.all)} groups, {self.needed} are needed "
                f"(success=): {_reasons(failed)}"
            )
        return found

    async def everywhere(self, what: str, do: Callable[[int], Awaitable[T]]) -> list[T]:
        """
        Raises:
            StorageFailed: a group does not.
        """
        if len(self.all) == 1:
            return [await do(self.all[0])]
        results = await asyncio.gather(*(do(group) for group in self.all), return_exceptions=True)
        failed = {}
        for group, one in zip(self.all, results, strict=True):
            if isinstance(one, StorageFailed):
                failed[group] = one
            elif isinstance(one, BaseException):
                raise one
        if failed:
            raise StorageFailed(
                f"{what}: it has to be in all groups, else it would come back from where it is not: {_reasons(failed)}"
            )
        return [one for one in results if not isinstance(one, BaseException)]

    async def _let(self, pending: set[asyncio.Task[Any]]) -> None:
        for task in pending:
            self._late.add(task)
            task.add_done_callback(self._ended)
        while len(self._late) > LATE:
            await asyncio.wait(self._late, return_when=asyncio.FIRST_COMPLETED)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _LOG.info("a group has not taken a write that others have: %s", task.exception())

    # ------------------------------------------------------------------ read

    async def settled(self) -> None:
        """Wait until the others have it too."""
        while self._late:
            await asyncio.wait(self._late)

    async def newest(
        self,
        what: str,
        look: Callable[[int], Awaitable[T | None]],
        order: Callable[[T], Any],
        everyone: bool = False,
    ) -> Found[T] | None:
        """What the groups have; None: they have none. One that says so does not count before all others have been
        asked: a node that stands in for another one says it too. ``everyone``: ask all of them.

        Raises:
            StorageFailed: too few have answered. Corrupt: what there is is rotten.
        """
        told: dict[int, T | None] = {}
        failed: dict[int, StorageFailed] = {}
        left = list(self.all)
        if everyone:
            await self._ask(left, look, told, failed)
            left = []
        while left and not self._is_enough(told):
            missing = 1 if self.decides is not None and left[0] == self.decides else self.asked - len(told)
            some, left = left[: max(1, missing)], left[max(1, missing) :]
            await self._ask(some, look, told, failed)
        if left and all(value is None for value in told.values()):
            await self._ask(left, look, told, failed)
            left = []
        if not (self._is_enough(told) or (self.is_weak and told)):
            raise _failure(what, failed)
        there = [(order(value), group) for group, value in told.items() if value is not None]
        if not there:
            if any(is_rotten(e) for e in failed.values()):
                raise _failure(what, failed)
            return None
        highest = max(each[0] for each in there)
        group = next(group for group in self.all if (highest, group) in there)
        value = told[group]
        assert value is not None
        behind = [each for each in self.all if each in told and (highest, each) not in there]
        behind += [each for each, e in failed.items() if is_rotten(e)]
        return Found(group, value, tuple(behind), not left)

    def _is_enough(self, told: dict[int, T | None]) -> bool:
        return len(told) >= self.asked or self.decides in told

    async def _ask(
        self,
        groups: Sequence[int],
        look: Callable[[int], Awaitable[T | None]],
        told: dict[int, T | None],
        failed: dict[int, StorageFailed],
    ) -> None:
        async def one(group: int) -> None:
            try:
                told[group] = await look(group)
            except StorageFailed as e:
                failed[group] = e

        if len(groups) == 1:
            await one(groups[0])
        else:
            async with asyncio.TaskGroup() as tasks:
                for group in groups:
                    tasks.create_task(one(group))


class Later:
    """What is done when nobody waits: a bounded number of jobs, each once at a time.

    Attributes:
        done, failed, refused: how many jobs.
    """

    def __init__(self, at_once: int, most: int) -> None:
        self.done = self.failed = self.refused = 0
        self._limit = asyncio.Semaphore(at_once)
        self._most = most
        self._jobs: dict[Hashable, asyncio.Task[None]] = {}

    def want(self, name: Hashable, job: Callable[[], Awaitable[object]]) -> bool:
        """Whether it will be done, or is about to be."""
        if name in self._jobs:
            return True
        if len(self._jobs) >= self._most:
            self.refused += 1
            return False
        self._jobs[name] = asyncio.create_task(self._run(name, job))
        return True

    async def _run(self, name: Hashable, job: Callable[[], Awaitable[object]]) -> None:
        try:
            async with self._limit:
                await job()
            self.done += 1
        except (StorageFailed, Corrupt) as e:
            self.failed += 1
            _LOG.info("%s", e)
        finally:
            self._jobs.pop(name, None)

    async def settled(self) -> None:
        """Wait for all."""
        while self._jobs:
            await asyncio.wait(self._jobs.values())

    async def close(self, within: float) -> None:
        """Wait for so many seconds; then they end."""
        try:
            async with asyncio.timeout(within):
                await self.settled()
        except TimeoutError:
            for task in self._jobs.values():
                task.cancel()
            await asyncio.gather(*self._jobs.values(), return_exceptions=True)


def is_rotten(e: BaseException | None) -> bool:
    """Whether it is that a record is not what was written."""
    return isinstance(e, Refusal) and e.status == Status.ROTTEN


def _failure(what: str, failed: dict[int, StorageFailed]) -> StorageFailed | Corrupt:
    if failed and all(is_rotten(e) for e in failed.values()):
        return Corrupt(f"{what}: {_reasons(failed)}")
    return StorageFailed(f"{what}: {_reasons(failed)}")


def _reasons(failed: dict[int, StorageFailed]) -> str:
    return "; ".join(f"group {group}: {e}" for group, e in sorted(failed.items())) or "no group has answered"
