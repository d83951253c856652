"""The examples, run by the real command, with their complete results."""

from __future__ import annotations

import asyncio
import collections
import io
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contract import weed
from grape.storage.connect import opened
from grape.storage.objects import Objects
from serving import serving, until

EXAMPLES = Path(__file__).parents[2] / "examples"
GRAPE = str(Path(sys.executable).parent / "grape")


def grape(where: Path, *arguments: object) -> dict[str, Any]:
    """Run in ``where``; returns what ``--summary json`` says."""
    command = [GRAPE, "run", *map(str, arguments), "--summary", "json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=where)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_01_wordcount(tmp_path: Path) -> None:
    text = Path(__file__).parents[2] / "ARCHITECTURE.md"
    command = [EXAMPLES / "01-wordcount" / "wordcount.py", "--feed", f"line={text}", "--data", "words"]
    command += ["--take", "total=total.jsonl"]
    grape(tmp_path, *command)
    want = collections.Counter(text.read_text().split())
    taken = rows(tmp_path / "total.jsonl")
    assert sorted((row["key"], row["data"]["count"]) for row in taken) == sorted(
        (word, n) for word, count in want.items() for n in range(1, count + 1)
    )
    again = grape(tmp_path, *command)
    assert again["slots"] == {}
    assert rows(tmp_path / "total.jsonl") == taken


CRAWL = ["crawler.py", "--feed", "start=start.txt", "--data", "crawl"]
CRAWL += ["--take", "found=found.jsonl", "--take", "broken=broken.jsonl"]


def test_02_crawler(tmp_path: Path) -> None:
    here = shutil.copytree(EXAMPLES / "02-crawler", tmp_path / "crawler")
    summary = grape(here, *CRAWL)
    found, broken = rows(here / "found.jsonl"), rows(here / "broken.jsonl")
    assert {row["key"]: (row["data"]["words"], row["data"]["links"]) for row in found} == {
        "index.md": (41, 6),
        "soil.md": (16, 3),
        "two words.md": (8, 0),
        "guide/start.md": (25, 5),
        "guide/prune.md": (13, 4),
        "guide/list.txt": (4, 0),
    }
    assert len(found) == 6
    missing, outside = "No such file or directory", "outside of the directory"
    assert sorted((row["data"]["page"], row["data"]["link"], row["data"]["why"]) for row in broken) == [
        ("guide/prune.md", "../harvest.md", missing),
        ("guide/start.md", "../../crawler.py", outside),
        ("guide/start.md", "../soil.md#clay", "no anchor #clay"),
        ("guide/start.md", "/etc/passwd", outside),
        ("index.md", "#the-cellar", "no anchor #the-cellar"),
        ("index.md", "harvest.md", missing),
        ("soil.md", "#sand", "no anchor #sand"),
    ]
    assert summary["slots"] == {"start>Start": 1, "page>Page": 19}
    again = grape(here, *CRAWL)
    assert again["slots"] == {}
    assert (rows(here / "found.jsonl"), rows(here / "broken.jsonl")) == (found, broken)


def test_02_crawler_on_a_page_of_odd_links(tmp_path: Path) -> None:
    here = shutil.copytree(EXAMPLES / "02-crawler", tmp_path / "crawler")
    site = here / "site"
    (here / "secret.md").write_text("# Secret\n")
    (site / "away.md").symlink_to(here / "secret.md")
    odd = {
        "away.md": "outside of the directory",
        "guide": "Is a directory",
        "%00": "embedded null byte",
        "x" * 300: "File name too long",
        "guide/../index.md": "",
        "http://[odd": "",
        "mailto:a@b": "",
    }
    (site / "index.md").write_text("# Odd\n" + "".join(f"[a]({link})\n" for link in odd) + "[a]()\n")
    grape(here, *CRAWL)
    assert {row["data"]["link"]: row["data"]["why"] for row in rows(here / "broken.jsonl")} == {
        link: why for link, why in odd.items() if why
    }
    assert [row["key"] for row in rows(here / "found.jsonl")] == ["index.md"]


def test_04_shop(tmp_path: Path) -> None:
    """Its books agree, over an upgrade under load."""
    shop = EXAMPLES / "04-shop"
    with serving(tmp_path / "home") as server:
        for app in ("notices", "payments", "orders"):
            server.grape("app", "deploy", shop / app)
        command = [sys.executable, shop / "shop.py", server.url, server.home, "--seconds", "6"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "all books agree" in done.stdout
        assert "orders 2 " in done.stdout
        call = server.grape("call", "orders@order", '{"customer":"x","count":1}', "--key", "new")
        assert json.loads(call) == {"status": "paid"}


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(out, kind)
    return out.getvalue()


def objects_of(url: str, namespace: str) -> dict[str, bytes]:
    async def read() -> dict[str, bytes]:
        async with opened(url) as storage:
            objects = Objects(storage, namespace)
            return {
                key: one.data for key, one in (await objects.get_many([a.key async for a in objects.list()])).items()
            }

    return asyncio.run(read())


@pytest.mark.parametrize(
    "where", ["embedded", *(pytest.param(each, marks=pytest.mark.slow) for each in ("file", "s3"))]
)
def test_05_thumbnails(tmp_path: Path, where: str) -> None:
    """The same code on three storages, by a driver, in a sandbox."""
    home = tmp_path / "home"
    home.mkdir()
    env: dict[str, str] = {}
    url = f"embedded://{home}/apps/thumbnails/data"
    if where == "s3":
        server = weed.shared()
        url = f"s3://{weed.BUCKET}/{secrets.token_hex(4)}?endpoint={server.endpoint}&variables={weed.VARIABLES}"
        env = {name: value for name, value in os.environ.items() if name.startswith(weed.VARIABLES)}
    elif where == "file":
        url = f"file://{tmp_path}/objects"
    if where != "embedded":
        tables = [f'[storages.{name}]\nurl = "{url}"\napps = ["thumbnails"]\n' for name in ("pictures", "thumbnails")]
        (home / "grape-server.toml").write_text("\n".join(tables))
    with serving(home, env=env) as server:
        server.grape("app", "deploy", EXAMPLES / "05-thumbnails")
        files = {"a.png": picture(400, 100), "b/c.jpg": picture(30, 300, "JPEG"), "bad.png": b"\x89PNG nonsense"}
        for key, data in files.items():
            (tmp_path / "one").write_bytes(data)
            server.grape("storage", "put", f"pictures/{key}", tmp_path / "one", "--app", "thumbnails")
        until(lambda: len(objects_of(url, "thumbnails")) == 4)
        sizes = {key: Image.open(io.BytesIO(data)).size for key, data in objects_of(url, "thumbnails").items()}
        assert sizes == {
            "a.png.small.webp": (64, 16),
            "a.png.medium.webp": (256, 64),
            "b/c.jpg.small.webp": (6, 64),
            "b/c.jpg.medium.webp": (26, 256),
        }
        until(lambda: "UnidentifiedImageError" in server.grape("dead", "list", "--app", "thumbnails"))
        server.grape("storage", "rm", "pictures/a.png", "--app", "thumbnails")
        until(lambda: set(objects_of(url, "thumbnails")) == {"b/c.jpg.small.webp", "b/c.jpg.medium.webp"})
        if where == "file":
            assert (tmp_path / "objects" / "thumbnails" / "b" / "c.jpg.small.webp").read_bytes()[:4] == b"RIFF"
