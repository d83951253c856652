"""Why a condition does not hold."""

from __future__ import annotations

from grape.abc.storage import About, If, Place


def conflict(place: Place, when: If, there: About | None) -> str:
    """Why a condition does not hold, for people."""
    what = f"{place.namespace}/{place.key}"
    if there is None:
        return f"{what} is not there, and what was asked for is one that is"
    if when.absent:
        return f"{what} is there already, as version {there.version}"
    if when.version not in (None, there.version):
        return f"{what} is version {there.version}, not {when.version}: somebody else has written it"
    if when.checksum not in (None, there.checksum):
        return f"{what} has the checksum {there.checksum}, not {when.checksum}"
    return f"{what} is newer: its time is {there.time}, that of what was to be written is not after it"
