"""What must come of a plan, worked out one event after the other from the guarantees alone (design, section 4)."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from typing import Any

from tests.sim.generator import ALWAYS, INHERIT, Plan, react

Call = tuple[str, str]
"""(uid of the root event, pool): each pool that listens has a copy of the event, and each copy is a call of its own."""


class Expected:
    """``states``: (node, key) -> {what: value}; ``outputs``: by name the (key, uid)s; ``dead`` and ``stopped``: (node,
    event, key, uid); ``parts`` and ``finals``: replies by call."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: {"count": 0, "total": 0, "seen": []})
        self.outputs: dict[str, Counter[tuple[str | None, str]]] = defaultdict(Counter)
        self.dead: Counter[tuple[str, str, str | None, str]] = Counter()
        self.stopped: Counter[tuple[str, str, str | None, str]] = Counter()
        self.parts: dict[Call, Counter[str]] = defaultdict(Counter)
        self.finals: dict[Call, list[str]] = defaultdict(list)
        self.events = 0


def expect(plan: Plan) -> Expected:
    out = Expected()
    queue: deque[tuple[str, str | None, str, int, str, str | None]] = deque(
        (root.event, root.key, root.uid, root.rounds, root.mode, None) for root in plan.roots
    )
    while queue:
        event, key, uid, rounds, mode, call_pool = queue.popleft()
        if event in plan.outputs:
            out.outputs[event][key, uid] += 1
            continue
        for node in plan.listeners(event):
            out.events += 1
            pool = call_pool or node.pool
            call = (uid.split(".")[0], pool)
            reaction = react(plan, node, uid, rounds, mode, key)
            if reaction.crashes or reaction.fails == ALWAYS:
                if node.on_fail == "stop":
                    out.stopped[node.name, event, key, uid] += 1
                else:
                    out.dead[node.name, event, key, uid] += 1
                    out.finals[call].append("error")
                continue
            if key is not None:
                state = out.states[node.name, key]
                state["count"] += 1
                state["total"] += reaction.add
                state["seen"].append(uid)
            for emit in reaction.emits:
                to = key if emit.key == INHERIT else emit.key
                queue.append((emit.event, to, emit.uid, emit.rounds, mode, pool))
            for data, final in reaction.replies:
                if final:
                    out.finals[call].append(data)
                else:
                    out.parts[call][data] += 1
    return out
