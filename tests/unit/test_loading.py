"""Topologies are found by module or file, and user code that fails is shown without the engine."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grape import Topology, TopologyError
from grape.authoring.loading import load

ONE = 'from grape import Topology\nt = Topology("one")\n'
FACTORY = 'from grape import Topology\ndef topology(config):\n    return Topology(config.get("name", "made"))\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what a test imports is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def write(path: str, text: str) -> str:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return path


def failure(target: str, config: dict[str, Any] | None = None) -> str:
    with pytest.raises(TopologyError) as caught:
        load(target, config)
    return str(caught.value)


class TestTargets:
    @pytest.mark.parametrize("target", ["app.py", "./app.py", "app.py:t", "app", "app:t"])
    def test_file_and_module(self, target: str) -> None:
        write("app.py", ONE)
        assert load(target).name == "one"

    def test_absolute_file(self, folder: Path) -> None:
        write("deep/app.py", ONE)
        assert load(f"{folder}/deep/app.py:t").name == "one"

    def test_directories_may_have_dots_and_colons(self) -> None:
        assert load(write("my.apps/v1.0/app.py", ONE)).name == "one"
        assert load(write("a:b/other.py", ONE)).name == "one"

    @pytest.mark.parametrize("file", ["word-count.py", "1.app.py", "json.py", "grape.py", "class.py", "app.txt"])
    def test_any_file_name(self, file: str) -> None:
        assert load(write(f"apps/{file}", ONE)).name == "one"

    def test_the_folder_of_the_file_is_on_the_path(self) -> None:
        write("apps/helper_of_app.py", 'NAME = "helped"\n')
        write("apps/app.py", "from grape import Topology\nimport helper_of_app\nt = Topology(helper_of_app.NAME)\n")
        assert load("apps/app.py").name == "helped"

    def test_the_working_directory_is_on_the_path_for_modules(self, folder: Path) -> None:
        write("pack/__init__.py", "")
        write("pack/app.py", ONE)
        sys.path.remove(str(folder)) if str(folder) in sys.path else None
        assert load("pack.app:t").name == "one"

    def test_a_file_in_a_package_may_import_relatively(self) -> None:
        write("pack2/__init__.py", "")
        write("pack2/sub/__init__.py", "")
        write("pack2/names.py", 'NAME = "relative"\n')
        write("pack2/sub/app.py", "from grape import Topology\nfrom ..names import NAME\nt = Topology(NAME)\n")
        assert load("pack2/sub/app.py").name == "relative"
        assert "pack2.sub.app" in sys.modules

    def test_a_package_directory(self) -> None:
        write("pack3/__init__.py", ONE)
        assert load("./pack3").name == "one"
        assert load("pack3").name == "one"

    def test_two_files_of_one_name(self) -> None:
        write("a/app.py", ONE)
        write("b/app.py", ONE.replace("one", "two"))
        assert (load("a/app.py").name, load("b/app.py").name, load("a/app.py").name) == ("one", "two", "one")

    def test_a_loaded_file_is_not_executed_again(self) -> None:
        write("app.py", ONE)
        assert load("app.py") is load("./app.py:t")

    def test_modules_are_proper_ones(self) -> None:
        write(
            "app.py",
            "from __future__ import annotations\n"
            "from dataclasses import dataclass\n"
            "from grape import Topology\n"
            "t = Topology('one')\n"
            "@t.slot('a')\n"
            "def f(order: Order) -> None: ...\n"
            "@dataclass\n"
            "class Order:\n"
            "    x: int\n",
        )
        t = load("app.py")
        order = t.handlers["f"].payload_type
        assert pickle.loads(pickle.dumps(order(3))) == order(3)
        assert t.spec().slots[0].where == "app.py:5"


class TestWhichTopology:
    def test_the_factory_gets_the_configuration_itself(self) -> None:
        write("app.py", FACTORY.replace("return", "config['seen'] = True; return"))
        config = {"name": "configured", "deep": {"x": [1]}}
        assert load("app.py", config).name == "configured"
        assert config == {"name": "configured", "deep": {"x": [1]}, "seen": True}

    def test_no_configuration_is_an_empty_one(self) -> None:
        assert load(write("app.py", FACTORY)).name == "made"

    def test_a_factory_without_argument(self) -> None:
        write("app.py", FACTORY.replace("(config)", "()").replace('config.get("name", "made")', '"plain"'))
        assert load("app.py").name == "plain"
        assert "topology() takes no configuration (x given)" in failure("app.py", {"x": 1})

    def test_a_factory_by_name(self) -> None:
        write("app.py", FACTORY.replace("def topology", "def build"))
        assert load("app.py:build", {"name": "built"}).name == "built"

    def test_every_call_of_the_factory_makes_one(self) -> None:
        write("app.py", FACTORY)
        assert load("app.py") is not load("app.py")

    def test_two_names_of_one_topology_are_one(self) -> None:
        assert load(write("app.py", ONE + "alias = t\n")).name == "one"

    def test_several_topologies(self) -> None:
        write("app.py", ONE + 'u = Topology("two")\n')
        assert "app.py has several topologies: t, u. Say which one: app.py:t" in failure("app.py")
        assert load("app.py:u").name == "two"

    def test_none(self) -> None:
        write("app.py", "def make_topology():\n    pass\n")
        message = failure("app.py")
        assert "app.py has no topology: neither" in message
        assert "If make_topology() returns one: app.py:make_topology" in message

    def test_a_topology_that_stands_cannot_take_a_configuration(self) -> None:
        write("app.py", ONE)
        assert "cannot take the configuration (x, y)" in failure("app.py", {"x": 1, "y": 2})
        assert load("app.py", {}).name == "one"


class TestNotFound:
    def test_no_file(self) -> None:
        write("wordcount.py", ONE)
        assert failure("wordcuont.py") == "no such file: 'wordcuont.py'. Did you mean 'wordcount.py'?"

    def test_no_directory(self) -> None:
        assert "there is no directory 'nope'" in failure("nope/app.py")

    def test_a_directory(self) -> None:
        write("apps/app.py", ONE)
        assert failure("./apps") == "'apps' is a directory, not a file. Files in it: app.py"

    def test_no_module(self) -> None:
        write("wordcount.py", ONE)
        message = failure("wordcuont:t")
        assert message.startswith("no module 'wordcuont' in ")
        assert "Did you mean 'wordcount'?" in message

    def test_no_module_in_a_package(self) -> None:
        write("pack4/__init__.py", "")
        write("pack4/wordcount.py", ONE)
        assert "Did you mean 'pack4.wordcount'?" in failure("pack4.wordcuont")

    def test_no_such_name(self) -> None:
        write("app.py", ONE + "def build(config): ...\n")
        assert failure("app.py:bild") == "app.py has no 'bild' (in 'app.py:bild'). Did you mean 'build'?"
        assert failure("app.py:other").endswith("It has: t, build")

    @pytest.mark.parametrize("target", ["", ":", "a b", "app.py:", "app.py:a.b", "app:1x"])
    def test_what_is_no_target(self, target: str) -> None:
        write("app.py", ONE)
        assert repr(target) in failure(target)

    def test_what_is_no_topology(self) -> None:
        write("app.py", ONE + "five = 5\n")
        assert "'app.py:five' is of type int, neither a Topology nor a function" in failure("app.py:five")
        assert "'app.py:Topology' is of type type" in failure("app.py:Topology")


class TestUserErrors:
    def test_an_exception_at_import(self) -> None:
        write("apps/lib_of_user.py", "def fail():\n    raise ValueError('broken')\n")
        write("apps/app.py", "import lib_of_user\n\nlib_of_user.fail()\n")
        message = failure("apps/app.py")
        assert message.startswith("apps/lib_of_user.py:2: ValueError: broken\nTraceback")
        assert "apps/app.py" in message
        assert "lib_of_user.fail()" in message
        assert "importlib" not in message
        assert "authoring/loading.py" not in message

    def test_an_exception_at_import_of_a_module(self) -> None:
        write("broken_app.py", "x = 1 / 0\n")
        message = failure("broken_app")
        assert message.startswith("broken_app.py:1: ZeroDivisionError: division by zero\nTraceback")
        assert "importlib" not in message

    def test_the_line_of_the_user_counts_not_that_of_a_library(self) -> None:
        write("app.py", "import json\njson.loads('{')\n")
        message = failure("app.py")
        assert message.startswith("app.py:2: JSONDecodeError:")
        assert "decoder.py" in message

    def test_causes_are_shown_without_the_engine_too(self) -> None:
        write(
            "app.py",
            "try:\n    import no_such_module_1\nexcept ImportError as e:\n    raise RuntimeError('x') from e\n",
        )
        message = failure("app.py")
        assert message.startswith("app.py:4: RuntimeError: x")
        assert "no_such_module_1" in message
        assert "importlib" not in message

    def test_a_missing_module_of_the_user_is_no_missing_target(self) -> None:
        write("app.py", "import no_such_module_2\n")
        for target in ("app.py", "app"):
            assert failure(target).startswith("app.py:1: ModuleNotFoundError: No module named 'no_such_module_2'")

    def test_a_syntax_error(self) -> None:
        write("app.py", "x = 1\nif x\n    pass\n")
        message = failure("app.py")
        assert message.startswith("app.py:2: SyntaxError:")
        assert "if x" in message

    def test_an_exit_at_import(self) -> None:
        write("app.py", "import sys\nsys.exit('bye')\n")
        assert failure("app.py").startswith("app.py:2: it called sys.exit('bye')")

    def test_a_failed_file_can_be_loaded_once_it_is_mended(self) -> None:
        failure(write("app.py", "x = 1 / 0\n"))
        assert load(write("app.py", ONE)).name == "one"

    def test_an_exception_in_the_factory(self) -> None:
        write("app.py", "def topology(config):\n    return config['size']\n")
        message = failure("app.py")
        assert message.startswith("app.py:2: KeyError: 'size'\nTraceback")
        assert "loading.py" not in message

    def test_an_error_of_the_topology_itself_is_left_as_it_is(self) -> None:
        write("app.py", ONE + "t.add_output('')\n")
        assert failure("app.py").startswith("app.py:3: the name of an output cannot be ''")

    @pytest.mark.parametrize(
        ("body", "returned"),
        [("pass", "nothing (is a return missing?)"), ("return 5", "an object of type int")],
    )
    def test_a_wrong_return_value(self, body: str, returned: str) -> None:
        write("app.py", f"\ndef topology(config):\n    {body}\n")
        assert failure("app.py") == f"app.py:2: topology() has to return a Topology, it returned {returned}"

    def test_an_asynchronous_factory(self) -> None:
        write("app.py", "async def topology(config):\n    pass\n")
        assert "it returned an object of type coroutine" in failure("app.py")

    @pytest.mark.parametrize("parameters", ["a, b", "*, config", "config, *, other"])
    def test_a_factory_with_other_arguments(self, parameters: str) -> None:
        write("app.py", f"def topology({parameters}):\n    pass\n")
        assert "gets the configuration as its only argument" in failure("app.py")

    def test_a_package_of_a_name_that_is_taken(self) -> None:
        write("email/__init__.py", "")
        write("email/app.py", ONE)
        __import__("email")
        assert "has the name of one that is imported already" in failure("email/app.py")


def test_a_topology_knows_its_name_for_people() -> None:
    assert repr(Topology("t")) == "<Topology 't': 0 slots, 0 outputs>"
