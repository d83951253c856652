"""Types that msgspec does not know: models of pydantic, what was registered, arrays of numpy."""

from __future__ import annotations

import enum
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

import grape
import grape.types.numpy
from grape import BadPayload, Context, Event, Node, State, Topology, TopologyError
from grape.model import own
from grape.model.values import BadValue, Payload, Raw, Unfit, decode, to_value
from grape.testing import Harness
from grape.types.numpy import MAX_ARRAY

BIG = 8 << 20


def there_and_back(value: Any, kind: Any) -> Any:
    """As an emit and a typed slot do it."""
    packed = to_value(value, BIG)
    (found,) = Payload(kind).items([packed])
    if isinstance(found, Unfit):
        raise found.error
    return found


def wire(value: Any) -> Any:
    packed = to_value(value, BIG)
    return decode(packed) if type(packed) is Raw else packed


@pytest.fixture(autouse=True)
def _registry() -> Iterator[None]:
    before = dict(own.registered)
    yield
    own.registered.clear()
    own.registered.update(before)


# ------------------------------------------------------------------ pydantic


class Line(BaseModel):
    price: Decimal
    count: int = 1


class Order(BaseModel):
    id: uuid.UUID
    at: datetime
    lines: list[Line] = []
    tags: set[str] = set()
    days: timedelta = timedelta()


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


@pydantic.dataclasses.dataclass
class Positive:
    number: int = Field(gt=0)


ORDER = Order(id=uuid.UUID(int=7), at=datetime(2026, 1, 2, tzinfo=UTC), lines=[Line(price=Decimal("1.10"))], tags={"a"})


