"""Apps as directories, by the command line."""

from __future__ import annotations

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
    (tmp_path / "grape.toml").write_text(manifest)
    (tmp_path / "orders.py").write_text(code)
    return tmp_path


def test_an_app_that_can_run(tmp_path: Path) -> None:
    done = command("app", "check", app(tmp_path))
    assert (done.returncode, done.stdout) == (0, "orders 1.2.0 can run: 3 slots, 3 nodes, 1 output, 1 pool\n")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["grape.toml", "orders.py"]


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
