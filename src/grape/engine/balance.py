"""Which worker has which partition: pure decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def balance(
    owners: Mapping[int, int | None], members: Sequence[int], may_move: Callable[[int], bool]
) -> dict[int, int]:
    """The moves after which every partition is a member's, and no member has two more than another.

    Args:
        owners: partition -> worker, None if nobody has it.
        members: workers that may have partitions. If there is none, nothing moves.
        may_move: whether a partition may leave a member now. One without an owner, or with one that is no member any
            more, always may.

    Returns:
        partition -> its new worker; no more moves than it takes.
    """
    if not members:
        return {}
    load: dict[int, list[int]] = {member: [] for member in members}
    homeless: list[int] = []
    for partition, owner in owners.items():
        if owner in load:
            load[owner].append(partition)
        else:
            homeless.append(partition)
    moves: dict[int, int] = {}
    for partition in homeless:
        least = min(load, key=lambda member: len(load[member]))
        load[least].append(partition)
        moves[partition] = least
    while True:
        least = min(load, key=lambda member: len(load[member]))
        most = max(load, key=lambda member: len(load[member]))
        if len(load[most]) - len(load[least]) < 2:
            return moves
        movable = next((p for p in load[most] if p in moves or may_move(p)), None)
        if movable is None:
            # Others with too many may have some that can move.
            del load[most]
            if len(load) < 2:
                return moves
            continue
        load[most].remove(movable)
        load[least].append(movable)
        moves[movable] = least