class TestPydantic:
    def test_an_instance_is_written_as_its_model_says_and_read_again(self) -> None:
        assert wire(ORDER)["lines"] == [{"price": "1.10", "count": 1}]
        assert there_and_back(ORDER, Order) == ORDER
        assert there_and_back([ORDER, ORDER], list[Order]) == [ORDER, ORDER]
        assert there_and_back({"a": ORDER}, dict[str, Order | None]) == {"a": ORDER}

    def test_inside_a_struct(self) -> None:
        class Outer(msgspec.Struct):
            order: Order
            rest: list[Order] = []

        assert there_and_back(Outer(ORDER, [ORDER]), Outer) == Outer(ORDER, [ORDER])

    def test_unions_are_told_apart_by_the_rules_of_pydantic(self) -> None:
        pet = Annotated[Cat | Dog, Field(discriminator="kind")]
        assert there_and_back(Dog(name="rex"), pet) == Dog(name="rex")
        assert there_and_back(Cat(lives=9), list[Cat | Dog] | Cat) == Cat(lives=9)
        with pytest.raises(BadPayload, match="kind"):
            there_and_back({"kind": "cow"}, pet)

    def test_strict_models_read_dates_as_json_has_them(self) -> None:
        class Strict(BaseModel):
            model_config = ConfigDict(strict=True)
            day: date
            size: tuple[int, int]

        value = Strict(day=date(2026, 1, 2), size=(1, 2))
        assert there_and_back(value, Strict) == value
        with pytest.raises(BadPayload, match=r"size\.0"):
            there_and_back({"day": "2026-01-02", "size": ["1", 2]}, Strict)

    def test_aliases_computed_fields_and_json_fields_come_back(self) -> None:
        class Odd(BaseModel):
            model_config = ConfigDict(extra="forbid")
            size: int = Field(alias="theSize")
            inner: pydantic.Json[list[int]]

            @pydantic.computed_field  # type: ignore[prop-decorator]
            @property
            def double(self) -> int:
                return self.size * 2

        value = Odd(theSize=3, inner="[1]")  # type: ignore[arg-type]
        assert wire(value) == {"theSize": 3, "inner": "[1]"}
        assert there_and_back(value, Odd) == value

        class ByName(BaseModel):
            model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)
            size: int = Field(alias="theSize")

        assert wire(ByName(size=3)) == {"size": 3}
        assert there_and_back(ByName(size=3), ByName) == ByName(size=3)

    def test_bytes(self) -> None:
        class Photo(BaseModel):
            data: bytes

        assert there_and_back({"data": b"\xff\0"}, Photo).data == b"\xff\0"
        assert there_and_back(Photo(data=b"text"), Photo).data == b"text"
        with pytest.raises(BadValue, match="ser_json_bytes"):
            to_value(Photo(data=b"\xff"), BIG)

        class Base64(BaseModel):
            model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
            data: bytes

        assert there_and_back(Base64(data=b"\xff\0"), Base64).data == b"\xff\0"

    def test_what_json_cannot_hold_is_validated_as_python(self) -> None:
        class Free(BaseModel):
            number: float
            names: dict[int, str] = {}

        assert str(there_and_back({"number": float("nan"), "names": {1: "a"}}, Free).number) == "nan"

    def test_dataclasses_of_pydantic_are_validated(self) -> None:
        assert there_and_back(Positive(3), Positive) == Positive(3)
        with pytest.raises(BadPayload, match=r"number: Input should be greater than 0, got -1"):
            there_and_back({"number": -1}, Positive)

        class Holds(msgspec.Struct):
            one: Positive

        with pytest.raises(TopologyError, match="make it a BaseModel"):
            State(Holds)

    def test_an_error_names_field_and_value(self) -> None:
        broken = {"id": str(ORDER.id), "at": "then", "lines": [{"price": "1"}, {"price": "dear", "count": 1.5}]}
        with pytest.raises(BadPayload) as caught:
            there_and_back(broken, Order)
        text = str(caught.value)
        assert text.startswith("the payload does not fit Order: at: ")
        assert "lines.1.price: " in text
        assert "got 'dear'" in text
        assert "\n" not in text
        with pytest.raises(BadPayload, match=r"id: Field required; at: Field required$"):
            there_and_back({}, Order)

    def test_errors_are_bounded(self) -> None:
        with pytest.raises(BadPayload, match=r"and 95 more$") as caught:
            there_and_back(["x" * 1000] * 100, list[Cat])
        assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("raised", [KeyError("k"), ZeroDivisionError(), SystemExit(3), RecursionError()])
    def test_whatever_a_validator_raises_is_a_payload_that_does_not_fit(self, raised: BaseException) -> None:
        class Wild(BaseModel):
            x: int

            @pydantic.field_validator("x")
            @classmethod
            def check(cls, _: int) -> int:
                raise raised

        with pytest.raises(BadPayload, match=type(raised).__name__):
            there_and_back({"x": 1}, Wild)

    def test_a_good_one_beside_a_bad_one_in_a_column(self) -> None:
        packed = msgspec.msgpack.encode([{"lives": 9}, {"lives": "many"}, {"lives": 1}])
        first, second, third = Payload(Cat).column(packed)
        assert (first, third) == (Cat(lives=9), Cat(lives=1))
        assert isinstance(second, Unfit)

    def test_each_event_gets_an_instance_of_its_own_for_nil(self) -> None:
        class Anything(pydantic.RootModel[list[int] | None]):
            @pydantic.field_validator("root", mode="before")
            @classmethod
            def some(cls, value: Any) -> Any:
                return value or [1]

        column = Payload(Anything).nils(3)
        assert column is not None
        column[0].root.append(2)
        assert column[1].root == [1]

    def test_a_model_that_is_not_complete_is_refused_where_it_is_declared(self) -> None:
        class Later(BaseModel):
            x: NotThere  # type: ignore[name-defined]  # noqa: F821

        t = Topology("later")

        @t.slot("x")
        def f(x: Later) -> None: ...

        with pytest.raises(TopologyError, match=r"test_own_types\.py"):
            t.spec()

    def test_pydantic_is_not_imported_by_grape(self) -> None:
        code = (
            "import sys, grape\nfrom grape import *\nt = Topology('x')\n"
            "@t.slot('x')\ndef f(x: dict) -> None: ...\n"
            "print('pydantic' in sys.modules, 'numpy' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "False False\n"


# ------------------------------------------------------------------ what msgspec knows


class Color(enum.Enum):
    RED = "red"


@attrs.define
class Point:
    x: int
    when: date


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Decimal("1.10"), Decimal),
        ({"a": Decimal("NaN").copy_abs()}, dict[str, str]),
        (uuid.UUID(int=3), uuid.UUID),
        (datetime(2026, 1, 2, 3, 4, 5, 6), datetime),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime),
        (date(2026, 1, 2), date),
        (timedelta(seconds=1.5), timedelta),
        (Color.RED, Color),
        ({1, 2}, set[int]),
        (frozenset({"a"}), frozenset[str]),
        ((1, "a"), tuple[int, str]),
        (Point(1, date(2026, 1, 2)), Point),
    ],
)
def test_what_travels_without_being_registered(value: Any, kind: Any) -> None:
    found = there_and_back(value, kind)
    assert found == value or found == {"a": "NaN"}
    if isinstance(kind, type) and kind not in (set, frozenset):
        with pytest.raises(TopologyError, match="travels already"):
            grape.register(kind, encode=str, decode=kind)


