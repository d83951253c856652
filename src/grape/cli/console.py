"""What the command line shows: messages, the progress line, the summary. Data goes to stdout, all else to stderr.

Nothing else in the command line writes. What is shown may be of others, also where it does not look so: names of pools
and slots come from workers. So nothing of it is markup, and what a terminal would act on is written as escapes.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from grape.engine.supervisor import Line
from grape.session import Session
from grape.tools.terminal import escaped, shown

_STYLES = {"stdout": "cyan", "debug": "cyan", "info": "cyan", "error": "red", "critical": "red"}
err = Console(stderr=True, highlight=False, soft_wrap=True)


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


def put_table(table: Table) -> None:
    """A table whose cells are texts, not markup."""
    Console(highlight=False, markup=False, emoji=False).print(table)


def show_line(worker: str, line: Line) -> None:
    """What a handler printed, or logged."""
    where, text = shown(worker, line)
    if not err.is_terminal:  # markup costs more than all the rest
        sys.stderr.write(f"[{where}] {text}\n")
        return
    err.print(Text.assemble((f"[{where}]", _STYLES.get(line.level, "yellow")), " ", text))


class _Numbers(ProgressColumn):
    """events/s, backlog, workers, next timer."""

    def render(self, task: Task) -> Text:
        return Text(escaped(str(task.fields.get("numbers", ""))))


class Meter:
    """Follows a session: a live line on a terminal, a plain line every five seconds elsewhere.

    It also watches the memory of the engine and its workers, in MB: ``peak_rss`` and ``peak_private``.
    """

    def __init__(self, session: Session, *, quiet: bool) -> None:
        self._session = session
        self._live = err.is_terminal and not quiet
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
                TextColumn("{task.description}", markup=False),
                BarColumn(20),
                _Numbers(),
                console=err,
                transient=True,
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
        session = self._session
        self._measure_memory()
        app, engine = session.app, session.engine
        if app is None or engine is None or self._quiet:
            return
        now, done = time.monotonic(), app.stats.finished
        before, was = self._last
        if now - before >= 1.0:
            self._rate = (done - was) / (now - before)
            self._last = now, done
        sizes = [source.total() for source in session.sources]
        total = sum(s for s in sizes if s is not None) if sizes and None not in sizes else None
        workers = sum(1 for p in engine.pools.values() for w in p.workers.values() if w.state == "ready")
        parts = [f"{self._rate:,.0f} events/s", f"backlog {app.backlog_events:,}", f"{workers} workers"]
        degraded = [name for name, pool in engine.pools.items() if pool.is_degraded]
        if degraded:
            parts.append(f"degraded: {', '.join(degraded)}")
        if app.holds:
            parts.append(f"{app.holds:,} held")
        if app.stats.dead:
            parts.append(f"{app.stats.dead:,} dead")
        due = engine.next_due()
        if due is not None and not app.backlog_events and not session.sources_open:
            parts.append(f"next due {time.strftime('%H:%M:%S', time.localtime(due / 1e6))}")
        if self._progress is not None:
            self._progress.update(
                self._task,
                description=escaped(app.record.name),
                total=total,
                completed=session.fed_bytes,
                numbers=" · ".join(parts),
            )
        elif now - self._printed >= 5.0:
            self._printed = now
            share = f"{min(100.0, 100 * session.fed_bytes / total):.0f} % of input, " if total else ""
            say(f"{app.record.name}: {share}{', '.join(parts)}")

    def _measure_memory(self) -> None:
        pids: dict[str, int | None] = {"engine": None, **dict(self._session.workers())}
        for name, pid in pids.items():
            try:
                key = pid or 0
                process = self._processes.get(key)
                if process is None:
                    process = self._processes[key] = psutil.Process(pid)
                info = process.memory_info()
                private = _private_mb(process.pid)
            except (psutil.Error, OSError):
                continue
            self.peak_rss[name] = max(self.peak_rss.get(name, 0.0), info.rss / 1e6)
            self.peak_private[name] = max(self.peak_private.get(name, 0.0), private)


def _private_mb(pid: int) -> float:
    """Memory that belongs to this process alone (not the file-backed map): RssAnon."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
