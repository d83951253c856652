"""`grape.toml`: what it says, and that every mistake is told with its line and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grape.apps.manifest import MAX_BYTES, check_fits, manifest_of, secrets_of
from grape.apps.running import options_of
from grape.errors import UsageError

GOOD = """
name = "orders"
version = "1.2.0-rc1+5"
app = "orders.py:topology"
state-version = 2
workers = 3
partitions = 8
max-size = "2 GiB"

[config]
depth = 3
grape = "a key as any other"

[env]
REGION = "eu"

[secrets]
API_KEY = { file = "key.txt" }
TOKEN = { env = "HERE" }
CERT = { credential = "cert" }

[pool.main]
pool-limit = 2
idle-timeout = "5 min"
"""


def app(tmp_path: Path, manifest: str) -> Path:
    (tmp_path / "grape.toml").write_text(manifest)
    (tmp_path / "orders.py").write_text("")
    return tmp_path


def test_what_it_says(tmp_path: Path) -> None:
    directory = app(tmp_path, GOOD)
    (tmp_path / "key.txt").write_text("s3cret\n")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "cert").write_text("pem")
    environment = {"HERE": "token", "CREDENTIALS_DIRECTORY": str(tmp_path / "given")}
    manifest, options = options_of(directory, environment)
    assert (manifest.name, manifest.version, manifest.state_version) == ("orders", "1.2.0-rc1+5", 2)
    assert options.target == str(tmp_path / "orders.py:topology")
    assert options.config == {"depth": 3, "grape": "a key as any other"}
    assert options.env == {"REGION": "eu", "API_KEY": "s3cret", "TOKEN": "token", "CERT": "pem"}
    assert (options.workers, options.partitions, options.max_size) == (3, 8, 2 << 30)
    assert (options.profiles["main"].pool_limit, options.profiles["main"].idle_timeout) == (2, 300.0)


HEAD = 'name = "orders"\napp = "orders.py"\n'

WRONG = {
    "no name": ('app = "orders.py"', 1, r'name is missing; say it as in name = "orders"'),
    "no app": ('\nname = "orders"', 1, r'app is missing; say it as in app = "orders.py"'),
    "capitals": ('app = "orders.py"\nname = "Orders"', 2, "name: 'Orders' cannot be one: small letters"),
    "an at": ('app = "orders.py"\nname = "a@b"', 2, "name: 'a@b' cannot be one"),
    "a version that is a number": (HEAD + "\nversion = 3", 4, "version: expected `str`, got `int`"),
    "a version with a slash": (HEAD + 'version = "1/2"', 3, "version: '1/2' cannot be one"),
    "no such file": (
        'name = "o"\n\napp = "order.py"',
        3,
        r"app: no such file: .*order.py'. Did you mean '.*orders.py'",
    ),
    "out of it": ('name = "o"\napp = "../orders.py"', 2, "app: '../orders.py' leads out of the app's directory"),
    "absolute": ('name = "o"\napp = "/etc/orders.py"', 2, "leads out of the app's directory"),
    "a strange key": (HEAD + 'versoin = "1"', 3, "there is no key 'versoin'; did you mean 'version'"),
    "partitions": (HEAD + "partitions = 0", 3, "partitions: a number from 1 to"),
    "workers": (HEAD + "workers = -1", 3, r"workers: a number from 0 \(one a core\) to 1000, not -1"),
    "state-version": (HEAD + "state-version = 0", 3, "state-version: it counts from 1, not 0"),
    "a size": (HEAD + 'max-size = "1 banana"', 3, "max-size: '1 banana' is no size"),
    "a key of a pool": (
        HEAD + "[pool.main]\npool-limit = 2\npool-mim = 1",
        5,
        r"\[pool.main\]: there is no key 'pool-mim'; did you mean 'pool-min'",
    ),
    "a time of a pool": (HEAD + '[pool.main]\n\nidle-timeout = "5 parsecs"', 5, "idle-timeout: '5 parsecs' is no time"),
    "a dotted key": (HEAD + 'pool.main.pool-limit = "x"', 3, "pool-limit: expected `int"),
    "pool is a table": (HEAD + "pool = 5", 3, r"pool is a table, \[pool\], not 5"),
    "a variable": (HEAD + '[env]\nA = "1"\n"A B" = "1"', 5, "'A B' cannot be the name of an environment variable"),
    "a number as text": (HEAD + '[env]\nA = "1"\nN = 5', 5, 'the value of N is text, as in N = "5"'),
    "twice": (HEAD + '[env]\nK = "1"\n[secrets]\nK = { env = "K" }', 6, r"K stands in \[env\] and in \[secrets\]"),
    "a plain secret": (HEAD + '[secrets]\nK = "hunter2"', 4, "the value itself does not stand in a manifest"),
    "a secret in two places": (HEAD + '[secrets]\nK = { env = "K", file = "k" }', 4, "K: a secret is one of"),
    "a strange secret": (HEAD + '[secrets]\nK = { fil = "k" }', 4, "K: there is no key 'fil'; did you mean 'file'"),
    "no TOML": (HEAD + "x = [1,", 3, ""),
    "no table of a driver": (f"{HEAD}driver.d = 3", 3, r"driver.d is a table, as in \[driver.d\]"),
    "kind of a driver": (f'{HEAD}[driver.d]\nkind = "corn"', 4, "there is no driver 'corn'; did you mean 'cron'"),
    "key of a driver": (
        f'{HEAD}[driver.d]\nkind = "timer"\nevent = "e"\nevry = 3\nevery = 3',
        6,
        "there is no key 'evry'; did you mean 'every'",
    ),
    "a schedule": (
        f'{HEAD}[driver.a]\nkind = "timer"\nevent = "e"\nevery = 3\n[driver.d]\nkind = "cron"\nevent = "e"\n'
        'schedule = "0 25 * * *"',
        10,
        "'25' cannot be its hour",
    ),
    "what a driver lacks": (f'{HEAD}[driver.d]\nkind = "timer"\nevent = "e"', 3, "driver d: every is missing"),
    "the secret itself": (
        f'{HEAD}[driver.d]\nkind = "webhook"\nevent = "e"\nscheme = "github"\nsecret = "hunter2"',
        7,
        "the value does not stand in a manifest",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_mistakes_are_told_with_their_line(tmp_path: Path, what: str) -> None:
    text, line, says = WRONG[what]
    directory = app(tmp_path, text)
    with pytest.raises(UsageError, match=rf"^{re.escape(str(directory))}/grape.toml:{line}: .*{says}") as caught:
        manifest_of(directory)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ('K = { file = "no" }', "secret K: no: No such file"),
        ('K = { env = "NO" }', "secret K: there is no variable NO here"),
        ('K = { credential = "no" }', r"systemd \(LoadCredential=\)"),
    ],
)
def test_a_secret_that_is_not_there(tmp_path: Path, manifest: str, says: str) -> None:
    directory = app(tmp_path, f"{HEAD}[secrets]\n{manifest}")
    with pytest.raises(UsageError, match=says):
        secrets_of(manifest_of(directory), directory, {})


def test_a_credential_does_not_lead_out_of_its_directory(tmp_path: Path) -> None:
    directory = app(tmp_path, f'{HEAD}[secrets]\nK = {{ credential = "../key" }}')
    (tmp_path / "key").write_text("no")
    (tmp_path / "given").mkdir()
    with pytest.raises(UsageError, match="No such file"):
        secrets_of(manifest_of(directory), directory, {"CREDENTIALS_DIRECTORY": str(tmp_path / "given")})


def test_what_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no grape\.toml in it; the directory of an app has one"):
        manifest_of(tmp_path)
    with pytest.raises(UsageError, match="there is no such directory"):
        manifest_of(tmp_path / "nowhere")
    (tmp_path / "grape.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UsageError, match="it is not UTF-8 at byte 8"):
        manifest_of(tmp_path)
    (tmp_path / "grape.toml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="at most 1048576 bytes"):
        manifest_of(tmp_path)
    (tmp_path / "grape.toml").write_text("a = " + "[" * 10_000)
    with pytest.raises(UsageError):
        manifest_of(tmp_path)


def test_what_the_app_lacks_for_its_drivers_is_told(tmp_path: Path) -> None:
    directory = app(tmp_path, f'{HEAD}[driver.d]\nkind = "timer"\nevery = 3\nevent = "odrer"')
    manifest = manifest_of(directory)
    with pytest.raises(UsageError, match=r"grape.toml:6: driver d: .* no slot 'odrer'; did you mean 'order'"):
        check_fits(directory, manifest, ["order", "other"], [])
    check_fits(directory, manifest, ["odrer"], [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[output.gon]\nage = "7 d"\n', "grape.toml:3: the app has no output 'gon'; did you mean 'gone'?"),
        (
            '[driver.d]\nkind = "objects"\nevent = "e"\nnamespace = "zz"\n',
            "grape.toml:6: driver d: the app may not read the namespace 'zz'; its own is 'a', others stand in",
        ),
    ],
)
def test_what_the_app_does_not_have(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.py").write_text("")
    (tmp_path / "grape.toml").write_text(f'name = "a"\napp = "a.py"\n{text}')
    with pytest.raises(UsageError, match=re.escape(says)):
        check_fits(tmp_path, manifest_of(tmp_path), ["e"], ["gone"])
    (tmp_path / "grape.toml").write_text(f'name = "a"\napp = "a.py"\n[namespaces]\nzz = "read"\n{text}')
    check_fits(tmp_path, manifest_of(tmp_path), ["e"], ["gone", "gon"])


@pytest.mark.parametrize(
    "kind", ['kind = "timer"\nevery = "1 s"', 'kind = "cron"\nschedule = "* * * * *"', 'kind = "watch"\npath = "/tmp"']
)
def test_a_key_of_a_driver_that_cannot_be_one(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.py").write_text("")
    (tmp_path / "grape.toml").write_text(f'name = "a"\napp = "a.py"\n[driver.d]\n{kind}\nevent = "e"\nkey = ""\n')
    with pytest.raises(UsageError, match=r"grape.toml:7: key: a key has 1 to 4,096 bytes"):
        manifest_of(tmp_path)