# ------------------------------------------------------------------ the registry


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.cents == self.cents  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]


class Euro(Money):
    pass


def of_cents(cents: int) -> Money:
    return Money(cents)


def cents(money: Money) -> int:
    return money.cents

    @pytest.mark.parametrize(
        ("wrong", "end"), [(4, "got 'x'"), (5, "got 'x'"), (6, "; and 1 more"), (8, "; and 3 more")]
    )
    def test_the_first_five_errors_are_said_and_how_many_more_there_are(self, wrong: int, end: str) -> None:
        with pytest.raises(BadPayload) as raised:
            own.convert(["x"] * wrong, list[Numbered])
        assert str(raised.value).endswith(end)
        assert str(raised.value).count("got 'x'") == min(wrong, 5)

    def test_an_error_without_words_is_said_by_its_name(self) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        class Picky(BaseModel):
            n: int

            @pydantic.field_validator("n")
            @classmethod
            def check(cls, value: int) -> int:
                raise Mute

        with pytest.raises(BadPayload, match=r"a validator raised Mute$"):
            own.convert({"n": 1}, Picky)

    def test_ctrl_c_in_a_validator_is_ctrl_c(self) -> None:
        class Slow(BaseModel):
            n: int

            @pydantic.field_validator("n")
            @classmethod
            def check(cls, value: int) -> int:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            own.convert({"n": 1}, Slow)


class Numbered(BaseModel):
    n: int


