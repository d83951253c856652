"""Text of others on a terminal: whatever is shown goes through here, or through `grape.cli.console`, which does."""

from __future__ import annotations

from grape.processes.output import Line


def escaped(text: str, keep: str = "") -> str:
    """``text`` with characters that a terminal would act on written as escapes, but for those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def shown(worker: str, line: Line) -> tuple[str, str]:
    """Who printed a line, and what, with its level if it was logged, and its fields."""
    where = escaped(f"{line.slot} {worker}" if line.slot else worker)
    level = f"{escaped(line.level.upper())} " if line.level not in ("stdout", "stderr") else ""
    fields = f" {escaped(line.fields)}" if line.fields else ""
    return where, level + escaped(line.text, "\t") + fields


def _escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
