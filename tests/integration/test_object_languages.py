"""Objects in handlers of every language, small ones and large ones, while their workers are killed."""

from __future__ import annotations

import random
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

import grape
from command import grape as command

ROOT: Final = Path(__file__).parents[2]
SIZE: Final = 5_000_000
KEYS: Final = ("a", "b", "c")
EACH: Final = 8
KILLS: Final = 12

TOPOLOGY: Final = """
from grape import External, Topology
topology = Topology("shop")
topology.add_output("kept")
topology.add_pool("p", runtime={runtime!r}, entry={entry!r})
"""
LINES: Final = """
topology.add_slot("keep", External("Keep", states=["n"], objects=True), pool="p", emits="kept", timeout=20)
"""
PROGRAMS: Final = {
    "node": (
        "keep.js",
        """
const { Worker } = require("grape-worker");
const worker = new Worker();
const SIZE = 5_000_000;
worker.slot("keep", { node: "Keep", states: ["n"], emits: ["kept"], timeout: 20 }, (event) => {
  const { storage, key } = event;
  const n = (event.state.n ?? 0) + 1;
  event.state.n = n;
  let size = 0;
  for (const chunk of storage.chunks(`large/${key}`) ?? []) {
    if (!chunk.equals(Buffer.alloc(chunk.length, 96 + n - 1))) throw new Error("another one");
    size += chunk.length;
  }
  if (size !== (n === 1 ? 0 : SIZE)) throw new Error(`${size} bytes`);
  storage.put(`log/${key}`, `${storage.get(`log/${key}`) ?? ""}${n}\\n`);
  storage.put(`large/${key}`, Buffer.alloc(SIZE, 96 + n));
  event.emit("kept", n);
});
worker.run();
""",
    ),
    "async": (
        "later.js",
        """
const { Readable } = require("node:stream");
const { Worker } = require("grape-worker");
const worker = new Worker();
const SIZE = 5_000_000;
worker.slot("keep", { node: "Keep", states: ["n"], timeout: 20 }, async (event) => {
  const { key } = event;
  const storage = event.storage.promises;
  const n = (event.state.n ?? 0) + 1;
  event.state.n = n;
  let size = 0;
  for await (const chunk of (await storage.chunks(`large/${key}`)) ?? []) {
    if (!chunk.equals(Buffer.alloc(chunk.length, 96 + n - 1))) throw new Error("another one");
    size += chunk.length;
  }
  if (size !== (n === 1 ? 0 : SIZE)) throw new Error(`${size} bytes`);
  await storage.put(`log/${key}`, `${(await storage.get(`log/${key}`)) ?? ""}${n}\\n`);
  await storage.put(`large/${key}`, Readable.from([Buffer.alloc(SIZE, 96 + n)]));
  event.emit("kept", n);
});
worker.run();
""",
    ),
    "perl": (
        "keep.pl",
        """
use strict; use warnings; use Grape::Worker;
my $worker = Grape::Worker->new;
$worker->slot(keep => { node => 'Keep', states => ['n'], timeout => 20 }, sub {
    my ($event) = @_;
    my ($storage, $key, $n) = ($event->storage, $event->key, ++$event->state->{n});
    my ($size, $next) = (0, $storage->chunks("large/$key"));
    while ($next and defined(my $chunk = $next->())) {
        die "another one\\n" if $chunk ne chr(96 + $n - 1) x length $chunk;
        $size += length $chunk;
    }
    die "$size bytes\\n" if $size != ($n == 1 ? 0 : 5_000_000);
    my $log = $storage->get("log/$key");
    $storage->put("log/$key", (defined $log ? $log : '') . "$n\\n");
    my $left = 5;
    $storage->put("large/$key", sub { $left-- > 0 ? chr(96 + $n) x 1_000_000 : undef });
    $event->emit(kept => 0 + $n);
});
exit $worker->run;
""",
    ),
    "exec": (
        "keep",
        """
#include <grape/worker.hpp>
#include <stdexcept>
#include <string>
int main(int argc, char** argv) {
  grape::Worker worker(argc, argv);
  worker.slot("keep", grape::Slot("Keep").state("n").timeout(std::chrono::seconds(20)), [](grape::Event& event) {
    auto storage = event.storage();
    const std::string key(*event.key());
    auto state = event.state("n");
    const auto n = state.get<std::int64_t>(0) + 1;
    state.set(n);
    std::size_t size = 0;
    storage.chunks("large/" + key, [&](std::string_view chunk) {
      if (chunk != std::string(chunk.size(), static_cast<char>(96 + n - 1))) throw std::runtime_error("another one");
      size += chunk.size();
    });
    if (size != (n == 1 ? 0 : 5'000'000U)) throw std::runtime_error(std::to_string(size) + " bytes");
    storage.put("log/" + key, storage.get("log/" + key).value_or("") + std::to_string(n) + "\\n");
    storage.put("large/" + key, std::string(5'000'000, static_cast<char>(96 + n)));
    event.emit("kept", n);
  });
  return worker.run();
}
""",
    ),
    "lines": (
        "keep.py",
        """#!/usr/bin/env python3
import json, os, sys, tempfile

def ask(**question):
    print(json.dumps(question), flush=True)
    return json.loads(sys.stdin.readline())

path = tempfile.mktemp()
while line := sys.stdin.readline():
    event = json.loads(line)
    key, n = event["key"], event["state"].get("n", 0) + 1
    got = ask(object="get", key="large/" + key, file=path)
    if got["found"]:
        data = open(path, "rb").read()
        assert data == bytes([96 + n - 1]) * 5_000_000
    assert got["found"] == (n > 1)
    log = ask(object="get", key="log/" + key).get("text", "")
    ask(object="put", key="log/" + key, text=log + str(n) + "\\n")
    with open(path, "wb") as file:
        file.write(bytes([96 + n]) * 5_000_000)
    ask(object="put", key="large/" + key, file=path)
    print(json.dumps({"emit": "kept", "data": n, "state": {"n": n}}), flush=True)
""",
    ),
}


