"""What an app may name of a server's machine, by who brings it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from command import grape
from serving import Server, serving, write_app

APP = """
import os
from grape import Topology
t = Topology("shop")

@t.slot("do")
def do(_) -> str:
    print(os.environ.get("KEY"))
"""


def package(tmp_path: Path, more: str) -> Path:
    app = write_app(tmp_path / "shop", APP)
    (app / "own.txt").write_text("own")
    with open(app / "grape.toml", "a") as manifest:
        manifest.write(more)
    file = tmp_path / "shop.tar.gz"
    done = grape("app", "pack", app, "--out", file)
    assert done.returncode == 0, done.stderr
    return file


def sent(server: Server, file: Path, token: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/gzip"}
    return httpx.post(f"{server.url}/packages", content=file.read_bytes(), headers=headers, timeout=60)


CASES: list[tuple[str, bool]] = [
    ('[secrets]\nKEY = {file = "/etc/passwd"}\n', False),
    ('[secrets]\nKEY = {file = "../../lock"}\n', False),
    ('[secrets]\nKEY = {file = "own.txt"}\n', True),
    ('[secrets]\nKEY = {file = "SECRETS/a"}\n', True),
    ('[secrets]\nKEY = {file = "SECRETS/../b"}\n', False),
    ('[secrets]\nKEY = {env = "PATH"}\n', False),
    ('[secrets]\nKEY = {env = "GRAPE_SECRET_X"}\n', True),
    ('[secrets]\nKEY = {credential = "tls.key"}\n', False),
    ('[driver.w]\nkind = "watch"\nevent = "do"\npath = "/etc"\n', False),
    ('[driver.w]\nkind = "watch"\nevent = "do"\npath = "SECRETS"\n', True),
    ('[driver.h]\nkind = "webhook"\nevent = "do"\nscheme = "github"\nsecret = {file = "/etc/passwd"}\n', False),
]


def test_who_may_change_one_app_cannot_have_the_files_of_the_server(tmp_path: Path) -> None:
    secrets: Any = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    home = tmp_path / "home"
    home.mkdir()
    (home / "grape-server.toml").write_text(f'remote-files = ["{secrets}"]\n')
    with serving(home, env={"GRAPE_SECRET_X": "x"}) as server:
        token = server.grape("token", "create", "shop", "--scope", "shop:admin").split()[-1]
        for number, (more, is_taken) in enumerate(CASES):
            file = package(tmp_path, f"# {number}\n{more}".replace("SECRETS", str(secrets)))
            answer = sent(server, file, token)
            assert answer.status_code == (201 if is_taken else 403), (more, answer.text)
            assert is_taken or "remote-files" in answer.text
        file = package(tmp_path, CASES[0][0])
        server.grape("app", "upload", file)  # who has the home may
        assert sent(server, file, token).status_code == 200  # it is known by then
