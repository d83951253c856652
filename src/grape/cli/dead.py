"""``grape dead``: look at what was given up, try it again, drop it."""

from __future__ import annotations

from grape.cli.letters import Letters, app_of
from grape.tools.directory import Directory

app = app_of(
    Letters(
        command="dead",
        what="letter",
        nothing="no dead letters",
        example="main.3-17",
        held=False,
        all_of=Directory.letters,
        one_of=lambda directory, record, place: directory.letter(place),
        help="Dead letters, and events that were stopped (on_fail='stop').",
        list_help="List dead letters and stopped events: a table on a terminal, else JSON lines.",
        retry_help="Put dead letters back into the log; let stopped events be tried again. The engine that runs on the "
        "directory does it, else the next `grape run`.",
        drop_help="Remove dead letters and stopped events for good; what lined up behind a stopped event goes on.",
    )
)
