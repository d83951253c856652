"""What others have chosen never acts on a terminal: neither control characters nor markup."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from grape.cli import console
from grape.model.topology import NodeSpec, PoolSpec, SlotSpec, StateSpec, TopologySpec
from grape.processes.output import Line
from grape.processes.workers import unprintable
from grape.protocol.messages import VERSION, Hello

CLI: Final = Path(console.__file__).parent
EVIL: Final = "\x1b]0;owned\x07[/]\x9b31m[bold red]x[/bold]\\[link=file:///]\r\u202e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """In place of what pytest has put there when the test itself begins."""
    found = Terminal()
    monkeypatch.setattr("sys.stdout", found)
    monkeypatch.setattr("sys.stderr", found)
    shown = Console(file=found, force_terminal=True, color_system=None, highlight=False, soft_wrap=True, width=500)
    monkeypatch.setattr(console, "err", shown)
    return found


def is_harmless(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" for c in text)


@pytest.mark.parametrize("text", [EVIL, f"first {EVIL}\nrest {EVIL}", "[", "[/", "a\\", "[/x]", ":bomb:"])
def test_whatever_is_shown_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    terminal = a_terminal(monkeypatch)
    for show in (console.complain, console.say, console.put):
        show(text)
        shown = terminal.getvalue()
        assert is_harmless(shown), shown
        terminal.seek(0)
        terminal.truncate()
        for part in ("[/]", "[bold red]x[/bold]", ":bomb:", "[/x]"):
            assert (part in text) == (part in shown), shown
    console.show_line(text, Line("warning", text, text))
    table = Table("x", show_header=False)
    table.add_row(console.escaped(text))
    console.put_table(table)
    assert is_harmless(terminal.getvalue())


def test_numbers_of_a_run_may_hold_names() -> None:
    task: Any = type("Task", (), {"fields": {"numbers": f"degraded: {EVIL}"}})()
    assert is_harmless(console._Numbers().render(task).plain)


def test_nobody_else_in_the_command_line_writes() -> None:
    """`print_lines` is the other one: JSON, with escapes on a terminal."""
    found = []
    for path in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and path.name != "console.py":
                words = ast.unparse(node.func)
                if words in ("print", "typer.echo", "Console", "sys.stderr.write") or words.endswith(".print"):
                    found.append(f"{path.name}:{node.lineno}: {words}")
    assert found == []


@given(st.text(max_size=5), st.integers(0, 8))
def test_names_of_a_hello_can_be_shown(name: str, place: int) -> None:
    names = ["n"] * 9
    names[place] = name
    spec = TopologySpec(
        names[0],
        (NodeSpec(names[1], names[2], (StateSpec(names[3]),)),),
        (SlotSpec(names[4], names[5], (names[6],)),),
        (names[7],),
        (PoolSpec(names[8]),),
    )
    found = unprintable(Hello(VERSION, 1, "python", spec, []))
    assert found == (None if name.isprintable() else name)
