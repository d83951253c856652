"""Limits as the transport can keep them: whatever it commits, in how small pieces ever, is cut to fit. Pure."""

from __future__ import annotations

import msgspec

from grape.abc.transport import Features
from grape.model.topology import Limits


def fit(limits: Limits, features: Features) -> Limits:
    """``limits``, made smaller where ``features`` are. A result has half of a commit: what it is estimated at may be
    less than what it is."""
    quarter = features.largest_commit // 4
    batch = min(limits.batch_max, features.largest_batch, quarter)
    return msgspec.structs.replace(
        limits,
        max_event=min(limits.max_event, features.largest_event, quarter),
        batch_max=batch,
        batch_target=min(limits.batch_target, batch),
        max_result=min(limits.max_result, 2 * quarter),
        dispatch_bytes=min(limits.dispatch_bytes, quarter),
    )
