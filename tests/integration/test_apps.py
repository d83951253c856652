"""Apps as directories, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

from tests.command import grape as command

MANIFEST = """
name = "orders"
version = "1.2.0"
app = "orders.py"

[config]
depth = 3
"""
CODE = """
from grape import Topology


def topology(config):
    t = Topology("orders")
    t.add_output("out")
    for step in range(config["depth"]):
        t.add_slot(f"order{step}", check, emits="out", name=f"check{step}")
    return t


def check(order):
    return order
"""


def app(tmp_path: Path, code: str = CODE, manifest: str = MANIFEST) -> Path:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "grape.toml").write_text(manifest)
    (tmp_path / "orders.py").write_text(code)
    return tmp_path


def test_an_app_that_can_run(tmp_path: Path) -> None:
    done = command("app", "check", app(tmp_path))
    assert (done.returncode, done.stdout) == (0, "orders 1.2.0 can run: 3 slots, 3 nodes, 1 output, 1 pool\n")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["grape.toml", "orders.py"]


def test_a_run_of_it(tmp_path: Path) -> None:
    """From anywhere; what is said at the run goes over what stands in the manifest."""
    directory = app(tmp_path / "orders")
    (tmp_path / "orders.txt").write_text("a\nb\n")
    feed = ["--feed", "order1=orders.txt", "--take", "out=out.jsonl"]
    done = command("run", "orders", *feed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    done = command("run", directory, *feed, "--set", "depth=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "has no slot 'order1'" in done.stderr


def test_what_it_says_of_its_pools_holds(tmp_path: Path) -> None:
    code = CODE.replace("return order", "import os; return os.environ.get('REGION')")
    manifest = MANIFEST + '[env]\nREGION = "eu"\n[pool.main]\npool-limit = 1\n'
    directory = app(tmp_path / "orders", code, manifest)
    (tmp_path / "orders.txt").write_text("a\n")
    feed = ["--feed", "order0=orders.txt", "--take", "out=out.jsonl", "--summary", "json"]
    done = command("run", directory, *feed, cwd=tmp_path)
    summary = json.loads(done.stdout)
    assert (summary["pools"]["main"]["workers_limit"], summary["app"]) == (1, "orders")
    assert json.loads((tmp_path / "out.jsonl").read_text())["data"] == "eu"
    (tmp_path / "out.jsonl").unlink()
    done = command("run", directory, *feed, "--env", "REGION=us", cwd=tmp_path)
    assert json.loads((tmp_path / "out.jsonl").read_text())["data"] == "us"


def test_code_that_cannot_be_loaded(tmp_path: Path) -> None:
    done = command("app", "check", app(tmp_path, CODE.replace('"depth"', '"dept"')))
    assert done.returncode == 2
    assert "orders.py" in done.stderr
    assert "KeyError: 'dept'" in done.stderr


def test_a_manifest_that_cannot_be(tmp_path: Path) -> None:
    done = command("app", "check", app(tmp_path, manifest=MANIFEST.replace("version", "versoin")), cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path}/grape.toml:3: there is no key 'versoin'; did you mean 'version' or 'state-version'?\n"
    )
