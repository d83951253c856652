"""What drives apps, as far as it only decides: moments, what is made up for, files, signatures."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from datetime import datetime
from itertools import islice
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grape.drivers.cron import Cron, Every, text_of
from grape.drivers.moments import BACK, MOST, CatchUp, Moments
from grape.drivers.signing import BadSignature, at_path, check_plain, check_stripe
from grape.drivers.spec import CronDriver, HookDriver, TimerDriver, read_driver
from grape.drivers.watching import MOST as MOST_FILES
from grape.drivers.watching import Watching

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000


def at(text: str, zone: str = "UTC") -> int:
    """Milliseconds of a local time; what follows an "@" is its fold."""
    text, _, fold = text.partition("@")
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=int(fold or 0)).timestamp()) * 1000


def after(schedule: str, zone: str, start: str, count: int) -> list[str]:
    cron, found = Cron(schedule, zone), []
    moment: int | None = at(start, zone)
    for _ in range(count):
        moment = cron.after(moment or 0, 0)
        found.append(text_of(moment or 0, cron.zone))
    return found


# ---------------------------------------------------------------------- cron


@pytest.mark.parametrize(
    ("schedule", "zone", "start", "found"),
    [
        ("0 6 * * *", "Europe/Berlin", "2026-01-01T00:00", ["2026-01-01T06:00:00+01:00", "2026-01-02T06:00:00+01:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00", ["2028-02-29T00:00:00+00:00", "2032-02-29T00:00:00+00:00"]),
        ("0 0 L * *", "UTC", "2027-02-01T00:00", ["2027-02-28T00:00:00+00:00", "2027-03-31T00:00:00+00:00"]),
        ("@monthly", "UTC", "2026-12-02T00:00", ["2027-01-01T00:00:00+00:00", "2027-02-01T00:00:00+00:00"]),
        ("*/20 * * * * *", "UTC", "2026-01-01T00:00", ["2026-01-01T00:00:20+00:00", "2026-01-01T00:00:40+00:00"]),
        # an hour that there is not: at the end of the gap, once
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T03:00",
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"],
        ),
        # an hour that there is twice: in the first
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T03:00",
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"],
        ),
        # by time as it passes: in both, and nothing in the gap
        (
            "30 * * * *",
            "Europe/Berlin",
            "2026-10-25T01:00",
            ["2026-10-25T01:30:00+02:00", "2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"],
        ),
        (
            "30 * * * *",
            "America/New_York",
            "2026-03-08T01:00",
            ["2026-03-08T01:30:00-05:00", "2026-03-08T03:30:00-04:00"],
        ),
    ],
)
def test_the_moments_of_a_calendar(schedule: str, zone: str, start: str, found: list[str]) -> None:
    """F32: hours that there are twice, and none."""
    assert after(schedule, zone, start, len(found)) == found


def test_from_within_the_second_of_two_hours_the_first_does_not_come_again() -> None:
    cron = Cron("45 2 * * *", "Europe/Berlin")
    assert text_of(cron.after(at("2026-10-25T02:15@1", "Europe/Berlin"), 0) or 0, cron.zone) == (
        "2026-10-26T02:45:00+01:00"
    )


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Asia/Kolkata", "Pacific/Apia", "Africa/Cairo"]
FIELDS = (
    st.sampled_from(["*", "0", "30", "*/15", "10-20", "59", "0,45"]),
    st.sampled_from(["*", "0", "2", "*/6", "1-3", "23"]),
    st.sampled_from(["*", "1", "29", "31", "L"]),
    st.sampled_from(["*", "3", "10", "2,11"]),
    st.sampled_from(["*", "0", "MON-FRI", "SUN"]),
)
NEAR_A_CHANGE = st.sampled_from(["2026-03-08", "2026-03-29", "2026-10-25", "2026-11-01", "2026-04-24", "2026-10-30"])


def possible(schedule: str) -> bool:
    try:
        Cron(schedule, "UTC")
    except ValueError:
        return False
    return True


@settings(deadline=None, max_examples=150)
@given(st.tuples(*FIELDS).map(" ".join).filter(possible), st.sampled_from(ZONES), NEAR_A_CHANGE, st.integers(0, 48))
def test_moments_rise_and_are_the_same_from_both_sides(schedule: str, zone: str, day: str, hours: int) -> None:
    cron, start = Cron(schedule, zone), at(f"{day}T00:00") - DAY + hours * HOUR
    found: list[int] = []
    moment = cron.after(start, 0)
    while moment is not None and moment <= start + 2 * DAY and len(found) < 300:
        found.append(moment)
        moment = cron.after(moment, 0)
    assert found == sorted(set(found))
    assert all(each > start for each in found)
    if found:
        assert list(cron.back(start, found[-1]))[::-1] == found
        middle = found[len(found) // 2]
        assert cron.after(start, middle - 1) == middle, "from anywhere the same moments"


def test_a_calendar_that_is_over_ends() -> None:
    assert Cron("0 0 1 1 *", "UTC").after(at("9999-06-01T00:00"), 0) is None


@given(st.integers(1, 10**6), st.integers(0, 10**12), st.integers(0, 10**9))
def test_a_timer_keeps_its_step(every: int, start: int, late: int) -> None:
    timer = Every(every)
    moment = timer.after(start, start + late)
    assert moment is not None
    assert moment > start + late
    assert (moment - start) % every == 0
    assert moment - every <= start + late
    for back in islice(timer.back(start, start + late), 5):
        assert start < back <= start + late
        assert (back - start) % every == 0


# ---------------------------------------------------------------------- what is fired


def moments(catch_up: CatchUp = "last", every: int = MINUTE, grace: int = MINUTE) -> Moments:
    return Moments(Every(every), catch_up, grace)


def begun(found: Moments, now: int) -> Moments:
    found.begin(b"", now)
    found.took()
    return found


def test_the_first_moment_is_behind_the_start_which_is_stored() -> None:
    found = moments()
    found.begin(b"", 0)
    assert found.is_new
    position = found.position()
    found.took()
    assert not found.is_new
    again = moments()
    again.begin(position, 10 * SECOND)  # killed before anything was fired
    assert not again.is_new
    assert again.next(10 * SECOND) == MINUTE
    assert again.due(MINUTE - 1) == []
    assert again.due(MINUTE) == [MINUTE]


@pytest.mark.parametrize(
    ("catch_up", "missed"),
    [("none", []), ("last", [58 * MINUTE]), ("all", [n * MINUTE for n in range(1, 59)])],
)
def test_what_was_missed(catch_up: CatchUp, missed: list[int]) -> None:
    now = HOUR + SECOND
    whole = begun(moments(catch_up, grace=2 * SECOND), 0)
    assert whole.due(now) == ([60 * MINUTE] if catch_up != "all" else [n * MINUTE for n in range(1, 61)])
    nothing_late = begun(moments(catch_up, grace=SECOND), 0)
    assert nothing_late.due(58 * MINUTE + 30 * SECOND) == missed


def test_what_is_only_late_is_fired_whatever_the_policy() -> None:
    for catch_up in ("none", "last", "all"):
        found = begun(moments(catch_up, every=SECOND), 0)  # type: ignore[arg-type]
        assert found.due(30 * SECOND) == [n * SECOND for n in range(1, 31)]


def test_all_is_bounded_to_the_newest() -> None:
    found = begun(moments("all", every=SECOND, grace=0), 0)
    due = found.due(DAY)
    assert len(due) == MOST
    assert due[-1] == DAY
    found.took(due[9])  # a part of them, then it was killed
    assert found.due(DAY) == due[10:]


def test_another_schedule_begins_now() -> None:
    found = begun(moments("all"), 0)
    found.took(MINUTE)
    position = found.position()
    other = moments("all", every=SECOND)
    other.begin(position, HOUR)
    assert other.is_new
    assert other.due(HOUR) == []
    assert other.fired == MINUTE
    assert other.next(HOUR) == HOUR + SECOND


def test_a_position_of_another_kind_is_none() -> None:
    files = Watching("/in/*", 0)
    position = files.position(files.look({"a": (1, 1)}, 0), {}, 5)
    found = moments()
    found.begin(position, HOUR)
    assert found.is_new
    found.took()
    files.begin(found.position())
    assert files.look({"a": (1, 1)}, 0)


def test_a_clock_that_is_set_back_a_little_is_waited_for() -> None:
    found = begun(moments(), 0)
    found.took(HOUR)
    assert found.due(HOUR - 30 * MINUTE) == []
    assert found.next(HOUR - 30 * MINUTE) == HOUR + MINUTE


def test_a_clock_that_was_wrong_by_far_begins_anew() -> None:
    found = begun(moments(), 0)
    found.took(400 * DAY)
    assert found.due(DAY) == []
    assert found.is_new
    assert found.next(DAY) == DAY + MINUTE
    again = moments()
    again.begin(msgspec.msgpack.encode(("moments", "every 60000", 400 * DAY, 400 * DAY)), DAY)
    assert again.is_new
    assert again.next(DAY) == DAY + MINUTE


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32), st.sampled_from(["none", "last", "all"]), st.integers(SECOND, 10 * MINUTE))
def test_whatever_dies_and_whatever_the_clock_does_none_is_fired_twice(
    seed: int, catch_up: CatchUp, every: int
) -> None:
    """F32: a clock that is set forward and back."""
    rng, now, fired = random.Random(seed), 1_000 * DAY, list[int]()
    latest = now
    stored = b""
    found = moments(catch_up, every)
    found.begin(stored, now)
    for _ in range(60):
        now += rng.choice([0, 1, SECOND, every, 3 * MINUTE, HOUR, -SECOND, -MINUTE, -BACK])
        latest = max(latest, now)
        now = max(now, latest - BACK)
        if rng.random() < 0.3:  # killed, with what was not stored
            found = moments(catch_up, every)
            found.begin(stored, now)
        due = found.due(now)
        if found.is_new:
            position, step = found.position(), []
        elif due:
            step = due[: rng.randint(1, len(due))]
            position = found.position(step[-1])
        else:
            continue
        if rng.random() < 0.8:  # else it dies before that is durable
            stored = position
            fired += step
            found.took(step[-1] if step else None)
        else:
            found = moments(catch_up, every)
            found.begin(stored, now)
    assert fired == sorted(set(fired))


@given(st.lists(st.integers(1, 50 * SECOND), max_size=30), st.sampled_from(["none", "last", "all"]))
def test_who_is_never_away_for_long_misses_none(steps: list[int], catch_up: CatchUp) -> None:
    now, fired = DAY, list[int]()
    found = begun(moments(catch_up, every=7 * SECOND), now)
    for step in steps:
        now += step
        due = found.due(now)
        if due:
            fired += due
            stored = found.position(due[-1])
            found = moments(catch_up, every=7 * SECOND)
            found.begin(stored, now)
    assert fired == list(range(DAY + 7 * SECOND, now + 1, 7 * SECOND))


# ---------------------------------------------------------------------- files


def stored(found: Watching, files: dict[str, tuple[int, int]], now: float) -> list[tuple[str, str]]:
    changes = found.look(files, now)
    if changes:
        found.took(changes, found.position(changes, files, int(now * 1000)))
    return [(file.path, file.change) for file in changes]


def test_a_file_is_told_of_once_it_has_settled() -> None:
    found = Watching("/in/*", 2.0)
    assert stored(found, {"a": (1, 1)}, 0) == []
    assert stored(found, {"a": (2, 2)}, 1.5) == []  # it grows
    assert stored(found, {"a": (2, 2)}, 3) == []
    assert stored(found, {"a": (2, 2)}, 3.5) == [("a", "created")]
    assert stored(found, {"a": (2, 2)}, 9) == []
    assert stored(found, {"a": (2, 5)}, 10) == []
    assert stored(found, {"a": (2, 5)}, 12) == [("a", "changed")]


def test_what_is_not_stored_is_told_of_again() -> None:
    found = Watching("/in/*", 0)
    assert len(found.look({"a": (1, 1)}, 0)) == 1
    assert len(found.look({"a": (1, 1)}, 1)) == 1


def test_what_was_seen_is_known_after_a_kill() -> None:
    found = Watching("/in/*", 0)
    changes = found.look({"a": (1, 1), "b": (1, 2)}, 0)
    position = found.position(changes, {"a": (1, 1), "b": (1, 2)}, 7_000)
    again = Watching("/in/*", 0)
    again.begin(position)
    assert again.fired == 7_000
    assert stored(again, {"a": (1, 1), "b": (1, 3), "c": (0, 0)}, 0) == [("c", "created"), ("b", "changed")]
    other = Watching("/out/*", 0)
    other.begin(position)
    assert len(stored(other, {"a": (1, 1)}, 0)) == 1


def test_a_disk_that_was_away_brings_nothing_new() -> None:
    found, files = Watching("/in/*", 0), {f"{i}": (i, i) for i in range(100)}
    assert len(stored(found, files, 0)) == 100
    assert stored(found, {}, 1) == []
    assert stored(found, {"new": (1, 1)}, 2) == [("new", "created")]
    assert stored(found, files, 3) == []


def test_what_is_remembered_is_bounded_and_what_is_there_stays_known() -> None:
    found, here = Watching("/in/*", 0), {"old": (1, 1)}
    stored(found, here, 0)
    for i in range(3):
        files = here | {f"{i}-{n}": (n, n) for n in range(MOST_FILES - 1)}
        while stored(found, files, 1 + i):
            pass
    changes = found.look({**here, "last": (1, 1)}, 9)
    assert [file.path for file in changes] == ["last"]
    assert len(found.position(changes, here, 0)) < 2 * MOST_FILES * 16 + 100


# ---------------------------------------------------------------------- signatures

BODY = b'{"id": "evt_1"}'


def test_github_signs_like_this() -> None:
    """The example of its documentation."""
    headers = {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    check_plain(headers, b"Hello, World!", [b"It's a Secret to Everybody"], "X-Hub-Signature-256", prefix="sha256=")
    for body, secret in ((b"Hello, World?", b"It's a Secret to Everybody"), (b"Hello, World!", b"another")):
        with pytest.raises(BadSignature, match="is not one of this body"):
            check_plain(headers, body, [secret], "x-hub-signature-256", prefix="sha256=")


def stripe(secret: bytes, when: int, body: bytes = BODY) -> str:
    return hmac.new(secret, b"%d.%s" % (when, body), "sha256").hexdigest()


def test_stripe_signs_the_time_too() -> None:
    said = {"stripe-signature": f"t=1000,v1={stripe(b'other', 1000)},v1={stripe(b'whsec', 1000)},v0=1"}
    check_stripe(said, BODY, [b"old", b"whsec"], 300, 1300)
    check_stripe(said, BODY, [b"whsec"], 300, 700)
    for now, text in ((1301, "301 s old"), (690, "310 s ahead")):
        with pytest.raises(BadSignature, match=text):
            check_stripe(said, BODY, [b"whsec"], 300, now)
    for header, text in (
        (f"t=1001,v1={stripe(b'whsec', 1000)}", "is not one of this body"),
        (f"t=x,v1={stripe(b'whsec', 1000)}", "no t= and v1="),
        ("t=1000", "no t= and v1="),
        (f"t=²,v1={stripe(b'whsec', 1000)}", "no t= and v1="),
    ):
        with pytest.raises(BadSignature, match=text):
            check_stripe({"stripe-signature": header}, BODY, [b"whsec"], 300, 1000)
    with pytest.raises(BadSignature, match="there is no header"):
        check_stripe({}, BODY, [b"whsec"], 300, 1000)


@given(st.binary(), st.binary(min_size=1), st.sampled_from(["sha256", "sha512"]), st.sampled_from(["hex", "base64"]))
def test_any_hmac_is_checked(body: bytes, secret: bytes, kind: str, encoding: str) -> None:
    mark = hmac.new(secret, body, getattr(hashlib, kind)).digest()
    text = mark.hex() if encoding == "hex" else base64.b64encode(mark).decode()
    options = {"hash": kind, "encoding": encoding, "prefix": "v1:"}
    check_plain({"x-sign": f"v1:{text}"}, body, [b"no", secret], "X-Sign", **options)  # type: ignore[arg-type]
    for wrong in (f"v1:{text[:-1]}", f"v1:{text}=", "v1:", f"v2:{text}", "v1:ä"):
        with pytest.raises(BadSignature):
            check_plain({"x-sign": wrong}, body, [secret], "X-Sign", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "found"), [("a.b", "x"), ("list.1.n", "7"), ("n", "3"), ("a", None), ("list.9", None), ("no.b", None)]
)
def test_a_path_leads_to_text(path: str, found: str | None) -> None:
    value = {"a": {"b": "x"}, "list": [0, {"n": 7}], "n": 3}
    if found is not None:
        assert at_path(value, path) == found
        return
    with pytest.raises(ValueError, match=r"the body"):
        at_path(value, path)


# ---------------------------------------------------------------------- what is declared


def test_what_is_declared() -> None:
    cron = read_driver("nightly", {"kind": "cron", "event": "e", "schedule": "@daily", "zone": "Asia/Tokyo"})
    assert isinstance(cron, CronDriver)
    timer = read_driver("often", {"kind": "timer", "event": "e", "every": "90 s", "data": {"a": 1}, "grace": 5})
    assert isinstance(timer, TimerDriver)
    assert (timer.every, timer.data, timer.catch_up, timer.grace) == (90.0, {"a": 1}, "last", 5)
    hook = read_driver(
        "pay", {"kind": "webhook", "event": "e", "scheme": "stripe", "secret": [{"env": "A"}, {"file": "b"}]}
    )
    assert isinstance(hook, HookDriver)
    assert len(hook.secrets) == 2
    assert hook.id_of == ("", "id")


CRON = {"kind": "cron", "event": "e", "schedule": "@daily"}
HOOK = {"kind": "webhook", "event": "e"}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, 'kind is missing; say it as in kind = "cron"'),
        ({"kind": "corn"}, "there is no driver 'corn'; did you mean 'cron'"),
        ({"kind": "timer", "event": "e"}, 'driver d: every is missing; as in every = "10 s"'),
        ({"kind": "timer", "event": "e", "evry": 1, "every": 1}, "there is no key 'evry'; did you mean 'every'"),
        ({**CRON, "schedule": "* * * *"}, "it has 4 fields, not 5: minute hour"),
        ({**CRON, "schedule": "0 24 * * *"}, "'24' cannot be its hour"),
        ({**CRON, "schedule": "0 0 31 2 *"}, "'31' cannot be its day-of-month"),
        ({**CRON, "zone": "Berlin"}, "there is no time zone 'Berlin'; did you mean 'Europe/Berlin'"),
        ({**CRON, "catch-up": "some"}, "catch-up: invalid enum value 'some'"),
        ({**CRON, "shedule": "x"}, "there is no key 'shedule'; did you mean 'schedule'"),
        ({"kind": "timer", "event": "e", "every": "1 ms"}, "every: 0.001 s is too often"),
        ({"kind": "timer", "event": "e", "every": 1, "grace": "1 ms"}, "grace: 0.001 s cannot be"),
        ({"kind": "watch", "event": "e", "path": "in"}, "path: 'in' is relative"),
        ({"kind": "watch", "event": "e", "path": "/in", "pattern": "../*"}, "pattern: '../\\*' is none"),
        ({**HOOK, "scheme": "github"}, "secret is missing"),
        ({**HOOK, "secret": {"file": "x"}}, "secret: which scheme"),
        ({**HOOK, "scheme": "github", "secret": {"file": "x", "env": "y"}}, "secret: each is one of"),
        ({**HOOK, "scheme": "hmac", "secret": {"file": "x"}}, "header is missing"),
        ({**HOOK, "scheme": "github", "secret": {"file": "x"}, "prefix": "v"}, 'prefix: it is of scheme "hmac"'),
        ({**HOOK, "id": "a", "id-header": "b"}, "id-header: either"),
        ({**HOOK, "headers": ["a b"]}, "headers: 'a b' cannot be"),
    ],
)
def test_mistakes_say_what_and_what_to_do(keys: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_driver("d", keys)


def test_a_moment_is_written_with_its_zone() -> None:
    assert text_of(0, None) == "1970-01-01T00:00:00+00:00"
    assert text_of(1_500, ZoneInfo("Asia/Kolkata")) == "1970-01-01T05:30:01.500+05:30"
