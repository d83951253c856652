"""The compiled view of a node's callable: what a worker calls, and with which arguments."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from types import CodeType, SimpleNamespace
from typing import Any, Final, Literal

from msgspec import Struct, structs

from grape.authoring.emitter import Context, Node
from grape.authoring.places import place, place_of_code
from grape.authoring.schemas import result_of
from grape.authoring.state import State, check_type, type_name
from grape.errors import HandlerError, TopologyError
from grape.model.event import Event

Kind = Literal["sync", "generator", "async", "async-generator"]

Key = str | Callable[[Any], str | None]
"""``key=`` of a slot: a field of what its handler returns, or a function of it."""
KeyOf = Callable[[Any], str | None]
_MAX_WRAPPERS: Final = 100
_RUNS_A_LOOP: Final = frozenset({"run", "run_until_complete", "run_coroutine_threadsafe", "async_to_sync", "syncify"})
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Handler(Struct, frozen=True):
    """What the worker runs for one node.

    Attributes:
        node: the node's name.
        call: takes exactly ``arguments``, by position.
        kind: what a call gives: a result, a generator, a coroutine, an asynchronous generator.
        arguments: each is "payload", "event", "context" or "state:NAME". In a batch slot "payload" is a list of
            payloads and "event" a list of events.
        payload_type: what a payload is decoded to; Any: to builtins. In a batch slot that of one element.
        states: by name, in order of declaration.
        instance: the node; None for a function.
        where: "file:line" of the code.
        is_batch: the handler gets lists.
        result_type: what one result is, as far as it is said; Any: anything.
        keys: event -> what gives its results their keys; without one they have that of their event.
    """

    node: str
    call: Callable[..., Any]
    kind: Kind
    arguments: tuple[str, ...]
    payload_type: Any
    states: dict[str, State[Any]]
    instance: Node | None
    where: str
    is_batch: bool = False
    keys: dict[str, KeyOf] = {}
    result_type: Any = Any

    @property
    def is_async(self) -> bool:
        return self.kind in ("async", "async-generator")


def compile_handler(
    name: str,
    target: Node | Callable[..., Any],
    *,
    batch: int = 1,
    scope: Mapping[str, Any] | None = None,
    keys: dict[str, KeyOf] | None = None,
) -> Handler:
    """Compile the callable of the node ``name``.

    Args:
        name: the node's name.
        target: a node or a function.
        batch: above 1, the handler gets lists.
        keys: see `Handler`.
        scope: names that annotations may use beside the module's: the locals of the function that declares the slot.

    Raises:
        TopologyError: the callable cannot be a handler; the text names its file and line.
    """
    if isinstance(target, Node):
        handler = _compile_node(name, target, batch)
    else:
        handler = _compile_function(name, target, batch, scope or {})
    if batch > 1:
        _check_batch(handler)
    return structs.replace(handler, keys=keys) if keys else handler


def key_of(key: Key, node: str) -> KeyOf:
    """What gives a result of ``node`` its key; ``key``: a field of it, or a function of it."""
    if not isinstance(key, str):
        return key
    field = key

    def of(value: Any) -> str | None:
        try:
            found: str | None = value[field] if isinstance(value, Mapping) else getattr(value, field)
        except (KeyError, AttributeError):
            raise HandlerError(
                f"key={field!r} of {node!r}: the {type(value).__name__} that it returned has no such field"
            ) from None
        if found is not None and not isinstance(found, str):
            raise HandlerError(
                f"key={field!r} of {node!r}: a key is text, not {type(found).__name__}: {found!r:.60}; "
                f"key=lambda result: str(...) makes one"
            )
        return found

    return of


def function_of(target: Callable[..., Any]) -> Any:
    """The function whose code a call of ``target`` runs in the end: behind partials, wrappers and ``__call__``."""
    for _ in range(_MAX_WRAPPERS):
        if isinstance(target, functools.partial):
            target = target.func
        elif inspect.ismethod(target):
            target = target.__func__
        elif hasattr(target, "__wrapped__"):
            target = target.__wrapped__
        elif inspect.isroutine(target) or isinstance(target, type):
            break
        else:
            target = type(target).__call__
    return target


def where_of(target: Node | Callable[..., Any]) -> str:
    """ "file:line" of the code of a node or a function; without code (builtins) its name."""
    function = function_of(type(target).process if isinstance(target, Node) else target)
    code = getattr(function, "__code__", None)
    return place_of_code(code) if isinstance(code, CodeType) else repr(target)


def _compile_node(name: str, node: Node, batch: int) -> Handler:
    owner = type(node)
    if owner.process is Node.process:
        raise TopologyError(f"{_place_of_class(owner)}: node {name!r} has no method process(self, event)")
    where = where_of(node)
    try:
        inspect.signature(node.process).bind(None)
    except TypeError as e:
        raise TopologyError(f"{where}: {owner.__qualname__}.process takes self and one event: {e}") from None
    return Handler(
        name, node.process, _kind(node.process), ("event",), Any, _node_states(node, where), node, where, batch > 1
    )


def _node_states(node: Node, where: str) -> dict[str, State[Any]]:
    """The states of the class of ``node``, those of base classes first."""
    states: dict[str, State[Any]] = {}
    for owner in reversed(type(node).__mro__):
        for attribute, value in vars(owner).items():
            if isinstance(value, State):
                states[attribute] = value
            else:
                states.pop(attribute, None)
    for attribute, state in states.items():
        if attribute != state.name:
            raise TopologyError(
                f"{where}: {attribute} and {state.name} are one State object; give each a State(...) of its own"
            )
        if hasattr(Node, attribute):
            raise TopologyError(
                f"{where}: a State cannot be called {attribute!r}, nodes have an attribute of that name"
            )
    for attribute, value in vars(node).items():
        if isinstance(value, State):
            raise TopologyError(
                f"{where}: {type(node).__qualname__}.{attribute} = State(...) stands in the class, not in a method"
            )
    return states


def _compile_function(name: str, function: Callable[..., Any], batch: int, scope: Mapping[str, Any]) -> Handler:
    where = where_of(function)
    arguments: list[str] = []
    by_name: list[str] = []  # parameters that a call can reach by name only
    payload_type: Any = Any
    states: dict[str, State[Any]] = {}
    skipped = False
    for number, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.kind in _VARIADIC:
            skipped = True
            continue
        annotation = _annotation(function, parameter, scope, where)
        argument = _special(annotation, parameter, states, batch, where)
        may_be_payload = parameter.kind in _POSITIONAL and (number == 0 or parameter.default is parameter.empty)
        if argument is None and may_be_payload and "payload" not in arguments:
            argument, payload_type = "payload", _payload_type(annotation, parameter, batch, where)
        if argument is None:
            if parameter.default is parameter.empty:
                raise TopologyError(
                    f"{where}: {_title(function)}: nothing to pass as {parameter.name!r}. A function gets the payload "
                    f"as its first argument, and what it annotates as Event, Context or State[...]; anything else "
                    f"needs a default"
                )
            skipped = True
            continue
        arguments.append(argument)
        if skipped or parameter.kind is parameter.KEYWORD_ONLY:
            by_name.append(parameter.name)
    if skipped and not arguments:
        raise TopologyError(f"{where}: {_title(function)} names no argument for the payload: def f(payload): ...")
    call = _pass_by_name(function, tuple(by_name)) if by_name else function
    kind = _kind(function)
    return Handler(
        name,
        call,
        kind,
        tuple(arguments),
        payload_type,
        states,
        None,
        where,
        batch > 1,
        result_type=result_of(function_of(function), kind, batch > 1, dict(scope)),
    )


def _special(
    annotation: Any, parameter: inspect.Parameter, states: dict[str, State[Any]], batch: int, where: str
) -> str | None:
    """What to pass for an annotation that asks for something else than the payload. Enters a state into ``states``."""
    if annotation is Event or (batch > 1 and annotation == list[Event]):
        if batch > 1 and annotation is Event:
            raise TopologyError(f"{where}: with batch={batch}, {parameter.name!r} gets events in a list: list[Event]")
        return "event"
    if annotation is Context:
        return "context"
    if isinstance(parameter.default, State):
        parameter.default.__set_name__(type(None), parameter.name)
        states[parameter.name] = parameter.default
        return f"state:{parameter.name}"
    if annotation is State or typing.get_origin(annotation) is State:
        inner = next(map(type_name, typing.get_args(annotation)), "int")
        raise TopologyError(
            f"{where}: the state {parameter.name!r} needs its declaration as default value: "
            f"{parameter.name}: State[{inner}] = State({inner})"
        )
    return None


def _payload_type(annotation: Any, parameter: inspect.Parameter, batch: int, where: str) -> Any:
    what = f"{where}: the payload {parameter.name!r}"
    if annotation is parameter.empty or annotation is Any or annotation is object:
        return Any
    if batch > 1:
        if annotation is list:
            return Any
        if typing.get_origin(annotation) is not list:
            raise TopologyError(f"{what} of a slot with batch={batch} is a list; annotate it as list[...]")
        (annotation,) = typing.get_args(annotation)
    check_type(annotation, what)
    return annotation


def _annotation(
    function: Callable[..., Any], parameter: inspect.Parameter, scope: Mapping[str, Any], where: str
) -> Any:
    """The annotation of ``parameter``, evaluated if it is text."""
    if parameter.annotation is parameter.empty:
        return parameter.annotation
    one = SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    defined_in = getattr(function_of(function), "__globals__", {})
    try:
        hints = typing.get_type_hints(one, globalns=defined_in, localns=dict(scope), include_extras=True)
    except Exception as e:  # whatever evaluating the user's text raises
        raise TopologyError(
            f"{where}: {_title(function)}: the annotation of {parameter.name!r}, {parameter.annotation!r}, cannot be "
            f"evaluated ({e}). Import its names at run time (not under TYPE_CHECKING) and define them at module level"
        ) from None
    return hints[parameter.name]


def _check_batch(handler: Handler) -> None:
    if handler.states:
        raise TopologyError(
            f"{handler.where}: node {handler.node!r} has State, which batch= cannot have: a batch has many keys. "
            f"Emit the results to a slot that keeps the state"
        )
    if handler.kind in ("generator", "async-generator"):
        raise TopologyError(
            f"{handler.where}: with batch=, node {handler.node!r} returns a list, one result per event; it cannot yield"
        )
    if "context" in handler.arguments:
        raise TopologyError(
            f"{handler.where}: with batch=, node {handler.node!r} returns its results in a list; no Context there, "
            f"since an emit would not know its event"
        )


def _kind(target: Callable[..., Any]) -> Kind:
    """What a call gives. A wrapper that gives what the function inside gives (`functools.wraps`) is of its kind."""
    while True:
        while isinstance(target, functools.partial):
            target = target.func
        if not inspect.isroutine(target) and not hasattr(target, "__wrapped__"):
            target = type(target).__call__
        kind = _own_kind(target)
        inner = getattr(target, "__wrapped__", None)
        if kind != "sync" or inner is None or _waits_itself(target):
            return kind
        target = inner


def _own_kind(function: Callable[..., Any]) -> Kind:
    if inspect.iscoroutinefunction(function):
        return "async"
    if inspect.isasyncgenfunction(function):
        return "async-generator"
    return "generator" if inspect.isgeneratorfunction(function) else "sync"


def _waits_itself(wrapper: Callable[..., Any]) -> bool:
    """It runs a loop for the coroutine that it wraps (``asyncio.run``), so that what it gives is a result."""
    code = getattr(wrapper, "__code__", None)
    return isinstance(code, CodeType) and not _RUNS_A_LOOP.isdisjoint(code.co_names)


def _pass_by_name(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """``function`` with its parameters ``names``, the last ones, passed by position."""

    def call(*arguments: Any) -> Any:
        split = len(arguments) - len(names)
        return function(*arguments[:split], **dict(zip(names, arguments[split:], strict=True)))

    return call


def _title(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__name__', repr(function))}()"


def _place_of_class(owner: type) -> str:
    try:
        return place(inspect.getfile(owner), inspect.getsourcelines(owner)[1])
    except (OSError, TypeError):
        return owner.__module__
