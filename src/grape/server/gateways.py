"""The gateway processes of a server: they share the sockets that it listens at, and are started again when they die."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final

from grape.errors import UsageError
from grape.server.beside import SideProcess
from grape.server.config import ServerConfig, here, variables_for
from grape.server.home import Home
from grape.server.log import Say

_NEEDED: Final = ("uvicorn", "starlette", "httptools", "prometheus_client", "wsproto", "backports.zstd")
_BACKLOG: Final = 4096


class Gateways:
    """All of one server. Everything belongs to its loop.

    Args:
        say: a line for people. changed: called when there may be something to do.

    Attributes:
        address: "http://HOST:PORT", once they listen.
    """

    def __init__(self, home: Home, config: ServerConfig, say: Say, changed: Callable[[], None]) -> None:
        self.address = ""
        self._home = home
        self._config = config
        self._say = say
        self._changed = changed
        self._socket: socket.socket | None = None
        self._is_open = False
        self._processes: list[SideProcess] = []

    def listen(self) -> None:
        """Take the address; what comes before a gateway is there waits.

        Raises:
            UsageError: it cannot be, is taken, or is not for this machine alone and there are no tokens.
        """
        missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise UsageError(
                f"HTTP needs {', '.join(missing)}: pip install 'grape-engine[server]'; or serve without it: --no-http"
            )
        for file in filter(None, (self._config.tls_certificate, self._config.tls_key)):
            if not os.access(file, os.R_OK):
                raise UsageError(f"{file}: it cannot be read; TLS needs a certificate and its key, as PEM files")
        host, port = _address(self._config.listen)
        if self._config.tls_certificate:
            _check_certificate(self._config.tls_certificate, self._config.tls_key)
        self._is_open = _is_loopback(host)
        if not self._is_open and not (self._home.path / "tokens.json").exists():
            raise UsageError(
                f"--listen {self._config.listen}: others could reach it, so it needs tokens; make one first: "
                f"grape token create NAME --scope '*:*' --home {self._home.path}"
            )
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as e:
            raise UsageError(f"--listen {self._config.listen}: {e.strerror or e}; choose another address") from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http{'s' if self._config.tls_certificate else ''}://{shown}:{self._socket.getsockname()[1]}"
        for number in range(self._config.gateways):
            process = self._process(number, self._socket.fileno())
            process.want(runs=True)
            self._processes.append(process)

    def _process(self, number: int, fd: int) -> SideProcess:
        options = {
            "home": str(self._home.path),
            "sockets": [fd],
            "is_open": self._is_open,
            "number": number,
            "max_package": int(self._config.max_package),
            "origins": self._config.origins,
            "certificate": here(self._config.tls_certificate),
            "key": here(self._config.tls_key),
        }
        env = variables_for(self._config, os.environ)
        return SideProcess(f"gateway {number}", "gateway.process", options, self._say, self._changed, [fd], env)

    def step(self) -> None:
        """Do what is to be done now."""
        for process in self._processes:
            process.step()

    def dues(self) -> list[float]:
        """When there will be something to do though nothing has happened."""
        return [due for process in self._processes if (due := process.due()) is not None]

    async def close(self) -> None:
        """They answer what is under way, and end."""
        await asyncio.gather(*(process.close() for process in self._processes))
        if self._socket is not None:
            self._socket.close()


def _address(listen: str) -> tuple[str, int]:
    """
    Raises:
        UsageError: that is none.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise UsageError(f"--listen {listen!r:.100}: an address is HOST:PORT, as in 127.0.0.1:8080")
    return host.strip("[]") or "0.0.0.0", int(port)


def _check_certificate(certificate: str, key: str) -> None:
    """
    Raises:
        UsageError: TLS cannot be spoken with them.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key or None, password=lambda: b"")  # nobody is there to be asked for one
    except (ssl.SSLError, OSError, ValueError) as e:
        files = f"{certificate} and {key}" if key else certificate
        why = getattr(e, "reason", None) or e
        raise UsageError(
            f"{files}: TLS needs a certificate and its key, as PEM files without a password: {why}"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
