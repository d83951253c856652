"""The fuzz tests of the protocol, with inputs that Atheris chooses by what they reach: `make test-fuzz`.

    PYTHONPATH=tests .venv/bin/python -m fuzz.guided frames 600    # seconds; needs: pip install atheris

What it finds is written to .cache/fuzz/crash-*, and is found again by naming that file instead of the seconds.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import atheris
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

with atheris.instrument_imports(include=["grape.engine", "grape.protocol", "grape.model"]):
    from grape.errors import ProtocolError
    from grape.protocol.framing import frame, worker_frames
    from unit import test_fuzz_protocol as properties
    from unit.lying import Rig


def frames(data: bytes) -> None:
    """Whatever a socket may give, to an engine that is in the middle of work."""
    rig = Rig()
    reader = worker_frames()
    try:
        for message in reader.feed(data):
            properties.deliver(rig, message)
        reader.check()
    except ProtocolError:
        pass
    properties.gets_done(rig)


def by_strategy(body: Callable[[st.DataObject], None]) -> Callable[[bytes], Any]:
    """The bytes decide what Hypothesis draws."""
    quiet = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    found: Callable[[bytes], Any] = quiet(given(st.data())(body)).hypothesis.fuzz_one_input  # type: ignore[attr-defined]
    return found


FOUND: Final = Path(".cache/fuzz")
TARGETS: Final[dict[str, Callable[[bytes], Any]]] = {
    "frames": frames,
    "changed-frames": by_strategy(properties.a_frame_that_was_changed),
    "changed-results": by_strategy(properties.a_result_that_was_changed),
    "words": by_strategy(properties.words_of_anything),
}


def main() -> None:
    name, what = sys.argv[1:]
    FOUND.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, message in enumerate(properties.right(Rig())):
            Path(corpus, f"right-{number}").write_bytes(frame(message))
        how = [f"-max_total_time={what}", corpus] if what.isdigit() else [what]
        options = ["-rss_limit_mb=1000", "-max_len=4096", "-timeout=30", f"-artifact_prefix={FOUND}/"]
        atheris.Setup([sys.argv[0], *options, *how], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
