"""Every error of Grape, one tree, ordered by whose fault it is.

    GrapeError
    ├── UserError            yours: the topology, a handler, the command line
    │   ├── TopologyError    the topology cannot be built as written
    │   ├── Interrupted      stopped before the app was there
    │   ├── UsageError       an option, a file or a directory that does not fit
    │   │   ├── InUse        another process holds the data directory
    │   │   ├── BadArgument  an argument of a call; also a TypeError and a ValueError
    │   │   ├── NoApp        the server has no such app
    │   │   ├── Unauthorized the server wants a token, or does not know this one
    │   │   └── Forbidden    the token is not for that
    │   ├── CallFailed       the answer to a call is an error: what should have answered failed for good
    │   └── HandlerError     raised inside a handler; fails that event alone
    │       ├── UnknownEvent   emit to a name that is neither slot nor output
    │       ├── NoKey          keyed state used in an event without a key
    │       ├── TooLarge       a value, event or result over its limit
    │       ├── BadPayload     a payload that does not fit the handler's annotation
    │       └── EventOver      emit, reply or state used after the handler returned
    ├── Refused              the engine says no for now: full, or a feature that a backend lacks
    │   ├── Full
    │   │   └── Stopping     the engine is about to end: what was handed in was not accepted
    │   ├── Conflict         same id, other content
    │   ├── NoAnswer         nothing is known in time; also a TimeoutError
    │   ├── Away             the server, or the app on it, is not there now: stopped, broken, not back yet
    │   ├── Unreachable      no server answers at that address; also a ConnectionError
    │   └── Unsupported
    └── EngineError          ours, or the machine's: the engine has to stop
        ├── Corrupt          stored bytes fail their checksum or format
        ├── StorageFailed    the disk refused: full, I/O error
        ├── ProtocolError    a worker broke the protocol
        └── Runaway          an app ate the reserve

``code`` is stable and meant for programs; the text is meant for people and says what, where and what to do.
"""

from __future__ import annotations


class GrapeError(Exception):
    """
    Attributes:
        accepted: of an `emit_many` that ends with it: how many events, from the first on, are known to be accepted.
    """

    code = "grape"
    retriable = False
    accepted = 0


class UserError(GrapeError):
    code = "user"


class TopologyError(UserError):
    code = "topology"


class Interrupted(UserError):
    code = "interrupted"


class UsageError(UserError):
    code = "usage"


class InUse(UsageError):
    code = "in-use"


class BadArgument(UsageError, TypeError, ValueError):
    code = "bad-argument"


class NoApp(UsageError):
    code = "no-app"


class Unauthorized(UsageError):
    code = "unauthorized"


class Forbidden(UsageError):
    code = "forbidden"


class CallFailed(UserError):
    """
    Attributes:
        code: that of the failure: "error", "bad-payload", "timeout", ...
        text: what was raised; node: by which node.
    """

    code = "call-failed"

    def __init__(self, code: str, text: str, node: str) -> None:
        super().__init__(f"node {node!r} failed: {text}")
        self.code, self.text, self.node = code, text, node

    def __reduce__(self) -> tuple[type[CallFailed], tuple[str, str, str]]:
        return CallFailed, (self.code, self.text, self.node)


class HandlerError(UserError):
    code = "handler"


class UnknownEvent(HandlerError):
    code = "unknown-event"


class NoKey(HandlerError):
    code = "no-key"


class TooLarge(HandlerError):
    code = "too-large"


class BadPayload(HandlerError):
    code = "bad-payload"


class EventOver(HandlerError):
    code = "event-over"


class Refused(GrapeError):
    code = "refused"
    retriable = True


class Full(Refused):
    code = "full"


class Stopping(Full):
    code = "stopping"


class Conflict(Refused):
    code = "conflict"
    retriable = False


class NoAnswer(Refused, TimeoutError):
    code = "no-answer"


class Away(Refused):
    code = "away"


class Unreachable(Refused, ConnectionError):
    code = "unreachable"


class Unsupported(Refused):
    code = "unsupported"
    retriable = False


class EngineError(GrapeError):
    code = "engine"


class Corrupt(EngineError):
    code = "corrupt"


class StorageFailed(EngineError):
    code = "storage-failed"


class ProtocolError(EngineError):
    code = "protocol"


class Runaway(EngineError):
    code = "runaway"


class Unstoppable(BaseException):
    """Not an error, and nobody's failure: the runtime's own way out of a handler, past everything that takes whatever a
    handler raises for the failure of its event."""