class TestRegister:
    def test_it_travels_wherever_a_value_does(self) -> None:
        grape.register(Money, encode=cents, decode=of_cents)
        assert wire({"a": [Money(5)]}) == {"a": [5]}
        assert there_and_back({"a": [Money(5)]}, dict[str, list[Money]]) == {"a": [Money(5)]}
        assert grape.convert(5, Money) == Money(5)
        assert there_and_back(None, Money | None) is None

    def test_an_encoder_may_return_what_itself_is_registered(self) -> None:
        grape.register(Money, encode=cents, decode=of_cents)
        grape.register(complex, encode=lambda c: [Money(int(c.real)), c.imag], decode=lambda v: complex(v[0], v[1]))
        assert there_and_back(3 + 4j, complex) == 3 + 4j

    def test_unregistered_types_are_refused_with_the_remedy(self) -> None:
        with pytest.raises(BadValue, match=r"Money is unsupported; .*grape\.register\(Money"):
            to_value([Money(1)], BIG)
        t = Topology("x")

        @t.slot("x")
        def f(x: list[Money]) -> None: ...

        with pytest.raises(TopologyError, match=r"grape\.register\(Money"):
            t.spec()

    def test_it_holds_for_subclasses_unless_they_have_their_own(self) -> None:
        grape.register(Money, encode=cents, decode=of_cents)
        assert there_and_back(Euro(3), Money) == Money(3)
        with pytest.raises(BadPayload, match="returned a Money, no Euro"):
            there_and_back(Euro(3), Euro)
        grape.register(Euro, encode=lambda e: {"euro": e.cents}, decode=lambda v: Euro(v["euro"]))
        assert wire([Euro(3), Money(3)]) == [{"euro": 3}, 3]
        assert there_and_back(Euro(3), Euro) == Euro(3)

    def test_the_same_line_may_run_twice_and_another_one_may_not(self) -> None:
        for _ in range(2):
            grape.register(Money, encode=cents, decode=of_cents)
        with pytest.raises(TopologyError, match=r"was registered at .*test_own_types\.py:\d+"):
            grape.register(Money, encode=cents, decode=of_cents)

    @pytest.mark.parametrize("kind", [5, "Money", object, list[Money], None, Any, Order, Positive, dict, int, Color])
    def test_what_cannot_be_registered(self, kind: Any) -> None:
        with pytest.raises(TopologyError, match=r"test_own_types\.py:\d+: "):
            grape.register(kind, encode=str, decode=str)

    def test_subclasses_of_collections_travel_as_these(self) -> None:
        class Basket(dict[str, int]): ...

        with pytest.raises(TopologyError, match="travels already"):
            grape.register(Basket, encode=dict, decode=Basket)

    @pytest.mark.parametrize("arguments", [{"encode": 5, "decode": str}, {"encode": str, "decode": None}])
    def test_its_functions_are_functions(self, arguments: Any) -> None:
        with pytest.raises(TopologyError, match="is a function"):
            grape.register(Money, **arguments)

    @pytest.mark.parametrize(
        ("encode", "text"),
        [
            (lambda m: None, "returned None"),
            (lambda m: m, "returned a Money"),
            (lambda m: [m], "cannot travel"),
            (lambda m: (i for i in [1]), "generator is unsupported"),
            (lambda m: {}["x"], "encode= of Money .* raised KeyError: 'x'"),
            (lambda m: sys.exit(3), "raised SystemExit: 3"),
            (lambda m: "\ud800", "cannot travel"),
            (lambda m: 2**70, "cannot travel"),
        ],
    )
    def test_an_encoder_that_cannot(self, encode: Callable[[Any], Any], text: str) -> None:
        grape.register(Money, encode=encode, decode=of_cents)
        with pytest.raises(BadValue, match=text):
            to_value(Money(1), BIG)
        with pytest.raises(TypeError):
            Context().emit("x", Money(1))

    @pytest.mark.parametrize("raised", [KeyError("x"), SystemExit(1), ValueError("a\ud800"), RecursionError()])
    def test_a_decoder_that_cannot(self, raised: BaseException) -> None:
        def fail(_: Any) -> Money:
            raise raised

        grape.register(Money, encode=cents, decode=fail)
        with pytest.raises(BadPayload, match=f"decode= of Money .* raised {type(raised).__name__}"):
            there_and_back(Money(1), Money)
        with pytest.raises(BadPayload):
            grape.convert([1], list[Money])

    def test_state_of_it_is_kept_and_compared_by_its_encoding(self) -> None:
        grape.register(Money, encode=cents, decode=of_cents)

        class Purse(Node):
            total = State(Money, default=Money(0))
            orders = State(list[Order])

            def process(self, event: Event) -> None:
                self.total.cents += grape.convert(event.data, Money).cents
                self.orders.append(ORDER)
                self.reply(self.total)

        t = Topology("purse")
        t.add_slot("pay", Purse())
        with Harness(t) as run:
            for n in range(3):
                run.feed("pay", Money(n), key="ann")
            run.restart()
            run.feed("pay", Money(10), key="ann")
            run.settle()
            assert run.dead() == []
            assert run.state("Purse", "ann") == {"total": Money(13), "orders": [ORDER] * 4}

    def test_the_answer_to_a_call_in_a_handler(self) -> None:
        grape.register(Money, encode=cents, decode=of_cents)

        class Asks(Node):
            def process(self, event: Event) -> None:
                money = self.call("double", Money(event.data), type=Money)
                assert isinstance(money, Money)
                self.emit("out", [money, self.call("double", Money(1), type=list[Cat])])

        class Doubles(Node):
            def process(self, event: Event) -> None:
                self.reply(Money(2 * event.data))

        t = Topology("calls")
        t.add_slot("ask", Asks(), retries=0)
        t.add_slot("double", Doubles())
        t.add_output("out")
        with Harness(t) as run:
            run.feed("ask", 4, key="a")
            run.settle()
            (letter,) = run.dead()
            assert letter.text.startswith("BadPayload: the answer to 'double' does not fit list[")

    @given(st.recursive(st.integers(-(2**63), 2**63 - 1).map(Money), lambda v: st.lists(v) | st.tuples(v).map(list)))
    def test_any_nesting(self, value: Any) -> None:
        own.registered.pop(Money, None)
        grape.register(Money, encode=cents, decode=of_cents)

        def plain(v: Any) -> Any:
            return v.cents if isinstance(v, Money) else [plain(one) for one in v]

        assert wire(value) == plain(value)

    def test_convert_says_what_does_not_fit(self) -> None:
        with pytest.raises(BadPayload, match="does not fit int"):
            grape.convert("x", int)
        with pytest.raises(BadPayload, match="Expected `array`, got `int`"):
            grape.convert(5, list[int])
        with pytest.raises(BadPayload, match="does not fit"):
            grape.convert(5, list[Cat])
        with pytest.raises(BadPayload, match=r"register it with grape\.register"):
            grape.convert(5, Money)
        with pytest.raises(TypeError, match="unions"):
            grape.convert(5, Money | complex)


