"""The life of a worker, as a table. Pure; `docs/pools.md` shows the diagram that is made of it."""

from __future__ import annotations

from typing import Final, Literal

from grape.errors import ProtocolError

Life = Literal["starting", "welcome", "refused", "ready", "sealed", "leaving", "asked", "broken", "gone"]
Step = Literal["hello", "refuse", "set up", "seal", "dismiss", "terminate", "cut", "end"]

MEANING: Final[dict[Life, str]] = {
    "starting": "its process loads the app",
    "welcome": "it has said hello, and sets up its nodes",
    "refused": "it has said that it cannot run the app, and ends",
    "ready": "it may have partitions, and works",
    "sealed": "it gives up its partitions, and then leaves",
    "leaving": "it was told to end",
    "asked": "it was late with that, and got SIGTERM",
    "broken": "nobody listens to it any more, and it was killed",
    "gone": "its process has ended",
}

STEPS: Final[dict[tuple[Life, Step], Life]] = {
    ("starting", "hello"): "welcome",
    ("welcome", "set up"): "ready",
    ("ready", "seal"): "sealed",
    **{(life, "dismiss"): "leaving" for life in ("starting", "welcome", "refused", "ready", "sealed")},
    ("leaving", "terminate"): "asked",
    **{(life, "refuse"): "refused" for life in ("starting", "welcome", "ready", "sealed")},
    **{(life, "cut"): "broken" for life in MEANING if life not in ("broken", "gone")},
    **{(life, "end"): "gone" for life in MEANING if life != "gone"},
}
"""What is not in here cannot happen: a worker that says it breaks the protocol."""

COMES: Final[frozenset[Life]] = frozenset({"starting", "welcome", "refused"})
"""It is on its way, for all that anybody knows."""
SERVES: Final[frozenset[Life]] = frozenset({"ready", "sealed"})
LEAVES: Final[frozenset[Life]] = frozenset({"leaving", "asked"})


def after(life: Life, step: Step) -> Life:
    """
    Raises:
        ProtocolError: that does not happen in this life.
    """
    found = STEPS.get((life, step))
    if found is None:
        raise ProtocolError(f"{step!r} from a worker that is {life}")
    return found


def diagram() -> str:
    """The table as a Mermaid state diagram; ways that all states have in common are drawn once."""
    lines = ["stateDiagram-v2", "    [*] --> starting"]
    ways: dict[tuple[Life, Life], list[str]] = {}
    for (life, step), then in STEPS.items():
        if step not in ("cut", "end"):
            ways.setdefault((life, then), []).append(step)
    lines += [f"    {life} --> {then}: {', '.join(steps)}" for (life, then), steps in ways.items()]
    lines += ["    state any <<choice>>", "    any --> broken: cut", "    any --> gone: end", "    gone --> [*]"]
    return "\n".join(lines)
