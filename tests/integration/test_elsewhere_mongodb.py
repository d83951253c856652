"""Namespaces of objects, and a repository, in MongoDB, on a real server that is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from command import GRAPE, grape
from contract import mongo
from integration.test_elsewhere import DRIVER, OTHER, found_in, outbox, write
from serving import serving, until, write_app

pytestmark = pytest.mark.timeout(1800)  # the first one builds the server


def test_a_run_that_is_killed_and_whose_storage_is_killed_leaves_every_object_there_once(tmp_path: Path) -> None:
    app, count, rng = write(tmp_path / "thumbs"), 60, random.Random(1)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"k":"{n}"}}\n' for n in range(count)))
    with mongo.own() as server:
        url = server.url("out", timeout=5)
        command = ["run", str(app), "--feed", f"pic={tmp_path}/in.jsonl,key=k", "--data", str(tmp_path / "d")]
        command += ["--take", f"seen={tmp_path}/seen.jsonl", "--storage", f"results={url}", "--max-dead", "1000"]
        for _ in range(2):
            process = subprocess.Popen([GRAPE, *command], stderr=subprocess.DEVNULL, start_new_session=True)
            time.sleep(rng.uniform(0.8, 1.5))  # any moment
            server.kill()
            time.sleep(rng.uniform(0, 0.3))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            server.start()
        done = grape(*command)
        assert done.returncode in (0, 1), done.stderr
        expected = {f"r/{n}": b"\1" * (n * 400) for n in range(count) if n % 10 < 8}
        assert found_in(url) == expected, done.stderr
        assert grape("storage", "verify", "results/", "--storage", url).returncode == 0


SERVER = """
repository = "{repository}"
[storages.results]
url = "{results}"
apps = ["*"]
[storages.outbox]
url = "file:///nowhere"
apps = ["nobody"]
"""


def wanted(repository: str) -> dict[str, str]:
    found = found_in(repository, "grape")
    entries = [json.loads(data) for key, data in found.items() if key.startswith("lists/main/")]
    return {entry["name"]: entry["wanted"] for entry in entries}


@pytest.mark.slow
def test_a_server_with_its_repository_and_objects_in_mongodb(tmp_path: Path) -> None:
    """A driver tells of what is written there; and a server with an empty disk goes on with the same."""
    server = mongo.shared()
    urls = {"repository": server.url(f"repository{os.getpid()}"), "results": server.url(f"results{os.getpid()}")}
    other = write_app(tmp_path / "other", OTHER, name="other")
    with open(other / "grape.toml", "a") as manifest:
        manifest.write(DRIVER)

    def home(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "grape-server.toml").write_text(SERVER.format(**urls))
        return tmp_path / name

    with serving(home("first")) as one:
        one.grape("app", "deploy", write(tmp_path / "thumbs"))
        one.grape("app", "deploy", other)
        for n in range(10):
            one.post("/apps/thumbs/events/pic", {}, params={"key": str(n)})
        expected = {f"r/{n}": b"\1" * (n * 400) for n in range(8)}
        until(lambda: found_in(urls["results"]) == expected)
        until(lambda: outbox(one.home) == {key: str(len(data)).encode() for key, data in expected.items()})
        until(lambda: wanted(urls["repository"]) == {"thumbs": "running", "other": "running"})
    shutil.rmtree(tmp_path / "first")
    with serving(home("second")) as two:
        until(lambda: {"thumbs", "other"} <= set(two.grape("app", "list").split()))
        until(lambda: two.info("thumbs")["state"] == "running")
        two.post("/apps/thumbs/events/pic", {}, params={"key": "11"})
        until(lambda: "r/11" in found_in(urls["results"]))
