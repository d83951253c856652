"""Secrets that stand in URLs are not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from command import grape
from grape.model.urls import without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mongodb://ann:s3cret@h:1,i:2/grape?collection=a", "mongodb://ann:***@h:1,i:2/grape?collection=a"),
        ("mongodb://ann:s3@cr:et@h/grape", "mongodb://ann:***@h/grape"),
        ("pictures=mongodb+srv://ann:s3cret@h/grape", "pictures=mongodb+srv://ann:***@h/grape"),
        ("mongodb://h/grape?password=s3cret&user=ann", "mongodb://h/grape?password=***&user=ann"),
        ("s3://bucket/a:b@c?endpoint=http://127.0.0.1:1", "s3://bucket/a:b@c?endpoint=http://127.0.0.1:1"),
        ("file:///srv/a@b", "file:///srv/a@b"),
        ("mongodb://ann@h/grape", "mongodb://ann@h/grape"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_no_command_shows_the_password_of_a_storage(tmp_path: Path) -> None:
    url = "mongodb://ann:s3cret@127.0.0.1:9/grape?timeout=0.2"
    (tmp_path / "grape-server.toml").write_text(
        f'repository = "{url}"\n[storages.results]\nurl = "{url}"\napps = ["*"]\n'
    )
    for words in (
        ("config", "show", "--home", tmp_path),
        ("config", "show", "--json", "--home", tmp_path),
        ("storage", "ls", "results/", "--storage", url),
        ("run", tmp_path, "--storage", url),
        ("run", tmp_path, "--storage", f"Results={url}"),
    ):
        done = grape(*words)
        assert "s3cret" not in done.stdout + done.stderr, words
        assert "Traceback" not in done.stderr
        if words[1] == "show":
            assert done.stdout.count("ann:***@127.0.0.1:9") == 2
    assert (
        "nobody answers at mongodb://127.0.0.1:9/grape" in grape("storage", "ls", "results/", "--storage", url).stderr
    )
