"""What a server is told: by options, by the environment, by a file."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from command import grape
from grape.errors import UsageError
from grape.server.config import FILE, ServerConfig, effective, keys, schema, variable_of


def test_options_go_before_the_environment_before_the_file_before_what_is_usual(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('gateways = 2\npark-after = "2 min"\nlog-older = 7\nlog-file = "server.log"\n')
    environment = {
        "GRAPE_SERVER_GATEWAYS": "3",
        "GRAPE_SERVER_PARK_AFTER": "90 s",
        "GRAPE_SERVER_ORIGINS": "http://a, https://b:1",
    }
    found = effective(tmp_path, None, environment, {"gateways": 4, "listen": None})
    config = found.config
    assert (config.gateways, config.park_after, config.log_older) == (4, 90.0, 7)
    assert config.origins == ("http://a", "https://b:1")
    assert config.log_file == str(tmp_path / "server.log")  # below the file's directory, wherever the server is started
    assert [found.origins[key] for key in ("gateways", "park-after", "log-older", "listen")] == [
        "option",
        "environment GRAPE_SERVER_PARK_AFTER",
        str(tmp_path / FILE),
        "default",
    ]


def test_every_setting_has_a_variable_and_a_place_in_the_schema(tmp_path: Path) -> None:
    texts = {bool: "false", int: "1", tuple: "x"}
    given = {
        "listen": "1.2.3.4:5",
        "log-format": "json",
        "log-to": "syslog",
        "log-syslog": "udp://h:1",
        "tls-certificate": "c",
        "tls-key": "k",
        "repository": "file:///r",
        "origins": "http://x",
        "remote-files": "/x",
    }
    environment = {}
    tables = {field.encode_name for field in msgspec.structs.fields(ServerConfig) if field.default is msgspec.NODEFAULT}
    assert tables == {"storages"}
    with pytest.raises(UsageError, match=r"GRAPE_SERVER_STORAGES.*table"):
        effective(tmp_path, None, {variable_of("storages"): "x"}, {})
    for field in msgspec.structs.fields(ServerConfig):
        if field.encode_name in tables:
            continue
        text = given.get(field.encode_name) or texts.get(type(field.default), "4096")
        environment[variable_of(field.encode_name)] = text
    found = effective(tmp_path, None, environment, {})
    said = {origin for key, origin in found.origins.items() if key not in tables}
    assert said == {f"environment {name}" for name in environment}
    assert list(schema()["properties"]) == list(keys())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('lisen = "x"\n', f"{FILE}:1: there is no key 'lisen'; did you mean 'listen'"),
        ("\n# so many\ngateways = 0\n", f"{FILE}:3: gateways: expected `int` >= 1"),
        ('park-after = "7 m"\n', f"{FILE}:1: park-after: '7 m' is no time"),
        ('\nlisten = "here"\n', f"{FILE}:2: listen: 'here': an address is HOST:PORT"),
        ('log-format = "xml"\n', f"{FILE}:1: log-format: text or json, not 'xml'"),
        ('\ntls-key = "k"\n', f"{FILE}:2: tls-key: it is the key of a certificate"),
        ("gateways = \n", f"{FILE}:1: invalid value"),
        ('origins = ["x"]\n', f"{FILE}:1: origins: 'x': a page's is SCHEME://HOST"),
        ('remote-files = ["/a", "rel"]\n', f"{FILE}:1: remote-files: 'rel' is relative"),
        ('remote-variables = [""]\n', f"{FILE}:1: remote-variables: '' begins every name"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError) as e:
        effective(tmp_path, None, {}, {})
    assert said in str(e.value)


def test_what_is_wrong_elsewhere_is_told_by_its_name(tmp_path: Path) -> None:
    for environment, options, said in (
        ({"GRAPE_SERVER_GATEWAYS": "many"}, {}, "GRAPE_SERVER_GATEWAYS: 'many' is no number"),
        ({"GRAPE_SERVER_HTTP": "perhaps"}, {}, "GRAPE_SERVER_HTTP: 'perhaps' is neither true nor false"),
        ({"GRAPE_SERVER_LISTEN": "x"}, {}, "GRAPE_SERVER_LISTEN: 'x': an address is HOST:PORT"),
        ({}, {"log-size": "1 B"}, "--log-size: at least 1024 bytes"),
    ):
        with pytest.raises(UsageError) as e:
            effective(tmp_path, None, environment, options)
        assert said in str(e.value)
    with pytest.raises(UsageError, match=r"nothing\.toml: No such file"):
        effective(tmp_path, str(tmp_path / "nothing.toml"), {}, {})


def test_variables_that_are_none_of_ours_stop_nobody(tmp_path: Path) -> None:
    found = effective(
        tmp_path,
        None,
        {"GRAPE_SERVER_CONFIG": "x", "GRAPE_SERVER_PORT_8080_TCP": "tcp://1", "GRAPE_SERVER_GATEWAY": "2"},
        {},
    )
    assert found.config == ServerConfig()
    assert "did you mean 'GRAPE_SERVER_GATEWAYS'" in found.strangers[0]


def test_the_command_shows_and_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).write_text("gateways = 2\nlog-older = 3\n")
    monkeypatch.setenv("GRAPE_SERVER_LOG_OLDER", "4")
    done = grape("config", "show", "--home", tmp_path)
    assert f"gateways = 2 {' ' * 30}"[:12] in done.stdout
    assert f"# {tmp_path / FILE}" in done.stdout
    assert "environment GRAPE_SERVER_LOG_OLDER" in done.stdout
    found = json.loads(grape("config", "show", "--home", tmp_path, "--json").stdout)
    assert found["log-older"] == {"value": 4, "from": "environment GRAPE_SERVER_LOG_OLDER"}
    done = grape("config", "check", tmp_path / FILE)
    assert done.stdout.split("is right: ")[1].startswith("2 settings; not counted: log-older (environment")
    (tmp_path / FILE).write_text("gatewys = 2\n")
    done = grape("config", "check", "--home", tmp_path)
    assert done.returncode == 2
    assert f"{FILE}:1: there is no key 'gatewys'; did you mean 'gateways'?" in done.stderr
    assert json.loads(grape("config", "schema").stdout)["additionalProperties"] is False
