"""The table of docs/isolation.md: ``python -m tests.escape.table`` writes it anew from expected.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

LEVELS: Final = ("process", "cgroup", "sandbox", "container")
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "isolation.md"
BEGIN: Final = "<!-- what is tried: written by `python -m tests.escape.table` from tests/escape/expected.toml -->"
END: Final = "<!-- end of what is tried -->"
_CAPABILITIES: Final = (1, 12, 13, 16, 18, 19, 20, 21, 22, 34)
"""CAP_DAC_OVERRIDE, NET_ADMIN, NET_RAW, SYS_MODULE, SYS_CHROOT, SYS_PTRACE, SYS_PACCT, SYS_ADMIN, SYS_BOOT, SYSLOG."""
_WHO: Final = {"root": "as root", "user": "as a user", "group": "", "single": "without control groups"}


def expected() -> dict[str, dict[str, Any]]:
    return tomllib.loads((Path(__file__).parent / "expected.toml").read_text())


def claim(value: str | dict[str, str], as_root: bool, groups: bool) -> str:
    """The outcome that is claimed for an engine on a host."""
    if isinstance(value, str):
        return value
    here = {"root" if as_root else "user", "group" if groups else "single"}
    (found,) = [outcome for condition, outcome in value.items() if condition in here]
    return "depends" if as_root and found == "open" and not _is_almighty() else found


def _is_almighty() -> bool:
    """Root, as it is outside of containers."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))
    return all(effective >> bit & 1 for bit in _CAPABILITIES)


def render() -> str:
    lines = [
        "| | what a worker tries | process | cgroup | sandbox | container | one layer stops it |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in expected().values():
        cells = [_cell(row[level]) for level in LEVELS]
        abi, layer = row.get("before", (0, ""))
        alone = row.get("alone", f"{layer}, before Landlock {abi}" if abi else "")
        lines.append(f"| F{row['row']} | {row['tries']} | {' | '.join(cells)} | {alone} |")
    return "\n".join([BEGIN, "", *lines, "", END])


def _cell(value: str | dict[str, str]) -> str:
    if isinstance(value, str):
        return _strong(value)
    return ", ".join(f"{_WHO[who]}: {_strong(one)}" if _WHO[who] else _strong(one) for who, one in value.items())


def _strong(outcome: str) -> str:
    return f"**{outcome}**" if outcome == "open" else outcome


def in_document() -> str:
    text = DOCUMENT.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def main() -> None:
    text = DOCUMENT.read_text()
    DOCUMENT.write_text(text.replace(in_document(), render()))


if __name__ == "__main__":
    main()