# ------------------------------------------------------------------ numpy

DTYPES = ["<f8", ">f4", "|b1", "<i2", ">u8", "<c16", "<U3", "|S2", "<M8[ms]", "<m8[D]", "<f2"]


class TestNumpy:
    @given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4), st.sampled_from("CF"), st.binary())
    def test_arrays_come_back(self, dtype: str, shape: list[int], order: Any, seed: bytes) -> None:
        size = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
        data = (seed or b"\0").ljust(1) * (size + 1)
        if dtype.startswith("<U"):
            data = b"\0" * size
        elif dtype == "|b1":
            data = bytes(b & 1 for b in data)
        array = np.frombuffer(data[:size], dtype).reshape(shape).copy(order=order)
        back = there_and_back({"a": array}, dict[str, np.ndarray])["a"]
        assert (back.dtype.str, back.shape) == (array.dtype.str, array.shape)
        assert back.tobytes() == array.tobytes()
        assert back.flags.writeable

    def test_views(self) -> None:
        array = np.arange(24).reshape(2, 3, 4)[:, ::-1, ::2].T
        assert (there_and_back(array, np.ndarray) == array).all()

    def test_the_form(self) -> None:
        assert wire(np.array([[1, 2]], "<i2")) == {"dtype": "<i2", "shape": [1, 2], "data": b"\1\0\2\0"}

    @pytest.mark.parametrize(
        "array",
        [
            np.array([object()]),
            np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
            np.ma.masked_array([1, 2], [True, False]),
            np.array([b"x"], "V1"),
        ],
    )
    def test_what_cannot_travel(self, array: Any) -> None:
        with pytest.raises(BadValue, match="cannot travel"):
            to_value(array, BIG)

    def test_an_array_over_max_event(self) -> None:
        with pytest.raises(grape.TooLarge):
            to_value(np.zeros(1000), 100)

    @given(
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from([*DTYPES, "O", "|O8", "V8", "i4,i4", "float64", "", "<f999", "M8[x]", 5, None])
                | st.text(max_size=5),
                "shape": st.lists(st.integers(-2, 2**70) | st.none() | st.booleans(), max_size=4)
                | st.just([0] * 40)
                | st.just([2**62, 0])
                | st.integers(),
                "data": st.binary(max_size=20) | st.text(),
            }
        )
        | st.integers()
        | st.dictionaries(st.text(), st.integers())
    )
    def test_forged_arrays_are_refused(self, value: Any) -> None:
        try:
            made = grape.convert(value, np.ndarray)
        except BadPayload:
            return
        assert made.nbytes == len(value["data"])

    def test_the_dtype_that_is_asked_for(self) -> None:
        assert there_and_back(np.zeros(2), NDArray[np.float64]).dtype == np.float64
        with pytest.raises(BadPayload, match="an array of int64 where one of float64"):
            there_and_back(np.zeros(2, np.int64), NDArray[np.float64])
        assert there_and_back([np.zeros(2, np.int8)], list[NDArray[np.integer]])[0].dtype == np.int8

    @pytest.mark.parametrize(
        ("scalar", "plain"),
        [
            (np.float64(1.5), 1.5),
            (np.float32(0.5), 0.5),
            (np.int8(-3), -3),
            (np.uint64(2**63 - 1), 2**63 - 1),
            (np.bool_(True), True),
            (np.str_("é"), "é"),
            (np.bytes_(b"x"), b"x"),
            (np.datetime64("2026-01-02T03:04"), "2026-01-02T03:04"),
        ],
    )
    def test_scalars(self, scalar: Any, plain: Any) -> None:
        assert wire([scalar]) == [plain]
        assert type(wire([scalar])[0]) is type(plain)
        back = there_and_back(scalar, type(scalar))
        assert back == scalar
        assert type(back) is type(scalar)
        assert there_and_back({"n": scalar}, dict[str, type(plain)]) == {"n": plain}

    @pytest.mark.parametrize("scalar", [np.complex128(1j), np.longdouble(1), np.timedelta64(1, "D")])
    def test_scalars_that_cannot_travel(self, scalar: Any) -> None:
        with pytest.raises(BadValue, match="cannot travel"):
            to_value(scalar, BIG)

    @pytest.mark.parametrize(
        ("value", "kind"),
        [(300, np.int8), (-1, np.uint8), (True, np.int8), ("x", np.float64), (1, np.bool_), (None, np.str_)],
    )
    def test_scalars_that_do_not_fit(self, value: Any, kind: Any) -> None:
        with pytest.raises(BadPayload):
            grape.convert(value, kind)

    def test_it_is_registered_once(self) -> None:
        with pytest.raises(TopologyError, match=r"registered at grape\.types\.numpy"):
            grape.register(np.ndarray, encode=list, decode=np.array)


