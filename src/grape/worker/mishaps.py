"""What fails beside the events: tasks, callbacks and threads of handlers. It is said, and ends nothing."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from types import CodeType
from typing import Any, Final, Protocol

from grape.worker import children
from grape.worker.blame import user_traceback

_CO_CAN_WAIT: Final = 0x20 | 0x80 | 0x100 | 0x200
"""A frame of a generator, a coroutine or an asynchronous generator."""
_BETWEEN: Final = (os.path.dirname(asyncio.__file__), __file__)


class Complain(Protocol):
    def __call__(self, text: str, slot: str | None = None, /) -> None:
        """Say it on the worker's stderr. ``slot`` None: of the node that runs."""


def hook_threads(complain: Complain) -> None:
    """Threads that raise, and what Python itself cannot raise anywhere (finalizers, callbacks of C), are said."""

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            name = "a thread" if args.thread is None else f"thread {args.thread.name}"
            complain(f"exception in {name}\n{user_traceback(args.exc_value)}")

    def unraisable(args: sys.UnraisableHookArgs) -> None:
        if args.exc_value is not None:
            what = f"{args.err_msg or 'exception ignored in'}: {_named(args.object)}"
            complain(f"{what}\n{user_traceback(args.exc_value)}")

    threading.excepthook = in_thread
    sys.unraisablehook = unraisable


def run_loop(main: Coroutine[Any, Any, None], complain: Complain, speaker: Callable[[], str]) -> None:
    """``asyncio.run(main)``, for a loop that is shared with handlers: what fails in their tasks and callbacks is said,
    and only ``main`` ends it. ``speaker``: the node whose task runs."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        loop.set_task_factory(Task.factory(speaker))
        loop.set_exception_handler(lambda _, context: _said(context, complain))
        children.at_fork(lambda: _stop_in_child(loop))
        task = loop.create_task(main)
        while True:
            try:
                loop.run_until_complete(task)
                return
            except (KeyboardInterrupt, SystemExit) as e:
                # Python lets them through the loop. Whoever awaits the task gets them nevertheless.
                children.end_child()
                if task.done():
                    raise
                if not _is_of_task(e):
                    complain(f"exception in a callback\n{user_traceback(e)}")
            except BaseException:
                children.end_child()
                raise


class Task(asyncio.Task[Any]):
    """A task that knows the node whose handler started it."""

    node = ""

    @classmethod
    def factory(cls, speaker: Callable[[], str]) -> Callable[..., asyncio.Task[Any]]:
        def make(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
            task = cls(coro, loop=loop, **options)
            task.node = speaker()
            return task

        return make


def _said(context: dict[str, Any], complain: Complain) -> None:
    task, handle, error = context.get("task") or context.get("future"), context.get("handle"), context.get("exception")
    slot = getattr(task, "node", None)
    text = str(context.get("message")) if error is None else f"{context.get('message')}\n{user_traceback(error)}"
    if slot is None and isinstance(handle, asyncio.Handle):
        handle._context.run(complain, text)  # type: ignore[attr-defined]
    else:
        complain(text, slot)


def _is_of_task(error: BaseException) -> bool:
    """Whether it came out of a task, not of a callback: the first frame behind the loop's is one that can wait."""
    trace = error.__traceback__
    while trace is not None:
        code: CodeType = trace.tb_frame.f_code
        if not code.co_filename.startswith(_BETWEEN):
            return bool(code.co_flags & _CO_CAN_WAIT)
        trace = trace.tb_next
    return False


def _stop_in_child(loop: asyncio.AbstractEventLoop) -> None:
    """The loop runs nothing more, once the step that forked is over."""
    loop.stop()
    getattr(loop, "_ready", []).clear()


def _named(what: object) -> str:
    try:
        return f"{what!r:.200}"
    except BaseException:
        return f"a {type(what).__name__}"
