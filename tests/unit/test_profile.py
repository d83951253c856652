"""Profiles: typed, with units, and with errors that say what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from grape.errors import UsageError
from grape.model.profile import Profile
from grape.processes.profile_file import load_profiles


def profile_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "profile.toml"
    path.write_text(text)
    return path


def test_a_profile_in_words_and_units(tmp_path: Path) -> None:
    path = profile_file(
        tmp_path,
        '[pool.main]\npool-limit = 4\nqueue-bytes = "2 GiB"\ngrow-threshold = "250 ms"\nidle-timeout = "10 min"\n'
        '[pool.slow.isolate]\ntype = "process"\n',
    )
    found = load_profiles(path, {})
    assert found["main"].pool_limit == 4
    assert found["main"].queue_bytes == 2 << 30
    assert found["main"].grow_threshold == 0.25
    assert found["main"].idle_timeout == 600
    assert found["main"].pool_min is None
    assert found["slow"].isolate == {"type": "process"}


def test_the_apps_configuration_gives_what_the_profile_does_not(tmp_path: Path) -> None:
    config = {"depth": 3, "grape": {"pool": {"main": {"pool-limit": 2, "pool-min": 1}, "slow": {"pool-limit": 7}}}}
    found = load_profiles(profile_file(tmp_path, "[pool.main]\npool-limit = 4\n"), config)
    assert (found["main"].pool_limit, found["main"].pool_min) == (4, 1)
    assert found["slow"].pool_limit == 7
    assert load_profiles({"main": {"pool-limit": 9}}, config)["main"].pool_limit == 9
    assert load_profiles(None, {}) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pool.main]\npool-limits = 4", ["[pool.main]", "'pool-limits'", "did you mean", "pool-limit"]),
        ("[pool.main]\npool_limit = 4", ["'pool_limit'", "did you mean", "pool-limit"]),
        ("[pool.main]\nzzz = 4", ["'zzz'", "known are:", "idle-timeout"]),
        ("[pool.main]\npool-limit = 0", ["pool-limit is at least 1, not 0"]),
        ("[pool.main]\npool-limit = 'four'", ["pool-limit", "`int"]),
        ("[pool.main]\npool-limit = 2\npool-min = 3", ["pool-min = 3 is over pool-limit = 2"]),
        ("[pool.main]\nidle-timeout = 'soon'", ["idle-timeout", "'soon' is no time", '"30 s"']),
        ("[pool.main]\nidle-timeout = -1", ["-1 is no time"]),
        ("[pool.main]\nqueue-bytes = '3 bananas'", ["queue-bytes", "is no size", '"512 MiB"']),
        ("[pools.main]\npool-limit = 3", ["[pool.NAME]", "'pools'"]),
        ("[pool]\nmain = 3", ["one table for each pool"]),
        ("[pool.main", ["profile.toml"]),
    ],
)
def test_what_is_wrong_is_named_with_what_was_meant(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_profiles(profile_file(tmp_path, text), {})
    for word in (*words, "profile.toml"):
        assert word in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_profiles(tmp_path / "none.toml", {})


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "pools.md").read_text()
    for key in Profile.__struct_encode_fields__:
        assert f"`{key}`" in text, f"docs/pools.md says nothing of {key}"
    assert Profile.__doc__ is not None
    for field in Profile.__struct_fields__:
        assert f"{field}:" in Profile.__doc__
