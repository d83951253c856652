"""``grape held``: events that failed and wait for their next attempt, and what waits behind them."""

from __future__ import annotations

from typing import Final

from grape.cli.letters import Letters, app_of
from grape.model.spots import Place
from grape.model.stored import AppRecord
from grape.tools.directory import Directory, Letter

_LIST_HELP: Final = """\
List held events, with their last error and when they are tried next: a table on a terminal, else JSON lines.

\b
"status": held; stopped (on_fail="stop": for you to decide); behind (an event of the same node and key is held)
"waiting": how many events wait behind it        "behind": the one that it waits for"""


def _one_of(directory: Directory, record: AppRecord, place: Place) -> Letter | None:
    """With what is known of it from the others of its partition."""
    return next((held for held in directory.held(record, place.partition) if held.place == place), None)


app = app_of(
    Letters(
        command="held",
        what="held event",
        nothing="no held events",
        example="main.3-h17",
        held=True,
        all_of=Directory.held,
        one_of=_one_of,
        help="Events that failed and wait for their next attempt, and what waits behind them.",
        list_help=_LIST_HELP,
        retry_help="Let held events be tried at once, not when their back-off ends. The engine that runs on the "
        "directory does it, else the next `grape run`.",
        drop_help="Remove held events for good; what waits behind one goes on.",
    )
)
