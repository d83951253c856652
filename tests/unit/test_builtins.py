"""What can be plugged: Grape's own, what packages add, and what is said when there is no such thing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from grape import builtins
from grape.abc.transport import DirectoryTransport
from grape.errors import UsageError


def test_every_builtin_is_there_and_has_the_name_it_is_listed_with() -> None:
    for name in builtins.BUILTINS["isolate"]:
        kind = builtins.isolate(name)
        assert kind.name == name
        assert kind.Config()


def test_the_transport_of_data_directories_is_there() -> None:
    kind = builtins.transport(builtins.DIRECTORY)
    assert issubclass(kind, DirectoryTransport)


def test_a_wrong_name_is_told_what_is_near() -> None:
    with pytest.raises(UsageError, match=r"there is no isolate 'sandbx'; did you mean 'sandbox'\?"):
        builtins.isolate("sandbx")
    with pytest.raises(UsageError, match=r"there is no isolate 'zzz'; there are 'process', 'cgroup', 'sandbox', 'cont"):
        builtins.isolate("zzz")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with isolates, of which one takes a name of Grape's own, and one is broken."""
    info = tmp_path / "prison-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: prison\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[grape.isolates]\nprison = prison_of_grape:Prison\nbroken = prison_of_grape:Nothing\n"
        "process = prison_of_grape:Prison\n"
    )
    (tmp_path / "prison_of_grape.py").write_text("class Prison:\n    name = 'prison'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "prison_of_grape", raising=False)


@pytest.mark.usefixtures("package")
def test_packages_add_isolates_but_do_not_replace_any() -> None:
    assert builtins.isolate("prison").name == "prison"
    assert builtins.isolate("process").__module__ == "grape.isolates.process"
    assert builtins.names("isolate") == ["process", "cgroup", "sandbox", "container", "broken", "prison"]
    with pytest.raises(UsageError, match=r"the package prison says it is prison_of_grape:Nothing, which fails to imp"):
        builtins.isolate("broken")
