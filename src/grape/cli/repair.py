"""``grape repair``: take exactly what is damaged out of a data directory."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from grape.cli.apart import apart
from grape.cli.console import put, say
from grape.cli.run import EXIT_OK, fail
from grape.errors import Corrupt, GrapeError
from grape.tools.mending import DirectoryRepair, start_over

_LOST: Final = 4
"""Of the child: nothing of the data can be read."""


def repair(
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="The data directory; no run may use it.")],
    dry: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Mend a data directory, so that the next run starts: what is damaged is removed, a copy of it is put aside in
    DIR/damaged, and all the rest goes on. `grape doctor --data DIR` says what is damaged.

    \b
    A row that cannot be read         removed
    An event that no worker can take  becomes a dead letter
    The position of a partition       made anew; what was not finished for sure is done again
    A file that cannot be read at all put aside as a whole; the next run begins anew

    Exit codes: 0 whole; 2 no data directory of Grape, or in use; 3 it could not be mended.
    """
    code = apart(data, lambda: _mend(data, dry), "", _LOST)
    raise typer.Exit(_start_over(data, dry) if code == _LOST else code)


def _mend(data: str, dry: bool) -> int:
    try:
        with DirectoryRepair(data) as mending:
            mended = mending.run(dry)
    except Corrupt as e:
        say(str(e))
        return _LOST
    for line in mended.lines:
        put(line)
    if not mended.lines:
        put("whole: there is nothing to mend")
    elif dry:
        put("nothing was changed; without --dry-run it is")
    else:
        put(f"mended{f'; what was removed lies in {mended.aside}' if mended.aside else ''}")
    return EXIT_OK


def _start_over(data: str, dry: bool) -> int:
    if dry:
        put("nothing in it can be read: it would be put aside as a whole, and the next run begin anew")
        return EXIT_OK
    try:
        place = start_over(data)
    except GrapeError as e:
        fail(e)
        raise
    put(f"nothing in it can be read: put aside as a whole, in {place}; the next run begins anew")
    return EXIT_OK
