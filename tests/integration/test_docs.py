"""The code in README.md and docs/*.md is run, in the order in which it stands, in one directory per document.

A `python` block whose first line is a comment with a file name (``# app.py``) is written to that file; any other one is
run as a script. A `sh` block is an executable file, whose second line says its name. In a `console` block every ``$ ``
line is run by bash; what stands below it has to be what it prints (both streams), "..." standing for anything. It has
to succeed, unless the line ends with ``# exit code N``. A `toml` block is a profile, which has to be one. `text` and
`mermaid` blocks are for readers; there are no others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from grape.processes.profile_file import load_profiles
from grape.processes.profiles import make_isolate

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOR_READERS: Final = {"text", "mermaid"}
GIVEN: Final = {"README.md": {"book.txt": "the grape\na vine, a grape\nno more than a grape\n"}}
"""Files that a document speaks of as the reader's own."""

_BLOCK: Final = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE: Final = re.compile(r"# ([\w./-]+\.\w+)\n")
_MAKE: Final = re.compile(r"make ([\w-]+)\b")


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text()
    found = [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(text)]
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.MULTILINE)), f"{document.name}: a block is not read"
    return found


def commands_of(block: Block) -> list[tuple[str, str]]:
    """Each command with the output that is shown below it."""
    commands: list[tuple[str, str]] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            commands.append((line[2:].strip(), ""))
        else:
            assert commands, f"a console block begins with '$ ', not with {line!r}"
            command, shown = commands[-1]
            commands[-1] = (command, shown + line)
    return commands


def run(command: str | list[str], where: Path) -> tuple[int, str]:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    arguments = ["bash", "-c", command] if isinstance(command, str) else command
    done = subprocess.run(
        arguments, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=where, env=env
    )
    return done.returncode, done.stdout


def matches(shown: str, printed: str) -> bool:
    pattern = re.escape(shown.strip()).replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def execute(block: Block, where: Path) -> None:
    named = _FILE.match(block.text)
    if block.language == "sh":
        script = _FILE.match(block.text.partition("\n")[2])
        assert script is not None, "a sh block says its file name in the second line"
        (where / script[1]).write_text(block.text)
        (where / script[1]).chmod(0o755)
        return
    if block.language == "toml":
        for name, profile in load_profiles(tomllib.loads(block.text).get("pool", {}), {}).items():
            make_isolate(name, profile)
    if block.language in ("python", "toml") and named:
        (where / named[1]).write_text(block.text)
    elif block.language == "python":
        script = where / f"block_at_{block.line}.py"
        script.write_text(block.text)
        code, printed = run([sys.executable, script.name], where)
        assert code == 0, printed
    elif block.language == "console":
        for command, shown in commands_of(block):
            target = _MAKE.match(command)
            if target:  # runs the tests, or takes long: it has to exist
                assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
                continue
            expected = re.search(r"# exit code (\d+)$", command)
            code, printed = run(command, where)
            assert code == (int(expected[1]) if expected else 0), f"$ {command}\n{printed}"
            assert not shown or matches(shown, printed), f"$ {command}\n{printed}\nbut this is shown:\n{shown}"
    elif block.language != "toml":
        assert block.language in FOR_READERS, f"{block.language!r} is no kind of block that is known here"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_in_it_does_what_it_says(document: Path, tmp_path: Path) -> None:
    for name, text in GIVEN.get(document.name, {}).items():
        (tmp_path / name).write_text(text)
    try:
        for block in blocks_of(document):
            try:
                execute(block, tmp_path)
            except AssertionError as e:
                raise AssertionError(f"{document.name}:{block.line}: {e}") from None
    finally:
        for control in tmp_path.rglob("control"):  # of a server that the document would have stopped
            run(f"grape stop --home {control.parent}", tmp_path)


def test_a_wrong_document_is_found(tmp_path: Path) -> None:
    for text in (
        "```console\n$ echo a\nb\n```\n",
        "```console\n$ false\n```\n",
        "```perl\n```\n",
        "```python\n1/0\n```\n",
    ):
        document = tmp_path / "wrong.md"
        document.write_text(text)
        (block,) = blocks_of(document)
        with pytest.raises(AssertionError):
            execute(block, tmp_path)
    assert matches("a...c\n...\nf", "abc\nd\ne\nf\n")