def test_an_array_is_measured_before_it_is_copied() -> None:
    assert MAX_ARRAY == 64 << 20
    with pytest.raises(BadValue, match="is over"):
        to_value(np.broadcast_to(np.float64(1), (10**6, 10**6)), BIG)


# ------------------------------------------------------------------ with real processes

APP = """
from decimal import Decimal
from fractions import Fraction

import numpy as np
from pydantic import BaseModel

import grape
import grape.types.numpy
from grape import Context, Event, Node, State, Topology

grape.register(Fraction, encode=str, decode=Fraction)

class Line(BaseModel):
    price: Decimal
    count: int = 1

class Order(BaseModel):
    id: str
    lines: list[Line]

t = Topology("own")
t.add_output("sum")
t.add_output("share")
t.add_output("mean")

@t.slot("order", emits="priced", retries=0)
def price(order: Order) -> Order:
    return order.model_copy(update={"lines": [*order.lines, Line(price=Decimal("0.01"))]})

@t.slot("priced", emits="sum", key="id", pool="far")
def total(order: Order, orders: State[list[Order]] = State(list[Order])) -> dict:
    orders.value.append(order)
    return {"id": order.id, "sum": sum(l.price * l.count for l in order.lines), "orders": len(orders.value)}

class Share(Node):
    left = State(Fraction, default=Fraction(1))

    def process(self, event: Event) -> None:
        self.left -= grape.convert(event.data, Fraction)
        self.emit("share", {"left": [self.left]})

t.add_slot("take", Share())

@t.slot("image", emits="mean")
def mean(image: np.ndarray) -> list:
    return [image.mean(), image[0]]
"""


def test_in_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    grape.register(Fraction, encode=str, decode=Fraction)
    with grape.open("own.py:t", workers=1, data=tmp_path / "d") as engine:
        for number in range(2):
            engine.emit("order", {"id": f"o{number}", "lines": [{"price": "1.10", "count": 2}]}, key="ann")
        engine.emit("order", {"id": "bad", "lines": [{"price": "dear"}]}, key="bob")
        engine.emit("take", Fraction(1, 3), key="cake")
        engine.emit("take", "1/2", key="cake")
        engine.emit("image", np.arange(6.0).reshape(2, 3))
        sums = [event.data for _, event in zip(range(2), engine.outputs("sum", timeout=20), strict=False)]
        shares = [event.data for _, event in zip(range(2), engine.outputs("share", timeout=20), strict=False)]
        means = next(iter(engine.outputs("mean", timeout=20))).data
    assert sums == [{"id": f"o{n}", "sum": "2.21", "orders": n + 1} for n in range(2)]
    assert shares == [{"left": ["2/3"]}, {"left": ["1/6"]}]
    assert means[0] == 2.5
    assert grape.convert(means[1], np.ndarray).tolist() == [0, 1, 2]
    listed = subprocess.run(
        [sys.executable, "-m", "grape", "dead", "list", "--data", "d"], capture_output=True, text=True, check=False
    )
    assert "lines.0.price: Input should be a valid decimal, got 'dear'" in listed.stdout
    assert '"kind":"bad-payload"' in listed.stdout