def _app(folder: Path, language: str) -> None:
    entry, text = PROGRAMS[language]
    if language == "exec":
        (folder / "keep.cpp").write_text(text)
        include = ROOT / ".cache" / "sdks" / "cpp" / "include"
        line = ["c++", "-std=c++17", "-O0", "-I", include, folder / "keep.cpp", "-o", folder / entry, "-pthread"]
        subprocess.run(line, check=True)
    else:
        (folder / entry).write_text(text)
        (folder / entry).chmod(0o755)
    runtime = "node" if language == "async" else language
    topology = TOPOLOGY.format(runtime=runtime, entry=entry) + (LINES if language == "lines" else "")
    (folder / "app.py").write_text(topology)


@pytest.mark.parametrize("language", PROGRAMS)
@pytest.mark.slow
def test_each_object_is_written_once_while_workers_are_killed(
    language: str, tmp_path: Path, sdk_env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _app(tmp_path, language)
    monkeypatch.chdir(tmp_path)
    rng = random.Random(5)
    over = threading.Event()
    killed = 0

    def kill() -> None:
        nonlocal killed
        while not over.wait(rng.uniform(0.1, 0.5)) and killed < KILLS:
            workers = [p for p in psutil.Process().children(recursive=True) if "--parent" in _words(p)]
            if workers:
                rng.choice(workers).kill()
                killed += 1

    seen: dict[str, list[Any]] = {key: [] for key in KEYS}
    profile = {"p": {"pool-limit": 2}}
    with grape.open("app.py:topology", profile=profile, env=sdk_env, data=tmp_path / "data") as engine:
        for _ in range(EACH):
            for key in KEYS:
                engine.emit("keep", None, key=key)
        killer = threading.Thread(target=kill)
        killer.start()
        for event in engine.outputs("kept", timeout=90):
            seen[str(event.key)].append(event.data)
            if sum(map(len, seen.values())) == EACH * len(KEYS):
                break
        over.set()
        killer.join()
    assert seen == {key: list(range(1, EACH + 1)) for key in KEYS}
    assert killed >= 2
    for key in KEYS:
        for name, wanted in (
            (f"log/{key}", "".join(f"{n}\n" for n in range(1, EACH + 1)).encode()),
            (f"large/{key}", bytes([96 + EACH]) * SIZE),
        ):
            done = command("storage", "get", f"shop/{name}", tmp_path / "out", "--data", tmp_path / "data")
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "out").read_bytes() == wanted
    done = command("storage", "verify", "shop/", "--data", tmp_path / "data")
    assert "6 objects are as they were written" in done.stdout + done.stderr


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
