"""What the command line shows: messages, the progress line, the summary. Data goes to stdout, all else to stderr.

Nothing else in the command line writes. What is shown may be of others, also where it does not look so: names of pools
and slots come from workers. So nothing of it is markup, and what a terminal would act on is written as escapes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from concurrent.futures import Future
from typing import Any, Literal, TextIO, cast

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from grape.client.session import Session
from grape.model.plural import counted
from grape.processes.output import Line
from grape.protocol import outcomes
from grape.tools.terminal import escaped, shown


class _Stderr(io.TextIOBase):
    """Standard error as it is now. Whoever stops to read it does not stop the engine."""

    def write(self, text: str) -> int:
        with contextlib.suppress(BrokenPipeError, ValueError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(sys.stderr, "encoding", None) or "utf-8"


def is_plain() -> bool:
    """No colour and nothing that moves: NO_COLOR, or a terminal that can do nothing."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") in ("dumb", "unknown")


def _colors() -> Literal["auto"] | None:
    return None if is_plain() else "auto"


_stderr = _Stderr()
_STYLES = {"stdout": "cyan", "debug": "cyan", "info": "cyan", "error": "red", "critical": "red"}
err = Console(file=cast(TextIO, _stderr), highlight=False, soft_wrap=True, color_system=_colors())


def complain(text: str) -> None:
    """An error, for people."""
    first, _, rest = text.partition("\n")
    first, rest = escaped(first), escaped(rest, "\n\t")
    err.print(Text.assemble(("error:", "bold red"), " ", first))
    if rest:
        err.print(Text(rest))


def say(text: str, style: str = "") -> None:
    err.print(Text(escaped(text, "\n\t"), style))


def put(text: str) -> None:
    """A line that was asked for, on stdout."""
    sys.stdout.write(escaped(text, "\n\t") + "\n")


def flushed() -> bool:
    """Whether all of what was put on standard output has gone out; False: nobody reads it any more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains at its end
        return False
    finally:
        _stderr.flush()
    return True


def live_console() -> Console:
    """For what moves on a terminal, on stdout."""
    return Console(highlight=False, markup=False, emoji=False, color_system=_colors())


def put_table(table: Table) -> None:
    """A table whose cells are texts, not markup."""
    live_console().print(table)


def show_line(worker: str, line: Line) -> None:
    """What a handler printed, or logged."""
    where, text = shown(worker, line)
    if not err.is_terminal:  # markup costs more than all the rest
        _stderr.write(f"[{where}] {text}\n")
        return
    err.print(Text.assemble((f"[{where}]", _STYLES.get(line.level, "yellow")), " ", text))


def _one_line(width: int | None = None) -> Column:
    """A narrow terminal gets less, never a second line."""
    return Column(no_wrap=True, overflow="ellipsis", max_width=width)


class _Numbers(ProgressColumn):
    """events/s, backlog, workers, next timer."""

    def render(self, task: Task) -> Text:
        return Text(escaped(str(task.fields.get("numbers", ""))), no_wrap=True, overflow="ellipsis")


class Meter:
    """Follows a run: a live line on a terminal, a plain line every five seconds elsewhere.

    It also watches the memory of the engine, its workers and this process ("run"), in MB: ``peak_rss`` and
    ``peak_private``.
    """

    def __init__(self, run: Session, *, quiet: bool) -> None:
        self._run = run
        self._asked: Future[outcomes.Progress] | None = None
        # Where input is typed or output shown on the same terminal, a line that moves would share a line with them.
        shares = _shows_output(run) or _reads_terminal(run)
        self._live = err.is_terminal and not quiet and not is_plain() and not shares
        self._quiet = quiet
        self._last = (time.monotonic(), 0)
        self._printed = time.monotonic()
        self._rate = 0.0
        self.peak_rss: dict[str, float] = {}
        self.peak_private: dict[str, float] = {}
        self._processes: dict[int, psutil.Process] = {}
        self._progress: Progress | None = None
        if self._live:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False, table_column=_one_line(24)),
                BarColumn(12),
                _Numbers(table_column=_one_line()),
                console=err,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Meter:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self) -> None:
        """Look once; called a few times a second."""
        progress = None if self._asked is None else _answer(self._asked)
        if self._run.has_begun and (self._asked is None or self._asked.done()):
            self._asked = self._run.progress()
        self._measure_memory([] if progress is None else progress.pids)
        if progress is not None and not self._quiet:
            self._show(progress)

    def _show(self, progress: outcomes.Progress) -> None:
        run, name = self._run, "" if self._run.topology is None else self._run.topology.name
        now, done = time.monotonic(), progress.finished
        before, was = self._last
        if now - before >= 1.0:
            self._rate = (done - was) / (now - before)
            self._last = now, done
        sizes = [source.total() for source in run.sources]
        total = sum(s for s in sizes if s is not None) if sizes and None not in sizes else None
        workers = counted(progress.workers, "worker")
        parts = [f"{self._rate:,.0f} events/s", f"backlog {progress.backlog:,}", workers]
        if progress.degraded:
            parts.append(f"degraded: {', '.join(progress.degraded)}")
        if progress.held:
            parts.append(f"{progress.held:,} held")
        if progress.dead:
            parts.append(f"{progress.dead:,} dead")
        if progress.due is not None and not progress.backlog and not progress.streams:
            parts.append(f"next due {time.strftime('%H:%M:%S', time.localtime(progress.due / 1e6))}")
        if self._progress is not None:
            self._progress.update(
                self._task,
                description=escaped(name),
                total=total,
                completed=progress.fed_bytes,
                numbers=" · ".join(parts),
            )
        elif now - self._printed >= 5.0:
            self._printed = now
            share = f"{min(100.0, 100 * progress.fed_bytes / total):.0f} % of input, " if total else ""
            say(f"{name}: {share}{', '.join(parts)}")

    def _measure_memory(self, pids: list[tuple[str, int]]) -> None:
        for name, pid in [("run", os.getpid()), *pids]:
            try:
                process = self._processes.get(pid)
                if process is None:
                    process = self._processes[pid] = psutil.Process(pid)
                info = process.memory_info()
                private = _private_mb(process.pid)
            except (psutil.Error, OSError):
                continue
            self.peak_rss[name] = max(self.peak_rss.get(name, 0.0), info.rss / 1e6)
            self.peak_private[name] = max(self.peak_private.get(name, 0.0), private)


def _shows_output(run: Session) -> bool:
    return any(taker.sink.is_shown for taker in run.takers) and sys.stdout.isatty()


def _answer(asked: Future[outcomes.Progress]) -> outcomes.Progress | None:
    return asked.result() if asked.done() and asked.exception() is None else None


def _reads_terminal(run: Session) -> bool:
    return any(not source.is_repeatable for source in run.sources) and os.isatty(0)


def _private_mb(pid: int) -> float:
    """Memory that belongs to this process alone (not the file-backed map): RssAnon."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
